"""The classes: each option against the oracle, and against the textbook where it says otherwise."""

from __future__ import annotations

import collections
import copy
import inspect
import itertools

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, functional, reference
from gradstep.optimizers.base import CLASSES
from oracle import (
    DTYPES,
    RULES,
    as_fits,
    as_taken,
    assert_same_bits,
    beside,
    full_gradient,
    mild,
    needed,
    with_decay,
)

#: Every class as it comes, and with the options that pick another rule or change its numbers.
VARIANTS = [(cls, needed(cls)) for cls in CLASSES] + [
    (gs.SGD, {"momentum": 0.9}),
    (gs.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (gs.SGD, {"momentum": 0.9, "nesterov": True}),
    (gs.Momentum, {"lr": 0.1, "momentum": 0.5, "average": True}),
    (gs.Nesterov, {"lr": 0.1, "momentum": 0.5}),
    (gs.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    (gs.Adagrad, {"beta": 0.9}),
    (gs.RMSprop, {"alpha": 0.5, "centered": True}),
    (gs.RMSprop, {"momentum": 0.9}),
    (gs.RMSprop, {"momentum": 0.9, "centered": True}),
    (gs.Adam, {"amsgrad": True, "betas": (0.5, 0.9), "eps": 1e-3}),
    (gs.Adam, {"bias_correction": False}),
    (gs.AdamW, {"amsgrad": True, "weight_decay": 0.3}),
    (gs.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.3}),
    (gs.RAdam, {"decoupled_weight_decay": True, "betas": (0.9, 0.99)}),
    (gs.Yogi, {"bias_correction": False, "initial_accumulator_value": 0.5}),
    (gs.AdEMAMix, {"alpha_warmup": 5, "beta3_warmup": 7}),
    (gs.ADOPT, {"decoupled_weight_decay": True, "weight_decay": 0.3}),
    (gs.ASGD, {"lambd": 0.1, "t0": 3}),
    (gs.FTRL, {"l1": 0.3, "l2": 0.1, "beta": 0.5}),
    (gs.ScheduleFreeSGD, {"lr": 0.1, "warmup_steps": 5, "r": 1.0, "weight_decay": 0.1}),
    (gs.ScheduleFreeAdamW, {"lr": 0.1, "warmup_steps": 5, "weight_decay": 0.1}),
    (gs.LARS, {"lr": 0.1, "momentum": 0.5, "trust_coefficient": 0.02}),
    (gs.LAMB, {"bias_correction": False, "betas": (0.5, 0.9), "eps": 1e-3}),
    (gs.Adafactor, {"eps": (1e-3, 0.1), "d": 0.3, "beta2_decay": -0.5}),
    (gs.Muon, {"lr": 0.1, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
    (gs.Muon, {"lr": 0.1, "momentum": 0.5, "ns_coefficients": (1.5, -0.5, 0), "ns_steps": 9}),
    (gs.Rprop, {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.02)}),
    (gs.SparseAdam, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}),
    (gs.SparseAdagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
    (gs.WindowSAG, {"lr": 0.1, "window": 1}),
    (gs.SAG, {"lr": 0.1, "rows": 4, "row_weights": [1.0, 0.3, 2.5, 1.0]}),
    (gs.SAGA, {"lr": 0.1, "rows": 4, "l1": 0.2}),
    (gs.SAGA, {"lr": 0.1, "rows": 4, "row_weights": [3, 1, 2, 7], "order": "permutation"}),
    (gs.SVRG, {"lr": 0.1, "full_gradient": full_gradient, "every": 1}),
]
every_variant = pytest.mark.parametrize(
    ("cls", "options"),
    VARIANTS,
    ids=[f"{cls.__name__}-{'-'.join(options)}" for cls, options in VARIANTS],
)


def train(opt, steps, start=0, dtype=np.float64):
    for t in range(start, start + steps):
        rng = np.random.default_rng(t)
        arrays = [mild(rng, 5, dtype), mild(rng, 6, dtype).reshape(2, 3), mild(rng, 1, dtype)]
        arrays = [as_fits(type(opt), array) for array in arrays]
        grads = arrays if isinstance(opt.params, list) else arrays[0]
        opt.step(as_taken(type(opt), grads), **beside(opt, grads, t))


def start_params(cls, dtype):
    arrays = [np.ones(5, dtype), np.ones((2, 3), dtype), np.ones(1, dtype)]
    return [as_fits(cls, array) for array in arrays]


def test_every_rule_has_a_class_an_oracle_and_a_variant():
    in_classes = list(itertools.chain.from_iterable(cls.rules for cls in CLASSES))
    assert sorted(in_classes) == sorted(RULES)
    assert sorted(reference.RULES) == sorted(RULES)
    assert {rule.name for rule in _core.rules() if rule.decoupled} == reference.DECOUPLED
    gradients = {rule.name: len(rule.gradients) for rule in _core.rules() if rule.gradients}
    assert gradients == reference.GRADIENTS
    made = {cls(as_fits(cls, np.ones(1)), **options).rule for cls, options in VARIANTS}
    assert made | {"muon_direction"} == set(RULES)  # which each step of Muon begins with


def test_every_rule_begins_with_lr():
    """Decoupled weight decay reads it there (cpp/src/folded.hpp)."""
    assert {rule.hyperparameters[0] for rule in RULES.values()} == {"lr"}


@pytest.mark.parametrize("cls", CLASSES)
def test_docstrings_are_complete(cls):
    doc = inspect.getdoc(cls)
    for part in ("```", "Args:", "Example:", "References:"):
        assert part in doc
    own = inspect.signature(cls).parameters.keys() - inspect.signature(gs.Optimizer).parameters
    assert all(name in doc for name in own)


@pytest.mark.covering
@every_variant
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decays", [False, True])
def test_equals_the_oracle(cls, options, dtype, decays):
    common = {"maximize": True, **with_decay(cls, 0.1)} if decays else {}
    native = cls(start_params(cls, dtype), **{**options, **common})
    oracle = reference.in_numpy(cls)(start_params(cls, dtype), **{**options, **common})
    train(native, 9, dtype=dtype)
    train(oracle, 9, dtype=dtype)
    assert native.t == oracle.t == 9
    for actual, expected in zip(native._arrays(), oracle._arrays(), strict=True):
        assert np.isfinite(actual).all()
        assert_same_bits(actual, expected)
    assert not np.array_equal(native.params[0], start_params(cls, dtype)[0])


@every_variant
def test_resumes_with_the_same_bits(cls, options, tmp_path):
    unbroken = cls(start_params(cls, np.float32), **options)
    train(unbroken, 9, dtype=np.float32)

    first = cls(start_params(cls, np.float32), **options)
    train(first, 4, dtype=np.float32)
    first.save(tmp_path / "state.npz")
    by_dict = cls(copy.deepcopy(first.params), **options)
    by_dict.load_state_dict(first.state_dict())
    by_file = cls(start_params(cls, np.float32), **options)
    by_file.load(tmp_path / "state.npz")
    for resumed in (by_dict, by_file):
        assert resumed.hyperparameters == first.hyperparameters
        train(resumed, 5, start=4, dtype=np.float32)
        assert resumed.t == 9
        for actual, expected in zip(resumed._arrays(), unbroken._arrays(), strict=True):
            assert_same_bits(actual, expected)


@every_variant
def test_the_oracle_resumes_too(cls, options, tmp_path):
    native, oracle = (
        c(as_fits(cls, np.ones(5)), **options) for c in (cls, reference.in_numpy(cls))
    )
    train(native, 4)
    native.save(tmp_path / "state.npz")
    oracle.load(tmp_path / "state.npz")
    oracle.load_state_dict(native.state_dict())
    for opt in (native, oracle):
        train(opt, 3, start=4)
    for actual, expected in zip(native._arrays(), oracle._arrays(), strict=True):
        assert_same_bits(actual, expected)


def test_loading_brings_the_hyperparameters(tmp_path):
    first = gs.Adam(np.ones(3), lr=0.1, betas=(0.5, 0.6), maximize=True)
    first.step(np.ones(3))
    first.save(tmp_path / "state.npz")
    second = gs.Adam(np.ones(3))
    second.load(tmp_path / "state.npz")
    assert second.hyperparameters == first.hyperparameters
    assert second.lr == 0.1


def test_state_dict_is_a_copy():
    opt = gs.Adam(np.ones(3))
    kept = opt.state_dict()
    opt.step(np.ones(3))
    assert not kept["state"]["m"].any()
    assert kept["t"] == 0
    again = gs.Adam(np.ones(3))
    again.load_state_dict(kept)
    again.step(np.ones(3))
    assert not kept["state"]["m"].any()


@pytest.mark.parametrize("params", [np.ones(3), [np.ones(3)], (np.ones(3),), {"w": np.ones(3)}])
def test_structures(params):
    opt = gs.SGD(params, lr=0.5, momentum=0.9)
    kind = type(params)
    assert type(opt.params) is kind
    assert type(opt.state["b"]) is kind
    grads = {
        np.ndarray: np.ones(3),
        list: [np.ones(3)],
        tuple: (np.ones(3),),
        dict: {"w": np.ones(3)},
    }[kind]
    opt.step(grads)
    array = params if kind is np.ndarray else params["w"] if kind is dict else params[0]
    np.testing.assert_array_equal(array, [0.5, 0.5, 0.5])


def test_a_named_tuple_stays_one():
    point = collections.namedtuple("Point", "w b")
    opt = gs.SGD(point(np.zeros(2), np.zeros(1)), lr=1.0, momentum=0.9)
    opt.step(point(np.ones(2), np.ones(1)))
    np.testing.assert_array_equal(opt.params.w, [-1, -1])
    np.testing.assert_array_equal(opt.state["b"].b, [1])


def test_the_order_of_a_dict_does_not_matter():
    params = {"w": np.zeros(2), "b": np.zeros(2)}
    gs.SGD(params, lr=1.0).step({"b": np.full(2, 5.0), "w": np.ones(2)})
    np.testing.assert_array_equal(params["w"], [-1, -1])
    np.testing.assert_array_equal(params["b"], [-5, -5])


def test_empty_and_zero_dimensional_arrays():
    params = [np.zeros(0), np.array(2.0), np.zeros((3, 0))]
    opt = gs.Adam(params, lr=0.5)
    opt.step([np.zeros(0), np.array(1.0), np.zeros((3, 0))])
    assert params[1] == pytest.approx(1.5)
    scalar = np.array(2.0)
    gs.SGD(scalar, lr=0.5).step(2 * scalar)  # NumPy makes a scalar of that, not an array
    assert scalar == 0.0


def test_gradients_are_only_read():
    for cls, options in VARIANTS:
        w, g = (as_fits(cls, array) for array in (np.ones(5), np.linspace(-1, 1, 5)))
        g.setflags(write=False)
        opt = cls(w, **{**options, **with_decay(cls, 0.1), "maximize": True})
        opt.step(as_taken(cls, g), **beside(opt, g))
        np.testing.assert_array_equal(g.ravel(), np.linspace(-1, 1, 5))


def test_subclasses_of_arrays_are_updated_in_place(tmp_path):
    disk = np.memmap(tmp_path / "w", np.float32, "w+", shape=(5,))
    gs.SGD(disk, lr=1.0).step(np.ones(5, np.float32))
    np.testing.assert_array_equal(disk, -np.ones(5))


def test_first_step_ignores_what_the_buffer_held():
    b = np.array([np.nan, 3.0])
    w = np.ones(2)
    functional.sgd_momentum(w, np.ones(2), b, t=1, lr=0.5, momentum=0.9, dampening=0.5)
    np.testing.assert_array_equal(b, [1, 1])
    np.testing.assert_array_equal(w, [0.5, 0.5])


def test_zero_weight_decay_keeps_nan_out_of_the_gradient():
    w, v = np.array([np.nan, np.inf]), np.zeros(2)
    functional.momentum(w, np.ones(2), v, lr=0.5, momentum=0.9, weight_decay=0.0)
    np.testing.assert_array_equal(v, [-0.5, -0.5])


def test_centered_clamps_what_rounding_made_negative():
    """A constant gradient has no variance; v - q*q can round below 0, where PyTorch gives NaN."""
    w = np.zeros(1000, np.float32)
    g = np.random.default_rng(0).uniform(0.1, 100, 1000).astype(np.float32)
    opt = gs.RMSprop(w, lr=1e-3, alpha=0.9, eps=1.0, centered=True)
    clamped = False
    for _ in range(200):
        opt.step(g)
        variance = opt.state["v"] - opt.state["q"] * opt.state["q"]
        clamped = clamped or bool((variance < 0).any())
        assert np.isfinite(w).all()
    assert clamped, "the case that this test is for did not occur"


# The textbook ------------------------------------------------------------------------------------


def quadratic(rng, n=4):
    a = rng.standard_normal((n, n))
    a = a @ a.T + np.eye(n)
    b = rng.standard_normal(n)
    return lambda x: a @ x - b


def test_nesterov_is_the_textbook_loop_of_two_points():
    """The textbook evaluates the gradient at x + momentum v; lr changes on the way."""
    gradient = quadratic(np.random.default_rng(0))
    start = np.arange(4.0)
    lrs = [0.01 + 0.001 * (t % 5) for t in range(50)]
    x, v = start.copy(), np.zeros(4)
    for lr in lrs:
        v = 0.9 * v - lr * gradient(x + 0.9 * v)
        x = x + v
    a = start.copy()
    opt = gs.Nesterov(a, lr=lambda step: lrs[step], momentum=0.9)
    for _ in lrs:
        opt.step(gradient(a))
    np.testing.assert_allclose(opt.position(), x, rtol=1e-12)
    np.testing.assert_allclose(a, x + 0.9 * v, rtol=1e-12)
    opt.settle()
    np.testing.assert_allclose(a, x, rtol=1e-12)
    np.testing.assert_array_equal(opt.position(), a)


def test_momentum_conventions_agree_at_constant_lr():
    """Velocity with lr before the buffer is SGD's with lr after it; averaging scales lr."""
    gradient = quadratic(np.random.default_rng(1))
    results = []
    for opt in (
        gs.Momentum(np.ones(4), lr=0.02, momentum=0.8),
        gs.SGD(np.ones(4), lr=0.02, momentum=0.8),
        gs.Momentum(np.ones(4), lr=0.1, momentum=0.8, average=True),
    ):
        for _ in range(30):
            opt.step(gradient(opt.params))
        results.append(opt.params)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-11)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-11)


