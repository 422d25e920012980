"""Descent along the rows of a finite sum."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from sklearn.utils import check_random_state

from .. import _core
from .._engine import checks as check
from .._engine.memory import available_bytes
from ..losses import CURVATURES
from ..stability import max_stable_lr
from ._base import Array, LinearModel, LinearRegressor
from ._tolerance import RelativeNorm
from ._weights import aligned, null_intercept

#: Columns that differ in scale by more than this are named in the advice.
UNEQUAL = 10.0


class FiniteSumModel(LinearModel):
    """The fit of both estimators, which say what the loss is and how it wants the targets."""

    variant: str
    alpha: float
    l1_ratio: float
    lr: float | str
    fit_intercept: bool
    max_iter: int
    tol: float | None
    random_state: Any
    verbose: bool

    n_iter_: int
    lr_: float
    gradient_norm_: float
    _sparse: ClassVar[Any] = "csr"
    _seed: int
    _draws: int

    def _fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any,
        *,
        resume: bool,
        one_epoch: bool = False,
        **classes: Any,
    ) -> None:
        # What overflows on the way shows in the norm of the gradient.
        with self._all_or_nothing(), np.errstate(over="ignore", invalid="ignore"):
            self._check_arguments()
            x, y, weights = self._check_data(X, y, sample_weight, resume=resume, **classes)
            if sparse.issparse(x) and self.variant == "sag":
                raise ValueError("variant must be 'saga' or 'svrg' for sparse rows, got 'sag'")
            loss, targets, outputs = self._problem(y)
            if not (resume and one_epoch and hasattr(self, "_seed")):
                self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
                self._draws = 0
            weight, bias = self._start(x, outputs, resume)
            descent = Descent(
                x,
                targets,
                weights,
                loss=loss,
                outputs=outputs,
                delta=getattr(self, "delta", 1.0),
                variant=self.variant,
                l2=self.alpha * (1 - self.l1_ratio),
                l1=self.alpha * self.l1_ratio,
                fit_intercept=self.fit_intercept,
            )
            descent.begin(weight, bias, resume)
            self.lr_ = descent.stable_lr() if self.lr == "auto" else float(self.lr)
            complaint = self._descend(descent, 1 if one_epoch else self.max_iter, one_epoch)
            flat = isinstance(self, LinearRegressor) and y.ndim == 1
            self._keep(*descent.end(), flat)
            if complaint:
                self._warn(complaint)

    def _descend(self, descent: Descent, epochs: int, one_epoch: bool) -> str:
        """Take epochs until the gradient is small. Returns what there is to complain of."""
        goal = None if one_epoch else self.tol
        sure = 1.0  # the estimate over the true norm, where it was too low
        norm = math.inf
        with self._progress(epochs) as bar:
            for epoch in range(1, epochs + 1):
                descent.epoch(self.lr_, self._seed, self._draws)
                self._draws += descent.rows
                self.n_iter_ = epoch
                norm = descent.estimate()
                if not math.isfinite(norm):
                    raise ValueError(
                        f"the fit diverged in epoch {epoch} with lr={self.lr_:.3g}: "
                        f"lr='auto' would be {descent.stable_lr():.3g}"
                    )
                bar.update()
                bar.set_postfix_str(f"gradient {norm:.1e}")
                if goal is not None and norm <= goal * sure:
                    self.gradient_norm_ = descent.true_norm()
                    if self.gradient_norm_ <= goal:
                        descent.last_step()
                        return ""
                    sure = min(sure, norm / self.gradient_norm_)
        if goal is None:
            self.gradient_norm_ = norm
            return ""
        self.gradient_norm_ = descent.true_norm()
        descent.last_step()
        if self.gradient_norm_ <= goal:
            return ""
        return (
            f"after {epochs} epochs the norm of the gradient is {self.gradient_norm_:.2e} times "
            f"that of the best model without features, above tol={goal:g}. {self._advice(descent)}"
        )

    def _advice(self, descent: Descent) -> str:
        deviations = descent.deviations()
        widest = int(deviations.argmax())
        typical = float(np.median(deviations[deviations > 0])) if deviations[widest] > 0 else 0.0
        if deviations[widest] <= UNEQUAL * typical:
            return "Raise max_iter, alpha or tol"
        names = getattr(self, "feature_names_in_", None)
        name = widest if names is None else repr(str(names[widest]))
        return (
            f"Scale the features, with StandardScaler for one: column {name} has the standard "
            f"deviation {deviations[widest]:.3g}, and the median over the columns is {typical:.3g}"
        )

    def _check_arguments(self) -> None:
        """Check what is not checked where it is used."""
        check.choice("loss", self.loss, self._losses)
        check.choice("variant", self.variant, ["saga", "sag", "svrg"])
        check.non_negative("alpha", self.alpha)
        if check.non_negative("l1_ratio", self.l1_ratio) > 1:
            raise ValueError(f"l1_ratio must be at most 1, got {self.l1_ratio}")
        if self.variant == "sag" and self.alpha * self.l1_ratio > 0:
            raise ValueError(
                "l1_ratio must be 0 for variant='sag', which has no proximal step, "
                f"got {self.l1_ratio}"
            )
        if isinstance(self.lr, str):
            check.choice("lr", self.lr, ["auto"])
        elif check.non_negative("lr", self.lr) == 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")
        check.integer("max_iter", self.max_iter, 1)
        if self.tol is not None:
            check.non_negative("tol", self.tol)
        for name in ("fit_intercept", "warm_start"):
            check.flag(name, getattr(self, name))


class Descent:
    """A finite sum and how it is descended.

    Dense rows are centred where an intercept is fitted, which changes neither the problem nor its
    solution, but lets the steps be longer.
    """

    def __init__(
        self,
        x: Any,
        targets: Array,
        weights: Array | None,
        *,
        loss: str,
        outputs: int,
        delta: float,
        variant: str,
        l2: float,
        l1: float,
        fit_intercept: bool,
    ) -> None:
        self.rows: int = x.shape[0]
        self.features: int = x.shape[1]
        self.dtype, self.loss, self.variant = x.dtype, loss, variant
        self.fit_intercept = fit_intercept
        self.is_sparse = sparse.issparse(x)
        needed, free = 8 * self.rows * outputs, available_bytes()
        if needed > free:
            raise MemoryError(
                f"a table of {self.rows} rows x {outputs} outputs takes {needed / 1e9:.1f} GB of "
                f"memory, {free / 1e9:.1f} are free"
            )
        centre = fit_intercept and not self.is_sparse
        self.sum = _core.FiniteSum(
            canonical(x) if self.is_sparse else contiguous(x),
            np.ascontiguousarray(targets, np.float64),
            weights,
            loss,
            outputs,
            delta,
            centre,
        )
        # The sum is divided by all weights, the objective by the number of rows: class weights have
        # another mean than 1.
        self.mean_weight = float(self.sum.total_weight / self.rows)
        self.l2, self.l1 = l2 / self.mean_weight, l1 / self.mean_weight
        if fit_intercept:
            self.sum.intercept[...] = null_intercept(loss, targets, weights, outputs)
        # What is subtracted from the rows is rounded to their type.
        means = self.sum.means[: self.features]
        self.means = means.astype(self.dtype).astype(np.float64) * centre
        regression = loss in ("least_squares", "huber")
        #: Of the columns, around their means where there is an intercept.
        self.variances = np.array(self.sum.squares[: self.features])
        if fit_intercept:
            _subtract_means(self.variances, x, self.sum, weights)
        self.norm = RelativeNorm(
            means - self.means,
            self.variances,
            weight=1.0,
            l2=self.l2,
            l1=self.l1,
            intercept=fit_intercept,
            separate=regression,
        )
        largest = np.abs(targets.reshape(len(targets), -1)).max(axis=0) if regression else 1.0
        self.rounding = max(8, self.rows) * np.finfo(np.float64).eps * largest

    def begin(self, weight: Array, bias: Array, resume: bool) -> None:
        """Start from the best constant prediction, or where the last fit ended.

        The gradient at the first of them is the unit of `norm`.
        """
        self.sum.snapshot()
        self.norm.start(*self._slopes(self.sum.sum, self.sum.intercept_sum), self.rounding)
        if resume:
            self._coef()[...] = weight
            # A column that no row holds is never stepped at; its optimum is 0.
            if self.is_sparse:
                self._coef()[self.sum.coverage == 0] = 0
            self.sum.intercept[...] = (bias + self._shift(weight)) * self.fit_intercept
            self.sum.snapshot()

    def end(self) -> tuple[Array, Array]:
        """Weight and bias, in the dtype of the rows."""
        weight = self._coef()
        bias = self.sum.intercept - self._shift(weight)
        return weight.astype(self.dtype), (bias * self.fit_intercept).astype(self.dtype)

    def stable_lr(self) -> float:
        """The learning rate of the variant for the largest curvature of a row."""
        norm: float = self.sum.largest_norm + self.fit_intercept
        curvature = CURVATURES[self.loss] * norm + self.l2
        if curvature == 0:
            return 1.0
        if not math.isfinite(curvature):
            raise ValueError("X must have rows with finite squares, got numbers too large for that")
        if self.variant != "saga":
            return max_stable_lr(self.variant, curvature) / self.mean_weight
        # The strong convexity is known, and Defazio et al. 2014, theorem 1, use it.
        known = 1 / (2 * (curvature + self.rows * self.l2))
        return max(max_stable_lr("saga", curvature), known) / self.mean_weight

    def epoch(self, lr: float, seed: int, draws: int) -> None:
        lr *= self.mean_weight
        self.sum.descend(
            self.variant, lr, self.l2, self.l1, self.fit_intercept, self.rows, seed, draws
        )
        if self.variant == "svrg":
            self.sum.snapshot()

    def estimate(self) -> float:
        """The norm of the gradient that the table has; of SVRG's, the true one."""
        return self._norm(self.sum.sum, self.sum.intercept_sum)

    def true_norm(self) -> float:
        self.gradient = self.sum.gradient()
        return self._norm(*self.gradient)

    def last_step(self) -> None:
        """A step of full descent along the gradient whose norm was asked for last.

        Steps at single rows leave noise, which costs most where the curvature is large, and there
        this step takes most of it away. The objective cannot grow by it: the rates are 1 over
        bounds of the curvature of the mean loss.
        """
        total, intercept_total = self.gradient
        curvature = CURVATURES[self.loss]
        # The mean squared norm of the rows bounds their largest eigenvalue. Added in order: NumPy's
        # sums have other bits on other processors.
        means = self.sum.means[: self.features]
        moved = self.variances + (means - self.means) ** 2 * self.fit_intercept
        norm = float(np.cumsum(moved)[-1])
        if self.fit_intercept:
            # Its column is 1, and centred columns are at right angles to it.
            of_intercept = curvature * (1 + norm if self.is_sparse else 1)
            self.sum.intercept[...] -= intercept_total / (of_intercept * self.sum.total_weight)
            norm += self.is_sparse
        bound = curvature * norm + self.l2
        if bound > 0:
            weight = self.sum.coef
            weight -= (total / self.sum.total_weight + self.l2 * weight) / bound
            weight -= np.clip(weight, -self.l1 / bound, self.l1 / bound)

    def deviations(self) -> Array:
        """The standard deviations of the columns."""
        means = np.asarray(self.sum.means[: self.features])
        return np.sqrt(np.maximum(self.variances - means**2 * (not self.fit_intercept), 0))

    def _coef(self) -> Array:
        """The weight, of shape (p, k), without padding."""
        return self._without_padding(self.sum.coef)

    def _without_padding(self, of_columns: Array) -> Array:
        return of_columns if self.is_sparse else of_columns[:, : self.features].T

    def _slopes(self, total: Array, intercept_total: Array) -> tuple[Array, Array]:
        """The gradient of the mean loss, from what the finite sum has."""
        total_weight = self.sum.total_weight
        return self._without_padding(total) / total_weight, intercept_total / total_weight

    def _norm(self, total: Array, intercept_total: Array) -> float:
        return self.norm(*self._slopes(total, intercept_total), self._coef())

    def _shift(self, weight: Array) -> Array:
        """What centring takes from the intercepts. BLAS has other bits on other processors."""
        return np.asarray(np.cumsum(self.means[:, np.newaxis] * weight, axis=0)[-1])


