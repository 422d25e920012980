"""Linear models by SAG, SAGA and SVRG: whole epochs natively, along the rows of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from .._engine import checks as check
from ._base import Array, LinearClassifier, LinearRegressor
from ._finite_sum import FiniteSumModel


class SAGRegressor(LinearRegressor, FiniteSumModel):
    r"""Linear regression by stochastic average gradients.

    ```
    minimise  mean_i s_i loss(x_i coef + intercept, y_i)
              + alpha ((1 - l1_ratio)/2 |coef|^2 + l1_ratio |coef|_1)
    ```

    `loss` is half the squared error or Huber's, `s` the sample weights, scaled to a mean of 1.
    Ridge's alpha in scikit-learn is n times this one. Rows that are contiguous are read where they
    lie, not copied.

    The gradient that ends a fit is not thrown away: a last step goes along it, with all rows, and
    takes away most of the noise that steps at single rows leave.

    The result has the same bits for any number of threads, instruction set and processor.

    Args:
        loss: "least_squares" (default) or "huber", see `gradstep.losses`.
        delta: where the squares of "huber" end, in units of `y`; above 0, default 1.
        variant: "saga" (default), "sag", or "svrg", which needs no less time, but fewer
            assumptions: it forms the whole gradient once per epoch.
        alpha: the penalty, at least 0, default 1e-4. The intercept has none.
        l1_ratio: the part of the penalty that makes coefficients 0, from 0 (default) to 1. Not for
            "sag".
        lr: the learning rate, above 0, or "auto" (default): what is stable for the largest
            curvature of a row, L. It is 1/L for "sag", the larger of 1/(3 L) and
            1/(2 (L + n alpha)) for "saga", 1/(4 L) for "svrg".
        fit_intercept: default True.
        max_iter: the most epochs, default 1000. An epoch draws n rows, by their weights.
        tol: stop when the norm of the gradient over all rows is at most `tol` times that of the
            best model without features; at least 0, default 1e-4. The slope of each column is
            divided by the root of its variance plus the penalty, so that neither units nor means
            count; several targets must each pass. The gradient table has the norm at no cost, and a
            pass over the rows confirms it. None for no such test, and no warning that it has not
            been met.
        random_state: of the draws: a whole number, a `numpy.random.RandomState`, or None (default)
            for others in every fit.
        warm_start: start from the coefficients of the last fit. Default False.
        verbose: show a bar on a terminal. Default False.

    Attributes:
        coef_: shape (p,), or (k, p) for targets of shape (n, k).
        intercept_: a number, or shape (k,).
        lr_: the learning rate that was used.
        n_iter_: epochs of the last call.
        gradient_norm_: the norm of the gradient before the last step, which `tol` is compared
            with; where there is no such step, in `partial_fit` and with `tol=None`, that of the
            gradient table.
        n_features_in_, feature_names_in_: as in all of scikit-learn.

    Raises:
        TypeError, ValueError: by `fit` and `partial_fit`: an argument of the wrong type or out of
            its range, data that does not fit, or an `lr` with which the fit diverges. Nothing has
            changed then.

    Example:
        >>> import numpy as np
        >>> from gradstep.linear import SAGRegressor
        >>> x = np.array([[0.0], [1.0], [2.0]])
        >>> model = SAGRegressor(alpha=0.0, random_state=0).fit(x, 1 + 2 * x[:, 0])
        >>> model.predict([[10.0]]).round(2)
        array([21.])

    References:
        Defazio, Bach and Lacoste-Julien, SAGA: a fast incremental gradient method with support for
        non-strongly convex composite objectives, 2014; Schmidt, Le Roux and Bach, Minimizing finite
        sums with the stochastic average gradient, 2017; Johnson and Zhang, Accelerating stochastic
        gradient descent using predictive variance reduction, 2013; Pedregosa, Leblond and
        Lacoste-Julien, Breaking the nonsmooth barrier, 2017 (sparse rows).
    """

    _losses = ("least_squares", "huber")

    def __init__(
        self,
        loss: str = "least_squares",
        *,
        delta: float = 1.0,
        variant: str = "saga",
        alpha: float = 1e-4,
        l1_ratio: float = 0.0,
        lr: float | Literal["auto"] = "auto",
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-4,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        self.loss = loss
        self.delta = delta
        self.variant = variant
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.lr = lr
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _problem(self, y: Array) -> tuple[str, Array, int]:
        if check.non_negative("delta", self.delta) == 0:
            raise ValueError(f"delta must be above 0, got {self.delta}")
        return self.loss, y, 1 if y.ndim == 1 else y.shape[1]


class SAGClassifier(LinearClassifier, FiniteSumModel):
    r"""Linear classification by stochastic average gradients.

    ```
    minimise  mean_i s_i loss(x_i coef + intercept, y_i)
              + alpha ((1 - l1_ratio)/2 |coef|^2 + l1_ratio |coef|_1)
    ```

    `s` are the sample weights, scaled to a mean of 1, times the weights of the classes. For more
    than two classes the logistic loss is that of the softmax, and the squared hinge is summed over
    one problem per class against the rest; all classes share a pass over a row.
    LogisticRegression's C in scikit-learn is 1/(n alpha).

    The result has the same bits for any number of threads, instruction set and processor.

    Args:
        loss: "logistic" (default) or "squared_hinge", see `gradstep.losses`.
        variant, alpha, l1_ratio, lr, fit_intercept, max_iter, tol, random_state, warm_start,
            verbose: see `SAGRegressor`.
        class_weight: a dict with what each row of a class counts, 1 for classes that are not in
            it; or "balanced", with which each class counts alike and `s` keeps a mean of 1, not for
            `partial_fit`; or None (default) for 1. Sample weights multiply it, and count for
            "balanced".

    Attributes:
        classes_: the classes in order.
        coef_: shape (1, p) for two classes, otherwise (k, p).
        intercept_: shape (1,) or (k,).
        lr_, n_iter_, gradient_norm_, n_features_in_, feature_names_in_: see `SAGRegressor`.

    Raises:
        TypeError, ValueError: see `SAGRegressor`.

    Example:
        >>> import numpy as np
        >>> from gradstep.linear import SAGClassifier
        >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
        >>> model = SAGClassifier(alpha=0.1).fit(x, ["cold", "cold", "warm", "warm"])
        >>> model.predict([[3.0], [-3.0]])
        array(['warm', 'cold'], dtype='<U4')
        >>> model.predict_proba([[0.0]]).round(3)
        array([[0.5, 0.5]])

    References:
        Those of `SAGRegressor`; Cox, The regression analysis of binary sequences, 1958.
    """

    _losses = ("logistic", "squared_hinge")

    def __init__(
        self,
        loss: str = "logistic",
        *,
        variant: str = "saga",
        alpha: float = 1e-4,
        l1_ratio: float = 0.0,
        lr: float | Literal["auto"] = "auto",
        fit_intercept: bool = True,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        max_iter: int = 1000,
        tol: float | None = 1e-4,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool = False,
    ) -> None:
        self.loss = loss
        self.variant = variant
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.lr = lr
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _problem(self, y: Array) -> tuple[str, Array, int]:
        outputs = self._outputs
        return "softmax" if self.loss == "logistic" and outputs > 1 else self.loss, y, outputs
