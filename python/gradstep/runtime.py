"""What runs the kernels: threads, instruction set, compiler."""

from __future__ import annotations

from typing import Any

from . import _core
from ._engine import checks as check


def set_num_threads(threads: int) -> None:
    """Let a step use up to this many threads. The bits of the result do not depend on it.

    Args:
        threads: from 1 to 1024. The start value is `GRADSTEP_NUM_THREADS`, else OpenMP's.

    Raises:
        TypeError, ValueError: not a whole number, or out of range.

    Example:
        >>> import gradstep as gs
        >>> before = gs.get_num_threads()
        >>> gs.set_num_threads(1)
        >>> gs.get_num_threads()
        1
        >>> gs.set_num_threads(before)
    """
    _core.set_num_threads(check.integer("threads", threads, 1, _core.thread_limit))


def get_num_threads() -> int:
    """The most threads that a step may use.

    Raises:
        ValueError: `GRADSTEP_NUM_THREADS` is set and not a whole number from 1 to 1024.
    """
    return _core.get_num_threads()


def info() -> dict[str, Any]:
    """What runs the kernels here.

    Returns:
        `version`; `isa`, the instruction set in use (the best that the processor has, or
        `GRADSTEP_ISA`); `isa_available`, those that could be; `threads`; `compiler`; `openmp`, the
        date of its specification, or None.

    Raises:
        ValueError: `GRADSTEP_ISA` or `GRADSTEP_NUM_THREADS` is set and not usable.

    Example:
        >>> import gradstep as gs
        >>> sorted(gs.info())
        ['compiler', 'isa', 'isa_available', 'openmp', 'threads', 'version']
    """
    return {
        "version": _core.__version__,
        "isa": _core.get_isa(),
        "isa_available": [name for name, supported in _core.isa_levels().items() if supported],
        "threads": get_num_threads(),
        "compiler": _core.compiler,
        "openmp": _core.openmp or None,
    }
