"""Every update rule in NumPy, a few lines each: what the native kernels equal bit for bit.

Each function updates the parameter `w` and the states in place, given the gradient `g`, in the same
order of operations as `cpp/src/rules.hpp`. They serve as the oracle of the tests, as the NumPy side
of the benchmarks, and to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _core

Array = NDArray[Any]
Class = TypeVar("Class")


def power(base: float, n: int) -> float:
    """`base**n` by repeated squaring; the C library's last bits depend on the processor."""
    result = 1.0
    while n > 0:
        if n & 1:
            result *= base
        base *= base
        n >>= 1
    return result


def clipped(x: Array, limit: Any) -> Array:
    """The nearest numbers within plus and minus the limit, which has the dtype of `x`."""
    return np.where(x > limit, limit, np.where(x < -limit, -limit, x))


def sgd(w: Array, g: Array, *, t: int, lr: float) -> None:
    w -= lr * g


def sgd_momentum(
    w: Array, g: Array, b: Array, *, t: int, lr: float, momentum: float, dampening: float
) -> None:
    b[...] = g if t == 1 else momentum * b + (1 - dampening) * g
    w -= lr * b


def sgd_nesterov(w: Array, g: Array, b: Array, *, t: int, lr: float, momentum: float) -> None:
    b[...] = g if t == 1 else momentum * b + g
    w -= lr * (g + momentum * b)


def momentum(w: Array, g: Array, v: Array, *, t: int, lr: float, momentum: float) -> None:
    v[...] = momentum * v - lr * g
    w += v


def momentum_average(w: Array, g: Array, v: Array, *, t: int, lr: float, momentum: float) -> None:
    v[...] = momentum * v + (1 - momentum) * g
    w -= lr * v


def nesterov(w: Array, g: Array, v: Array, *, t: int, lr: float, momentum: float) -> None:
    next_v = momentum * v - lr * g
    w += (1 + momentum) * next_v - momentum * v
    v[...] = next_v


def adagrad(
    w: Array, g: Array, s: Array, *, t: int, lr: float, lr_decay: float, eps: float
) -> None:
    s += g * g
    w -= lr / (1 + (t - 1) * lr_decay) * (g / (np.sqrt(s) + eps))


def adagrad_momentum(
    w: Array, g: Array, m: Array, s: Array, *,
    t: int, lr: float, lr_decay: float, eps: float, beta: float,
) -> None:  # fmt: skip
    m[...] = beta * m + (1 - beta) * g
    s += g * g
    w -= lr / (1 + (t - 1) * lr_decay) * (m / (np.sqrt(s) + eps))


def rmsprop(w: Array, g: Array, v: Array, *, t: int, lr: float, alpha: float, eps: float) -> None:
    v[...] = alpha * v + (1 - alpha) * g * g
    w -= lr * (g / (np.sqrt(v) + eps))


def rmsprop_momentum(
    w: Array, g: Array, v: Array, b: Array, *,
    t: int, lr: float, alpha: float, eps: float, momentum: float,
) -> None:  # fmt: skip
    v[...] = alpha * v + (1 - alpha) * g * g
    b[...] = momentum * b + g / (np.sqrt(v) + eps)
    w -= lr * b


def rmsprop_centered(
    w: Array, g: Array, v: Array, q: Array, *, t: int, lr: float, alpha: float, eps: float
) -> None:
    v[...] = alpha * v + (1 - alpha) * g * g
    q += (1 - alpha) * (g - q)
    w -= lr * (g / (np.sqrt(np.maximum(v - q * q, 0)) + eps))


def rmsprop_centered_momentum(
    w: Array, g: Array, v: Array, q: Array, b: Array, *,
    t: int, lr: float, alpha: float, eps: float, momentum: float,
) -> None:  # fmt: skip
    v[...] = alpha * v + (1 - alpha) * g * g
    q += (1 - alpha) * (g - q)
    b[...] = momentum * b + g / (np.sqrt(np.maximum(v - q * q, 0)) + eps)
    w -= lr * b


