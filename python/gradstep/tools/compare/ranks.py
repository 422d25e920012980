"""`gradstep compare --ranks`: the rules trained by several processes that share the states.

The command starts `python -m gradstep.tools.compare.ranks` under `mpiexec`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import training
from .. import compare
from ..datasets import UsageError, load
from ..report import aligned, count
from .tables import _model

__all__ = ["find_mpiexec", "start"]
Array = NDArray[Any]


def find_mpiexec() -> str:
    """The `mpiexec` of this environment, or else the one in the path.

    Raises:
        UsageError: there is none, or no mpi4py.
    """
    beside = Path(sys.executable).parent
    found = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if found is None or find_spec("mpi4py") is None:
        missing = "mpiexec" if found is None else "mpi4py"
        raise UsageError(f'--ranks needs {missing}: pip install "gradstep[mpi]"')
    return found


def start(ranks: int, **options: Any) -> int:
    """Compare on so many ranks.

    Args:
        ranks: how many processes to start.
        options: data, target, rules, epochs, batch_size, seed and threads, as the command has them.

    Returns:
        The exit code of `mpiexec`.
    """
    threads = options.pop("threads") or max(1, (os.cpu_count() or 1) // ranks)
    environment = {"GRADSTEP_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    program = [sys.executable, "-m", __name__, json.dumps(options)]
    command = [find_mpiexec(), "-n", str(ranks), *program]
    return subprocess.run(command, env={**os.environ, **environment}, check=False).returncode


class Training:
    """A rule on its way through the data on all ranks of a communicator, and where it ends."""

    def __init__(
        self, batches: compare.Batches, name: str, epochs: int, seed: int, comm: Any
    ) -> None:
        from ...mpi import Sharded

        recipe, problem = compare.ALL_RULES[name], batches.problem
        batches = batches.whole() if recipe.full_batch else batches
        lr = recipe.learning_rate(batches)
        opt = Sharded(recipe.cls, problem.start(), comm=comm, lr=lr, **recipe.options)
        self.history = training.train(
            opt,
            problem.gradient,
            (problem.data.x, problem.data.y),
            batch_size=batches.size,
            epochs=epochs,
            seed=seed,
        )
        if hasattr(recipe.cls, "eval"):
            opt.eval()
        self.params: list[Array] = opt.params
        self.loss = problem.value(self.params)
        self.score = problem.score(self.params)
        self.seconds = self.history["seconds"][-1] if self.history.epochs else 0.0
        self.state_bytes = sum(array.nbytes for part in opt.state.values() for array in part)


def table(problem: compare.Problem, ranks: int, found: Mapping[str, Sequence[Training]]) -> str:
    """What was found: for each rule, of one rank and of all, one below the other."""
    score = "accuracy" if problem.data.classes else "R2"
    rows = [
        ["", "", "training", "held out", "training", "bytes of", "largest"],
        ["rule", "ranks", "loss", score, "seconds", "states", "difference"],
    ]
    for name, trainings in found.items():
        for size, run in zip(dict.fromkeys((1, ranks)), trainings, strict=False):
            apart = max(
                float(np.max(np.abs(a - b), initial=0))
                for a, b in zip(run.params, trainings[0].params, strict=True)
            )
            row = [name, str(size), f"{run.loss:.6g}", f"{run.score:.4f}", f"{run.seconds:.3f}"]
            rows.append([*row, f"{run.state_bytes:,}", "-" if size == 1 else f"{apart:.1e}"])
    return "\n".join(aligned([list(column) for column in zip(*rows, strict=True)]))


NOTES = """\
training seconds: the whole run, with its gradients and what ranks tell each other.
bytes of states: what rank 0 keeps. Ranks divide blocks of 4,096 elements.
largest difference: of a parameter, to one rank. Sums are rounded in another order."""


def main(text: str) -> None:
    """What each rank does."""
    from ...mpi import MPI
    from ...mpi.sharded import check_sharded

    options = json.loads(text)
    comm = MPI.COMM_WORLD
    data = load(options["data"], options["target"], options["seed"])
    problem = compare.Problem(data)
    size = options["batch_size"] or max(32, len(data.x) // 400)
    batches = compare.Batches(problem, size, options["seed"])
    epochs = options["epochs"] or min(max(2500 // len(batches), 20), 100)
    found: dict[str, list[Training]] = {}
    left_out = []
    for name in options["rules"]:
        try:
            check_sharded(compare.ALL_RULES[name].cls)
        except TypeError as error:
            left_out.append(f"left out: {error}")
            continue
        alone = [Training(batches, name, epochs, options["seed"], MPI.COMM_SELF)]
        if comm.size > 1:
            alone.append(Training(batches, name, epochs, options["seed"], comm))
        found[name] = alone
    if comm.rank == 0:
        heading = f"{_model(problem)}; {count(epochs, 'epoch')}, batches of {size}"
        print(f"{heading}\n\n{table(problem, comm.size, found)}\n\n{NOTES}")
        print(*left_out, sep="\n", end="\n" if left_out else "")


if __name__ == "__main__":
    main(sys.argv[1])
