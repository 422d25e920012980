"""Every rule on the same data, batches and start: the runs, the table and the picture.

`gradstep compare` prints what this module finds. Matplotlib is imported only to draw.
"""

from __future__ import annotations

import math
import os
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import losses, reference
from ._files import replacing
from .datasets import Dataset, UsageError, demo_packages, load
from .finite_sums import SAG, SAGA, WindowSAG
from .optimizers import (
    CLASSES,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
    RMSprop,
)
from .stability import batch_curvature, has_bound, max_stable_lr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
Item = TypeVar("Item")

WINDOW = 10
#: Single-sample descent takes a step per row: enough rows and epochs to see what it does.
MAX_SINGLE_ROWS, MAX_SINGLE_EPOCHS = 2000, 30
#: The race to the optimum: SAG needs many batches to show what it is for.
FINITE_SUM_BATCHES, FINITE_SUM_PASSES = 150, 40
#: Of what is printed.
WIDTH = 100
PATH_BATCH, PATH_STEPS, PATH_START = 125, 200, (0.0, 6.0)


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


LearningRate = Callable[[Problem, int], float]


def over_curvature(factor: float) -> LearningRate:
    """lr = factor / L, for rules whose step is a multiple of the gradient."""
    return lambda problem, batch_size: factor / problem.curvature(batch_size)


def half_the_bound(cls: type[Optimizer], **options: Any) -> LearningRate:
    """Half of the largest stable lr."""
    return lambda problem, batch_size: (
        0.5 * max_stable_lr(cls, problem.curvature(batch_size), **options)
    )


def of_weights(factor: float) -> LearningRate:
    """lr = factor x the size of the weights, for rules whose step is about lr in each weight."""
    return lambda problem, _: factor * problem.weight_size


def as_it_is(lr: float) -> LearningRate:
    """The same lr for any data, for rules whose steps are a share of the weights."""
    return lambda *_: lr


@dataclass(frozen=True)
class Recipe:
    """How to build a rule for a problem, and its line in the picture.

    Without a colour the line has one by its place among the others. `full_batch` is for rules that
    are not for mini-batches: they take one step per epoch, with all rows.
    """

    cls: type[Optimizer]
    lr: LearningRate
    colour: str = ""
    dash: str = "-"
    options: Mapping[str, Any] = field(default_factory=dict)
    full_batch: bool = False

    def learning_rate(self, batches: Batches) -> float:
        return _three_digits(self.lr(batches.problem, batches.size))


def _three_digits(value: float) -> float:
    """The value rounded, so that the table shows all of it."""
    return float(f"{value:.3g}")


# Momentum of 0.9 sums ten gradients up, so lr = 0.1 / L would go at the pace of SGD. The adaptive
# rules have textbook defaults for networks: 0.01 for Adagrad and RMSprop, 0.001 for Adam.
# WindowSAG keeps to half its bound. All factors are round numbers that suit both line and diabetes,
# whose noise punishes larger ones; on digits nearly every rule would take ten times as much.
# Colours: Okabe and Ito; one family, one colour.

# A run that diverges shall go on to a loss that is infinite, where these would refuse to step.
_CAREFUL = {"skip_nonfinite": True}
#: What is compared if nothing is said.
RULES: Mapping[str, Recipe] = {
    "SGD": Recipe(SGD, over_curvature(1), "#000000"),
    "Momentum": Recipe(Momentum, over_curvature(0.2), "#E69F00"),
    "Nesterov": Recipe(Nesterov, over_curvature(0.2), "#D55E00", "--"),
    "Adagrad": Recipe(Adagrad, of_weights(0.2), "#009E73"),
    "RMSprop": Recipe(RMSprop, of_weights(0.003), "#56B4E9"),
    "Adam": Recipe(Adam, of_weights(0.01), "#0072B2"),
    "AMSGrad": Recipe(Adam, of_weights(0.01), "#0072B2", "--", {"amsgrad": True}),
    "AdamW": Recipe(AdamW, of_weights(0.01), "#0072B2", ":"),
    "SAG": Recipe(SAG, over_curvature(1), "#CC79A7", options=_CAREFUL),
    "SAGA": Recipe(SAGA, over_curvature(1 / 3), "#CC79A7", ":", _CAREFUL),
    "WindowSAG": Recipe(
        WindowSAG,
        half_the_bound(WindowSAG, window=WINDOW),
        "#CC79A7",
        "--",
        {"window": WINDOW, **_CAREFUL},
    ),
}


