"""The element-wise rules in NumPy, in the order of operations of `cpp/src/rules/`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core

Array = NDArray[Any]


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
