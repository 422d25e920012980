"""Losses of predictions, and the linear model that turns one into a function for `train`.

One convention: every loss is called as `loss(z, y)` with the predictions `z` and the targets `y` of
a batch of m rows. It gives the mean over the rows, and its derivative by `z` in the shape and dtype
of `z`. With a `sample_weight` it is the mean of weight times loss, still over m: weights that
are 1 on average make a weighted mean, of which batches have unbiased shares.

Weight decay belongs to the optimizer, so no loss has a penalty. The exponentials and products are
NumPy's: unlike those of a step, their last bits may differ between processors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._engine import checks as check

Array = NDArray[Any]
#: `loss(z, y)` gives the mean over the rows and its derivative by z; those here take weights too.
Loss = Callable[..., tuple[float, Array]]
#: An array of weights, or the pair of weight and bias as a dict, list or tuple.
LinearParams = Any


def least_squares(
    z: Array, y: ArrayLike, sample_weight: ArrayLike | None = None
) -> tuple[float, Array]:
    """Half the mean squared error, `1/(2m) sum (z - y)^2`.

    Args:
        z: predictions, float32 or float64, shape (m,), or (m, k) for k outputs, which are summed.
        y: targets, in the shape of `z`; taken in the dtype of `z`.
        sample_weight: what each row counts, at least 0, shape (m,); None (default) for 1.

    Returns:
        The value, and its derivative by `z`.

    Raises:
        TypeError: `z` is no float32 or float64 array, `y` is not of real numbers.
        ValueError: an empty batch, shapes that do not fit, a weight below 0.

    Example:
        >>> import numpy as np
        >>> from gradstep.losses import least_squares
        >>> least_squares(np.array([1.0, 4.0]), [1.0, 2.0])
        (1.0, array([0., 1.]))

    References:
        Gauss, Theoria motus corporum coelestium, 1809.
    """
    z, y = _rows(z, y, (1, 2))
    r = z - y.astype(z.dtype)
    return _mean(0.5 * r * r, r, sample_weight)


def huber(
    z: Array, y: ArrayLike, sample_weight: ArrayLike | None = None, *, delta: float = 1.0
) -> tuple[float, Array]:
    """Squares near the target and absolute values far from it, which forgives outliers.

    With `r = |z - y|` and `q = min(r, delta)`, the mean of `q (r - q/2)`: `r^2 / 2` up to `delta`,
    `delta (r - delta/2)` beyond.

    Args:
        z: predictions, float32 or float64, shape (m,), or (m, k) for k outputs, which are summed.
        y: targets, in the shape of `z`; taken in the dtype of `z`.
        sample_weight: what each row counts, at least 0, shape (m,); None (default) for 1.
        delta: where squares end, in units of `y`; above 0, default 1. To fix another one:
            `functools.partial(huber, delta=0.1)`.

    Returns:
        The value, and its derivative by `z`.

    Raises:
        TypeError: `z` is no float32 or float64 array, `y` is not of real numbers.
        ValueError: an empty batch, shapes that do not fit, a weight below 0, `delta` not above 0.

    Example:
        >>> import numpy as np
        >>> from gradstep.losses import huber
        >>> huber(np.array([1.0, 5.0]), [0.0, 0.0], delta=2.0)
        (4.25, array([0.5, 1. ]))

    References:
        Huber, Robust estimation of a location parameter, 1964.
    """
    z, y = _rows(z, y, (1, 2))
    delta = min(check.non_negative("delta", delta), float(np.finfo(z.dtype).max))
    if z.dtype.type(delta) == 0:
        raise ValueError(f"delta must be above 0 in {z.dtype}, got {delta}")
    r = z - y.astype(z.dtype)
    distance = np.abs(r)
    q = np.minimum(distance, delta)
    return _mean(q * (distance - 0.5 * q), np.clip(r, -delta, delta), sample_weight)


def hinge(z: Array, y: ArrayLike, sample_weight: ArrayLike | None = None) -> tuple[float, Array]:
    """The loss of the support vector machine, the mean of `max(0, 1 - s z)`, s the label's sign.

    Args:
        z: scores, float32 or float64, shape (m,), or (m, k) for k labels, which are summed.
        y: labels, in the shape of `z`: all in {-1, 1}, or all in {0, 1}.
        sample_weight: what each row counts, at least 0, shape (m,); None (default) for 1.

    Returns:
        The value, and its derivative by `z`, which is 0 at the kink `s z = 1`.

    Raises:
        TypeError: `z` is no float32 or float64 array, `y` is not of real numbers.
        ValueError: an empty batch, shapes that do not fit, a weight below 0, any other label.

    Example:
        >>> import numpy as np
        >>> from gradstep.losses import hinge
        >>> hinge(np.array([3.0, 0.5]), [1, -1])
        (0.75, array([0. , 0.5]))

    References:
        Cortes and Vapnik, Support-vector networks, 1995.
    """
    z, s = _signs(z, y)
    gap = 1 - s * z
    return _mean(np.maximum(gap, 0), np.where(gap > 0, -s, 0), sample_weight)


def squared_hinge(
    z: Array, y: ArrayLike, sample_weight: ArrayLike | None = None
) -> tuple[float, Array]:
    """The hinge without its kink, the mean of `max(0, 1 - s z)^2`, s the label's sign.

    Args:
        z: scores, float32 or float64, shape (m,), or (m, k) for k labels, which are summed.
        y: labels, in the shape of `z`: all in {-1, 1}, or all in {0, 1}.
        sample_weight: what each row counts, at least 0, shape (m,); None (default) for 1.

    Returns:
        The value, and its derivative by `z`.

    Raises:
        TypeError: `z` is no float32 or float64 array, `y` is not of real numbers.
        ValueError: an empty batch, shapes that do not fit, a weight below 0, any other label.

    Example:
        >>> import numpy as np
        >>> from gradstep.losses import squared_hinge
        >>> squared_hinge(np.array([3.0, 0.5]), [1, -1])
        (1.125, array([0. , 1.5]))

    References:
        Chang, Hsieh and Lin, Coordinate descent method for large-scale L2-loss linear support
        vector machines, 2008.
    """
    z, s = _signs(z, y)
    gap = np.maximum(1 - s * z, 0)
    return _mean(gap * gap, np.where(gap > 0, -2 * s * gap, 0), sample_weight)


def logistic(z: Array, y: ArrayLike, sample_weight: ArrayLike | None = None) -> tuple[float, Array]:
    """The loss of logistic regression, the mean of `log(1 + exp(-s z))`, s the label's sign.

    Args:
        z: log odds of the label 1, float32 or float64, shape (m,), or (m, k) for k labels, whose
            losses are summed.
        y: labels, in the shape of `z`: all in {-1, 1}, or all in {0, 1}.
        sample_weight: what each row counts, at least 0, shape (m,); None (default) for 1.

    Returns:
        The value, and its derivative by `z`, `-s / (1 + exp(s z)) / m`.

    Raises:
        TypeError: `z` is no float32 or float64 array, `y` is not of real numbers.
        ValueError: an empty batch, shapes that do not fit, a weight below 0, any other label.

    Example:
        >>> import numpy as np
        >>> from gradstep.losses import logistic
        >>> logistic(np.array([0.0, 1e4]), [1, 0])
        (5000.34657359028, array([-0.25,  0.5 ]))

    References:
        Cox, The regression analysis of binary sequences, 1958.
    """
    z, s = _signs(z, y)
    u = -s * z
    # Of a negative number, exp cannot overflow.
    e = np.exp(-np.abs(u))
    return _mean(
        np.maximum(u, 0) + np.log1p(e), -s * np.where(u > 0, 1, e) / (1 + e), sample_weight
    )


def softmax(z: Array, y: ArrayLike, sample_weight: ArrayLike | None = None) -> tuple[float, Array]:
    """Cross-entropy of the softmax with class numbers, the mean of `log(sum_j exp(z_j)) - z_y`.

    Args:
        z: scores, float32 or float64, shape (m, k), a column per class.
        y: classes, whole numbers from 0 to k - 1, shape (m,).
        sample_weight: what each row counts, at least 0, shape (m,); None (default) for 1.

    Returns:
        The value, and its derivative by `z`: `(exp(z_j) / sum exp(z) - [j = y]) / m`.

    Raises:
        TypeError: `z` is no float32 or float64 array, `y` is not of whole numbers.
        ValueError: an empty batch, shapes that do not fit, a weight below 0, a class that does not
            exist.

    Example:
        >>> import numpy as np
        >>> from gradstep.losses import softmax
        >>> softmax(np.array([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]]), [0, 0])
        (5000.0, array([[ 0. ,  0. ,  0. ],
               [-0.5,  0.5,  0. ]]))

    References:
        Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990.
    """
    z, y = _rows(z, y, (2,))
    if y.dtype.kind not in "iu":
        raise TypeError(f"y must hold whole numbers, got dtype {y.dtype}")
    classes = z.shape[1]
    wrong = (y < 0) | (y >= classes)
    if wrong.any():
        raise ValueError(f"y must hold classes from 0 to {classes - 1}, got {y[wrong][0]}")
    rows = np.arange(len(z))
    shifted = z - z.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=1)
    dz = e / total[:, np.newaxis]
    dz[rows, y] -= 1
    return _mean(np.log(total) - shifted[rows, y], dz, sample_weight)


#: The largest second derivative by z of each loss that has one, for one row.
CURVATURES: Mapping[str, float] = MappingProxyType(
    {"least_squares": 1.0, "huber": 1.0, "squared_hinge": 2.0, "logistic": 0.25, "softmax": 0.5}
)


def linear(loss: Loss) -> Callable[..., tuple[float, LinearParams]]:
    """The `loss_and_grad(params, x, y)` of the linear model `z = x @ weight + bias` under a loss.

    The gradients are `x.T @ dz` and the column sums of `dz`, in the structure of the parameters.
    There is a bias where the parameters have one.

    Args:
        loss: a loss of this module, or any `loss(z, y)` of the same convention.

    Returns:
        A function of `params`, `x`, `y` and, if wanted, `sample_weight`, for `train` or a loop of
        one's own. It gives the value and the gradients.

        params: the weight, of shape (d,), or (d, k) for k outputs; or weight and bias as
            `{"weight": w, "bias": b}`, `[w, b]` or `(w, b)`, where b has the shape (k,), and beside
            a weight (d,) the shape (1,) or ().
        x: rows, shape (m, d), in the dtype of the parameters.
        y: targets or labels, as the loss takes them.
        sample_weight: what each row counts, given to the loss; not given if None (default).

    Raises:
        TypeError: `loss` cannot be called. When called: an argument of the wrong type, or `x` of
            another dtype than the parameters (nothing is converted).
        ValueError: when called: parameters of another structure, shapes that do not fit.

    Example:
        >>> import numpy as np
        >>> from gradstep.losses import least_squares, linear
        >>> x, y = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([3.0, 2.0])
        >>> linear(least_squares)([np.zeros(2), np.zeros(1)], x, y)
        (3.25, [array([-1.5, -2. ]), array([-2.5])])
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of predictions and targets, got {loss!r}")

    def loss_and_grad(
        params: LinearParams, x: Array, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, LinearParams]:
        weight, bias = _weight_and_bias(params)
        _check_linear(x, weight, bias)
        z = x @ weight if bias is None else x @ weight + bias
        value, dz = loss(z, y) if sample_weight is None else loss(z, y, sample_weight)
        if bias is None:
            return value, x.T @ dz
        grads = {"weight": x.T @ dz, "bias": np.reshape(dz.sum(axis=0), bias.shape)}
        if isinstance(params, dict):
            return value, grads
        make = getattr(params, "_make", type(params))  # of a named tuple, or list or tuple
        return value, make(grads.values())

    return loss_and_grad


