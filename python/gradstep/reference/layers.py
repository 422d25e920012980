"""The rules with norms, factors or matrices of a whole array."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .rules import power
from .sums import block_sums, grad_norm, tile_sums, tree_sum

Array = NDArray[Any]


def trust(w: Array, direction: Array, ratio: Callable[[float, float], float]) -> float:
    """The ratio of both norms, 1 where one of them is 0 or not finite."""
    norms = [math.sqrt(tree_sum(block_sums(x))) for x in (w, direction)]
    return ratio(*norms) if all(0 < norm < math.inf for norm in norms) else 1.0


def lars(
    w: Array, g: Array, v: Array, *,
    t: int, lr: float, momentum: float, trust_coefficient: float, weight_decay: float,
) -> None:  # fmt: skip
    factor = trust(w, g, lambda w, g: trust_coefficient * w / (g + weight_decay * w))
    v[...] = momentum * v + lr * factor * (g + weight_decay * w)
    w -= v


def lamb(
    w: Array, g: Array, m: Array, v: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float, bias_correction: bool,
    weight_decay: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    correction = 1 / (1 - power(beta1, t)) if bias_correction else 1.0
    scale = 1 / math.sqrt(1 - power(beta2, t)) if bias_correction else 1.0
    direction = correction * m / (np.sqrt(v) * scale + eps) + weight_decay * w
    w -= lr * trust(w, direction, lambda w, d: w / d) * direction


def factored_variance(g: Array, row_var: Array, col_var: Array, share: float, eps1: Any) -> Array:
    """The estimate for one matrix, whose factors are brought up to date."""
    number = g.dtype.type
    along, down = tile_sums(g)
    row_mean, col_mean = number(along / g.shape[1])[:, None], number(down / g.shape[0])[None, :]
    row_var += share * (row_mean - row_var)
    col_var += share * (col_mean - col_var)
    mean = number(np.cumsum(row_var, dtype=np.float64)[-1] / g.shape[0])
    estimate: Array = row_var / (eps1 if mean < eps1 else mean) * col_var
    return estimate


def adafactor(
    w: Array, g: Array, variance: Array, row_var: Array, col_var: Array, *,
    t: int, lr: float, beta2_decay: float, eps1: float, eps2: float, d: float, weight_decay: float,
) -> None:  # fmt: skip
    number, limits = g.dtype.type, np.finfo(g.dtype)
    eps = limits.eps if eps1 == 0 else np.maximum(number(eps1), limits.tiny)
    floor, share = np.maximum(eps * eps, limits.tiny), float(_core.power(t, beta2_decay))
    if w.ndim < 2:
        variance += share * (g * g - variance)
        estimate = variance
    else:
        estimate = np.empty_like(g)
        for matrix in np.ndindex(g.shape[:-2]) if g.size else ():
            estimate[matrix] = factored_variance(
                g[matrix], row_var[matrix], col_var[matrix], share, eps
            )
    direction = g / np.sqrt(np.where(estimate < floor, floor, estimate))
    scale = 1 / math.sqrt(g.size) if g.size else 1.0
    rms, excess = (scale * math.sqrt(tree_sum(block_sums(x))) for x in (w, direction))
    step = min(lr, 1 / math.sqrt(t)) * (rms if eps2 < rms < math.inf else eps2)
    if 1 < excess / d < math.inf:
        step /= excess / d
    w[...] = (1 - lr * weight_decay) * w - step * direction


def muon_direction(
    w: Array, g: Array, m: Array, *, t: int, lr: float, momentum: float, nesterov: float
) -> None:
    mean = m + (1 - momentum) * (g - m)
    w[...] = g + momentum * (mean - g) if nesterov else mean


def orthogonalized(
    u: Array, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Array:
    """What `Muon` does between its two rules, before the factor of the shape.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> x = reference.orthogonalized(np.array([[3.0, 4.0]]), (1.5, -0.5, 0.0), 9, 1e-7)
        >>> x.round(6)
        array([[0.6, 0.8]])
    """
    a, b, c = coefficients
    wide = u.shape[0] <= u.shape[1]
    x: Array = (u / np.float64(max(grad_norm([u]), eps))).astype(u.dtype)
    for _ in range(steps):
        gram = x @ x.T if wide else x.T @ x
        factor = b * gram + c * (gram @ gram)
        x = a * x + (factor @ x if wide else x @ factor)
    return x


def muon(w: Array, g: Array, m: Array, o: Array, *, t: int, lr: float, momentum: float) -> None:
    m += (1 - momentum) * (g - m)
    w -= lr * o
