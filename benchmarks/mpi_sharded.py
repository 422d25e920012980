"""What it costs to share a step out, against the plain step: run it with nothing else running.

`mpiexec -n 1 python benchmarks/mpi_sharded.py`, and then with 2, 4, ... ranks. One rank is to be
within 5 % of the plain step. `several` is the shared step of ten arrays, which are copied to the
vector and back. `update` is the shared step without what the ranks send each other; a
plain step of as many threads is that of `mpiexec -n 1` with OMP_NUM_THREADS set to the ranks.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np

import gradstep as gs
from gradstep.mpi import MPI, Sharded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10_000_000, help="elements, float32")
    parser.add_argument("--rounds", type=int, default=101)
    arguments = parser.parse_args()
    comm, size = MPI.COMM_WORLD, arguments.size
    start = np.ones(size, np.float32)
    arena = gs.flatten(start)
    grads = arena.zeros_like()
    grads.flat[...] = 0.5
    plain = gs.Adam(arena.flat, lr=1e-3)
    several = np.array_split(start.copy(), 10)
    opts = [
        Sharded(gs.Adam, params, comm=comm, overlap=overlap, lr=1e-3)
        for params, overlap in ((start, False), (start.copy(), True), (several, False))
    ]

    def shared(opt: Sharded) -> Callable[..., object]:
        for array in opt.grads if isinstance(opt.grads, list) else [opt.grads]:
            array.fill(0.5)
        return lambda **options: opt.step(opt.grads, **options)

    def alone(**options: float) -> object:
        """On rank 0, which has the memory to itself: the others wait."""
        return plain.step(grads.flat, **options) if comm.rank == 0 else None

    def update(**options: float) -> None:
        for shard, part in zip(opts[0]._shards, opts[0]._sums, strict=True):
            shard.step(part[: shard._params[0].size], **options)

    for options in ({}, {"clip_norm": 1.0}):
        steps = {
            "plain": alone,
            "update": update,
            "shared": shared(opts[0]),
            "overlap": shared(opts[1]),
            "several": shared(opts[2]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(arguments.rounds):  # in turns, so that all have the machine as it is
            for name in [*steps][:: -1 if turn % 2 else 1]:
                comm.Barrier()
                begin = time.perf_counter()
                steps[name](**options)
                seconds[name].append(comm.allreduce(time.perf_counter() - begin, MPI.MAX))
        if comm.rank == 0:
            base = seconds["plain"]
            for name, taken in seconds.items():
                ratio = median(a / b for a, b in zip(taken, base, strict=True))
                print(
                    f"{comm.size} ranks, {size:,} float32, {options or 'no clipping'}: "
                    f"{name:8} {1e3 * median(taken):8.2f} ms, {ratio:.3f} of plain"
                )


if __name__ == "__main__":
    main()
