"""Scaling, clipping, skipping and clearing in the step: the oracle's bits, nothing half done."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import re
import threading

import hypothesis
import hypothesis.extra.numpy as nps
import hypothesis.strategies as st
import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, reference
from gradstep.optimizers.base import CLASSES
from gradstep.optimizers.options import Options
from oracle import (
    DTYPES,
    NO_ARRAY,
    RULES,
    SPAN,
    THREADS,
    as_fits,
    as_taken,
    assert_same_bits,
    beside,
    hyper_of,
    mild,
    needed,
    python,
    zero_states,
)

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

BLOCK = reference.BLOCK
SIZES = (0, 1, 3, 31, 32, 33, 63, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, 5 * SPAN + 77)
NAN, INF = math.nan, math.inf
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def wild(rng, size, dtype):
    """Finite numbers of any size, up to where the square of one overflows in float64."""
    limit = 30 if dtype == np.float32 else 150
    return (rng.standard_normal(size) * 10.0 ** rng.integers(-limit, limit, size)).astype(dtype)


def native_norm(grads, scale=1.0):
    """The norm as `clip_norm` sees it; nothing is updated, for lack of a learning rate."""
    opt = gs.SGD([np.zeros_like(g) for g in grads], lr=0.0)
    return opt.step(grads, grad_scale=scale, clip_norm=INF).grad_norm


# The norm -------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("numbers", [mild, wild])
def test_norm_has_the_oracles_bits(dtype, numbers, level):
    rng = np.random.default_rng(0)
    for size in SIZES:
        g = numbers(rng, size, dtype)
        for threads in THREADS if size > SPAN else (1,):
            gs.set_num_threads(threads)
            assert native_norm([g]) == reference.grad_norm([g]), (size, threads)
            assert native_norm([g], 0.3) == reference.grad_norm([g], 0.3), (size, threads)


def test_norm_of_many_arrays(level):
    rng = np.random.default_rng(1)
    sizes = [3, 0, 2 * SPAN + 3, 1, BLOCK, SPAN - 7, 64, *[100] * 50, 4 * SPAN]
    grads = [mild(rng, size, DTYPES[i % 2]) for i, size in enumerate(sizes)]
    expected = reference.grad_norm(grads)
    for threads in THREADS:
        gs.set_num_threads(threads)
        assert native_norm(grads) == expected
    by_numpy = math.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in grads))
    assert expected == pytest.approx(by_numpy, rel=1e-13)


def test_norm_of_a_vector_that_is_split_at_block_edges():
    """Processes that hold a part each, and add their blocks' sums in order, get the same bits."""
    g = mild(np.random.default_rng(2), 37 * BLOCK + 123, np.float32)
    for edges in ([BLOCK], [5 * BLOCK, 6 * BLOCK], [0, 30 * BLOCK]):
        sums = [reference.block_sums(part) for part in np.split(g, edges)]
        assert math.sqrt(reference.tree_sum(np.concatenate(sums))) == native_norm([g])


@pytest.mark.covering
@pytest.mark.parametrize("size", [1, 5000])
@pytest.mark.parametrize("exponent", [-1074, -1000, -600, 511, 512, 1000, 1010])
def test_norm_beyond_the_range_of_squares(size, exponent, level):
    g = np.full(size, 2.0**exponent)
    norm = native_norm([g])
    assert norm == reference.grad_norm([g])
    if exponent > -1000:  # denormal results have fewer digits
        assert norm == pytest.approx(math.sqrt(size) * 2.0**exponent, rel=1e-14)
    assert native_norm([g, np.ones(1, np.float32)]) == reference.grad_norm(
        [g, np.ones(1, np.float32)]
    )


def test_norm_of_zeros():
    assert native_norm([np.zeros(10), np.zeros(0)]) == 0.0


@every_dtype
@hypothesis.given(data=st.data())
def test_norm_of_any_numbers(dtype, data):
    g = data.draw(nps.arrays(dtype, st.integers(0, 70), elements=nps.from_dtype(np.dtype(dtype))))
    scale = data.draw(st.floats(2**-20, 2**20, width=32))
    opt = gs.SGD(np.zeros_like(g), lr=0.0, skip_nonfinite=True)
    result = opt.step(g, grad_scale=scale)
    np.testing.assert_equal(result.grad_norm, reference.grad_norm([g], scale))
    with np.errstate(over="ignore"):
        finite = bool(np.isfinite(dtype(scale) * g).all())
    assert result.skipped == (not math.isfinite(result.grad_norm))
    if math.isfinite(result.grad_norm):
        assert finite
    elif finite:  # of numbers whose norm is beyond float64
        assert dtype == np.float64
        assert np.abs(g).max() * scale > 1e307


