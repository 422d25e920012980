"""Descent along the rows of a linear model in NumPy: what the native kernels equal bit for bit.

The order of operations is that of `cpp/src/{losses,rows}.hpp`, in float64, whatever the rows are.
It serves as the oracle of the tests, and to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from decimal import Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
#: A sum over the columns of a dense row, or over outputs, is formed in so many lanes, of which lane
#: k adds k, k + LANES, k + 2 LANES, ... The end of a row is filled up with zeros.
LANES = 8
#: Sums over rows are formed in at most so many blocks of at least so many rows each, fewer where
#: the sums of all blocks would be more numbers than this, or a block had fewer values per number.
MOST_BLOCKS, LEAST_ROWS, MOST_NUMBERS, VALUES_PER_NUMBER = 64, 64, 1 << 23, 4
#: ln 2 in two parts, of which the upper one can be multiplied by small whole numbers exactly.
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
#: 2^(i/32), rounded correctly.
FRACTION_POWERS = np.array(
    [float(Context(prec=40).power(Decimal(2), Decimal(i) / 32)) for i in range(32)]
)


def exp(x: Array) -> Array:
    """`e^x`: with x = (32 n + i) ln(2)/32 + r, 2^n 2^(i/32) times the Taylor series of e^r."""
    x = np.where(x < -746.0, -746.0, np.where(x > 710.0, 710.0, x))
    k = np.rint(x * 46.16624130844683)  # 32 / ln 2
    r = (x - k * (LN2_HIGH / 32)) - k * (LN2_LOW / 32)
    series = (1 / 2 + r * (1 / 6)) + (r * r) * ((1 / 24 + r * (1 / 120)) + (r * r) * (1 / 720))
    n, i = np.divmod(k.astype(np.int64), 32)
    fraction = FRACTION_POWERS[i]
    return np.ldexp(fraction + fraction * (r + (r * r) * series), n)


def draw(seed: int, first: int, count: int, rows: int, alias: tuple[Array, Array] | None) -> Array:
    """The rows drawn from the `first` on: splitmix64 of the seed and a draw's number."""
    n = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(first)
    x = np.uint64(seed) + n * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27)) * np.uint64(0x94D049BB133111EB)
    x ^= x >> 31
    row: Array = (((x >> 32) * np.uint64(rows)) >> 32).astype(np.int64)
    if alias is None:
        return row
    keep, others = alias
    return np.where((x & 0xFFFFFFFF) * 2.0**-32 < keep[row], row, others[row])


def alias_table(weights: Array, total: float) -> tuple[Array, Array]:
    """How likely a row is kept once it is hit, and which one is taken instead (Vose 1991)."""
    keep, others = weights * (len(weights) / total), np.arange(len(weights))
    small = [i for i in range(len(keep)) if keep[i] < 1]
    large = [i for i in range(len(keep)) if not keep[i] < 1]
    while small and large:
        less, more = small.pop(), large[-1]
        others[less] = more
        keep[more] -= 1 - keep[less]
        if keep[more] < 1:
            small.append(large.pop())
    for i in small:  # by rounding
        if weights[i] > 0:
            keep[i] = 1
        else:
            others[i] = np.argmax(weights)
    return keep, others


def in_lanes(terms: Array) -> Array:
    """The sum along the last axis."""
    lanes = np.zeros((*terms.shape[:-1], LANES))
    for j in range(0, terms.shape[-1], LANES):
        block = terms[..., j : j + LANES]
        lanes[..., : block.shape[-1]] += block
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def in_order(terms: Array) -> float:
    """The sum from left to right."""
    return float(np.cumsum(terms)[-1])


def soft_threshold(x: Array, threshold: Array | float) -> Array:
    kept = np.where(x + threshold < 0, x + threshold, 0.0)
    return np.where(x - threshold > 0, x - threshold, np.where(np.isnan(x), x, kept))


# Losses: from the scores z and the target y of one row, its slopes --------------------------------


def least_squares(z: Array, y: Array, delta: float) -> Array:
    return z - y


def huber(z: Array, y: Array, delta: float) -> Array:
    at_most = np.where(z - y > delta, delta, z - y)
    return np.where(at_most < -delta, -delta, at_most)


def signs(label: Array, outputs: int) -> Array:
    """1 for the output of the row's class, -1 for others; of one output it is class 1."""
    return np.where(label == (np.arange(outputs) if outputs > 1 else 1), 1.0, -1.0)


def logistic(z: Array, y: Array, delta: float) -> Array:
    s = signs(y, 1)
    return np.asarray(-s / (1 + exp(s * z)))


def largest(z: Array) -> float:
    return float(max(z.tolist()))  # the first, where that is NaN


def softmax(z: Array, y: Array, delta: float) -> Array:
    e = exp(z - largest(z))
    return np.asarray(e * (1 / in_lanes(e)) - (np.arange(len(z)) == y))


def squared_hinge(z: Array, y: Array, delta: float) -> Array:
    s = signs(y, len(z))
    gap = 1 - s * z
    return -2 * (s * np.where(gap < 0, 0.0, gap))