def _rows(z: Array, y: ArrayLike, dimensions: tuple[int, ...]) -> tuple[Array, Array]:
    """Checked predictions, and targets in their shape; one per row where they must be a table."""
    _check_float("z", z)
    if z.ndim not in dimensions:
        shapes = " or ".join("(m,)" if n == 1 else "(m, k)" for n in dimensions)
        raise ValueError(f"z must have the shape {shapes}, got {z.shape}")
    if z.size == 0:
        raise ValueError(f"z must not be empty, got the shape {z.shape}")
    if isinstance(y, np.ma.MaskedArray):
        raise TypeError("y must be a plain array, got a masked one")
    y = np.asarray(y)
    # Exactly: beside z of shape (m,), broadcasting would pair y of shape (m, 1) to a table (m, m).
    shape = z.shape if 1 in dimensions else z.shape[:1]
    if y.shape != shape:
        raise ValueError(f"y must have the shape {shape} to fit z, got {y.shape}")
    if y.dtype.kind not in "biuf":
        raise TypeError(f"y must hold real numbers, got dtype {y.dtype}")
    return z, y


def _signs(z: Array, y: ArrayLike) -> tuple[Array, Array]:
    """Checked scores, and the labels as -1 and 1 in their dtype."""
    z, y = _rows(z, y, (1, 2))
    positive = y == 1
    negative = y == (0 if (y == 0).any() else -1)
    if not (positive | negative).all():
        labels = np.unique(y)[:5].tolist()
        raise ValueError(f"y must hold the labels -1 and 1, or else 0 and 1, got {labels}")
    one = z.dtype.type(1)
    return z, np.where(positive, one, -one)


