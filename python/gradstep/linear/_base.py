"""What linear models share: data in, coefficients kept, scores out, in scikit-learn's manner.

A model solves for a weight of shape (p, k) and a bias of shape (k,), for p features and k outputs:
one per target, and for classes one in all where there are two, otherwise one each.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    unique_labels,
)
from sklearn.utils.validation import check_is_fitted, validate_data

from .._engine import checks as check
from ..training.progress import _bar
from ._weights import aligned, relative_weights

Array = NDArray[Any]
Model = TypeVar("Model", bound="LinearModel")
Regressor = TypeVar("Regressor", bound="LinearRegressor")
Classifier = TypeVar("Classifier", bound="LinearClassifier")


class LinearModel(BaseEstimator):
    """Data in, coefficients kept.

    Subclasses have the arguments `fit_intercept`, `warm_start` and `verbose`, and say in `_fit` how
    they fit. A fit that resumes another one, by `partial_fit` or `warm_start`, takes features,
    dtype, outputs and classes from it. It may also resume from a `coef_` that the user has set;
    other attributes that are missing then start anew.
    """

    warm_start: bool
    coef_: Array
    intercept_: Any
    #: The sparse formats that are taken, as `accept_sparse` of scikit-learn's `check_array`.
    _sparse: ClassVar[Any] = False

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = bool(self._sparse)
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def fit(
        self: Model,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Model:
        """Fit to all rows until there is a reason to stop.

        Args:
            X: rows, shape (n, p), or a sparse matrix where the estimator takes one, best in CSR.
                float32 is kept, anything else becomes float64.
            y: numbers of shape (n,) or (n, k), taken in the dtype of `X`; or classes, shape (n,).
            sample_weight: what each row counts, at least 0, shape (n,); None (default) for 1. A
                weight of 2 is a row twice.
        """
        self._fit(X, y, sample_weight, resume=self.warm_start and self.__sklearn_is_fitted__())
        return self

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
        """Fit, from the start or from the coefficients of the fit before.

        Args:
            X, y, sample_weight: as the user gave them.
            resume: start from the coefficients there are.
            one_epoch: `partial_fit`. Where it resumes, it goes on with all that the last call left.
            classes: see `LinearClassifier._check_data`.
        """
        raise NotImplementedError

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Around a fit: if it raises, every attribute is what it was.

        What attributes hold is not written to, but replaced.
        """
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _validated(self, X: Any, y: Any, resume: bool, **options: Any) -> tuple[Array, Array]:  # noqa: N803
        """Rows in float32 or float64 and targets, as scikit-learn checks them."""
        # Of a list the first is what all other dtypes become.
        dtypes: list[Any] = [np.float64, np.float32]
        if resume and np.asarray(self.coef_).dtype in dtypes:
            dtypes = [np.asarray(self.coef_).dtype]
        x, y = validate_data(
            self,
            X,
            y,
            reset=not (resume and hasattr(self, "n_features_in_")),
            accept_sparse=self._sparse,
            dtype=dtypes,
            **options,
        )
        return x if sparse.issparse(x) else aligned(x), aligned(y)

    def _start(self, x: Array, outputs: int, resume: bool) -> tuple[Array, Array]:
        """Weight and bias to begin with, in new memory: zeros, or what was fitted before."""
        weight, bias = np.zeros((x.shape[1], outputs), x.dtype), np.zeros(outputs, x.dtype)
        if resume:
            coef, intercept = np.asarray(self.coef_), np.asarray(getattr(self, "intercept_", 0.0))
            for name, value in (("coef_", coef), ("intercept_", intercept)):
                if not np.isfinite(value).all():
                    raise ValueError(f"{name} must be finite, got {value[~np.isfinite(value)][0]}")
            if isinstance(self, LinearRegressor) and coef.ndim == 2 and len(coef) != outputs:
                columns = f"{len(coef)} columns of the fit before"
                raise ValueError(f"y must have the {columns}, got {outputs}")
            if np.atleast_2d(coef).shape != weight.T.shape:
                wanted = weight.T.shape[-max(coef.ndim, 1) :]
                data = "these features and targets"
                raise ValueError(f"coef_ must have the shape {wanted} for {data}, got {coef.shape}")
            if intercept.size not in (1, outputs):
                wanted = f"the shape ({outputs},)"
                raise ValueError(f"intercept_ must have {wanted}, got {intercept.shape}")
            weight[...] = np.atleast_2d(coef).T
            if check.flag("fit_intercept", self.fit_intercept):
                bias[...] = intercept
        return weight, bias

    def _keep(self, weight: Array, bias: Array, flat: bool = False) -> None:
        """Set `coef_` and `intercept_`; of a single output `flat`, without its axis."""
        self.coef_ = np.array(weight[:, 0] if flat else weight.T, order="C")
        self.intercept_ = bias[0] if flat else bias.copy()

    def _scores(self, X: Any) -> Array:  # noqa: N803
        check_is_fitted(self)
        x = validate_data(
            self, X, reset=False, accept_sparse=self._sparse, dtype=[np.float64, np.float32]
        )
        return np.asarray(safe_sparse_dot(x, self.coef_.T, dense_output=True) + self.intercept_)

    def _warn(self, message: str) -> None:
        """Tell that the fit has not converged; `message` has the numbers and the advice."""
        name = type(self).__name__
        # The caller of fit: above this one, the method that fits, and fit.
        warnings.warn(f"{name} has not converged: {message}", ConvergenceWarning, stacklevel=4)

    def _progress(self, epochs: int) -> Any:
        """A tqdm bar over epochs, on a terminal and with `verbose` only."""
        return _bar(epochs, bool(self.verbose), unit=" epochs")


