"""Copies of parameters in 16 bits, and parameters of 16 bits with masters in float32."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from gradstep import reference
from oracle import assert_same_bits

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16, FLOAT32 = map(np.dtype, (np.float16, np.float32))
SHAPES = {"large": (4500,), "matrix": (3, 7), "scalar": (), "none": (0,)}
CLASSES = [
    (gs.SGD, {}),
    (gs.Adam, {}),
    (gs.AdamW, {"state_dtype": "bfloat16"}),
    (gs.Adam, {"state_dtype": "int8"}),
    (gs.Lion, {}),
    (gs.Nesterov, {"lr": 0.1}),
    (gs.ASGD, {"t0": 1}),
    (gs.ScheduleFreeAdamW, {}),
]
every_class = pytest.mark.parametrize(("cls", "options"), CLASSES)


def numbers(seed, dtype=FLOAT32):
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(s)).astype(dtype) for k, s in SHAPES.items()}


def gradients(t):
    """With what is not finite in the last ones."""
    grads = numbers(100 + t)
    if t == 2:
        grads["large"][[3, 4]] = np.nan, np.inf
    return grads


def whole(opt, params):
    """The parameters as they are in float32."""
    if "low_bits" in opt.state:
        return {k: reference.joined(params[k], low) for k, low in opt.state["low_bits"].items()}
    return opt.state["master"]


def train(opt, steps=range(3)):
    for t in steps:
        opt.step(gradients(t), zero_grad=t == 1)


def leave(opt):
    """What classes do to parameters outside of steps."""
    with np.errstate(invalid="ignore"):
        if isinstance(opt, gs.ScheduleFreeAdamW):
            opt.eval()
        if isinstance(opt, gs.Nesterov):
            opt.settle()


@pytest.mark.covering
@every_class
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("way", ["native", "numpy", "disk"])
def test_a_copy_is_the_nearest(cls, options, dtype, way, tmp_path, level):
    """And all else is as without it."""
    params, alone = numbers(0), numbers(0)
    copy = {k: np.ones(w.shape, dtype) for k, w in params.items()}
    beside = {"state_dir": tmp_path} if way == "disk" else {}
    make = reference.in_numpy(cls) if way == "numpy" else cls
    opt, plain = make(params, copy_to=copy, **options, **beside), cls(alone, **options)
    for act in (None, train, leave):
        for one in (opt, plain):
            if act is not None:
                act(one)
        for name, w in params.items():
            assert_same_bits(w, alone[name])
            with np.errstate(all="ignore"):
                assert_same_bits(copy[name].astype("f4"), w.astype(dtype).astype("f4"))
    assert opt.state.keys() == plain.state.keys()


@pytest.mark.covering
@every_class
@pytest.mark.parametrize("master", [True, "split"])
@pytest.mark.parametrize("way", ["native", "numpy", "disk", "file"])
def test_steps_are_those_of_the_masters(cls, options, master, way, tmp_path, level):
    start = numbers(0, BFLOAT16)
    alone = {k: w.astype(np.float32) for k, w in start.items()}
    plain = cls(alone, **options)
    beside = {"state_dir": tmp_path} if way == "disk" else {}
    make = reference.in_numpy(cls) if way == "numpy" else cls
    opt = make(start, master=master, **options, **beside)
    if way == "file":
        train(opt, range(1))
        opt.save(tmp_path / "file")
        start = numbers(5, BFLOAT16)
        opt = cls(start, master=master, **options)
        opt.load(tmp_path / "file")
        train(opt, range(1, 3))
    else:
        train(opt)
    train(plain)
    for _ in range(2):
        for name, w in alone.items():
            assert_same_bits(np.asarray(whole(opt, start)[name]), w)
            nearest, here = w.astype(BFLOAT16).astype("f4"), start[name].astype("f4")
            if master is True:
                assert_same_bits(here, nearest)
            else:  # which rounds away from 0 half-way
                finite = np.isfinite(w)
                exact = w.astype(float)[finite]
                assert (np.abs(here[finite] - exact) <= np.abs(nearest[finite] - exact)).all()
                assert_same_bits(here[~finite], w[~finite])
        for state, arrays in plain.state.items():
            for name, array in arrays.items():
                assert_same_bits(np.asarray(opt.state[state][name]), array)
        leave(opt)
        leave(plain)


def test_float16_has_masters_too(level):
    params = numbers(0, FLOAT16)
    alone = {k: w.astype(np.float32) for k, w in params.items()}
    opt, plain = gs.Adam(params, master=True), gs.Adam(alone)
    train(opt)
    train(plain)
    for name, w in alone.items():
        assert_same_bits(params[name].astype("f4"), w.astype(FLOAT16).astype("f4"))


@hypothesis.given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=99))
def test_halves_are_exact(bits):
    x = np.array(bits, np.uint32).view(np.float32)
    high, low = reference.split(x)
    assert_same_bits(reference.joined(high, low), x)
    w = high.view(BFLOAT16)
    opt = gs.SGD(w, lr=0.0, master="split")
    opt.state["low_bits"][...] = low
    opt.step(np.zeros(x.size, np.float32))
    assert_same_bits(reference.joined(w, opt.state["low_bits"]), x)


def test_small_steps_add_up():
    """The reason for masters: a bfloat16 near 1 has no neighbour within 0.003."""
    reached = []
    for options in ({"rounding": "nearest"}, {"master": True}, {"master": "split"}):
        w = np.ones(9, BFLOAT16)
        opt = gs.SGD(w, lr=1e-4, **options)
        for _ in range(1000):
            opt.step(np.ones(9, np.float32))
        reached.append(w[0])
    assert reached == [1.0, BFLOAT16.type(0.9), BFLOAT16.type(0.9)]


@pytest.mark.parametrize("kind", [False, True, "split"])
@pytest.mark.parametrize("other", [False, True, "split"])
def test_files_are_converted_when_asked(kind, other, tmp_path):
    """Between parameters with masters, with halves, and in float32."""

    def make(master, seed):
        params = numbers(seed, BFLOAT16 if master else FLOAT32)
        return params, gs.Adam(params, master=master)

    params, opt = make(kind, 0)
    train(opt, range(2))
    opt.save(tmp_path / "file")
    there, loaded = make(other, 1)
    if kind != other:
        with pytest.raises(ValueError, match="does not fit"):
            loaded.load(tmp_path / "file")
        assert loaded.t == 0
    loaded.load(tmp_path / "file", convert=True)
    exact = whole(opt, params) if kind else params
    for name, w in (whole(loaded, there) if other else there).items():
        assert_same_bits(w, exact[name])
    _, resumed = make(other, 1)
    resumed.load_state_dict(loaded.state_dict())
    if kind != other:
        with pytest.raises(ValueError, match="does not fit"):
            resumed.load_state_dict(opt.state_dict())
    resumed.load_state_dict(opt.state_dict(), convert=True)
    assert resumed.t == 2
    for name, m in opt.state["m"].items():
        assert_same_bits(resumed.state["m"][name], m)


def test_copies_follow_parameters_that_are_loaded(tmp_path):
    opt = gs.SGD(numbers(0), lr=0.1)
    opt.save(tmp_path / "file")
    params, copies = numbers(1), numbers(2, BFLOAT16)
    gs.SGD(params, lr=0.1, copy_to=copies).load(tmp_path / "file")
    for name, w in numbers(0).items():
        assert_same_bits(params[name], w)
        assert_same_bits(copies[name].astype("f4"), w.astype(BFLOAT16).astype("f4"))


def test_parameters_follow_masters_that_are_loaded():
    opt = gs.Adam(numbers(0, BFLOAT16), master=True)
    train(opt)
    params = numbers(1, BFLOAT16)
    gs.Adam(params, master=True).load_state_dict(opt.state_dict())
    for name, w in opt.params.items():
        assert_same_bits(params[name].astype("f4"), w.astype("f4"))


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        (FLOAT32, {"master": True}, TypeError, "params must have dtype bfloat16 or float16 with"),
        (
            FLOAT16,
            {"master": "split"},
            TypeError,
            "params must have dtype bfloat16 with master",
        ),
        (BFLOAT16, {"master": "whole"}, ValueError, "master must be True, False or 'split', got"),
        (BFLOAT16, {"master": 1}, ValueError, "master must be True, False or 'split', got 1"),
        (BFLOAT16, {"copy_to": np.ones(9, "f2")}, TypeError, "params, which must be float32, got"),
        (FLOAT32, {"copy_to": np.ones(9, "f4")}, TypeError, "copy_to must have dtype bfloat16 or"),
        (FLOAT32, {"copy_to": np.ones(8, "f2")}, ValueError, "copy_to must have the shape of par"),
        (FLOAT32, {"copy_to": [np.ones(9, "f2")]}, TypeError, "copy_to must be a numpy.ndarray,"),
        (FLOAT32, {"copy_to": np.ones(18, "f2")[::2]}, ValueError, "copy_to must be C-contiguous"),
        (FLOAT32, {"copy_to": 3}, TypeError, "copy_to must be a numpy.ndarray, or expose"),
        (
            BFLOAT16,
            {"master": True, "copy_to": np.ones(9, "f2")},
            ValueError,
            "copy_to must be None with master=True: params are the copy",
        ),
    ],
)
def test_bad_arguments(params, options, error, message):
    with pytest.raises(error, match=message):
        gs.Adam(np.ones(9, params), **options)


def test_what_does_not_go():
    w = np.ones(9, np.float32)
    with pytest.raises(ValueError, match="copy_to shares memory with params"):
        gs.Adam(w, copy_to=w.view(np.float16)[:9])
    frozen = np.ones(9, np.float16)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="copy_to is read-only"):
        gs.Adam(w, copy_to=frozen)
    with pytest.raises(TypeError, match="LAMB cannot have a copy_to, because its steps depend"):
        gs.LAMB(w, copy_to=np.ones(9, np.float16))
    with pytest.raises(TypeError, match="LAMB cannot have masters, because its steps depend"):
        gs.LAMB(np.ones(9, BFLOAT16), master=True)
    copy = np.zeros(9, np.float16)
    opt = gs.Adam(w, copy_to=copy)
    copy.flags.writeable = False
    with pytest.raises(ValueError, match="copy_to is read-only"):
        opt.step(np.ones(9, np.float32))
    assert (w == 1).all()
    assert opt.t == 0


def test_training_goes_back_with_its_copies():
    """To the last good point, where a loss is no number any more."""
    w, copy = np.ones(9, np.float32), np.zeros(9, BFLOAT16)
    losses = iter([1.0, 0.5, np.nan])

    def loss_and_grad(w, x):
        return next(losses), np.ones(9, np.float32)

    opt = gs.SGD(w, lr=0.25, copy_to=copy)
    history = gs.train(opt, loss_and_grad, (np.ones(1),), epochs=9, progress=False)
    assert "restored to those after step" in history.reason
    assert_same_bits(copy.astype(np.float32), w)


def test_the_settings_show():
    opt = gs.Adam(np.ones(9, BFLOAT16), master="split")
    assert "master='split'" in repr(opt)
    assert "rounding" not in opt.hyperparameters
    assert opt.state["m"].dtype == FLOAT32