# FTRL's rates are Adagrad's, and Adadelta's lr is a factor of what it finds by itself. Rprop cannot
# bear noise in its signs. Lion's sign is larger than Adam's mean. A mean of points allows longer
# steps; ASGD's would otherwise begin after a million of them. LARS takes a thousandth of its lr,
# and Adafactor a thousandth of the weights where they are 0.
_OWN_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "Adadelta": {"lr": of_weights(1)},
    "FTRL": {"lr": of_weights(0.2)},
    "ASGD": {"lr": over_curvature(1), "options": {"t0": 0}},
    "ScheduleFreeSGD": {"lr": over_curvature(2)},
    "ScheduleFreeAdamW": {"lr": of_weights(0.02)},
    "Rprop": {"lr": of_weights(0.01), "full_batch": True},
    "Lion": {"lr": of_weights(0.002)},
    "LARS": {"lr": as_it_is(1)},
    "LAMB": {"lr": as_it_is(0.005)},
    "Adafactor": {"lr": as_it_is(0.1)},
}


def recipe_for(cls: type[Optimizer]) -> Recipe:
    """For a class that is not in `RULES`: its own, or half its largest stable lr, or Adam's lr.

    Adam's is for rules that step by about lr in each weight, and those have no largest stable lr.
    """
    lr = half_the_bound(cls) if has_bound(cls) else RULES["Adam"].lr
    return Recipe(cls, **{"lr": lr, **_OWN_RECIPES.get(cls.__name__, {})})


#: `RULES`, and by its name every other class that needs no more than gradients.
ALL_RULES: Mapping[str, Recipe] = {
    **RULES,
    **{
        cls.__name__: recipe_for(cls)
        for cls in CLASSES
        if cls.__name__ not in RULES and not cls.step_needs
    },
}
#: The rules with a gradient for each batch, whose steps name it.
ROW_METHODS = (SAG, SAGA)
#: Those that race to the optimum, and how many gradients they keep.
FINITE_SUM_RULES: Mapping[str, str] = {
    "SGD": "none",
    "WindowSAG": f"the last {WINDOW}",
    "SAG": "one per batch",
    "SAGA": "one per batch",
}