class LinearRegressor(RegressorMixin, LinearModel):
    """Numbers as targets, one or several per row."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _check_data(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any,
        *,
        resume: bool,
    ) -> tuple[Array, Array, Array | None]:
        """Rows, targets in their dtype with the shape (n,) or (n, k), and `relative_weights`."""
        x, y = self._validated(X, y, resume, multi_output=True, y_numeric=True)
        largest = np.abs(y).max(initial=0)
        if largest > np.finfo(x.dtype).max:
            raise ValueError(f"y must fit in {x.dtype}, the dtype of X, got {largest}")
        if resume and y.ndim != np.ndim(self.coef_):
            was = "one number per row" if np.ndim(self.coef_) == 1 else "a row of numbers per row"
            raise ValueError(f"y must have {was}, as in the fit before, got the shape {y.shape}")
        return x, y.astype(x.dtype, copy=False), relative_weights(sample_weight, x)

    def partial_fit(
        self: Regressor,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Regressor:
        """One epoch over these rows, from where the last call left off.

        Args:
            X, y, sample_weight: see `fit`. Weights count within the call.
        """
        self._fit(X, y, sample_weight, resume=self.__sklearn_is_fitted__(), one_epoch=True)
        return self

    def predict(self, X: ArrayLike) -> Array:  # noqa: N803
        """The predictions, of shape (n,) or (n, k) as the targets were.

        Args:
            X: rows, shape (n, p).
        """
        return self._scores(X)


class LinearClassifier(ClassifierMixin, LinearModel):
    """Classes as targets.

    Subclasses have the arguments `class_weight` and `loss`, whose "logistic" gives probabilities:
    the logistic function of the score for two classes, the softmax of the scores for more.
    """

    class_weight: Any
    classes_: Array

    def _check_data(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any,
        *,
        resume: bool,
        classes: ArrayLike | None = None,
    ) -> tuple[Array, Array, Array | None]:
        """Rows, for each the place of its class in `classes_`, and `relative_weights` times that of
        its class.

        Args:
            X, y, sample_weight: as given to the fit.
            resume: whether `classes_` stay where there are some, otherwise they are set.
            classes: all there are, where `y` need not hold each of them.
        """
        x, y = self._validated(X, y, resume)
        check_classification_targets(y)
        weights = relative_weights(sample_weight, x)
        known = resume and hasattr(self, "classes_")
        if not known and classes is None:
            # One sort of the labels, where an encoder would take three.
            self.classes_, codes = np.unique(y, return_inverse=True)
        else:
            if not known:
                self.classes_ = unique_labels(classes)
            encoder = LabelEncoder()
            encoder.classes_ = self.classes_
            codes = encoder.transform(y)
        weights = self._with_class_weights(codes, weights)
        # A weight of 0 leaves a row out.
        counted = codes if weights is None else codes[weights > 0]
        present = (
            self.classes_ if known or classes is not None else self.classes_[np.unique(counted)]
        )
        if len(present) < 2:
            name = "y" if classes is None else "classes"
            raise ValueError(f"{name} must hold at least two classes, got one class: {present[0]}")
        return x, codes, weights

    def _with_class_weights(self, codes: Array, weights: Array | None) -> Array | None:
        """The weights of rows, each times that of its class."""
        if self.class_weight is None:
            return weights
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            counts = np.bincount(codes, weights, minlength=len(self.classes_))
            # A class without a row, or of weight 0, takes no part.
            by_class = counts.sum() / (np.count_nonzero(counts) * np.where(counts > 0, counts, 1))
        elif isinstance(self.class_weight, Mapping):
            options = dict(self.class_weight)
            by_class = compute_class_weight(options, classes=self.classes_, y=self.classes_)
        else:
            raise ValueError(
                f'class_weight must be a dict, "balanced" or None, got {self.class_weight!r}'
            )
        if not (np.isfinite(by_class).all() and by_class.min() >= 0):
            raise ValueError(
                f"class_weight must hold numbers of at least 0, got {self.class_weight!r}"
            )
        product = by_class[codes] * (1.0 if weights is None else weights)
        if not 0 < product.sum() < math.inf:
            raise ValueError(
                "class_weight must leave rows with a weight above 0 and a finite sum of weights, "
                f"got {self.class_weight!r}"
            )
        return np.asarray(product)

    def partial_fit(
        self: Classifier,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Classifier:
        """One epoch over these rows, from where the last call left off.

        Args:
            X, y, sample_weight: see `fit`. Weights count within the call.
            classes: all classes there will be; needed in the first call only.
        """
        if isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight must be a dict or None in partial_fit, which does not know how many "
                f"rows of each class there will be, got {self.class_weight!r}: "
                "sklearn.utils.class_weight.compute_class_weight has the numbers for a dict"
            )
        with self._all_or_nothing():
            _check_partial_fit_first_call(self, classes)  # sets classes_, or checks them
            resume = self.__sklearn_is_fitted__()
            known = {} if resume else {"classes": self.classes_}
            self._fit(X, y, sample_weight, resume=resume, one_epoch=True, **known)
        return self

    @property
    def _outputs(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def decision_function(self, X: ArrayLike) -> Array:  # noqa: N803
        """The scores: of `classes_[1]` with the shape (n,) for two classes, otherwise (n, k).

        Args:
            X: rows, shape (n, p).
        """
        z = self._scores(X)
        return z[:, 0] if z.shape[1] == 1 else z

    def predict(self, X: ArrayLike) -> Array:  # noqa: N803
        """The class with the highest score for each row, shape (n,).

        Args:
            X: rows, shape (n, p).
        """
        z = self.decision_function(X)
        best = (z > 0).astype(int) if z.ndim == 1 else z.argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _has_probabilities(self) -> bool:
        if self.loss != "logistic":
            raise AttributeError(f"probabilities need loss='logistic', got loss={self.loss!r}")
        return True

    @available_if(_has_probabilities)
    def predict_proba(self, X: ArrayLike) -> Array:  # noqa: N803
        """The probability of each class, shape (n, k), in the order of `classes_`.

        Args:
            X: rows, shape (n, p).
        """
        z = self.decision_function(X)
        if z.ndim == 1:
            return np.column_stack([special.expit(-z), special.expit(z)])
        return np.asarray(special.softmax(z, axis=1))

    @available_if(_has_probabilities)
    def predict_log_proba(self, X: ArrayLike) -> Array:  # noqa: N803
        """The logarithm of `predict_proba`, with all digits also of small probabilities.

        Args:
            X: rows, shape (n, p).
        """
        z = self.decision_function(X)
        if z.ndim == 1:
            return np.column_stack([special.log_expit(-z), special.log_expit(z)])
        return np.asarray(special.log_softmax(z, axis=1))
