"""Every rule on the same data, batches and start: the runs, the table and the picture.

`gradstep compare` prints what this module finds. Matplotlib is imported only to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..datasets import Dataset, UsageError, load
from .problem import Batches, Problem
from .recipes import ALL_RULES, FINITE_SUM_PASSES, FINITE_SUM_RULES, RULES
from .runs import FiniteSum, Race, Run, Training

Array = NDArray[Any]
Item = TypeVar("Item")
#: Single-sample descent takes a step per row: enough rows and epochs to see what it does.
MAX_SINGLE_ROWS, MAX_SINGLE_EPOCHS = 2000, 30
PATH_BATCH, PATH_STEPS, PATH_START = 125, 200, (0.0, 6.0)


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Args:
        batches: what the rules were trained on.
        runs: one per rule, the lowest final loss first.
        left_out: by rule, why it cannot be trained here.
        sizes: SGD with all rows, some and one in a batch.
        races: the rules of `FINITE_SUM_RULES` on their way to the optimum.
        paths: per rule, the points (slope, intercept) that it passed on the line.
        line: the problem of the paths.
    """

    batches: Batches
    runs: list[Run]
    left_out: dict[str, str]
    sizes: list[Run]
    races: list[Race]
    paths: dict[str, Array]
    line: Problem

    @property
    def problem(self) -> Problem:
        return self.batches.problem


def compare(
    data: Dataset,
    rules: Sequence[str] = tuple(RULES),
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Train a linear model with each rule, once by gradstep and once by NumPy.

    Args:
        data: what to fit, from `gradstep.tools.datasets.load`.
        rules: names in `ALL_RULES`, by default those in `RULES`.
        epochs: passes over the data; if not given, 20 to 100, for about 2500 steps.
        batch_size: rows in a batch; if not given, 32, or more where that makes over 400 batches.
        seed: of the batches and their order.

    Raises:
        UsageError: none of the rules takes a weight and a bias.

    Example:
        >>> from gradstep.tools.compare import compare
        >>> from gradstep.tools.datasets import load
        >>> found = compare(load("line"), ["SGD", "SAG"], epochs=60)
        >>> [run.name for run in found.runs]
        ['SAG', 'SGD']
    """
    problem, line = Problem(data), Problem(load("line"))
    batches = Batches(problem, batch_size or max(32, len(data.x) // 400), seed)
    on_line = Batches(line, PATH_BATCH, seed)
    left_out = _refusals(rules, (batches, on_line))
    rules = [name for name in rules if name not in left_out]
    if not rules:
        raise UsageError("; ".join(f"{name}: {why}" for name, why in left_out.items()))
    passes = min(epochs or FINITE_SUM_PASSES, FINITE_SUM_PASSES)
    epochs = epochs or min(max(2500 // len(batches), 20), 100)
    few = Problem(_head(data, seed))
    some = batches.size if len(few.data.x) == len(data.x) else 32
    sizes = dict.fromkeys((len(few.data.x), some, 1))
    with np.errstate(all="ignore"):  # a rule may diverge, which its loss shows
        Run(batches, rules[0], seed, with_numpy=True).epoch()  # warms caches and threads up
        runs = [Run(batches, name, seed, with_numpy=True) for name in rules]
        size_runs = [Run(Batches(few, size, seed), "SGD", seed) for size in sizes]
        finite_sum = FiniteSum(problem, seed)
        races = [Race(finite_sum, name, seed) for name in FINITE_SUM_RULES]
        plan = [(run, epochs) for run in runs]
        plan += [(run, min(epochs, MAX_SINGLE_EPOCHS)) for run in size_runs]
        plan += [(race, passes) for race in races]
        work = (run for run, times in plan for _ in range(times))
        for run in _with_progress(work, sum(times for _, times in plan)):
            run.epoch()
        paths = {name: _path(on_line, name, seed) for name in rules}
    runs.sort(key=lambda run: math.inf if run.diverged else run.losses[-1])
    return Comparison(batches, runs, left_out, size_runs, races, paths, line)


def _refusals(rules: Sequence[str], trained_on: Sequence[Batches]) -> dict[str, str]:
    """By rule, why it does not take such parameters: it may want matrices."""
    refusals = {}
    for name in rules:
        try:
            for batches in trained_on:
                Training(batches, ALL_RULES[name])
        except (TypeError, ValueError) as error:
            refusals[name] = str(error)
    return refusals


def _head(data: Dataset, seed: int) -> Dataset:
    """The data, or as many random rows of it as single-sample descent has time for."""
    rows = np.random.default_rng(seed).permutation(len(data.x))[:MAX_SINGLE_ROWS]
    return Dataset(data.name, data.x[rows], data.y[rows], data.x_test, data.y_test, data.classes)


def _path(batches: Batches, name: str, seed: int) -> Array:
    """Where the rule is after each of some steps."""
    run = Run(batches, name, seed)
    run.params[0][:], run.params[1][:] = PATH_START
    points = [np.concatenate(run.point)]
    while len(points) <= PATH_STEPS:
        for row in run.order():
            run.trainings[0].step(row)
            points.append(np.concatenate(run.point))
    return np.array(points)


def _with_progress(items: Iterable[Item], total: int) -> Iterable[Item]:
    """The items, with a bar on a terminal if tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    bar: Iterable[Item] = tqdm(items, "training", total, leave=False, unit=" epochs", disable=None)
    return bar
