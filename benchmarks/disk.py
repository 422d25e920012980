"""A step over vectors on disk, against the disk itself: run it with nothing else running.

`python benchmarks/disk.py --directory DIR`, where DIR has room for 44 bytes per element. The disk
is asked first: one file is read from its beginning to its end and another one written, at the same
time, as many bytes of each as the step reads and writes. Nothing of them is in memory when they
begin, and writing ends when the disk has all. The step is Adam's, in float32.
"""

import argparse
import mmap
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

import gradstep as gs

CHUNK = 2**23


def leave_memory(path: Path) -> None:
    """Have the disk hold all of a file, and memory nothing of it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    """A file, from its beginning to its end."""
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        done = 0
        while count := file.readinto(buffer):
            os.posix_fadvise(file.fileno(), done, count, os.POSIX_FADV_DONTNEED)
            done += count


def write(path: Path, size: int) -> None:
    """As many bytes over those that are there, as fast as the disk takes them."""
    chunk = np.random.default_rng(0).bytes(CHUNK)
    with path.open("rb+", buffering=0) as file:
        for place in range(0, size, CHUNK):
            file.write(chunk[: size - place])
            # Writing begins behind, instead of waiting for the end.
            os.posix_fadvise(file.fileno(), 0, place, os.POSIX_FADV_DONTNEED)
        os.fsync(file.fileno())


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak() -> float:
    """The most bytes that were resident since that began to count."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        return 1024.0 * int(re.search(r"VmHWM:\s+(\d+)", status.read())[1])  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=250_000_000, help="elements, float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="on the disk to use; default: that of temporary files")
    arguments = parser.parse_args()
    size = arguments.size
    moved = {"read": 16 * size, "written": 12 * size}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        here = Path(name)
        w, g = (
            np.lib.format.open_memmap(here / f"{x}.npy", "w+", np.float32, (size,)) for x in "wg"
        )
        opt = gs.Adam(w, lr=1e-3, state_dir=here)
        for path in here.iterdir():
            write(path, path.stat().st_size)
        plain = {"read": here / "read", "written": here / "written"}
        for path, count in zip(plain.values(), moved.values(), strict=True):
            path.touch()
            write(path, count)
        for array in (w, g, *opt.state.values()):  # random bits are denormals and NaN
            for part in np.split(array, range(2**20, size, 2**20)):
                part.fill(0.25)
            array._mmap.flush()
            array._mmap.madvise(mmap.MADV_DONTNEED)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # peak() begins here

        def step() -> None:
            opt.step(g)
            for path in here.glob("*.npy"):
                leave_memory(path)

        def disk() -> None:
            reader = threading.Thread(target=read, args=[plain["read"]])
            reader.start()
            write(plain["written"], moved["written"])
            reader.join()

        taken: dict[str, list[float]] = {"disk": [], "step": []}
        for _ in range(arguments.rounds):
            for path in here.iterdir():
                leave_memory(path)
            taken["disk"].append(seconds(disk))
            for path in here.iterdir():
                leave_memory(path)
            taken["step"].append(seconds(step))
            ratios = [a / b for a, b in zip(taken["disk"], taken["step"], strict=True)]
            print(
                f"{8e-9 * size:.2g} GB of states, {sum(moved.values()) / 1e9:.2g} GB moved: "
                f"disk {taken['disk'][-1]:.2f} s, step {taken['step'][-1]:.2f} s, "
                f"{median(ratios):.2f} of the disk's speed; "
                f"at most {peak() / 1e6:.0f} MB resident",
                flush=True,
            )


if __name__ == "__main__":
    main()
