"""Schedules with a climb of their own, or several descents."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .._engine import checks as check
from .schedule import (
    _ANNEALING,
    Number,
    Schedule,
    _blend,
    _divisor,
    _half_wave,
    _left,
    _min_lr,
    _number,
    _passed,
    _piece,
)


def cosine_restarts(
    lr: float, restart_steps: int, multiplier: int = 1, min_lr: float = 0.0
) -> Schedule:
    """Cosine descents that start over at `lr`, each `multiplier` times as long as the one before.

        min_lr + (lr - min_lr) (1 + cos(pi s / n)) / 2, s steps into a descent of n

    Args:
        lr: the first value of each descent, at least 0.
        restart_steps: length of the first descent, at least 1.
        multiplier: a whole number, at least 1.
        min_lr: what a descent approaches and never reaches, from 0 to `lr`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import cosine_restarts
        >>> lr = cosine_restarts(0.1, restart_steps=10, multiplier=2)
        >>> lr(5), lr(10), lr(20), lr(30)
        (0.05, 0.1, 0.05, 0.1)

    PyTorch: `CosineAnnealingWarmRestarts(T_0, T_mult)`. Reference: Loshchilov and Hutter, "SGDR"
    (arXiv:1608.03983), section 3.
    """
    lr = check.non_negative("lr", lr)
    return Schedule(
        _cosine_restarts,
        lr=lr,
        restart_steps=check.integer("restart_steps", restart_steps, 1),
        multiplier=check.integer("multiplier", multiplier, 1),
        min_lr=_min_lr(min_lr, lr),
    )


def _cosine_restarts(
    step: Number, lr: float, restart_steps: int, multiplier: int, min_lr: float
) -> Number:
    if multiplier == 1:
        start = step - step % restart_steps
    else:
        starts = _restarts(restart_steps, multiplier)
        start = np.take(starts, _piece(step, starts) - 1)
    # Lengths and starts are both geometric: start = restart_steps (1 + m + m^2 + ...).
    length = restart_steps + (multiplier - 1) * start
    return _blend(lr, min_lr, _half_wave((length - (step - start)) / length))


@lru_cache
def _restarts(restart_steps: int, multiplier: int) -> NDArray[np.float64]:
    """The first step of every descent, for a multiplier above 1."""
    starts, length = [0], restart_steps
    while starts[-1] + length <= check.MAX_INTEGER:
        starts.append(starts[-1] + length)
        length *= multiplier
    return np.array(starts, np.float64)


def one_cycle(
    max_lr: float,
    total_steps: int,
    warmup_fraction: float = 0.3,
    initial_divisor: float = 25.0,
    final_divisor: float = 1e4,
    *,
    annealing: Literal["cosine", "linear"] = "cosine",
    three_phase: bool = False,
) -> Schedule:
    """One climb to `max_lr`, then one long descent to almost nothing.

        max_lr / initial_divisor                    at step 0
        max_lr                                      at step warmup_fraction total_steps - 1
        max_lr / initial_divisor / final_divisor    at step total_steps - 1, and after

    Between these it follows half cosine waves or straight lines. The peak may fall between steps.
    With `three_phase` a mirror image of the climb, back to the initial value, comes before the
    descent.

    Args:
        max_lr: the peak, at least 0.
        total_steps: of the whole cycle, at least 1.
        warmup_fraction: share of the steps that climb, from 0 to below 1, or to below 0.5 with
            `three_phase`. Up to one step is no climb: the cycle begins with the descent.
        initial_divisor: at least 1.
        final_divisor: at least 1.
        annealing: "cosine" or "linear".
        three_phase: whether to mirror the climb. Default False.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import one_cycle
        >>> lr = one_cycle(1.0, total_steps=100, warmup_fraction=0.25)
        >>> lr(0), lr(12), lr(24), lr(99)
        (0.04, 0.52, 1.0, 4e-06)

    PyTorch: `OneCycleLR`, which for a climb of no steps divides by 0 or misses the peak; momentum
    is not cycled here. Reference: Smith and Topin, "Super-Convergence" (arXiv:1708.07120).
    """
    if not isinstance(annealing, str):
        raise TypeError(f"annealing must be 'cosine' or 'linear', got {annealing!r}")
    if annealing not in _ANNEALING:
        raise ValueError(f"annealing must be 'cosine' or 'linear', got {annealing!r}")
    three_phase = check.flag("three_phase", three_phase)
    end = 0.5 if three_phase else 1.0
    return Schedule(
        _one_cycle,
        max_lr=check.non_negative("max_lr", max_lr),
        total_steps=check.integer("total_steps", total_steps, 1),
        warmup_fraction=_number(
            "warmup_fraction", warmup_fraction, lambda x: 0 <= x < end, f"from 0 to below {end}"
        ),
        initial_divisor=_divisor("initial_divisor", initial_divisor),
        final_divisor=_divisor("final_divisor", final_divisor),
        annealing=annealing,
        three_phase=three_phase,
    )


def _one_cycle(
    step: Number,
    max_lr: float,
    total_steps: int,
    warmup_fraction: float,
    initial_divisor: float,
    final_divisor: float,
    annealing: str,
    three_phase: bool,
) -> Number:
    initial_lr = max_lr / initial_divisor
    climb = max(warmup_fraction * total_steps - 1, 0.0)
    wave = _ANNEALING[annealing]
    # A phase that has not begun weighs exactly 1 on the side of the phases before it.
    lr = _blend(initial_lr, max_lr, wave(_left(step, climb)))
    before = climb
    if three_phase:
        lr = _blend(lr, initial_lr, wave(_left(step - before, climb)))
        before += climb
    descent = total_steps - 1 - before
    return _blend(lr, initial_lr / final_divisor, wave(_left(step - before, descent)))


def warmup_stable_decay(
    lr: float, warmup_steps: int, stable_steps: int, decay_steps: int, min_lr: float = 0.0
) -> Schedule:
    """A trapezoid: linear climb to `lr`, a plateau, linear descent to `min_lr`.

        lr t / warmup_steps                              for t < warmup_steps
        lr                                               for the next stable_steps
        min_lr + (lr - min_lr) (1 - s / decay_steps)     s steps into the descent

    Args:
        lr: the plateau, at least 0.
        warmup_steps: at least 0.
        stable_steps: at least 0.
        decay_steps: at least 1.
        min_lr: the last value, from 0 to `lr`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import warmup_stable_decay
        >>> lr = warmup_stable_decay(0.1, warmup_steps=10, stable_steps=70, decay_steps=20)
        >>> lr(5), lr(10), lr(80), lr(90), lr(100)
        (0.05, 0.1, 0.1, 0.05, 0.0)

    Reference: Hu et al., "MiniCPM" (arXiv:2404.06395), section 4.
    """
    lr = check.non_negative("lr", lr)
    return Schedule(
        _warmup_stable_decay,
        lr=lr,
        warmup_steps=check.integer("warmup_steps", warmup_steps, 0),
        stable_steps=check.integer("stable_steps", stable_steps, 0),
        decay_steps=check.integer("decay_steps", decay_steps, 1),
        min_lr=_min_lr(min_lr, lr),
    )


def _warmup_stable_decay(
    step: Number, lr: float, warmup_steps: int, stable_steps: int, decay_steps: int, min_lr: float
) -> Number:
    left = _left(step - (warmup_steps + stable_steps), decay_steps)
    return _blend(lr * _passed(step, warmup_steps), min_lr, left)
