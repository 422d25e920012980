"""The numbers of a workload, and what the results must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import reference
from ...reference.storage import STATE_BLOCK
from .entrants import PLAIN
from .works import CHECKED_STEPS, CLIP_NORM, Work

Array = NDArray[Any]
#: Numbers repeat after this many, a prime, so that those of large arrays are quickly drawn.
PERIOD = 1_048_573


# The same numbers for all


def draw(work: Work, seed: int) -> list[Array]:
    """Standard normal numbers for each array, the same in every process."""
    numbers = _period(work, seed)
    arrays = [np.empty(work.size, work.dtype) for _ in range(work.arrays)]
    for i, begin, end, at in _pieces(work):
        arrays[i][begin:end] = numbers[at : at + end - begin]
    return [array.reshape(work.array_shape) for array in arrays]


def gradients(work: Work) -> Iterator[list[Array]]:
    """The gradients of the steps that are checked."""
    for step in range(1, CHECKED_STEPS + 1):
        yield draw(work, step)


def _period(work: Work, seed: int) -> Array:
    size = min(work.elements, PERIOD)
    numbers = np.random.default_rng(seed).standard_normal(size, np.float32)
    return numbers.astype(work.dtype, copy=False)


def _pieces(work: Work) -> Iterator[tuple[int, int, int, int]]:
    """Of all arrays, laid end to end, the pieces between repetitions: array, begin, end, origin."""
    period = min(work.elements, PERIOD)
    for i in range(work.arrays):
        begin = 0
        while begin < work.size:
            at = (i * work.size + begin) % period
            end = min(work.size, begin + period - at)
            yield i, begin, end, at
            begin = end


class Check(NamedTuple):
    """How the parameters compare with NumPy's after `CHECKED_STEPS`.

    Args:
        same_bits: whether they are the same.
        deviation: the distance from NumPy's, over the distance that NumPy's have moved.
    """

    same_bits: bool
    deviation: float


class Oracle:
    """What the parameters must be after the steps that are checked, by NumPy.

    A rule that looks at each element alone repeats itself as its numbers do: one period is enough.
    With clipping, or a norm in the rule, all elements count. Stochastic rounding does not repeat
    itself: only the first period is compared, and the whole blocks of it.
    """

    def __init__(self, work: Work) -> None:
        self._pieces, size = list(_pieces(work)), min(work.elements, PERIOD)
        if work.storage != PLAIN:
            size = min(work.size, PERIOD)
            size -= size % STATE_BLOCK if size < work.size else 0
            self._pieces = [(0, 0, size, 0)]
        self.work, cls = work, reference.in_numpy(work.optimizer)
        self._start, self._whole = _period(work, 0), not work.by_element
        if self._whole:
            self._params = draw(work, 0)
            steps = gradients(work)
        else:
            self._params = [self._start[:size].copy()]
            steps = ([_period(work, step)[:size]] for step in range(1, CHECKED_STEPS + 1))
        opt = cls(self._params, **work.own_options)
        for grads in steps:
            opt.step(grads, clip_norm=CLIP_NORM if work.clip else None)

    def check(self, param: Callable[[int, int, int], Array]) -> Check:
        """Compare parameters, given a function that gets a piece of an array of them."""
        same, off, moved = True, 0.0, 0.0
        for i, begin, end, at in self._pieces:
            size = end - begin
            got, start = param(i, begin, end), self._start[at : at + size]
            whole, first = (self._params[i], begin) if self._whole else (self._params[0], at)
            expected = whole.reshape(-1)[first : first + size]
            if got.dtype != expected.dtype or got.shape != expected.shape:
                return Check(False, math.nan)
            same = same and got.tobytes() == expected.tobytes()
            off += _square_sum(got - expected)
            moved += _square_sum(expected - start)
        return Check(same, math.sqrt(off / moved) if moved else math.nan)


def _square_sum(x: Array) -> float:
    return float(np.square(x.astype(np.float64)).sum())
