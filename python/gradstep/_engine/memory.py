"""Memory that begins at a cache line, many arrays in one piece of it, and how much there is."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
#: Bytes of a cache line, which is also the widest vector.
LINE = 64
#: Addresses that differ by a multiple of this are confused by processors that look at their low
#: bits first: a load then waits for a store to another array.
ALIAS = 4096
#: So the states of a parameter begin this many bytes apart, modulo ALIAS.
STAGGER = 1024
#: Smaller arrays, in bytes, lie closely instead: gaps between them would cost more cache.
LARGE = 16384


def available_bytes() -> float:
    """Memory that can be used without swapping; infinity where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if "MemAvailable" in line).split()[1])
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf


def zeros_at(shape: tuple[int, ...], dtype: DTypeLike, address: int, period: int) -> Array:
    """Zeros at an address that is `address` modulo `period`, where NumPy's own begin anywhere.

    The system hands out large arrays when they are first touched, which is in the threads that
    update them.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + period, np.uint8)
    start = (address - room.ctypes.data) % period
    return room[start : start + size].view(dtype).reshape(shape)


def zeros_beside(
    params: Sequence[Array],
    shapes: Sequence[Sequence[tuple[int, ...]]],
    dtypes: Sequence[Sequence[np.dtype[Any]]],
) -> list[list[Array]]:
    """Zeros for the states of some parameters, where a sweep over them is fastest.

    They begin at their parameter's place in a cache line, so that vectors which fit the lines of
    one fit those of all, and the large ones at another place of a page. All lie in one piece of
    memory, for which the system can take larger pages.

    Args:
        params: the parameters.
        shapes: for each kind of state, the shape beside each parameter.
        dtypes: and the dtype there.
    """
    spans = []
    end = 0
    for place, kind in enumerate(zip(shapes, dtypes, strict=True), 1):
        for param, shape, dtype in zip(params, *kind, strict=True):
            size = math.prod(shape) * dtype.itemsize
            large = size >= LARGE
            wanted = param.ctypes.data + large * STAGGER * place
            start = end + (wanted - end) % (ALIAS if large else LINE)
            end = start + size
            spans.append(slice(start, end))
    room = zeros_at((end,), np.uint8, 0, ALIAS)
    span = iter(spans)
    return [
        [room[next(span)].view(dtype).reshape(shape) for shape, dtype in zip(*kind, strict=True)]
        for kind in zip(shapes, dtypes, strict=True)
    ]
