"""A call that cannot be right raises, names what is wrong, and has changed nothing."""

from __future__ import annotations

import array as python_array
import copy
import pickle
import re

import numpy as np
import pytest

import gradstep as gs
from gradstep import functional
from oracle import NO_ARRAY, python

NAN, INF = float("nan"), float("inf")


def ones(*shape, dtype=np.float64):
    return np.ones(shape or 3, dtype)


def readonly(array):
    array.setflags(write=False)
    return array


def misaligned(n=3):
    return np.zeros(8 * n + 1, np.uint8)[1:].view(np.float64)


class Same:
    """A key that looks like any other of its class."""

    def __repr__(self):
        return "same"


whole = np.ones(6)

BAD_PARAMS = [
    (np.ones(3, int), TypeError, "bfloat16 or float16, got int64"),
    (np.ones(3, np.longdouble), TypeError, "bfloat16 or float16, got"),
    (np.ones(3, complex), TypeError, "got complex128"),
    (np.ones(3, object), TypeError, "got object"),
    (
        np.ones(3, ">f8"),
        TypeError,
        "params must have the byte order of this machine, got dtype >f8",
    ),
    (np.ones((4, 4))[:, 1], ValueError, "params must be C-contiguous, got shape (4,)"),
    (np.ones((2, 3)).T, ValueError, "with strides (8, 24)"),
    (np.broadcast_to(np.ones(1), 3), ValueError, "params must be C-contiguous"),
    (readonly(np.ones(3)), ValueError, "params is read-only"),
    (misaligned(), ValueError, "params must be aligned to its 8-byte elements"),
    (np.ma.ones(3), TypeError, "masked array"),
    (
        [1.0, 2.0],
        TypeError,
        f"params[0] {NO_ARRAY}float",
    ),
    (
        [[np.ones(3)]],
        TypeError,
        f"params[0] {NO_ARRAY}list",
    ),
    (
        {"w": None},
        TypeError,
        f"params['w'] {NO_ARRAY}NoneType",
    ),
    ([], ValueError, "params is empty: []"),
    ({}, ValueError, "params is empty: {}"),
    ({Same(): np.ones(3), Same(): np.ones(3)}, ValueError, "must have keys that print differently"),
    ("abc", TypeError, "or be a list, tuple or dict of such arrays, got str"),
    ((g for g in [np.ones(3)]), TypeError, "got generator"),
    ([whole, whole], ValueError, "params[1] is the same array as params[0]"),
    ([whole[:4], whole[3:]], ValueError, "params[1] shares memory with params[0]"),
    ({"a": whole[3:], "b": whole}, ValueError, "params['a'] shares memory with params['b']"),
]


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS)
def test_params(params, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gs.Adam(params)


BAD_HYPER = [
    (gs.SGD, {"lr": -1}, ValueError, "lr must be at least 0 and finite, got -1.0"),
    (gs.SGD, {"lr": NAN}, ValueError, "lr must be at least 0 and finite, got nan"),
    (gs.SGD, {"lr": INF}, ValueError, "lr must be at least 0 and finite, got inf"),
    (gs.SGD, {"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
    (gs.SGD, {"lr": None}, TypeError, "lr must be a number, got None"),
    (gs.SGD, {"lr": 10**400}, ValueError, "lr must be finite"),
    (gs.SGD, {"lr": np.timedelta64(5)}, TypeError, "lr must be a number, got"),
    (gs.WindowSAG, {"lr": 1, "window": np.timedelta64(5)}, TypeError, "window must be a whole"),
    (gs.SGD, {"lr": True}, TypeError, "lr must be a number, got True"),
    (gs.SGD, {"lr": np.ones(3)}, TypeError, "lr must be a number"),
    (gs.SGD, {"momentum": -0.1}, ValueError, "momentum must be at least 0"),
    (gs.SGD, {"momentum": NAN}, ValueError, "momentum must be at least 0"),
    (gs.SGD, {"dampening": -0.1}, ValueError, "dampening must be in [0, 1], got -0.1"),
    (gs.SGD, {"weight_decay": -1}, ValueError, "weight_decay must be at least 0"),
    (gs.SGD, {"weight_decay": NAN}, ValueError, "weight_decay must be at least 0"),
    (gs.SGD, {"nesterov": True}, ValueError, "got momentum=0.0, dampening=0.0"),
    (
        gs.SGD,
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        ValueError,
        "nesterov needs momentum above 0 and dampening 0",
    ),
    (gs.SGD, {"nesterov": 1}, TypeError, "nesterov must be True or False, got 1"),
    (gs.SGD, {"maximize": "yes"}, TypeError, "maximize must be True or False, got 'yes'"),
    (gs.Momentum, {"lr": 0.1, "momentum": 1.0}, ValueError, "momentum must be in [0, 1), got 1.0"),
    (gs.Momentum, {"lr": 0.1, "average": 1}, TypeError, "average must be True or False"),
    (gs.Nesterov, {"lr": 0.1, "momentum": 1.0}, ValueError, "momentum must be in [0, 1)"),
    (gs.Adagrad, {"lr_decay": -1}, ValueError, "lr_decay must be at least 0"),
    (gs.Adagrad, {"initial_accumulator_value": -1}, ValueError, "initial_accumulator_value"),
    (gs.Adagrad, {"initial_accumulator_value": NAN}, ValueError, "got nan"),
    (gs.Adagrad, {"eps": 0}, ValueError, "eps must be above 0 and finite, got 0.0"),
    (gs.Adagrad, {"beta": 1.0}, ValueError, "beta must be in [0, 1), got 1.0"),
    (gs.RMSprop, {"alpha": 1.0}, ValueError, "alpha must be in [0, 1), got 1.0"),
    (gs.RMSprop, {"eps": -1e-8}, ValueError, "eps must be above 0"),
    (gs.RMSprop, {"momentum": -1}, ValueError, "momentum must be at least 0"),
    (gs.RMSprop, {"centered": None}, TypeError, "centered must be True or False"),
    (gs.Adam, {"betas": (0.9, 1.0)}, ValueError, "beta2 must be in [0, 1), got 1.0"),
    (gs.Adam, {"betas": (-0.1, 0.9)}, ValueError, "beta1 must be in [0, 1), got -0.1"),
    (gs.Adam, {"betas": (NAN, 0.9)}, ValueError, "beta1 must be in [0, 1), got nan"),
    (gs.Adam, {"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
    (gs.Adam, {"betas": (0.9,)}, TypeError, "betas must be a pair of numbers, got (0.9,)"),
    (gs.Adam, {"betas": "12"}, TypeError, "betas must be a pair of numbers, got '12'"),
    (gs.Adam, {"betas": {0.8, 0.9}}, TypeError, "betas must be a pair of numbers, got {0."),
    (gs.Adam, {"betas": np.zeros(3)}, TypeError, "betas must be a pair of numbers, got array("),
    (gs.Adam, {"betas": np.zeros((2, 1))}, TypeError, "betas[0] must be a number, got [0.0]"),
    (gs.Adam, {"betas": (0.9, "0.99")}, TypeError, "betas[1] must be a number, got '0.99'"),
    (gs.Adam, {"lr": "1e-5"}, TypeError, "lr must be a number, got '1e-5'"),
    (gs.Adam, {"betas": ("a", 0.9)}, TypeError, "betas[0] must be a number, got 'a'"),
    (gs.Adam, {"eps": NAN}, ValueError, "eps must be above 0"),
    (gs.Adam, {"amsgrad": 1}, TypeError, "amsgrad must be True or False"),
    (gs.Adam, {"bias_correction": 0}, TypeError, "bias_correction must be True or False"),
    (gs.WindowSAG, {"lr": 0.1, "window": 0}, ValueError, "window must be at least 1, got 0"),
    (gs.WindowSAG, {"lr": 0.1, "window": 2.5}, TypeError, "window must be a whole number"),
    (gs.SAG, {"lr": 0.1, "rows": 0}, ValueError, "rows must be at least 1, got 0"),
]


@pytest.mark.parametrize(("cls", "options", "error", "message"), BAD_HYPER)
def test_hyperparameters(cls, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cls(ones(), **options)


def test_hyperparameters_that_float32_cannot_hold():
    with pytest.raises(
        ValueError, match="eps must be above 0 and finite in float32 too, which rounds 1e-50"
    ):
        gs.Adam(ones(dtype=np.float32), eps=1e-50)
    with pytest.raises(ValueError, match=re.escape("in float32 too, which rounds 1e+39 to inf")):
        gs.Adam([ones(), ones(dtype=np.float32)], lr=1e39)
    with pytest.raises(ValueError, match=re.escape("in [0, 1) in float32 too, which rounds")):
        gs.Momentum(ones(dtype=np.float32), lr=0.1, momentum=1 - 1e-9)
    with pytest.raises(ValueError, match="initial_accumulator_value is 1e\\+39, which float32"):
        gs.Adagrad(ones(dtype=np.float32), initial_accumulator_value=1e39)
    gs.Adam(ones(), eps=1e-50)


w0, b0 = np.ones((2, 3)), np.ones(4)

BAD_GRADS = [
    ({"w": w0.astype(int), "b": b0}, TypeError, "grads['w'] must have dtype float32, float64"),
    ({"w": w0.astype("g"), "b": b0}, TypeError, "grads['w'] must have dtype float32, float64"),
    ({"w": w0.astype(">f8"), "b": b0}, TypeError, "grads['w'] must have the byte order"),
    ({"w": np.ones((3, 2)), "b": b0}, ValueError, "shape of params['w'], (2, 3), got (3, 2)"),
    ({"w": np.ones(6), "b": b0}, ValueError, "shape of params['w'], (2, 3), got (6,)"),
    ({"w": np.ones((3, 2)).T, "b": b0}, ValueError, "grads['w'] must be C-contiguous"),
    ({"w": w0, "b": np.broadcast_to(1.0, 4)}, ValueError, "grads['b'] must be C-contiguous"),
    ({"w": w0, "b": misaligned(4)}, ValueError, "grads['b'] must be aligned"),
    ({"w": w0, "b": np.ma.ones(4)}, TypeError, "grads['b'] must be a numpy.ndarray, got a masked"),
    (
        {"w": w0, "b": None},
        TypeError,
        f"grads['b'] {NO_ARRAY}NoneType",
    ),
    (
        {"w": w0, "b": [1.0] * 4},
        TypeError,
        f"grads['b'] {NO_ARRAY}list",
    ),
    (
        {"w": w0, "b": 1.0},
        TypeError,
        f"grads['b'] {NO_ARRAY}float",
    ),
    ({"w": w0, "b": np.float64(1)}, ValueError, "shape of params['b'], (4,), got ()"),
    ({"w": w0}, ValueError, "grads must have the keys of params: missing ['b'], unknown []"),
    ({"w": w0, "b": b0, "c": b0}, ValueError, "missing [], unknown ['c']"),
    ([w0, b0], TypeError, "grads must be a dict like params, got list"),
    (w0, TypeError, "grads must be a dict like params, got ndarray"),
]


@pytest.mark.parametrize(("grads", "error", "message"), BAD_GRADS)
def test_gradients(grads, error, message):
    opt = gs.AdamW({"w": np.zeros((2, 3)), "b": np.zeros(4)}, weight_decay=0.5)
    opt.step({"w": np.ones((2, 3)), "b": np.ones(4)})
    before = [array.copy() for array in opt._arrays()]
    with pytest.raises(error, match=re.escape(message)):
        opt.step(grads)
    assert opt.t == 1
    for array, kept in zip(opt._arrays(), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_gradients_of_other_structures():
    with pytest.raises(
        TypeError,
        match=f"grads {NO_ARRAY}list",
    ):
        gs.SGD(ones()).step([ones()])
    with pytest.raises(TypeError, match="grads must be a list or tuple like params, got dict"):
        gs.SGD([ones()]).step({0: ones()})
    with pytest.raises(ValueError, match="grads must hold 1 arrays like params, got 2"):
        gs.SGD([ones()]).step([ones(), ones()])


def test_gradients_that_share_memory_with_what_is_written():
    both = np.ones(6)
    params = [both[:3], np.ones(3)]
    opt = gs.Momentum(params, lr=0.1)
    for grad, name in [
        (both[:3], "params[0]"),
        (both[2:5], "params[0]"),
        (params[1], "params[1]"),
        (opt.state["v"][0], "state v[0]"),
    ]:
        message = f"grads[1] shares memory with {name}, which the step writes to"
        with pytest.raises(ValueError, match=re.escape(message)):
            opt.step([np.ones(3), grad])
    g = np.ones(3)
    opt.step([both[3:], g])
    opt.step([g, g])  # gradients are only read, so they may overlap
    assert opt.t == 2


def test_params_that_changed_behind_our_back():
    w = np.ones(8)
    opt = gs.SGD(w)
    w.setflags(write=False)
    with pytest.raises(ValueError, match="params is read-only"):
        opt.step(np.ones(8))
    w.setflags(write=True)
    w.resize(10000, refcheck=False)
    with pytest.raises(ValueError, match="params was resized, reshaped or retyped after"):
        opt.step(np.ones(8))


def resize(array):
    array.resize(10000, refcheck=False)


def reshape(array):
    array.shape = (2, 4)


def retype(array):
    array.dtype = np.float64


def freeze(array):
    array.setflags(write=False)


# A state does not own its memory, so that NumPy itself refuses to resize it.
@pytest.mark.parametrize(
    ("which", "change"),
    [("params", resize)]
    + [(which, c) for which in ("params", "state b") for c in (reshape, retype, freeze)],
)
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_arrays_that_change_after_construction(which, change):
    opt = gs.SGD(np.ones(8, np.float32), momentum=0.9)
    array = opt.params if which == "params" else opt.state["b"]
    other = opt.state["b"] if which == "params" else opt.params
    kept = other.copy()
    change(array)
    state = gs.SGD(np.ones(8, np.float32), momentum=0.9).state_dict()
    calls = [lambda: opt.step(np.ones(8, np.float32)), opt.state_dict]
    calls.append(lambda: opt.load_state_dict(state))
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=which):
            call()
    assert opt.t == 0
    np.testing.assert_array_equal(other, kept)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (NAN, ValueError, "lr must be at least 0 and finite, got nan"),
        (-1.0, ValueError, "lr must be at least 0 and finite, got -1.0"),
        ("fast", TypeError, "lr must be a number, got 'fast'"),
    ],
)
def test_schedules_that_give_no_learning_rate(value, error, message):
    w = np.ones(3)
    opt = gs.SGD(w, lr=lambda step: value)
    with pytest.raises(error, match=re.escape(message)):
        opt.step(np.ones(3))
    assert opt.t == 0
    np.testing.assert_array_equal(w, np.ones(3))
    fixed = gs.SGD(w, lr=0.5)
    with pytest.raises(error, match=re.escape(message)):
        fixed.lr = value
    assert fixed.lr == 0.5


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (4, IndexError, "row must be below rows=4, got 4"),
        (-1, ValueError, "row must be at least 0, got -1"),
        (1.0, TypeError, "row must be a whole number, got 1.0"),
    ],
)
def test_rows(row, error, message):
    opt = gs.SAG(ones(), lr=0.1, rows=4)
    with pytest.raises(error, match=re.escape(message)):
        opt.step(ones(), row=row)
    assert opt.t == 0


def test_sag_marks_no_row_when_the_gradient_is_bad():
    w = np.zeros(3)
    opt = gs.SAG(w, lr=1.0, rows=4)
    with pytest.raises(ValueError, match="grads must have the shape"):
        opt.step(np.ones(4), row=0)
    opt.step(np.ones(3), row=1)
    np.testing.assert_array_equal(w, -np.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: functional.adam(w, ones()), TypeError, "takes the states ('m', 'v'), got 0"),
        (lambda w: functional.sgd(w, ones(), beta=1), TypeError, "sgd() takes ('lr',), got 'beta'"),
        (lambda w: functional.momentum(w, ones(), ones()), TypeError, "momentum() needs 'lr'"),
        (lambda w: functional.sgd(w, ones(4)), ValueError, "grad must have the shape of param"),
        (lambda w: functional.sgd(w, w), ValueError, "grad shares memory with param"),
        (lambda w: functional.momentum(w, ones(), w, lr=1), ValueError, "v is the same array"),
        (lambda w: functional.momentum(w, ones(), ones(4), lr=1), ValueError, "v must have the sh"),
        (lambda w: functional.sgd(w, ones(), t=0), ValueError, "t must be at least 1, got 0"),
        (lambda w: functional.sgd(w, ones(), lr=-1), ValueError, "lr must be at least 0"),
        (lambda w: functional.sgd(w, ones(), lr="x"), TypeError, "lr must be a number, got 'x'"),
        (lambda w: functional.sgd(w, ones(), weight_decay=-1), ValueError, "weight_decay must be"),
        (lambda w: functional.sgd(w, ones(), t=2**53 + 1), ValueError, "t must be at most 2**53"),
        (lambda w: functional.momentum(w, ones(), ones(5, 3), lr=1), ValueError, "v must have the"),
        (
            lambda w: functional.window_sag(w, ones(), ones(), ones(0, 3), lr=1, seen=1),
            ValueError,
            "y must have the shape of param, (3,), got (0, 3)",
        ),
        (
            lambda w: functional.window_sag(w, ones(), ones(5, 3), ones(), lr=1, seen=1),
            ValueError,
            "d must have the shape of param, (3,), got (5, 3)",
        ),
        (lambda w: functional.nope(w), AttributeError, "has no rule 'nope'; it has ['sgd', "),
    ],
)
def test_functions(call, error, message):
    w = ones()
    with pytest.raises(error, match=re.escape(message)):
        call(w)
    np.testing.assert_array_equal(w, ones())


