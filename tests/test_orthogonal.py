"""Muon: its bits beside the oracle, its products, and a step that ends half way."""

from __future__ import annotations

import re
import threading
import tracemalloc

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, reference
from gradstep.optimizers.orthogonal import ADJUSTMENTS
from oracle import DTYPES, THREADS, assert_same_bits, hostile, mild, python

NAN, INF = float("nan"), float("inf")
COEFFICIENTS = (3.4445, -4.775, 2.0315)
SHAPES = [(3, 5), (5, 3), (4, 4), (1, 9), (9, 1), (1, 1), (0, 3), (3, 0), (0, 0), (70, 40)]
SHAPES += [(20, 300), (130, 64)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def draw(rng, shapes, dtypes, numbers=mild):
    return [
        numbers(rng, rows * columns, dtype).reshape(rows, columns)
        for (rows, columns), dtype in zip(shapes, dtypes, strict=True)
    ]


def snapshot(opt):
    return [array.copy() for array in opt._arrays()], opt.t, opt.hyperparameters


def assert_unchanged(opt, before):
    arrays, t, hyperparameters = before
    for array, kept in zip(opt._arrays(), arrays, strict=True):
        assert_same_bits(array, kept)
    assert (opt.t, opt.hyperparameters) == (t, hyperparameters)


# Bits --------------------------------------------------------------------------------------------


@pytest.mark.covering
@pytest.mark.parametrize("numbers", [mild, hostile])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", [None, "match_rms_adamw"])
def test_many_matrices_equal_the_oracle(numbers, nesterov, adjust_lr_fn, level):
    """Of both dtypes in one step, against rule, products and rule of the oracle, one by one."""
    rng = np.random.default_rng(0)
    shapes = SHAPES * 2
    dtypes = [np.float32] * len(SHAPES) + [np.float64] * len(SHAPES)
    params = draw(rng, shapes, dtypes, numbers)
    expected = [param.copy() for param in params]
    means = [np.zeros_like(param) for param in params]
    options = {"lr": 0.02, "momentum": 0.8}
    opt = gs.Muon(
        params,
        **options,
        weight_decay=0.3,
        nesterov=nesterov,
        eps=1e-3,
        adjust_lr_fn=adjust_lr_fn,
        maximize=True,
    )
    treatment = {"maximize": True, "grad_scale": 0.5, "clip_value": 1.5}
    for t, threads in enumerate(THREADS, 1):
        gs.set_num_threads(threads)
        grads = draw(rng, shapes, dtypes, numbers)
        opt.step(grads, grad_scale=0.5, clip_value=1.5)
        for w, g, m in zip(expected, grads, means, strict=True):
            u = np.full_like(w, NAN)
            hyper = {**options, "nesterov": nesterov}
            reference.step("muon_direction", u, g, [m], t=t, **treatment, **hyper)
            with np.errstate(all="ignore"):
                o = reference.orthogonalized(u, COEFFICIENTS, 5, 1e-3)
                if o.size:
                    o *= ADJUSTMENTS[adjust_lr_fn or "original"](*o.shape)
            reference.step("muon", w, g, [m, o], t=t, weight_decay=0.3, **treatment, **options)
        for actual, wanted in zip(params, expected, strict=True):
            assert_same_bits(actual, wanted)
        for actual, wanted in zip(opt.state["m"], means, strict=True):
            assert_same_bits(actual, wanted)


@pytest.mark.parametrize("make", [dict, list])
@every_dtype
def test_the_whole_step_equals_the_oracle(make, dtype):
    ends = []
    for cls in (gs.Muon, reference.in_numpy(gs.Muon)):
        rng = np.random.default_rng(1)
        names = ["a", "b"]
        shapes = [(6, 9), (8, 3)]

        def tree(arrays, names=names):
            return arrays if make is list else dict(zip(names, arrays, strict=True))

        params = draw(rng, shapes, [dtype] * 2)
        opt = cls(tree(params), lr=gs.schedules.cosine(0.1, total_steps=6), skip_nonfinite=True)
        results = []
        for t in range(6):
            grads = draw(rng, shapes, [dtype] * 2)
            if t == 3:
                grads[1][2, 1] = INF
            kept = [g.copy() for g in grads]
            results.append(opt.step(tree(grads), grad_scale=2.0, clip_norm=3.0, zero_grad=True))
            for g, before in zip(grads, kept, strict=True):
                assert_same_bits(g, before if t == 3 else np.zeros_like(g))
        assert [result.skipped for result in results] == [t == 3 for t in range(6)]
        assert all(result.clipped for result in results if not result.skipped)
        assert opt.t == 5
        ends.append([np.array(results), *params, *tree_leaves(opt.state["m"])])
    for actual, expected in zip(*ends, strict=True):
        assert_same_bits(actual, expected)


def tree_leaves(tree):
    return tree.values() if isinstance(tree, dict) else tree


def test_the_scale_of_a_gradient_does_not_count():
    """Also where its squares, or in float32 its norm, are beyond the dtype."""
    g = np.random.default_rng(0).standard_normal((8, 6))
    for dtype, scale in [(np.float32, 2.0**125), (np.float64, 2.0**1020), (np.float64, 2.0**-900)]:
        ends = []
        for factor in (1.0, scale):
            w = np.zeros((8, 6), dtype)
            gs.Muon(w, lr=1.0, eps=1e-300).step(g.astype(dtype) * dtype(factor))
            ends.append(w)
        assert_same_bits(*ends)


@pytest.mark.covering
@every_dtype
@pytest.mark.parametrize("numbers", [mild, hostile])
@pytest.mark.parametrize("size", [0, 1, 7, 4096, 100_003])
def test_the_norm_is_that_of_clipping(dtype, numbers, size, level):
    x = numbers(np.random.default_rng(size), size, dtype)
    for threads in THREADS:
        gs.set_num_threads(threads)
        np.testing.assert_equal(_core.norm(x), reference.grad_norm([x]))


# What it computes --------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", [(16, 16), (10, 30), (30, 10), (100, 100), (64, 500)])
def test_a_step_is_nearly_orthogonal(shape, dtype):
    """In every direction of the gradient it is about as long, and it keeps those directions."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal(shape).astype(dtype)
    w = np.zeros(shape, dtype)
    gs.Muon(w, lr=1.0).step(g)
    step = -w.astype(np.float64) / np.sqrt(max(1, shape[0] / shape[1]))
    left, of_gradient, right = np.linalg.svd(g.astype(np.float64), full_matrices=False)
    told = of_gradient > 0.002 * np.linalg.norm(g)
    assert told.sum() > 0.9 * told.size
    along = left.T @ step @ right.T
    assert np.diag(along)[told].min() > 0.68
    assert np.diag(along)[told].max() < 1.21
    np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=1e-4)


def test_the_bounds_of_the_docstring():
    """Singular values go by a polynomial, one by one."""
    s = np.geomspace(0.002, 1, 100_001)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert 0.68 < s.min() < s.max() < 1.21


def test_classical_coefficients_converge():
    g = np.random.default_rng(0).standard_normal((20, 30))
    w = np.zeros((20, 30))
    gs.Muon(w, lr=1.0, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=30).step(g)
    np.testing.assert_allclose(w @ w.T, np.eye(20), atol=1e-12)


def test_a_zero_gradient_moves_nothing_and_nan_spreads_over_its_matrix_alone():
    params = [np.ones((3, 4)), np.ones((3, 4)), np.ones((4, 3))]
    opt = gs.Muon(params, weight_decay=0.0)
    opt.step([np.zeros((3, 4)), np.full((3, 4), NAN), np.ones((4, 3))])
    np.testing.assert_array_equal(params[0], np.ones((3, 4)))
    assert np.isnan(params[1]).all()
    assert np.isfinite(params[2]).all()
    assert (params[2] < 1).all()


def test_flush_denormals_is_taken():
    w = np.full((2, 3), 1e-310)
    gs.Muon(w, lr=0.0, flush_denormals=True).step(np.ones((2, 3)))
    assert not w.any()


# Half way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [gs.Muon, reference.in_numpy(gs.Muon)])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_what_ends_between_the_passes_has_changed_nothing(monkeypatch, cls, error):
    rng = np.random.default_rng(0)
    params = draw(rng, [(3, 4), (4, 2)], DTYPES)
    opt = cls(params, lr=0.1)
    grads = draw(rng, [(3, 4), (4, 2)], DTYPES)
    opt.step(grads)
    before, kept = snapshot(opt), [g.copy() for g in grads]

    def stop(self, *matrices):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(gs.Muon, "_orthogonalize", stop)
        with pytest.raises(error):
            opt.step(grads, zero_grad=True)
    assert_unchanged(opt, before)
    for g, whole in zip(grads, kept, strict=True):
        assert_same_bits(g, whole)
    # And it goes on as if nothing had been.
    other = cls([param.copy() for param in params], lr=0.1)
    other.load_state_dict(opt.state_dict())
    for one in (opt, other):
        one.step(grads)
    for actual, expected in zip(opt._arrays(), other._arrays(), strict=True):
        assert_same_bits(actual, expected)


def test_another_thread_is_kept_out_from_pass_to_pass(monkeypatch, tmp_path):
    opt, alone = (gs.Muon(np.ones((3, 4)), lr=0.1) for _ in range(2))
    g = np.arange(12.0).reshape(3, 4)
    alone.step(g)
    plain, refused = gs.Muon._orthogonalize, []

    def call_from_elsewhere(self, *matrices):
        def calls():
            for call in (
                lambda: opt.step(np.ones((3, 4))),
                opt.state_dict,
                lambda: opt.save(tmp_path / "state.npz"),
            ):
                try:
                    call()
                except RuntimeError as error:
                    refused.append(str(error))

        thread = threading.Thread(target=calls)
        thread.start()
        thread.join()
        plain(self, *matrices)

    monkeypatch.setattr(gs.Muon, "_orthogonalize", call_from_elsewhere)
    opt.step(g)
    assert len(refused) == 3
    assert all("another thread is stepping, saving or loading" in text for text in refused)
    for actual, expected in zip(opt._arrays(), alone._arrays(), strict=True):
        assert_same_bits(actual, expected)


def test_a_child_of_fork_goes_on_where_its_parent_was_between_the_passes():
    out = python(
        """
import os, threading, numpy as np, gradstep as gs
opt = gs.Muon(np.ones((3, 4)), lr=0.1)
plain, inside, go = gs.Muon._orthogonalize, threading.Event(), threading.Event()
def wait(self, *matrices):
    inside.set()
    go.wait()
    plain(self, *matrices)
gs.Muon._orthogonalize = wait
thread = threading.Thread(target=opt.step, args=[np.ones((3, 4))])
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    gs.Muon._orthogonalize = plain
    opt.step(np.ones((3, 4)))
    os._exit(0 if opt.t == 1 else 1)
print(os.waitpid(pid, 0)[1])
go.set()
thread.join()
print(opt.t)
"""
    )
    assert out.split() == ["0", "1"]


def test_a_step_allocates_nothing_large():
    w, g = np.ones((1000, 700)), np.ones((1000, 700))
    opt = gs.Muon(w)
    opt.step(g)
    tracemalloc.start()
    try:
        opt.step(g, clip_norm=1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.1 * w.nbytes


# Bad calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (np.ones(3), "params must have two dimensions, got shape (3,)"),
        (np.ones(()), "params must have two dimensions, got shape ()"),
        ([np.ones((3, 2)), np.ones(3)], "params[1] must have two dimensions, got shape (3,)"),
        ({"w": np.ones((3, 2, 1))}, "params['w'] must have two dimensions, got shape (3, 2, 1)"),
    ],
)
def test_only_matrices(params, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gs.Muon(params)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be at least 0 and finite, got -1.0"),
        ({"momentum": 1.0}, ValueError, "momentum must be in [0, 1), got 1.0"),
        ({"nesterov": 1}, TypeError, "nesterov must be True or False, got 1"),
        ({"weight_decay": NAN}, ValueError, "weight_decay must be at least 0 and finite, got nan"),
        (
            {"ns_coefficients": (1.0, 2.0)},
            TypeError,
            "ns_coefficients must be three numbers, got (1.0, 2.0)",
        ),
        (
            {"ns_coefficients": (1.0, "b", 2.0)},
            TypeError,
            "ns_coefficients[1] must be a number, got 'b'",
        ),
        (
            {"ns_coefficients": (1.0, 2.0, INF)},
            ValueError,
            "ns_coefficients[2] must be finite in float64, got inf",
        ),
        ({"eps": 0.0}, ValueError, "eps must be above 0 and finite, got 0.0"),
        ({"eps": NAN}, ValueError, "eps must be above 0 and finite, got nan"),
        ({"ns_steps": -1}, ValueError, "ns_steps must be at least 0, got -1"),
        ({"ns_steps": 100}, ValueError, "ns_steps must be at most 99, got 100"),
        ({"ns_steps": 5.0}, TypeError, "ns_steps must be a whole number, got 5.0"),
        (
            {"adjust_lr_fn": "none"},
            ValueError,
            "adjust_lr_fn must be one of 'original', 'match_rms_adamw', got 'none'",
        ),
        ({"adjust_lr_fn": ""}, ValueError, "adjust_lr_fn must be one of"),
        ({"beta": 0.9}, TypeError, "Muon() has no argument 'beta'"),
    ],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gs.Muon(np.ones((2, 2)), **options)


def test_coefficients_that_float32_cannot_hold():
    params = [np.ones((2, 2)), np.ones((2, 2), np.float32)]
    message = "ns_coefficients[1] must be finite in float32, got -1e+39"
    with pytest.raises(ValueError, match=re.escape(message)):
        gs.Muon(params, ns_coefficients=(1.0, -1e39, 1.0))
    gs.Muon(params[0], ns_coefficients=(1.0, -1e39, 1.0))


w0, b0 = np.ones((2, 3)), np.ones((4, 4))


@pytest.mark.parametrize(
    ("grads", "options", "error", "message"),
    [
        ([w0.T.copy(), b0], {}, ValueError, "grads[0] must have the shape of params[0], (2, 3)"),
        ([w0, b0.astype("f")], {}, TypeError, "grads[1] must have the dtype of params[1]"),
        ([w0, b0.T[::2]], {}, ValueError, "grads[1] must be C-contiguous"),
        ([w0, None], {}, TypeError, "grads[1] must be a numpy.ndarray"),
        ([w0], {}, ValueError, "grads must hold 2 arrays like params, got 1"),
        ([w0, b0 * NAN], {"clip_norm": 1.0}, ValueError, "grads[1] holds NaN or infinity, so clip"),
        ([w0, b0], {"grad_scale": 0.0}, ValueError, "grad_scale must be above 0"),
        ([w0, b0], {"clip_value": -1.0}, ValueError, "clip_value must be above 0"),
        ([w0, b0], {"zero_grad": 1}, TypeError, "zero_grad must be True or False, got 1"),
        ([w0, np.broadcast_to(b0, (4, 4))], {"zero_grad": True}, ValueError, "grads[1] is read-on"),
        ("params", {}, ValueError, "grads[1] shares memory with params[1]"),
        ("state", {}, ValueError, "grads[1] shares memory with state m[1]"),
    ],
)
def test_bad_steps_change_nothing(grads, options, error, message):
    opt = gs.Muon([np.ones((2, 3)), np.ones((4, 4))], lr=0.1)
    opt.step([w0, b0])
    before = snapshot(opt)
    if grads == "params":
        grads = [w0, opt.params[1]]
    elif grads == "state":
        grads = [w0, opt.state["m"][1]]
    with pytest.raises(error, match=re.escape(message)):
        opt.step(grads, **options)
    assert_unchanged(opt, before)


def test_arrays_and_schedules_that_change_behind_its_back():
    rates = [0.1]
    w = np.ones((2, 3))
    opt = gs.Muon(w, lr=lambda step: rates[0])
    opt.step(w0)
    before = snapshot(opt)
    for rate in (NAN, -1.0):
        rates[0] = rate
        with pytest.raises(ValueError, match="lr must be at least 0"):
            opt.step(w0)
    rates[0] = 0.1
    for array, name in ((w, "params"), (opt.state["m"], "state m")):
        array.setflags(write=False)
        with pytest.raises(ValueError, match=f"{name} is read-only"):
            opt.step(w0)
        array.setflags(write=True)
    assert_unchanged(opt, before)
    opt.load_state_dict({**opt.state_dict(), "t": 2**53})
    with pytest.raises(ValueError, match=re.escape("t must be at most 2**53")):
        opt.step(w0)
    opt.load_state_dict({**opt.state_dict(), "t": 1})
    assert_unchanged(opt, before)


# Around the step ---------------------------------------------------------------------------------


def test_the_state_is_the_mean_and_the_settings(tmp_path):
    options = {
        "ns_coefficients": (2.0, -1.5, 0.5),
        "eps": 1e-3,
        "ns_steps": 7,
        "adjust_lr_fn": "match_rms_adamw",
    }
    opt = gs.Muon(np.ones((3, 5)), **options)
    opt.step(np.ones((3, 5)))
    assert [*opt.state] == ["m"]
    assert opt.hyperparameters.items() >= options.items()
    for part in ("  # 15 elements, t=1", "ns_steps=7", "adjust_lr_fn='match_rms_adamw'"):
        assert part in repr(opt)
    opt.save(tmp_path / "state.npz")
    by_file, by_dict = gs.Muon(np.zeros((3, 5))), gs.Muon(opt.params.copy())
    by_file.load(tmp_path / "state.npz")
    by_dict.load_state_dict(opt.state_dict())
    for one in (opt, by_file, by_dict):
        assert one.hyperparameters == opt.hyperparameters
        one.step(w0.repeat(3).reshape(6, 3)[:5].T.copy())
        np.testing.assert_array_equal(one.params, opt.params)
    before = snapshot(by_dict)
    bad = opt.state_dict()
    bad["hyperparameters"]["ns_steps"] = 100
    with pytest.raises(ValueError, match="ns_steps must be at most 99, got 100"):
        by_dict.load_state_dict(bad)
    assert_unchanged(by_dict, before)


def test_matrices_of_other_libraries():
    numbers = np.arange(6.0).reshape(2, 3)
    view = memoryview(bytearray(48)).cast("d", shape=[2, 3])
    expected = np.zeros((2, 3))
    opt, twin = gs.Muon(view, lr=0.1), gs.Muon(expected, lr=0.1)
    for one in (opt, twin):
        one.step(numbers)
    assert_same_bits(np.asarray(view), expected)
    assert opt.params is view


def test_train():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 6))
    labels = np.argmax(x @ rng.standard_normal((6, 3)), axis=1)
    loss_and_grad = gs.losses.linear(gs.losses.softmax)
    w = np.zeros((6, 3))
    history = gs.train(gs.Muon(w, lr=0.05), loss_and_grad, (x, labels), epochs=20, batch_size=40)
    assert history.stop == "epochs"
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    w = np.zeros((6, 3))
    x[7] = NAN
    history = gs.train(gs.Muon(w), loss_and_grad, (x, labels), epochs=2, batch_size="full")
    assert history.stop == "non-finite"


def test_max_stable_lr_knows_no_bound():
    with pytest.raises(ValueError, match="no largest stable learning rate is known for Muon"):
        gs.max_stable_lr("muon", 1.0)


def test_linear_models_hold_a_vector():
    linear = pytest.importorskip("gradstep.linear", reason="needs scikit-learn")
    x, y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20) % 2
    with pytest.raises(ValueError, match="must have two dimensions, got shape"):
        linear.GDClassifier(rule="muon", lr=0.1).fit(x, y)


def test_the_functions_are_its_two_passes():
    g, m = np.random.default_rng(0).standard_normal((2, 3, 4))
    u, w, mean = np.empty((3, 4)), np.ones((3, 4)), m.copy()
    gs.functional.muon_direction(u, g, mean)
    assert_same_bits(mean, m)
    o = reference.orthogonalized(u, COEFFICIENTS, 5, 1e-7)
    gs.functional.muon(w, g, mean, o, lr=0.1)
    opt = gs.Muon(np.ones((3, 4)), lr=0.1)
    opt.state["m"][...] = m
    opt.step(g)
    assert_same_bits(w, opt.params)
    assert_same_bits(mean, opt.state["m"])
    assert "Written: param, m. Read: grad, o." in gs.functional.muon.__doc__
    assert "Written: param. Read: grad, m." in gs.functional.muon_direction.__doc__