# The step -------------------------------------------------------------------------------------

UNTREATED = {"grad_scale": 1.0, "clip_norm": None, "clip_value": None, "zero_grad": False}
TREATMENTS = [
    {"grad_scale": 0.37},
    {"clip_norm": 3.0},
    {"clip_norm": 1e30},
    {"clip_value": 0.7},
    {"zero_grad": True},
    {"grad_scale": 1 / 3, "clip_norm": 2.5, "clip_value": 0.01, "zero_grad": True},
]


@pytest.mark.covering
@pytest.mark.parametrize("rule", RULES)
@every_dtype
def test_every_rule_in_a_fused_step(rule, dtype, level):
    """Natively in one call, by the oracle in NumPy: the same bits, for any number of threads."""
    for size in (1, 17, 65, BLOCK + 3, 2 * SPAN + 9):
        for treatment in TREATMENTS:
            rng = np.random.default_rng(size)
            w, grads = mild(rng, size, dtype), [mild(rng, size, dtype) for _ in range(2)]
            results = []
            for make in (_core.Plan, reference.Plan):
                param, states = w.copy(), zero_states(rule, w)
                nouns = ["params", "grads", *RULES[rule].states]
                plan = make(rule, [param], [[state] for state in states], nouns, [""])
                used = [g.copy() for g in grads]
                options = {**UNTREATED, **treatment}
                scalars = list(hyper_of(rule).values()), 0.1, True, 0
                reports = [
                    plan.step([g], tuple(options.values()), (t, *scalars))
                    for t, g in enumerate(used)
                ]
                results.append(([param, *states, *used], reports))
            (native, reports), (expected, expected_reports) = results
            assert reports == expected_reports
            for a, b in zip(native, expected, strict=True):
                assert_same_bits(a, b, f"{size} elements, {treatment}")


ALONE = [{}, *TREATMENTS[:-1], {"weight_decay": 0.1}, {"maximize": True}]
STORAGES = [(np.float64, None), (np.float32, None), (np.float32, "int8")]
if ml_dtypes:
    STORAGES += [(np.float32, "bfloat16"), (ml_dtypes.bfloat16, "bfloat16")]


@pytest.mark.covering
@pytest.mark.parametrize("alone", ALONE, ids=repr)
@pytest.mark.parametrize("cls", [gs.SGD, gs.Adam, gs.AdamW])
@pytest.mark.parametrize(("dtype", "state_dtype"), STORAGES)
def test_each_option_alone(alone, cls, dtype, state_dtype):
    """Kernels leave out what has nothing to do, and no more. Parameters that are not finite stay
    so, and concern no state where nothing decays."""
    rng = np.random.default_rng(8)
    w = mild(rng, 5000, np.float32).astype(dtype)
    w[[3, 4, 4999]] = NAN, INF, -INF
    grads = [mild(rng, 5000, np.float32).astype(dtype) for _ in range(2)]
    treatment = {name: value for name, value in alone.items() if name in UNTREATED}
    options = {name: value for name, value in alone.items() if name not in UNTREATED}
    outcomes = []
    for make in (cls, reference.in_numpy(cls)):
        opt = make(w.copy(), **{"weight_decay": 0.0, "state_dtype": state_dtype, **options})
        used = [g.copy() for g in grads]
        reports = [opt.step(g, **treatment) for g in used]
        outcomes.append(([*opt._arrays(), *used], reports))
    (native, reports), (expected, expected_reports) = outcomes
    assert reports == expected_reports
    for a, b in zip(native, expected, strict=True):
        assert_same_bits(a, b)


