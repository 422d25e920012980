"""One rule on one problem, epoch by epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import reference
from ...optimizers.base import Optimizer
from ...optimizers.rows import SAGA
from ...stability import max_stable_lr
from .problem import Batches, Problem
from .recipes import ALL_RULES, FINITE_SUM_BATCHES, ROW_METHODS, Recipe, _three_digits

Array = NDArray[Any]


class Training:
    """An optimizer on its way through batches, against the clock."""

    def __init__(self, batches: Batches, recipe: Recipe, in_numpy: bool = False) -> None:
        cls: Any = reference.in_numpy(recipe.cls) if in_numpy else recipe.cls
        rows = {"rows": len(batches)} if issubclass(recipe.cls, ROW_METHODS) else {}
        self.batches = batches
        self.params = batches.problem.start()
        self.opt = cls(self.params, lr=recipe.learning_rate(batches), **recipe.options, **rows)
        self.seconds = self.update_seconds = 0.0

    def step(self, row: int) -> None:
        """One gradient, one update."""
        opt, which = self.opt, (row,) if isinstance(self.opt, ROW_METHODS) else ()
        start = time.perf_counter()
        grads = self.batches.gradient(self.params, row)
        middle = time.perf_counter()
        opt.step(grads, *which)
        end = time.perf_counter()
        self.seconds += end - start
        self.update_seconds += end - middle

    def point(self) -> list[Array]:
        """What is to be used of the training so far, which goes on as if nobody had asked."""
        method = judged_by(type(self.opt))
        if not method or self.opt.t == 0:
            return self.params
        if method != "eval":
            return list(getattr(self.opt, method)())
        here = [param.copy() for param in self.params]
        self.opt.eval()
        point = [param.copy() for param in self.params]
        self.opt.train()
        for param, old in zip(self.params, here, strict=True):  # the way back has rounded
            param[...] = old
        return point


def judged_by(cls: type[Optimizer]) -> str:
    """The method that gives the point to use where that is not the parameters, otherwise "".

    Example:
        >>> import gradstep as gs
        >>> from gradstep.tools.compare import judged_by
        >>> judged_by(gs.ASGD), judged_by(gs.SGD)
        ('average', '')
    """
    names = ("eval", "average", "position")
    return next((name for name in names if callable(getattr(cls, name, None))), "")


class Run:
    """One rule, trained by gradstep and, if wanted, over again by NumPy.

    `losses` has an item for the start and one per epoch, and for each training so have `seconds`
    and, of the steps without their gradients, `update_seconds`. The loss is taken over all training
    rows, at the point that the rule is meant for, outside the clock.
    """

    def __init__(
        self,
        batches: Batches,
        name: str,
        seed: int,
        with_numpy: bool = False,
        recipe: Recipe | None = None,
    ) -> None:
        self.name = name
        self.recipe = recipe or ALL_RULES[name]
        self.batches = batches.whole() if self.recipe.full_batch else batches
        self.trainings = [Training(self.batches, self.recipe)]
        if with_numpy:
            self.trainings.append(Training(self.batches, self.recipe, in_numpy=True))
        self.losses = [batches.problem.value(self.params)]
        self.seconds = [[0.0] for _ in self.trainings]
        self.update_seconds = [[0.0] for _ in self.trainings]
        self._rng = np.random.default_rng(seed)

    @property
    def params(self) -> list[Array]:
        return self.trainings[0].params

    @property
    def point(self) -> list[Array]:
        """What is to be used of the training so far."""
        return self.trainings[0].point()

    @property
    def epochs(self) -> int:
        return len(self.losses) - 1

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.losses[-1])

    @property
    def same_bits(self) -> bool:
        """Whether all trainings ended with the same parameters, to the last bit."""
        ends = {tuple(_bits(p) for p in training.params) for training in self.trainings}
        return len(ends) == 1

    @property
    def update_microseconds(self) -> list[float]:
        """For each training, one step without its gradient, in the median epoch."""
        epochs = np.diff(self.update_seconds, axis=1)
        return list(1e6 * np.median(epochs, axis=1) / len(self.batches))

    def epoch(self) -> None:
        """One pass over the batches. Both trainings see the machine in turns, so as to be fair."""
        if self.diverged:
            return
        rows = self.order()
        for training in self.trainings[:: -1 if self.epochs % 2 else 1]:
            for row in rows:
                training.step(row)
        for i, training in enumerate(self.trainings):
            self.seconds[i].append(training.seconds)
            self.update_seconds[i].append(training.update_seconds)
        self.losses.append(self.batches.problem.value(self.point))

    def order(self) -> list[int]:
        """Each batch once, in a new order; for SAG and SAGA drawn at random, as their papers do.

        With each once, SAG's table is a pass old, which at lr = 1/L makes it unstable.
        """
        if isinstance(self.trainings[0].opt, ROW_METHODS):
            return self._draws()
        return list(self._rng.permutation(len(self.batches)))

    def _draws(self) -> list[int]:
        return list(self._rng.integers(len(self.batches), size=len(self.batches)))


class FiniteSum:
    """A mean over mini-batches with an L2 penalty, and its optimum.

    With the curvature L that a batch sees and n batches, the penalty is L/n: SAG and SAGA then come
    nearer by a constant factor in each pass, on any data. All rules have the learning rate that is
    stable for each of them, SAGA's 1 / (3 L), so that they differ in what they remember only.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.batches = Batches(problem, math.ceil(len(problem.data.x) / FINITE_SUM_BATCHES), seed)
        curvature = problem.curvature(self.batches.size)
        self.weight_decay = _three_digits(curvature / len(self.batches))
        self.lr = _three_digits(max_stable_lr(SAGA, curvature, weight_decay=self.weight_decay))
        self.optimum = problem.penalised_optimum(self.weight_decay)

    def recipe(self, name: str) -> Recipe:
        """The rule with the penalty and the learning rate of all."""
        options = {**ALL_RULES[name].options, "weight_decay": self.weight_decay}
        return replace(ALL_RULES[name], lr=lambda *_: self.lr, options=options)

    def distance(self, params: Sequence[Array]) -> float:
        """How far the parameters are from the optimum."""
        pairs = zip(params, self.optimum, strict=True)
        return math.sqrt(sum(float(np.square(param - best).sum()) for param, best in pairs))


class Race(Run):
    """A rule on its way to the optimum of a finite sum.

    `distances` has an item for the start and one per epoch. With the same seed, all rules are given
    the same random batches.
    """

    def __init__(self, finite_sum: FiniteSum, name: str, seed: int) -> None:
        super().__init__(finite_sum.batches, name, seed, recipe=finite_sum.recipe(name))
        self.finite_sum = finite_sum
        self.distances = [finite_sum.distance(self.params)]

    def epoch(self) -> None:
        super().epoch()
        self.distances.append(self.finite_sum.distance(self.params))

    def order(self) -> list[int]:
        return self._draws()


def _bits(x: Array) -> bytes:
    """The bits of an array, the many forms of NaN made one."""
    return np.where(np.isnan(x), np.nan, x).tobytes()
