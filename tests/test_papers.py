"""Rules that PyTorch does not have, against the algorithms of their papers, line by line."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gradstep as gs
from oracle import gradient


def lion(w, g, s, t, lr=1e-4, b1=0.9, b2=0.99, wd=0.0):
    """Chen et al. 2023, algorithm 2."""
    m = s.get("m", 0 * w)
    update = np.sign(b1 * m + (1 - b1) * g)
    s["m"] = b2 * m + (1 - b2) * g
    return w - lr * (update + wd * w)


def adabelief(w, g, s, t, lr=1e-3, b1=0.9, b2=0.999, eps=1e-16, wd=0.0):
    """Zhuang et al. 2020, algorithm 2."""
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["s"] = b2 * s.get("s", 0) + (1 - b2) * (g - s["m"]) ** 2 + eps
    m_hat, s_hat = s["m"] / (1 - b1**t), s["s"] / (1 - b2**t)
    return (1 - lr * wd) * w - lr * m_hat / (np.sqrt(s_hat) + eps)


def yogi(w, g, s, t, lr=1e-2, b1=0.9, b2=0.999, eps=1e-3, start=1e-6, corrected=True):
    """Zaheer et al. 2018, algorithm 2."""
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    v = s.get("v", start)
    s["v"] = v - (1 - b2) * np.sign(v - g**2) * g**2
    m_hat, v_hat = s["m"], s["v"]
    if corrected:
        m_hat, v_hat = m_hat / (1 - b1**t), v_hat / (1 - b2**t)
    return w - lr * m_hat / (np.sqrt(v_hat) + eps)


def ademamix(
    w, g, s, t, lr=1e-3, b1=0.9, b2=0.999, b3=0.9999, eps=1e-8, alpha=5.0, warm_up=0, wd=0.0
):
    """Pagliardini et al. 2024, algorithm 1, with the schedulers of its section 3."""
    if t < warm_up:
        alpha *= t / warm_up
        half_life = [math.log(0.5) / math.log(b) for b in (b1, b3)]
        share = t / warm_up
        b3 = 0.5 ** (1 / ((1 - share) * half_life[0] + share * half_life[1]))
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["n"] = b3 * s.get("n", 0) + (1 - b3) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    m_hat, v_hat = s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)
    return w - lr * ((m_hat + alpha * s["n"]) / (np.sqrt(v_hat) + eps) + wd * w)


def adopt(w, g, s, t, lr=1e-3, b1=0.9, b2=0.9999, eps=1e-6, wd=0.0):
    """Taniguchi et al. 2024, algorithm 2; its v_0 is the square of the first gradient."""
    w = (1 - lr * wd) * w
    if t == 1:
        s["m"], s["v"] = 0 * w, g**2
        return w
    limit = (t - 1) ** 0.25
    normed = np.clip(g / np.maximum(np.sqrt(s["v"]), eps), -limit, limit)
    s["m"] = b1 * s["m"] + (1 - b1) * normed
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    return w - lr * s["m"]


def lars(w, g, s, t, lr=0.01, mu=0.9, trust=1e-3, wd=0.0):
    """You, Gitman and Ginsburg 2017, algorithm 1, with the coefficient of equation 6."""
    local = trust * np.linalg.norm(w) / (np.linalg.norm(g) + wd * np.linalg.norm(w))
    s["v"] = mu * s.get("v", 0) + lr * local * (g + wd * w)
    return w - s["v"]


def lamb(w, g, s, t, lr=1e-3, b1=0.9, b2=0.999, eps=1e-6, wd=0.0):
    """You et al. 2020, algorithm 2."""
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    r = s["m"] / (1 - b1**t) / (np.sqrt(s["v"] / (1 - b2**t)) + eps)
    return w - lr * np.linalg.norm(w) / np.linalg.norm(r + wd * w) * (r + wd * w)


def ftrl(w, g, s, t, lr=0.1, beta=1.0, l1=0.0, l2=0.0):
    """McMahan et al. 2013, algorithm 1."""
    z, n = s.get("z", 0 * w), s.get("n", 0 * w)
    sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / lr
    s["z"], s["n"] = z + g - sigma * w, n + g**2
    solution = -(s["z"] - np.sign(s["z"]) * l1) / ((beta + np.sqrt(s["n"])) / lr + l2)
    return np.where(np.abs(s["z"]) <= l1, 0.0, solution)


def schedule_free(y, g, s, t, direction, lr, momentum, warm_up, r, power):
    """Defazio et al. 2024: x and z are both kept, and the weights are those of their code."""
    lr *= min(1, t / max(1, warm_up))
    s["largest"] = max(s.get("largest", 0), lr)
    weight = t**r * s["largest"] ** power
    s["total"] = s.get("total", 0) + weight
    c = weight / s["total"]
    z, x = s.get("z", y), s.get("x", y)
    s["z"] = z - lr * direction
    s["x"] = (1 - c) * x + c * s["z"]
    return (1 - momentum) * s["z"] + momentum * s["x"]


def schedule_free_sgd(y, g, s, t, lr=1.0, momentum=0.9, wd=0.0, warm_up=0, r=0.0, power=2.0):
    return schedule_free(y, g, s, t, g + wd * y, lr, momentum, warm_up, r, power)


def schedule_free_adamw(
    y, g, s, t, lr=0.0025, b1=0.9, b2=0.999, eps=1e-8, wd=0.0, warm_up=0, r=0.0, power=2.0
):
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    direction = g / (np.sqrt(s["v"] / (1 - b2**t)) + eps) + wd * y
    return schedule_free(y, g, s, t, direction, lr, b1, warm_up, r, power)


CASES = [
    (gs.LARS, {"lr": 0.01}, lars, {}),
    (gs.LARS,
     {"lr": 0.01, "momentum": 0.5, "trust_coefficient": 0.3, "weight_decay": 0.1}, lars,
     {"mu": 0.5, "trust": 0.3, "wd": 0.1}),
    (gs.LAMB, {"lr": 0.01}, lamb, {}),
    (gs.LAMB, {"lr": 0.01, "betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1}, lamb,
     {"b1": 0.7, "b2": 0.9, "eps": 1e-3, "wd": 0.1}),
    (gs.FTRL, {"lr": 0.01}, ftrl, {}),
    (gs.FTRL, {"lr": 0.01, "beta": 0.3, "l1": 0.2, "l2": 0.4}, ftrl,
     {"beta": 0.3, "l1": 0.2, "l2": 0.4}),
    (gs.ScheduleFreeSGD, {"lr": 0.01}, schedule_free_sgd, {}),
    (gs.ScheduleFreeSGD,
     {"lr": 0.01, "momentum": 0.6, "weight_decay": 0.1, "warmup_steps": 9, "r": 1.5,
      "weight_lr_power": 1.0},
     schedule_free_sgd, {"momentum": 0.6, "wd": 0.1, "warm_up": 9, "r": 1.5, "power": 1.0}),
    (gs.ScheduleFreeAdamW, {"lr": 0.01}, schedule_free_adamw, {}),
    (gs.ScheduleFreeAdamW,
     {"lr": 0.01, "betas": (0.7, 0.9), "weight_decay": 0.1, "warmup_steps": 9},
     schedule_free_adamw, {"b1": 0.7, "b2": 0.9, "wd": 0.1, "warm_up": 9}),
    (gs.Lion, {"lr": 0.01}, lion, {}),
    (gs.Lion, {"lr": 0.01, "betas": (0.7, 0.8), "weight_decay": 0.3}, lion,
     {"b1": 0.7, "b2": 0.8, "wd": 0.3}),
    (gs.AdaBelief, {"lr": 0.01}, adabelief, {}),
    (gs.AdaBelief, {"lr": 0.01, "betas": (0.7, 0.8), "eps": 1e-3, "weight_decay": 0.3}, adabelief,
     {"b1": 0.7, "b2": 0.8, "eps": 1e-3, "wd": 0.3}),
    (gs.Yogi, {"lr": 0.01}, yogi, {}),
    (gs.Yogi, {"lr": 0.01, "bias_correction": False, "initial_accumulator_value": 0.1}, yogi,
     {"corrected": False, "start": 0.1}),
    (gs.AdEMAMix, {"lr": 0.01}, ademamix, {}),
    (gs.AdEMAMix, {"lr": 0.01, "alpha_warmup": 30, "beta3_warmup": 30, "weight_decay": 0.3},
     ademamix, {"warm_up": 30, "wd": 0.3}),
    (gs.AdEMAMix, {"lr": 0.01, "betas": (0.5, 0.8, 0.95), "alpha": 2.0}, ademamix,
     {"b1": 0.5, "b2": 0.8, "b3": 0.95, "alpha": 2.0}),
    (gs.ADOPT, {"lr": 0.01}, adopt, {}),
    (gs.ADOPT, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 0.1}, adopt,
     {"b1": 0.5, "b2": 0.9, "eps": 0.1}),
    (gs.ADOPT, {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True}, adopt,
     {"wd": 0.3}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "options", "paper", "settings"),
    CASES,
    ids=[f"{cls.__name__}-{'-'.join(options)}" for cls, options, _, _ in CASES],
)
def test_fifty_steps(cls, options, paper, settings):
    start = np.random.default_rng(0).standard_normal(37)
    ours, theirs, state = start.copy(), start.copy(), {}
    opt = cls(ours, **options)
    for t in range(50):
        opt.step(gradient(ours, t))
        theirs = paper(theirs, gradient(theirs, t), state, t + 1, lr=0.01, **settings)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)
    assert abs(ours - start).max() > 1e-3


def muon(w, g, s, lr, wd, mu, nesterov, coefficients, eps, steps, matched):
    """Jordan et al. 2024, as PyTorch has it; the adjustments are those of Liu et al. 2025."""
    s["m"] = s.get("m", 0) + (1 - mu) * (g - s.get("m", 0))
    x = (1 - mu) * g + mu * s["m"] if nesterov else s["m"]
    rows, columns = w.shape
    if rows > columns:
        x = x.T
    x = x / max(math.sqrt((x**2).sum()), eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    if rows > columns:
        x = x.T
    factor = 0.2 * math.sqrt(max(rows, columns)) if matched else math.sqrt(max(1, rows / columns))
    return w - lr * wd * w - lr * factor * x


@pytest.mark.covering
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 6), (6, 1)])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("mu", [0.95, 0.5])
def test_fifty_steps_of_muon(shape, nesterov, adjust_lr_fn, mu):
    start = np.random.default_rng(0).standard_normal(shape)
    ours, theirs, state = start.copy(), start.copy(), {}
    coefficients, steps, eps = ((3.4445, -4.775, 2.0315), 5, 1e-7)
    if mu == 0.5:
        coefficients, steps, eps = ((2.0, -1.5, 0.5), 7, 0.1)
    opt = gs.Muon(
        ours,
        lr=0.01,
        weight_decay=0.3,
        momentum=mu,
        nesterov=nesterov,
        ns_coefficients=coefficients,
        eps=eps,
        ns_steps=steps,
        adjust_lr_fn=adjust_lr_fn,
    )
    matched = adjust_lr_fn == "match_rms_adamw"
    for t in range(50):
        opt.step(gradient(ours.ravel(), t).reshape(shape))
        g = gradient(theirs.ravel(), t).reshape(shape)
        theirs = muon(theirs, g, state, 0.01, 0.3, mu, nesterov, coefficients, eps, steps, matched)
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)
    assert abs(ours - start).max() > 1e-3


def test_ademamix_begins_with_any_beta1():
    """The half-life of beta1 = 0 is 0."""
    w = np.ones(3)
    opt = gs.AdEMAMix(w, betas=(0.0, 0.999, 0.9999), beta3_warmup=10)
    for _ in range(12):
        opt.step(np.ones(3))
    assert np.isfinite(w).all()
    np.testing.assert_array_equal(opt.state["n"][0] < 1, True)


def test_nadam_goes_on_where_its_state_was_taken():
    """The product of its momenta is part of it, and a skipped step leaves it."""
    long, first = np.ones(3), np.ones(3)
    whole, half = gs.NAdam(long), gs.NAdam(first, skip_nonfinite=True)
    for t in range(6):
        whole.step(gradient(long, t))
    for t in range(3):
        half.step(gradient(first, t))
        half.step(np.full(3, np.nan))
    second = first.copy()
    rest = gs.NAdam(second)
    rest.load_state_dict(half.state_dict())
    for t in range(3, 6):
        rest.step(gradient(second, t))
    np.testing.assert_array_equal(second, long)
    bad = half.state_dict()
    bad["counters"]["mu_product"] = np.array([1.5])
    with pytest.raises(ValueError, match=r"counter mu_product must be in \[0, 1\], got 1.5"):
        rest.load_state_dict(bad)


@pytest.mark.parametrize("cls", [gs.ScheduleFreeSGD, gs.ScheduleFreeAdamW])
def test_schedule_free_points(cls, tmp_path):
    """eval() is at x, the mean of the z; train() is back at y, and steps ask for it."""
    y, base = np.array([1.0, -2.0, 0.5]), []
    opt = cls(y, lr=0.05, weight_decay=0.1)
    opt.eval()
    np.testing.assert_array_equal(y, [1.0, -2.0, 0.5])  # no step, no mean
    opt.train()
    for t in range(8):
        opt.step(gradient(y, t))
        base.append(opt.state["z"].copy())
    before = y.copy()
    opt.eval()
    opt.eval()
    np.testing.assert_allclose(y, np.mean(base, axis=0), rtol=1e-13)
    with pytest.raises(RuntimeError, match=r"call train\(\) before the next step"):
        opt.step(np.ones(3))
    opt.save(tmp_path / "at the mean.npz")
    opt.train()
    np.testing.assert_allclose(y, before, rtol=1e-13)
    again = cls(np.zeros(3), lr=0.05, weight_decay=0.1)
    again.load(tmp_path / "at the mean.npz")
    with pytest.raises(RuntimeError, match="train"):
        again.step(np.ones(3))
    again.train()
    np.testing.assert_array_equal(again.params, y)
    for one in (opt, again):
        one.step(np.ones(3))
    np.testing.assert_array_equal(again.params, y)


@pytest.mark.parametrize("cls", [gs.LARS, gs.LAMB])
def test_a_trust_ratio_is_that_of_one_array(cls):
    """Two arrays of one step are two steps, and a flat vector of both is something else."""
    arrays = [np.array([3.0, 4.0]), np.array([0.1, 0.0, 0.2])]
    grads = [np.array([1.0, 2.0]), np.array([5.0, 0.0, 1.0])]
    together, flat = [a.copy() for a in arrays], np.concatenate(arrays)
    cls(together, lr=0.1).step(grads)
    for array, grad, expected in zip(arrays, grads, together, strict=True):
        cls(array, lr=0.1).step(grad)
        np.testing.assert_array_equal(array, expected)
    cls(flat, lr=0.1).step(np.concatenate(grads))
    assert not np.allclose(flat, np.concatenate(together))


@pytest.mark.parametrize("cls", [gs.LARS, gs.LAMB])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", [0.0, np.nan, np.inf, "too large for squares"])
def test_without_a_norm_the_trust_ratio_is_1(cls, dtype, norm):
    """Parameters that begin at 0 move, and one bad number does not spoil the others."""
    w, plain = np.ones(3, dtype), np.ones(3, dtype)
    if norm == "too large for squares":
        if dtype == np.float32:
            pytest.skip("their squares fit in float64")
        norm = 1e200
    w[0] = norm
    if norm == 0:
        w[:] = plain[:] = 0
    options = {"trust_coefficient": 1.0} if cls is gs.LARS else {}
    cls(w, lr=0.1, **options).step(np.ones(3, dtype))
    plain_rule = gs.SGD if cls is gs.LARS else gs.Adam
    plain_rule(plain, lr=0.1).step(np.ones(3, dtype))
    np.testing.assert_allclose(w[1:], plain[1:], rtol=1e-5)


def test_ftrl_has_weights_of_0():
    w = np.zeros(4)
    opt = gs.FTRL(w, l1=1.0)
    for _ in range(5):
        opt.step(np.array([0.1, -0.1, 1.0, -1.0]))
    np.testing.assert_array_equal(w == 0, [True, True, False, False])


@pytest.mark.parametrize(("lr", "dtype"), [(0.0, np.float32), (0.0, float), (1e-39, np.float32)])
def test_ftrl_rests_where_lr_is_0(lr, dtype):
    """A warm-up begins there. So it is where 1 / lr is infinite in the arithmetic."""
    w = np.array([1.0, -2.0, 0.0], dtype)
    plain = w.copy()
    opt, twin = (gs.FTRL(x, lr=0.1, beta=0.0, l1=0.1) for x in (w, plain))
    for t, opt.lr in enumerate([lr, 0.05, 0.1, lr, 0.1]):
        g = gradient(plain, t).astype(dtype)
        opt.step(g)
        if opt.lr > lr:
            twin.lr = opt.lr
            twin.step(g)
        for a, b in zip([w, *opt.state.values()], [plain, *twin.state.values()], strict=True):
            np.testing.assert_array_equal(a, b)


def test_asgd_averages_its_points():
    w, points = np.array([1.0, -2.0]), []
    opt = gs.ASGD(w, lr=0.1, t0=2)
    for t in range(8):
        opt.step(gradient(w, t))
        points.append(w.copy())
    np.testing.assert_allclose(opt.average(), np.mean(points[3:], axis=0), rtol=1e-14)
    opt.average()[:] = 0
    assert (opt.average() != 0).all()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (gs.Rprop, {"etas": (0.5, 1.0)}, r"etas\[1\] must be above 1, got 1.0"),
        (gs.Rprop, {"etas": (1.0, 1.2)}, r"etaminus must be in \[0, 1\), got 1.0"),
        (gs.Rprop, {"step_sizes": (2.0, 1.0)}, "step_sizes must be the least and the largest"),
        (gs.AdEMAMix, {"betas": (0.9, 0.999)}, r"betas must be three numbers, got \(0.9, 0.999\)"),
        (gs.NAdam, {"momentum_decay": -1.0}, "momentum_decay must be at least 0"),
        (gs.FTRL, {"lr": -0.1}, "lr must be at least 0"),
        (gs.LARS, {"lr": 0.1, "trust_coefficient": 0.0}, "trust_coefficient must be above 0"),
        (gs.LAMB, {"weight_decay": -1.0}, "weight_decay must be at least 0"),
        (gs.ScheduleFreeSGD, {"momentum": 0.0}, "momentum must be above 0"),
        (gs.ScheduleFreeAdamW, {"betas": (0.0, 0.9)}, "beta1 must be above 0"),
        (gs.ScheduleFreeSGD, {"warmup_steps": -1}, "warmup_steps must be at least 0"),
        (gs.ScheduleFreeSGD, {"r": -1.0}, "r must be at least 0"),
        (gs.ASGD, {"lambd": -1.0}, "lambd must be at least 0"),
        (
            gs.Yogi,
            {"initial_accumulator_value": -1.0},
            "initial_accumulator_value must be at least",
        ),
    ],
)
def test_bad_arguments_are_named(cls, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        cls(np.ones(3), **options)