@every_dtype
def test_threads_and_arrays(dtype):
    rng = np.random.default_rng(3)
    sizes = [5, 3 * SPAN + 1, 64, 0, SPAN]
    start = [mild(rng, size, dtype) for size in sizes]
    grads = [mild(rng, size, dtype) for size in sizes]
    options = {"grad_scale": 0.5, "clip_norm": 1.0, "clip_value": 0.003, "zero_grad": True}
    outcomes = []
    for cls in (gs.Adam, reference.in_numpy(gs.Adam)):
        for threads in THREADS:
            gs.set_num_threads(threads)
            opt = cls([w.copy() for w in start], lr=0.1)
            used = [g.copy() for g in grads]
            result = opt.step(used, **options)
            assert result.clipped
            outcomes.append([*opt._arrays(), *used, np.array(result.grad_norm)])
    for outcome in outcomes[1:]:
        for a, b in zip(outcome, outcomes[0], strict=True):
            assert_same_bits(a, b)
    assert not any(used.any() for used in outcomes[0][-6:-1])


def test_a_fused_step_is_its_parts_one_after_the_other():
    rng = np.random.default_rng(4)
    w, g = mild(rng, 1000, np.float32), mild(rng, 1000, np.float32)
    fused, parts = w.copy(), w.copy()
    result = gs.Adam(fused).step(g.copy(), grad_scale=0.25, clip_norm=2.0, clip_value=0.1)
    h = np.float32(0.25) * g
    norm = reference.grad_norm([h])
    assert result == (norm, True, False)
    h = np.clip(np.float32(2.0 / norm) * h, np.float32(-0.1), np.float32(0.1))
    assert gs.Adam(parts).step(h) is None
    assert_same_bits(fused, parts)


def test_result():
    w = np.zeros(2)
    opt = gs.SGD(w, lr=1.0)
    g = np.array([3.0, 4.0])
    assert opt.step(g) is None
    assert opt.step(g, grad_scale=2.0, clip_value=1.0, zero_grad=False) is None
    assert opt.step(g, clip_norm=5.0) == gs.StepResult(5.0, clipped=False, skipped=False)
    assert opt.step(g, clip_norm=4.99) == gs.StepResult(5.0, clipped=True, skipped=False)
    assert opt.step(g, clip_norm=INF) == gs.StepResult(5.0, clipped=False, skipped=False)
    careful = gs.SGD(w, lr=1.0, skip_nonfinite=True)
    assert careful.step(g, grad_scale=2.0) == gs.StepResult(10.0, clipped=False, skipped=False)


@every_dtype
def test_nan_stays_nan_where_nobody_looks(dtype):
    w = np.zeros(40, dtype)
    g = np.full(40, np.nan, dtype)
    gs.SGD(w, lr=1.0).step(g, clip_value=1.0, grad_scale=2.0)
    assert np.isnan(w).all()


@every_dtype
@pytest.mark.parametrize("flush", [False, True])
def test_clipping_an_exploded_gradient(dtype, flush, level):
    """The factor alone would be denormal, or nothing."""
    big = {np.float32: 1e38, np.float64: 1e300}[dtype]
    for limit in (1.0, 1e-6, 1e-20):
        w = np.zeros(2, dtype)
        gs.SGD(w, lr=1.0, flush_denormals=flush).step(np.array([big, 0], dtype), clip_norm=limit)
        np.testing.assert_allclose(w, [-limit, 0], rtol=1e-6)
        if not flush:
            expected = np.zeros(2, dtype)
            oracle = reference.in_numpy(gs.SGD)(expected, lr=1.0)
            oracle.step(np.array([big, 0], dtype), clip_norm=limit)
            assert_same_bits(w, expected)


@pytest.mark.covering
@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.any_storage])
@every_dtype
def test_flushing_is_the_same_with_nothing_to_do(dtype, rule, level):
    """Where gradients are cleared, loops scale and clip by nothing; else they leave that out."""
    tiny = dtype(1e-40 if dtype == np.float32 else 1e-310)
    results = []
    for zero_grad in (False, True):
        names = RULES[rule].states
        arrays = [np.full(40, tiny) for _ in ["w", "g", *names]]
        w, g, *states = arrays
        nouns, kinds = ["w", "g", *names], [[s] for s in states]
        plan = _core.Plan(rule, [w], kinds, nouns, [""], flush_denormals=True)
        scalars = (0, [*hyper_of(rule).values()], 0.0, False, 0)
        plan.step([g], (1.0, None, None, zero_grad), scalars)
        results.append([w, *states])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


# Skipping -------------------------------------------------------------------------------------


def make(cls, params, **options):
    return cls(params, **needed(cls), **options)


