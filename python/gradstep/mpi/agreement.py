"""What ranks agree about."""

from __future__ import annotations

import hashlib
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ..training.minibatches import Seed

try:
    from mpi4py import MPI as MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI for it to load
    raise ImportError(f'gradstep.mpi needs MPI: pip install "gradstep[mpi]" ({error})') from error

Result = TypeVar("Result")
#: Seconds for the launcher to pass on what a rank wrote last, because the end of all cuts it off.
TIME_TO_TELL = 1.0


def _shown(value: Any) -> str:
    """What tells whether ranks were given the same."""
    if isinstance(value, np.random.Generator):
        return f"a generator at {value.bit_generator.state}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_shown, value))})"
    return repr(value)


def common_seed(comm: MPI.Intracomm, seed: Seed) -> Seed:
    """The seed, or one of rank 0 where there is none."""
    if seed is not None:
        return seed
    drawn: int = comm.bcast(secrets.randbits(128))
    return drawn


class NonFiniteSumError(ValueError):
    """Gradients that have no finite norm to clip.

    Args:
        message: what is wrong.
        norm: what the norm came to.
    """

    def __init__(self, message: str, norm: float) -> None:
        super().__init__(message)
        self.norm = norm


def together(comm: MPI.Intracomm, act: Callable[[], Result], only: int | None = None) -> Result:
    """What `act` returns, or an error on all ranks if it raises on one.

    Args:
        comm: all ranks of it call this.
        act: what each does for itself.
        only: the rank that does it; None (default) for all. The others return None.
    """
    results: list[Result] = []
    error = None
    if only in (None, comm.rank):
        error = _caught(lambda: results.append(act()))
    _raise_for_all(comm, error)
    return results[0] if results else None  # type: ignore[return-value]


def _caught(act: Callable[[], None]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def _raise_for_all(comm: MPI.Intracomm, error: Exception | None) -> None:
    """Raise what this rank has met, or else what another one has."""
    told = None if error is None else f"{type(error).__name__}: {error}"
    for rank, message in enumerate(comm.allgather(told)):
        if error is not None:
            raise error
        if message is not None:
            raise RuntimeError(f"rank {rank}: {message}")


def check_alike(comm: MPI.Intracomm, description: Mapping[str, str]) -> None:
    """Raise the same error on all ranks unless all have the same description."""
    digest = hashlib.sha256(repr(sorted(description.items())).encode()).digest()
    if len(set(comm.allgather(digest))) == 1:
        return
    first, *others = comm.allgather(dict(description))
    for rank, other in enumerate(others, 1):
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                here, there = (d.get(name, "missing") for d in (first, other))
                raise ValueError(f"{name} is {there} on rank {rank}, {here} on rank 0")


def _end_all_with_one() -> None:
    """Where an exception ends this process, end those of all ranks: they would wait for it."""
    before = sys.excepthook
    if getattr(before, "ends_all", False):
        return

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        before(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(TIME_TO_TELL)
        MPI.COMM_WORLD.Abort(1)

    excepthook.ends_all = True  # type: ignore[attr-defined]
    sys.excepthook = excepthook


def _checked_comm(comm: Any) -> MPI.Intracomm:
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise TypeError(f"comm must be an intracommunicator of mpi4py, got {comm!r}")
    return comm
