"""Descent along rows gives the oracle's bits, and the optimum: any layout, level, threads, size."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from dataclasses import dataclass, replace
from decimal import Context, Decimal

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, losses
from gradstep.reference import linear as reference
from oracle import (
    DTYPES,
    OLDER_PROCESSOR,
    assert_same_bits,
    hostile,
    mild,
    needs_glibc,
    python,
)

LABELS = ("logistic", "softmax", "squared_hinge")
VARIANTS = ("sag", "saga", "svrg")
INDICES = (np.int32, np.int64)
MOVED = ("coef", "intercept", "table", "sum", "intercept_sum")
FIXED = ("means", "squares", "coverage", "largest_norm", "total_weight")
OUTPUTS = (1, 2, 3, 7, 8, 9, 17)
FEATURES = (1, 7, 8, 9, 15, 16, 17, 33, 511, 512, 513)  # from 513 on rows are read where they lie
ROWS = (1, 2, 3, 65, 300)


def csr(table, index=np.int32):
    """Sparse rows as `FiniteSum` takes them, of the elements that are not 0."""
    held = table != 0  # NaN is
    offsets = np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(index)
    return table[held], np.nonzero(held)[1].astype(index), offsets, table.shape[1]


@dataclass(frozen=True)
class Case:
    """Data drawn by the sizes, and what is done with them."""

    loss: str = "logistic"
    variant: str = "saga"
    dtype: type = np.float64
    index: type | None = None  # of sparse rows
    features: int = 9
    rows: int = 65
    outputs: int = 1
    weights: str = "none"
    l1: float = 0.0
    intercept: bool = True
    lr: float = 0.05
    numbers: str = "mild"
    draws: int = 25

    def data(self):
        rng = np.random.default_rng([self.features, self.rows, self.outputs])
        numbers = {"mild": mild, "hostile": hostile}[self.numbers]
        table = numbers(rng, self.rows * self.features, self.dtype)
        table = table.reshape(self.rows, self.features)
        if self.numbers == "mild":
            table += self.dtype(1.5)  # so that centring counts
        if self.index is not None:
            table[rng.random(table.shape) < min(0.6, 1 - 6 / self.features)] = 0
        if self.loss in LABELS:
            targets = rng.integers(0, max(self.outputs, 2), self.rows).astype(np.float64)
        else:
            targets = rng.standard_normal((self.rows, self.outputs))
        unequal = rng.uniform(0.1, 3, self.rows)
        some = np.where(np.arange(self.rows) % 3 == 1, 0.0, unequal)
        weights = {
            "none": None, "equal": np.full(self.rows, 2.5), "unequal": unequal, "zeros": some,
        }[self.weights]  # fmt: skip
        return table, targets, weights

    def make(self, implementation, table=None):
        own, targets, weights = self.data()
        table = own if table is None else table
        rows = table if self.index is None else csr(table, self.index)
        return implementation.FiniteSum(rows, targets, weights, self.loss, self.outputs, 0.7, True)

    def descend(self, finite_sum, draws=None, first=5):
        draws = self.draws if draws is None else draws
        finite_sum.descend(
            self.variant, self.lr, 0.1, self.l1, self.intercept, draws, 2**64 - 3, first
        )

    def results(self, implementation, table=None) -> dict[str, np.ndarray]:
        """Descent from nothing known, a snapshot of where it came to, and descent from there."""
        finite_sum = self.make(implementation, table)
        self.descend(finite_sum)
        found = {f"{name} at first": state(finite_sum, name) for name in (*FIXED, *MOVED)}
        gradient = zip(("gradient", "of the intercept"), finite_sum.gradient(), strict=True)
        found |= {name: np.array(value) for name, value in gradient}
        finite_sum.snapshot()
        found |= {f"{name} of the snapshot": state(finite_sum, name) for name in MOVED}
        self.descend(finite_sum)
        return found | {f"{name} at last": state(finite_sum, name) for name in MOVED}


def state(finite_sum, name):
    return np.array(getattr(finite_sum, name))


@functools.cache
def oracle_results(case):
    return case.results(reference)


def assert_same(actual, expected, message=""):
    assert actual.keys() == expected.keys()
    for name in actual:
        assert_same_bits(actual[name], expected[name], f"{name}; {message}")


def covering():
    """Every loss, variant and layout with one another; the rest as a fixed seed deals it."""
    layouts = itertools.product(DTYPES, (None, *INDICES))
    for n, (loss, variant, (dtype, index)) in enumerate(
        itertools.product(reference.SLOPES, VARIANTS, layouts)
    ):
        rng = np.random.default_rng(n)
        outputs = int(rng.choice(OUTPUTS[1:] if loss == "softmax" else OUTPUTS))
        yield Case(
            loss, variant, dtype, index,
            features=int(rng.choice(FEATURES[:-3])),
            rows=int(rng.choice(ROWS[:-1])),
            outputs=1 if loss == "logistic" else outputs,
            weights=str(rng.choice(["none", "equal", "unequal", "zeros"])),
            l1=float(rng.choice([0.0, 0.02])),
            intercept=bool(rng.integers(2)),
        )  # fmt: skip


def sizes():
    """Every size beside the borders of vectors, and of the room that copies of rows may take."""
    for dtype, features in itertools.product(DTYPES, FEATURES):
        yield Case("logistic", dtype=dtype, features=features, weights="unequal")
        yield Case("squared_hinge", "sag", dtype, features=features, outputs=2, l1=0.02, rows=3)
    for outputs, index in itertools.product(OUTPUTS[1:], (None, *INDICES)):
        yield Case("softmax", index=index, outputs=outputs, rows=7)
        yield Case("least_squares", "svrg", np.float32, index, outputs=outputs, rows=7, l1=0.02)
    for index, rows in itertools.product((None, np.int32), ROWS):
        yield Case("huber", "sag", index=index, rows=rows, weights="zeros")


def far():
    """Rows with NaN, infinity and denormals; steps so long that weights become infinite and NaN."""
    for loss, index in itertools.product(reference.SLOPES, (None, np.int32)):
        case = Case(loss, index=index, outputs=1 if loss == "logistic" else 3, l1=0.02, rows=20)
        yield replace(case, numbers="hostile", variant="svrg", dtype=np.float32)
        yield replace(case, numbers="hostile")
        for lr in (1e3, 1e200):
            yield replace(case, lr=lr)
            yield replace(case, lr=lr, l1=0.0, variant="sag", weights="zeros")


CASES = tuple(dict.fromkeys((*covering(), *sizes(), *far())))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.loss}-{case.variant}")
def test_same_bits(case, level):
    gs.set_num_threads(2)
    assert_same(case.results(_core), oracle_results(case), str(case))


def test_the_cases_hold_every_choice():
    for name, choices in (("features", FEATURES), ("rows", ROWS), ("outputs", OUTPUTS)):
        assert {getattr(case, name) for case in CASES} >= set(choices)
    for one, other in itertools.combinations(
        ("loss", "variant", "dtype", "index", "weights", "l1", "intercept"), 2
    ):
        pairs = {(getattr(case, one), getattr(case, other)) for case in CASES}
        wanted = itertools.product(*({getattr(c, name) for c in CASES} for name in (one, other)))
        assert pairs == set(wanted), f"{one} and {other}"
    far_away = oracle_results(replace(Case(), rows=20, l1=0.02, lr=1e200))
    assert np.isnan(far_away["coef at last"]).any(), "divergence is to be seen"


@functools.cache
def on_one_thread(case):
    """At the level that comes first."""
    gs.set_num_threads(1)
    return case.results(_core)


@pytest.mark.parametrize("index", [None, np.int32])
def test_threads(level, index):
    """More numbers than one thread passes over alone, 2**22, in blocks of 64 rows."""
    options = {"rows": 300, "index": index, "draws": 3}
    few, many = (14_100, 1_600) if index is None else (40_000, 5_000)
    for case in (
        Case("logistic", dtype=np.float32, features=few, **options),
        Case("softmax", features=many, outputs=9, weights="unequal", **options),
    ):
        # The oracle takes long for so many sparse numbers.
        expected = (oracle_results if index is None else on_one_thread)(case)
        for threads in (1, 3):
            gs.set_num_threads(threads)
            assert_same(case.results(_core), expected, f"{threads} threads, {case}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_anywhere_in_memory(dtype, level):
    """Steps over rows, columns of a wider table, any alignment, memory that is only read."""
    for features, rows in itertools.product((1, 5, 8, 13, 513), (1, 2, 3, 20)):
        case = Case(dtype=dtype, features=features, rows=rows)
        table, _, _ = case.data()
        expected = oracle_results(case)

        def within(shape, part, table=table):
            room = np.full(shape, np.nan, table.dtype)
            room[part] = table
            room.setflags(write=False)
            return room[part]

        places = {
            "every other row": within((2 * rows, features), np.s_[::2]),
            "the first columns": within((rows, features + 3), np.s_[:, :features]),
            "the last columns": within((rows, features + 9), np.s_[:, 9:]),
            "both": within((3 * rows + 1, features + 1), np.s_[1::3, 1:]),
        }
        for place, view in places.items():
            assert_same(case.results(_core, view), expected, f"{place}; {case}")


@pytest.mark.parametrize("features", [1, 9, 600])
@pytest.mark.parametrize("index", [None, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_resumed_descent_is_one_long_descent(dtype, index, features, level):
    """In parts that end beside the batches of 256 in which rows are drawn."""
    case = Case("least_squares", features=features, dtype=dtype, index=index, weights="zeros")
    parts = (0, 1, 255, 256, 257, 0, 511, 7)
    long, resumed = case.make(_core), case.make(_core)
    case.descend(long, sum(parts))
    for first, draws in zip(itertools.accumulate((5, *parts)), parts, strict=False):
        case.descend(resumed, draws, first)
    for name in MOVED:
        assert_same_bits(state(resumed, name), state(long, name), name)
    if features == 1:  # the others take the oracle long
        expected = case.make(reference)
        case.descend(expected, sum(parts))
        for name in MOVED:
            assert_same_bits(state(long, name), state(expected, name), name)


def test_gradient_changes_nothing():
    case = Case("softmax", outputs=3, rows=300, weights="unequal")
    finite_sum = case.make(_core)
    case.descend(finite_sum)
    before = [state(finite_sum, name) for name in MOVED]
    total, of_intercept = finite_sum.gradient()
    for name, value in zip(MOVED, before, strict=True):
        assert_same_bits(state(finite_sum, name), value, name)
    finite_sum.snapshot()
    assert_same_bits(finite_sum.sum, total)
    assert_same_bits(finite_sum.intercept_sum, of_intercept)


def digest(implementation=_core) -> str:
    """Of all results, printed in a subprocess too."""
    total = hashlib.sha256()
    for case in covering():
        found = oracle_results(case) if implementation is reference else case.results(_core)
        for result in found.values():
            total.update(np.where(np.isnan(result), 0, result).tobytes())
    return total.hexdigest()


@needs_glibc
def test_older_processor_as_the_c_library_sees_it():
    code = "import test_linear_kernels; print(test_linear_kernels.digest())"
    assert python(code, **OLDER_PROCESSOR).strip() == digest(reference)


# Accuracy ----------------------------------------------------------------------------------------

EXACT = Context(prec=60, Emin=-(10**6), Emax=10**6)


def at_scores(scores, targets, loss, delta=1.0):
    """The slopes of rows whose scores are exactly these."""
    outputs = scores.shape[1]
    finite_sum = _core.FiniteSum(scores, targets, None, loss, outputs, delta, False)
    finite_sum.coef[:, :outputs] = np.eye(outputs)
    finite_sum.snapshot()
    return finite_sum.table


def exps(values):
    return [EXACT.exp(Decimal(value)) for value in values]


def test_logistic_is_within_3_ulp():
    """Where the exponential is finite."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.uniform(-2, 2, 300), rng.uniform(-700, 700, 300), [0.0, 1e-300, -40]])
    y = rng.integers(0, 2, z.size).astype(float)
    s = np.where(y == 1, 1.0, -1.0)
    slopes = at_scores(z[:, np.newaxis], y, "logistic")
    for i, power in enumerate(exps((s * z).tolist())):
        exact = EXACT.divide(Decimal(-s[i]), 1 + power)
        error = abs(EXACT.subtract(Decimal(slopes[i, 0]), exact))
        assert error <= 3 * Decimal(math.ulp(float(exact))), z[i]
    slopes = at_scores(np.array([[710.0], [-1e300], [math.inf]]), [1.0, 1.0, 1.0], "logistic")
    np.testing.assert_array_equal(slopes[:, 0], [0, -1, 0])


