"""MPI itself, and the end of all ranks where one of them fails."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

try:
    from mpi4py import MPI as MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: there is no MPI for it to load
    raise ImportError(f'gradstep.mpi needs MPI: pip install "gradstep[mpi]" ({error})') from error

#: Seconds for the launcher to pass on what a rank wrote last, because the end of all cuts it off.
TIME_TO_TELL = 1.0


class NonFiniteSumError(ValueError):
    """Gradients that have no finite norm to clip.

    Args:
        message: what is wrong.
        norm: what the norm came to.
    """

    def __init__(self, message: str, norm: float) -> None:
        super().__init__(message)
        self.norm = norm


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
