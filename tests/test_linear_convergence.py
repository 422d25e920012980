"""A fit of a linear model that gives no warning is a fit, whatever the units of the data are."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, r2_score
from sklearn.preprocessing import scale

from gradstep.linear import GDClassifier, GDRegressor, SAGClassifier, SAGRegressor
from oracle import ridge

ROWS = 300
RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(ROWS, 5))
COUNTS = RNG.poisson(0.3, size=(ROWS, 5))
SIGNAL = np.array([1.0, -1.0, 0.5, 2.0, 1.5])
#: Columns in units of all kinds.
COLUMNS = {
    "scaled": NORMAL,
    "lognormal": np.exp(8 + NORMAL),
    "shifted": NORMAL + 1000,
    "a little shifted": NORMAL + 5,
    "one huge": NORMAL * [1, 1, 1e6, 1, 1],
    "one tiny": NORMAL * [1, 1, 1e-3, 1, 1],
    "large counts": COUNTS * 1000.0,
    "counts": COUNTS * 1.0,
    "correlated": NORMAL + 3 * NORMAL[:, :1],
}
#: Some of them as sparse rows too.
SPARSE = ("large counts", "counts", "one huge")
WEIGHTS = RNG.exponential(size=ROWS)
ALPHA = 1e-3


def targets(x, intercept):
    return scale(x) @ SIGNAL + intercept + np.random.default_rng(1).normal(size=ROWS)


def cases():
    """Columns, layout, dtype, intercept of the targets, weights: 66 of them."""
    for n, (name, intercept, weights) in enumerate(
        itertools.product(COLUMNS, (0.0, 1e4), (None, WEIGHTS))
    ):
        yield name, np.asarray, np.float64 if n % 3 else np.float32, intercept, weights
    for name, intercept, weights in itertools.product(SPARSE, (0.0, 1e4), (None, WEIGHTS)):
        yield name, sparse.csr_matrix, np.float64, intercept, weights
    for name, dtype in itertools.product(COLUMNS, (np.float32, np.float64)):
        yield name, np.asarray, dtype, 5.0, WEIGHTS if dtype is np.float32 else None


CASES = tuple(cases())


def quietly(model, *data):
    """The model, and whether it warned that it has not converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(*data)
    assert all(issubclass(w.category, ConvergenceWarning) for w in caught)
    return model, bool(caught)


def judge(models, score, best, constant, minimum):
    """`score` of each model without a warning against the exact solution's and the constant's."""
    fits = 0
    for options, model, data in models:
        fitted, warned = quietly(model.set_params(**options), *data)
        if warned:
            continue
        fits += 1
        reached = score(fitted)
        assert reached >= best - 0.02, (fitted, reached, best)
        assert reached >= constant - 1e-6, (fitted, reached)
    assert fits >= minimum


SAG_OPTIONS = tuple({"variant": variant} for variant in ("saga", "sag", "svrg"))
GD_OPTIONS = (
    {"max_iter": 400},
    {"rule": "nesterov", "max_iter": 400},
    {"batch_size": 32, "max_iter": 20},
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}")
def test_a_fit_without_a_warning_is_a_fit(case):
    name, layout, dtype, intercept, weights = case
    x = COLUMNS[name].astype(dtype)
    y = targets(COLUMNS[name], intercept)
    wide = x.astype(np.float64)
    coef, bias = ridge(wide, y, ALPHA, weights)
    best = r2_score(y, wide @ coef + bias, sample_weight=weights)
    options = {"alpha": ALPHA, "random_state": 0}
    models = [
        (options | extra, estimator(), (layout(x), y, weights))
        for estimator, extras in ((SAGRegressor, SAG_OPTIONS), (GDRegressor, GD_OPTIONS))
        for extra in extras
        if layout is np.asarray or extra.get("variant") in ("saga", "svrg")
    ]

    def score(model):
        prediction = wide @ model.coef_.astype(float) + float(model.intercept_)
        return r2_score(y, prediction, sample_weight=weights)

    judge(models, score, best, 0.0, minimum=5 if name == "scaled" and intercept < 10 else 0)


@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: f"{case[0]}-{case[1].__name__}")
def test_a_classification_without_a_warning_is_one(case):
    name, layout, dtype, intercept, weights = case
    x = COLUMNS[name].astype(dtype)
    wide = x.astype(np.float64)
    # Few of one class where regression has a large intercept.
    y = (targets(COLUMNS[name], 0.0) > (3.0 if intercept > 10 else 0.0)).astype(int)
    total = ROWS if weights is None else weights.sum()
    peer = LogisticRegression(C=1 / (ALPHA * total), solver="newton-cholesky", tol=1e-8)
    peer.fit(wide, y, weights)
    share = np.average(y, weights=weights)
    null = log_loss(y, np.full(ROWS, share), sample_weight=weights)

    def score(model):
        """The part of the constant model's loss that is explained."""
        z = wide @ model.coef_[0].astype(float) + float(model.intercept_[0])
        return 1 - np.average(np.logaddexp(0, np.where(y == 1, -z, z)), weights=weights) / null

    options = {"alpha": ALPHA, "random_state": 0}
    models = [
        (options | extra, estimator(), (layout(x), y, weights))
        for estimator, extras in ((SAGClassifier, SAG_OPTIONS), (GDClassifier, GD_OPTIONS))
        for extra in extras
        if layout is np.asarray or extra.get("variant") in ("saga", "svrg")
    ]
    judge(models, score, score(peer), 0.0, minimum=5 if name == "scaled" else 0)


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("weights", [None, np.linspace(0.1, 2, 500)])
def test_a_mean_far_from_0_does_not_hide_a_column(layout, weights):
    """Its mean square and the square of its mean share all digits that a float64 has."""
    rng = np.random.default_rng(1)
    hidden, wide = rng.normal(size=500), 300 * rng.normal(size=500)
    x, y = np.column_stack([hidden + 1e8, wide]), 3 * hidden + 1e-3 * wide
    with pytest.warns(ConvergenceWarning, match="Scale the features|Raise max_iter"):
        SAGRegressor(alpha=0.0, max_iter=30, random_state=0).fit(layout(x), y, weights)
    x[:, 0] = 1e8  # a constant has nothing to hide
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SAGRegressor(alpha=0.0, random_state=0).fit(np.asarray(x), y - 3 * hidden)
    assert model.coef_[1] == pytest.approx(1e-3, rel=1e-3)


def test_a_constant_target_is_fitted_at_once():
    x = NORMAL[:, :3]
    several = np.column_stack([x @ SIGNAL[:3], np.full(ROWS, 3.3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SAGRegressor(random_state=0).fit(x, several).n_iter_ < 50
        assert SAGRegressor(random_state=0).fit(x, np.full(ROWS, 0.1), WEIGHTS).n_iter_ == 1
