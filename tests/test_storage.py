"""Numbers held in fewer bits than the arithmetic has: the oracle's bits, and what rounding is."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, functional, reference
from gradstep._engine.checks import ROUNDINGS
from oracle import LARGE_SIZES, RULES, THREADS, assert_same_bits, hostile, hyper_of, mild

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16, FLOAT32, FLOAT64 = map(np.dtype, (np.float16, np.float32, np.float64))
INT8, UINT8 = map(np.dtype, (np.int8, np.uint8))

ANY_STORAGE = [name for name, rule in RULES.items() if rule.any_storage]
#: Of the parameter, the gradient and the states.
HELD = [
    (FLOAT32, FLOAT32, BFLOAT16),
    (BFLOAT16, BFLOAT16, BFLOAT16),
    (BFLOAT16, FLOAT32, FLOAT32),
    (FLOAT32, BFLOAT16, FLOAT32),
    (FLOAT16, FLOAT16, FLOAT32),
    (FLOAT32, FLOAT32, FLOAT16),
    (BFLOAT16, FLOAT16, FLOAT16),
    (FLOAT64, FLOAT64, FLOAT32),
    (FLOAT64, BFLOAT16, FLOAT64),
    (FLOAT32, FLOAT32, INT8),
    (BFLOAT16, BFLOAT16, INT8),
    (FLOAT16, FLOAT32, INT8),
]
every_held = pytest.mark.parametrize(
    "held", HELD, ids=lambda held: "-".join(dtype.name for dtype in held)
)
SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 33, 64, 65, 255, 256, 257, 511, 512, 513, 2 * 512 + 1)


def narrow(rng, size, dtype, numbers):
    with np.errstate(over="ignore"):
        return numbers(rng, size, np.float64 if dtype == FLOAT64 else np.float32).astype(dtype)


def state_zeros(rule, state, size, dtype):
    if dtype != INT8:
        return np.zeros(size, dtype)
    held = UINT8 if state in RULES[rule].never_negative else INT8
    return np.zeros(reference.blocks_shape(size), held)


def steps(rule, sizes, held, numbers, stochastic, threads, natively, idle=False):
    """A few steps over arrays of these sizes; all that was written to.

    idle: nothing happens to a gradient before its rule.
    """
    rng = np.random.default_rng(len(rule))
    param, grad, state = held
    names = RULES[rule].states
    params = [narrow(rng, size, param, numbers) for size in sizes]
    states = [[state_zeros(rule, name, size, state) for size in sizes] for name in names]
    nouns, suffixes = ["params", "grads", *names], [str(i) for i in range(len(sizes))]
    plan = (_core if natively else reference).Plan(rule, params, states, nouns, suffixes)
    plan.set_rounding(stochastic, 5)
    gs.set_num_threads(threads)
    for t in range(3):
        grads = [narrow(rng, size, grad, numbers) for size in sizes]
        zeroes = t == 1 and not idle
        scalars = (t, [*hyper_of(rule).values()], 0.0 if idle else 0.01, not idle, 0)
        plan.step(grads, None if idle else (0.5, None, 3.0, zeroes), scalars)
        if zeroes:
            assert not any(g.astype(float).any() for g in grads)
    return [*params, *(array for kind in states for array in kind)]


@pytest.mark.covering
@every_held
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("rule", ANY_STORAGE)
def test_every_rule(rule, held, stochastic, level):
    """Many small arrays in one step, of all sizes around those of the pieces."""
    numbers = hostile if stochastic else mild
    arguments = rule, SIZES, held, numbers, stochastic
    actual = steps(*arguments, threads=1, natively=True)
    for a, b in zip(actual, oracle(*arguments), strict=True):
        assert_same_bits(a, b)


def mostly_mild(rng, size, dtype):
    """Of three blocks and more, one has a number that is not finite: not always the same one."""
    x = mild(rng, size, dtype)
    if size > 600:
        x[rng.integers(size)] = np.inf
    return x


@pytest.mark.covering(3)
@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.parametrize(
    "held",
    [(param, param, state) for param in (FLOAT32, BFLOAT16) for state in (BFLOAT16, INT8)],
    ids=lambda held: "-".join(dtype.name for dtype in held),
)
@pytest.mark.parametrize("rule", ANY_STORAGE)
def test_sweeps_in_place(rule, held, idle, level):
    """Where numbers are finite, but for a block."""
    arguments = rule, (256, 513, 2000), held, mostly_mild, True
    actual = steps(*arguments, threads=1, natively=True, idle=idle)
    for a, b in zip(actual, oracle(*arguments, idle=idle), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("stochastic", [True, False])
def test_blocks_of_the_largest_numbers(stochastic, level):
    """A momentum that is the last gradient, up to the largest float32 and over its edge."""
    n, hyper = 2000, {"lr": 1.0, "beta1": 0.5, "beta2": 0.0}
    largest = np.finfo(np.float32).max
    results = []
    for plan_of in (_core.Plan, reference.Plan):
        rng = np.random.default_rng(0)
        w, m = np.zeros(n, np.float32), np.zeros(reference.blocks_shape(n), INT8)
        plan = plan_of("lion", [w], [[m]], ["params", "grads", "m"], [""])
        plan.set_rounding(stochastic, 1)
        for t in range(4):
            g = (largest * rng.uniform(-1, 1, n)).astype(np.float32)
            g[::100] = largest
            plan.step([g], None, (t, [*hyper.values()], 0.0, False, 0))
        results.append((w, m))
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


KNOWN = {}


def oracle(*arguments, idle=False):
    """The same for all levels, so computed once."""
    if (*arguments, idle) not in KNOWN:
        KNOWN.clear()
        KNOWN[(*arguments, idle)] = steps(*arguments, threads=1, natively=False, idle=idle)
    return KNOWN[(*arguments, idle)]


@pytest.mark.covering
@every_held
@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw_amsgrad", "ademamix", "lion"])
def test_threads(rule, held, level):
    arguments = rule, (3, LARGE_SIZES[-1], 1001), held, hostile, True
    for threads in THREADS:
        actual = steps(*arguments, threads=threads, natively=True)
        for a, b in zip(actual, oracle(*arguments), strict=True):
            assert_same_bits(a, b, f"{threads} threads")


@pytest.mark.parametrize("dtype", [INT8, UINT8])
def test_every_code_comes_and_goes(dtype):
    """Of a block of each exponent: what numbers are, and that they become the nearest."""
    codes = np.arange(256)
    exponents = np.arange(256)
    held = np.empty((256, 257), np.uint8)
    held[:, 0], held[:, 1:] = exponents, codes.reshape(4, 64).T.ravel()
    numbers = reference.from_blocks(held.view(dtype), 2**16).reshape(256, 256)
    size = codes % (128 if dtype == INT8 else 256)
    top = 15 if dtype == INT8 else 31
    exponent = np.maximum(exponents | 1, reference.LEAST_EXPONENT) - 127.0
    with np.errstate(over="ignore"):
        powers = 2.0 ** (exponent[:, None] + 1 - top)
        exact = ((1 + size % 8 / 8) * 2.0 ** (size // 8) - 1) * powers
        exact = exact.astype(np.float32)
    last = 127 if dtype == INT8 else 255
    exact[1::2, size == last], exact[1::2, size == last - 1] = np.nan, np.inf
    exact = np.where(codes > last, -exact, exact)
    assert_same_bits(numbers, exact)
    for x, power in zip(exact, exponent - top, strict=True):
        back = reference.from_blocks(reference.to_blocks(x, dtype), 256)
        finite = np.isfinite(x)
        assert_same_bits(back[~finite], x[~finite])
        off = np.abs(back[finite].astype(float) - x[finite])
        assert (off <= np.maximum(np.abs(x[finite].astype(float)) / 8, 2.0**power)).all()


@pytest.mark.parametrize("dtype", [INT8, UINT8])
def test_ties_in_8_bits_go_to_the_even_code(dtype, level):
    """Numbers half-way between neighbours, through a step whose states are the last gradient."""
    codes = np.arange(120 if dtype == INT8 else 248, dtype=np.uint8)  # below the next exponent
    block = np.zeros((1, 257), np.uint8)
    block[0, 0] = 126
    block[0, 1:].reshape(64, 4).T.flat[: codes.size] = codes
    numbers = reference.from_blocks(block.view(dtype), codes.size)
    ties = np.append((numbers[:-1] + numbers[1:]) / 2, numbers[-1])
    even = np.append(numbers[:-1] + np.where(codes[:-1] % 2, np.diff(numbers), 0), numbers[-1])
    if dtype == UINT8:
        even[0] = numbers[1]  # a number that is not 0 does not become 0
    w, g = np.zeros(ties.size, np.float32), ties.copy()
    m, u = (state_zeros("adamax", state, ties.size, INT8) for state in ("m", "u"))
    functional.adamax(w, g, m, u, t=1, beta1=0.0, beta2=0.0, eps=1e-30, rounding="nearest")
    assert_same_bits(reference.from_blocks(m if dtype == INT8 else u, ties.size), even)
    assert_same_bits(reference.from_blocks(reference.to_blocks(ties, dtype), ties.size), even)


@pytest.mark.parametrize("dtype", [INT8, UINT8])
@pytest.mark.parametrize("largest", [1.0, 3.9, 3e38, 1e-20])
def test_blocks_have_the_right_mean(dtype, largest):
    """Numbers of all sizes down to a thousandth of the largest, and how far they may be off."""
    rng = np.random.default_rng(0)
    x = np.float32(largest) * rng.uniform(0, 1, 2**10).astype(np.float32) ** 2
    if dtype == INT8:
        x *= rng.choice(np.float32([-1, 1]), x.size)
    draws = 2000
    seen = np.zeros(x.size)
    for t in range(draws):
        chance = reference.block_random_bits(1, t, 0, 1, x.size)
        back = reference.from_blocks(reference.to_blocks(x, dtype, chance), x.size)
        step = np.maximum(np.abs(x) / 4, largest * 2.0**-15)
        assert (np.abs(back - x) <= step).all()
        seen += back
    deviation = np.abs(seen / draws - x) / step
    assert deviation.max() < 5 / np.sqrt(draws)
    assert deviation.mean() < 1 / np.sqrt(draws)


def test_no_square_becomes_0():
    x = np.float32([1.0, 1e-20, 0.0, 1e-44])
    for chance in (None, np.zeros((1, 256), np.uint32)):
        back = reference.from_blocks(reference.to_blocks(x, UINT8, chance), 4)
        assert (back > 0).tolist() == [True, True, False, True]


def test_block_chances_differ():
    """Between the elements of a block, which share them two by two."""
    drawn = np.array([reference.block_random_bits(0, t, 0, 1, 256)[0] for t in range(4000)])
    correlations = np.corrcoef((drawn >> 12).T) - np.eye(256)
    assert np.abs(correlations).max() < 6 / np.sqrt(4000)
    assert drawn.min() >= 0
    assert 2**20 - 2000 < drawn.max() < 2**20


def patterns(dtype):
    return np.arange(2**16, dtype=np.uint16).view(dtype)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_every_number_comes_and_goes(dtype, level):
    """All 65,536 patterns, through a step that changes nothing."""
    for rounding in ROUNDINGS:
        w = patterns(dtype).copy()
        gs.SGD(w, lr=0.0, rounding=rounding).step(np.zeros(w.size, np.float32))
        assert_same_bits(w.astype(np.float32), patterns(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_nearest_is_that_of_others(dtype, level):
    """Against NumPy and ml_dtypes: around each number, half-way, and at each end."""
    numbers = patterns(dtype).astype(np.float32)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    with np.errstate(all="ignore"):
        middle = numbers[:-1] + (numbers[1:] - numbers[:-1]) / 2
    special = np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 65504, 65519, 65520, 1e-45], "f4")
    x = np.concatenate([f(middle, side) for f in (np.nextafter,) for side in (-np.inf, np.inf)])
    x = np.concatenate([x, middle, numbers, special]).astype(np.float32)
    w = np.zeros(x.size, dtype)
    gs.SGD(w, lr=1.0, maximize=True, rounding="nearest").step(x)
    with np.errstate(all="ignore"):
        assert_same_bits(w.astype(np.float32), (0 + x).astype(dtype).astype(np.float32))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@hypothesis.given(
    x=st.floats(width=32, allow_nan=False), seed=st.integers(0, 2**53), size=st.integers(1, 999)
)
def test_stochastic_takes_a_neighbour(dtype, x, seed, size):
    w = np.zeros(size, dtype)
    g = np.full(size, x, np.float32)
    gs.SGD(w, lr=1.0, maximize=True, rounding_seed=seed).step(g)
    with np.errstate(all="ignore"):
        nearest = np.array([x], np.float32).astype(dtype)
        down, up = (np.nextafter(nearest, np.array(s).astype(dtype)) for s in (-np.inf, np.inf))
        lower = np.where(nearest.astype("f4") <= np.float32(x), nearest, down).astype(np.float32)
        upper = np.where(nearest.astype("f4") >= np.float32(x), nearest, up).astype(np.float32)
    assert np.isin(w.astype(np.float32), [lower, upper]).all()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize("size", [1.0, -300.0, 2.0**-20])
def test_stochastic_has_the_right_mean(dtype, size):
    """Each share of the way, and no two buffers, steps, arrays or neighbours by the same chance."""
    n = 2**18
    lower = np.array([size]).astype(dtype)
    upper = np.nextafter(lower, np.array(2 * size).astype(dtype)).astype(np.float64)[0]
    lower = lower.astype(np.float64)[0]
    for share in (1 / 16, 1 / 3, 0.5, 0.9):
        w = np.zeros(n, dtype)
        x = np.full(n, lower + share * (upper - lower), np.float32)
        gs.SGD(w, lr=1.0, maximize=True, rounding_seed=3).step(x)
        went_up = w.astype(np.float64) == upper
        deviation = np.sqrt(share * (1 - share) / n)
        assert abs(went_up.mean() - share) < 5 * deviation
        pairs = went_up.reshape(-1, 2)
        together = (pairs[:, 0] & pairs[:, 1]).mean()
        assert abs(together - share**2) < 5 * np.sqrt(share**2 / (n / 2))


def test_chances_differ():
    """Between steps, seeds, arrays and buffers."""
    n = 2**14
    drawn = [
        reference.random_bits(seed, t, array, buffer, n).astype(float)
        for seed in (0, 1)
        for t in (1, 2)
        for array in (0, 1)
        for buffer in (0, 1, 2)
    ]
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 6 / np.sqrt(n)


def test_training_in_bfloat16():
    """Whose history has the norm of the gradients as exact numbers have it."""
    n = 3000
    gradient = np.full(n, 0.1, BFLOAT16)

    def loss_and_grad(w, x):
        return float((w.astype(np.float64) ** 2).mean()), gradient

    w = np.ones(n, BFLOAT16)
    history = gs.train(gs.SGD(w, lr=0.1), loss_and_grad, (np.ones(4),), epochs=2, progress=False)
    exact = np.sqrt(n) * float(gradient[0])
    np.testing.assert_allclose(history["grad_norm"], exact, rtol=1e-6)
    assert history["loss"][1] < history["loss"][0] == 1


@pytest.mark.parametrize("held", HELD[:2])
def test_a_part_of_an_array(held, level):
    """Told its place, it has the bits that it has in the whole."""
    n, at = 5003, 2 * 512
    rng = np.random.default_rng(0)
    whole, grad = (narrow(rng, n, dtype, mild) for dtype in held[:2])
    states = [np.zeros(n, held[2]) for _ in range(2)]
    part = [array[at:].copy() for array in (whole, *states)]
    scalars = [*hyper_of("adam").values()], 0.01, False, 0
    for params, place in [([whole, *states], (2, 0)), (part, (2, at))]:
        w, *kinds = params
        plan = _core.Plan("adam", [w], [[x] for x in kinds], ["w", "g", "m", "v"], [""])
        plan.set_rounding(True, 5, *place)
        for t in range(2):
            plan.step([grad[place[1] :]], None, (t, *scalars))
    for a, b in zip(part, [whole, *states], strict=True):
        assert_same_bits(a, b[at:])
    with pytest.raises(ValueError, match="first must be a multiple of 512, got 100"):
        plan.set_rounding(True, 5, 0, 100)


@pytest.mark.parametrize("grad", [FLOAT32, BFLOAT16])
def test_pairs_beyond_32_bits(grad):
    """No array here is so large, but parts of one can say so."""
    far, last = 2**33, 1024
    results = []
    for make in (_core.Plan, reference.Plan):
        w = np.ones(2 * last, BFLOAT16)
        plan = make("sgd", [w], [], ["w", "g"], [""])
        plan.set_rounding(True, 1, 3, far - last)
        plan.step([np.full(w.size, 0.3, grad)], None, (0, [0.01], 0.0, False, 0))
        results.append(w)
    assert_same_bits(*results)


def test_functions_round_too():
    results = []
    for rounding, seed in [("stochastic", 0), ("stochastic", 1), ("nearest", 0)]:
        w, m, v = np.ones(99, np.float32), np.zeros(99, BFLOAT16), np.zeros(99, BFLOAT16)
        g = np.full(99, 0.3, np.float32)
        functional.adam(w, g, m, v, t=1, rounding=rounding, rounding_seed=seed)
        v2 = np.zeros(99, BFLOAT16)
        w2, m2 = np.ones(99, np.float32), np.zeros(99, BFLOAT16)
        stochastic = rounding == "stochastic"
        hyper = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "bias_correction": True}
        reference.stored_step(
            "adam", w2, g, [m2, v2], t=1, stochastic=stochastic, seed=seed, **hyper
        )
        assert_same_bits(v, v2)
        results.append(v.tobytes())
    assert len(set(results)) == 3


def test_what_small_steps_come_to():
    """The reason for chance: a mean of squares that hardly moves is lost to the nearest."""
    n, beta2 = 4096, 0.999
    reached = {}
    for rounding in ROUNDINGS:
        opt = gs.Adam(np.zeros(n, np.float32), lr=0.0, state_dtype="bfloat16", rounding=rounding)
        for _ in range(2000):
            opt.step(np.ones(n, np.float32))
        reached[rounding] = opt.state["v"].astype(float).mean()
    exact = 1 - beta2**2000
    assert abs(reached["stochastic"] / exact - 1) < 0.01
    assert reached["nearest"] < 0.6 * exact


@pytest.mark.parametrize("cls", [gs.SGD, gs.Adam, gs.Lion, gs.ScheduleFreeAdamW, gs.ASGD])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_classes_are_the_oracle(cls, clip_norm, level):
    rng = np.random.default_rng(0)
    for dtype, state_dtype in [(FLOAT32, "bfloat16"), (BFLOAT16, None), (FLOAT16, "float32")]:
        shapes = {"a": (300, 7), "b": (), "c": (1025,)}
        first = {k: np.asarray(rng.standard_normal(s)).astype(dtype) for k, s in shapes.items()}
        results = []
        for make in (cls, reference.in_numpy(cls)):
            params = {k: v.copy() for k, v in first.items()}
            opt = make(params, lr=0.01, state_dtype=state_dtype, rounding_seed=1)
            draw = np.random.default_rng(1)
            for _ in range(3):
                grads = {
                    k: np.asarray(draw.standard_normal(s)).astype(np.float16)
                    for k, s in shapes.items()
                }
                opt.step(grads, clip_norm=clip_norm, grad_scale=0.25)
            results.append([*params.values(), *(v for s in opt.state.values() for v in s.values())])
        for a, b in zip(*results, strict=True):
            assert_same_bits(a, b)


def test_files_keep_the_dtypes(tmp_path):
    def make(state_dtype="bfloat16", **options):
        w = np.ones(100, BFLOAT16)
        return w, gs.Adam(w, lr=0.1, state_dtype=state_dtype, **options)

    g = np.linspace(-1, 1, 100).astype(np.float32)
    w, opt = make(rounding_seed=3)
    opt.step(g)
    opt.save(tmp_path / "state")
    opt.step(g)
    again, resumed = make()
    resumed.load(tmp_path / "state")
    resumed.step(g)
    assert_same_bits(again, w)
    assert resumed.hyperparameters["rounding_seed"] == 3
    wide, opt32 = make("float32")
    with pytest.raises(ValueError, match=r"state m is bfloat16 of shape .*, not float32"):
        opt32.load(tmp_path / "state")
    assert (wide == 1).all()
    assert opt32.t == 0
    opt32.load(tmp_path / "state", convert=True)
    assert opt32.t == 1
    assert opt32.state["v"].dtype == FLOAT32
    plain = gs.Adam(np.ones(100, np.float32), lr=0.1)
    plain.load_state_dict(opt32.state_dict(), convert=True)
    assert "rounding" not in plain.hyperparameters
    opt32.load_state_dict(plain.state_dict(), convert=True)
    with pytest.raises(ValueError, match="hyperparameters does not fit"):
        opt32.load_state_dict(plain.state_dict())


CLASSES_IN_8_BITS = [
    (gs.Adam, {}),
    (gs.AdamW, {"amsgrad": True}),
    (gs.Adagrad, {"initial_accumulator_value": 0.1}),
    (gs.Nesterov, {"lr": 0.1}),
    (gs.Lion, {}),
    (gs.Rprop, {}),
    (gs.ASGD, {"t0": 1}),
    (gs.ScheduleFreeAdamW, {}),
]
SHAPES = {"large": (4096,), "small": (4095,), "matrix": (3, 4097), "none": (0,)}


@pytest.mark.parametrize(("cls", "options"), CLASSES_IN_8_BITS)
def test_classes_in_8_bits(cls, options, tmp_path, level):
    """As the oracle, as on disk, and as from a file."""
    results = []
    for way in ("native", "numpy", "disk", "file"):
        rng = np.random.default_rng(0)
        params = {k: rng.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}
        make = reference.in_numpy(cls) if way == "numpy" else cls
        held = {"state_dtype": "int8", "rounding_seed": 9}
        beside = {"state_dir": tmp_path} if way == "disk" else {}
        opt = make(params, **options, **held, **beside)
        assert opt.state[next(iter(opt.state))]["small"].dtype == FLOAT32
        for t in range(3):
            grads = {k: rng.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}
            opt.step(grads, clip_norm=2.0)
            if way == "file" and t == 0:
                opt.save(tmp_path / "file")
                opt = cls(params, **options, **held)
                opt.load(tmp_path / "file")
        for state, arrays in opt.state.items():
            dtype = UINT8 if state in RULES[opt.rule].never_negative else INT8
            assert (arrays["large"].dtype, arrays["large"].shape) == (dtype, (16, 257))
        results.append([*params.values(), *(a for s in opt.state.values() for a in s.values())])
        if isinstance(opt, gs.ScheduleFreeAdamW):
            opt.eval()
            results[-1] += [*params.values()]
        if isinstance(opt, gs.ASGD):
            results[-1] += [*opt.average().values()]
        if isinstance(opt, gs.Nesterov):
            results[-1] += [*opt.position().values()]
            opt.settle()
            assert not any(v.any() for v in opt.state["v"].values())
    for others in results[1:]:
        for a, b in zip(others, results[0], strict=True):
            assert_same_bits(np.asarray(a), b)


def test_what_8_bits_begin_with():
    """The nearest number, in every block, and zeros after the last."""
    opt = gs.Adagrad(np.ones(5000, np.float32), initial_accumulator_value=0.3, state_dtype="int8")
    held = opt.state["s"]
    exact = reference.to_blocks(np.full(5000, 0.3, np.float32), UINT8)
    assert_same_bits(held, exact)
    numbers = reference.from_blocks(held, 20 * 256)
    assert np.abs(numbers[:5000] / 0.3 - 1).max() < 1 / 16
    assert not numbers[5000:].any()


def test_files_of_8_bits_are_converted_when_asked(tmp_path):
    def make(state_dtype, size=5000):
        return gs.Adam(np.ones(size, np.float32), lr=0.1, state_dtype=state_dtype)

    opt, wide = make("int8"), make("float32")
    opt.step(np.linspace(-1, 1, 5000).astype(np.float32))
    opt.save(tmp_path / "narrow")
    with pytest.raises(ValueError, match="does not fit"):
        wide.load(tmp_path / "narrow")
    wide.load(tmp_path / "narrow", convert=True)
    for state in ("m", "v"):
        assert_same_bits(wide.state[state], reference.from_blocks(opt.state[state], 5000))
    wide.state["v"][[3, 4]] = 0.0, -0.0  # which is not negative
    wide.save(tmp_path / "wide")
    again = make("int8")
    again.load(tmp_path / "wide", convert=True)
    for state in ("m", "v"):
        nearest = reference.to_blocks(wide.state[state], opt.state[state].dtype)
        assert_same_bits(again.state[state], nearest)
    wide.state["v"][5] = -1e-9
    with pytest.raises(ValueError, match="state v holds negative numbers"):
        again.load_state_dict(wide.state_dict(), convert=True)
    half = make("float16")
    half.load(tmp_path / "narrow", convert=True)
    assert half.state["v"].dtype == FLOAT16
    before = [array.copy() for array in again._arrays()]
    with pytest.raises(ValueError, match=r"params is float32 of shape .*, not float32 of shape"):
        make("float32", 5001).load(tmp_path / "narrow", convert=True)
    small = make("int8", 100)
    small.save(tmp_path / "small")
    with pytest.raises(ValueError, match="params is float32 of shape"):
        again.load(tmp_path / "small", convert=True)
    for a, b in zip(again._arrays(), before, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_8_bits_beyond_the_end_do_not_count(dtype, level):
    """Codes behind the last element, as a checkpoint can have them, do not scale its block."""
    outcomes = []
    for beyond in (0.0, 1e6):
        numbers = np.zeros(768, np.float32)
        numbers[600:] = beyond
        w, g = np.ones(600, dtype), np.linspace(1, 2, 600).astype(dtype)
        m, v = reference.to_blocks(numbers, INT8), reference.to_blocks(numbers, UINT8)
        for t in (1, 2):
            functional.adam(w, g, m, v, t=t)
        outcomes.append([w, m, v])
    for ours, expected in zip(*outcomes, strict=True):
        assert_same_bits(ours, expected)


NANS = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF80FFFF] * 13, np.uint32)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize(
    ("dtype", "state_dtype"),
    [
        (BFLOAT16, "bfloat16"),
        (FLOAT16, "float16"),
        (FLOAT32, "bfloat16"),
        (FLOAT32, "float16"),
        (FLOAT32, "int8"),
    ],
)
def test_nan_stays_nan_whatever_its_payload(dtype, state_dtype, rounding, level):
    """All of it can be in the bits that are rounded away, or in the others. The buffer begins as
    the gradient itself, with no arithmetic that would make a NaN a quiet one."""
    g = np.resize(NANS.view(np.float32), 5001)
    w = np.ones(5001, dtype)
    opt = gs.SGD(w, lr=0.1, momentum=0.9, state_dtype=state_dtype, rounding=rounding)
    opt.step(g)
    (buffer,) = opt._states.numbers("b")
    assert np.isnan(buffer.astype("f4")).all()
    assert np.isnan(w.astype("f4")).all()


def test_8_bits_hold_what_is_not_finite(level):
    """Where it is, and the numbers beside it."""
    w, m, v = np.ones(600, np.float32), *(state_zeros("adam", s, 600, INT8) for s in "mv")
    g = np.full(600, 0.5, np.float32)
    g[[3, 300]] = np.nan, np.inf
    functional.adam(w, g, m, v, t=1)
    for state, number in (m, 0.05), (v, 0.00025):
        back = reference.from_blocks(state, 600)
        assert np.flatnonzero(np.isnan(back)).tolist() == [3]
        assert np.flatnonzero(np.isinf(back)).tolist() == [300]
        others = np.delete(back, [3, 300])
        assert (np.abs(others / number - 1) < 1 / 8).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"state_dtype": "int32"}, TypeError, "state_dtype must be one of .*, got 'int32'"),
        ({"state_dtype": "uint8"}, TypeError, "state_dtype must be one of .* int8, got 'uint8'"),
        ({"state_dtype": "bfloat"}, TypeError, "state_dtype must be one of .*, got 'bfloat'"),
        ({"state_dtype": ">f4"}, TypeError, "state_dtype must be one of .*, got '>f4'"),
        ({"state_dtype": "float64"}, TypeError, "state m cannot have dtype float64 beside params"),
        ({"rounding": "up"}, ValueError, "rounding must be one of .*, got 'up'"),
        ({"rounding_seed": -1}, ValueError, "rounding_seed must be at least 0, got -1"),
        ({"rounding_seed": 0.5}, TypeError, "rounding_seed must be a whole number, got 0.5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        gs.Adam(np.ones(3, np.float32), **arguments)


def test_what_does_not_go():
    w = np.ones((4, 3), np.float32)
    with pytest.raises(TypeError, match="LAMB cannot have a state_dtype, because its steps depend"):
        gs.LAMB(w, state_dtype="bfloat16")
    with pytest.raises(TypeError, match="SparseAdam cannot have a state_dtype, because"):
        gs.SparseAdam(w, state_dtype="bfloat16")
    with pytest.raises(TypeError, match="params must have dtype float32 or float64 for lamb, got"):
        gs.LAMB(w.astype(BFLOAT16))
    with pytest.raises(TypeError, match="beside params, which is float64"):
        gs.Adam(np.ones(3), state_dtype="bfloat16")
    with pytest.raises(TypeError, match=r"params\[1\] is float64, which takes no states in 8 bits"):
        gs.Adam([w, np.ones(3)], state_dtype="int8")
    with pytest.raises(TypeError, match=r"params must have dtype float32, .*, got int8"):
        gs.Adam(np.ones(5000, np.int8))
    blocks = np.zeros((1, 257), np.int8), np.zeros((1, 257), np.uint8)
    for states, message in [
        (blocks[::-1], "m cannot have dtype uint8 beside param"),
        ((blocks[0], np.zeros((2, 257), np.uint8)), r"v must have the shape \(1, 257\), got \(2,"),
        ((blocks[0], np.zeros(12, np.uint8)), r"v must have the shape \(1, 257\), got \(12,\)"),
        ((blocks[0], blocks[0].view(np.uint8)), "v shares memory with m"),
        ((blocks[0], np.zeros((1, 514), np.uint8)[:, ::2]), "v must be C-contiguous"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            functional.adam(w, np.ones((4, 3), np.float32), *states)
    assert (w == 1).all()
    opt = gs.Adam(w)
    with pytest.raises(TypeError, match="grads must not be wider than the arithmetic of params"):
        opt.step(np.ones((4, 3)))
    with pytest.raises(TypeError, match="got int32"):
        opt.step(np.ones((4, 3), np.int32))
    opt.step(np.ones((4, 3), BFLOAT16), clip_norm=1.0)
    opt.step(np.ones((4, 3), np.float32))
    assert opt.t == 2


def test_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match=r"pip install 'gradstep\[bfloat16\]'"):
        gs.Adam(np.ones(3, np.float32), state_dtype="bfloat16")