@pytest.mark.covering
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [0, 700, 2 * SPAN + 4])
def test_a_skipped_step_changes_nothing(cls, bad, where):
    rng = np.random.default_rng(5)
    params = [mild(rng, 2 * SPAN + 5, np.float32), mild(rng, 3, np.float64)]
    good = [mild(rng, p.size, p.dtype) for p in params]
    params, good = ([as_fits(cls, array) for array in arrays] for arrays in (params, good))
    opt = make(cls, params, skip_nonfinite=True)
    assert not opt.step(as_taken(cls, good), **beside(opt, good, 1)).skipped
    before = opt.state_dict(), [p.copy() for p in params]
    grads = [g.copy() for g in good]
    grads[0].flat[where] = bad
    kept = [g.copy() for g in grads]
    clip = {} if cls is gs.SVRG else {"clip_norm": 1.0}
    result = opt.step(as_taken(cls, grads), **beside(opt, good, 3), **clip, zero_grad=True)
    assert result.skipped
    assert not result.clipped
    assert not math.isfinite(result.grad_norm)
    assert opt.t == 1
    for a, b in zip([*params, *grads], [*before[1], *kept], strict=True):
        assert_same_bits(a, b)
    np.testing.assert_equal(opt.state_dict(), before[0])
    # And it goes on as if nothing had been.
    other = make(cls, [p.copy() for p in params])
    other.load_state_dict(before[0])
    opt.step(as_taken(cls, good), **beside(opt, good, 3))
    other.step(as_taken(cls, good), **beside(opt, good, 3))
    for a, b in zip(opt._arrays(), other._arrays(), strict=True):
        assert_same_bits(a, b)


def test_a_scale_that_overflows_is_skipped():
    w = np.ones(3, np.float32)
    g = np.array([1.0, 1e30, 1.0], np.float32)
    opt = gs.SGD(w, skip_nonfinite=True)
    assert opt.step(g, grad_scale=1e10) == gs.StepResult(INF, clipped=False, skipped=True)
    assert not opt.step(g, grad_scale=1e-10).skipped


def test_a_norm_beyond_float64_is_no_reason_to_skip():
    for cls in (gs.SGD, reference.in_numpy(gs.SGD)):
        w, g = np.zeros(4), np.full(4, 1.7e308)
        opt = cls(w, lr=1e-308, skip_nonfinite=True)
        assert opt.step(g) == gs.StepResult(INF, clipped=False, skipped=False)
        np.testing.assert_allclose(w, -1.7)
        assert opt.step(g, clip_norm=1.0).skipped
        assert opt.t == 1


def test_clipping_without_a_norm_is_refused():
    params = {"a": np.ones(2), "b": np.ones(2)}
    opt = gs.Adam(params)
    kept = opt.state_dict()
    grads = {"a": np.ones(2), "b": np.array([1.0, NAN])}
    message = "grads['b'] holds NaN or infinity, so clip_norm cannot apply; skip_nonfinite=True"
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step(grads, clip_norm=1.0, zero_grad=True)
    with pytest.raises(ValueError, match=re.escape("grads['b'] times grad_scale=2.0 holds NaN")):
        opt.step(grads, clip_norm=1.0, grad_scale=2.0)
    grads["b"][...] = 1.7e308
    with pytest.raises(ValueError, match="grads has a norm beyond float64, so clip_norm cannot"):
        opt.step(grads, clip_norm=1.0)
    np.testing.assert_equal(opt.state_dict(), kept)
    assert grads["a"].all()
    np.testing.assert_array_equal(params["a"], 1.0)


# Clearing -------------------------------------------------------------------------------------