def find_rules(names: str) -> list[str]:
    """The rules in a list such as "adam,sgd", in the spelling of `ALL_RULES`; "all" means each.

    Raises:
        UsageError: no such rule, or one that needs more than gradients.

    Example:
        >>> from gradstep.compare import find_rules
        >>> find_rules("adam, SGD")
        ['Adam', 'SGD']
    """
    known = {name.lower(): [name] for name in ALL_RULES} | {"all": list(ALL_RULES)}
    needs = {cls.__name__.lower(): cls.step_needs for cls in CLASSES}
    wanted = [name.strip().lower() for name in names.split(",")]
    for name in (name for name in wanted if name not in known):
        if name in needs:
            raise UsageError(f"rule {name!r} is not compared: its step needs {needs[name]}")
        raise UsageError(f"unknown rule {name!r}; the rules are {', '.join(known)}")
    return list(dict.fromkeys(found for name in wanted for found in known[name]))


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
        >>> from gradstep.compare import judged_by
        >>> judged_by(gs.ASGD), judged_by(gs.SGD)
        ('average', '')
    """
    return next((name for name in ("eval", "average", "position") if hasattr(cls, name)), "")


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
        data: what to fit, from `gradstep.datasets.load`.
        rules: names in `ALL_RULES`, by default those in `RULES`.
        epochs: passes over the data; if not given, 20 to 100, for about 2500 steps.
        batch_size: rows in a batch; if not given, 32, or more where that makes over 400 batches.
        seed: of the batches and their order.

    Raises:
        UsageError: none of the rules takes a weight and a bias.

    Example:
        >>> from gradstep.compare import compare
        >>> from gradstep.datasets import load
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


def table(found: Comparison) -> str:
    """What was found, in words and numbers, best first."""
    columns = [
        [*heading, *(cell(run) for run in found.runs)] for heading, cell in _columns(found.problem)
    ]
    races = [[race.name, f"{race.distances[-1]:.1e}"] for race in found.races]
    start = ["start", f"{found.races[0].distances[0]:.1e}"]
    distances = [["", "distance to optimum"], start, *races]
    tables = [*aligned(columns, WIDTH), "", *aligned(distances, WIDTH)]
    return "\n".join([*_wrapped(_heading(found)), "", *tables, "", *_notes(found)])


def aligned(columns: Sequence[Sequence[str]], width: float = math.inf) -> list[str]:
    """The rows of a table, the first column to the left and the others to the right.

    Two blanks lie between columns, or one where they would be wider than the width.
    """
    widths = [max(map(len, column)) for column in columns]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    return [
        gap.join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _columns(problem: Problem) -> list[tuple[tuple[str, str], Callable[[Run], str]]]:
    """Of each column the heading in two lines, and its cell for a run."""

    def above_least(run: Run) -> str:
        return "-" if run.diverged else f"{max(0.0, run.losses[-1] - problem.least):.1e}"

    def update_ratio(run: Run) -> str:
        ours, numpys = run.update_microseconds
        return f"{numpys / ours:.1f}"

    def score(run: Run) -> str:
        if run.diverged:
            return "-"
        value = problem.score(run.point)
        return f"{100 * value:.1f} %" if problem.data.classes else f"{value:.4f}"

    columns: list[tuple[tuple[str, str], Callable[[Run], str]]] = [
        (("", "rule"), lambda run: run.name),
        (("", "lr"), lambda run: f"{run.recipe.learning_rate(run.batches):g}"),
        (("training", "loss"), lambda run: "diverged" if run.diverged else f"{run.losses[-1]:.4g}"),
        (("above", "least"), above_least),
        (("held out", "accuracy" if problem.data.classes else "R2"), score),
        (("training", "seconds"), lambda run: f"{run.seconds[0][-1]:.3f}"),
        (("in", "NumPy"), lambda run: f"{run.seconds[1][-1]:.3f}"),
        (("", "ratio"), lambda run: f"{run.seconds[1][-1] / run.seconds[0][-1]:.1f}"),
        (("update", "us"), lambda run: f"{run.update_microseconds[0]:.1f}"),
        (("in", "NumPy"), lambda run: f"{run.update_microseconds[1]:.1f}"),
        (("", "ratio"), update_ratio),
        (("same", "bits"), lambda run: "yes" if run.same_bits else "NO"),
    ]
    return [c for c in columns if problem.optimum is not None or c[0] != ("above", "least")]


def _model(problem: Problem) -> str:
    rows, features = problem.data.x.shape
    classes = f", {problem.data.classes} classes" if problem.data.classes else ""
    model = "softmax regression" if problem.data.classes else "least squares"
    size = f"{count(rows, 'row')} x {count(features, 'feature')}"
    name = problem.data.name.encode("utf-8", "backslashreplace").decode()
    name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
    return f"{name}: {model}, {size}{classes}"


def _heading(found: Comparison) -> str:
    held_out = f"{len(found.problem.data.x_test):,} rows held out"
    epochs = count(max(run.epochs for run in found.runs), "epoch")
    return f"{_model(found.problem)}; {held_out}; {epochs} of {_cut(found.batches)}"


def _cut(batches: Batches) -> str:
    return f"{count(len(batches), 'batch', 'es')} of {batches.size:,}"


def _notes(found: Comparison) -> list[str]:
    notes = [
        "training seconds: the whole training with its gradients, which are NumPy's on both sides.",
        "update us: one step without its gradient, in microseconds, in the median epoch.",
        "same bits: NumPy's training ended with the same parameters, bit for bit.",
    ]
    if found.problem.optimum is not None:
        least = f"least: the least possible loss, {found.problem.least:.6g} (numpy.linalg.lstsq)."
        notes.insert(0, least)
    drawn = [name for name in ("SAG", "SAGA") if name in found.paths]
    if drawn:
        who = f"{' and '.join(drawn)} draw{'s' * (len(drawn) == 1)}"
        notes.append(f"{who} batches at random; other rules see each once per epoch.")
    for run in found.runs:
        if run.diverged:
            notes.append(f"diverged: {run.name} in epoch {run.epochs}.")
        if run.recipe.full_batch:
            notes.append(f"full batch: {run.name} takes one step per epoch, with all rows.")
    used = {run.name: judged_by(run.recipe.cls) for run in found.runs}
    points = [f"{name} at {method}()" for name, method in used.items() if method]
    if points:
        notes += _wrapped(f"judged where their users take them: {', '.join(points)}.")
    for name, why in found.left_out.items():
        notes += _wrapped(f"left out: {name}: {why}")
    first = found.races[0]
    passes, batches = count(first.epochs, "pass", "es"), _cut(first.batches)
    lr, weight_decay = first.finite_sum.lr, first.finite_sum.weight_decay
    notes += [
        f"distance to optimum: after {passes} over {batches}, the same random ones for each rule,",
        f"  all with lr {lr:g}, which SAGA is sure to converge with, and weight_decay "
        f"{weight_decay:g}.",
    ]
    return notes


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
PICTURE_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "savefig.dpi": 140,
}


def check_picture(path: Path) -> None:
    """Find out whether `save_picture` will do, before the training.

    Raises:
        UsageError: Matplotlib is missing, the suffix is unknown, or the file cannot be written.
    """
    with demo_packages():
        try:
            import matplotlib  # noqa: F401
        except ValueError as error:  # MPLBACKEND names none
            raise UsageError(f"matplotlib cannot be used: {error}") from error
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError(f"--out {path} must end in one of {', '.join(PICTURE_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no directory {path.parent}")
    special = path.exists() and not path.is_file()
    if special or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--out {path} cannot be written")


def save_picture(found: Comparison, path: Path) -> None:
    """Write what `draw` draws to a file, in the format of its suffix."""
    from matplotlib import rc_context, rcParamsDefault

    settings = {**rcParamsDefault, **PICTURE_STYLE}
    settings.pop("backend", None)
    with replacing(path) as file, warnings.catch_warnings(), rc_context(settings):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        draw(found).savefig(file, format=path.suffix[1:].lower())


def draw(found: Comparison) -> Figure:
    """Five panels: loss by epoch, time and batch size, paths, and distances to the optimum."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(13, 16), layout=layout)
    grid = figure.add_gridspec(3, 2)
    by_epoch, by_time, by_size, surface = (figure.add_subplot(grid[i]) for i in range(4))
    to_optimum = figure.add_subplot(grid[2, :])
    _draw_epochs(by_epoch, found)
    _draw_seconds(by_time, found)
    _draw_sizes(by_size, found)
    _draw_paths(surface, found)
    _draw_races(to_optimum, found.races)
    many = len(found.runs) > 1
    handles, labels = by_time.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=6,
        title=_model(found.problem).replace("$", r"\$") + "; lowest loss first" * many,
        title_fontsize=14,
    )
    figure.supxlabel("Loss: faint after each epoch, bold its running median.", fontsize=10)
    return figure


