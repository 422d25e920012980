"""What is timed of linear models."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import losses
from ..datasets import load
from .measure import rotated

Array = NDArray[Any]
#: Tolerances are tried from the loosest on.
LADDER = tuple(float(f"1e-{digits}") for digits in range(13))
MAX_EPOCHS = 2_000
#: How an optimum is checked: to what tolerance it is fitted, by the bits of a number, and how far
#: the objective may be from the least, as a part of it.
CHECK_TOL, CHECK_EXCESS = {32: 1e-5, 64: 1e-8}, 1e-5
GRADIENT_GOAL, OBJECTIVE_GOAL, R2_GOAL = 1e-6, 1e-8, 1e-4


class Contestant(NamedTuple):
    """A solver of a library."""

    library: str
    variant: str

    def __str__(self) -> str:
        return f"{self.library} {self.variant}"


NOT_THERE = "has no such variant"
VARIANTS = ("sag", "saga")
OURS, THEIRS = "gradstep", "scikit-learn"
CONTESTANTS = [Contestant(library, variant) for library in (OURS, THEIRS) for variant in VARIANTS]


class Problem:
    """Rows, targets and the penalty alpha/2 |coef|^2 on the mean loss.

    Args:
        x, y: rows, dense or in CSR, and classes 0, 1, ... or, of least squares, numbers.
        alpha: the penalty.
    """

    def __init__(self, x: Any, y: Array, alpha: float) -> None:
        self.x, self.y, self.alpha = x, y, alpha
        self.regression = y.dtype.kind == "f"
        self.loss = losses.least_squares if self.regression else losses.softmax
        if not self.regression and y.max() == 1:
            self.loss = losses.logistic

    @property
    def shape(self) -> str:
        rows, features = self.x.shape
        return f"{rows:,} x {features:,}"

    def has(self, contestant: Contestant) -> bool:
        """Whether the library has this variant for such rows: gradstep has no SAG for sparse."""
        return isinstance(self.x, np.ndarray) or contestant != (OURS, "sag")

    def model(self, contestant: Contestant, max_iter: int, tol: float | None) -> Any:
        """An estimator of this problem. Without `tol` it takes `max_iter` epochs."""
        settings: dict[str, Any] = {"max_iter": max_iter, "random_state": 0}
        if contestant.library == OURS:
            from ...linear import SAGClassifier, SAGRegressor

            ours = SAGRegressor if self.regression else SAGClassifier
            return ours(variant=contestant.variant, alpha=self.alpha, tol=tol, **settings)
        settings |= {"solver": contestant.variant, "tol": tol or 0.0}
        return self._theirs(**settings)

    def fit(self, contestant: Contestant, max_iter: int, tol: float | None = None) -> Fit:
        """Fit, against the clock."""
        model = self.model(contestant, max_iter, tol)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of epochs that are too few to converge
            start = time.perf_counter()
            model.fit(self.x, self.y)
            seconds = time.perf_counter() - start
        return Fit(model, seconds, int(np.max(model.n_iter_)))

    def objective(self, model: Any) -> float:
        """What is minimised, in float64."""
        coef = np.asarray(model.coef_, np.float64)
        z = self._scores(coef, model.intercept_)
        return self.loss(z, self.y)[0] + 0.5 * self.alpha * float(np.vdot(coef, coef))

    def r2(self, model: Any) -> float:
        """The share of the variance of the targets that is explained."""
        z = self._scores(np.asarray(model.coef_, np.float64), model.intercept_)
        return float(1 - np.square(self.y - z).sum() / np.square(self.y - self.y.mean()).sum())

    @cached_property
    def best(self) -> Any:
        """A model at the optimum, by another method: the closed form, or L-BFGS in float64."""
        if self.regression:
            return self._theirs(solver="cholesky").fit(self.x, self.y)
        model = self._theirs(solver="lbfgs", tol=1e-8, max_iter=10_000)
        return model.fit(self.x.astype(np.float64), self.y)

    def complaint(self, contestant: Contestant) -> str:
        """What keeps a contestant from being timed: it must get to the optimum."""
        if not self.has(contestant):
            return NOT_THERE
        tol = CHECK_TOL[8 * self.x.dtype.itemsize]
        model = self.fit(contestant, MAX_EPOCHS, tol).model
        excess = self.objective(model) / self.objective(self.best) - 1
        within = abs(excess) <= CHECK_EXCESS  # which NaN is not
        return "" if within else f"ends {excess:.1e} of the least objective away from it"

    def _theirs(self, **settings: Any) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        rows = len(self.y)
        if self.regression:
            return Ridge(alpha=rows * self.alpha, **settings)
        return LogisticRegression(C=1 / (rows * self.alpha), **settings)

    def _scores(self, coef: Array, intercept: Any) -> Array:
        z = np.asarray(self.x @ coef.T + intercept)
        return z if self.loss is losses.softmax else z.reshape(len(self.y))


class Fit(NamedTuple):
    """A fitted model, the seconds that it took, and its epochs."""

    model: Any
    seconds: float
    epochs: int


@dataclass
class Result:
    """What one contestant did: seconds by round, and how, or why it has none."""

    seconds: list[float] = field(default_factory=list)
    tol: float | None = None
    epochs: int | None = None
    problem: str = ""


@dataclass
class Row:
    """A work, and who did it how fast."""

    title: str
    results: dict[Contestant, Result]

    def seconds(self, contestant: Contestant) -> float:
        """The median of the contestant's rounds; NaN if it was not timed."""
        seconds = self.results[contestant].seconds
        return float(np.median(seconds)) if seconds else math.nan

    def ratios(self, variant: str) -> list[float]:
        """How many times as long scikit-learn took in each round.

        Where gradstep does not have the variant, as long as its SAGA.
        """
        theirs = self.results[Contestant(THEIRS, variant)].seconds
        ours = self.results[Contestant(OURS, variant)]
        if ours.problem == NOT_THERE:
            ours = self.results[Contestant(OURS, "saga")]
        return [a / b for a, b in zip(theirs, ours.seconds, strict=bool(theirs and ours.seconds))]

    def ratio(self, variant: str) -> float:
        """The median of `ratios`; NaN if one of both was not timed."""
        ratios = self.ratios(variant)
        return float(np.median(ratios)) if ratios else math.nan


