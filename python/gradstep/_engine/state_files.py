"""States as files of a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def checked_directory(path: str | os.PathLike[str]) -> Path:
    """A directory that is there."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"state_dir must be a path, got {path!r}")
    directory = Path(path)
    if not directory.is_dir():
        raise NotADirectoryError(f"state_dir must be a directory, got {os.fspath(path)!r}")
    return directory


def zeros(
    directory: Path,
    names: Sequence[str],
    shapes: Sequence[Sequence[tuple[int, ...]]],
    dtypes: Sequence[Sequence[np.dtype[Any]]],
) -> list[list[Array]]:
    """Zeros in new files of a directory: `m_0.npy` is the state m beside the first parameter.

    Args:
        directory: where the files will be.
        names: of the kinds of states.
        shapes: for each kind of state, the shape beside each parameter.
        dtypes: and the dtype there.

    Raises:
        OSError: a file is there already, or has no room. None is left then.
    """
    made: list[Path] = []
    try:
        return [
            [
                _zeros_in(directory / f"{name}_{i}.npy", shape, dtype, made)
                for i, (shape, dtype) in enumerate(zip(*kind, strict=True))
            ]
            for name, *kind in zip(names, shapes, dtypes, strict=True)
        ]
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def remove(states: Mapping[str, Sequence[Array]]) -> None:
    """Remove the files of states that are not to be."""
    for array in (array for arrays in states.values() for array in arrays):
        Path(array.filename).unlink(missing_ok=True)  # type: ignore[attr-defined]


def _zeros_in(path: Path, shape: tuple[int, ...], dtype: Any, made: list[Path]) -> Array:
    if path.exists():
        raise FileExistsError(f"state_dir holds {path.name} already: {os.fspath(path)!r}")
    made.append(path)
    array: Array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # Where the disk is full, writing to the memory of a file would end the process.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
