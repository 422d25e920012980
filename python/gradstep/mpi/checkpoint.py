"""Checkpoints of several ranks: each writes its part, and any number of ranks reads them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import checkpoint
from .._engine import files
from ..checkpoint import Loaded, check_keys
from ..optimizers.base import Optimizer

if TYPE_CHECKING:
    from .sharded import Sharded

Array = NDArray[Any]


def save(opt: Sharded, path: files.PathLike) -> None:
    """See `Sharded.save`."""
    comm = opt._comm
    opt._copy_in()
    token = comm.bcast(secrets.token_hex(8))
    kinds: dict[str, dict[int, Array]] = {}
    spans = []
    for shard, piece in zip(opt._shards, opt._pieces, strict=True):
        if piece.start < piece.stop:
            spans.append((piece.start, piece.stop))
            for kind, array in vectors_of(shard).items():
                kinds.setdefault(kind, {})[piece.start] = array
    all_spans = comm.allgather(spans)
    try:
        opt._together(lambda: files.write_shard(path, token, comm.rank, kinds))
        opt._together(partial(_commit, opt, path, token, all_spans), only=0)
    except BaseException:
        if comm.rank == 0:
            files.remove_shards(path, keep=None, drop=token)
        raise


def _commit(
    opt: Sharded, path: files.PathLike, token: str, spans: Sequence[Sequence[files.Span]]
) -> None:
    first = opt._shards[0]
    meta = {
        **checkpoint.meta_of(first),
        "params": opt._structure.kind,
        **files.Shards(
            token,
            spans,
            opt._shapes(),
            {kind: str(array.dtype) for kind, array in vectors_of(first).items()},
        ).meta(),
    }
    counters = {files.COUNTER + name: array for name, array in first._counters().items()}
    files.write(path, meta, counters)
    files.remove_shards(path, keep=token)


def load(opt: Sharded, path: files.PathLike) -> None:
    """See `Sharded.load`."""
    with ExitStack() as stack:
        loaded = opt._together(lambda: _read(opt, path, stack))
        for shard, one in zip(opt._shards, loaded, strict=True):
            checkpoint.put_alone(shard, one)
    opt._collect_all()


def _read(opt: Sharded, path: files.PathLike, stack: ExitStack) -> list[Loaded]:
    """What fits each piece of this rank, whose steps wait until the stack is left."""
    meta, shards, arrays = files.read_header(path)
    try:
        checkpoint.check_header(opt._shards[0], meta, opt._structure)
        counters = {n: arrays.pop(n) for n in list(arrays) if n.startswith(files.COUNTER)}
        shapes = opt._shapes()
        if shards is None:
            found = {n[6:]: a.shape for n, a in arrays.items() if n.startswith("params")}
        else:
            found = dict(shards.shapes)
        if found != shapes:
            raise ValueError(f"its params have the shapes {found}, here they are {shapes}")
        here = {kind: str(array.dtype) for kind, array in vectors_of(opt._shards[0]).items()}
        spans = [(piece.start, piece.stop) for piece in opt._pieces]
        if shards is None:
            parts = _parts_of_whole(arrays, shapes, here)
        else:
            _check_dtypes(shards.dtypes, here)
            parts = files.read_parts(path, shards, spans)
        sources = [
            counters | {kind: np.empty_like(array) for kind, array in vectors_of(shard).items()}
            for shard in opt._shards
        ]
        for kind, first, part in parts:
            for source, (begin, end) in zip(sources, spans, strict=True):
                a, b = max(first, begin), min(first + part.size, end)
                if a < b:
                    source[kind][a - begin : b - begin] = part[a - first : b - first]
        loaded = [
            checkpoint.checked(shard, meta, source, with_params=True, convert=False)
            for shard, source in zip(opt._shards, sources, strict=True)
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error
    for shard in opt._shards:
        stack.enter_context(shard._alone())
    return loaded


def vectors_of(shard: Optimizer) -> dict[str, Array]:
    """The vector of a piece and those of its states, by what files call their kind."""
    counters = {f"counter {name}" for name in shard._counters()}
    named = shard._named_arrays(with_params=True)
    return {kind: array for kind, array in named.items() if kind not in counters}


def _check_dtypes(found: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise unless a file has the kinds of arrays that are here, in their dtypes."""
    check_keys("the state", found, here)
    for kind, dtype in here.items():
        _check_dtype(kind, found[kind], dtype)


def _check_dtype(kind: str, found: object, here: str) -> None:
    if str(found) != here:
        raise ValueError(f"its {kind} are {found}, here they are {here}")


def _parts_of_whole(
    arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], here: Mapping[str, str]
) -> Iterator[tuple[str, int, Array]]:
    """The arrays of a plain state, as `read_parts` gives those of a shared one."""
    check_keys("the state", arrays, [kind + suffix for kind in here for suffix in shapes])
    begin = 0
    for suffix, shape in shapes.items():
        for kind, dtype in here.items():
            array = arrays[kind + suffix]
            if array.shape != shape:
                raise ValueError(f"{kind}{suffix} has the shape {array.shape}, not {shape}")
            _check_dtype(kind, array.dtype, dtype)
            yield kind, begin, array.ravel()
        begin += math.prod(shape)