class Epochs:
    """One epoch, as the difference between fits of one and of several more; and a fit of one.

    Args:
        title: what is fitted.
        problem: makes it.
        epochs: by how many the fits differ.
    """

    def __init__(self, title: str, problem: Callable[[], Problem], epochs: int) -> None:
        self.title, self.problem, self.epochs = title, problem, epochs

    def measure(self, rounds: int, advance: Callable[[int], object]) -> list[Row]:
        problem = self.problem()
        names = [f"{self.title}, {problem.shape}: {what}" for what in ("an epoch", "fit of one")]
        rows = [Row(name, {c: Result() for c in CONTESTANTS}) for name in names]
        able = []
        for contestant in CONTESTANTS:
            complaint = problem.complaint(contestant)
            for row in rows:
                row.results[contestant].problem = complaint
            able += [] if complaint else [contestant]
        for turn in range(rounds):
            for contestant in rotated(able, turn):
                short = problem.fit(contestant, 1).seconds
                long = problem.fit(contestant, 1 + self.epochs).seconds
                epoch, fit = (row.results[contestant].seconds for row in rows)
                # A pause of the machine in the short fit may outlast the epochs.
                epoch.append(max(long - short, 1e-9) / self.epochs)
                fit.append(short)
            advance(1)
        return rows


class Goal:
    """A whole fit that reaches a goal, with the loosest of the tolerances that does.

    Args:
        title: what is fitted, and to what end.
        problem: makes it.
        goal: from the problem, what says of a model whether it is there.
        our_tol: from the problem, the tolerance of gradstep, if it is not to be looked for.
    """

    def __init__(
        self,
        title: str,
        problem: Callable[[], Problem],
        goal: Callable[[Problem], Callable[[Any], bool]],
        our_tol: Callable[[Problem], float] | None = None,
    ) -> None:
        self.title, self.problem, self.goal, self.our_tol = title, problem, goal, our_tol

    def measure(self, rounds: int, advance: Callable[[int], object]) -> list[Row]:
        problem = self.problem()
        row = Row(f"{self.title}, {problem.shape}", {c: Result() for c in CONTESTANTS})
        reached = self.goal(problem)
        for contestant, result in row.results.items():
            result.problem = problem.complaint(contestant)
            if result.problem:
                continue
            ladder: Sequence[float] = LADDER
            if contestant.library == OURS and self.our_tol is not None:
                ladder = [self.our_tol(problem)]
            _look(problem, contestant, result, ladder, reached)
        able = [contestant for contestant, result in row.results.items() if not result.problem]
        for turn in range(rounds):
            for contestant in rotated(able, turn):
                result = row.results[contestant]
                fit = problem.fit(contestant, MAX_EPOCHS, result.tol)
                result.seconds.append(fit.seconds)
            advance(1)
        return [row]