def test_window_sag_is_the_mean_of_the_last_gradients():
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((20, 3))
    opt = gs.WindowSAG(np.zeros(3), lr=0.1, window=4)
    expected = np.zeros(3)
    for t, g in enumerate(grads):
        opt.step(g)
        expected -= 0.1 * grads[max(0, t - 3) : t + 1].mean(axis=0)
    np.testing.assert_allclose(opt.params, expected, rtol=1e-12)


def test_window_of_one_is_sgd_bit_for_bit():
    rng = np.random.default_rng(0)
    one = gs.WindowSAG(np.ones(100, np.float32), lr=0.1, window=1, weight_decay=0.1)
    sgd = gs.SGD(np.ones(100, np.float32), lr=0.1, weight_decay=0.1)
    for _ in range(10):
        g = rng.standard_normal(100).astype(np.float32)
        one.step(g)
        sgd.step(g)
    assert_same_bits(one.params, sgd.params)


@pytest.mark.parametrize("n", [1, 2, 10])
def test_window_sag_is_stable_just_below_the_bound_only(n):
    bound = 2.0 if n == 1 else n * (1 - np.cos(np.pi / n))
    for factor, stable in ((0.97, True), (1.03, False)):
        opt = gs.WindowSAG(np.ones(1), lr=factor * bound, window=n)
        for _ in range(3000):
            opt.step(opt.params.copy())
        assert (abs(opt.params[0]) < 1) == stable


