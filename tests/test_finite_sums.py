"""SAG and its family against plain loops, closed forms, and themselves after an interruption."""

from __future__ import annotations

import collections
import re
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, reference
from gradstep._engine import memory
from oracle import (
    DTYPES,
    NO_ARRAY,
    SPAN,
    THREADS,
    assert_same_bits,
    beside,
    full_gradient,
    mild,
    needed,
)

NAN, INF = float("nan"), float("inf")
ROW_CLASSES = (gs.SAG, gs.SAGA)
TABLE_CLASSES = (gs.WindowSAG, *ROW_CLASSES)
every_row_class = pytest.mark.parametrize("cls", ROW_CLASSES)
every_table_class = pytest.mark.parametrize("cls", TABLE_CLASSES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arrays_of(opt):
    """Copies of everything: parameters, states, counters and t."""
    return [*(array.copy() for array in opt._arrays()), np.array(opt.t)]


def assert_same_state(opt, kept):
    for actual, expected in zip(arrays_of(opt), kept, strict=True):
        assert_same_bits(actual, expected)


class LeastSquares:
    """The mean over rows i of r_i / 2 (x_i w - y_i)^2, plus decay / 2 |w|^2, plus l1 |w|_1."""

    def __init__(self, rows=30, size=4, seed=0, weights=None, decay=0.05):
        rng = np.random.default_rng(seed)
        self.x, self.y = rng.standard_normal((rows, size)), rng.standard_normal(rows)
        self.weights = np.ones(rows) if weights is None else np.asarray(weights, float)
        self.rows, self.size, self.decay = rows, size, decay

    @property
    def curvature(self):
        """The largest of a row."""
        scale = self.weights / self.weights.mean()
        return float((scale * (self.x**2).sum(axis=1)).max()) + self.decay

    def gradient(self, w, row):
        return self.x[row] * (self.x[row] @ w - self.y[row])

    def full_gradient(self, w):
        return self.x.T @ (self.weights * (self.x @ w - self.y)) / self.weights.sum()

    def optimum(self):
        hessian = self.x.T @ (self.weights[:, None] * self.x) / self.weights.sum()
        return np.linalg.solve(
            hessian + self.decay * np.eye(self.size),
            self.x.T @ (self.weights * self.y) / self.weights.sum(),
        )


def descend(problem, opt, steps):
    for _ in range(steps):
        w = opt.params
        if isinstance(opt, gs.SVRG):
            row = int(np.random.default_rng(opt.t).integers(problem.rows))
            opt.step(problem.gradient(w, row), problem.gradient(opt.snapshot, row))
        else:
            row = opt.next_row()
            opt.step(problem.gradient(w, row), row)


# Plain loops ----------------------------------------------------------------------------------


def plain_sag(problem, rows, lr, weights, decay):
    w, stored = np.zeros(problem.size), {}
    for row in rows:
        stored[row] = problem.gradient(w, row)
        mean = sum(weights[i] * y for i, y in stored.items()) / sum(weights[i] for i in stored)
        w = w - lr * decay * w - lr * mean
    return w


def plain_saga(problem, rows, lr, weights, decay, l1):
    w, stored = np.zeros(problem.size), {}
    for row in rows:
        new, old = problem.gradient(w, row), stored.get(row, np.zeros(problem.size))
        stored[row] = new
        m = sum(weights[i] for i in stored)
        mean = sum(weights[i] * y for i, y in stored.items()) / m
        direction = (len(stored) - 1) * weights[row] / m * (new - old) + mean
        w = w - lr * decay * w - lr * direction
        w = np.sign(w) * np.maximum(np.abs(w) - lr * l1, 0)
    return w


def plain_window(problem, rows, lr, window):
    w, last = np.zeros(problem.size), collections.deque(maxlen=window)
    for row in rows:
        last.append(problem.gradient(w, row))
        w = w - lr * sum(last) / len(last)
    return w


def plain_svrg(problem, rows, lr, decay, every):
    w = np.zeros(problem.size)
    for t, row in enumerate(rows):
        if t % every == 0:
            snapshot, full = w, problem.full_gradient(w)
        correction = full - problem.gradient(snapshot, row)
        w = w - lr * decay * w - lr * (problem.gradient(w, row) + correction)
    return w


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l1", [0.0, 0.05])
def test_saga_is_its_plain_loop(weighted, l1):
    problem = LeastSquares()
    weights = np.random.default_rng(1).uniform(0.2, 3, problem.rows) if weighted else None
    opt = gs.SAGA(
        np.zeros(4), lr=0.02, rows=30, l1=l1, weight_decay=0.1, row_weights=weights, seed=5
    )
    rows = []
    for _ in range(200):
        rows.append(opt.next_row())
        opt.step(problem.gradient(opt.params, rows[-1]), rows[-1])
    weights = np.ones(problem.rows) if weights is None else weights
    expected = plain_saga(problem, rows, 0.02, weights, 0.1, l1)
    np.testing.assert_allclose(opt.params, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
def test_sag_is_its_plain_loop(weighted):
    problem = LeastSquares()
    weights = np.random.default_rng(1).uniform(0.2, 3, problem.rows) if weighted else None
    opt = gs.SAG(np.zeros(4), lr=0.02, rows=30, weight_decay=0.1, row_weights=weights)
    rows = np.random.default_rng(2).integers(30, size=200).tolist()
    for row in rows:
        opt.step(problem.gradient(opt.params, row), row)
    weights = np.ones(problem.rows) if weights is None else weights
    expected = plain_sag(problem, rows, 0.02, weights, 0.1)
    np.testing.assert_allclose(opt.params, expected, rtol=1e-12, atol=1e-14)


def test_window_sag_is_its_plain_loop():
    problem = LeastSquares()
    opt = gs.WindowSAG(np.zeros(4), lr=0.01, window=7)
    rows = np.random.default_rng(2).integers(30, size=200).tolist()
    for row in rows:
        opt.step(problem.gradient(opt.params, row))
    expected = plain_window(problem, rows, 0.01, 7)
    np.testing.assert_allclose(opt.params, expected, rtol=1e-12, atol=1e-14)


def test_svrg_is_its_plain_loop():
    problem = LeastSquares()
    opt = gs.SVRG(np.zeros(4), 0.02, problem.full_gradient, every=17, weight_decay=0.1)
    rows = np.random.default_rng(2).integers(30, size=200).tolist()
    for row in rows:
        opt.step(problem.gradient(opt.params, row), problem.gradient(opt.snapshot, row))
    expected = plain_svrg(problem, rows, 0.02, 0.1, 17)
    np.testing.assert_allclose(opt.params, expected, rtol=1e-12, atol=1e-14)


@hypothesis.given(data=st.data())
def test_any_visits_leave_the_sum_of_what_is_stored(data):
    """Gradients and weights are whole numbers, so every sum is exact, in any order."""
    rows, dtype = data.draw(st.integers(1, 6)), data.draw(st.sampled_from(DTYPES))
    cls = data.draw(st.sampled_from(ROW_CLASSES))
    weights = data.draw(st.none() | st.lists(st.integers(1, 9), min_size=rows, max_size=rows))
    table = data.draw(st.none() | st.just(np.full((rows, 2), np.nan, dtype)))
    opt = cls(np.zeros(2, dtype), lr=0.0, rows=rows, row_weights=weights, table=table)
    stored: dict[int, np.ndarray] = {}
    number = st.integers(-99, 99)
    for _ in range(data.draw(st.integers(0, 12))):
        row = data.draw(st.integers(0, rows - 1))
        if data.draw(st.booleans()):
            opt.forget(row)
            stored.pop(row, None)
        else:
            stored[row] = np.array([data.draw(number), data.draw(number)], dtype)
            opt.step(stored[row], row)
        weight = dict(enumerate(weights or [1] * rows))
        expected = sum((weight[i] * y for i, y in stored.items()), np.zeros(2))
        np.testing.assert_array_equal(opt.state["d"], expected)
        assert opt._tallied(opt.t) == (len(stored), sum(weight[i] for i in stored))
        np.testing.assert_array_equal(np.flatnonzero(opt._seen), sorted(stored))
        for i, y in stored.items():
            np.testing.assert_array_equal(opt.state["y"][i], y)


# What they converge to --------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, np.random.default_rng(3).integers(1, 6, 30)])
def test_convergence_to_the_closed_form(weights):
    problem = LeastSquares(weights=weights)
    options = {"weight_decay": problem.decay}
    opts = [
        gs.SAG(np.zeros(4), 1 / problem.curvature, 30, row_weights=weights, **options),
        gs.SAGA(np.zeros(4), 1 / (3 * problem.curvature), 30, row_weights=weights, **options),
    ]
    if weights is None:
        lr = 1 / (10 * problem.curvature)
        opts.append(gs.SVRG(np.zeros(4), lr, problem.full_gradient, every=60, **options))
    for opt in opts:
        descend(problem, opt, 30 * 400)
        np.testing.assert_allclose(opt.params, problem.optimum(), rtol=1e-9, err_msg=opt.rule)


@every_row_class
def test_a_weight_of_two_is_a_row_twice(cls):
    problem = LeastSquares(rows=12)
    weights = np.where(np.arange(12) == 4, 2.0, 1.0)
    weighted = cls(np.zeros(4), 0.03, 12, row_weights=weights)
    descend(problem, weighted, 12 * 1500)
    problem.x, problem.y = (np.concatenate([a, a[4:5]]) for a in (problem.x, problem.y))
    problem.rows = 13
    twice = cls(np.zeros(4), 0.03, 13)
    descend(problem, twice, 13 * 1500)
    np.testing.assert_allclose(weighted.params, twice.params, rtol=1e-9)
    problem = LeastSquares(rows=12)
    problem.decay = 0
    assert np.abs(weighted.params - problem.optimum()).max() > 1e-3  # and the weight counts


def test_saga_with_l1_meets_the_conditions_of_its_optimum():
    problem, l1 = LeastSquares(size=8), 0.15
    opt = gs.SAGA(np.zeros(8), 1 / (3 * problem.curvature), 30, l1=l1, weight_decay=problem.decay)
    descend(problem, opt, 30 * 400)
    w = opt.params
    slope = problem.full_gradient(w) + problem.decay * w
    assert 0 < np.count_nonzero(w) < 8
    np.testing.assert_allclose(slope[w != 0], -l1 * np.sign(w[w != 0]), rtol=1e-8)
    assert (np.abs(slope[w == 0]) <= l1).all()


def test_a_step_of_saga_is_unbiased():
    """Its mean over rows drawn uniformly is the step of the full gradient, for any weights."""
    problem = LeastSquares(weights=np.random.default_rng(4).uniform(0.1, 5, 30))
    opt = gs.SAGA(np.zeros(4), 0.02, 30, row_weights=problem.weights)
    for row in range(30):
        opt.step(problem.gradient(opt.params, row), row)
    state, start = opt.state_dict(), opt.params.copy()
    ends = []
    for row in range(30):
        opt.load_state_dict(state)
        opt.params[...] = start
        opt.step(problem.gradient(start, row), row)
        ends.append(opt.params.copy())
    expected = start - 0.02 * problem.full_gradient(start)
    np.testing.assert_allclose(np.mean(ends, axis=0), expected, rtol=1e-12)


def test_saga_without_l1_keeps_every_number():
    """Thresholding by 0 would make -0 a 0."""
    for l1, sign in ((0.0, True), (0.5, False)):
        w = np.array([-0.0])
        gs.SAGA(w, lr=0.0, rows=2, l1=l1).step(np.ones(1), 0)
        assert np.signbit(w[0]) == sign


# Summing again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [0.3, 1.0, 2.5]])
def test_sums_have_the_oracles_bits(weights, level):
    """Any threads; arrays of both dtypes, more and less than a block, rows that were never seen."""
    sizes = [5, 2 * SPAN + 3, 0, 4095, 1]
    for cls in (gs.WindowSAG, gs.SAG, gs.SAGA):
        options = {"window": 3} if cls is gs.WindowSAG else {"rows": 3, "row_weights": weights}
        outcomes = []
        for make, all_threads in ((cls, THREADS), (reference.in_numpy(cls), (1,))):
            for threads in all_threads:
                gs.set_num_threads(threads)
                rng = np.random.default_rng(0)
                params = [mild(rng, n, DTYPES[i % 2]) for i, n in enumerate(sizes)]
                opt = make(params, lr=0.1, **options)
                for t in range(6):  # row 1 is seen in the second epoch only
                    grads = [mild(rng, p.size, p.dtype) for p in params]
                    row = {} if cls is gs.WindowSAG else {"row": [0, 2, 0, 1, 1, 2][t]}
                    opt.step(grads, **row)
                outcomes.append(opt._arrays())
        for outcome in outcomes:
            for actual, expected in zip(outcome, outcomes[-1], strict=True):
                assert_same_bits(actual, expected)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 25])