def _look(
    problem: Problem,
    contestant: Contestant,
    result: Result,
    ladder: Sequence[float],
    reached: Callable[[Any], bool],
) -> None:
    """Find the loosest tolerance with which the goal is reached."""
    for tol in ladder:
        fit = problem.fit(contestant, MAX_EPOCHS, tol)
        if reached(fit.model):
            result.tol, result.epochs = tol, fit.epochs
            return
        if fit.epochs == MAX_EPOCHS:
            break
    result.problem = f"does not get there: tol={tol:g}, {fit.epochs:,} epochs"


Work = Epochs | Goal


# The problems


def logistic(rows: int, features: int) -> Problem:
    """Two classes with some noise, dense float32 rows of a length of about 1, alpha = 1/n."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, features), np.float32)
    x /= np.float32(math.sqrt(features))
    return Problem(x, _two_classes(x, rng), 1 / rows)


def sparse_logistic(rows: int, features: int, density: float) -> Problem:
    """The same with few numbers in a row, in CSR."""
    from scipy import sparse

    rng = np.random.default_rng(0)
    x = sparse.random(rows, features, density, "csr", np.float32, rng, data_rvs=rng.standard_normal)
    x *= np.float32(1 / math.sqrt(density * features))
    return Problem(x, _two_classes(x, rng), 1 / rows)


def _two_classes(x: Any, rng: np.random.Generator) -> Array:
    rows, features = x.shape
    z = x @ rng.standard_normal(features, np.float32)
    return np.asarray(z + 0.5 * rng.standard_normal(rows) > 0).astype(np.int64)


def digits(alpha: float | None) -> Problem:
    """Handwritten digits in [0, 1]; None for alpha = 1/n."""
    x, y = _all_rows("digits")
    return Problem(x, y, 1 / len(y) if alpha is None else alpha)


def photo(every: int) -> Problem:
    """A pixel from the eight around it, of so many one."""
    x, y = _all_rows("photo")
    return Problem(np.ascontiguousarray(x[::every]), y[::every], 1e-4)


def _all_rows(name: str) -> tuple[Array, Array]:
    data = load(name)
    return np.concatenate([data.x, data.x_test]), np.concatenate([data.y, data.y_test])


# The goals


def to_gradient(problem: Problem) -> float:
    """The tolerance at which gradstep's gradient has a norm of about `GRADIENT_GOAL`.

    It is relative to the gradient of the best model without features, which gives each class its
    share of the rows. The estimators divide each column's slope by its deviation, hence "about".
    """
    bias = np.log(np.bincount(problem.y) / len(problem.y))
    params = [np.zeros((problem.x.shape[1], len(bias))), bias]
    _, (grad, _) = losses.linear(losses.softmax)(params, problem.x, problem.y)
    return GRADIENT_GOAL / float(np.linalg.norm(grad))


def near_least(problem: Problem) -> Callable[[Any], bool]:
    """Whether the objective is within `OBJECTIVE_GOAL` of the least."""
    least = problem.objective(problem.best)
    return lambda model: problem.objective(model) <= least + OBJECTIVE_GOAL


def near_r2(problem: Problem) -> Callable[[Any], bool]:
    """Whether R2 is within `R2_GOAL` of the closed form's."""
    best = problem.r2(problem.best)
    return lambda model: problem.r2(model) >= best - R2_GOAL


def standard(quick: bool = False) -> list[Work]:
    """The works of the table.

    Args:
        quick: with few rows and features.

    Example:
        >>> from gradstep.tools.bench.linear_works import standard
        >>> len(standard())
        7
    """
    dense = [(10_000, 54), (2_000, 784), (500, 2_000)] if quick else []
    dense = dense or [(100_000, 54), (20_000, 784), (2_000, 20_000)]
    epochs = 50 if quick else 10
    few = (5_000, 2_000, 0.01) if quick else (50_000, 20_000, 0.001)
    return [
        *(Epochs("logistic", partial(logistic, *shape), epochs) for shape in dense),
        Epochs(f"logistic, density {few[2]:g}", partial(sparse_logistic, *few), epochs),
        Goal("digits, alpha=0.001", partial(digits, 1e-3), near_least, to_gradient),
        Goal("digits, alpha=1/n", partial(digits, None), near_least, to_gradient),
        Goal("photo", partial(photo, 50 if quick else 1), near_r2),
    ]
