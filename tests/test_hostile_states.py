"""Damaged and hostile state files and state dicts: they load whole, or raise and change nothing.

Each mutation is made of a seed, which a failure shows. The long runs have random seeds.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import random
import secrets
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradstep as gs
from gradstep import checkpoint
from gradstep._engine import checks as check
from gradstep._engine import files as state_files
from oracle import as_taken, beside

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

SIGNALLING = np.array([0x7FA00001], np.uint32).view(np.float32)


def stepped(make: Callable[[dict], gs.Optimizer], dtype: Any = np.float32, size: int = 6):
    """A new optimizer of two arrays, after one step."""
    opt = make({"w": np.linspace(1, 2, size).astype(dtype).reshape(2, -1), 7: np.ones(3, dtype)})
    grads = {key: np.full_like(array, 0.5) for key, array in opt.params.items()}
    if isinstance(opt, gs.SVRG):
        opt.step(grads, grads)
    else:
        opt.step({k: as_taken(type(opt), g) for k, g in grads.items()}, **beside(opt, grads))
    return opt


def makers(folder: Path) -> dict[str, Callable[[], gs.Optimizer]]:
    numbers = itertools.count()

    def on_disk(params):
        directory = folder / f"states{next(numbers)}"
        directory.mkdir()
        return gs.Adam(params, state_dir=directory)

    found = {
        "adam": lambda: stepped(gs.Adam),
        "schedule": lambda: stepped(lambda p: gs.SGD(p, lr=lambda t: 0.1, momentum=0.5)),
        "nadam": lambda: stepped(gs.NAdam, np.float64),
        "schedule-free": lambda: stepped(gs.ScheduleFreeSGD),
        "sag": lambda: stepped(lambda p: gs.SAG(p, 0.1, rows=3, row_weights=[1, 2, 3])),
        "window": lambda: stepped(lambda p: gs.WindowSAG(p, 0.1, window=2)),
        "svrg": lambda: stepped(lambda p: gs.SVRG(p, 0.1, lambda p: p, every=2)),
        "float16": lambda: stepped(lambda p: gs.Adam(p, state_dtype="float16")),
        "int8": lambda: stepped(lambda p: gs.Adam(p, state_dtype="int8"), size=4096),
        "master": lambda: stepped(lambda p: gs.SGD(p, momentum=0.9, master=True), np.float16),
        "disk": lambda: stepped(on_disk),
    }
    if bfloat16:
        found["split"] = lambda: stepped(lambda p: gs.Adam(p, master="split"), bfloat16)
        found["bfloat16"] = lambda: stepped(gs.Adam, bfloat16)
    return found


# What an optimizer holds, as bytes: NaN and the sign of 0 count.


def held(opt: gs.Optimizer) -> tuple[Any, ...]:
    named = opt._named_arrays(with_params=True)
    return (
        {name: (array.dtype, array.shape, array.tobytes()) for name, array in named.items()},
        opt.t,
        repr(opt.hyperparameters),
        opt.lr,
    )


def tried(opt: Any, act: Callable[[], None], errors: tuple[type[Exception], ...]) -> bool:
    """Whether it loads. If not, nothing has changed. The caller has every warning as an error."""
    before = held(opt)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        try:
            act()
        except errors:
            assert held(opt) == before
            return False
    return True


def assert_holds(opt: Any, t: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Where there are master weights, the parameters follow them."""
    assert opt.t == t
    for name, array in opt._named_arrays(with_params=True).items():
        if name in arrays and not (name.startswith("params") and "master" in opt.state):
            assert array.tobytes() == arrays[name].tobytes(), name


# Mutations ----------------------------------------------------------------------------------------

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**62, 2**64, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "adam", "params", "float32", "float64", "bfloat16", "int64"),
    *("object", "O8", "../../x", [], [[]], [[0, 0]], [[[0, 0]]], [[[0, 9]]], [[[9, 0]]], [0]),
    *([2**62, 2**62], [-1], {}, {"a": 1}, {"": [9]}),
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree, with each key there."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def mutate_tree(rng: random.Random, tree: Any) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(tree))
        if not found:
            return
        node, key = rng.choice(found)
        how = rng.randrange(5)
        if how == 0:
            del node[key]
        elif how == 1 and type(node[key]) in (int, float):
            node[key] += rng.choice((-1, 1))
        elif how == 2 and isinstance(node, list):
            node.insert(key, copy.deepcopy(rng.choice(node)))
        elif how == 3:
            other, its_key = rng.choice(found)
            node[key] = copy.deepcopy(other[its_key])
        else:
            node[key] = copy.deepcopy(rng.choice(HOSTILE))


