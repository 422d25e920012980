"""State files: NumPy's `.npz` with a JSON header, written atomically, read without pickle.

What several processes save is a file of the same kind for each, beside `path`, with its part of the
arrays laid end to end; and at `path`, written last, one that says where each part belongs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import checks as check
from .formats import FLOATS

Array = NDArray[Any]
PathLike = str | os.PathLike[str]
FORMAT = "gradstep state 1"
#: What the names of arrays begin with that are not one per parameter.
COUNTER = "counter "
#: What the names of the parts of one state have in common.
TOKEN = "[0-9a-f]{16}"
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


@dataclass(frozen=True)
class Shards:
    """What a header says of files that each hold a part.

    Args:
        token: what the names of these files have, and those of no other state.
        spans: for each file, which elements it has of the arrays laid end to end.
        shapes: of the arrays, by what comes after the name of their kind.
        dtypes: of the kinds.
    """

    token: str
    spans: Sequence[Sequence[Span]]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @property
    def sizes(self) -> list[int]:
        """The elements of each array."""
        return [math.prod(shape) for shape in self.shapes.values()]

    def meta(self) -> dict[str, Any]:
        """The entry of a header."""
        return {"shards": asdict(self)}

    def check_files(self, path: PathLike) -> None:
        """Raise unless the files are as large as they must be to hold what the header says."""
        items = sum(np.dtype(check.float_dtype(*pair)).itemsize for pair in self.dtypes.items())
        for number, spans in enumerate(self.spans):
            file = _shard_path(path, self.token, number)
            size, least = file.stat().st_size, items * sum(end - begin for begin, end in spans)
            if size < least:
                raise ValueError(
                    f"{file} is damaged: it has {size} bytes, not the {least} of its part"
                )


def checked_shards(given: Any, others: Sequence[str]) -> Shards:
    """The entry of a header, if each element has its place in one file.

    Args:
        given: the entry.
        others: the names of the arrays beside it, which must be in no part.
    """

    def expect(fits: object, what: str) -> None:
        if not fits:
            raise ValueError(f"the header of its parts is damaged: {what}")

    def is_size(x: Any) -> bool:
        return type(x) is int and 0 <= x <= check.MAX_INTEGER

    expect(isinstance(given, dict) and given.keys() == Shards.__annotations__.keys(), "keys")
    token, spans, shapes, dtypes = (given[name] for name in Shards.__annotations__)
    expect(isinstance(token, str) and re.fullmatch(TOKEN, token), "token")
    expect(isinstance(shapes, dict) and shapes, "shapes")
    for shape in shapes.values():
        expect(isinstance(shape, list) and all(map(is_size, shape)), "shapes")
    expect(isinstance(dtypes, dict) and "params" in dtypes, "dtypes")
    for kind, dtype in dtypes.items():
        expect(isinstance(dtype, str) and dtype in FLOATS, f"the dtype of {kind}")
    expect(isinstance(spans, list) and all(isinstance(part, list) for part in spans), "spans")
    for span in chain(*spans):
        expect(isinstance(span, list) and len(span) == 2 and all(map(is_size, span)), "spans")
        expect(span[0] < span[1], "an empty span")
    shards = Shards(
        token,
        [[(begin, end) for begin, end in part] for part in spans],
        {suffix: tuple(shape) for suffix, shape in shapes.items()},
        dtypes,
    )
    size = sum(shards.sizes)
    ends = [(0, 0), *sorted(chain(*shards.spans)), (size, size)]
    expect(all(end == begin for (_, end), (begin, _) in pairwise(ends)), "spans with gaps")
    expect(all(name.startswith(COUNTER) for name in others), f"arrays beside them: {others}")
    return shards


def write_shard(
    path: PathLike, token: str, number: int, parts: Mapping[str, Mapping[int, Array]]
) -> None:
    """One of these files: of each kind of arrays, the parts by their first element."""
    arrays = {f"{kind}@{begin}": part for kind in parts for begin, part in parts[kind].items()}
    write(_shard_path(path, token, number), {}, arrays)


def remove_shards(path: PathLike, keep: str | None, drop: str = TOKEN) -> None:
    """Remove the parts of states that are no more, or have not come to be."""
    target = Path(os.path.realpath(path))
    name = re.compile(re.escape(target.name) + rf"\.({drop})\.[0-9]+")
    for file in target.parent.iterdir():
        found = name.fullmatch(file.name)
        if found and found[1] != keep:
            file.unlink(missing_ok=True)


def read_parts(
    path: PathLike, shards: Shards, wanted: Sequence[Span]
) -> Iterator[tuple[str, int, Array]]:
    """The parts that overlap `wanted`: the kind, the first element, and the vector."""
    for number, spans in enumerate(shards.spans):
        if not any(a < end and begin < b for a, b in spans for begin, end in wanted):
            continue
        file = _shard_path(path, shards.token, number)
        parts = _read_one(file)[1]
        expected = {
            f"{kind}@{begin}": (dtype, (end - begin,))
            for kind, dtype in shards.dtypes.items()
            for begin, end in spans
        }
        if {name: (str(part.dtype), part.shape) for name, part in parts.items()} != expected:
            raise ValueError(f"{file} is not the part of {os.fspath(path)} that it should be")
        for name, part in parts.items():
            kind, _, begin = name.rpartition("@")
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
    meta, shards, arrays = read_header(path)
    if shards is None:
        return meta, arrays
    shards.check_files(path)
    size = sum(shards.sizes)
    whole = {
        kind: np.empty(size, check.float_dtype(kind, dtype))
        for kind, dtype in shards.dtypes.items()
    }
    for kind, begin, part in read_parts(path, shards, [(0, size)]):
        whole[kind][begin : begin + part.size] = part
    for kind, vector in whole.items():
        parts = np.split(vector, np.cumsum(shards.sizes)[:-1])
        for (suffix, shape), one in zip(shards.shapes.items(), parts, strict=True):
            arrays[kind + suffix] = one.reshape(shape)
    return meta, arrays


def read_header(path: PathLike) -> tuple[dict[str, Any], Shards | None, dict[str, Array]]:
    """The same, but where several processes saved, what it says of them, and what is in no part."""
    meta, arrays = _read_one(path)
    if "shards" not in meta:
        return meta, None, arrays
    try:
        return meta, checked_shards(meta.pop("shards"), [*arrays]), arrays
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is damaged: {error}") from error


def _read_one(path: PathLike) -> tuple[dict[str, Any], dict[str, Array]]:
    if not Path(path).exists():
        message = "there is no such gradstep state file"
        raise FileNotFoundError(errno.ENOENT, message, os.fspath(path))
    with Path(path).open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                    raise ValueError("it is compressed")
                if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
                    raise ValueError("it is shorter than its members")
                meta = json.loads(_member(archive, "meta").tobytes())
                known = meta["format"] == FORMAT
                arrays = {}
                for i, name in enumerate(meta.pop("arrays") if known else ()):
                    if not isinstance(name, str) or name in arrays:
                        raise ValueError(f"the name {name!r} of an array")
                    arrays[name] = _member(archive, f"array_{i}")
                for name in meta.pop("bfloat16", ()):
                    if arrays[name].dtype != np.uint16:
                        raise ValueError(f"{name} is not in bfloat16")
                    arrays[name] = arrays[name].view(check.float_dtype(name, "bfloat16"))
        # A damaged archive makes zipfile and NumPy raise almost anything, OSError, RuntimeError and
        # RecursionError among it.
        except Exception as error:
            raise ValueError(
                f"{os.fspath(path)} is not a gradstep state file, or is damaged: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not known:
        raise ValueError(f"{os.fspath(path)} has the format {meta['format']!r}, not {FORMAT!r}")
    return meta, arrays


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    """An array of an archive. Memory is asked for only if the archive is as large as it says."""
    with archive.open(f"{name}.npy") as member:
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(member)]
        shape, _, dtype = read_header(member)
        size = member.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != archive.getinfo(f"{name}.npy").file_size:
        raise ValueError(f"{name} is not as large as its shape {shape}")
    with archive.open(f"{name}.npy") as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _sync_directory(directory: Path) -> None:
    """Make the new name survive a power cut, where the system lets a directory be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
