"""A data set as a loss with gradients, and its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import losses
from ...optimizers.textbook import SGD
from ...stability import batch_curvature
from ..datasets import Dataset

Array = NDArray[Any]


class Problem:
    """A linear model with bias, and the data to fit it to.

    Args:
        data: what to fit. Classes make it softmax regression, numbers least squares.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.loss = losses.softmax if data.classes else losses.least_squares
        self.gradient = losses.linear(self.loss)

    def start(self) -> list[Array]:
        """New parameters: weight and bias, all 0."""
        outputs = self.data.classes
        shape = (self.data.x.shape[1], outputs) if outputs else self.data.x.shape[1]
        return [np.zeros(shape), np.zeros(outputs or 1)]

    def value(self, params: Sequence[Array]) -> float:
        """The loss over all training rows."""
        return self.loss(_predict(params, self.data.x), self.data.y)[0]

    def score(self, params: Sequence[Array]) -> float:
        """The accuracy, or R2, over the rows held out."""
        z, y = _predict(params, self.data.x_test), self.data.y_test
        if self.data.classes:
            return float(np.mean(z.argmax(axis=1) == y))
        spread = np.sum((y - y.mean()) ** 2)
        return float(1 - np.sum((z - y) ** 2) / spread) if spread > 0 else math.nan

    def curvature(self, batch_size: int) -> float:
        """What 1/lr of SGD must exceed: the curvature of the loss as such batches see it."""
        return batch_curvature(*self._curvatures, len(self.data.x), batch_size)

    @cached_property
    def _curvatures(self) -> tuple[float, float]:
        """Of the mean over all rows, and the largest of a single row."""
        x = self.with_ones
        gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
        factor = losses.CURVATURES[self.loss.__name__]
        overall = np.linalg.eigvalsh(gram)[-1] / len(x)
        return factor * float(overall), factor * float(np.square(x).sum(axis=1).max())

    @cached_property
    def weight_size(self) -> float:
        """About how large weights must be to explain the targets: what adaptive steps count in."""
        size = 1.0 if self.data.classes else _rms(self.data.y)
        return size / (_rms(self.data.x) or 1.0)

    @cached_property
    def optimum(self) -> list[Array] | None:
        """The least squares solution; None where there is no formula for it."""
        if self.data.classes:
            return None
        solution = np.linalg.lstsq(self.with_ones, self.data.y)[0]
        return [solution[:-1], solution[-1:]]

    @cached_property
    def least(self) -> float:
        """The least possible loss. Of softmax only the bound 0 is known."""
        return 0.0 if self.optimum is None else self.value(self.optimum)

    def penalised_optimum(self, weight_decay: float) -> list[Array]:
        """Where the loss plus weight_decay / 2 |params|^2 is least.

        Least squares has a formula. Softmax is descended with all rows: Nesterov's momentum makes
        the distance exp(1/2) times smaller in as many steps as the root of the condition number,
        and exp(30) is beyond what float64 resolves.
        """
        rows = len(self.data.x)
        if not self.data.classes:
            x = self.with_ones
            hessian = x.T @ x / rows + weight_decay * np.eye(x.shape[1])
            solution = np.linalg.solve(hessian, x.T @ self.data.y / rows)
            return [solution[:-1], solution[-1:]]
        params, largest = self.start(), self.curvature(rows) + weight_decay
        root = math.sqrt(largest / weight_decay)
        opt = SGD(
            params,
            lr=1 / largest,
            momentum=(root - 1) / (root + 1),
            nesterov=True,
            weight_decay=weight_decay,
        )
        for _ in range(math.ceil(60 * root)):
            opt.step(list(self.gradient(params, self.data.x, self.data.y)[1]))
        return params

    @property
    def with_ones(self) -> Array:
        """The training features and a column of ones, which the bias multiplies."""
        return np.column_stack([self.data.x, np.ones(len(self.data.x))])


def _predict(params: Sequence[Array], x: Array) -> Array:
    weight, bias = params
    return np.asarray(x @ weight + bias)


def _rms(x: Array) -> float:
    return math.sqrt(np.mean(np.square(x)))


class Batches:
    """The training rows, shuffled once and cut into batches whose sizes differ by one at most."""

    def __init__(self, problem: Problem, batch_size: int, seed: int) -> None:
        x, y = problem.data.x, problem.data.y
        self.problem, self.seed, self.size = problem, seed, min(batch_size, len(x))
        order = np.random.default_rng(seed).permutation(len(x))
        parts = np.array_split(order, math.ceil(len(x) / self.size))
        self.items = [(x[rows], y[rows], len(rows) * len(parts) / len(x)) for rows in parts]

    def __len__(self) -> int:
        return len(self.items)

    def whole(self) -> Batches:
        """The same rows in one batch."""
        return Batches(self.problem, len(self.problem.data.x), self.seed)

    def gradient(self, params: Sequence[Array], row: int) -> list[Array]:
        """The gradient of one batch, weighted such that their mean is that of all rows."""
        x, y, weight = self.items[row]
        _, grads = self.problem.gradient(params, x, y)
        for grad in grads:
            grad *= weight
        return list(grads)
