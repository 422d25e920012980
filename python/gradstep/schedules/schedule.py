"""The class of schedules, and what their formulas share."""

from __future__ import annotations

import math
import numbers
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._engine import checks as check

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
        return partial(getattr(sys.modules[__package__], self._name), **self._arguments), ()


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
