"""State files: NumPy's `.npz` with a JSON header, written atomically, read without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

FORMAT = "gradstep state 1"


def write(path: PathLike, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write beside the file, then replace it: whoever reads it sees the old file or the new one."""
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise OSError(f"cannot save to {os.fspath(path)!r}: it is not a regular file")
    header = json.dumps({"format": FORMAT, **meta}).encode()
    named: dict[str, Any] = {"meta": np.frombuffer(header, np.uint8), **arrays}
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez(file, **named)
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
                arrays = {name: archive[name] for name in archive.files}
            meta = json.loads(arrays.pop("meta").tobytes())
            known = meta["format"] == FORMAT
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
