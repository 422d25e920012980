"""What `gradstep bench` runs in each of its worker processes: one optimizer of one package.

A contestant has its parameters where its users have them, in arrays of its package, and is called
as they call it. Packages are imported by name when a worker asks for them: none is needed here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ... import _core, reference
from .entrants import PLAIN
from .works import CLIP_NORM, SMALLER, Work

Array = NDArray[Any]
#: What a round of timing takes, and the calls in it.
ROUND_NS, MOST_CALLS = 20_000_000, 200
WARM_UP_NS, MOST_WARM_UPS = 2_000_000, 20


class Contestant:
    """An optimizer on its arrays.

    `step` takes one step of the work, and is all that is timed.

    Args:
        work: what to do.
        params: the start, one array each; the contestant may keep them.
    """

    step: Callable[[], Any]
    #: Whether a step leaves another gradient than it found, whatever the work.
    spoils_gradient: ClassVar[bool] = False

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        self.params: list[Any] = list(params)
        self.grads: list[Any] = [np.empty_like(param) for param in params]

    @classmethod
    def can(cls, work: Work) -> bool:
        """Whether the package has the rule."""
        return True

    def fill(self, grads: Sequence[Array]) -> None:
        """Copy the gradients of the next step to where it reads them."""
        for mine, grad in zip(self.grads, grads, strict=True):
            np.copyto(mine, grad)

    def param(self, i: int) -> Array:
        """An array of parameters, as NumPy sees it."""
        return np.asarray(self.params[i])


class Gradstep(Contestant):
    """The optimizer class, on one array or a list of them."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, params)
        one = work.arrays == 1
        opt: Any = work.optimizer(self.params[0] if one else self.params, **work.own_options)
        clip = {"clip_norm": CLIP_NORM, "zero_grad": True} if work.clip else {}
        self.step = functools.partial(opt.step, self.grads[0] if one else self.grads, **clip)


class Smaller(Gradstep):
    """The same on `bench.SMALLER` elements."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(replace(work, size=SMALLER), [params[0][:SMALLER].copy()])

    def fill(self, grads: Sequence[Array]) -> None:
        super().fill([grads[0][:SMALLER]])

    @classmethod
    def can(cls, work: Work) -> bool:
        return work.arrays == 1 and work.size >= SMALLER


class NumPy(Contestant):
    """The expressions of `gradstep.reference`; clipped as one writes it, by BLAS's dot product."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, params)
        opt = reference.in_numpy(work.optimizer)(self.params, **work.options)

        def clipped_step() -> None:
            scale = np.float32(_clip_factor(self.grads))
            for grad in self.grads:
                grad *= scale
            opt.step(self.grads)
            for grad in self.grads:
                grad.fill(0)

        self.step = clipped_step if work.clip else functools.partial(opt.step, self.grads)


def _clip_factor(grads: Sequence[Array]) -> float:
    norm = math.sqrt(sum(float(np.dot(grad, grad)) for grad in grads))
    return min(1.0, CLIP_NORM / norm)


class Roofline(Contestant):
    """The streams of the work without its arithmetic, in one piece, where gradstep has its arrays.

    What a step writes it reads, too. Clipping reads the gradient once more and zeroing writes it:
    one more stream of each kind.
    """

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, [])
        param, read = np.concatenate(params), np.concatenate(params)
        states = [
            state.reshape(-1)[: param.size]  # of one with rows the first
            for state in work.optimizer(param, **work.options).state.values()
            if state.size >= param.size
        ]
        zeroed = [np.zeros_like(param)] * work.clip
        written = [param.reshape(-1), *states, *zeroed]
        self.step = functools.partial(_core.streams, written, read.reshape(-1))

    def fill(self, grads: Sequence[Array]) -> None:
        """Nothing: it reads numbers of its own."""

    @classmethod
    def can(cls, work: Work) -> bool:
        return work.storage == PLAIN