def test_zero_grad_needs_gradients_that_can_be_written():
    params = [np.ones(3), np.ones(3)]
    opt = gs.SGD(params, lr=1.0)
    g = np.ones(3)
    frozen = np.ones(3)
    frozen.setflags(write=False)
    both = np.ones(5)
    overlapping = "grads[1] shares memory with grads[0]"
    cases = [
        ([g, frozen], ValueError, "grads[1] is read-only"),
        ([g, g], ValueError, "grads[1] is the same array as grads[0]"),
        ([both[:3], both[2:]], ValueError, overlapping),
    ]
    opt.step([g, np.ones(3)], zero_grad=True)  # these are known to be apart
    g.fill(1.0)
    kept = [p.copy() for p in params]
    for grads, error, message in cases:
        for _ in range(2):  # what was refused once is not known the next time
            with pytest.raises(error, match=re.escape(message)):
                opt.step(grads, zero_grad=True)
    assert g.all()
    assert both.all()
    np.testing.assert_array_equal(params, kept)
    # A pair of which each was seen, but not together.
    h = np.ones(3)
    opt.step([g, h], zero_grad=True)
    with pytest.raises(ValueError, match=re.escape("grads[1] must")):
        opt.step([h, np.ones(4)], zero_grad=True)
    with pytest.raises(ValueError, match=re.escape("grads[1] is the same array as grads[0]")):
        opt.step([h, h], zero_grad=True)
    assert opt.t == 2
    scalar = gs.SGD(np.ones(()))
    with pytest.raises(
        TypeError,
        match=f"grads {NO_ARRAY}float64",
    ):
        scalar.step(np.float64(1.0), zero_grad=True)


@pytest.mark.parametrize("size", [0, 1, 33, 5000, 2 * SPAN + 1])
def test_zero_grad_clears_all_and_no_more(size):
    room = np.ones(size + 200, np.float32)
    grad = room[100 : 100 + size]
    gs.Momentum(np.ones(size, np.float32), lr=0.1).step(grad, zero_grad=True)
    assert not grad.any()
    assert room[:100].all()
    assert room[100 + size :].all()


# Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grad_scale": 0.0}, ValueError, "grad_scale must be above 0 and finite, got 0.0"),
        ({"grad_scale": -1.0}, ValueError, "grad_scale must be above 0 and finite, got -1.0"),
        ({"grad_scale": NAN}, ValueError, "grad_scale must be above 0 and finite, got nan"),
        ({"grad_scale": 1e-60}, ValueError, "grad_scale must be above 0 and finite in float32"),
        ({"grad_scale": "2"}, TypeError, "grad_scale must be a number, got '2'"),
        ({"grad_scale": None}, TypeError, "grad_scale must be a number, got None"),
        ({"clip_norm": 0}, ValueError, "clip_norm must be above 0, got 0.0"),
        ({"clip_norm": -INF}, ValueError, "clip_norm must be above 0, got -inf"),
        ({"clip_norm": NAN}, ValueError, "clip_norm must be above 0, got nan"),
        ({"clip_norm": [1]}, TypeError, "clip_norm must be a number, got [1]"),
        ({"clip_value": 0.0}, ValueError, "clip_value must be above 0 and finite, got 0.0"),
        ({"clip_value": INF}, ValueError, "clip_value must be above 0 and finite, got inf"),
        ({"clip_value": "x"}, TypeError, "clip_value must be a number, got 'x'"),
        ({"zero_grad": 1}, TypeError, "zero_grad must be True or False, got 1"),
    ],
)
def test_bad_step_options(options, error, message):
    w = np.ones(3, np.float32)
    g = np.ones(3, np.float32)
    opt = gs.SGD(w)
    with pytest.raises(error, match=re.escape(message)):
        opt.step(g, **options)
    assert opt.t == 0
    assert w.all()
    assert g.all()


@pytest.mark.parametrize("cls", CLASSES)
def test_options_of_every_class(cls):
    """Each takes them, shows them in its signature, checks them, and prints those that are set."""
    parameters = inspect.signature(cls).parameters
    defaults = {name: parameters[name].default for name in Options.__annotations__}
    flags = ("maximize", "skip_nonfinite", "flush_denormals")
    assert defaults == {
        **dict.fromkeys(flags, False),
        "state_dtype": None,
        "rounding": "stochastic",
        "rounding_seed": 0,
        "state_dir": None,
        "copy_to": None,
        "master": False,
    }
    for name in flags:
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 1"):
            make(cls, np.ones((1, 3)), **{name: 1})
        assert f"{name}=True" in repr(make(cls, np.ones((1, 3)), **{name: True}))
    for name in ("foreach", "seen", "beta1"):
        with pytest.raises(TypeError, match=rf"\(\) has no argument '{name}'"):
            make(cls, np.ones((1, 3)), **{name: 0.5})
    assert "options" not in parameters
    shown = inspect.signature(cls.step).parameters
    assert (
        shown.keys() - {"row", "snapshot_grads"}
        == inspect.signature(gs.Optimizer.step).parameters.keys()
    )