@pytest.mark.parametrize("outputs", [2, 3, 10, 33])
def test_softmax_is_within_3_ulp_of_1(outputs):
    """Small probabilities lose the digits that rounding takes from the distance of scores."""
    rng = np.random.default_rng(outputs)
    z = rng.uniform(-30, 30, (60, outputs)) * rng.choice([0.05, 1, 20], (60, 1))
    y = rng.integers(0, outputs, 60)
    slopes = at_scores(z, y, "softmax")
    for i in range(len(z)):
        powers = exps(z[i].tolist())
        for k, power in enumerate(powers):
            exact = EXACT.divide(power, sum(powers)) - (1 if k == y[i] else 0)
            error = abs(EXACT.subtract(Decimal(slopes[i, k]), exact))
            assert error <= 3 * Decimal(math.ulp(1.0))
            distance = z[i].max() - z[i, k]
            ulps = Decimal(5 + distance)
            assert k == y[i] or error <= ulps * Decimal(math.ulp(float(exact)))


@pytest.mark.parametrize("index", [None, np.int32])
@pytest.mark.parametrize("weights", ["none", "zeros"])
@pytest.mark.parametrize("loss", reference.SLOPES)
def test_snapshot_has_the_gradient_of_the_module_losses(loss, weights, index):
    case = Case(loss, outputs=1 if loss == "logistic" else 3, weights=weights, index=index)
    table, targets, weight = case.data()
    finite_sum = case.make(_core)
    case.descend(finite_sum)
    finite_sum.snapshot()
    if index is None:
        table = table - finite_sum.means[: case.features]
        coef, total = (x[:, : case.features].T for x in (finite_sum.coef, finite_sum.sum))
    else:
        coef, total = finite_sum.coef, finite_sum.sum
    if loss == "squared_hinge":
        targets = (targets[:, np.newaxis] == np.arange(3)).astype(float)
    elif loss == "logistic":
        targets = targets[:, np.newaxis]
    else:
        targets = targets.astype(int) if loss == "softmax" else targets
    options = {"delta": 0.7} if loss == "huber" else {}
    function = functools.partial(getattr(losses, loss), **options)
    relative = None if weight is None else weight / weight.mean()
    _, (by_weight, by_bias) = losses.linear(function)(
        [coef, finite_sum.intercept], table, targets, relative
    )
    S = finite_sum.total_weight  # noqa: N806
    np.testing.assert_allclose(total / S, by_weight, rtol=0, atol=1e-12 * np.abs(by_weight).max())
    np.testing.assert_allclose(finite_sum.intercept_sum / S, by_bias, rtol=0, atol=1e-13)