def _draw_epochs(axes: Axes, found: Comparison) -> None:
    lines = _lines(found.runs)
    for run in found.runs:
        _draw_loss(axes, run, range(run.epochs + 1), **lines[run.name])
    axes.set_title("Loss by epoch: the same batches for each rule")
    _set_epoch_axis(axes)
    _set_loss_axis(axes, found.runs)
    if not _have_colours(found.runs):
        _label_ends(axes, [run for run in found.runs if lines[run.name]["color"] != OTHERS], lines)


def _label_ends(axes: Axes, runs: Sequence[Run], lines: Mapping[str, Mapping[str, Any]]) -> None:
    """The names beside the ends of their lines, moved apart where these are close."""
    bottom, top = axes.get_ylim()
    ends = [(run.epochs, min(max(_smooth(_above_least(run))[-1], bottom), top)) for run in runs]
    in_panel = axes.transData + axes.transAxes.inverted()
    places = spread([float(y) for _, y in in_panel.transform(ends)], 0.052, 0.0, 1.0)
    for run, end, place in zip(runs, ends, places, strict=True):
        colour = lines[run.name]["color"]
        label_end(axes, run.name, end, (1.03, place), colour)


def label_end(
    axes: Axes,
    text: str,
    end: tuple[float, float],
    place: tuple[float, float],
    colour: str,
    weight: str = "normal",
) -> None:
    """Write a name right of the panel, and a thin line from there to where a curve ends."""
    axes.annotate(
        text,
        end,
        place,
        textcoords="axes fraction",
        color=colour,
        weight=weight,
        va="center",
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.8,
            "alpha": 0.6,
            "relpos": (0, 0.5),
            "shrinkA": 1,
            "shrinkB": 4,
        },
    )


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The values moved apart by at least a gap, little and within limits that have room.

    Example:
        >>> from gradstep.compare import spread
        >>> spread([1.0, 5.0, 1.0], 1.0, 0.0, 6.0)
        [1.0, 5.0, 2.0]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    moved = list(values)
    floor = low
    for i in order:
        moved[i] = max(moved[i], floor)
        floor = moved[i] + gap
    ceiling = high
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def _draw_seconds(axes: Axes, found: Comparison) -> None:
    lines, grey = _lines(found.runs), 0
    for place, run in enumerate(found.runs, 1):
        label = f"{place}. {run.name}" if len(found.runs) > 1 else run.name
        if lines[run.name]["color"] == OTHERS:
            grey, label = grey + 1, ""
        _draw_loss(axes, run, run.seconds[0], label=label, **lines[run.name])
    if grey:
        axes.plot([], [], **_OTHER_LINE, label=f"{grey} other{'s' * (grey > 1)}, in the table")
    best = found.runs[0]
    numpys = {"color": "#808080", "linestyle": "-.", "label": f"{best.name} in NumPy"}
    _draw_loss(axes, best, best.seconds[1], **numpys)
    axes.set(title="Loss by time: gradients included", xlabel="seconds of training")
    _set_loss_axis(axes, found.runs)
    _end_with_the_lines(axes)


