"""The rules as estimators: gradient descent on linear models."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .. import losses
from ..optimizers.base import Optimizer
from ..optimizers.options import LearningRate
from ..optimizers.textbook import SGD
from ._base import Array, LinearClassifier, LinearRegressor
from ._gradient import Descent


class GDRegressor(LinearRegressor, Descent):
    r"""Linear regression by gradient descent, with any rule and schedule of gradstep.

    ```
    minimise  mean_i s_i loss(x_i coef + intercept, y_i) + alpha/2 |coef|^2
    ```

    `loss` is half the squared error or Huber's, `s` the sample weights, scaled to a mean of 1.
    Several targets per row are several problems at once, fitted to one stop.

    Args:
        loss: "least_squares" (default) or "huber", see `gradstep.losses`.
        delta: where the squares of "huber" end, in units of `y`; above 0, default 1.
        rule: an optimizer class, or its name in any case, default `gradstep.SGD`. Not one whose
            step takes more than the gradient, such as `SAG`.
        lr: a number, a schedule of the step, or "auto" (default): half of what `max_stable_lr`
            gives for the curvature of the data, and the default of rules that have no bound.
        rule_options: arguments of the class by name, such as `{"momentum": 0.9}`. None (default)
            for its own defaults. A `weight_decay` among them is the rule's own: beside `alpha`, and
            of the intercept too.
        batch_size: rows per step, or "full" (default) for all of them.
        alpha: the penalty, at least 0, default 1e-4. The intercept has none.
        fit_intercept: default True.
        max_iter: the most epochs, default 1000.
        tol: stop when the norm of the gradient over all rows is at most `tol` times that of the
            best model without features; at least 0, default 1e-3. See `SAGRegressor` for the units.
            With batches it takes a pass per epoch to know. None for no such test, and no warning
            that it has not been met.
        patience: stop after so many epochs without a better loss, of the rows held out where there
            are some. None (default) for any number.
        validation_fraction: the part of the rows held out, below 1, default 0.
        shuffle: a new order of the rows for each epoch, default True; "full" has none.
        random_state: of the orders and the rows held out: a whole number, a
            `numpy.random.RandomState`, or None (default) for another one in every fit.
        warm_start: start from the coefficients of the last fit, with new states of the rule.
            Default False.
        verbose: show a bar on a terminal, if tqdm is installed. Default False.

    Attributes:
        coef_: shape (p,), or (k, p) for targets of shape (n, k).
        intercept_: a number, or shape (k,).
        lr_: the learning rate or schedule that was used.
        n_iter_: epochs of the last call.
        history_: the `gradstep.History` of the last call, with a loss per epoch.
        n_features_in_, feature_names_in_: as in all of scikit-learn.

    Raises:
        TypeError, ValueError: by `fit` and `partial_fit`: an argument of the wrong type or out of
            its range, or data that does not fit. Nothing has changed then.

    Example:
        >>> import numpy as np
        >>> from gradstep.linear import GDRegressor
        >>> x = np.array([[0.0], [1.0], [2.0]])
        >>> model = GDRegressor(alpha=0.0, tol=1e-6).fit(x, 1 + 2 * x[:, 0])
        >>> model.predict([[10.0]]).round(2)
        array([21.])
        >>> model.history_.reason
        'callback: converged asked to stop after epoch ...'

    References:
        Cauchy, Methode generale pour la resolution des systemes d'equations simultanees, 1847;
        Bottou, Large-scale machine learning with stochastic gradient descent, 2010.
    """

    _losses = ("least_squares", "huber")

    def __init__(
        self,
        loss: str = "least_squares",
        *,
        delta: float = 1.0,
        rule: type[Optimizer] | str = SGD,
        lr: LearningRate | Literal["auto"] = "auto",
        rule_options: Mapping[str, Any] | None = None,
        batch_size: int | Literal["full"] = "full",
        alpha: float = 1e-4,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        patience: int | None = None,
        validation_fraction: float = 0.0,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        self.loss = loss
        self.delta = delta
        self.rule = rule
        self.lr = lr
        self.rule_options = rule_options
        self.batch_size = batch_size
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _loss(self, name: str) -> losses.Loss:
        return (
            functools.partial(losses.huber, delta=self.delta)
            if name == "huber"
            else losses.least_squares
        )

    def _problem(self, y: Array) -> tuple[str, Array, int]:
        outputs = 1 if y.ndim == 1 else y.shape[1]
        return self.loss, y.ravel() if outputs == 1 else y, outputs

    def _strata(self, targets: Array) -> None:
        """Numbers have none."""


class GDClassifier(LinearClassifier, Descent):
    r"""Linear classification by gradient descent, with any rule and schedule of gradstep.

    ```
    minimise  mean_i s_i loss(x_i coef + intercept, y_i) + alpha/2 |coef|^2
    ```

    `s` are the sample weights, scaled to a mean of 1, times the weights of the classes. For more
    than two classes the logistic loss is that of the softmax, and the hinges are summed over one
    problem per class against the rest.

    Args:
        loss: "logistic" (default), "squared_hinge" or "hinge", see `gradstep.losses`. The hinge has
            kinks, where no gradient is small: `tol` does not count for it, and with a `rule` that
            has a bound, `lr="auto"` shrinks by the root of the step.
        rule, lr, rule_options, batch_size, alpha, fit_intercept, max_iter, tol, patience,
            validation_fraction, shuffle, random_state, warm_start, verbose: see `GDRegressor`.
        class_weight: see `SAGClassifier`.

    Attributes:
        classes_: the classes in order.
        coef_: shape (1, p) for two classes, otherwise (k, p).
        intercept_: shape (1,) or (k,).
        lr_, n_iter_, history_, n_features_in_, feature_names_in_: see `GDRegressor`.

    Raises:
        TypeError, ValueError: see `GDRegressor`.

    Example:
        >>> import numpy as np
        >>> from gradstep.linear import GDClassifier
        >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
        >>> model = GDClassifier(alpha=0.1).fit(x, ["cold", "cold", "warm", "warm"])
        >>> model.predict([[3.0], [-3.0]])
        array(['warm', 'cold'], dtype='<U4')
        >>> model.predict_proba([[0.0]]).round(6)
        array([[0.5, 0.5]])

    References:
        Cox, The regression analysis of binary sequences, 1958; Zhang, Solving large scale linear
        prediction problems using stochastic gradient descent algorithms, 2004.
    """

    _losses = ("logistic", "squared_hinge", "hinge")

    def __init__(
        self,
        loss: str = "logistic",
        *,
        rule: type[Optimizer] | str = SGD,
        lr: LearningRate | Literal["auto"] = "auto",
        rule_options: Mapping[str, Any] | None = None,
        batch_size: int | Literal["full"] = "full",
        alpha: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        patience: int | None = None,
        validation_fraction: float = 0.0,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        self.loss = loss
        self.rule = rule
        self.lr = lr
        self.rule_options = rule_options
        self.batch_size = batch_size
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.shuffle = shuffle
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _loss(self, name: str) -> losses.Loss:
        loss: losses.Loss = getattr(losses, name)
        return loss

    def _problem(self, y: Array) -> tuple[str, Array, int]:
        k = self._outputs
        if k == 1:
            return self.loss, y, 1
        if self.loss == "logistic":
            return "softmax", y, k
        return self.loss, y[:, np.newaxis] == np.arange(k), k

    def _strata(self, targets: Array) -> Array:
        return targets