def test_sag_reaches_the_optimum_of_a_regularised_sum():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal(20)
    alpha = 0.1
    optimum = np.linalg.solve(x.T @ x / 20 + alpha * np.eye(3), x.T @ y / 20)
    w = np.zeros(3)
    opt = gs.SAG(w, lr=0.05, rows=20, weight_decay=alpha)
    for t in range(20 * 400):
        i = t % 20 if t < 20 else int(rng.integers(20))
        opt.step(x[i] * (x[i] @ w - y[i]), row=i)
    np.testing.assert_allclose(w, optimum, rtol=1e-8)


def test_sag_divides_by_the_rows_seen():
    w = np.zeros(1)
    opt = gs.SAG(w, lr=1.0, rows=10)
    opt.step(np.ones(1), row=7)
    assert w[0] == -1.0
    opt.step(np.full(1, 3.0), row=7)
    assert w[0] == -4.0
    opt.step(np.ones(1), row=2)
    assert w[0] == -6.0


# Learning rates ----------------------------------------------------------------------------------


def test_schedules_are_asked_for_the_step_from_zero():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.1 / (1 + step)

    opt = gs.SGD(np.zeros(1), lr=schedule)
    for _ in range(3):
        opt.step(np.ones(1))
    assert asked == [0, 1, 2]
    assert opt.params[0] == -(0.1 + 0.1 / 2 + 0.1 / 3)
    assert opt.lr is schedule
    assert opt.hyperparameters["lr"] is None