def _end_with_the_lines(axes: Axes) -> None:
    """No room beyond where the last line leaves the panel through its floor."""
    floor = axes.get_ylim()[0]
    points = [line.get_xydata() for line in axes.lines]
    end = max(x[y >= floor].max(initial=0) for x, y in (np.transpose(xy) for xy in points))
    axes.set_xlim(-0.04 * end, 1.04 * end)


def _draw_sizes(axes: Axes, found: Comparison) -> None:
    for run, dash in zip(found.sizes, ("--", "-", ":"), strict=False):
        rows, steps = count(run.batches.size, "row"), count(len(run.batches), "step")
        label = f"{rows},\n{steps} per epoch"
        line = {"color": RULES["SGD"].colour, "linestyle": dash, "label": label}
        _draw_loss(axes, run, range(run.epochs + 1), **line)
    rows = count(len(found.sizes[0].batches.problem.data.x), "row")
    axes.set_title(f"Batch size: SGD with all, some or one of {rows}", pad=44)
    _set_epoch_axis(axes)
    legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, fontsize=10)
    legend.set_in_layout(False)
    _set_loss_axis(axes, found.sizes)


def _draw_paths(axes: Axes, found: Comparison) -> None:
    line = found.line
    assert line.optimum is not None  # it is least squares
    optimum = np.concatenate(line.optimum)
    lines = _lines(found.runs)
    one_per_colour = {lines[name]["color"]: name for name in reversed(found.paths)}
    for colour, name in one_per_colour.items():
        if colour != OTHERS:
            path = {**lines[name], "marker": ".", "markersize": 5, "linewidth": 1.2}
            axes.plot(*found.paths[name].T, **path)
    for text, (x, y), marker in (("start", PATH_START, "o"), ("optimum", optimum, "*")):
        axes.plot(x, y, "k", marker=marker, markersize=14, markeredgecolor="w", zorder=5)
        below: Any = {"xytext": (0, -26), "textcoords": "offset points", "ha": "center"}
        box = {"color": "w", "alpha": 0.8, "pad": 1}
        axes.annotate(text, (x, y), **below, weight="bold", bbox=box)
    axes.margins(0.12)
    slope, intercept = (np.linspace(*limits, 200) for limits in (axes.get_xlim(), axes.get_ylim()))
    away = np.stack(np.meshgrid(slope, intercept), axis=-1) - optimum
    hessian = line.with_ones.T @ line.with_ones / len(line.with_ones)
    height = 0.5 * np.einsum("...i,ij,...j", away, hessian, away)
    levels = height.max() / 2.0 ** np.arange(12, 0, -1)
    axes.contour(slope, intercept, height, levels, colors="#b8b8b8", linewidths=0.8, zorder=0)
    axes.set(title="Paths over the error surface of a line", xlabel="slope", ylabel="intercept")
    axes.grid(False)


