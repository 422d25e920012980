"""State files: NumPy's `.npz` with a JSON header, written atomically, read without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import _checks as check

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

FORMAT = "gradstep state 1"


def write(path: PathLike, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """A file of these arrays, whose names may be any text: the archive has numbers for them.

    NumPy's format has no name for bfloat16: those arrays are there as their bits, and named.
    """
    bfloat16 = [name for name, array in arrays.items() if array.dtype.name == "bfloat16"]
    known = {"format": FORMAT, **meta, "arrays": list(arrays)}
    header = json.dumps(known | ({"bfloat16": bfloat16} if bfloat16 else {})).encode()
    numbered: dict[str, Any] = {
        f"array_{i}": array.view(np.uint16) if name in bfloat16 else array
        for i, (name, array) in enumerate(arrays.items())
    }
    with replacing(path) as file:
        np.savez(file, meta=np.frombuffer(header, np.uint8), **numbered)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place at the end: others see the old file or the new one.

    Raises:
        OSError: it cannot be written. What was there is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"cannot write to {os.fspath(path)!r}: it is not a regular file")
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(target.parent)


def read(path: PathLike) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and all arrays.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a state file, or not whole.
    """
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                meta = json.loads(archive["meta"].tobytes())
                known = meta["format"] == FORMAT
                names = meta.pop("arrays") if known else ()
                arrays = {name: archive[f"array_{i}"] for i, name in enumerate(names)}
                for name in meta.pop("bfloat16", ()):
                    arrays[name] = arrays[name].view(check.float_dtype(name, "bfloat16"))
        # A damaged archive makes zipfile and NumPy raise almost anything, OSError, RuntimeError and
        # MemoryError (of a shape that cannot be) among it.
        except Exception as error:
            raise ValueError(
                f"{os.fspath(path)} is not a gradstep state file, or is damaged: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not known:
        raise ValueError(f"{os.fspath(path)} has the format {meta['format']!r}, not {FORMAT!r}")
    return meta, arrays


def _sync_directory(directory: Path) -> None:
    """Make the new name survive a power cut, where the system lets a directory be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
