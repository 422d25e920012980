"""Weights of samples, and where a fit begins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _check_sample_weight

from .. import _core

Array = NDArray[Any]


def aligned(array: Array) -> Array:
    """A copy where elements are not aligned to their size, as in a packed structured array."""
    return np.require(array, requirements="A")


def relative_weights(sample_weight: Any, x: Array) -> Array | None:
    """The weights of rows in float64, scaled to a mean of 1; None for None.

    A mean over the rows is then the weighted mean, and one over some of them is it on average.

    Raises:
        ValueError: negative weights, zeros only, or not one per row.

    Example:
        >>> import numpy as np
        >>> from gradstep.linear._weights import relative_weights
        >>> relative_weights([2, 0, 1], np.zeros((3, 2)))
        array([2., 0., 1.])
    """
    if sample_weight is None:
        return None
    weights = np.asarray(_check_sample_weight(sample_weight, x, dtype=np.float64))
    if weights.min() < 0:
        raise ValueError(f"sample_weight must be at least 0, got {weights.min()}")
    largest = weights.max()
    if largest == 0:  # which newer versions of scikit-learn have refused above
        raise ValueError("sample_weight must hold a weight above zero, got only zeros")
    relative = weights / largest  # their sum cannot overflow
    return np.asarray(relative / relative.mean())


def null_intercept(loss: str, targets: Array, weights: Array | None, outputs: int) -> Array:
    """The best scores of a model without features, about, one per output.

    Example:
        >>> import numpy as np
        >>> from gradstep.linear._weights import null_intercept
        >>> null_intercept("least_squares", np.array([1.0, 3.0]), None, 1)
        array([2.])
    """
    if loss in ("least_squares", "huber"):
        table = targets.reshape(len(targets), outputs)
        if loss == "least_squares":
            return np.asarray(np.average(table.astype(np.float64), axis=0, weights=weights))
        return np.array([weighted_median(column, weights) for column in table.T])
    counts = np.bincount(targets.astype(np.int64), weights, minlength=max(outputs, 2))
    # A class without a row would have a score of minus infinity.
    shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    if loss == "squared_hinge":
        return np.asarray(2 * (shares[1:] if outputs == 1 else shares) - 1)
    logs = _core.log(shares)  # whose bits no processor changes
    return np.asarray(logs[1:] - logs[0] if outputs == 1 else logs - logs.mean())


def weighted_median(values: Array, weights: Array | None) -> float:
    """The least value up to which lies half of the weight.

    Example:
        >>> import numpy as np
        >>> from gradstep.linear._weights import weighted_median
        >>> weighted_median(np.array([3.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0]))
        3.0
    """
    order = np.argsort(values, kind="stable")
    below = np.cumsum(np.ones(len(values)) if weights is None else weights[order])
    return float(values[order[np.searchsorted(below, below[-1] / 2)]])
