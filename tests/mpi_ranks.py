"""What test_mpi.py has several processes do: each function runs, and asserts, on all ranks."""

from __future__ import annotations

import operator
import re
import signal
import sys
import zlib
from itertools import pairwise

import numpy as np
import pytest

import gradstep as gs
from gradstep.mpi import MPI, Sharded, sharded
from gradstep.mpi.sharded import check_sharded
from gradstep.optimizers.base import CLASSES
from gradstep.training.minibatches import part_of
from oracle import DTYPES, assert_same_bits, needed

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.rank, COMM.size
SIZE = 50_001


def elementwise(cls) -> bool:
    try:
        check_sharded(cls)
    except TypeError:
        return False
    return True


def numbers(size: int, dtype: type, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(dtype)


def gradients_of_all(t: int, dtype: type, size: int = SIZE) -> list[np.ndarray]:
    """Of each rank. At most two have an element, so that the order of the sum is no matter."""
    each = [numbers(size, dtype, t, rank) for rank in range(RANKS)]
    place = np.arange(size) % RANKS
    for rank, g in enumerate(each):
        g[(place != rank) & (place != (rank + 1) % RANKS)] = 0
    return each


def gradients(t: int, dtype: type, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Of this rank, and the sum over all."""
    each = gradients_of_all(t, dtype, size)
    return each[RANK], np.sum(each, axis=0, dtype=dtype)


def tree(vector: np.ndarray) -> dict[str, np.ndarray]:
    return {"a": vector[:30_000], "b": vector[30_000:].reshape(-1, 3)}


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])


TREATMENTS = [
    {},
    {"clip_norm": 5.0},
    {"clip_value": 0.5, "grad_scale": 3.0},
    {"clip_norm": 1e30, "clip_value": 2.0},
]


def same_bits() -> None:
    """Every rule that can be sharded, with and without buckets, against the plain optimizer."""
    sharded.BUCKET = 8192
    classes = [cls for cls in CLASSES if elementwise(cls)]
    assert len(classes) > 15
    for cls in classes:
        for dtype in DTYPES[: 1 if RANKS > 2 else 2]:
            start = numbers(SIZE, dtype, 99)
            arguments = {**needed(cls), "lr": 0.01}
            overlap = dtype is np.float32
            opt = Sharded(cls, tree(start.copy()), comm=COMM, overlap=overlap, **arguments)
            assert len(opt._buckets) == (-(-SIZE // (8192 * RANKS)) if overlap and RANKS > 1 else 1)
            plain = cls(start, **arguments)
            for t, treatment in enumerate(TREATMENTS):
                own, total = gradients(t, dtype)
                result = opt.step(tree(own), **treatment)
                scale = treatment.get("grad_scale", 1.0) / RANKS
                assert result == plain.step(total, **{**treatment, "grad_scale": scale})
                assert_same_bits(flat(opt.params), start, cls.__name__)
            if hasattr(cls, "eval"):
                opt.eval()
                plain.eval()
                assert_same_bits(flat(opt.params), start, cls.__name__)


def in_place(path: str) -> None:
    """The arrays of the caller are updated, and what he writes there between steps counts."""
    sharded.BUCKET = 8192
    for size, overlap in ((SIZE, True), (SIZE, False), (3, False), (0, True)):
        start = numbers(size, np.float32, 99)
        one = np.where(RANK == 0, start, np.float32(7))  # all begin with the numbers of rank 0
        arena = gs.flatten({"a": start[:2], "b": start[2:]})
        several = [start[: size // 3].copy(), start[size // 3 :].copy()]
        for params in (one, arena.flat, several):
            expected = start.copy()
            plain = CLASS(expected, lr=0.01)
            opt = Sharded(CLASS, params, comm=COMM, overlap=overlap, lr=0.01)
            leaves, grads = (
                tree if isinstance(tree, list) else [tree] for tree in (params, opt.grads)
            )
            assert_same_bits(np.concatenate(leaves), expected)
            for t in range(4):
                own, total = gradients(t, np.float32, size)
                for view, g in zip(grads, np.split(own, [len(leaves[0])]), strict=False):
                    view[...] = g
                opt.step(opt.grads)
                plain.step(total, grad_scale=1 / RANKS)
                assert_same_bits(np.concatenate(leaves), expected)
                if t == 1:  # by hand
                    for array in (*leaves, expected):
                        array *= np.float32(0.5)
            for act in (opt.eval, opt.train):
                act()
                getattr(plain, act.__name__)()
                assert_same_bits(np.concatenate(leaves), expected)
            opt.save(path)
            for array in leaves:
                array.fill(9)
            opt.load(path)
            assert_same_bits(np.concatenate(leaves), expected)
            assert opt.params is params or all(map(operator.is_, opt.params, params))
    assert_same_bits(arena.views["b"], arena.flat[2:])


def rounded_by_chance(path: str) -> None:
    """Each element by the chance that it has in one process; and saved and loaded so."""
    sharded.BUCKET = 8192
    for overlap in (False, True):
        start = numbers(SIZE, np.float32, 3)
        arguments = {"lr": 0.01, "state_dtype": "bfloat16", "rounding_seed": 5}
        opt = Sharded(gs.Adam, start.copy(), comm=COMM, overlap=overlap, **arguments)
        plain = gs.Adam(start, **arguments)
        for t in range(3):
            own, total = gradients(t, np.float32)
            opt.step(own)
            plain.step(total, grad_scale=1 / RANKS)
            assert_same_bits(opt.params, start)
        opt.save(path)
        again = gs.Adam(np.zeros(SIZE, np.float32), **arguments)
        again.load(path)
        for name, array in plain.state.items():
            assert_same_bits(again.state[name], array)
        opt.load(path)
        assert opt.t == 3
    with pytest.raises(TypeError, match="params must have dtype float32 or float64, got float16"):
        Sharded(gs.Adam, np.zeros(9, np.float16), comm=COMM)


def schedules_and_own_memory() -> None:
    """A schedule, gradients written in place, weights, zero_grad: and what was given stays."""
    start = numbers(SIZE, np.float64, 5)
    schedule = gs.schedules.cosine(0.1, total_steps=5)
    opt = Sharded(gs.Adam, tree(start.copy()), comm=COMM, lr=schedule)
    plain = gs.Adam(start, lr=schedule)
    weight = [0, 3, 1, 4][RANK] if RANKS > 1 else 2
    weights = [0, 3, 1, 4][:RANKS] if RANKS > 1 else [2]
    for t in range(3):
        each = gradients_of_all(t, np.float64)
        if RANKS > 1:
            each[0][7] = np.nan  # which counts nothing
        for view, g in zip(opt.grads.values(), tree(each[RANK]).values(), strict=True):
            view[...] = g
        opt.step(opt.grads, weight=weight)
        np.testing.assert_array_equal(flat(opt.grads), each[RANK])
        factors = np.array(weights) * RANKS / sum(weights)
        total = sum(f * g for f, g in zip(factors, each, strict=True) if f)
        plain.step(total, grad_scale=1 / RANKS)
        assert_same_bits(flat(opt.params), start)
        assert opt.current_lr == plain.current_lr
    each = gradients_of_all(3, np.float64)
    opt.step(tree(each[RANK]), weight=0.1)
    plain.step(sum(each), grad_scale=1 / RANKS)
    assert_same_bits(flat(opt.params), start)
    mine = tree(np.ones(SIZE))
    opt.step(mine, zero_grad=True)
    assert not flat(mine).any()
    opt.grads["a"][...] = 1
    opt.step(opt.grads, zero_grad=True)
    assert not flat(opt.grads).any()
    opt.lr = 0.5
    assert opt.lr == opt.current_lr == 0.5


def ten_million() -> None:
    size = 10_000_000
    own, total = (np.resize(g, size) for g in gradients(0, np.float32, 1009))
    start = np.resize(numbers(1013, np.float32, 1), size)
    opt = Sharded(gs.Adam, start.copy(), comm=COMM, overlap=True, lr=0.1)
    held = sum(array.nbytes for arrays in opt.state.values() for array in arrays)
    assert held == pytest.approx(2 * start.nbytes / RANKS, rel=0.01)
    assert opt.step(own, clip_norm=1.0).clipped
    opt.step(own)
    if RANK == 0:
        plain = gs.Adam(start, lr=0.1)
        plain.step(total, grad_scale=1 / RANKS, clip_norm=1.0)
        plain.step(total, grad_scale=1 / RANKS)
        assert_same_bits(opt.params, start)
    assert len(set(COMM.allgather(zlib.crc32(opt.params)))) == 1


def refused(message: str, act, error=ValueError) -> None:
    """Rank 1 has the error, or all; the others are told."""
    with pytest.raises((error, RuntimeError), match=re.escape(message)) as caught:
        act()
    assert len(set(COMM.allgather(str(caught.value).removeprefix("rank 1: ").split(": ")[-1]))) == 1


def disagreements() -> None:
    """What differs on rank 1 is found when the optimizer is made, and named."""

    def make(cls=gs.Adam, shape=(3, 2), dtype=np.float32, key="w", **arguments):
        params = {key: np.zeros(shape, dtype), "b": np.zeros(4, dtype)}
        return lambda: Sharded(cls, params, comm=COMM, **arguments)

    second = RANK == 1
    odd = {
        "optimizer is AdamW on rank 1, Adam on rank 0": make(gs.AdamW if second else gs.Adam),
        "params['w'] is float32 of shape (2, 3) on rank 1, float32 of shape (3, 2) on rank 0": make(
            shape=(2, 3) if second else (3, 2)
        ),
        "params['w'] is float64 of shape (3, 2) on rank 1": make(
            dtype=np.float64 if second else np.float32
        ),
        "params['w'] is missing on rank 1": make(key="v" if second else "w"),
        "lr is 0.2 on rank 1, 0.1 on rank 0": make(lr=0.2 if second else 0.1),
        "betas": make(betas=(2.0, 0.9) if second else (0.9, 0.99)),
        "amsgrad": make(amsgrad="yes" if second else True),
        "skip_nonfinite is True on rank 1, False on rank 0": make(skip_nonfinite=second),
        "overlap is True on rank 1, False on rank 0": make(overlap=second),
        "lr is constant(lr=0.1) on rank 1, 0.1 on rank 0": make(
            lr=gs.schedules.constant(0.1) if second else 0.1
        ),
    }
    for message, act in odd.items():
        if message in ("betas", "amsgrad"):
            with pytest.raises((TypeError, ValueError) if second else RuntimeError) as caught:
                act()
            assert second or str(caught.value).startswith("rank 1: ")
            assert message.removesuffix("s") in str(caught.value)
        else:
            refused(message, act)
    # And at a step: nothing has changed then.
    opt = make(skip_nonfinite=True)()
    opt.step(tree_of_ones(opt))
    before, state = flat(opt.params).copy(), [a.copy() for v in opt.state.values() for a in v]
    good = tree_of_ones(opt)
    bad = {**good, "w": np.ones((3, 2))} if second else good
    for message, act in {
        "grads['w'] is float64 of shape (3, 2), not float32": lambda: opt.step(bad),
        "clip_norm is 2.0 on rank 1, 1.0 on rank 0": lambda: opt.step(good, clip_norm=1.0 + second),
        "clip_value is None on rank 1, 1.0 on rank 0": lambda: opt.step(
            good, clip_value=None if second else 1.0
        ),
        "zero_grad is 1.0 on rank 1, 0.0 on rank 0": lambda: opt.step(good, zero_grad=second),
        "grad_scale must be above 0 and finite, got -1.0": lambda: opt.step(good, grad_scale=-1.0),
        "weight must be at least 0 and finite, got -1.0": lambda: opt.step(
            good, weight=-1.0 if second else 1.0
        ),
        "weight must not be 0 on all ranks": lambda: opt.step(good, weight=0),
    }.items():
        refused(message, act)
        assert opt.t == 1
        assert_same_bits(flat(opt.params), before)
        for array, kept in zip([a for v in opt.state.values() for a in v], state, strict=True):
            assert_same_bits(array, kept)
    opt.lr = 0.5 if second else 0.25
    refused("lr is 0.5 on rank 1, 0.25 on rank 0", lambda: opt.step(good))


def tree_of_ones(opt: Sharded) -> dict[str, np.ndarray]:
    return {key: np.ones_like(array) for key, array in opt.params.items()}


def not_finite() -> None:
    """Decided by all alike, with the outcome that one process would have."""
    sharded.BUCKET = 4096
    for dtype in DTYPES:
        for skip in (False, True):
            start = numbers(SIZE, dtype, 3)
            opt = Sharded(
                gs.Adam, tree(start), comm=COMM, overlap=True, lr=0.1, skip_nonfinite=skip
            )
            own = tree(numbers(SIZE, dtype, RANK))
            if RANK == RANKS - 1:
                own["b"][-1] = np.nan
            for clip_norm in (None, 1.0):
                if not skip and clip_norm:
                    message = f"grads['b'] of rank {RANKS - 1} holds NaN or infinity, so clip_norm"
                    if RANKS == 1:  # where the plain optimizer says it
                        message = "holds NaN or infinity, so clip_norm cannot apply"
                    with pytest.raises(ValueError, match=re.escape(message)):
                        opt.step(own, clip_norm=clip_norm)
                elif skip:
                    result = opt.step(own, clip_norm=clip_norm, zero_grad=True)
                    assert np.isnan(result.grad_norm)
                    assert result[1:] == (False, True)
                    assert own["b"].any()
                else:
                    continue
                assert opt.t == 0
                assert_same_bits(flat(opt.params), start)
    # Squares that are beyond float64, or vanish in it.
    for scale in (1e200, 1e-200):
        start = numbers(SIZE, np.float64, 3)
        opt, plain = Sharded(gs.SGD, start, comm=COMM, lr=0.1), gs.SGD(start.copy(), lr=0.1)
        own, total = gradients(4, np.float64)
        power = 2.0 ** np.round(np.log2(scale))
        result = opt.step(own * power, clip_norm=scale)
        assert result == plain.step(total * power, grad_scale=1 / RANKS, clip_norm=scale)
        assert_same_bits(opt.params, plain.params)


def uncaught() -> None:
    """One rank raises while the others wait for it."""
    opt = Sharded(gs.SGD, np.zeros(9), comm=COMM, lr=0.1)
    if RANK == RANKS - 1:
        raise LookupError("the data of this rank are lost")
    opt.step(np.ones(9))


def save(path: str) -> None:
    """A state, and beside it that of the plain optimizer."""
    opt, plain, grads = saved_run(path)
    opt.save(path)
    if RANK == 0:
        plain.save(path + ".plain")
    opt.step(tree(grads[0]))
    plain.step(tree(grads[1]), grad_scale=1 / RANKS)
    if RANK == 0:
        np.save(path + ".next.npy", flat(plain.params))


CLASS = gs.ScheduleFreeAdamW


def saved_run(path: str):
    sharded.BUCKET = 8192
    start = numbers(SIZE, np.float32, 3)
    opt = Sharded(CLASS, tree(start.copy()), comm=COMM, overlap="bucket" in path, lr=0.1)
    plain = CLASS(tree(start.copy()), lr=0.1)
    own, total = gradients(1, np.float32)
    for _ in range(3):
        opt.step(tree(own))
        plain.step(tree(total), grad_scale=1 / RANKS)
    return opt, plain, (own, total)


def load(path: str, other: str) -> None:
    """What other ranks saved, or one that knows of no ranks, to the last bit."""
    for overlap in (False, True):
        for file in (path, path + ".plain"):
            opt = Sharded(
                CLASS, tree(np.zeros(SIZE, np.float32)), comm=COMM, overlap=overlap, lr=0.7
            )
            plain = CLASS(tree(np.zeros(SIZE, np.float32)), lr=0.6)
            opt.load(file)
            plain.load(file)
            assert opt.t == plain.t == 3
            assert opt.lr == plain.lr == 0.1
            assert_same_bits(flat(opt.params), flat(plain.params))
            opt.save(other)  # and what it holds is all of it
            plain.load(other)
            again = CLASS(tree(np.zeros(SIZE, np.float32)), lr=0.6)
            again.load(path + ".plain")
            for array, kept in zip(plain._arrays(), again._arrays(), strict=True):
                assert_same_bits(array, kept)
            COMM.Barrier()
    refused(
        "the state is of the rule 'schedule_free_adamw', this optimizer's is 'adam'",
        lambda: Sharded(gs.Adam, tree(np.zeros(SIZE, np.float32)), comm=COMM).load(path),
    )
    refused(
        "does not fit: its params have the shapes",
        lambda: Sharded(CLASS, {"a": np.zeros(9, np.float32)}, comm=COMM).load(path),
    )
    double = Sharded(CLASS, tree(np.ones(SIZE)), comm=COMM)
    refused(
        "does not fit: its params are float32, here they are float64", lambda: double.load(path)
    )
    assert (flat(double.params) == 1).all()


def killed(path: str, moment: str) -> None:
    """One rank is killed while all save: in the midst of its part, or of the header."""
    opt = saved_run(path)[0]
    opt.step(tree(np.ones(SIZE, np.float32)))
    savez, calls = np.savez, []

    def die(file, **arrays):
        calls.append(file)
        savez(file, **arrays)
        if (RANK, len(calls)) == {"part": (1, 1), "header": (0, 2)}[moment]:
            signal.raise_signal(signal.SIGKILL)

    np.savez = die
    opt.save(path)


def epoch(path: str, how: str) -> None:
    """Steps through rows dealt to the ranks, with a state saved in between; one rank may die.

    The rows are whole numbers and the means are over powers of two: sums are exact in any order.
    """
    rows = np.random.default_rng(0).integers(-8, 9, (10, 8, SIZE)).astype(np.float32)
    own = part_of(0, 8, RANK, RANKS)
    opt = Sharded(gs.Adam, np.zeros(SIZE, np.float32), comm=COMM, lr=0.1)
    if how == "resumes":
        opt.load(path)
        assert opt.t == 4
    for batch in rows[opt.t :]:
        if how == "dies" and RANK == 1 and opt.t == 6:
            signal.raise_signal(signal.SIGKILL)
        opt.step(batch[own].mean(axis=0), clip_norm=50.0)
        if opt.t == 4:
            opt.save(path)
    plain = gs.Adam(np.zeros(SIZE, np.float32), lr=0.1)
    for batch in rows:
        assert plain.step(batch.mean(axis=0), clip_norm=50.0).clipped
    assert_same_bits(opt.params, plain.params)


def problem(rows: int, dtype: type = np.float64):
    x = numbers(rows * 3, dtype, 1).reshape(rows, 3)
    return (x, (x @ [1.0, -2.0, 0.5]).astype(dtype)), gs.losses.linear(gs.losses.least_squares)


#: Of 103 rows, the last batch has 3: with four ranks, one of them reads none.
OPTIONS = {"batch_size": 10, "epochs": 3, "clip_norm": 0.7, "seed": 5}


def trained() -> None:
    """The run of one process that is given the parts of all ranks, weighted by their rows."""
    data, f = problem(103)
    held_out, _ = problem(7)
    opt = Sharded(gs.Adam, np.zeros(3), comm=COMM, lr=0.05)
    history = gs.train(opt, f, data, validation=held_out, **OPTIONS)

    def of_parts(w, *batch):
        """Added in the order of the ranks; the sum of two is the same in any order."""
        rows = len(batch[0])
        cuts = [rows * part // RANKS for part in range(RANKS + 1)]
        parts = [[a[i:j] for a in batch] for i, j in pairwise(cuts) if i < j]
        found = [(len(part[0]), *f(w, *part)) for part in parts]
        loss = sum(loss * (n / rows) for n, loss, _ in found)
        return loss, sum(g * (n * RANKS / rows) for n, _, g in found) * (1 / RANKS)

    plain = gs.Adam(np.zeros(3), lr=0.05)
    expected = gs.train(plain, of_parts, data, validation=held_out, **OPTIONS)
    assert history.reason == expected.reason == "epochs: 3 done"
    assert history.steps == expected.steps == 33
    for name in ("loss", "val_loss", "lr", "grad_norm"):
        if RANKS <= 2 and name != "grad_norm":  # which is summed in another order
            assert history[name] == expected[name]
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-9)
    if RANKS <= 2:
        assert_same_bits(opt.params, plain.params)
    np.testing.assert_allclose(opt.params, plain.params, rtol=1e-9)
    assert len(set(COMM.allgather(opt.params.tobytes()))) == 1
    whole = Sharded(gs.Adam, np.zeros(3), comm=COMM, lr=0.05)
    full = gs.train(whole, f, data, batch_size="full", epochs=2)
    assert full.steps == 2
    np.testing.assert_allclose(full["loss"][0], f(np.zeros(3), *data)[0], rtol=1e-12)
    # Seeds: one of rank 0, where none is given.
    seedless = Sharded(gs.SGD, np.zeros(3), comm=COMM, lr=0.05)
    gs.train(seedless, f, data, epochs=1)
    assert len(set(COMM.allgather(seedless.params.tobytes()))) == 1


def training_stops() -> None:
    """For one reason on all ranks, and with the last good parameters."""
    data, f = problem(40)
    make = lambda **more: Sharded(gs.NAdam, np.zeros(3), comm=COMM, lr=0.05, **more)  # noqa: E731
    calls = 0

    def spoilt(w, *batch):
        nonlocal calls
        calls += 1
        loss, grads = f(w, *batch)
        if calls == 6 and RANK == 1:
            return (np.nan, grads) if in_loss else (loss, grads * np.inf)
        return loss, grads

    for in_loss in (True, False):
        for skip in (False, True):
            calls, opt = 0, make(skip_nonfinite=skip)
            history = gs.train(opt, spoilt, data, batch_size=10, epochs=9, seed=0)
            assert history.stop == "non-finite"
            what = "loss nan" if in_loss else "gradient norm inf"
            assert history.reason.startswith(f"non-finite {what} in epoch 2, step 6: parameters")
            assert opt.t == history.steps == 4
            expected = make()
            gs.train(expected, f, data, batch_size=10, epochs=1, seed=0)
            assert_same_bits(opt.params, expected.params)
            opt.step(np.ones(3))
            expected.step(np.ones(3))
            assert_same_bits(opt.params, expected.params)

    def failing(w, *batch):
        if RANK == 1:
            raise LookupError("no such row")
        return f(w, *batch)

    with pytest.raises(LookupError if RANK == 1 else RuntimeError, match="no such row"):
        gs.train(make(), failing, data, epochs=1)
    asks = [lambda epoch: RANK == 1 and epoch.epoch == 2]
    assert gs.train(make(), f, data, epochs=9, callbacks=asks).stop == "callback"
    second = RANK == 1
    for message, options in {
        "batch_size is 8 on rank 1, 9 on rank 0": {"batch_size": 9 - second},
        "data is (float64 of shape (39, 3), float64 of shape (39,)) on rank 1": {
            "data": [array[second:] for array in data]
        },
        "seed is a generator at": {"seed": np.random.default_rng(RANK)},
        "epochs must be at least 0, got -1": {"epochs": -1},
    }.items():
        options = {"data": data, "epochs": 1, **options}
        refused(message, lambda options=options: gs.train(make(), f, **options))
    with pytest.raises(TypeError, match="unexpected keyword argument 'comm'"):
        gs.train(make(), f, data, epochs=1, comm=COMM)
    alone = gs.Adam(np.zeros(3))  # is trained by each rank for itself
    assert gs.train(alone, f, data, epochs=1 + RANK).epochs == 1 + RANK


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
