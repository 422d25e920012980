"""When a linear model has converged: the norm of its gradient, whatever the units of the data."""

from __future__ import annotations

import numpy as np

from ._base import Array


def sum_in_order(terms: Array) -> Array:
    """Over the first axis, in an order that no processor changes: in lanes, then over these."""
    lanes = 256
    whole = len(terms) - len(terms) % lanes
    blocks = terms[:whole].reshape(-1, lanes, *terms.shape[1:])
    last = np.zeros((lanes, *terms.shape[1:]))
    last[: len(terms) - whole] = terms[whole:]
    for block in blocks:
        last += block
    return np.asarray(np.cumsum(last, axis=0)[-1])


class RelativeNorm:
    """The norm of the gradient, relative to that of the best model without features.

    The slope of a column is that of the column with its mean subtracted, where there is an
    intercept, over the root of its curvature: its variance plus the penalty. So half the square of
    the norm is about what is left to gain, if columns are not correlated. Neither the units nor the
    means of columns count, so that no column hides another. Sums are formed in order, because they
    decide when to stop, which must not depend on the processor.

    Args:
        means, variances: of the columns, weighted; of a model without an intercept 0 and the mean
            squares.
        weight: the mean weight of the rows, by which the curvature of the loss grows.
        l2, l1: the penalties.
        intercept: whether there is one.
        separate: whether outputs are problems of their own, each with its own units.
    """

    def __init__(
        self,
        means: Array,
        variances: Array,
        *,
        weight: float,
        l2: float,
        l1: float,
        intercept: bool,
        separate: bool,
    ) -> None:
        self._means = means[:, np.newaxis]
        self._curvature = np.maximum(weight * variances, 0)[:, np.newaxis] + l2
        self._weight, self._l2, self._l1 = weight, l2, l1
        self._intercept, self._separate = intercept, separate
        self._scale, self._least = np.ones(1), np.zeros(1)

    def start(self, slopes: Array, intercept_slopes: Array, rounding: Array) -> None:
        """Take the gradient of the best model without features as the unit.

        Args:
            slopes, intercept_slopes: see `__call__`, without penalties.
            rounding: per output, the norm that rounding leaves of a constant target, or 0. Where
                the unit is not larger, the target is constant, and so much counts as 0.
        """
        scale = np.sqrt(self._squares(slopes, intercept_slopes))
        self._scale = np.where(scale > rounding, scale, 1.0)
        self._least = np.where(scale > rounding, 0.0, rounding)

    def __call__(self, slopes: Array, intercept_slopes: Array, weight: Array) -> float:
        """The norm; of several problems the largest.

        Args:
            slopes: the gradient of the mean loss by the weight, shape (p, k).
            intercept_slopes: that by the intercept, shape (k,).
            weight: shape (p, k).
        """
        slopes = slopes + self._l2 * weight
        if self._l1 > 0:  # the least subgradient
            beside = np.sign(slopes) * np.maximum(np.abs(slopes) - self._l1, 0)
            slopes = np.where(weight != 0, slopes + np.copysign(self._l1, weight), beside)
        norms = np.sqrt(self._squares(slopes, intercept_slopes))
        return float(np.max(np.where(norms <= self._least, 0.0, norms / self._scale)))

    def _squares(self, slopes: Array, intercept_slopes: Array) -> Array:
        """Of each problem."""
        slopes = slopes - self._means * intercept_slopes if self._intercept else slopes
        # A column without curvature is constant, and has no slope.
        flat = np.zeros_like(slopes)
        terms = np.divide(slopes * slopes, self._curvature, out=flat, where=self._curvature > 0)
        squares = sum_in_order(terms)
        if self._intercept:
            squares = squares + intercept_slopes * intercept_slopes / self._weight
        return np.asarray(squares if self._separate else np.cumsum(squares)[-1:])
