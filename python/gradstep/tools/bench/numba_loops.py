"""Hand-written loops of numba."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contestants import Contestant, _clip_factor
from .works import Work

Array = NDArray[Any]
#: Where threads begin to pay for numba's loops.
NUMBA_PARALLEL = 32_768


class Numba(Contestant):
    """A fused loop per rule, compiled by numba: with threads from 32,768 elements on."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, params)
        numba: Any = import_module("numba")
        kernel = _numba_kernels(numba)[_kernel_name(work)]
        parallel = work.threads > 1 and work.size >= NUMBA_PARALLEL
        # As NumPy does, a division by 0 gives infinity: a check would keep the loop from SIMD.
        update = numba.njit(parallel=parallel, error_model="numpy")(kernel)
        states = [[np.zeros_like(p) for p in params] for _ in work.states]
        arrays = list(zip(self.params, self.grads, *states, strict=True))
        hyper = _hyper(work)
        t = 0

        def step() -> None:
            nonlocal t
            t += 1
            for each in arrays:
                update(*each, t, *hyper)

        def clipped_step() -> None:
            nonlocal t
            t += 1
            factor = _clip_factor(self.grads)
            for each in arrays:
                update(*each, t, *hyper, factor)

        self.step = clipped_step if work.clip else step

    @classmethod
    def can(cls, work: Work) -> bool:
        return not work.clip or work.rule == "adam"


def _kernel_name(work: Work) -> str:
    return f"{work.rule}_clipped" if work.clip else work.rule


def _hyper(work: Work) -> list[float]:
    """The numbers among the options, in their order, with the betas taken apart."""
    values: list[float] = []
    for value in work.options.values():
        values += value if isinstance(value, tuple) else [] if isinstance(value, bool) else [value]
    return values


def _numba_kernels(numba: Any) -> Mapping[str, Callable[..., None]]:
    """The loops, in single precision throughout, to be compiled."""
    prange, sqrt, f4 = numba.prange, math.sqrt, np.float32

    def sgd(w: Array, g: Array, t: int, lr: float) -> None:
        lr4 = f4(lr)
        for i in prange(w.size):
            w[i] -= lr4 * g[i]

    def momentum(w: Array, g: Array, b: Array, t: int, lr: float, momentum: float) -> None:
        lr4, momentum4 = f4(lr), f4(momentum)
        for i in prange(w.size):
            b[i] = momentum4 * b[i] + g[i]
            w[i] -= lr4 * b[i]

    def nesterov(w: Array, g: Array, b: Array, t: int, lr: float, momentum: float) -> None:
        lr4, momentum4 = f4(lr), f4(momentum)
        for i in prange(w.size):
            b[i] = momentum4 * b[i] + g[i]
            w[i] -= lr4 * (g[i] + momentum4 * b[i])

    def adagrad(w: Array, g: Array, s: Array, t: int, lr: float, eps: float) -> None:
        lr4, eps4 = f4(lr), f4(eps)
        for i in prange(w.size):
            s[i] += g[i] * g[i]
            w[i] -= lr4 * (g[i] / (sqrt(s[i]) + eps4))

    def rmsprop(w: Array, g: Array, v: Array, t: int, lr: float, alpha: float, eps: float) -> None:
        lr4, alpha4, rest, eps4 = f4(lr), f4(alpha), f4(1 - alpha), f4(eps)
        for i in prange(w.size):
            v[i] = alpha4 * v[i] + rest * g[i] * g[i]
            w[i] -= lr4 * (g[i] / (sqrt(v[i]) + eps4))

    def rmsprop_centered(
        w: Array, g: Array, v: Array, q: Array, t: int, lr: float, alpha: float, eps: float
    ) -> None:
        lr4, alpha4, rest, eps4 = f4(lr), f4(alpha), f4(1 - alpha), f4(eps)
        for i in prange(w.size):
            v[i] = alpha4 * v[i] + rest * g[i] * g[i]
            q[i] += rest * (g[i] - q[i])
            w[i] -= lr4 * (g[i] / (sqrt(max(v[i] - q[i] * q[i], f4(0))) + eps4))

    def rmsprop_centered_momentum(
        w: Array, g: Array, v: Array, q: Array, b: Array,
        t: int, lr: float, alpha: float, eps: float, momentum: float,
    ) -> None:  # fmt: skip
        lr4, alpha4, rest, eps4, momentum4 = f4(lr), f4(alpha), f4(1 - alpha), f4(eps), f4(momentum)
        for i in prange(w.size):
            v[i] = alpha4 * v[i] + rest * g[i] * g[i]
            q[i] += rest * (g[i] - q[i])
            b[i] = momentum4 * b[i] + g[i] / (sqrt(max(v[i] - q[i] * q[i], f4(0))) + eps4)
            w[i] -= lr4 * b[i]

    def adam(
        w: Array, g: Array, m: Array, v: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t))
        for i in prange(w.size):
            m[i] = b1 * m[i] + rest1 * g[i]
            v[i] = b2 * v[i] + rest2 * g[i] * g[i]
            w[i] -= step * (m[i] / (sqrt(v[i]) * scale + eps4))

    def amsgrad(
        w: Array, g: Array, m: Array, v: Array, u: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t))
        for i in prange(w.size):
            m[i] = b1 * m[i] + rest1 * g[i]
            v[i] = b2 * v[i] + rest2 * g[i] * g[i]
            u[i] = max(u[i], v[i])
            w[i] -= step * (m[i] / (sqrt(u[i]) * scale + eps4))

    def adamw(
        w: Array, g: Array, m: Array, v: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t))
        keep = f4(1 - lr * weight_decay)
        for i in prange(w.size):
            m[i] = b1 * m[i] + rest1 * g[i]
            v[i] = b2 * v[i] + rest2 * g[i] * g[i]
            w[i] = keep * w[i] - step * (m[i] / (sqrt(v[i]) * scale + eps4))

    def adam_clipped(
        w: Array, g: Array, m: Array, v: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float, clip: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale, clip4 = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t)), f4(clip)
        for i in prange(w.size):
            d = clip4 * g[i]
            m[i] = b1 * m[i] + rest1 * d
            v[i] = b2 * v[i] + rest2 * d * d
            w[i] -= step * (m[i] / (sqrt(v[i]) * scale + eps4))
            g[i] = f4(0)

    return {
        "sgd": sgd,
        "momentum": momentum,
        "nesterov": nesterov,
        "adagrad": adagrad,
        "rmsprop": rmsprop,
        "rmsprop_centered": rmsprop_centered,
        "rmsprop_centered_momentum": rmsprop_centered_momentum,
        "adam": adam,
        "adam_clipped": adam_clipped,
        "amsgrad": amsgrad,
        "adamw": adamw,
    }