def test_many_rows_are_summed_in_their_order(rows, level):
    rng = np.random.default_rng(rows)
    table = (rng.standard_normal((rows, 300)) * 10.0 ** rng.integers(-20, 20, (rows, 300))).astype(
        "f"
    )
    seen = rng.random(rows) < 0.7
    seen[-1] = True
    weights = rng.uniform(0.1, 9, rows)
    d = np.zeros(300, np.float32)
    nouns = ["params", "grads", "d", "y"]
    plan = _core.Plan("sag", [d + 1], [[d], [table]], nouns, [""], seen=seen, row_weights=weights)
    assert plan.forget(rows - 1)
    assert not plan.forget(rows - 1)
    assert not seen[-1]
    assert_same_bits(d, reference.sum_rows(table, seen, weights))


def drift(summed_again):
    """How far d is from the sum of y at the end of 100,000 steps in float32, and a bound.

    The gradients are a thousand times as large in the first half, as those of a run that converges.
    Between two sums, each step rounds a difference and a sum, by at most half a unit in the last
    place of each.
    """
    rows, size = 50, 20
    table, d = np.zeros((rows, size), np.float32), np.zeros(size, np.float32)
    plan = _core.Plan(
        "sag",
        [np.zeros(size, np.float32)],
        [[d], [table]],
        ["params", "grads", "d", "y"],
        [""],
        seen=np.zeros(rows, np.bool_) if summed_again else None,
    )
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((997, size)).astype(np.float32)
    worst = largest = 0.0
    for t, row in enumerate(rng.integers(rows, size=100_000).tolist()):
        g = numbers[t % 997] * np.float32(1000 if t < 50_000 else 1)
        plan.step([g], None, (t, [0.0, 1.0, float(rows)], 0.0, False, row))
        if t >= 99_000:
            worst = max(worst, np.abs(d - table.astype(np.float64).sum(axis=0)).max())
            largest = max(largest, np.abs(d).max() + 2 * np.abs(numbers).max())
    return worst, rows * largest * 2.0**-24