def adam(
    w: Array, g: Array, m: Array, v: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float, bias_correction: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    step = lr / (1 - power(beta1, t)) if bias_correction else lr
    scale = 1 / math.sqrt(1 - power(beta2, t)) if bias_correction else 1.0
    w -= step * (m / (np.sqrt(v) * scale + eps))


def adam_amsgrad(
    w: Array, g: Array, m: Array, v: Array, u: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float, bias_correction: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    u[...] = np.where((u > v) | np.isnan(u), u, v)
    step = lr / (1 - power(beta1, t)) if bias_correction else lr
    scale = 1 / math.sqrt(1 - power(beta2, t)) if bias_correction else 1.0
    w -= step * (m / (np.sqrt(u) * scale + eps))


def adamax(
    w: Array, g: Array, m: Array, u: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    u[...] = np.maximum(beta2 * u, np.abs(g) + eps)
    w -= lr / (1 - power(beta1, t)) * (m / u)


def nadam_momentum(beta1: float, momentum_decay: float, t: int) -> float:
    """`mu_t` of NAdam."""
    return beta1 * (1 - 0.5 * float(_core.power(0.96, t * momentum_decay)))


def nadam(
    w: Array, g: Array, m: Array, v: Array, *, t: int, lr: float, beta1: float, beta2: float,
    eps: float, momentum_decay: float, mu_product: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    mu, after = (nadam_momentum(beta1, momentum_decay, n) for n in (t, t + 1))
    product = mu_product * mu
    of_gradient, of_mean = lr * (1 - mu) / (1 - product), lr * after / (1 - product * after)
    w -= (of_gradient * g + of_mean * m) / (np.sqrt(v) * (1 / math.sqrt(1 - power(beta2, t))) + eps)


def radam(
    w: Array, g: Array, m: Array, v: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    v[...] = beta2 * v + (1 - beta2) * g * g
    rest, r_inf, step = 1 - power(beta2, t), 2 / (1 - beta2) - 1, lr / (1 - power(beta1, t))
    r = r_inf - 2 * t * (1 - rest) / rest
    if r > 5:
        rectifier = math.sqrt((r - 4) * (r - 2) * r_inf / ((r_inf - 4) * (r_inf - 2) * r))
        w -= step * (rectifier * math.sqrt(rest)) * (m / (np.sqrt(v) + eps))
    else:
        w -= step * m


def adadelta(
    w: Array, g: Array, v: Array, a: Array, *, t: int, lr: float, rho: float, eps: float
) -> None:
    v[...] = rho * v + (1 - rho) * g * g
    delta = np.sqrt(a + eps) / np.sqrt(v + eps) * g
    a[...] = rho * a + (1 - rho) * delta * delta
    w -= lr * delta


def adabelief(
    w: Array, g: Array, m: Array, s: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    s[...] = beta2 * s + (1 - beta2) * (g - m) * (g - m) + eps
    scale = 1 / math.sqrt(1 - power(beta2, t))
    w -= lr / (1 - power(beta1, t)) * (m / (np.sqrt(s) * scale + eps))


def yogi(
    w: Array, g: Array, m: Array, v: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float, bias_correction: float,
) -> None:  # fmt: skip
    m[...] = beta1 * m + (1 - beta1) * g
    v -= (1 - beta2) * np.sign(v - g * g) * (g * g)
    step = lr / (1 - power(beta1, t)) if bias_correction else lr
    scale = 1 / math.sqrt(1 - power(beta2, t)) if bias_correction else 1.0
    w -= step * (m / (np.sqrt(v) * scale + eps))


def ademamix(
    w: Array, g: Array, m: Array, n: Array, v: Array, *, t: int, lr: float, beta1: float,
    beta2: float, beta3: float, eps: float, alpha: float, alpha_warmup: float, beta3_warmup: float,
) -> None:  # fmt: skip
    if t < alpha_warmup:
        alpha *= t / alpha_warmup
    if t < beta3_warmup:
        x = t / beta3_warmup
        with np.errstate(divide="ignore"):
            log1, log3 = _core.log(np.array([beta1, beta3]))
            beta3 = min(float(_core.exp(1 / ((1 - x) / log1 + x / log3))), beta3)
    m[...] = beta1 * m + (1 - beta1) * g
    n += (1 - beta3) * (g - n)
    v[...] = beta2 * v + (1 - beta2) * g * g
    step, scale = lr / (1 - power(beta1, t)), 1 / math.sqrt(1 - power(beta2, t))
    w -= (step * m + lr * alpha * n) / (np.sqrt(v) * scale + eps)


def adopt(
    w: Array, g: Array, m: Array, v: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    if t == 1:
        v[...] = g * g
        return
    limit = g.dtype.type(math.sqrt(math.sqrt(t - 1)))
    n = g / np.maximum(np.sqrt(v), g.dtype.type(eps))
    n = clipped(n, limit)
    m[...] = beta1 * m + (1 - beta1) * n
    w -= lr * m
    v[...] = beta2 * v + (1 - beta2) * (g * g)


def ftrl(
    w: Array, g: Array, z: Array, n: Array, *, t: int, lr: float, beta: float, l1: float, l2: float
) -> None:
    inverse, threshold = 1 / lr if lr > 0 else math.inf, w.dtype.type(l1)
    if np.isinf(w.dtype.type(inverse)):
        return
    before = np.sqrt(n)
    n += g * g
    z += g - inverse * (np.sqrt(n) - before) * w
    beyond = z - clipped(z, threshold)
    w[...] = np.where(beyond == 0, 0, -(beyond / (inverse * np.sqrt(n) + (beta * inverse + l2))))


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


def lane_sums(squares: Array) -> Array:
    """The sum of each row, by LANES lanes of which lane k adds the elements k, k + LANES, ..."""
    count, size = squares.shape
    turns = -(-size // LANES)
    padded = np.zeros((count, turns * LANES))
    padded[:, :size] = squares
    lanes = np.zeros((count, LANES))
    for turn in np.moveaxis(padded.reshape(count, turns, LANES), 1, 0):
        lanes += turn
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def tile_sums(g: Array) -> tuple[Array, Array]:
    """Sums of squares along the rows and down the columns of a matrix, in float64, by tiles."""
    height, width = TILE
    squares = np.square(g.astype(np.float64))
    along, down = np.zeros(g.shape[0]), np.zeros(g.shape[1])
    for left in range(0, g.shape[1], width):
        along += lane_sums(squares[:, left : left + width])
    for top in range(0, g.shape[0], height):
        down += np.cumsum(squares[top : top + height], axis=0)[-1]
    return along, down


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


def rprop(
    w: Array, g: Array, prev: Array, step_size: Array, *, t: int, lr: float,
    etaminus: float, etaplus: float, step_min: float, step_max: float,
) -> None:  # fmt: skip
    if t == 1:
        step_size.fill(lr)
    number, turn = g.dtype.type, g * prev
    step_size *= np.where(turn > 0, number(etaplus), np.where(turn < 0, number(etaminus), 1))
    step_size[...] = np.clip(step_size, step_min, step_max)
    w -= np.where(turn < 0, 0, np.sign(g) * step_size)
    prev[...] = np.where(turn < 0, 0, g)


def lion(w: Array, g: Array, m: Array, *, t: int, lr: float, beta1: float, beta2: float) -> None:
    w -= lr * np.sign(beta1 * m + (1 - beta1) * g)
    m[...] = beta2 * m + (1 - beta2) * g


def asgd_rate(lr: float, lambd: float, alpha: float, t: int) -> float:
    """`eta` of ASGD."""
    return lr / float(_core.power(1 + lambd * lr * (t - 1), alpha))


def asgd(
    w: Array, g: Array, ax: Array, *,
    t: int, lr: float, lambd: float, alpha: float, t0: float,
) -> None:  # fmt: skip
    eta = asgd_rate(lr, lambd, alpha, t)
    w[...] = (1 - lambd * eta) * w - eta * g
    ax[...] = ax + (w - ax) * (1 / (t - 1 - t0)) if t - 1 - t0 > 1 else w


def schedule_free_sgd(
    w: Array, g: Array, z: Array, *, t: int, lr: float, momentum: float, share: float
) -> None:
    if t == 1:
        z[...] = w
    w[...] = (w + share * (z - w)) - lr * (1 - momentum * (1 - share)) * g
    z -= lr * g


def schedule_free_adamw(
    w: Array, g: Array, z: Array, v: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float, share: float, weight_decay: float,
) -> None:  # fmt: skip
    v[...] = beta2 * v + (1 - beta2) * g * g
    direction = g / (np.sqrt(v) * (1 / math.sqrt(1 - power(beta2, t))) + eps) + weight_decay * w
    schedule_free_sgd(w, direction, z, t=t, lr=lr, momentum=beta1, share=share)


def sparse_adam(
    w: Array, g: Array, m: Array, v: Array, *,
    t: int, lr: float, beta1: float, beta2: float, eps: float,
) -> None:  # fmt: skip
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    step = lr * math.sqrt(1 - power(beta2, t)) / (1 - power(beta1, t))
    w -= step * (m / (np.sqrt(v) + eps))


def window_sag(w: Array, g: Array, d: Array, y: Array, *, t: int, lr: float, seen: float) -> None:
    d += g - y
    y[...] = g
    w -= lr / seen * d


def sag(
    w: Array, g: Array, d: Array, y: Array, *,
    t: int, lr: float, row_weight: float, weight_seen: float,
) -> None:  # fmt: skip
    d += row_weight * (g - y)
    y[...] = g
    w -= lr / weight_seen * d


def saga(
    w: Array, g: Array, d: Array, y: Array, *,
    t: int, lr: float, row_weight: float, weight_seen: float, rows_seen: float,
) -> None:  # fmt: skip
    delta = g - y
    d += row_weight * delta
    y[...] = g
    jump, step = lr * ((rows_seen - 1) * row_weight / weight_seen), lr / weight_seen
    w -= jump * delta + step * d


def saga_l1(
    w: Array, g: Array, d: Array, y: Array, *, t: int, lr: float, l1: float, **seen: float
) -> None:
    saga(w, g, d, y, t=t, lr=lr, **seen)
    threshold = w.dtype.type(lr * l1)
    w -= clipped(w, threshold)


def svrg(w: Array, g: Array, snapshot_grad: Array, mu: Array, *, t: int, lr: float) -> None:
    w -= lr * (g - snapshot_grad + mu)


#: Each rule's function. Those that decay the parameter, not the gradient, are in DECOUPLED too,
#: those that are given the decay in DECAY_IN_RULE, and those whose last states are gradients, or
#: made of them, in GRADIENTS, with the number of them. What is made of them is taken AS_IT_IS.
RULES: Mapping[str, Callable[..., None]] = {
    "sgd": sgd,
    "sgd_momentum": sgd_momentum,
    "sgd_nesterov": sgd_nesterov,
    "momentum": momentum,
    "momentum_average": momentum_average,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "adagrad_momentum": adagrad_momentum,
    "rmsprop": rmsprop,
    "rmsprop_momentum": rmsprop_momentum,
    "rmsprop_centered": rmsprop_centered,
    "rmsprop_centered_momentum": rmsprop_centered_momentum,
    "adam": adam,
    "adam_amsgrad": adam_amsgrad,
    "adamw": adam,
    "adamw_amsgrad": adam_amsgrad,
    "adamax": adamax,
    "nadam": nadam,
    "nadam_decoupled": nadam,
    "radam": radam,
    "radam_decoupled": radam,
    "adadelta": adadelta,
    "adabelief": adabelief,
    "yogi": yogi,
    "ademamix": ademamix,
    "adopt": adopt,
    "adopt_decoupled": adopt,
    "ftrl": ftrl,
    "lars": lars,
    "lamb": lamb,
    "adafactor": adafactor,
    "muon_direction": muon_direction,
    "muon": muon,
    "rprop": rprop,
    "lion": lion,
    "asgd": asgd,
    "schedule_free_sgd": schedule_free_sgd,
    "schedule_free_adamw": schedule_free_adamw,
    "sparse_adam": sparse_adam,
    "sparse_adagrad": adagrad,
    "window_sag": window_sag,
    "sag": sag,
    "saga": saga,
    "saga_l1": saga_l1,
    "svrg": svrg,
}
DECOUPLED = frozenset(
    {
        "adamw", "adamw_amsgrad", "nadam_decoupled", "radam_decoupled", "adabelief", "ademamix",
        "adopt_decoupled", "muon_direction", "muon", "lion", "sag", "saga", "saga_l1", "svrg",
    }
)  # fmt: skip
DECAY_IN_RULE = frozenset({"lars", "lamb", "adafactor", "schedule_free_adamw"})
GRADIENTS: Mapping[str, int] = {"svrg": 2, "muon_direction": 1, "muon": 1}
AS_IT_IS = frozenset({"muon_direction", "muon"})


def step(
    rule: str,
    w: Array,
    g: Array,
    states: Sequence[Array],
    *,
    t: int,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float = 1.0,
    clip: float = 1.0,
    clip_value: float = math.inf,
    **hyper: float,
) -> None:
    """One step of `rule`, in place: what is done to the gradient, weight decay, then the rule.

    `clip` is the factor that clipping by the norm comes to, `min(1, clip_norm / grad_norm)`.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> w = np.ones(3)
        >>> reference.step("sgd", w, np.array([1.0, 2.0, 3.0]), [], t=1, lr=0.5)
        >>> w
        array([ 0.5,  0. , -0.5])
    """
    # Floats of Python take the array's dtype in NumPy's arithmetic, those of NumPy do not.
    hyper = {name: float(value) for name, value in hyper.items()}
    with np.errstate(all="ignore"):

        def scaled(g: Array) -> Array:
            if maximize:
                g = -g
            if grad_scale != 1:
                g = g.dtype.type(grad_scale) * g
            if clip != 1:
                g = g.dtype.type(clip) * g
            return g

        g = scaled(g)
        own = len(states) - (0 if rule in AS_IT_IS else GRADIENTS.get(rule, 0))
        states = [*states[:own], *map(scaled, states[own:])]
        if clip_value < math.inf:
            g = clipped(g, g.dtype.type(clip_value))
        if rule in DECAY_IN_RULE:
            hyper["weight_decay"] = float(weight_decay)
        elif weight_decay != 0 and rule in DECOUPLED:
            w *= 1 - hyper["lr"] * weight_decay
        elif weight_decay != 0:
            g = g + weight_decay * w
        RULES[rule](w, g, *states, t=t, **hyper)


#: What each buffer, the parameter and then the states, multiplies the bits of chance by.
OWN_CHANCE = (0x85EBCA6B, 1, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1)


def _mixed(x: int, y: int) -> int:
    """64 bits of two numbers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), twice."""
    for added in 0, 0x9E3779B97F4A7C15 * (y + 1):
        x = (x + added) % 2**64
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 % 2**64
        x ^= x >> 27
        x = x * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
    return x


def chance(
    seed: int, t: int, array: int, buffer: int, size: int, first: int = 0, bits: int = 16
) -> Array:
    """Some bits of chance for each element of a buffer, in one step: two elements share 32 bits.

    `first` is the place of the first element in its array, an even number.
    """
    pair = np.uint64(first // 2) + np.arange(-(-size // 2), dtype=np.uint64)
    upper = pair >> 32
    keys = {int(u): _mixed(_mixed(_mixed(seed, t), array), int(u)) for u in np.unique(upper)}
    key = np.array([keys[u] for u in upper.tolist()], np.uint64)
    x = ((key & 0xFFFFFFFF) + pair * 0x9E3779B1).astype(np.uint32)
    x ^= x >> 16
    x ^= (key >> 32).astype(np.uint32)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(OWN_CHANCE[buffer])
    return np.stack([x & (2**bits - 1), x >> (32 - bits)], axis=1).ravel()[:size]


def rounded(x: Array, dtype: np.dtype[Any], chance: Array | None = None) -> Array:
    """The numbers in another dtype: the nearest, or one of the two neighbours by 16 bits of chance.

    Chance is for float32 that become bfloat16 or float16. A number that lies a share `s` of the
    way to the neighbour farther from 0 goes there where `chance + s 2**16` reaches `2**16`.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import rounded
        >>> x = np.full(4, 1 + 2.0**-12, np.float32)  # a quarter of the way to the next float16
        >>> rounded(x, np.dtype(np.float16), np.array([0, 2**14, 3 * 2**14, 2**16 - 1])).tolist()
        [1.0, 1.0, 1.0009765625, 1.0009765625]
    """
    with np.errstate(all="ignore"):
        if chance is None or dtype.itemsize > 2:
            return x.astype(dtype)
        bits = x.view(np.uint32)
        size, sign = bits & 0x7FFFFFFF, bits >> 31 << 15
        chance = chance.reshape(x.shape).astype(np.uint32)
        if dtype.name == "bfloat16":
            halves = (size + chance) >> 16
        else:
            # Denormals of float16 are multiples of 2^-24, 16 bits above the unit here.
            small = np.where(size < 113 << 23, np.abs(x), np.float32(0)) * np.float32(2.0**40)
            denormal = (small.astype(np.uint32) + chance) >> 16
            normal = (np.minimum(size + (chance >> 3), 143 << 23) - (112 << 23)) >> 13
            halves = np.where(size < 113 << 23, denormal, normal)
        return np.where(np.isnan(x), np.full_like(x, np.nan).astype(dtype),
                        (sign | halves).astype(np.uint16).view(dtype))  # fmt: skip


#: Of states in 8 bits so many share an exponent, a byte in front of them. Word i of a block has the
#: numbers i of its four quarters.
STATE_BLOCK = 256
QUARTER = STATE_BLOCK // 4
#: A number of them is a power of two, from 0 to `TOP`, with 3 bits of mantissa; int8 has a sign.
TOP = {"int8": 15, "uint8": 31}
#: The last of their codes, without the sign.
LAST_CODE = {name: 8 * top + 7 for name, top in TOP.items()}
#: The least exponent of a block, biased as float32's: no number is denormal then.
LEAST_EXPONENT = 37


def blocks_shape(size: int) -> tuple[int, int]:
    """The shape of so many numbers in 8 bits."""
    return -(-size // STATE_BLOCK), 1 + STATE_BLOCK


def to_blocks(x: Array, dtype: np.dtype[Any], chance: Array | None = None) -> Array:
    """float32 numbers in 8 bits: int8, or uint8 where they are never negative.

    ```
    x = sign (2^p (1 + k / 8) - 1) 2^(E + 1 - TOP)      0 <= p <= TOP, 0 <= k < 8
    ```

    `E` is odd, and the least with which all numbers of the block are below `2^(E + 1)`. In uint8 a
    number that is not 0 does not become 0, because roots of such states are divided by. NaN and
    infinity are the two last codes, of blocks whose first byte is odd.

    Args:
        x: the numbers.
        dtype: int8 or uint8.
        chance: to round by, 20 bits for each number of a block, as `block_chance` has it; None
            (default) for the nearest.

    Returns:
        An array of shape `blocks_shape(x.size)`. After its first byte, a block has the number
        `64 k + i` at place `4 i + k`. The last block is filled up with 0.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import from_blocks, to_blocks
        >>> x = np.array([1.0, -0.3, 1e-3, 0.0], np.float32)
        >>> held = to_blocks(x, np.dtype(np.int8))
        >>> held.shape
        (1, 257)
        >>> from_blocks(held, 4)
        array([ 0.99993896, -0.31243896,  0.0010376 ,  0.        ], dtype=float32)
    """
    blocks, _ = blocks_shape(x.size)
    numbers = np.zeros((blocks, STATE_BLOCK), np.float32)
    numbers.ravel()[: x.size] = x.ravel()
    bits = numbers.view(np.uint32)
    size = bits & 0x7FFFFFFF
    infinite, nan = size == 0x7F800000, size > 0x7F800000
    size[infinite | nan] = 0
    largest = size.max(axis=1, keepdims=True) >> 23
    exponent = np.maximum(largest | 1, LEAST_EXPONENT).astype(np.uint32)
    scale = ((254 + TOP[dtype.name] - exponent) << 23).view(np.float32)
    last = LAST_CODE[dtype.name]
    with np.errstate(under="ignore"):
        total = (size.view(np.float32) * scale + np.float32(2)).view(np.uint32)
    half = 0x7FFFF + (total >> 20 & 1) if chance is None else chance.astype(np.uint32)
    code = (total + half) >> 20 & last
    if dtype.name == "uint8":
        code = np.maximum(code, size > 0)
    code = np.where(nan, last, np.where(infinite, last - 1, code))
    if dtype.name == "int8":
        code |= np.where(nan, 0, bits >> 24 & 0x80)
    held = np.empty(blocks_shape(x.size), np.uint8)
    special = (infinite | nan).any(axis=1)
    held[:, 0] = np.where(special, exponent[:, 0], exponent[:, 0] - 1)
    held[:, 1:] = code.reshape(blocks, 4, QUARTER).transpose(0, 2, 1).reshape(blocks, STATE_BLOCK)
    return held.view(dtype)


def from_blocks(held: Array, size: int) -> Array:
    """The float32 numbers that `to_blocks` made 8 bits of; `size` is how many."""
    last, top = LAST_CODE[held.dtype.name], TOP[held.dtype.name]
    blocks, code = len(held), held.view(np.uint8)[:, 1:].astype(np.uint32)
    exponent = np.maximum(held.view(np.uint8)[:, :1].astype(np.uint32) | 1, LEAST_EXPONENT)
    magnitude = code & last
    scale = ((exponent - top) << 23).view(np.float32)
    with np.errstate(over="ignore"):
        x = (((magnitude << 20) + 0x40000000).view(np.float32) - np.float32(2)) * scale
    special = held.view(np.uint8)[:, :1] & 1 == 1
    x = np.where(special & (magnitude == last - 1), np.float32(np.inf), x)
    x = np.where(special & (magnitude == last), np.float32(np.nan), x)
    x = np.where(code > last, -x, x)
    numbers: Array = x.reshape(blocks, QUARTER, 4).transpose(0, 2, 1).ravel()[:size]
    return numbers


def fill_blocks(held: Array, number: float, size: int) -> None:
    """Make so many numbers in 8 bits all the same: the nearest that there is."""
    numbers = np.full(STATE_BLOCK, number, np.float32)
    held[...] = to_blocks(numbers, held.dtype)
    held[-1:] = to_blocks(numbers[: size - (len(held) - 1) * STATE_BLOCK], held.dtype)


def block_chance(seed: int, t: int, array: int, buffer: int, size: int, first: int = 0) -> Array:
    """The `chance` of `to_blocks`, where `first` is a multiple of its blocks."""
    blocks, _ = blocks_shape(size)
    drawn = chance(seed, t, array, buffer, blocks * STATE_BLOCK, first, bits=20)
    # Two numbers that share their bits lie a quarter of a block apart.
    apart: Array = drawn.reshape(blocks, 2, QUARTER, 2).transpose(0, 1, 3, 2)
    return apart.reshape(blocks, STATE_BLOCK)


def joined(high: Array, low: Array) -> Array:
    """The float32 numbers of which `split` made two parts.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import joined, split
        >>> joined(*split(np.array([0.1, -3.3e38], np.float32)))
        array([ 1.0e-01, -3.3e+38], dtype=float32)
    """
    bits = high.view(np.uint16).astype(np.uint32)
    bits <<= 16
    bits += low.view(np.int16).astype(np.int32).view(np.uint32)
    return bits.view(np.float32)


def split(x: Array) -> tuple[Array, Array]:
    """The nearest bfloat16 of each number, as its bits, and by how many units the number differs.

    Exact: `joined` makes the same numbers of the two. NaN loses what it carries.
    """
    bits = np.asarray(np.where(np.isnan(x), np.uint32(0x7FC00000), x.view(np.uint32)))
    high, low = (bits + 0x8000) >> 16, bits & 0xFFFF
    return np.asarray(high, np.uint16), np.asarray(low, np.uint16)


def stored_step(
    rule: str,
    w: Array,
    g: Array,
    states: Sequence[Array],
    *,
    t: int,
    stochastic: bool = True,
    seed: int = 0,
    array: int = 0,
    first: int = 0,
    **options: Any,
) -> None:
    """`step` where memory may hold arrays in fewer bits: in float32, or float64 if `w` is.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> w = np.ones(3, np.float16)
        >>> g = np.array([1.0, 2.0, 3.0], np.float32)
        >>> reference.stored_step("sgd", w, g, [], t=1, lr=0.5)
        >>> w
        array([ 0.5,  0. , -0.5], dtype=float16)
    """
    arithmetic = np.float64 if w.dtype == np.float64 else np.float32
    wide, gradient, *wide_states = (
        from_blocks(a, w.size).reshape(w.shape) if a.dtype.name in TOP else a.astype(arithmetic)
        for a in (w, g, *states)
    )
    step(rule, wide, gradient, wide_states, t=t, **options)
    for buffer, (held, x) in enumerate(zip((w, *states), (wide, *wide_states), strict=True)):
        place = seed, t, array, buffer, x.size, first
        if held.dtype.name in TOP:
            drawn = block_chance(*place) if stochastic else None
            held[...] = to_blocks(x, held.dtype, drawn)
        else:
            drawn = chance(*place) if stochastic else None
            held[...] = rounded(x, held.dtype, drawn)


#: A norm is summed in blocks of so many elements, each from the start of its array, and a block in
#: so many lanes, of which lane k adds the elements k, k + LANES, k + 2 LANES, ...
BLOCK, LANES = 4096, 32
#: Where squares are summed along rows and down columns, it is by tiles of so many rows and columns.
TILE = 64, 1024


def block_sums(g: Array, scale: float = 1.0, unit: float = 1.0) -> Array:
    """The sum of squares of each block of `scale g`, times `unit**2`, in float64."""
    blocks = -(-g.size // BLOCK)
    x = np.zeros(blocks * BLOCK)
    x[: g.size] = unit * (g.dtype.type(scale) * g.ravel()).astype(np.float64)
    return lane_sums((x * x).reshape(blocks, BLOCK))


def tree_sum(sums: Array) -> float:
    """Neighbours added pair by pair: the shape depends on their number alone."""
    while sums.size > 1:
        sums = np.append(sums, np.zeros(sums.size % 2))
        sums = sums[0::2] + sums[1::2]
    return float(sums[0]) if sums.size else 0.0


def grad_norm(grads: Sequence[Array], scale: float = 1.0) -> float:
    """The L2 norm over all gradients, each times `scale`, as clipping uses it.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> reference.grad_norm([np.array([3.0]), np.array([[-4.0]])])
        5.0
    """
    with np.errstate(all="ignore"):

        def total(unit: float) -> float:
            sums = [block_sums(g, scale, unit) for g in grads]
            return tree_sum(np.concatenate(sums) if sums else np.zeros(0))

        # Squares of float64 can overflow or underflow: then again, with a power of two that brings
        # them back.
        norm_square, unit = total(1.0), 1.0
        if not math.isfinite(norm_square):
            unit = 2.0**-540
        elif norm_square < 2.0**-960:
            unit = 2.0**540
        return float(np.sqrt(np.float64(norm_square if unit == 1 else total(unit))) / unit)


def _finite(grads: Sequence[Array], scale: float) -> bool:
    with np.errstate(all="ignore"):
        return all(bool(np.isfinite(g.dtype.type(scale) * g).all()) for g in grads)


def sum_rows(table: Array, seen: Array, weights: Array | None = None) -> Array:
    """The sum of the rows seen, each times its weight, in float64 and in their order.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> table = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]])
        >>> reference.sum_rows(table, np.array([True, False, True]), np.array([1.0, 1.0, 0.5]))
        array([2.5, 4. ])
    """
    total = np.zeros(table.shape[1:])
    with np.errstate(all="ignore"):
        for row in np.flatnonzero(seen):
            total += (1.0 if weights is None else weights[row]) * table[row].astype(np.float64)
        return total.astype(table.dtype)


def coalesce(indices: Array, rows: Array) -> tuple[Array, Array]:
    """The indices without repetition, ascending, and the sum of the rows of each, in their order.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import coalesce
        >>> coalesce(np.array([2, 0, 2]), np.array([1.0, 10.0, 0.5]))
        (array([0, 2]), array([10. ,  1.5]))
    """
    order = np.argsort(indices, kind="stable")
    touched, first, count = np.unique(indices[order], return_index=True, return_counts=True)
    sums = rows[order[first]]
    with np.errstate(all="ignore"):
        for nth in range(1, count.max(initial=0)):
            more = count > nth
            sums[more] += rows[order[first[more] + nth]]
    return touched, sums


def clip_factors(grad_scale: float, clip_norm: float, norm: float) -> tuple[float, float]:
    """The two factors of a gradient that is clipped: `grad_scale` and `clip_norm / norm`.

    A quotient that float32 or float64 could not hold, after a gradient that has exploded, is
    divided among both.

    Example:
        >>> from gradstep.reference import clip_factors
        >>> clip_factors(1.0, 0.5, 2.0)
        (1.0, 0.25)
        >>> clip_factors(1.0, 2.0**-60, 2.0**60) == (2.0**-60, 2.0**-60)
        True
    """
    (ratio, exponent), (ratio_of_norm, exponent_of_norm) = math.frexp(clip_norm), math.frexp(norm)
    exponent -= exponent_of_norm
    shared = -(-exponent // 2) if exponent < -64 else 0
    return math.ldexp(grad_scale, shared), math.ldexp(ratio / ratio_of_norm, exponent - shared)


class Plan:
    """The oracle behind an optimizer class: what `_core.Plan` does, in NumPy."""

    def __init__(
        self,
        rule: str,
        params: Sequence[Array],
        states: Sequence[Sequence[Array]],
        nouns: Sequence[str],
        suffixes: Sequence[str],
        skip_nonfinite: bool = False,
        flush_denormals: bool = False,
        refuse_nonfinite: bool = False,
        seen: Array | None = None,
        row_weights: Array | None = None,
        by_rows: bool = False,
        copies: Sequence[Array] | None = None,
        low_bits: Sequence[Array] | None = None,
    ) -> None:
        self.copies, self.low_bits = copies, low_bits
        if flush_denormals:
            raise ValueError("flush_denormals=True is not possible in NumPy")
        self.rule, self.params, self.states, self.t = rule, params, states, 0
        self.skip_nonfinite, self.refuse_nonfinite = skip_nonfinite, refuse_nonfinite
        self.seen, self.row_weights, self.by_rows = seen, row_weights, by_rows
        spec = next(r for r in _core.rules() if r.name == rule)
        self.hyper_names, self.state_names = spec.hyperparameters, spec.states
        self.has_rows = spec.row_state is not None
        self.set_rounding(stochastic=False, seed=0)

    def check(self) -> None:
        """Nothing: NumPy checks for itself, and this is no place to look for errors."""

    acquire = release = check

    def check_apart(self, array: Array, name: str) -> None:
        """Nothing, as above."""

    def check_grads(self, grads: Sequence[Any], zero_grad: bool = False) -> Sequence[Array]:
        scalar = np.generic  # what arithmetic on 0-d arrays gives
        return [np.asarray(g) if isinstance(g, scalar) else _core.view(g, "grads") for g in grads]

    check_second_grads = check_grads

    def check_treatment(self, treatment: tuple[float, float | None, float | None, bool]) -> None:
        """Nothing, as above."""

    def block_sums(self, grads: Sequence[Any], grad_scale: float, unit: float) -> Array:
        with np.errstate(all="ignore"):
            sums = [block_sums(g, grad_scale, unit) for g in self.check_grads(grads)]
            return np.concatenate(sums)

    def _sum_again(self, seen: Array) -> None:
        d, y = (self.states[self.state_names.index(name)] for name in ("d", "y"))
        for total, table in zip(d, y, strict=True):
            total[...] = sum_rows(table, seen, self.row_weights)

    def set_rounding(self, stochastic: bool, seed: int, array: int = 0, first: int = 0) -> None:
        self.rounding = {"stochastic": stochastic, "seed": seed, "array": array, "first": first}

    def forget(self, row: int) -> bool:
        if self.seen is None or not self.seen[row]:
            return False
        self.seen[row] = False
        self._sum_again(self.seen)
        return True

    def step(
        self,
        grads: Sequence[Any],
        treatment: tuple[float, float | None, float | None, bool] | None = None,
        scalars: tuple[int, Sequence[float], float, bool, int] | None = None,
        second_grads: Sequence[Array] | None = None,
        acquired: bool = False,
        norm: float | None = None,
    ) -> tuple[float, bool, bool] | None:
        if scalars is not None:
            _, hyper, weight_decay, maximize, self.row = scalars
            self.options: dict[str, Any] = dict(zip(self.hyper_names, hyper, strict=True))
            self.options.update(weight_decay=weight_decay, maximize=maximize)
        if self.by_rows:
            pairs = [self.check_grads(pair) for pair in grads]
            given = [rows for _, rows in pairs]
            touched, grads = zip(*(coalesce(*pair) for pair in pairs), strict=True)
        else:
            grads = self.check_grads(grads)
            given = list(grads)
        second_grads = None if second_grads is None else self.check_second_grads(second_grads)
        grad_scale, clip_norm, clip_value, zero_grad = treatment or (1.0, None, None, False)
        report, clip = None, 1.0
        asked = clip_norm is not None or self.skip_nonfinite
        if asked or self.refuse_nonfinite:
            if norm is None:
                wide = [g if g.itemsize > 2 else g.astype(np.float32) for g in grads]
                norm = grad_norm(
                    [g for rows in wide for g in rows] if self.by_rows else wide, grad_scale
                )
            usable = math.isfinite(norm) if clip_norm is not None else _finite(grads, grad_scale)
            if not usable and not self.skip_nonfinite:
                raise ValueError("the gradients hold NaN or infinity, or have no norm to clip")
            if usable and asked and second_grads is not None:
                usable = _finite(second_grads, grad_scale)
            clipped = usable and clip_norm is not None and norm > clip_norm
            report = (norm, clipped, not usable) if asked else None
            if not usable:
                return report
            if clip_norm is not None and clipped:
                grad_scale, clip = clip_factors(grad_scale, clip_norm, norm)
        self.t += 1
        fresh = self.seen is not None and not self.seen[self.row]
        for i, (w, g) in enumerate(zip(self.params, grads, strict=True)):
            states = []
            for kind in self.states[: len(self.state_names)]:
                state = (kind or second_grads)[i]  # type: ignore[index]
                if state.ndim > w.ndim and self.has_rows:  # this step's is a view
                    state = state[self.row, ...]
                    if fresh:
                        state.fill(0)
                states.append(state)
            high = w
            if self.low_bits is not None:
                w = joined(high, self.low_bits[i])
            whole = [w, *states]
            if self.by_rows:
                w, *states = parts = [array[touched[i]] for array in whole]
            narrow = len({array.dtype for array in (w, g, *states)}) > 1 or w.itemsize < 4
            place = {"array": self.rounding["array"] + i}
            held: dict[str, Any] = {**self.rounding, **place} if narrow else {}
            (stored_step if narrow else step)(
                self.rule,
                w,
                g,
                states,
                t=self.t,
                grad_scale=grad_scale,
                clip=clip,
                clip_value=math.inf if clip_value is None else clip_value,
                **held,
                **self.options,
            )
            if self.by_rows:
                for array, part in zip(whole, parts, strict=True):
                    array[touched[i]] = part
            if self.copies is not None:
                with np.errstate(over="ignore"):
                    self.copies[i][...] = w
            if self.low_bits is not None:
                high.view(np.uint16)[...], self.low_bits[i][...] = split(w)
            if zero_grad:
                given[i].fill(0)
        if self.seen is not None:
            self.seen[self.row] = True
            if self.t % self.seen.size == 0:
                self._sum_again(self.seen)
        return report


def in_numpy(cls: type[Class]) -> type[Class]:
    """An optimizer class with the same arguments and results, whose steps are NumPy's.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.ones(2)
        >>> gs.reference.in_numpy(gs.Adam)(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(6)
        array([0.9, 0.9])
    """
    return type(f"NumPy{cls.__name__}", (cls,), {"_plan_class": Plan})