def mutate_array(rng: random.Random, array: np.ndarray) -> Any:
    """Another array, most often of another dtype, shape or content."""
    flat, how = array.ravel(), rng.randrange(11)
    dtypes = ["f2", "f4", "f8", ">f4", "i1", "u1", "i8", "?", "c8", "V4", "S3"]
    with np.errstate(all="ignore"):
        if how == 0:
            return np.zeros(array.shape, rng.choice(dtypes))
        if how == 1:
            return array[..., :-1] if array.ndim else array.reshape(1)
        if how == 2:
            return np.concatenate([flat, flat])
        if how == 3 and array.ndim > 1:
            return np.asfortranarray(array)
        if how == 4 and array.ndim:
            return array[::-1]
        if how == 5:
            return array.astype(np.float16) if check.is_float(array.dtype) else array[None]
        if how == 6:
            return array.reshape(*array.shape, 1)
        # Hostile bytes in the same shape: NaN, which signal too, and bools that are neither.
        new = array.copy(order="C")
        raw = new.reshape(-1).view(np.uint8)
        if how == 7:
            raw[:] = rng.choice((0, 1, 2, 255))
        elif how == 8 and new.dtype.itemsize == 4:
            new.reshape(-1).view(np.float32)[:] = SIGNALLING
        else:
            raw[rng.randrange(raw.size)] = rng.randrange(256)
        return new


def archive_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def mutate_file(rng: random.Random, path: Path) -> str:
    """Damage a file, in a way that leaves its checksums right where it is not of plain bytes."""
    how = rng.choice(("bytes", "header", "header", "array", "array", "format", "members"))
    if how == "bytes":
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice((1, 2, 9))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        return how
    members = archive_of(path)
    arrays = [name for name in members if name != "meta.npy"]
    name = rng.choice(arrays) if arrays else "meta.npy"
    if how == "header":
        meta = json.loads(np.load(io.BytesIO(members["meta.npy"])).tobytes())
        mutate_tree(rng, {"": meta} if rng.random() < 0.02 else meta)
        members["meta.npy"] = npy(np.frombuffer(json.dumps(meta).encode(), np.uint8))
    elif how == "array":
        members[name] = npy(mutate_array(rng, np.load(io.BytesIO(members[name]))))
    elif how == "format":  # of one array: shapes and dtypes that its bytes do not have
        new = rng.choice((b"9", b"-", b"'", b"<f8", b"|O", b"8", b"(", b"True"))
        place = rng.randrange(min(120, len(members[name]) - 8))
        data = members[name]
        members[name] = data[:place] + new + data[place + len(new) :]
    elif rng.random() < 0.5:
        del members[name]
    else:
        other = rng.choice([*members])
        members[name], members[other] = members[other], members[name]
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return how


def written_by_ranks(opt: gs.Optimizer, path: Path) -> None:
    """What `gradstep.mpi.Sharded` of three ranks saves, of which the last has no part."""
    named = opt._named_arrays(with_params=True)
    suffixes = opt._structure.suffixes
    kinds = ["params", *(f"state {name}" for name in opt.state)]
    vectors = {k: np.concatenate([named[k + s].ravel() for s in suffixes]) for k in kinds}
    size = vectors["params"].size
    spans = [[(0, 2), (5, size)], [(2, 5)], []]
    token = "0123456789abcdef"
    for number, own in enumerate(spans):
        parts = {k: {a: v[a:b] for a, b in own} for k, v in vectors.items()}
        state_files.write_shard(path, token, number, parts)
    shapes = {s: named["params" + s].shape for s in suffixes}
    shards = state_files.Shards(token, spans, shapes, {k: str(v.dtype) for k, v in vectors.items()})
    counters = {name: array for name, array in named.items() if name.startswith("counter ")}
    state_files.write(
        path, {**checkpoint.meta_of(opt), "params": "a dict", **shards.meta()}, counters
    )


