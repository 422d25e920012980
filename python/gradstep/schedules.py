"""Learning-rate schedules: pure functions of the step, counted from 0.

A schedule keeps nothing between calls, so that a run resumes at any step with the same values. They
are made of IEEE + - * /, sqrt and the core's own functions: the C library's have other last bits on
other processors.

The vocabulary is one: `lr` is where the descent begins, `min_lr` (at most `lr`) where it ends and
stays, `warmup_steps` the climb from 0, `decay_steps` the descent, `total_steps` the whole. Lengths
and boundaries are whole numbers of optimizer steps. `t` is the step in the formulas.
"""

from __future__ import annotations

import math
import numbers
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from . import _checks as check
from . import _core

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "join",
    "one_cycle",
    "piecewise",
    "polynomial",
    "step_decay",
    "warmup",
    "warmup_stable_decay",
]

#: A float or a float64 array: each formula is written once for both, so their bits are the same.
Number = Any

Item = TypeVar("Item")


class Schedule:
    """A learning rate as a function of the step, made by the functions of this module.

    It prints as the call that makes it, equals whatever the same call makes, and can be hashed,
    copied and pickled. `warmup` and `join` build new schedules from it.

    Example:
        >>> import numpy as np
        >>> from gradstep.schedules import cosine, warmup
        >>> lr = warmup(cosine(0.1, total_steps=100), steps=10)
        >>> lr
        warmup(schedule=cosine(lr=0.1, total_steps=100, min_lr=0.0), steps=10, start=0.0)
        >>> lr(5)
        0.05
        >>> lr(np.array([0, 10, 60, 110]))
        array([0.  , 0.1 , 0.05, 0.  ])
    """

    __slots__ = ("_arguments", "_formula")

    def __init__(self, formula: Callable[..., Number], **arguments: Any) -> None:
        self._formula = formula
        self._arguments = arguments

    @overload
    def __call__(self, step: int | np.integer[Any]) -> float: ...
    @overload
    def __call__(self, step: NDArray[np.integer[Any]]) -> NDArray[np.float64]: ...

    def __call__(
        self, step: int | np.integer[Any] | NDArray[np.integer[Any]]
    ) -> float | NDArray[np.float64]:
        """The learning rate at a step.

        Args:
            step: the number of steps taken so far, from 0 to 2**53, or an array of such numbers.

        Returns:
            A float; for an array a float64 array of its shape, with the same bits.

        Raises:
            TypeError, ValueError: `step` is not a whole number, or out of range.
        """
        if not isinstance(step, np.ndarray):
            return float(self._at(float(check.integer("step", step, 0))))
        if step.dtype.kind not in "iu":
            raise TypeError(f"step must hold whole numbers, got {step!r}")
        for extreme in (step.min(), step.max()) if step.size else ():
            check.integer("step", extreme, 0)
        values = np.empty(step.size)
        with np.errstate(all="ignore"):  # floats overflow to inf and underflow to 0 silently too
            values[:] = self._at(step.astype(np.float64).ravel())
        return values.reshape(step.shape)

    def _at(self, step: Number) -> Number:
        """The value at a step that has been checked: a float, or an array of one dimension."""
        return self._formula(step, **self._arguments)

    @property
    def _name(self) -> str:
        return self._formula.__name__[1:]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments.items())
        return f"{self._name}({arguments})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self._formula is other._formula and self._arguments == other._arguments

    def __hash__(self) -> int:
        return hash((self._formula, *self._arguments.values()))

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickle holds the public call, so that it outlives changes in here and is checked again.
        return partial(globals()[self._name], **self._arguments), ()


def constant(lr: float) -> Schedule:
    """The same learning rate at every step.

    Args:
        lr: at least 0.

    Raises:
        TypeError, ValueError: `lr` is not a number, or is negative or not finite.

    Example:
        >>> from gradstep.schedules import constant
        >>> constant(0.1)(1000)
        0.1
    """
    return Schedule(_constant, lr=check.non_negative("lr", lr))


def _constant(step: Number, lr: float) -> Number:
    return lr


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


# What the formulas share ------------------------------------------------------------------------


def _passed(step: Number, steps: float) -> Number:
    """The share of `steps` that has passed: from 0 up to 1, and 1 where there are none."""
    return 1.0 if steps == 0 else _clip(step / steps)


def _left(step: Number, steps: float) -> Number:
    """The share of `steps` that is left: from 1 down to 0, and 0 where there are none.

    It keeps the last bits near the end, which `1 - _passed(step, steps)` would lose.
    """
    return 0.0 if steps == 0 else _clip((steps - step) / steps)


def _clip(share: Number) -> Number:
    # np.clip takes ten times as long for a float.
    return min(max(share, 0.0), 1.0) if isinstance(share, float) else np.clip(share, 0.0, 1.0)


def _blend(first: Number, last: Number, weight: Number) -> Number:
    """From `first` at weight 1 to `last` at weight 0, exact at both ends."""
    return first * weight + last * (1 - weight)


def _half_wave(left: Number) -> Number:
    return (1 - _core.cos_pi(left)) / 2


def _straight(left: Number) -> Number:
    return left


_ANNEALING: dict[str, Callable[[Number], Number]] = {"cosine": _half_wave, "linear": _straight}


def _piece(step: Number, boundaries: Any) -> Any:
    """How many boundaries have been reached."""
    if isinstance(step, float):
        return bisect_right(boundaries, step)
    return np.searchsorted(boundaries, step, side="right")


# Checks of arguments ----------------------------------------------------------------------------


def _number(name: str, value: Any, within: Callable[[float], bool], meaning: str) -> float:
    x = check.number(name, value)
    if not within(x):
        raise ValueError(f"{name} must be {meaning}, got {x}")
    return x


def _shrinking(name: str, value: Any) -> float:
    return _number(name, value, lambda x: 0 < x <= 1, "above 0 and at most 1")


def _divisor(name: str, value: Any) -> float:
    return _number(name, value, lambda x: 1 <= x < math.inf, "at least 1 and finite")


def _min_lr(value: Any, lr: float) -> float:
    return _number("min_lr", value, lambda x: 0 <= x <= lr, f"from 0 to lr, {lr}")


def _schedule(name: str, value: Any) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a Schedule or a number, got {value!r}")
    return Schedule(_constant, lr=check.non_negative(name, value))


def _items(name: str, values: Any, item: Callable[[str, Any], Item]) -> tuple[Item, ...]:
    if not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list or tuple, got {values!r}")
    return tuple(item(f"{name}[{k}]", value) for k, value in enumerate(values))


def _boundaries(values: Any) -> tuple[int, ...]:
    steps = _items("boundaries", values, lambda name, value: check.integer(name, value, 1))
    if any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"boundaries must increase, got {values!r}")
    return steps


def _pieces(
    name: str, values: Any, boundaries: tuple[int, ...], item: Callable[[str, Any], Item]
) -> tuple[Item, ...]:
    pieces = _items(name, values, item)
    if len(pieces) != len(boundaries) + 1:
        raise ValueError(
            f"{name} must be {len(boundaries) + 1}, one more than boundaries, got {values!r}"
        )
    return pieces
