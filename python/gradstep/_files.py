"""State files: NumPy's `.npz` with a JSON header, written atomically, read without pickle.

What several processes save is a file of the same kind for each, beside `path`, with its part of the
arrays laid end to end; and at `path`, written last, one that says where each part belongs.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import _checks as check

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

FORMAT = "gradstep state 1"
#: From where, and up to where.
Span = tuple[int, int]


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


def shards_meta(
    token: str,
    spans: Sequence[Sequence[Span]],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
) -> dict[str, Any]:
    """What a header says of files that each hold a part.

    Args:
        token: what the names of these files have, and those of no other state.
        spans: for each file, which elements it has of the arrays laid end to end.
        shapes: of the arrays, by what comes after the name of their kind.
        dtypes: of the kinds.
    """
    return {"shards": {"token": token, "spans": spans, "shapes": shapes, "dtypes": dtypes}}


def write_shard(
    path: PathLike, token: str, number: int, parts: Mapping[str, Mapping[int, Array]]
) -> None:
    """One of these files: of each kind of arrays, the parts by their first element."""
    arrays = {f"{kind}@{begin}": part for kind in parts for begin, part in parts[kind].items()}
    write(_shard_path(path, token, number), {}, arrays)


def remove_shards(path: PathLike, keep: str | None, drop: str = "[0-9a-f]{16}") -> None:
    """Remove the parts of states that are no more, or have not come to be."""
    target = Path(os.path.realpath(path))
    name = re.compile(re.escape(target.name) + rf"\.({drop})\.[0-9]+")
    for file in target.parent.iterdir():
        found = name.fullmatch(file.name)
        if found and found[1] != keep:
            file.unlink(missing_ok=True)


def read_parts(
    path: PathLike, shards: Mapping[str, Any], wanted: Sequence[Span]
) -> Iterator[tuple[str, int, Array]]:
    """The parts that overlap `wanted`: the kind, the first element, and the vector."""
    for number, spans in enumerate(shards["spans"]):
        if not any(a < end and begin < b for a, b in spans for begin, end in wanted):
            continue
        file = _shard_path(path, shards["token"], number)
        sizes = {str(begin): end - begin for begin, end in spans}
        for name, part in _read_one(file)[1].items():
            kind, _, begin = name.rpartition("@")
            if part.shape != (sizes.get(begin),) or str(part.dtype) != shards["dtypes"].get(kind):
                raise ValueError(f"{file} is not the part of {os.fspath(path)} that it should be")
            yield kind, int(begin), part


def _shard_path(path: PathLike, token: str, number: int) -> Path:
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name}.{token}.{number}")


def read(path: PathLike) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and all arrays, put together where several processes saved them.

    Raises:
        OSError: the file cannot be opened, or one that it speaks of.
        ValueError: it is not a state file, or not whole.
    """
    meta, arrays = _read_one(path)
    shards = meta.pop("shards", None)
    if shards is None:
        return meta, arrays
    sizes = [math.prod(shape) for shape in shards["shapes"].values()]
    size = sum(sizes)
    whole = {
        kind: np.empty(size, check.float_dtype(kind, dtype))
        for kind, dtype in shards["dtypes"].items()
    }
    for kind, begin, part in read_parts(path, shards, [(0, size)]):
        whole[kind][begin : begin + part.size] = part
    for kind, vector in whole.items():
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        for (suffix, shape), one in zip(shards["shapes"].items(), parts, strict=True):
            arrays[kind + suffix] = one.reshape(shape)
    return meta, arrays


def read_header(path: PathLike) -> tuple[dict[str, Any], dict[str, Array]]:
    """The same, but where several processes saved, the arrays that are in no part.

    The header then has "shards", for `read_parts`.
    """
    return _read_one(path)


def _read_one(path: PathLike) -> tuple[dict[str, Any], dict[str, Array]]:
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