def test_float32_does_not_drift():
    worst, bound = drift(summed_again=True)
    assert worst <= bound
    worst, bound = drift(summed_again=False)
    assert worst > 10 * bound, "the case that this test is for did not occur"


# Gradients that are not finite ------------------------------------------------------------------


@every_table_class
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("size", [3, 2 * SPAN + 5])
def test_what_is_not_finite_is_refused(cls, bad, size):
    opt = cls({"a": np.ones(2), "b": np.ones(size, np.float32)}, **needed(cls))
    grads = {"a": np.ones(2), "b": np.ones(size, np.float32)}
    assert opt.step(grads, **beside(opt, grads)) is None
    kept = arrays_of(opt)
    grads["b"][-1] = bad
    message = "grads['b'] holds NaN or infinity, which the sum of the rows would keep; skip_non"
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step(grads, **beside(opt, grads, 1), zero_grad=True)
    grads["b"][-1] = 1e30
    with pytest.raises(ValueError, match=re.escape("grads['b'] times grad_scale=1e+20 holds NaN")):
        opt.step(grads, **beside(opt, grads, 1), grad_scale=1e20)
    assert grads["a"].all()
    assert_same_state(opt, kept)


@every_table_class
def test_a_norm_beyond_float64_is_no_reason_to_refuse(cls):
    for make in (cls, reference.in_numpy(cls)):
        w, g = np.zeros(4), np.full(4, 1.7e308)
        opt = make(w, **{**needed(cls), "lr": 1e-308})
        assert opt.step(g, **beside(opt, g)) is None
        np.testing.assert_allclose(w, -1.7)