def test_every_class_asks_a_schedule_once_per_step():
    for cls in CLASSES:
        asked = []
        w = np.ones((2, 2))
        opt = cls(w, **{**needed(cls), "lr": lambda t: asked.append(t) or 0.1})  # noqa: B023
        for t in range(3):
            opt.step(as_taken(cls, w * 0.5), **beside(opt, w * 0.5, t))
        assert asked == [0, 1, 2], cls.__name__


def test_nested_params_are_named():
    for params, name in (({"l1": {"w": np.ones(2)}}, r"\['l1'\]"), ([{"w": np.ones(2)}], r"\[0\]")):
        message = f"params{name} is a dict, and nested structures are not supported"
        with pytest.raises(TypeError, match=message):
            gs.Adam(params)


def test_lr_can_be_set_between_steps():
    opt = gs.SGD(np.zeros(1), lr=0.5)
    opt.step(np.ones(1))
    opt.lr = 0.25
    opt.step(np.ones(1))
    assert opt.params[0] == -0.75
    assert opt.current_lr == 0.25


def test_repr_tells_the_settings():
    assert "window=3" in repr(gs.WindowSAG(np.ones(2), lr=0.1, window=3))
    assert "rows=4" in repr(gs.SAG(np.ones(2), lr=0.1, rows=4))
    opt = gs.Adam([np.zeros(3), np.zeros((2, 2))], lr=gs.schedules.constant(0.1))
    text = repr(opt)
    for part in ("Adam", "7 elements", "t=0", "betas=(0.9, 0.999)", "constant(lr=0.1)"):
        assert part in text


# The functions -----------------------------------------------------------------------------------


def test_functional_has_every_rule_with_the_defaults_of_its_class():
    assert functional.__all__ == list(RULES)
    assert dir(functional) == sorted(RULES)
    assert str(inspect.signature(functional.adam)) == (
        "(param, grad, m, v, /, *, t=1, lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08, "
        "bias_correction=True, weight_decay=0.0, maximize=False, "
        "rounding='stochastic', rounding_seed=0)"
    )
    assert "gradstep.Adam" in functional.adam.__doc__
    w, v = np.ones(3), np.zeros(3)
    functional.rmsprop(w, np.ones(3), v)
    other = gs.RMSprop(np.ones(3))
    other.step(np.ones(3))
    assert_same_bits(w, other.params)
    w, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    functional.adamw(w, np.ones(3), m, v)
    decayed = gs.AdamW(np.ones(3))
    decayed.step(np.ones(3))
    assert_same_bits(w, decayed.params)
