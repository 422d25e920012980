"""Schedules made of others, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._engine import checks as check
from .schedule import Number, Schedule, _boundaries, _number, _passed, _piece, _pieces, _schedule


def warmup(schedule: Schedule | float, steps: int, start: float = 0.0) -> Schedule:
    """A linear climb before any schedule, which begins when the climb is over.

        (start + (1 - start) t / steps) schedule(0)    for t < steps
        schedule(t - steps)                            from then on

    Args:
        schedule: a schedule, or a learning rate for `constant`.
        steps: length of the climb, at least 0. It comes on top of the schedule's own steps.
        start: the first value as a share of `schedule(0)`, from 0 to 1. With 0 the first step does
            not move the parameters.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of its range.

    Example:
        >>> from gradstep.schedules import cosine, warmup
        >>> lr = warmup(cosine(0.1, total_steps=100), steps=10)
        >>> lr(0), lr(5), lr(10), lr(60), lr(110)
        (0.0, 0.05, 0.1, 0.05, 0.0)

    PyTorch: `SequentialLR` of `LinearLR(start_factor=start)` and the schedule. Reference: Goyal et
    al., "Accurate, Large Minibatch SGD" (arXiv:1706.02677), section 2.2.
    """
    return Schedule(
        _warmup,
        schedule=_schedule("schedule", schedule),
        steps=check.integer("steps", steps, 0),
        start=_number("start", start, lambda x: 0 <= x <= 1, "from 0 to 1"),
    )


def _warmup(step: Number, schedule: Schedule, steps: int, start: float) -> Number:
    climb = start + (1 - start) * _passed(step, steps)  # exactly 1 at the end, for every start
    return climb * schedule._at(np.maximum(step - steps, 0.0))


def piecewise(boundaries: Sequence[int], values: Sequence[float]) -> Schedule:
    """A value for each stretch between boundaries.

        values[k] for boundaries[k-1] <= t < boundaries[k]

    Args:
        boundaries: the first step of each value but the first: increasing, at least 1.
        values: one more than boundaries, each at least 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, length, order or range.

    Example:
        >>> from gradstep.schedules import piecewise
        >>> lr = piecewise([30, 60], [0.1, 0.05, 0.01])
        >>> lr(29), lr(30), lr(60)
        (0.1, 0.05, 0.01)

    PyTorch: `MultiStepLR`, which multiplies instead.
    """
    boundaries = _boundaries(boundaries)
    return Schedule(
        _piecewise,
        boundaries=boundaries,
        values=_pieces("values", values, boundaries, check.non_negative),
    )


def _piecewise(step: Number, boundaries: tuple[int, ...], values: tuple[float, ...]) -> Number:
    return np.take(values, _piece(step, boundaries))


def join(schedules: Sequence[Schedule | float], boundaries: Sequence[int]) -> Schedule:
    """Schedules one after the other, each of which counts its own steps from where it begins.

        schedules[k](t - boundaries[k-1]) for boundaries[k-1] <= t < boundaries[k]

    Args:
        schedules: one more than boundaries; a number stands for `constant`.
        boundaries: the first step of each schedule but the first: increasing, at least 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type, length, order or range.

    Example:
        >>> from gradstep.schedules import cosine, join
        >>> lr = join([0.1, cosine(0.1, total_steps=20)], [80])
        >>> lr(79), lr(80), lr(90), lr(100)
        (0.1, 0.1, 0.05, 0.0)

    PyTorch: `SequentialLR`. optax: `join_schedules`.
    """
    boundaries = _boundaries(boundaries)
    return Schedule(
        _join,
        schedules=_pieces("schedules", schedules, boundaries, _schedule),
        boundaries=boundaries,
    )


def _join(step: Number, schedules: tuple[Schedule, ...], boundaries: tuple[int, ...]) -> Number:
    starts = (0, *boundaries)
    piece = _piece(step, boundaries)
    if isinstance(step, float):
        return schedules[piece]._at(step - starts[piece])
    values = np.empty(step.shape)
    for k, (schedule, start) in enumerate(zip(schedules, starts, strict=True)):
        here = piece == k
        values[here] = schedule._at(step[here] - start)
    return values
