"""The largest stable learning rates, against the optimizers themselves on quadratics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradstep as gs
from gradstep.stability import BOUNDS, find_class, max_stable_lr

BLOCK, BLOCKS = 500, 40
#: Of the curvature: just beyond the edge, just before it, and far from it.
FRACTIONS = np.array([1 / 0.999, 1 / 1.001, 0.5, 0.1])


def amplitudes(cls, curvature, weight_decay=0.0, **options):
    """Run at the bound on quadratics about as curved as it is meant for; the peaks of each block.

    Beyond the edge or before it by the curvature is the same as by the learning rate: only their
    product counts.
    """
    lr = max_stable_lr(cls, curvature, weight_decay=weight_decay, **options)
    w = np.ones(len(FRACTIONS))
    opt = cls(w, lr, weight_decay=weight_decay, **options)
    gradient = (curvature + weight_decay) * FRACTIONS - weight_decay
    peaks = []
    for _ in range(BLOCKS):
        peak = np.zeros_like(w)
        for _ in range(BLOCK):
            opt.step(gradient * w)
            np.maximum(peak, np.abs(w), out=peak)
        peaks.append(peak)
        if peak[0] > 1e100:
            break
    return np.array(peaks)


def assert_edge(cls, curvature, **options):
    peaks = amplitudes(cls, curvature, **options)
    middle, last = peaks[len(peaks) // 2], peaks[-1]
    assert last[0] > middle[0], "beyond the edge it must grow"
    # WindowSAG keeps the rounding errors of its sum, so it stays around 0 at their size.
    assert (last[1:] < np.maximum(middle[1:], 1e-12)).all(), "before the edge it must shrink"


curvatures = st.floats(0.01, 100.0)
decays = st.sampled_from([0.0, 0.3])
momenta = st.floats(0.0, 0.97)
few = settings(max_examples=12, deadline=None, derandomize=True)


@few
@given(curvature=curvatures, weight_decay=decays)
def test_gradient_descent(curvature, weight_decay):
    assert max_stable_lr("sgd", curvature) == 2 / curvature
    assert_edge(gs.SGD, curvature, weight_decay=weight_decay)


@few
@given(
    curvature=curvatures,
    weight_decay=decays,
    momentum=momenta,
    dampening=st.one_of(st.just(0.0), st.floats(0.0, 0.95)),
)
def test_momentum_and_dampening(curvature, weight_decay, momentum, dampening):
    options = {"momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    assert_edge(gs.SGD, curvature, **options)


@few
@given(curvature=curvatures, weight_decay=decays, momentum=momenta, average=st.booleans())
def test_both_conventions_of_momentum(curvature, weight_decay, momentum, average):
    options = {"momentum": momentum, "average": average, "weight_decay": weight_decay}
    assert_edge(gs.Momentum, curvature, **options)


@few
@given(curvature=curvatures, weight_decay=decays, momentum=st.floats(0.01, 0.97))
def test_nesterov_in_either_form(curvature, weight_decay, momentum):
    options = {"momentum": momentum, "weight_decay": weight_decay}
    assert_edge(gs.SGD, curvature, nesterov=True, **options)
    assert_edge(gs.Nesterov, curvature, **options)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 10, 20])
def test_the_mean_of_a_window(window, weight_decay):
    assert_edge(gs.WindowSAG, 2.5, window=window, weight_decay=weight_decay)
    expected = window * (1 - math.cos(math.pi / window)) / (2.5 + weight_decay)
    found = max_stable_lr("WindowSAG", 2.5, window=window, weight_decay=weight_decay)
    assert found == pytest.approx(expected, rel=1e-13)


def test_a_large_window_keeps_its_digits_and_takes_no_memory():
    n = 10**9
    assert max_stable_lr("windowsag", 1.0, window=n) == pytest.approx(
        math.pi**2 / (2 * n), rel=1e-15
    )


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.nightly) for s in (1, 2))])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_sag_converges_at_its_bound(seed, weight_decay):
    rng = np.random.default_rng(seed)
    rows, features = 40, 4
    x = rng.normal(size=(rows, features))
    y = rng.normal(size=rows)
    curvature = np.square(x).sum(axis=1).max()
    expected = np.linalg.solve(x.T @ x / rows + weight_decay * np.eye(features), x.T @ y / rows)
    for proven in (False, True):
        w = np.zeros(features)
        lr = max_stable_lr("sag", curvature, proven=proven, weight_decay=weight_decay)
        opt = gs.SAG(w, lr, rows, weight_decay=weight_decay)
        for i in rng.integers(rows, size=100_000):
            opt.step(x[i] * (x[i] @ w - y[i]), row=int(i))
        np.testing.assert_allclose(w, expected, rtol=1e-9, atol=1e-12)


def test_what_is_proven():
    assert max_stable_lr("SAG", 2.0) == 1 / 2
    assert max_stable_lr("SAG", 2.0, proven=True) == 1 / 32
    assert max_stable_lr("SAG", 1.0, weight_decay=1.0) == 1 / 2
    assert max_stable_lr("SGD", 2.0, proven=True) == max_stable_lr("SGD", 2.0)


def test_the_other_finite_sums():
    assert max_stable_lr("saga", 2.0) == pytest.approx(1 / 6)
    assert max_stable_lr("svrg", 2.0) == pytest.approx(1 / 8)


def test_classes_and_names_in_any_case():
    for cls in (gs.SGD, gs.Momentum, gs.Nesterov, gs.SAG):
        for name in (cls.__name__, cls.__name__.lower(), cls.__name__.upper()):
            assert find_class(name) is cls
            assert max_stable_lr(name, 3.0) == max_stable_lr(cls, 3.0)
    in_numpy = gs.reference.in_numpy(gs.SGD)
    assert max_stable_lr(in_numpy, 3.0, momentum=0.5) == 1.0


def test_rules_without_a_bound():
    with_bound = {cls for cls in gs.optimizers.CLASSES if {*cls.rules} & BOUNDS.keys()}
    adaptive = {gs.Adagrad, gs.RMSprop, gs.Adam, gs.AdamW, gs.Muon, gs.SparseAdam, gs.SparseAdagrad}
    assert not with_bound & adaptive
    for cls in adaptive:
        with pytest.raises(ValueError, match=f"is known for {cls.__name__}: rules that divide"):
            max_stable_lr(cls, 1.0)


@pytest.mark.parametrize(
    ("rule", "arguments", "error", "message"),
    [
        ("sgdd", {}, ValueError, "rule must be one of sgd, momentum, .*, got 'sgdd'"),
        (3, {}, TypeError, "rule must be an optimizer class or its name, got 3"),
        ("sgd", {"curvature": 0.0}, ValueError, r"curvature must be above 0, got 0\.0"),
        ("sgd", {"curvature": -1.0}, ValueError, r"curvature must be at least 0 .*, got -1\.0"),
        ("sgd", {"curvature": math.nan}, ValueError, "curvature must be .* finite, got nan"),
        ("sgd", {"curvature": "1"}, TypeError, "curvature must be a number, got '1'"),
        ("sgd", {"proven": 1}, TypeError, "proven must be True or False, got 1"),
        ("sgd", {"momentum": 1.0}, ValueError, r"momentum must be below 1 .*, got 1\.0"),
        (
            "sgd",
            {"momentum": 1.5, "nesterov": True},
            ValueError,
            r"momentum must be below 1 .*, got 1\.5",
        ),
        (
            "sgd",
            {"momentum": 0.5, "dampening": 1.0},
            ValueError,
            r"dampening must be below 1 .*, got 1\.0",
        ),
        ("sgd", {"momentum": -0.5}, ValueError, "momentum must be .*, got -0.5"),
        ("sgd", {"nesterov": True}, ValueError, "nesterov needs momentum above 0"),
        ("momentum", {"momentum": 1.0}, ValueError, "momentum must be"),
        ("sgd", {"window": 3}, TypeError, "has no argument 'window'"),
        ("windowsag", {}, TypeError, "window"),
        ("windowsag", {"window": 0}, ValueError, "window must be at least 1, got 0"),
        ("sgd", {"weight_decay": -1.0}, ValueError, "weight_decay must be .*, got -1"),
    ],
)
def test_bad_arguments(rule, arguments, error, message):
    with pytest.raises(error, match=message):
        max_stable_lr(rule, **{"curvature": 1.0, **arguments})
