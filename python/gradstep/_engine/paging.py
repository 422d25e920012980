"""What of a file is in memory: reading ahead, giving back, and interrupts that wait for the end."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@contextmanager
def _reading(read: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """A function that has another thread read a window, after those before; it ends with the block.

    That thread only helps: the step itself reads what it could not. It is no executor's, because
    these stop with the main thread, and would leave a step half done.
    """
    numbers: SimpleQueue[int | None] = SimpleQueue()
    done: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        while (number := numbers.get()) is not None:
            with suppress(Exception):
                read(number)
            done.put(None)

    def want(number: int) -> None:
        if number > 1:
            done.get()
        numbers.put(number)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield want
    finally:
        numbers.put(None)
        thread.join()


def _read(part: Array) -> None:
    """Have memory hold a part of a file.

    Asked with MADV_WILLNEED, Linux reads into single pages, not into large folios as here: a step
    took twice as long.
    """
    part.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max()


@contextmanager
def _releasing(array: Array) -> Iterator[Callable[[Array], None] | None]:
    """A function that gives the memory of parts of an array back, or None without a file.

    What is private to this process, a `np.memmap` of mode "c", would be lost.
    """
    memory = getattr(array, "_mmap", None)
    path = getattr(array, "filename", None)
    if memory is None or path is None or array.mode == "c":  # type: ignore[attr-defined]
        yield None
        return
    if not hasattr(mmap, "MADV_DONTNEED"):
        yield lambda part: None
        return
    begin = np.frombuffer(memory, np.uint8).ctypes.data
    first = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY  # type: ignore[attr-defined]
    file = os.open(path, os.O_RDONLY)

    def release(part: Array) -> None:
        place = part.ctypes.data - begin
        start = place - place % mmap.PAGESIZE
        size = place + part.nbytes - start
        memory.madvise(mmap.MADV_DONTNEED, start, size)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, first + start, size, os.POSIX_FADV_DONTNEED)

    try:
        yield release
    finally:
        os.close(file)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Keep Ctrl-C for the end: a step is whole, or has not begun."""
    if threading.current_thread() is not threading.main_thread():  # which does not get them
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)