SLOPES: Mapping[str, Callable[[Array, Array, float], Array]] = {
    "least_squares": least_squares,
    "huber": huber,
    "logistic": logistic,
    "softmax": softmax,
    "squared_hinge": squared_hinge,
}


# Rows: how they are read, and what a step at one of them moves ------------------------------------


class DenseRows:
    """A model has a row per output, and as many columns as lanes."""

    def __init__(self, table: Array) -> None:
        self.count, self.features = table.shape
        self.width = self.size = -(-self.features // LANES) * LANES
        self.table = table
        self.centre(np.zeros(self.features))

    def centre(self, mean: Array) -> None:
        """Subtract the mean, in the dtype of the rows, and fill up the lanes."""
        self.x = np.zeros((self.count, self.width))
        self.x[:, : self.features] = self.table - mean.astype(self.table.dtype)

    def shape(self, outputs: int) -> tuple[int, int]:
        return outputs, self.width

    def columns(self, i: int) -> Any:
        """Where the values of a row stand."""
        return slice(None)

    def values(self, i: int) -> Array:
        return np.asarray(self.x[i])

    def squared_norm(self, i: int) -> float:
        return float(in_lanes(self.x[i] * self.x[i]))

    def scores(self, i: int, coef: Array, intercept: Array) -> Array:
        return in_lanes(self.x[i] * coef) + intercept

    def add(self, i: int, slopes: Array, total: Array) -> None:
        total += slopes[:, np.newaxis] * self.x[i]

    def step(
        self, i: int, coef: Array, total: Array, to_weights: Array, of_sum: float,
        l2: float, l1: float, l1_per_sum: float, coverage: Array,
    ) -> None:  # fmt: skip
        moved = (1 - l2) * coef - (to_weights[:, np.newaxis] * self.x[i] + of_sum * total)
        coef[...] = soft_threshold(moved, l1) if l1 > 0 else moved


class SparseRows:
    """A model has a row per column, and a step at a row moves only those that it holds."""

    def __init__(self, values: Array, columns: Array, offsets: Array, features: int) -> None:
        self.count, self.features, self.width = len(offsets) - 1, features, features
        self.all_values, self.all_columns, self.offsets = values, columns, offsets
        self.size = 1 + len(values) // self.count  # about that of a row

    def shape(self, outputs: int) -> tuple[int, int]:
        return self.features, outputs

    def columns(self, i: int) -> Any:
        return self.all_columns[self.offsets[i] : self.offsets[i + 1]]

    def values(self, i: int) -> Array:
        return np.asarray(self.all_values[self.offsets[i] : self.offsets[i + 1]], np.float64)

    def squared_norm(self, i: int) -> float:
        return in_order(np.append(0.0, self.values(i) ** 2))

    def scores(self, i: int, coef: Array, intercept: Array) -> Array:
        scores: Array = intercept.copy()
        for value, w in zip(self.values(i), coef[self.columns(i)], strict=True):
            scores += value * w
        return scores

    def add(self, i: int, slopes: Array, total: Array) -> None:
        total[self.columns(i)] += slopes * self.values(i)[:, np.newaxis]

    def step(
        self, i: int, coef: Array, total: Array, to_weights: Array, of_sum: float,
        l2: float, l1: float, l1_per_sum: float, coverage: Array,
    ) -> None:  # fmt: skip
        columns, value = self.columns(i), self.values(i)[:, np.newaxis]
        cover = coverage[columns][:, np.newaxis]
        of_sum = of_sum * cover
        moved = coef[columns] - (to_weights * value + of_sum * total[columns])
        shrink = 1 / (1 + l2 * cover)
        coef[columns] = shrink * (soft_threshold(moved, l1_per_sum * of_sum) if l1 > 0 else moved)


class FiniteSum:
    """The weighted mean of a linear model's losses over rows: what `_core.FiniteSum` is, in NumPy.

    Args:
        rows: a table of float32 or float64, shape (n, p), or of CSR (values, columns, offsets, p).
        targets: a row of `outputs` numbers per row, or a class number per row.
        weights: what each row counts, shape (n,); None for 1.
        loss: a name in `SLOPES`.
        outputs: scores per row; for classes one where there are two, otherwise one each.
        delta: where the squares of the Huber loss end.
        centre: whether the mean is subtracted from dense rows.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference.linear import FiniteSum
        >>> rows, targets = np.array([[1.0], [2.0]]), [2.0, 4.0]
        >>> line = FiniteSum(rows, targets, None, "least_squares", 1, 1.0, False)
        >>> line.descend("saga", 0.1, 0.0, 0.0, False, draws=200, seed=0, first=0)
        >>> line.coef[0, 0].round(6)
        np.float64(2.0)
    """

    def __init__(
        self,
        rows: Array | tuple[Array, Array, Array, int],
        targets: ArrayLike,
        weights: ArrayLike | None,
        loss: str,
        outputs: int,
        delta: float,
        centre: bool,
    ) -> None:
        self.rows = SparseRows(*rows) if isinstance(rows, tuple) else DenseRows(rows)
        n, width = self.rows.count, self.rows.width
        self.targets = np.asarray(targets, np.float64).reshape(n, -1)
        self.weights = np.ones(n) if weights is None else np.asarray(weights, np.float64)
        self.total_weight = in_order(self.weights)
        self.alias = None
        if (self.weights != self.weights[0]).any():
            self.alias = alias_table(self.weights, self.total_weight)
        self.slopes_of, self.delta = SLOPES[loss], delta
        self.coef, self.sum = np.zeros(self.rows.shape(outputs)), np.zeros(self.rows.shape(outputs))
        self.intercept, self.intercept_sum = np.zeros(outputs), np.zeros(outputs)
        self.table = np.zeros((n, outputs))
        with np.errstate(all="ignore"):
            self.means, self.squares, self.coverage = self._look_at_columns(width)
            if centre and isinstance(self.rows, DenseRows):
                self.rows.centre(self.means[: self.rows.features])
            norms = [self.rows.squared_norm(i) for i in range(n) if self.weights[i] > 0]
        self.largest_norm = float(np.max(norms))  # NaN if one is

    def _blocks(self, numbers: int, values: int = 1) -> Iterator[range]:
        """Rows in consecutive blocks, which sum so many values each time into so many numbers."""
        n = self.rows.count
        worthwhile = n * self.rows.size * values // (VALUES_PER_NUMBER * numbers)
        most = max(min(MOST_NUMBERS // numbers, worthwhile, MOST_BLOCKS), 1)
        size = max(LEAST_ROWS, -(-n // most))
        return (range(begin, min(begin + size, n)) for begin in range(0, n, size))

    def _look_at_columns(self, width: int) -> Array:
        """Means, mean squares, and the total weight over that of the rows that hold a column."""
        sums = np.zeros((3, width))
        for block in self._blocks(3 * width):
            part = np.zeros((3, width))
            for i in block:
                columns, value, weight = self.rows.columns(i), self.rows.values(i), self.weights[i]
                part[0, columns] += weight * value
                part[1, columns] += weight * (value * value)
                part[2, columns] += weight
            sums += part
        if isinstance(self.rows, DenseRows):
            sums[2] = 0  # all rows hold all columns, so nobody asks
        covered = np.where(sums[2] > 0, self.total_weight / sums[2], 0.0)
        return np.stack([sums[0] / self.total_weight, sums[1] / self.total_weight, covered])

    def snapshot(self) -> None:
        """Form all slopes at the present weights, and so the table and its sum."""
        self._sum_gradients(self.table, self.sum, self.intercept_sum)

    def gradient(self) -> tuple[Array, Array]:
        """The sums that `snapshot` would form."""
        total, of_intercept = np.empty_like(self.sum), np.empty_like(self.intercept_sum)
        self._sum_gradients(np.empty_like(self.table), total, of_intercept)
        return total, of_intercept

    def _sum_gradients(self, table: Array, total: Array, of_intercept: Array) -> None:
        total[...], of_intercept[...] = 0, 0
        with np.errstate(all="ignore"):
            for block in self._blocks(total.size + of_intercept.size, of_intercept.size):
                part_total, part_of_intercept = np.zeros_like(total), np.zeros_like(of_intercept)
                for i in block:
                    weight, scores = self.weights[i], self.rows.scores(i, self.coef, self.intercept)
                    table[i] = self.slopes_of(scores, self.targets[i], self.delta)
                    part_of_intercept += weight * table[i]
                    self.rows.add(i, weight * table[i], part_total)
                total += part_total
                of_intercept += part_of_intercept

    def descend(
        self,
        variant: str,
        lr: float,
        l2: float,
        l1: float,
        fit_intercept: bool,
        draws: int,
        seed: int,
        first: int,
    ) -> None:
        """Step at so many rows, the first of which is the draw `first` of the seed.

        The gradient at a row x of weight s, whose slope is c where the table has y, is taken to be
        `k (c - y) x + sum / S`, with S the total weight, and k = s / S for "sag", 1 for "saga" and
        "svrg". A step is followed by soft-thresholding. "svrg" leaves the table as it is.
        """
        lr_of_sum, share_of_weight = lr / self.total_weight, 1 / self.total_weight
        with np.errstate(all="ignore"):
            for i in draw(seed, first, draws, self.rows.count, self.alias).tolist():
                weight, scores = self.weights[i], self.rows.scores(i, self.coef, self.intercept)
                slopes = self.slopes_of(scores, self.targets[i], self.delta)
                change = slopes - self.table[i]
                rate = lr * (weight * share_of_weight) if variant == "sag" else lr
                to_weights = rate * change
                to_sum = np.zeros_like(change) if variant == "svrg" else weight * change
                if variant != "svrg":
                    self.table[i] = slopes
                if fit_intercept:
                    self.intercept -= to_weights + lr_of_sum * self.intercept_sum
                    self.intercept_sum += to_sum
                self.rows.step(
                    i,
                    self.coef,
                    self.sum,
                    to_weights,
                    lr_of_sum,
                    lr * l2,
                    lr * l1,
                    l1 * self.total_weight,
                    self.coverage,
                )
                self.rows.add(i, to_sum, self.sum)