def _draw_races(axes: Axes, races: Sequence[Race]) -> None:
    for race in races:
        label = f"{race.name}: {FINITE_SUM_RULES[race.name]}"
        axes.plot(_drawn(race.distances), **_own_line(race.recipe), label=label)
    cut = _cut(races[0].batches)
    axes.set_title(f"Who reaches the optimum: one learning rate for all, {cut}")
    _set_epoch_axis(axes)
    axes.set_ylabel("distance to the optimum")
    axes.legend(loc="lower left", title="gradients kept", alignment="left", title_fontsize=11)
    _set_log_axis(axes, [_drawn(race.distances) for race in races], depth=1e-12)


def _draw_loss(axes: Axes, run: Run, times: Sequence[float], **line: Any) -> None:
    above = _above_least(run)
    if line["color"] != OTHERS:
        axes.plot(times, above, color=line["color"], alpha=0.2, linewidth=0.8)
    axes.plot(times, _smooth(above), **{"linewidth": 2, **line})


def _above_least(run: Run) -> Array:
    return _drawn(np.array(run.losses) - run.batches.problem.least)


def _drawn(values: ArrayLike) -> Array:
    """What is drawn of a curve. That of a rule that diverges ends far above the picture."""
    values = np.asarray(values)
    return np.asarray(np.fmin(values, 1000 * values[0]))


def _set_epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epochs (passes over the training rows)")
    axes.locator_params(axis="x", integer=True)


def _set_loss_axis(axes: Axes, runs: Sequence[Run]) -> None:
    least = runs[0].batches.problem.optimum is not None
    axes.set_ylabel("training loss above the least possible" if least else "training loss")
    _set_log_axis(axes, [_above_least(run) for run in runs])


def _set_log_axis(axes: Axes, curves: Sequence[Array], depth: float = 1e-9) -> None:
    """Only as far as matters: a rule may diverge, or reach the optimum itself."""
    values = np.concatenate(curves)
    start = values[0]
    if start > 0:  # else it starts at the optimum: constant features say nothing
        lowest = values[values > 0].min()
        axes.set_yscale("log")
        axes.set_ylim(max(lowest / 1.5, depth * start), 1.5 * min(values.max(), 10 * start))


def _smooth(values: Array) -> Array:
    """The running median over a tenth of the values; the first stay."""
    reach = len(values) // 20
    near = (slice(max(0, i - min(i, reach)), i + min(i, reach) + 1) for i in range(len(values)))
    return np.array([np.median(values[part]) for part in near])


#: Where there are rules without a colour, so many of the best have one; SGD is to compare with.
BEST_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#7B3FA0", "#56B4E9")
OTHERS = "#b8b8b8"
_OTHER_LINE: dict[str, Any] = {"color": OTHERS, "linestyle": "-", "linewidth": 0.9}


def _have_colours(runs: Sequence[Run]) -> bool:
    return all(run.recipe.colour for run in runs)


def _lines(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """By rule, how its line is drawn: in its own colour where all have one, else by its place."""
    if _have_colours(runs):
        return {run.name: _own_line(run.recipe) for run in runs}
    lines = {run.name: dict(_OTHER_LINE) for run in runs}
    ranked = [name for name in lines if name != "SGD"]
    for name, colour in zip(ranked, BEST_COLOURS, strict=False):
        lines[name] = {"color": colour, "linestyle": "-", "zorder": 2.2}
    if "SGD" in lines:
        lines["SGD"] = _own_line(RULES["SGD"])
    return lines


def _own_line(recipe: Recipe) -> dict[str, Any]:
    """Where two lines coincide, the dashed one goes on top and both are seen."""
    order = 2.1 + (recipe.dash != "-")
    return {"color": recipe.colour, "linestyle": recipe.dash, "linewidth": 2, "zorder": order}


def count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{plural * (number != 1)}"