def _mean(terms: Array, slopes: Array, sample_weight: ArrayLike | None) -> tuple[float, Array]:
    """A loss from what each row adds to it and the derivative of that."""
    m = len(slopes)
    if sample_weight is not None:
        weights = _weights(sample_weight, m).astype(slopes.dtype)
        terms, slopes = (np.multiply(x.T, weights).T for x in (terms, slopes))
    return float(terms.sum(dtype=np.float64)) / m, slopes / m


def _weights(sample_weight: ArrayLike, m: int) -> Array:
    weights = np.asarray(sample_weight)
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight must hold real numbers, got dtype {weights.dtype}")
    if weights.shape != (m,):
        raise ValueError(f"sample_weight must have the shape ({m},), got {weights.shape}")
    wrong = ~((weights >= 0) & np.isfinite(weights))
    if wrong.any():
        raise ValueError(f"sample_weight must be at least 0 and finite, got {weights[wrong][0]}")
    return weights


def _weight_and_bias(params: LinearParams) -> tuple[Array, Array | None]:
    if isinstance(params, np.ndarray):
        return params, None
    if isinstance(params, dict):
        if params.keys() != {"weight", "bias"}:
            raise ValueError(f"params must have the keys 'weight' and 'bias', got {list(params)}")
        return params["weight"], params["bias"]
    if not isinstance(params, (list, tuple)):
        raise TypeError(
            "params must be an array, or weight and bias as a dict, list or tuple, "
            f"got {type(params).__name__}"
        )
    if len(params) != 2:
        raise ValueError(f"params must hold a weight and a bias, got {len(params)} items")
    return params[0], params[1]


def _check_linear(x: Array, weight: Array, bias: Array | None) -> None:
    """Dtypes and shapes, so that nothing is converted or broadcast."""
    _check_float("weight", weight)
    if weight.ndim not in (1, 2):
        raise ValueError(f"weight must have the shape (d,) or (d, k), got {weight.shape}")
    _check_float("x", x, like=weight)
    if x.shape[1:] != weight.shape[:1]:
        raise ValueError(f"x must have the shape (m, {len(weight)}), got {x.shape}")
    if bias is None:
        return
    _check_float("bias", bias, like=weight)
    shapes = [weight.shape[1:]] if weight.ndim == 2 else [(1,), ()]
    if bias.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"bias must have the shape {expected}, got {bias.shape}")


def _check_float(name: str, array: Any, like: Array | None = None) -> None:
    check.array(name, array)
    if like is None and array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}")
    if like is not None and array.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} like the weight, got {array.dtype}")