def test_classes_of_users_keep_their_signatures():
    class Climbing(gs.SGD):
        def __init__(self, params, maximize=True, **others):
            super().__init__(params, maximize=maximize, **others)

    assert [*inspect.signature(Climbing).parameters] == ["params", "maximize", "others"]
    assert Climbing(np.ones(3), lr=0.1).hyperparameters["maximize"]


# Scalars --------------------------------------------------------------------------------------


def test_a_schedule_that_sets_lr():
    x = np.zeros(1)

    def schedule(t):
        opt.lr = 0.5
        return 0.25

    opt = gs.SGD(x, lr=schedule)
    for expected in (-0.25, -0.75, -1.25):
        opt.step(np.ones(1))
        assert x == expected


def test_lr_between_steps_counts_after_an_error_too():
    x = np.zeros(1)
    opt = gs.SGD(x, lr=1.0)
    opt.step(np.ones(1))
    opt.lr = 0.5
    with pytest.raises(ValueError, match="grads must have the shape"):
        opt.step(np.ones(2))
    opt.step(np.ones(1))
    assert x == -1.5


class Key:
    """A key of a dict that does something when it is looked for."""

    hook = None

    def __hash__(self):
        return 7

    def __eq__(self, other):
        hook, Key.hook = Key.hook, None
        if hook:
            hook()
        return isinstance(other, Key)


def test_scalars_of_a_step_that_another_thread_took_are_refused():
    """SAG's row, WindowSAG's place in the ring and a schedule's rate belong to one step."""
    for make_opt, own, other in (
        (lambda p: gs.SAG(p, lr=0.0, rows=2), {"row": 0}, {"row": 1}),
        (lambda p: gs.SAGA(p, lr=0.0, rows=2), {"row": 0}, {"row": 1}),
        (lambda p: gs.WindowSAG(p, lr=0.0, window=2), {}, {}),
        (lambda p: gs.SGD(p, lr=lambda t: 0.0), {}, {}),
    ):
        key = Key()
        opt = make_opt({key: np.zeros(1)})
        first, second = {key: np.full(1, 11.0)}, {Key(): np.full(1, 22.0)}

        def meanwhile(opt=opt, first=first, other=other):
            thread = threading.Thread(target=opt.step, args=(first,), kwargs=other)
            thread.start()
            thread.join()

        Key.hook = meanwhile
        with pytest.raises(RuntimeError, match="another thread is stepping"):
            opt.step(second, **own)
        assert opt.t == 1
        if "y" in opt.state:
            assert sorted(opt.state["y"][key].ravel()) == [0.0, 11.0]
        if "row" in own:
            assert opt.state_dict()["counters"]["seen"].tolist() == [False, True]


def test_a_list_that_changes_the_parameter_when_it_is_read():
    w = np.zeros(3_000)
    opt = gs.SGD([w], lr=0.1)
    g = np.ones(3_000)
    opt.step([g])

    class Shrinking(list):
        def __iter__(self):
            w.resize((10,), refcheck=False)
            return super().__iter__()

    with pytest.raises(ValueError, match="resized"):
        opt.step(Shrinking([g]))


# Denormals ------------------------------------------------------------------------------------

