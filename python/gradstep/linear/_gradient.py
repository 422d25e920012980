"""Linear models by gradient descent: full-batch, mini-batch or single-sample, with any rule."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from .. import losses
from .._engine import checks as check
from ..optimizers.base import Optimizer
from ..optimizers.options import LearningRate
from ..stability import batch_curvature, find_class, has_bound, max_stable_lr
from ..training.history import Epoch, History
from ..training.loop import LossAndGrad, train
from ..training.minibatches import _batch_size
from ._base import Array, LinearModel, LinearRegressor
from ._tolerance import RelativeNorm
from ._weights import null_intercept, relative_weights

#: Rows, targets and, where there are some, weights: what the objective takes after the parameters.
Data = tuple[Array, ...]


class Descent(LinearModel):
    """The fit of both estimators, which say what the loss is and how it wants the targets."""

    rule: type[Optimizer] | str
    lr: LearningRate | Literal["auto"]
    rule_options: Mapping[str, Any] | None
    batch_size: int | Literal["full"]
    alpha: float
    fit_intercept: bool
    max_iter: int
    tol: float | None
    patience: int | None
    validation_fraction: float
    shuffle: bool
    random_state: int | np.random.RandomState | None
    verbose: bool

    lr_: LearningRate
    history_: History
    n_iter_: int
    _state: dict[str, Any]
    _rng: np.random.Generator
    #: What "auto" came to; none yet is any.
    _stable_lr: float = math.inf

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
        # What overflows on the way shows in the loss, at which `train` stops.
        with self._all_or_nothing(), np.errstate(over="ignore", invalid="ignore"):
            rule = self._check_arguments()
            x, y, weights = self._check_data(X, y, sample_weight, resume=resume, **classes)
            name, targets, outputs = self._problem(y)
            weight, bias = self._start(x, outputs, resume)
            # To the losses one output is a vector; this view of it updates `weight`.
            live = weight[:, 0] if outputs == 1 else weight
            params = [live, bias] if self.fit_intercept else [live]
            going_on = resume and one_epoch
            rng = copy.deepcopy(getattr(self, "_rng", None)) if going_on else None
            rng = _generator(self.random_state) if rng is None else rng
            opt = self._optimizer(rule, params, name, x, weights, going_on)
            data: Data = (x, targets) if weights is None else (x, targets, weights)
            history, complaint = self._train(opt, name, data, rng, one_epoch)
            flat = isinstance(self, LinearRegressor) and y.ndim == 1
            self._keep(weight, bias, flat)
            self.lr_, self.history_, self.n_iter_ = opt.lr, history, history.epochs
            self._state, self._rng = opt.state_dict(), rng
            if complaint:
                self._warn(complaint)

    def _train(
        self,
        opt: Optimizer,
        loss: str,
        data: Data,
        rng: np.random.Generator,
        one_epoch: bool,
    ) -> tuple[History, str]:
        """The history, and what there is to complain of."""
        objective = _penalised(self._loss(loss), self.alpha)
        stops: dict[str, Any] = {"epochs": 1}
        test = None
        if not one_epoch:
            stops = {"epochs": self.max_iter, "patience": self.patience}
            if self.validation_fraction > 0:
                data, stops["validation"] = self._split(data, rng)
            if self.tol is not None and self.loss != "hinge":
                test = _Tolerance(
                    self.tol,
                    objective,
                    data,
                    opt.params,
                    loss=loss,
                    alpha=self.alpha,
                    full=self.batch_size == "full",
                )
                objective = test.objective
                stops["callbacks"] = [test.converged]
        history = train(
            opt,
            objective,
            data,
            batch_size=self.batch_size,
            progress=bool(self.verbose),
            shuffle=self.shuffle,
            seed=rng,
            **stops,
        )
        if history.stop == "non-finite":
            return (
                history,
                f"{history.reason}. Lower lr, or scale the features, with StandardScaler for one",
            )
        if history.stop == "epochs" and test is not None:
            advice = (
                "Scale the features, with StandardScaler for one, take a rule with momentum, or "
                "raise max_iter"
                if self.batch_size == "full"
                else "Batches are noisy: lower lr by a schedule, take larger ones, stop by "
                "patience, or scale the features, with StandardScaler for one"
            )
            return history, test.report(history.epochs, advice)
        return history, ""

    def _check_arguments(self) -> type[Optimizer]:
        """Check what is not checked where it is used. Returns the class of the rule."""
        check.choice("loss", self.loss, self._losses)
        rule = find_class(self.rule)
        if rule.step_needs:
            raise ValueError(
                f"rule must step by the gradient alone, got {rule.__name__}, "
                f"whose step needs {rule.step_needs}"
            )
        if not isinstance(self.rule_options, (Mapping, type(None))):
            raise TypeError(f"rule_options must be a dict or None, got {self.rule_options!r}")
        for name in {"params", "lr"} & (self.rule_options or {}).keys():
            raise ValueError(f"rule_options must not hold {name!r}, got {self.rule_options!r}")
        if isinstance(self.lr, str) and self.lr != "auto":
            raise ValueError(f'lr must be a number, a schedule or "auto", got {self.lr!r}')
        check.non_negative("alpha", self.alpha)
        check.integer("max_iter", self.max_iter, 1)
        if self.tol is not None:
            check.non_negative("tol", self.tol)
        if not check.non_negative("validation_fraction", self.validation_fraction) < 1:
            raise ValueError(f"validation_fraction must be below 1, got {self.validation_fraction}")
        for name in ("fit_intercept", "warm_start"):
            check.flag(name, getattr(self, name))
        return rule

    def _optimizer(
        self,
        rule: type[Optimizer],
        params: list[Array],
        loss: str,
        x: Array,
        weights: Array | None,
        going_on: bool,
    ) -> Optimizer:
        """The optimizer with its learning rate and, if it is going on, the states of before."""
        options: dict[str, Any] = {**(self.rule_options or {})}
        if self.lr != "auto":
            opt = rule(params, lr=self.lr, **options)
        elif not has_bound(rule):
            opt = rule(params, **options)
        else:
            opt = rule(params, lr=0.0, **options)
            curvature = self._curvature(loss, x, weights)
            lr = 1.0 if curvature == 0 else 0.5 * max_stable_lr(rule, curvature, **options)
            if self._rows_in_batch(x) < len(x):
                # Momentum adds the noise of batches up as it does their gradients. So their sum,
                # 1 / (1 - momentum) steps, keeps to what is stable without momentum.
                momentum = opt.hyperparameters.get("momentum", 0.0)
                lr *= (1 - momentum) / (1 + momentum)
            # Data to come may be larger: what is stable on all of it is the least.
            self._stable_lr = min(lr, self._stable_lr) if going_on else lr
            fading = functools.partial(_fading, self._stable_lr)
            opt.lr = fading if loss == "hinge" else self._stable_lr
        if going_on and getattr(self, "_state", {}).get("rule") == opt.rule:
            # The arguments are those of now.
            opt.load_state_dict({**self._state, "hyperparameters": opt.hyperparameters})
        return opt

    def _curvature(self, loss: str, x: Array, weights: Array | None) -> float:
        """The largest second derivative of the objective, as batches see it."""
        squares = np.einsum("ij,ij->i", x, x) + float(self.fit_intercept)
        worst = float(np.max(squares if weights is None else weights * squares))
        overall = _largest_eigenvalue(x, weights, self.fit_intercept)
        if not math.isfinite(worst + overall):
            raise ValueError(
                f"X must have squares that {x.dtype} can hold, got {np.abs(x).max()}: scale the "
                "features, or give lr"
            )
        seen = batch_curvature(overall, worst, len(x), self._rows_in_batch(x))
        # The hinge has none. Weights about as large as those that fit targets of 1 make its margin.
        return losses.CURVATURES.get(loss, 1.0) * seen + self.alpha

    def _rows_in_batch(self, x: Array) -> int:
        return _batch_size(self.batch_size) or len(x)

    def _split(self, data: Data, rng: np.random.Generator) -> list[Data]:
        """The rows to train on, and those to validate with, of each class the same part."""
        parts = train_test_split(
            *data,
            test_size=self.validation_fraction,
            stratify=self._strata(data[1]),
            random_state=int(rng.integers(2**31)),
        )
        return [
            # Class weights have a mean of their own, which each part keeps.
            (x, y, *(np.asarray(relative_weights(w, x)) * data[2].mean() for w in weights))
            for x, y, *weights in (parts[::2], parts[1::2])
        ]


class _Tolerance:
    """Whether the gradient over all rows is small enough, in the units of `RelativeNorm`.

    It does not depend on where a fit starts: one that resumes near the optimum is done at once.
    """

    def __init__(
        self,
        tol: float,
        objective: LossAndGrad,
        data: Data,
        params: list[Array],
        *,
        loss: str,
        alpha: float,
        full: bool,
    ) -> None:
        self._tol, self._full = tol, full
        self._penalised, self._data = objective, data
        self._alpha, self._outputs = alpha, params[0].size // len(params[0])
        x, targets, *weights = data
        relative = weights[0] if weights else None
        intercept, regression = len(params) > 1, loss in ("least_squares", "huber")
        self._mean_weight = 1.0 if relative is None else float(relative.mean())
        means, variances = _moments(x, relative, intercept)
        self._relative = RelativeNorm(
            means,
            variances,
            weight=self._mean_weight,
            l2=alpha,
            l1=0.0,
            intercept=intercept,
            separate=regression,
        )
        null = [np.zeros_like(array) for array in params]
        if intercept:
            labels = (
                targets.argmax(axis=1) if loss == "squared_hinge" and targets.ndim == 2 else targets
            )
            null[1][...] = null_intercept(loss, labels, relative, self._outputs)
        slopes, of_intercept = self._slopes(null, objective(null, *data)[1])
        largest = np.abs(targets.reshape(len(x), -1)).max(axis=0) if regression else np.ones(1)
        rounding = np.finfo(x.dtype).eps * largest.astype(np.float64)
        self._relative.start(slopes, of_intercept, rounding)
        self._norm = math.inf

    def objective(self, params: list[Array], *batch: Array) -> tuple[float, list[Array]]:
        """What is descended. Full batches have the gradient that is asked for."""
        value, grads = self._penalised(params, *batch)
        if self._full and batch[0] is self._data[0]:
            self._norm = self._norm_of(params, grads)
        return value, grads

    def converged(self, epoch: Epoch) -> bool:
        # The norms of batches are noisy, and their mean need not go to 0.
        if not self._full:
            params = epoch.opt.params
            self._norm = self._norm_of(params, self._penalised(params, *self._data)[1])
        return self._norm <= self._tol

    def _norm_of(self, params: list[Array], grads: list[Array]) -> float:
        weight = params[0].reshape(-1, self._outputs).astype(np.float64)
        return self._relative(*self._slopes(params, grads), weight)

    def _slopes(self, params: list[Array], grads: list[Array]) -> tuple[Array, Array]:
        """The gradient of the loss alone, in float64, by weight and intercept."""
        loss = (grads[0] - self._alpha * params[0]).reshape(-1, self._outputs)
        return loss.astype(np.float64), np.ravel(grads[-1] if len(grads) > 1 else 0.0).astype(float)

    def report(self, epochs: int, advice: str) -> str:
        return (
            f"after {epochs} epochs the norm of the gradient is {self._norm:.3g} times that of the "
            f"best model without features, above tol={self._tol:g}. {advice}; tol=None asks for "
            "all epochs"
        )


def _moments(x: Array, weights: Array | None, centred: bool) -> tuple[Array, Array]:
    """Weighted means and variances of the columns; 0 and mean squares unless `centred`."""
    shift = x[0].astype(np.float64) * centred  # so that a large mean costs no digits
    sums = np.zeros((2, x.shape[1]))
    for first in range(0, len(x), 4096):
        part = x[first : first + 4096] - shift
        w = np.ones(len(part)) if weights is None else weights[first : first + 4096]
        sums += w @ part, w @ (part * part)
    means, squares = sums / (len(x) if weights is None else weights.sum())
    means *= centred
    return means + shift, squares - means * means


def _penalised(loss: losses.Loss, alpha: float) -> LossAndGrad:
    """The mean loss plus `alpha / 2 |weight|^2`, a function of `[weight]` or `[weight, bias]`."""
    linear = losses.linear(loss)

    def objective(params: list[Array], *batch: Array) -> tuple[float, list[Array]]:
        weight, *bias = params
        value, grads = linear(params if bias else weight, *batch)
        slopes = grads if bias else [grads]
        slopes[0] += alpha * weight
        return value + 0.5 * alpha * float(np.vdot(weight, weight)), slopes

    return objective


def _fading(lr: float, step: int) -> float:
    """What descends along subgradients too (Nesterov, Introductory lectures on convex optimization,
    2004, section 3.2.3)."""
    return lr / math.sqrt(step + 1)


def _generator(random_state: Any) -> np.random.Generator:
    """Starts where scikit-learn's kind of seed says."""
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return np.random.default_rng(seed)


def _largest_eigenvalue(x: Array, weights: Array | None, intercept: bool) -> float:
    """Of the weighted mean of `x_i x_i^T`, each row with a 1 appended where there is an intercept.

    By power iteration, which comes from below and is left at a gain of 1 %. It may still be too
    small then, but hardly by the half that is left of the stable learning rate.
    """
    m, p = x.shape
    v = np.random.default_rng(0).normal(size=p + intercept).astype(x.dtype)
    weights = None if weights is None else weights.astype(x.dtype)
    value, before = math.inf, 0.0
    for _ in range(100):
        v /= np.linalg.norm(v)
        z = x @ v[:p] + v[p:].sum()
        if weights is not None:
            z *= weights
        v[:p], v[p:] = x.T @ z / m, z.mean()
        value = float(np.linalg.norm(v))
        if value <= 1.01 * before:
            break
        before = value
    return value