def test_a_window_of_one_keeps_nothing_and_refuses_nothing():
    w = np.zeros(1)
    gs.WindowSAG(w, lr=1.0, window=1).step(np.full(1, NAN))
    assert np.isnan(w).all()


# Forgetting -----------------------------------------------------------------------------------


@every_row_class
@pytest.mark.parametrize("weights", [None, [0.1, 0.2, 0.3, 1e-3]])
def test_forgetting_is_never_having_seen(cls, weights):
    """As in a run that took the same steps but those of the row, with the same parameters."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 3)).astype(np.float32)
    visits = list(zip([0, 3, 1, 0, 3, 2], grads, strict=True))
    forgetful, never = (
        cls(np.ones(3, np.float32), lr=0.0, rows=4, row_weights=weights) for _ in "ab"
    )
    for row, g in visits:
        forgetful.step(g, row)
        if row != 3:
            never.step(g, row)
    forgetful.forget(3)
    stored = np.where(forgetful._seen[:, None], forgetful.state["y"], 0)
    rows = np.ones(4) if weights is None else np.array(weights)
    expected = reference.sum_rows(stored, np.ones(4, bool), rows)
    assert_same_bits(forgetful.state["d"], expected)
    assert forgetful._tallied(forgetful.t) == never._tallied(never.t)
    # Seen anew, it counts from 0 again, whatever its place in the table holds.
    never.state["d"][...] = forgetful.state["d"]
    for opt in (forgetful, never):
        opt.params.fill(1)
        opt.lr = 0.5
        opt.step(grads[0], 3)
    assert_same_bits(forgetful.params, never.params)
    assert_same_bits(forgetful.state["d"], never.state["d"])


def test_the_sum_of_weights_is_exact():
    weights = [1e16, 1.0, 1.0, 1e-3]
    opt = gs.SAG(np.zeros(1), lr=0.0, rows=4, row_weights=weights)
    for row in range(4):
        opt.step(np.ones(1), row)
    assert opt._tallied(opt.t) == (4, sum(map(Fraction, weights)))
    opt.forget(0)
    assert opt._tallied(opt.t) == (3, 2 + Fraction(1e-3))


@every_row_class
def test_forgetting_what_is_not_there(cls):
    opt = cls(np.ones(3), lr=0.1, rows=4)
    opt.step(np.ones(3), 1)
    opt.state["d"][...] = 7.0
    kept = arrays_of(opt)
    opt.forget(2)  # never seen: nothing to do
    for row, error, message in (
        (4, IndexError, "row must be below rows=4, got 4"),
        (-1, ValueError, "row must be at least 0, got -1"),
        ("1", TypeError, "row must be a whole number, got '1'"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            opt.forget(row)
    assert_same_state(opt, kept)


# Tables of the user ---------------------------------------------------------------------------


@every_table_class
@every_dtype
def test_a_given_table_is_used_in_place_and_counts_as_zeros(cls, dtype, tmp_path):
    rows = needed(cls).get("rows", 3)
    plain = cls([np.ones(5, dtype), np.ones((2, 3), dtype)], **needed(cls))
    table = [
        np.memmap(tmp_path / "a", dtype, "w+", shape=(rows, 5)),
        np.full((rows, 2, 3), np.nan, dtype),
    ]
    table[0][...] = np.inf
    given = cls([np.ones(5, dtype), np.ones((2, 3), dtype)], **needed(cls), table=table)
    assert given.state["y"][0] is table[0]
    rng = np.random.default_rng(0)
    for t in range(9):
        grads = [mild(rng, 5, dtype), mild(rng, 6, dtype).reshape(2, 3)]
        for opt in (plain, given):
            opt.step(grads, **beside(opt, grads, t))
        for a, b in zip(
            given.params + given.state["d"], plain.params + plain.state["d"], strict=True
        ):
            assert_same_bits(a, b)
    for a, b in zip(table, plain.state["y"], strict=True):
        assert_same_bits(np.asarray(a), b)
    table[0].flush()
    on_disk = np.fromfile(tmp_path / "a", dtype).reshape(rows, 5)
    assert_same_bits(on_disk, plain.state["y"][0])


w0 = np.ones(3)
BAD_TABLES = [
    (np.zeros((3, 3)), ValueError, "table must have the shape (rows, *params.shape), (4, 3), got"),
    (np.zeros(3), ValueError, "(4, 3), got (3,)"),
    (np.zeros((4, 3), np.float32), TypeError, "table must have the dtype of params, float64, got"),
    (
        np.zeros((4, 3), int),
        TypeError,
        "table must have dtype float32, float64",
    ),
    (np.zeros((3, 4)).T, ValueError, "table must be C-contiguous, got shape (4, 3)"),
    (np.broadcast_to(w0, (4, 3)), ValueError, "table must be C-contiguous"),
    (np.frombuffer(bytes(96)).reshape(4, 3), ValueError, "table is read-only, so it cannot be"),
    (np.ma.zeros((4, 3)), TypeError, "table must be a plain NumPy array, got MaskedArray"),
    (np.zeros((4, 3)).view(np.matrix), TypeError, "table must be a plain NumPy array, got matrix"),
    (
        [[0.0] * 3] * 4,
        TypeError,
        f"table {NO_ARRAY}list",
    ),
    (7, TypeError, f"table {NO_ARRAY}int"),
]


@pytest.mark.parametrize(("table", "error", "message"), BAD_TABLES)
@every_row_class
def test_tables_that_do_not_fit(cls, table, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cls(np.ones(3), lr=0.1, rows=4, table=table)


def test_tables_that_share_memory():
    room = np.zeros((5, 3))
    with pytest.raises(ValueError, match="table shares memory with params"):
        gs.SAG(room[0], lr=0.1, rows=4, table=room[:4])
    with pytest.raises(ValueError, match=re.escape("table[1] shares memory with table[0]")):
        gs.SAG([np.ones(3), np.ones(3)], lr=0.1, rows=4, table=[room[:4], room[1:]])
    opt = gs.SAG(np.ones(3), lr=0.1, rows=4, table=room[:4])
    with pytest.raises(ValueError, match="grads shares memory with table, which the step writes"):
        opt.step(room[2], 0)
    with pytest.raises(ValueError, match=re.escape("table must hold 1 arrays like params, got 2")):
        gs.SAG([np.ones(3)], lr=0.1, rows=4, table=[room[:4], room[1:]])


def test_a_window_of_one_has_no_table():
    with pytest.raises(ValueError, match="table must be None for window=1"):
        gs.WindowSAG(np.ones(3), lr=0.1, window=1, table=np.zeros((1, 3)))


def test_a_table_that_does_not_fit_into_memory(monkeypatch, tmp_path):
    params = [np.ones(1000), np.ones(1000, np.float32)]
    for cls, name in ((gs.WindowSAG, "window"), (gs.SAG, "rows"), (gs.SAGA, "rows")):
        message = f"{name}={2**50} gradients of 12000 bytes each take 13510798882.1 GB of memory"
        with pytest.raises(MemoryError, match=re.escape(message)) as caught:
            cls(params, 0.1, 2**50)
        assert "give table= arrays of np.memmap" in str(caught.value)
    with pytest.raises(ValueError, match="table must have the shape"):
        gs.SAG(np.ones(3), 0.1, 2**50, table=np.zeros((4, 3)))
    monkeypatch.setattr(memory, "available_bytes", lambda: 119_999)
    with pytest.raises(MemoryError, match=re.escape("take 0.0 GB of memory, 0.0 are free")):
        gs.SAG(params, 0.1, 10)
    gs.SAG(params, 0.1, 9)
    gs.SAG(np.ones(10_000), 0.1, 2, table=np.memmap(tmp_path / "t", float, "w+", shape=(2, 10_000)))


# Weights, order, seed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"row_weights": [1, 0, 1, 1]},
            ValueError,
            "above 0 and finite in float64, got 0.0 for row 1",
        ),
        ({"row_weights": [1, 1, 1, -2]}, ValueError, "float64, got -2.0 for row 3"),
        ({"row_weights": [1, NAN, 1, 1]}, ValueError, "float64, got nan for row 1"),
        ({"row_weights": [1, INF, 1, 1]}, ValueError, "float64, got inf for row 1"),
        ({"row_weights": [1, 1, 1e-60, 1]}, ValueError, "finite in float32, got 1e-60 for row 2"),
        ({"row_weights": [3e38] * 4}, ValueError, "a sum that is finite in float32, got inf"),
        ({"row_weights": [1e308] * 4}, ValueError, "a sum that is finite in float64, got inf"),
        ({"row_weights": [1, 1, 1]}, ValueError, "must hold rows=4 numbers, got shape (3,)"),
        ({"row_weights": 2.0}, ValueError, "must hold rows=4 numbers, got shape ()"),
        ({"row_weights": ["a"] * 4}, TypeError, "row_weights must be numbers, got dtype <U1"),
        ({"row_weights": [True] * 4}, TypeError, "row_weights must be numbers, got dtype bool"),
        ({"order": "cyclic"}, ValueError, "order must be 'random' or 'permutation', got 'cyclic'"),
        ({"order": None}, ValueError, "order must be 'random' or 'permutation', got None"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number, got 0.5"),
        ({"seed": None}, TypeError, "seed must be a whole number, got None"),
    ],
)
@every_row_class
def test_bad_arguments(cls, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cls([np.ones(3, np.float32), np.ones(2)], lr=0.1, rows=4, **options)


def test_weights_are_copied():
    weights = np.ones(4)
    opt = gs.SAG(np.ones(3), lr=0.1, rows=4, row_weights=weights)
    weights[...] = NAN
    opt.step(np.ones(3), 0)
    np.testing.assert_array_equal(opt.state["d"], 1.0)


def rows_of(steps, **options):
    opt = gs.SAG(np.zeros(1), lr=0.0, **options)
    rows = []
    for _ in range(steps):
        rows.append(opt.next_row())
        assert opt.next_row() == rows[-1]
        opt.step(np.ones(1), (rows[-1] + 1) % options["rows"])  # which row is taken does not count
    return rows


def test_the_order_of_rows_never_changes():
    """Of any version of NumPy, on any machine: a resumed run may be on another one."""
    assert rows_of(12, rows=5) == [0, 1, 0, 2, 2, 4, 3, 3, 2, 3, 4, 2]
    assert rows_of(12, rows=5, seed=3, order="permutation") == [1, 2, 4, 3, 0, 3, 4, 0, 2, 1, 2, 4]


def test_orders():
    permuted = np.array(rows_of(600, rows=6, order="permutation")).reshape(100, 6)
    np.testing.assert_array_equal(np.sort(permuted), np.tile(np.arange(6), (100, 1)))
    assert len({tuple(epoch) for epoch in permuted}) > 80
    drawn = np.bincount(rows_of(6000, rows=6), minlength=6)
    assert np.abs(drawn - 1000).max() < 5 * np.sqrt(1000 * 5 / 6)
    assert rows_of(50, rows=6, seed=1) != rows_of(50, rows=6, seed=2)
    assert set(rows_of(5, rows=1)) == {0}


# Resuming ---------------------------------------------------------------------------------------

RESUMED = [
    (gs.WindowSAG, {"window": 5}),
    (gs.SAG, {"rows": 30}),
    (gs.SAG, {"rows": 30, "order": "permutation", "seed": 9, "row_weights": range(1, 31)}),
    (gs.SAGA, {"rows": 30, "weight_decay": 0.1, "seed": 2}),
    (gs.SAGA, {"rows": 30, "l1": 0.01, "row_weights": np.linspace(0.1, 3, 30)}),
    (gs.SVRG, {"full_gradient": LeastSquares().full_gradient, "every": 11}),
]


@pytest.mark.parametrize(("cls", "options"), RESUMED)
@pytest.mark.parametrize("how", ["dict", "file", "disk"])
def test_a_run_goes_on_in_the_middle_of_an_epoch(cls, options, how, tmp_path):
    problem = LeastSquares()

    def make(name, **others):
        table = {}
        rows = options.get("rows", options.get("window"))
        if how == "disk" and rows:
            table["table"] = np.memmap(tmp_path / name, float, "w+", shape=(rows, 4))
            table["table"][...] = NAN
        return cls(np.zeros(4), lr=0.02, **{**options, **others, **table})

    def go(opt, steps):
        if cls is not gs.WindowSAG:
            return descend(problem, opt, steps)
        for _ in range(steps):
            opt.step(problem.gradient(opt.params, int(np.random.default_rng(opt.t).integers(30))))
        return None

    unbroken = make("unbroken")
    go(unbroken, 103)
    first = make("first")
    go(first, 47)
    # Seed and order come with the state; weights too.
    others = {"seed": 77, "order": "random"} if "rows" in options else {}
    others |= {"row_weights": np.ones(30)} if "row_weights" in options else {}
    second = make("second", **others)
    go(second, 5)
    if how == "dict":
        second.load_state_dict(first.state_dict())
        second.params[...] = first.params
    else:
        first.save(tmp_path / "state.npz")
        second.load(tmp_path / "state.npz")
    assert second.hyperparameters == first.hyperparameters
    go(second, 103 - 47)
    for opt in (unbroken, second):  # rows that were never seen may hold anything
        if "y" in opt.state:
            opt.state["y"][~opt._seen] = 0
    assert_same_state(second, arrays_of(unbroken))
    assert second.t == 103


@pytest.mark.parametrize("start", [{"row_weights": [1, 2, 3, 4]}, {}])
def test_a_state_of_as_many_steps_brings_the_rows_seen(start):
    """What is known of the rows before loading is not known after it."""
    opts = [gs.SAG(np.zeros(2), lr=0.5, rows=4, **start) for _ in "ab"]
    for opt, rows in zip(opts, [(0, 1), (2, 2)], strict=True):
        for row in rows:
            opt.step(np.ones(2), row)
    opts[1].load_state_dict(opts[0].state_dict())
    opts[1].params[...] = opts[0].params
    for opt in opts:
        opt.step(np.full(2, 7.0), 3)
    assert_same_state(opts[1], arrays_of(opts[0]))


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (1, 7), (7, 1)])
def test_a_window_knows_its_rows_from_the_steps(before, after):
    opts = [gs.WindowSAG(np.zeros(1), lr=0.5, window=3) for _ in "ab"]
    for opt, steps in zip(opts, (before, after), strict=True):
        for t in range(steps):
            opt.step(np.full(1, 2.0**t))
    opts[0].load_state_dict(opts[1].state_dict())
    np.testing.assert_array_equal(opts[0]._seen, np.arange(3) < after)
    opts[0].params[...] = opts[1].params
    for opt in opts:
        for _ in range(4):
            opt.step(np.full(1, 5.0))
    assert_same_state(opts[0], arrays_of(opts[1]))


def test_a_state_of_other_weights_is_refused():
    opt = gs.SAG(np.ones(3), lr=0.1, rows=4, row_weights=[1, 2, 3, 4])
    opt.step(np.ones(3), 2)
    kept = arrays_of(opt)
    state = opt.state_dict()
    for weights, message in (
        (np.array([1.0, -2, 3, 4]), "row_weights must be above 0 and finite in float64, got -2.0"),
        (np.ones(3), "counter row_weights is float64 of shape (3,), not float64 of shape (4,)"),
    ):
        counters = {**state["counters"], "row_weights": weights}
        with pytest.raises(ValueError, match=re.escape(message)):
            opt.load_state_dict({**state, "counters": counters})
    plain = gs.SAG(np.ones(3), lr=0.1, rows=4)
    with pytest.raises(ValueError, match=re.escape("missing [], unknown ['row_weights']")):
        plain.load_state_dict(state)
    for change in ({"seed": -1}, {"order": "cyclic"}):
        hyper = {**state["hyperparameters"], **change}
        with pytest.raises(ValueError, match=next(iter(change))):
            opt.load_state_dict({**state, "hyperparameters": hyper})
    assert_same_state(opt, kept)


# SVRG -------------------------------------------------------------------------------------------


def svrg(params=None, **options):
    params = np.arange(3.0) if params is None else params
    return gs.SVRG(params, options.pop("lr", 0.5), full_gradient, **options)


def test_svrg_needs_a_snapshot():
    opt = svrg()
    with pytest.raises(RuntimeError, match=re.escape("call take_snapshot(), or give every=")):
        opt.step(np.ones(3), np.ones(3))
    assert opt.t == 0
    opt.take_snapshot()
    opt.step(np.full(3, 4.0), np.full(3, 2.0))
    expected = np.arange(3.0) - 0.5 * (4.0 - 2.0 + full_gradient(np.arange(3.0)))
    np.testing.assert_array_equal(opt.params, expected)
    np.testing.assert_array_equal(opt.snapshot, np.arange(3.0))


def test_snapshots_come_by_themselves():
    taken = []

    def gradient(params):
        taken.append(opt.t)
        return full_gradient(params)

    opt = gs.SVRG(np.arange(3.0), 0.1, gradient, every=4)
    for t in range(10):
        if t == 6:
            opt.take_snapshot()  # the count begins anew
        before = opt.params.copy()
        opt.step(np.full(3, 5.0), np.full(3, 3.0))
        if t in (0, 4):  # one point: the two gradients are one
            np.testing.assert_array_equal(opt.params, before - 0.1 * full_gradient(before))
            np.testing.assert_array_equal(opt.snapshot, before)
    assert taken == [0, 4, 6]


@pytest.mark.parametrize("options", [{}, {"maximize": True}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_svrg_scales_all_three_gradients(options, dtype):
    """By a power of two, so that gradients that are four times as large give the same bits."""
    ends = []
    for scale in (1, 4):
        opt = gs.SVRG(
            np.arange(5, dtype=dtype),
            0.3,
            lambda v, scale=scale: dtype(scale) * full_gradient(v),
            every=3,
            weight_decay=0.1,
            **options,
        )
        for t in range(7):
            g, h = mild(np.random.default_rng(t), 10, dtype).reshape(2, 5) * dtype(scale)
            opt.step(g, h, grad_scale=1 / scale)
        ends.append(opt.params)
    assert_same_bits(*ends)
    sign = dtype(-1 if options else 1)
    opt = gs.SVRG(np.ones(2, dtype), 0.25, lambda v: np.full(2, 3, dtype), every=9, **options)
    opt.take_snapshot()
    opt.step(np.full(2, 7, dtype), np.full(2, 2, dtype), grad_scale=0.5)
    np.testing.assert_array_equal(opt.params, 1 - sign * dtype(0.25 * 0.5 * (7 - 2 + 3)))


def failing(params):
    raise ZeroDivisionError("of the user")


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (failing, ZeroDivisionError, "of the user"),
        (lambda v: [v["w"], v["b"]], TypeError, "full_gradient() must be a dict like params"),
        (lambda v: {"w": v["w"]}, ValueError, "full_gradient() must have the keys of params"),
        (
            lambda v: {"w": v["w"], "b": v["b"].astype("f")},
            ValueError,
            "full_gradient()['b'] is float32 of shape (), not float64 of shape ()",
        ),
        (
            lambda v: {"w": v["w"].T, "b": v["b"]},
            ValueError,
            "full_gradient()['w'] is float64 of shape (2, 3), not float64 of shape (3, 2)",
        ),
        (
            lambda v: {"w": 1.0, "b": v["b"]},
            TypeError,
            f"full_gradient()['w'] {NO_ARRAY}float",
        ),
        (
            lambda v: {"w": v["w"] * NAN, "b": v["b"]},
            ValueError,
            "full_gradient()['w'] holds NaN or infinity",
        ),
    ],
)
@pytest.mark.parametrize("by_itself", [False, True])
def test_a_full_gradient_that_does_not_fit_leaves_the_old_snapshot(
    gradient, error, message, by_itself
):
    current = [full_gradient]
    params = {"w": np.ones((3, 2)), "b": np.array(1.0)}
    opt = gs.SVRG(params, 0.1, lambda v: current[0](v), every=1)
    grads = {"w": np.ones((3, 2)), "b": np.array(2.0)}
    opt.step(grads, grads)
    kept = arrays_of(opt)
    current[0] = gradient
    with pytest.raises(error, match=re.escape(message)):
        opt.step(grads, grads) if by_itself else opt.take_snapshot()
    assert_same_state(opt, kept)
    current[0] = lambda v: {"w": v["w"], "b": np.float64(v["b"])}
    opt.take_snapshot()
    np.testing.assert_array_equal(opt.state["mu"]["w"], opt.snapshot["w"])


g3 = np.ones(3)
BAD_SECONDS = [
    (np.ones(4), ValueError, "snapshot_grads must have the shape of params, (3,), got (4,)"),
    (np.ones(3, np.float32), TypeError, "snapshot_grads must have the dtype of params, float64"),
    (
        np.ones(3, int),
        TypeError,
        "snapshot_grads must have dtype float32, float64",
    ),
    (np.ones(6)[::2], ValueError, "snapshot_grads must be C-contiguous"),
    (np.ma.ones(3), TypeError, "snapshot_grads must be a numpy.ndarray, got a masked array"),
    (
        [1.0] * 3,
        TypeError,
        f"snapshot_grads {NO_ARRAY}list",
    ),
    (
        None,
        TypeError,
        f"snapshot_grads {NO_ARRAY}NoneType",
    ),
]


@pytest.mark.parametrize(("second", "error", "message"), BAD_SECONDS)
@pytest.mark.parametrize("due", [False, True])
def test_second_gradients_are_checked_as_the_first(second, error, message, due):
    opt = svrg(every=1 if due else 9)
    opt.step(g3, g3)
    kept = arrays_of(opt)
    with pytest.raises(error, match=re.escape(message)):
        opt.step(g3, second)
    with pytest.raises(error, match=re.escape(message.replace("snapshot_grads", "grads"))):
        opt.step(second, g3)
    assert_same_state(opt, kept)


def test_second_gradients_of_other_structures_and_places():
    both = np.arange(6.0)
    opt = svrg([both[:3], np.ones(2)], every=9)
    good = [np.ones(3), np.ones(2)]
    opt.step(good, good)
    for second, error, message in (
        (good[0], TypeError, "snapshot_grads must be a list or tuple like params, got ndarray"),
        (good[:1], ValueError, "snapshot_grads must hold 2 arrays like params, got 1"),
        ([both[1:4], good[1]], ValueError, "snapshot_grads[0] shares memory with params[0]"),
        (opt.state["mu"], ValueError, "snapshot_grads[0] shares memory with state mu[0]"),
        (opt.snapshot, ValueError, "snapshot_grads[0] shares memory with state snapshot[0]"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            opt.step(good, second)
    room = np.ones(4)
    with pytest.raises(
        ValueError, match=re.escape("snapshot_grads[0] shares memory with grads[0]")
    ):
        opt.step([room[:3], good[1]], [room[1:], np.ones(2)], zero_grad=True)
    assert room.all()
    assert opt.t == 1
    opt.step([room[:3], good[1]], [room[1:], np.ones(2)])  # without zero_grad, both are only read
    opt.step(good, good, zero_grad=True)
    assert not good[0].any()


def test_zero_grad_of_svrg_clears_the_first():
    opt = svrg(every=2)
    for _ in range(3):
        g, h = np.ones(3), np.full(3, 2.0)
        opt.step(g, h, zero_grad=True)
        assert not g.any()
        assert (h == 2).all()


@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
def test_svrg_does_not_clip(name):
    opt = svrg(every=1)
    kept = arrays_of(opt)
    with pytest.raises(ValueError, match=f"{name} must be None for SVRG, .* got 1.5"):
        opt.step(g3, g3, **{name: 1.5})
    assert_same_state(opt, kept)
    opt.step(g3, g3, **{name: None})


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("make", [gs.SVRG, reference.in_numpy(gs.SVRG)])
def test_svrg_skips_what_is_not_finite(which, make):
    opt = make(np.arange(3.0), 0.1, full_gradient, every=2, skip_nonfinite=True)
    assert opt.step(g3, g3) == gs.StepResult(np.sqrt(3), clipped=False, skipped=False)
    kept = arrays_of(opt)
    bad = [g3.copy(), g3.copy()]
    bad[which][1] = INF
    assert opt.step(*bad).skipped
    assert_same_state(opt, kept)


def test_a_step_that_fails_takes_its_snapshot_back():
    opt = svrg(every=1, skip_nonfinite=True)
    opt.step(g3, g3)
    kept = arrays_of(opt)
    assert opt.step(np.full(3, NAN), g3).skipped
    assert_same_state(opt, kept)
    with pytest.raises(ValueError, match="grad_scale must be above 0"):
        opt.step(g3, g3, grad_scale=-1.0)
    assert_same_state(opt, kept)
    frozen = np.ones(3)
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match="grads is read-only"):
        opt.step(frozen, g3, zero_grad=True)
    assert_same_state(opt, kept)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"full_gradient": None}, TypeError, "full_gradient must be a function, got None"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 1.5}, TypeError, "every must be a whole number, got 1.5"),
        ({"lr": -1}, ValueError, "lr must be at least 0"),
        ({"l1": 0.1}, TypeError, "no argument 'l1'"),
    ],
)
def test_bad_arguments_of_svrg(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gs.SVRG(np.ones(3), **{"lr": 0.1, "full_gradient": full_gradient, **options})


def test_bad_l1():
    for l1, message in ((-1, "at least 0"), (NAN, "at least 0"), (INF, "at least 0")):
        with pytest.raises(ValueError, match=f"l1 must be {message}"):
            gs.SAGA(np.ones(3), 0.1, 4, l1=l1)


def test_functional_reads_the_second_gradient_only():
    assert "Written: param. Read: grad, snapshot_grad, mu." in gs.functional.svrg.__doc__
    w, second, mu = np.ones(2), np.full(2, 2.0), np.full(2, 4.0)
    second.setflags(write=False)
    mu.setflags(write=False)
    gs.functional.svrg(w, np.ones(2), second, mu, lr=0.5, maximize=True)
    np.testing.assert_array_equal(w, 1 + 0.5 * 3)


def test_repr():
    assert "every=7" in repr(svrg(every=7))
    assert "order='permutation', seed=3" in repr(gs.SAG(g3, 0.1, 4, order="permutation", seed=3))