def fuzz_files(folder: Path, seed: int, make: Callable[[], Any], save: Callable[[Any, Path], None]):
    """Load mutated files until there is an error; how many loaded is yielded with each."""
    rng = random.Random(seed)
    path = folder / "state"
    opt = make()
    save(opt, path)
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    saved = {name: array.copy() for name, array in opt._named_arrays(with_params=True).items()}
    while True:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        target = folder / rng.choice([*files])
        how = mutate_file(rng, target)
        for array in opt._named_arrays(with_params=True).values():
            if check.is_float(array.dtype):
                array.fill(9)
        convert = {"convert": True} if rng.random() < 0.3 and isinstance(opt, gs.Optimizer) else {}
        loads = tried(opt, lambda: opt.load(path, **convert), (ValueError, OSError))  # noqa: B023
        if loads:
            opt._plan.check()
            if how == "bytes":  # which hit nothing that counts
                assert_holds(opt, opt.t, saved)
            elif not convert:
                meta, arrays = state_files.read(path)
                assert_holds(opt, meta["t"], arrays)
        yield loads


def fuzz_dicts(seed: int, make: Callable[[], gs.Optimizer]) -> Iterator[bool]:
    rng = random.Random(seed)
    opt = make()
    state = opt.state_dict()
    while True:
        mutated = copy.deepcopy(state)
        if rng.random() < 0.5:
            mutate_tree(rng, mutated)
        else:
            found = [(d, k) for d, k in places(mutated) if isinstance(d[k], np.ndarray)]
            if not found:
                mutate_tree(rng, mutated)
            else:
                node, key = rng.choice(found)
                node[key] = mutate_array(rng, node[key])
        wanted = copy.deepcopy(mutated)
        convert = rng.random() < 0.3
        loads = tried(
            opt,
            lambda: opt.load_state_dict(mutated, convert=convert),  # noqa: B023
            (TypeError, ValueError),
        )
        if loads:
            opt._plan.check()
            counters = {f"counter {name}": array for name, array in wanted["counters"].items()}
            states = {
                f"state {name}{suffix}": array
                for name, tree in wanted["state"].items()
                for suffix, array in zip(opt._structure.suffixes, tree.values(), strict=True)
            }
            assert_holds(opt, wanted["t"], {} if convert else states | counters)
        yield loads


def run(fuzz: Iterator[bool], count: int) -> int:
    return sum(itertools.islice(fuzz, count))


# Tests --------------------------------------------------------------------------------------------


def test_files(tmp_path):
    """Some of each kind of optimizer, with the same seeds in each run."""
    for name, make in makers(tmp_path).items():
        folder = tmp_path / name
        folder.mkdir()
        assert 0 < run(fuzz_files(folder, 1, make, gs.Optimizer.save), 25) < 25, name


def test_files_of_ranks(tmp_path):
    for name in ("adam", "schedule-free"):
        folder = tmp_path / name
        folder.mkdir()
        fuzz = fuzz_files(folder, 2, makers(tmp_path)[name], written_by_ranks)
        assert 0 < run(fuzz, 100) < 100, name


def test_dicts(tmp_path):
    for name, make in makers(tmp_path).items():
        assert 0 < run(fuzz_dicts(3, make), 60) < 60, name


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["files", "ranks", "dicts"])
def test_many(kind, tmp_path):
    end = time.monotonic() + 200
    for number in itertools.count():
        for name, make in makers(tmp_path).items():
            seed, folder = secrets.randbits(32), tmp_path / f"{name}{number}"
            print(f"{kind} of {name}, seed {seed}")
            if kind == "dicts":
                fuzz = fuzz_dicts(seed, make)
            elif kind == "files" or name in ("sag", "window", "svrg", "int8", "master", "split"):
                folder.mkdir()
                fuzz = fuzz_files(folder, seed, make, gs.Optimizer.save)
            else:
                folder.mkdir()
                fuzz = fuzz_files(folder, seed, make, written_by_ranks)
            run(fuzz, 500)
            if time.monotonic() > end:
                return