@pytest.mark.parametrize(
    ("threads", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError)]
)
def test_threads(threads, error):
    before = gs.get_num_threads()
    with pytest.raises(error, match="threads must be"):
        gs.set_num_threads(threads)
    assert gs.get_num_threads() == before


REPORT = """
import numpy as np, gradstep as gs
try:
    {call}
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("call", ["gs.info()", "gs.SGD(np.ones(3))"])
def test_environment_names_an_unknown_level(call):
    message = python(REPORT.format(call=call), GRADSTEP_ISA="mmx").strip()
    assert message.startswith("GRADSTEP_ISA is 'mmx'; the levels are baseline")


@pytest.mark.parametrize("threads", ["0", "-2", "two", "1.5", " 2", "+2", "2 ", "100000", "9" * 30])
def test_environment_names_no_number_of_threads(threads):
    message = python(REPORT.format(call="gs.info()"), GRADSTEP_NUM_THREADS=threads).strip()
    assert message.startswith("GRADSTEP_NUM_THREADS must be a whole number from 1 to 1024, got ")
    assert threads in message


def test_environment_chooses_threads():
    assert (
        python("import gradstep; print(gradstep.get_num_threads())", GRADSTEP_NUM_THREADS="5")
        == "5\n"
    )


def test_environment_that_is_not_text():
    message = python(REPORT.format(call="gs.info()"), GRADSTEP_ISA="\udcff\n").strip()
    assert message.startswith("GRADSTEP_ISA is '??'; the levels are baseline")


def test_the_base_class_is_no_rule():
    with pytest.raises(TypeError, match="Optimizer is the base class"):
        gs.Optimizer(ones(), "sgd", lr=0.1, weight_decay=0.0, maximize=False)


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_copies(copier):
    with pytest.raises(TypeError, match="Adam cannot be copied or pickled, because its parameters"):
        copier(gs.Adam(ones()))


def test_one_optimizer_in_two_threads():
    """A step, save or load while another is under way is refused, not mixed up."""
    opt = gs.SGD(np.ones(3))
    opt._plan.acquire()  # as another thread's step does
    for call in (lambda: opt.step(ones()), opt.state_dict, lambda: opt.save("nowhere.npz")):
        with pytest.raises(RuntimeError, match="another thread is stepping, saving or loading"):
            call()
    opt._plan.release()
    np.testing.assert_array_equal(opt.params, np.ones(3))
    opt.step(ones())
    assert opt.t == 1


def test_the_step_count_ends_at_what_float64_counts():
    opt = gs.SGD(np.ones(3))
    opt.load_state_dict({**opt.state_dict(), "t": 2**53})
    with pytest.raises(ValueError, match=re.escape("t must be at most 2**53, got")):
        opt.step(ones())
    assert opt.t == 2**53
    np.testing.assert_array_equal(opt.params, np.ones(3))


@pytest.mark.parametrize("kind", [list, tuple, np.array, np.float32, python_array.array])
def test_pairs_are_any_sequence_or_array(kind):
    betas = kind("d", (0.5, 0.75)) if kind is python_array.array else kind((0.5, 0.75))
    opt = gs.Adam(np.zeros(2), betas=betas)
    assert (opt.hyperparameters["beta1"], opt.hyperparameters["beta2"]) == (0.5, 0.75)