FLUSH = """
import numpy as np, torch
import gradstep as gs
from gradstep import _core, reference
from oracle import RULES, assert_same_bits, hyper_of

def numbers(seed, size, dtype):
    rng = np.random.default_rng(seed)
    tiny = np.finfo(dtype).tiny
    return (rng.standard_normal(size) * tiny * 10.0 ** rng.integers(-3, 4, size)).astype(dtype)

def draw(rule, size, dtype):
    shapes = [RULES[rule].state_shape(name, (size,)) for name in RULES[rule].states]
    states = [np.abs(numbers(2 + i, shape, dtype)) for i, shape in enumerate(shapes)]
    return [numbers(0, size, dtype), *states], numbers(1, size, dtype)

def by_oracle(rule, size, dtype):
    arrays, g = draw(rule, size, dtype)
    torch.set_flush_denormal(True)
    # The kernel multiplies every gradient by its scale, where the oracle leaves a scale of 1 out.
    reference.step(rule, arrays[0], g * dtype(1), arrays[1:], t=2, **hyper_of(rule))
    torch.set_flush_denormal(False)
    return arrays

def natively(rule, size, dtype, flush):
    arrays, g = draw(rule, size, dtype)
    nouns = ["params", "grads", *RULES[rule].states]
    states = [[state] for state in arrays[1:]]
    plan = _core.Plan(rule, arrays[:1], states, nouns, [""], flush_denormals=flush)
    plan.t = 1
    plan.step([g], None, (1, list(hyper_of(rule).values()), 0.0, False, 0))
    return arrays

size = 3 * _core.elements_per_thread + 5
for rule in RULES:
    for dtype in (np.float32, np.float64):
        expected = by_oracle(rule, size, dtype)
        kept = natively(rule, size, dtype, flush=False)
        assert any((a != b).any() for a, b in zip(expected, kept)), rule
        for level, runs in _core.isa_levels().items():
            if runs:
                _core.set_isa(level)
                for threads in (1, 2, 3):
                    gs.set_num_threads(threads)
                    for a, b in zip(natively(rule, size, dtype, flush=True), expected):
                        assert_same_bits(a, b, f"{rule} {level} {threads}")
for dtype in (np.float32, np.float64):
    for scale in (1.0, 0.5):
        _, g = draw("sgd", size, dtype)
        torch.set_flush_denormal(True)
        expected = reference.grad_norm([g], scale)
        torch.set_flush_denormal(False)
        assert 0 < expected < reference.grad_norm([g], scale)
        opt = gs.SGD(np.zeros_like(g), lr=0.0, flush_denormals=True)
        found = opt.step(g, grad_scale=scale, clip_norm=np.inf).grad_norm
        assert found == expected, (dtype, scale)
print("equal")
"""


@pytest.mark.torch
def test_flush_denormals_has_the_bits_of_numpy_with_flushing_on():
    pytest.importorskip("torch")
    assert python(FLUSH) == "equal\n"


def test_flush_denormals_is_scoped():
    """A small step on this thread, a large one on all: NumPy keeps its denormals afterwards."""
    tiny = np.float32(1e-44)
    for size in (10, 4 * SPAN):
        w = np.full(size, tiny)
        gs.SGD(w, lr=1.0, flush_denormals=True).step(np.zeros(size, np.float32))
        assert not w.any(), "a denormal parameter counts as 0"
        w = np.full(size, tiny)
        gs.SGD(w, lr=1.0).step(np.zeros(size, np.float32))
        assert (w == tiny).all(), "without it, nothing is flushed on any thread"
        assert (np.full(size, tiny) * np.float32(1) == tiny).all()


def test_numpy_cannot_flush():
    with pytest.raises(ValueError, match="flush_denormals=True is not possible in NumPy"):
        reference.in_numpy(gs.SGD)(np.ones(3), flush_denormals=True)


# A second opinion -----------------------------------------------------------------------------


