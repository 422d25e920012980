"""Schedules that only fall."""

from __future__ import annotations

import math

import numpy as np

from .. import _core
from .._engine import checks as check
from .schedule import (
    Number,
    Schedule,
    _blend,
    _half_wave,
    _left,
    _min_lr,
    _number,
    _passed,
    _shrinking,
)


def step_decay(lr: float, every: int, factor: float) -> Schedule:
    """A staircase: multiplied by `factor` once `every` so many steps.

        lr factor^floor(t / every)

    Args:
        lr: the first value, at least 0.
        every: steps on each stair, at least 1.
        factor: above 0, at most 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import step_decay
        >>> lr = step_decay(0.1, every=30, factor=0.5)
        >>> lr(29), lr(30), lr(60)
        (0.1, 0.05, 0.025)

    PyTorch: `StepLR`. For stairs of other widths or heights see `piecewise`.
    """
    return Schedule(
        _step_decay,
        lr=check.non_negative("lr", lr),
        every=check.integer("every", every, 1),
        factor=_shrinking("factor", factor),
    )


def _step_decay(step: Number, lr: float, every: int, factor: float) -> Number:
    return lr * _core.power(factor, step // every)


def exponential(lr: float, rate: float) -> Schedule:
    """Multiplied by `rate` at every step.

        lr rate^t

    Args:
        lr: the first value, at least 0.
        rate: what remains after one step, above 0 and at most 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import exponential
        >>> exponential(0.1, rate=0.5)(3)
        0.0125

    PyTorch: `ExponentialLR`.
    """
    return Schedule(_exponential, lr=check.non_negative("lr", lr), rate=_shrinking("rate", rate))


def _exponential(step: Number, lr: float, rate: float) -> Number:
    return lr * _core.power(rate, step)


def inverse_time(lr: float, rate: float) -> Schedule:
    """Hyperbolic decay: half of `lr` after `1 / rate` steps, a third after twice as many.

        lr / (1 + rate t)

    The sum over all steps diverges and the sum of squares does not, as stochastic approximation
    asks for.

    Args:
        lr: the first value, at least 0.
        rate: per step, at least 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import inverse_time
        >>> inverse_time(0.1, rate=0.01)(100)
        0.05

    Reference: Robbins and Monro, "A Stochastic Approximation Method" (1951).
    """
    return Schedule(
        _inverse_time,
        lr=check.non_negative("lr", lr),
        rate=check.non_negative("rate", rate),
    )


def _inverse_time(step: Number, lr: float, rate: float) -> Number:
    return lr / (1 + rate * step)


def inverse_sqrt(lr: float, warmup_steps: int) -> Schedule:
    """Linear climb to `lr`, then decay with the square root of the step: the first Transformer's.

        lr min(t / warmup_steps, sqrt(warmup_steps / t))

    Args:
        lr: the peak, reached at step `warmup_steps`; at least 0.
        warmup_steps: at least 1, because it also sets the pace of the decay.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import inverse_sqrt
        >>> lr = inverse_sqrt(0.1, warmup_steps=100)
        >>> lr(50), lr(100), lr(400)
        (0.05, 0.1, 0.05)

    Reference: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762), equation (3), with
    `lr` for `1 / sqrt(d_model warmup_steps)`.
    """
    return Schedule(
        _inverse_sqrt,
        lr=check.non_negative("lr", lr),
        warmup_steps=check.integer("warmup_steps", warmup_steps, 1),
    )


def _inverse_sqrt(step: Number, lr: float, warmup_steps: int) -> Number:
    # One of the two factors is exactly 1, so that there is no division by step 0.
    return lr * _passed(step, warmup_steps) * np.sqrt(warmup_steps / np.maximum(step, warmup_steps))


def polynomial(lr: float, total_steps: int, power: float = 1.0, min_lr: float = 0.0) -> Schedule:
    """From `lr` to `min_lr` along a power of the steps left; a straight line by default.

        min_lr + (lr - min_lr) (1 - t / total_steps)^power

    Args:
        lr: the first value, at least 0.
        total_steps: steps until `min_lr`, at least 1.
        power: above 0. 1 is linear, more falls faster at first.
        min_lr: the last value, from 0 to `lr`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import polynomial
        >>> polynomial(0.1, total_steps=100)(50), polynomial(0.1, total_steps=100, power=2)(50)
        (0.05, 0.025)

    PyTorch: `PolynomialLR`, and `LinearLR` with `end_factor` for `min_lr`. Reference: Chen et al.,
    "DeepLab" (arXiv:1606.00915), with power 0.9.
    """
    lr = check.non_negative("lr", lr)
    return Schedule(
        _polynomial,
        lr=lr,
        total_steps=check.integer("total_steps", total_steps, 1),
        power=_number("power", power, lambda x: 0 < x < math.inf, "above 0 and finite"),
        min_lr=_min_lr(min_lr, lr),
    )


def _polynomial(step: Number, lr: float, total_steps: int, power: float, min_lr: float) -> Number:
    return _blend(lr, min_lr, _core.power(_left(step, total_steps), power))


def cosine(lr: float, total_steps: int, min_lr: float = 0.0) -> Schedule:
    """From `lr` to `min_lr` along half a cosine wave, flat at both ends.

        min_lr + (lr - min_lr) (1 + cos(pi t / total_steps)) / 2

    Args:
        lr: the first value, at least 0.
        total_steps: steps until `min_lr`, at least 1.
        min_lr: the last value, from 0 to `lr`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import cosine
        >>> lr = cosine(0.1, total_steps=100)
        >>> lr(0), lr(50), lr(100), lr(1000)
        (0.1, 0.05, 0.0, 0.0)

    PyTorch: `CosineAnnealingLR`, which climbs again after `total_steps`. Reference: Loshchilov and
    Hutter, "SGDR" (arXiv:1608.03983), equation (5).
    """
    lr = check.non_negative("lr", lr)
    return Schedule(
        _cosine,
        lr=lr,
        total_steps=check.integer("total_steps", total_steps, 1),
        min_lr=_min_lr(min_lr, lr),
    )


def _cosine(step: Number, lr: float, total_steps: int, min_lr: float) -> Number:
    return _blend(lr, min_lr, _half_wave(_left(step, total_steps)))
