"""What it costs to share a step out, against the plain step: run it with nothing else running.

`mpiexec -n 1 python benchmarks/mpi_sharded.py`, and then with 2, 4, ... ranks. One rank is to be
within 5 % of the plain step.
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

    def shared(overlap: bool) -> Callable[..., object]:
        opt = Sharded(gs.Adam, start, comm=comm, overlap=overlap, lr=1e-3)
        opt.grads[...] = 0.5
        return lambda **options: opt.step(opt.grads, **options)

    def alone(**options: float) -> object:
        return plain.step(grads.flat, **options)

    for options in ({}, {"clip_norm": 1.0}):
        steps = {"plain": alone, "shared": shared(False), "overlap": shared(True)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(arguments.rounds):  # in turns, so that all have the machine as it is
            for name in [*steps][:: -1 if turn % 2 else 1]:
                comm.Barrier()
                if name == "plain" and comm.rank > 0:
                    continue  # rank 0 has the memory to itself; the others wait at the barrier
                begin = time.perf_counter()
                steps[name](**options)
                seconds[name].append(time.perf_counter() - begin)
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