@pytest.mark.torch
@every_dtype
def test_clipping_agrees_with_torch(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    shapes = [(7, 5), (300,), (1,), (BLOCK + 1,)]
    start = [mild(rng, math.prod(s), dtype).reshape(s) for s in shapes]
    theirs = [torch.tensor(w, requires_grad=True) for w in start]
    ours = [w.copy() for w in start]
    opts = gs.Adam(ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    tolerance = 1e-5 if dtype == np.float32 else 1e-6  # torch adds 1e-6 to the norm
    for step in range(20):
        grads = [mild(rng, math.prod(s), dtype).reshape(s) for s in shapes]
        for w, g in zip(theirs, grads, strict=True):
            w.grad = torch.tensor(g)
        limit = 30.0 if step % 2 else 1e9
        norm = float(torch.nn.utils.clip_grad_norm_(theirs, limit))
        opts[1].step()
        result = opts[0].step(grads, clip_norm=limit)
        assert result.grad_norm == pytest.approx(norm, rel=1e-5)
        assert result.clipped == (limit == 30.0)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=tolerance, atol=tolerance)


# Memory ---------------------------------------------------------------------------------------


w0 = np.ones(3)


def test_flatten():
    params = {"w": np.arange(6.0).reshape(2, 3), "b": np.ones(()), "none": np.ones((0, 4))}
    arena = gs.flatten(params)
    assert arena.flat.tolist() == [0, 1, 2, 3, 4, 5, 1]
    assert arena.flat.ctypes.data % 64 == 0
    assert arena.flat.flags.c_contiguous
    assert list(arena.views) == list(params)
    for name, view in arena.views.items():
        assert view.shape == params[name].shape
        assert view.dtype == params[name].dtype
        assert view.size == 0 or np.shares_memory(view, arena.flat)
        assert not np.shares_memory(view, params[name])
    arena.views["w"][0, 1] = 7.0
    assert arena.flat[1] == 7.0
    assert params["w"][0, 1] == 1.0
    grads = arena.zeros_like()
    assert not grads.flat.any()
    assert not np.shares_memory(grads.flat, arena.flat)
    assert repr(grads) == "<Arena of 7 float64 in 3 arrays>"
    grads.views["b"][...] = 1.0
    gs.SGD(arena.flat, lr=0.25).step(grads.flat, zero_grad=True)
    assert arena.views["b"] == 0.75
    assert grads.views["b"] == 0.0


def test_copies_of_an_arena_are_arenas():
    arena = gs.flatten({"a": np.arange(3.0), "b": np.ones((2, 2), np.float64)})
    for other in (copy.copy(arena), copy.deepcopy(arena), pickle.loads(pickle.dumps(arena))):
        other.flat[0] = 9.0
        assert other.views["a"][0] == 9.0
        assert arena.flat.tolist() == [0, 1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize("tree", [[np.ones(3), np.ones(2)], (np.ones(2),), np.ones((2, 2))])
def test_flatten_keeps_the_structure(tree):
    arena = gs.flatten(tree)
    assert type(arena.views) is type(tree)
    np.testing.assert_array_equal(arena.flat, np.concatenate([np.ravel(a) for a in tree]))


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ([np.ones(3), np.ones(2, np.float32)], TypeError, "arrays[1] is float32, the first is"),
        (
            [np.ones(3), 2.0],
            TypeError,
            f"arrays[1] {NO_ARRAY}float",
        ),
        (
            np.ones(3, int),
            TypeError,
            "float64, float32, bfloat16, float16, got int64",
        ),
        (
            np.ones(3, ">f4"),
            TypeError,
            "float64, float32, bfloat16, float16, got >f4",
        ),
        ([], ValueError, "arrays is empty"),
        ([w0, w0], ValueError, "arrays[1] is there twice, and an arena would part the two"),
        (3, TypeError, "or be a list, tuple or dict of such arrays, got int"),
    ],
)
def test_flatten_refuses(tree, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gs.flatten(tree)


@pytest.mark.parametrize("cls", CLASSES)
def test_states_lie_beside_their_parameter(cls):
    """At the same place in a cache line, and the large ones not at the same place in a page."""
    room = np.zeros(9000, np.float32)
    params = [room[1:10], np.ones(5), np.ones(1), room[100:8100].reshape(80, 100)]
    params = [as_fits(cls, param) for param in params]
    opt = make(cls, params)
    for arrays in opt.state.values():
        for param, array in zip(params, arrays, strict=True):
            assert (array.ctypes.data - param.ctypes.data) % 64 == 0 or array.size == 0
    kinds = [kind for kind in (params, *opt.state.values()) if kind[3].size == params[3].size]
    large = [arrays[3].ctypes.data % 4096 for arrays in kinds]
    assert len(set(large)) == len(large)


def test_a_plan_keeps_no_scalars_of_a_step_that_raised():
    w, g = np.zeros(2), np.ones(2)
    plan = _core.Plan("sgd", [w], [], ["params", "grads"], [""])
    with pytest.raises(ValueError, match="shape"):
        plan.step([g[:1]], None, (0, [1000.0], 0.0, True, 0))
    with pytest.raises(RuntimeError, match="the first step needs scalars"):
        plan.step([g])
    plan.step([g], None, (0, [1.0], 0.0, False, 0))
    with pytest.raises(ValueError, match="shape"):
        plan.step([g[:1]], None, (1, [1000.0], 0.5, True, 0))
    plan.step([g])
    assert w.tolist() == [-2, -2]


def test_a_plan_of_rows_has_a_row_and_a_parameter():
    w, table, d = np.zeros(2), np.zeros((1, 2)), np.zeros(2)
    nouns = ["params", "grads", "y", "d"]
    for params, states, rows in (([w], [[d], [table]], 0), ([], [[], []], 1)):
        with pytest.raises(ValueError, match="seen must have an item per row"):
            _core.Plan("sag", params, states, nouns, [""][: len(params)], seen=np.zeros(rows, bool))