def _subtract_means(squares: Array, x: Any, finite_sum: Any, weights: Array | None) -> None:
    """Make variances of the mean squares of columns, 0 where a column is constant.

    A mean square less the square of the mean loses the digits that both share. Where these are
    many, the column is gone over once more, in the order of the rows.
    """
    means = np.asarray(finite_sum.means[: x.shape[1]])
    doubtful = np.flatnonzero(squares - means * means < 1e-4 * squares)
    squares -= means * means
    if doubtful.size == 0:
        return
    total, rows = np.zeros((1, doubtful.size)), max(1, 2**16 // doubtful.size)
    for first in range(0, x.shape[0], rows):
        part = x[first : first + rows][:, doubtful]
        part = (part.toarray() if sparse.issparse(part) else part) - means[doubtful]
        part *= part
        if weights is not None:
            part *= weights[first : first + rows, np.newaxis]
        total = np.cumsum(np.concatenate([total, part]), axis=0)[-1:]
    exact = total[0] / finite_sum.total_weight
    is_constant = np.sqrt(exact) <= 1e-15 * np.abs(means[doubtful])
    squares[doubtful] = np.where(is_constant, 0, exact)


def contiguous(x: Array) -> Array:
    """Rows whose numbers are next to each other: `x` itself where they are."""
    if x.strides[1] == x.itemsize and x.strides[0] >= x.shape[1] * x.itemsize:
        return x
    return np.ascontiguousarray(x)


def canonical(x: Any) -> tuple[Array, Array, Array, int]:
    """Values, columns and offsets in which each row holds a column once, in their order."""
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    index = x.indices.dtype
    offsets = x.indptr.astype(index, copy=False)
    return aligned(x.data), aligned(x.indices), aligned(offsets), x.shape[1]