def regression(rows=60, features=5, outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features))
    x[rng.random(x.shape) < 0.4] = 0
    y = x @ rng.standard_normal((features, outputs)) + 0.3 * rng.standard_normal((rows, outputs))
    return x, y


def ridge(x, y, l2, weights):
    """The weights without an intercept at which the gradient is 0, shape (features, outputs)."""
    s = weights / weights.sum()
    return np.linalg.solve((x.T * s) @ x + l2 * np.eye(x.shape[1]), (x.T * s) @ y)


def coefficients(finite_sum, features):
    """Shape (features, outputs), whatever the layout."""
    coef = finite_sum.coef
    return coef if len(coef) == features and coef.shape[1] < 8 else coef[:, :features].T


def run_to_the_end(finite_sum, variant, curvature, *, l2=0.1, l1=0.0, intercept=False, epochs=400):
    """Descent by a third of the largest stable rate, for SVRG with a snapshot every two epochs."""
    n = len(finite_sum.table)
    lr = 1 / (3 * (curvature * (finite_sum.largest_norm + intercept) + l2))
    finite_sum.snapshot()
    for epoch in range(0, epochs, 2):
        finite_sum.descend(variant, lr, l2, l1, intercept, 2 * n, 1, epoch * n)
        if variant == "svrg":
            finite_sum.snapshot()
    return finite_sum


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("weights", ["none", "unequal"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ridge_ends_at_its_closed_form(variant, weights, layout):
    x, y = regression()
    weight = None if weights == "none" else np.random.default_rng(1).uniform(0.2, 2, len(x))
    rows = x if layout == "dense" else csr(x)
    finite_sum = _core.FiniteSum(rows, y, weight, "least_squares", 2, 1.0, False)
    run_to_the_end(finite_sum, variant, losses.CURVATURES["least_squares"])
    expected = ridge(x, y, 0.1, np.ones(len(x)) if weight is None else weight)
    np.testing.assert_allclose(coefficients(finite_sum, 5), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("loss", "outputs"), [("logistic", 1), ("softmax", 3)])
def test_dense_and_sparse_rows_end_where_the_gradient_is_0(loss, outputs, variant):
    x, y = regression(outputs=outputs)
    labels = (y[:, 0] > 0).astype(float) if outputs == 1 else y.argmax(axis=1).astype(float)
    ends = []
    for rows in (x, csr(x)):
        finite_sum = _core.FiniteSum(rows, labels, None, loss, outputs, 1.0, False)
        run_to_the_end(finite_sum, variant, losses.CURVATURES[loss], intercept=True, epochs=800)
        finite_sum.snapshot()
        gradient = finite_sum.sum / finite_sum.total_weight + 0.1 * finite_sum.coef
        assert np.abs(gradient).max() < 1e-10
        assert np.abs(finite_sum.intercept_sum).max() / finite_sum.total_weight < 1e-10
        ends.append(coefficients(finite_sum, 5))
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_weight_of_2_is_a_row_that_is_there_twice(variant):
    x, y = regression(rows=30)
    twice = np.arange(30) % 3 == 0
    weighted = _core.FiniteSum(x, y, np.where(twice, 2.0, 1.0), "huber", 2, 0.5, False)
    doubled = np.concatenate([x, x[twice]]), np.concatenate([y, y[twice]])
    repeated = _core.FiniteSum(*doubled, None, "huber", 2, 0.5, False)
    for finite_sum in (weighted, repeated):
        run_to_the_end(finite_sum, variant, losses.CURVATURES["huber"], intercept=True, epochs=800)
    np.testing.assert_allclose(weighted.coef, repeated.coef, rtol=0, atol=1e-10)
    np.testing.assert_allclose(weighted.intercept, repeated.intercept, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_l1_ends_where_its_conditions_hold(layout, variant):
    """The gradient of what is smooth is -l1 sign(w) where w is not 0, and elsewhere at most l1."""
    x, y = regression(features=6)
    l1, l2 = 0.15, 0.05
    finite_sum = _core.FiniteSum(
        x if layout == "dense" else csr(x), y, None, "least_squares", 2, 1.0, False
    )
    run_to_the_end(finite_sum, variant, 1.0, l1=l1, l2=l2, epochs=800)
    w = coefficients(finite_sum, 6)
    gradient = x.T @ (x @ w - y) / len(x) + l2 * w
    assert 0 < np.count_nonzero(w) < w.size
    np.testing.assert_allclose(gradient[w != 0], -l1 * np.sign(w[w != 0]), rtol=0, atol=1e-10)
    assert np.abs(gradient).max() <= l1 + 1e-10


@pytest.mark.parametrize("index", [None, np.int32])
def test_the_sum_does_not_drift(index):
    """It is float64, and so stays that of the table along float32 rows."""
    case = Case("least_squares", "saga", np.float32, index, features=20, rows=300, lr=0.01)
    finite_sum = case.make(_core)
    case.descend(finite_sum, 100_000)
    table, _, _ = case.data()
    x = table - finite_sum.means[:20].astype(np.float32) if index is None else table
    exact = x.astype(np.float64).T @ finite_sum.table[:, 0]
    drift = np.abs(np.ravel(finite_sum.sum)[:20] - exact).max()
    assert drift < 1e-9 * np.abs(finite_sum.table[:, 0] @ np.abs(x)).max()


# Draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 3, 65, 1000])
def test_rows_are_drawn_in_proportion_to_their_weights(rows):
    """The probabilities that the alias table comes to, of which the kernels have the same bits."""
    rng = np.random.default_rng(rows)
    for weights in (
        rng.uniform(0, 1, rows),
        np.where(np.arange(rows) % 2 == 1, 0.0, rng.uniform(0, 1, rows)),
        10.0 ** rng.uniform(-12, 12, rows),
        np.where(np.arange(rows) == 1, 1.0, 0.0),
    ):
        total = float(np.cumsum(weights)[-1])
        keep, others = reference.alias_table(weights, total)
        kept = np.clip(keep, 0, 1)
        drawn = (kept + np.bincount(others, 1 - kept, rows)) / rows
        np.testing.assert_allclose(drawn, weights / total, rtol=0, atol=1e-12)
        assert (drawn[weights == 0] == 0).all()
        counted = reference.draw(7, 0, 20_000, rows, (keep, others))
        assert (weights[counted] > 0).all()
        error = np.bincount(counted, minlength=rows) / 20_000 - weights / total
        assert np.abs(error).max() < 5 / math.sqrt(4 * 20_000)  # 5 standard deviations at most


def test_draws_far_from_the_first():
    """The number of a draw goes round at 2**64."""
    case = Case(features=1, rows=300, draws=40)
    for first in (2**32, 2**63, 2**64 - 20):
        ends = [case.make(implementation) for implementation in (_core, reference)]
        for finite_sum in ends:
            case.descend(finite_sum, first=first)
        assert_same_bits(ends[0].table, ends[1].table)
        drawn = set(reference.draw(2**64 - 3, first, 40, 300, None).tolist())
        assert set(np.flatnonzero(ends[0].table)) == drawn


# Bad input: no address outside the arrays is ever read or written ---------------------------------


def misaligned(array):
    room = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view = room.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


TABLE = np.ones((4, 3))
VALUES, COLUMNS, OFFSETS = np.ones(4), np.array([0, 1, 2, 0], np.int32), np.arange(5, dtype="i4")
SPARSE = (VALUES, COLUMNS, OFFSETS, 3)


def sparse(place, array):
    return (*SPARSE[:place], array, *SPARSE[place + 1 :])


BAD = [
    # Rows.
    ({"rows": np.ones((0, 3))}, ValueError, "a table that is not empty"),
    ({"rows": np.ones((4, 0))}, ValueError, "a table that is not empty"),
    ({"rows": np.ones(4)}, ValueError, "a table that is not empty"),
    ({"rows": np.ones((4, 3, 2))}, ValueError, "a table that is not empty"),
    ({"rows": TABLE.astype(int)}, TypeError, "rows must be float32 or float64"),
    ({"rows": TABLE.astype(np.float16)}, TypeError, "rows must be float32 or float64"),
    ({"rows": TABLE.astype(np.longdouble)}, TypeError, "rows must be float32 or float64"),
    ({"rows": TABLE.astype(">f8")}, TypeError, "rows must be float32 or float64"),
    ({"rows": np.ones((3, 4)).T}, ValueError, "rows must be contiguous"),
    ({"rows": np.ones((4, 6))[:, ::2]}, ValueError, "rows must be contiguous"),
    ({"rows": TABLE[::-1]}, ValueError, "rows must be contiguous"),
    ({"rows": np.broadcast_to(np.ones(3), (4, 3))}, ValueError, "rows must be contiguous"),
    (
        {"rows": np.lib.stride_tricks.as_strided(np.ones(9), (4, 3), (16, 8))},
        ValueError,
        "rows must be contiguous",
    ),
    ({"rows": misaligned(TABLE)}, ValueError, "rows must be aligned"),
    ({"rows": TABLE.tolist()}, TypeError, "incompatible constructor arguments"),
    ({"rows": None}, TypeError, "incompatible constructor arguments"),
    # Sparse rows.
    ({"rows": sparse(0, VALUES.astype(int))}, TypeError, "rows must be float32 or float64"),
    ({"rows": sparse(0, VALUES[:3])}, ValueError, "rows end beyond their values"),
    ({"rows": sparse(0, np.ones(8)[::2])}, ValueError, "rows must be contiguous"),
    ({"rows": sparse(0, misaligned(VALUES))}, ValueError, "rows must be aligned"),
    ({"rows": sparse(1, COLUMNS[:3])}, ValueError, "rows end beyond their values"),
    ({"rows": sparse(1, COLUMNS + 1)}, ValueError, "a column that does not exist"),
    ({"rows": sparse(1, COLUMNS - 1)}, ValueError, "a column that does not exist"),
    ({"rows": sparse(1, COLUMNS.astype(np.int16))}, TypeError, "columns must be int32 or int64"),
    ({"rows": sparse(1, COLUMNS.astype(np.uint32))}, TypeError, "columns must be int32 or int64"),
    ({"rows": sparse(1, COLUMNS.astype(">i4"))}, TypeError, "columns must be int32 or int64"),
    ({"rows": sparse(1, COLUMNS.astype(np.int64))}, TypeError, "offsets must be of the type"),
    ({"rows": sparse(1, misaligned(COLUMNS))}, ValueError, "rows must be contiguous"),
    ({"rows": sparse(2, OFFSETS.astype(np.int64))}, TypeError, "offsets must be of the type"),
    ({"rows": sparse(2, OFFSETS + 1)}, ValueError, "rows end beyond their values"),
    ({"rows": sparse(2, OFFSETS - 1)}, ValueError, "rows end beyond their values"),
    (
        {"rows": sparse(2, np.array([0, 2, 1, 3, 4], "i4"))},
        ValueError,
        "rows must follow one another",
    ),
    (
        {"rows": sparse(2, np.array([0, -5, 1, 3, 4], "i4"))},
        ValueError,
        "rows must follow one another",
    ),
    (
        {"rows": sparse(2, np.array([0, 9, 9, 9, 4], "i4"))},
        ValueError,
        "rows must follow one another",
    ),
    (
        {"rows": sparse(2, np.array([0, 4, 4, 4, 4], "i4"))},
        ValueError,
        "the columns of a row must increase",
    ),
    ({"rows": sparse(2, OFFSETS[:1])}, ValueError, "a table that is not empty"),
    ({"rows": sparse(2, OFFSETS[:0])}, ValueError, "a table that is not empty"),
    ({"rows": sparse(2, OFFSETS.reshape(1, 5))}, ValueError, "a table that is not empty"),
    ({"rows": sparse(3, 0)}, ValueError, "a table that is not empty"),
    ({"rows": sparse(3, -1)}, ValueError, "a table that is not empty"),
    ({"rows": sparse(3, 2)}, ValueError, "a column that does not exist"),
    ({"rows": sparse(3, 2**62)}, MemoryError, "alloc"),
    # Targets.
    ({"targets": np.ones(3)}, ValueError, "a target per row and output"),
    ({"targets": np.ones((4, 2))}, ValueError, "a target per row and output"),
    ({"targets": np.ones(0)}, ValueError, "a target per row and output"),
    ({"targets": misaligned(np.ones(4))}, ValueError, "targets must be aligned"),
    ({"targets": np.full(4, 2.0)}, ValueError, "a label is not the number of a class"),
    ({"targets": np.full(4, -1.0)}, ValueError, "a label is not the number of a class"),
    ({"targets": np.full(4, 0.5)}, ValueError, "a label is not the number of a class"),
    ({"targets": np.full(4, math.nan)}, ValueError, "a label is not the number of a class"),
    ({"targets": np.full(4, math.inf)}, ValueError, "a label is not the number of a class"),
    (
        {"targets": np.full(4, 3.0), "loss": "softmax", "outputs": 3},
        ValueError,
        "a label is not the number of a class",
    ),
    (
        {"targets": np.full(4, math.inf), "loss": "least_squares"},
        ValueError,
        "a target is not finite",
    ),
    # The rest.
    ({"weights": np.ones(3)}, ValueError, "a weight per row"),
    ({"weights": misaligned(np.ones(4))}, ValueError, "weights must be aligned"),
    ({"weights": np.zeros(4)}, ValueError, "the weights must have a sum above 0"),
    ({"weights": np.full(4, 1e308)}, ValueError, "the weights must have a sum above 0"),
    ({"weights": np.array([1, 1, 1, -1.0])}, ValueError, "weights must be at least 0 and finite"),
    (
        {"weights": np.array([1, 1, 1, math.nan])},
        ValueError,
        "weights must be at least 0 and finite",
    ),
    ({"loss": "hinge"}, KeyError, "hinge"),
    ({"outputs": 0}, ValueError, "a model has outputs"),
    ({"outputs": -1}, ValueError, "a model has outputs"),
    ({"outputs": 2}, ValueError, "logistic loss has one output"),
    ({"loss": "softmax"}, ValueError, "softmax loss has several outputs"),
    ({"loss": "softmax", "outputs": 2**61}, MemoryError, "alloc"),
    ({"loss": "least_squares", "outputs": 2**62}, ValueError, "a target per row and output"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_input_is_refused(changes, error, message):
    good = {
        "rows": TABLE, "targets": np.array([0.0, 1, 1, 0]), "weights": None,
        "loss": "logistic", "outputs": 1, "delta": 1.0, "centre": True,
    }  # fmt: skip
    _core.FiniteSum(**good)
    with pytest.raises(error, match=message):
        _core.FiniteSum(**(good | changes))


def test_a_bad_descent_changes_nothing():
    case = Case()
    finite_sum = case.make(_core)
    finite_sum.snapshot()
    before = [state(finite_sum, name) for name in MOVED]
    good = {
        "variant": "saga", "lr": 0.1, "l2": 0.0, "l1": 0.0,
        "fit_intercept": True, "draws": 3, "seed": 0, "first": 0,
    }  # fmt: skip
    for changes, error in (
        ({"variant": "sgd"}, KeyError),
        ({"draws": -1}, ValueError),
        ({"seed": -1}, TypeError),
        ({"first": 2**64}, TypeError),
        ({"lr": "fast"}, TypeError),
    ):
        with pytest.raises(error):
            finite_sum.descend(**(good | changes))
    for name, value in zip(MOVED, before, strict=True):
        assert_same_bits(state(finite_sum, name), value, name)


def test_the_rows_live_as_long_as_what_reads_them():
    case = Case(features=40, rows=300)
    expected = oracle_results(case)
    assert_same(case.results(_core, case.data()[0]), expected)
    finite_sum = case.make(_core)  # which alone holds the rows now
    assert_same_bits(state(finite_sum, "means"), expected["means at first"])
    case.descend(finite_sum)
    assert_same_bits(state(finite_sum, "table"), expected["table at first"])


@pytest.mark.parametrize("index", ["int32", "int64"])
def test_indices_that_change_later_are_not_used(index):
    """In another process, because a write out of bounds ends it."""
    code = f"""
import numpy as np
from gradstep import _core
values, columns = np.arange(400.0) % 7, np.tile(np.arange(4, dtype="{index}"), 100)
offsets = np.arange(0, 401, 4, dtype="{index}")
def finite_sum():
    rows = (values, columns, offsets, 4)
    return _core.FiniteSum(rows, np.arange(100) % 2.0, None, "logistic", 1, 1.0, False)
def descend(one):
    one.snapshot()
    one.descend("saga", 0.1, 0.1, 0.0, True, 500, 0, 0)
    return one.coef.tobytes() + b"".join(a.tobytes() for a in one.gradient())
expected, other = descend(finite_sum()), finite_sum()
columns[:], offsets[:] = 2**30, 2**20
print(descend(other) == expected)
"""
    assert python(code) == "True\n"


def test_another_thread_is_told_to_keep_out():
    code = """
import sys, threading
import numpy as np
from gradstep import _core
one = _core.FiniteSum(
    np.ones((200, 50)), np.zeros(200), None, "least_squares", 1, 1.0, False
)
def descend(draws):
    one.descend("saga", 1e-3, 0.0, 0.0, False, draws, 0, 0)
sys.setswitchinterval(1e-6)
started = threading.Event()
def work():
    started.set()
    descend(2_000_000)
thread = threading.Thread(target=work)
thread.start()
started.wait()
refused = set()
for call in (lambda: descend(1), one.snapshot, one.gradient):
    while thread.is_alive():  # until it is in its descent
        try:
            call()
        except RuntimeError as error:
            refused.add(str(error))
            break
thread.join()
descend(1)
print(*refused, len(refused))
"""
    assert python(code) == "another thread is using this FiniteSum 1\n"
