"""SAGRegressor and SAGClassifier, against closed forms and scikit-learn's other solvers."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import gradstep as gs
from gradstep import _core, losses
from gradstep.linear import SAGClassifier, SAGRegressor, _finite_sum
from oracle import OLDER_PROCESSOR, needs_glibc, python, ridge

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5)) * [1.0, 2.0, 0.5, 1.0, 1.0] + [0.0, 1.0, 0.0, 3.0, -1.0]
Y = X @ np.array([1.0, -2.0, 0.5, 3.0, 0.0]) + 1.5 + RNG.normal(size=80)
SIGNS = np.where(Y + 2 * RNG.normal(size=80) > np.median(Y), "yes", "no")
KINDS = np.array(["a", "b", "c"])[np.digitize(Y + RNG.normal(size=80), np.quantile(Y, [0.3, 0.6]))]
WEIGHTS = RNG.integers(0, 4, size=80)
#: Rows of which a third of the numbers are 0, and one column holds nothing.
THIN = np.where(RNG.random((80, 6)) < 0.3, 0, np.column_stack([X, np.zeros(80)]))
THIN[:, 5] = 0
TIGHT = {"alpha": 0.1, "tol": 1e-12, "max_iter": 5000, "random_state": 0}

variants = pytest.mark.parametrize("variant", ["saga", "sag", "svrg"])
both = pytest.mark.parametrize(
    ("estimator", "y"), [(SAGRegressor, Y), (SAGClassifier, KINDS)], ids=["regressor", "classifier"]
)


def other_draws(estimator):
    """Other rows are drawn, so that only the limit is the same, which these do not reach."""
    if estimator.tol < 1e-4:
        return {}
    name = "check_sample_weight_equivalence_on_{}_data"
    return {name.format(kind): other_draws.__doc__ for kind in ("dense", "sparse")}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        SAGRegressor(),
        SAGClassifier(),
        SAGRegressor("huber", variant="svrg", **{**TIGHT, "alpha": 1.0}),
        SAGClassifier(**{**TIGHT, "alpha": 1.0}),
        SAGClassifier("squared_hinge", **{**TIGHT, "alpha": 1.0}),
    ],
    expected_failed_checks=other_draws,
)
def test_manners_of_scikit_learn(estimator, check):
    check(estimator)


# What the optimum is


@variants
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("targets", [Y, np.column_stack([Y, X[:, 0] ** 2])], ids=["one", "two"])
def test_least_squares_reach_the_closed_form(variant, weights, targets):
    model = SAGRegressor(variant=variant, **TIGHT).fit(X, targets, weights)
    coef, intercept = ridge(X, targets, 0.1, weights)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-9)


@pytest.mark.parametrize("variant", ["saga", "svrg"])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_sparse_rows_reach_the_closed_form(variant, index, weights):
    x = sparse.csr_matrix(THIN)
    x.indices, x.indptr = x.indices.astype(index), x.indptr.astype(index)
    model = SAGRegressor(variant=variant, **TIGHT).fit(x, Y, weights)
    coef, intercept = ridge(THIN, Y, 0.1, weights)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-9)
    assert model.coef_[5] == 0
    np.testing.assert_allclose(model.predict(x), model.predict(THIN), rtol=1e-12)


@pytest.mark.parametrize("data", ["breast_cancer", "digits"])
def test_logistic_and_softmax_agree_with_lbfgs(data):
    if data == "digits":
        x, y = load_digits(return_X_y=True)
        x, alpha = x / 16, 1e-2
    else:
        x, y = load_breast_cancer(return_X_y=True)
        x, alpha = scale(x), 1e-2
    model = SAGClassifier(alpha=alpha, tol=1e-10, random_state=0).fit(x, y)
    options = {"tol": 1e-12, "max_iter": 10_000}
    other = LogisticRegression(C=1 / (alpha * len(x)), **options).fit(x, y)
    np.testing.assert_allclose(model.coef_, other.coef_, rtol=1e-5, atol=1e-6)  # where lbfgs stops
    if data == "digits":  # intercepts of softmax are known up to a constant
        intercepts = other.intercept_ - other.intercept_.mean() + model.intercept_.mean()
    else:
        intercepts = other.intercept_
    np.testing.assert_allclose(model.intercept_, intercepts, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(x), other.predict_proba(x), atol=1e-6)


def test_diabetes_agrees_with_the_closed_form():
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x = scale(x)
    model = SAGRegressor(alpha=1e-3, tol=1e-12, max_iter=20_000, random_state=0).fit(x, y)
    coef, intercept = ridge(x, y, 1e-3)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-7)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-9)


def test_the_squared_hinge_agrees_with_liblinear():
    model = SAGClassifier("squared_hinge", **TIGHT).fit(X - X.mean(axis=0), SIGNS)
    # liblinear penalises the intercept, less the larger its scaling.
    svc = LinearSVC(
        C=1 / (0.1 * 80), dual=False, tol=1e-12, max_iter=100_000, intercept_scaling=1e3
    )
    svc.fit(X - X.mean(axis=0), SIGNS)
    np.testing.assert_allclose(model.coef_, svc.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, svc.intercept_, rtol=1e-4)


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_l1_agrees_with_coordinate_descent(layout):
    x = THIN[:, :5]
    options = {"alpha": 0.3, "l1_ratio": 0.7, "tol": 1e-12, "max_iter": 20_000}
    model = SAGRegressor(random_state=0, **options)
    model.fit(x if layout == "dense" else sparse.csr_matrix(x), Y)
    other = ElasticNet(**options).fit(x, Y)
    np.testing.assert_allclose(model.coef_, other.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(model.coef_ == 0, other.coef_ == 0)
    assert (model.coef_ == 0).any()


@pytest.mark.parametrize("kind", ["huber", "logistic", "squared_hinge"])
@variants
def test_the_gradient_at_the_end_is_small(kind, variant):
    """By the losses of `gradstep.losses`, which share no code with the kernels."""
    if kind == "huber":
        model = SAGRegressor("huber", delta=0.5, variant=variant, **TIGHT).fit(X, Y, WEIGHTS)
        targets = Y
    else:
        model = SAGClassifier(kind, variant=variant, **TIGHT).fit(X, SIGNS, WEIGHTS)
        targets = (SIGNS == "yes").astype(int)
    loss = {"huber": lambda *a: losses.huber(*a, delta=0.5)}.get(kind) or getattr(losses, kind)
    params = [model.coef_.ravel(), np.atleast_1d(model.intercept_)]
    _, (weight, bias) = losses.linear(loss)(params, X, targets, WEIGHTS / WEIGHTS.mean())
    assert np.abs(weight + 0.1 * params[0]).max() < 1e-10
    assert np.abs(bias).max() < 1e-10


@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
@both
def test_a_weight_is_a_row_as_often(estimator, y, layout):
    weighted = estimator(**TIGHT).fit(layout(X), y, WEIGHTS)
    again = estimator(**TIGHT).fit(layout(np.repeat(X, WEIGHTS, axis=0)), np.repeat(y, WEIGHTS))
    np.testing.assert_allclose(weighted.coef_, again.coef_, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(weighted.intercept_, again.intercept_, rtol=1e-8, atol=1e-9)


# The same bits


@both
def test_a_seed_gives_the_same_bits(estimator, y, level):
    _core.set_isa("baseline")
    first = estimator(max_iter=3, tol=None, random_state=3).fit(X, y)
    _core.set_isa(level)
    for threads in (1, 2, 3):
        gs.set_num_threads(threads)
        again = clone(first).fit(X, y)
        np.testing.assert_array_equal(again.coef_, first.coef_)
        np.testing.assert_array_equal(again.intercept_, first.intercept_)
    assert (clone(first).set_params(random_state=4).fit(X, y).coef_ != first.coef_).any()


@needs_glibc
@pytest.mark.parametrize("estimator", ["SAGClassifier", "SAGRegressor"])
def test_the_processor_does_not_matter(estimator):
    code = f"""
import warnings; warnings.simplefilter("ignore")
import numpy as np
from sklearn.datasets import load_digits
from gradstep.linear import {estimator}
x, y = load_digits(return_X_y=True)
x = x[:300] / 16
for x in (x, x.astype(np.float32)):
    model = {estimator}(random_state=0, alpha=1e-2, tol=1e-3).fit(x, y[:300])
    print(model.coef_.tobytes().hex(), np.asarray(model.intercept_).tobytes().hex(), model.n_iter_)
"""
    assert python(code) == python(code, **OLDER_PROCESSOR, GRADSTEP_ISA="baseline")


def test_rows_are_taken_where_they_lie():
    table = np.zeros((160, 12), np.float32)
    table[::2, 3:8] = X
    view = table[::2, 3:8]
    view.flags.writeable = False
    options = {"max_iter": 3, "tol": None, "random_state": 0}
    expected = SAGRegressor(**options).fit(X.astype(np.float32), Y)
    model = SAGRegressor(**options).fit(view, Y)
    np.testing.assert_array_equal(model.coef_, expected.coef_)
    assert _finite_sum.contiguous(view) is view
    assert _finite_sum.contiguous(np.asfortranarray(X)).flags.c_contiguous


def test_float32_is_kept():
    model = SAGRegressor(**TIGHT).fit(X.astype(np.float32), Y)
    assert model.coef_.dtype == np.float32
    assert model.predict(X.astype(np.float32)).dtype == np.float32
    coef, _ = ridge(X, Y, 0.1)
    # Weights and sums are float64: only the rows and the result are rounded.
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-6)


# Stopping


def gradient_norm(model, x, y):
    """Each slope over the root of its column's curvature."""
    z = x @ model.coef_ + model.intercept_ - y
    slopes = (x - x.mean(axis=0)).T @ z / len(x) + model.alpha * model.coef_
    return np.hypot(np.linalg.norm(slopes / np.sqrt(x.var(axis=0) + model.alpha)), z.mean())


@variants
def test_it_stops_at_the_gradient_that_was_asked_for(variant, monkeypatch):
    monkeypatch.setattr(_finite_sum.Descent, "last_step", lambda self: None)
    model = SAGRegressor(alpha=0.1, variant=variant, tol=1e-5, random_state=0).fit(X, Y)
    null = SAGRegressor(alpha=0.1)
    null.coef_, null.intercept_ = np.zeros(5), Y.mean()
    relative = gradient_norm(model, X, Y) / gradient_norm(null, X, Y)
    assert relative <= 1e-5 * (1 + 1e-6)
    assert model.gradient_norm_ == pytest.approx(relative, rel=1e-6)
    assert 1 < model.n_iter_ < 1000


def descent(x, targets, loss, outputs, **options):
    options = {
        "delta": 0.7,
        "variant": "saga",
        "l2": 0.01,
        "l1": 0.0,
        "fit_intercept": True,
    } | options
    one = _finite_sum.Descent(x, targets, None, loss=loss, outputs=outputs, **options)
    one.sum.coef[...] = 0.3
    one.sum.intercept[...] += one.fit_intercept
    one.true_norm()
    return one


@pytest.mark.parametrize("l1", [0.0, 0.01, 10.0])
def test_last_step_solves_a_problem_of_one_column(l1):
    """Its bounds of the curvature are the curvature then."""
    model = descent(X[:, 2:3], Y, "least_squares", 1, l1=l1)
    model.last_step()
    weight, bias = (float(x[0]) for x in (model.end()[0][:, 0], model.end()[1]))
    x, y = X[:, 2] - X[:, 2].mean(), Y - Y.mean()
    expected = np.copysign(max(abs(x @ y / 80) - l1, 0.0), x @ y) / (x @ x / 80 + 0.01)
    assert weight == pytest.approx(expected, rel=1e-12)
    assert bias == pytest.approx(Y.mean() - expected * X[:, 2].mean(), rel=1e-12)


@pytest.mark.covering
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize("l1", [0.0, 0.05])
@pytest.mark.parametrize("loss", losses.CURVATURES)
def test_last_step_cannot_raise_the_objective(loss, l1, layout, fit_intercept):
    codes = np.unique(KINDS, return_inverse=True)[1].astype(float)
    outputs = 3 if loss in ("softmax", "squared_hinge") else 1
    regression = loss in ("least_squares", "huber")
    y = Y if regression else codes if outputs == 3 else (codes > 0).astype(float)
    table = y[:, np.newaxis] if outputs == 1 else codes.astype(int)
    table = codes[:, np.newaxis] == np.arange(3) if loss == "squared_hinge" else table
    value_of = losses.linear(getattr(losses, loss))
    model = descent(layout(THIN), y, loss, outputs, l1=l1, delta=1.0, fit_intercept=fit_intercept)

    def objective():
        weight, bias = model.end()
        value, _ = value_of([weight, bias], THIN, table)
        return value + 0.005 * (weight**2).sum() + l1 * np.abs(weight).sum()

    before = objective()
    for _ in range(20):
        model.last_step()
        after = objective()
        assert after < before
        before = after
        model.true_norm()


@variants
@pytest.mark.parametrize("rows", [X, sparse.csr_matrix(THIN)], ids=["dense", "sparse"])
def test_a_fit_ends_with_a_step_along_its_gradient(rows, variant, monkeypatch):
    if sparse.issparse(rows) and variant == "sag":
        pytest.skip("not for sparse rows")
    options = {"alpha": 0.1, "variant": variant, "tol": 1e-2, "random_state": 0}
    model = SAGRegressor(**options).fit(rows, Y)
    monkeypatch.setattr(_finite_sum.Descent, "last_step", lambda self: None)
    rough = SAGRegressor(**options).fit(rows, Y)
    exact = SAGRegressor(**options | {"tol": 1e-12}).fit(rows, Y)
    assert model.gradient_norm_ == rough.gradient_norm_

    def excess(model):
        z = rows @ (model.coef_ - exact.coef_) + (model.intercept_ - exact.intercept_)
        return (z**2).mean() / 2 + 0.05 * ((model.coef_ - exact.coef_) ** 2).sum()

    assert excess(model) < excess(rough)


def test_a_fit_that_has_not_converged_says_what_to_do():
    x = X * [1, 1, 1e4, 1, 1]
    with pytest.warns(ConvergenceWarning) as caught:
        SAGRegressor(max_iter=3, random_state=0).fit(x, Y)
    message = str(caught[0].message)
    assert message.startswith("SAGRegressor has not converged: after 3 epochs the norm of ")
    assert "times that of the best model without features, above tol=0.0001" in message
    assert "Scale the features, with StandardScaler for one: column 2 has the standard" in message
    with pytest.warns(ConvergenceWarning, match="Raise max_iter, alpha or tol"):
        SAGRegressor(max_iter=1, random_state=0).fit(X, Y)


def test_without_a_tolerance_nothing_is_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SAGRegressor(max_iter=3, tol=None, random_state=0).fit(X, Y)
    assert model.n_iter_ == 3


def test_one_class_of_constant_rows_is_done_at_once():
    model = SAGRegressor().fit(np.ones((4, 2)), np.full(4, 7.0))
    np.testing.assert_array_equal(model.predict([[1.0, 1.0]]), [7.0])
    assert model.n_iter_ == 1


def test_a_rate_that_is_too_large_changes_nothing():
    model = SAGRegressor(alpha=0.1, random_state=0).fit(X, Y)
    before = pickle.dumps(model)
    model.set_params(lr=50.0)
    with pytest.raises(ValueError, match=r"diverged in epoch \d+ with lr=50: lr='auto' would be"):
        model.fit(X, Y)
    model.set_params(lr="auto")
    assert pickle.dumps(model) == before


# Going on


@both
def test_a_warm_start_begins_where_the_last_fit_ended(estimator, y):
    model = estimator(alpha=0.1, tol=1e-6, warm_start=True, random_state=0).fit(X, y)
    assert model.n_iter_ > 2
    before = model.coef_.copy()
    model.fit(X, y)
    assert model.n_iter_ <= 2
    np.testing.assert_allclose(model.coef_, before, rtol=1e-3, atol=1e-5)


@both
def test_partial_fits_are_epochs(estimator, y):
    model = estimator(alpha=0.1, random_state=0)
    options = {"classes": np.unique(y)} if estimator is SAGClassifier else {}
    for _ in range(60):
        model.partial_fit(X, y, **options)
    assert model.n_iter_ == 1
    limit = estimator(**TIGHT).fit(X, y)
    np.testing.assert_allclose(model.coef_, limit.coef_, rtol=1e-4, atol=1e-5)
    # A model that was put away goes on with the same rows.
    twin = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(model.partial_fit(X, y).coef_, twin.partial_fit(X, y).coef_)


def test_partial_fit_takes_batches_without_all_classes():
    model = SAGClassifier(alpha=0.1, random_state=0)
    model.partial_fit(X[:20], np.full(20, "a"), classes=["a", "b", "c"])
    model.partial_fit(X, KINDS)
    assert model.coef_.shape == (3, 5)
    with pytest.raises(ValueError, match="y contains previously unseen labels"):
        model.partial_fit(X, np.full(80, "d"))


# Sparse rows


def test_formats_duplicates_and_empty_rows():
    thin = THIN.copy()
    thin[7] = 0
    options = {"max_iter": 2, "tol": None, "random_state": 0}
    expected = SAGRegressor(**options).fit(sparse.csr_matrix(thin), Y)
    for made in (sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array):
        np.testing.assert_array_equal(
            SAGRegressor(**options).fit(made(thin), Y).coef_, expected.coef_
        )
    twice = sparse.csr_matrix(thin)
    halves = sparse.csr_matrix(
        (np.repeat(twice.data / 2, 2), np.repeat(twice.indices, 2), 2 * twice.indptr), twice.shape
    )
    before = halves.data.copy()
    np.testing.assert_array_equal(SAGRegressor(**options).fit(halves, Y).coef_, expected.coef_)
    np.testing.assert_array_equal(halves.data, before)


def test_a_column_without_a_row_gets_no_weight():
    model = SAGRegressor(alpha=0.1, warm_start=True, random_state=0).fit(np.eye(6), np.arange(6.0))
    model.fit(sparse.csr_matrix(THIN), Y)
    assert model.coef_[5] == 0


# Bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of .*, got 'hinge'"),
        ({"variant": "adam"}, "variant must be one of 'saga', 'sag', 'svrg', got 'adam'"),
        ({"alpha": -1.0}, "alpha must be at least 0 and finite, got -1"),
        ({"alpha": np.nan}, "alpha must be at least 0 and finite, got nan"),
        ({"l1_ratio": 1.5}, "l1_ratio must be at most 1, got 1.5"),
        ({"variant": "sag", "l1_ratio": 0.5}, "l1_ratio must be 0 for variant='sag'"),
        ({"lr": 0.0}, "lr must be above 0, got 0"),
        ({"lr": "fast"}, "lr must be one of 'auto', got 'fast'"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"tol": -1.0}, "tol must be at least 0 and finite, got -1"),
    ],
)
@both
def test_bad_arguments(estimator, y, options, message):
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(X, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": "much"}, "alpha must be a number, got 'much'"),
        ({"max_iter": 2.5}, "max_iter must be a whole number, got 2.5"),
        ({"fit_intercept": 1}, "fit_intercept must be True or False, got 1"),
    ],
)
def test_arguments_of_a_wrong_type(options, message):
    with pytest.raises(TypeError, match=message):
        SAGRegressor(**options).fit(X, Y)


def test_data_that_does_not_fit():
    with pytest.raises(ValueError, match="delta must be above 0, got 0"):
        SAGRegressor("huber", delta=0).fit(X, Y)
    with pytest.raises(ValueError, match="variant must be 'saga' or 'svrg' for sparse rows"):
        SAGRegressor(variant="sag").fit(sparse.csr_matrix(X), Y)
    with pytest.raises(ValueError, match="sample_weight must be at least 0, got -1"):
        SAGRegressor().fit(X, Y, np.full(80, -1.0))
    with pytest.raises(ValueError, match="at least two classes, got one class: yes"):
        SAGClassifier().fit(X, np.full(80, "yes"))
    with pytest.raises(ValueError, match="X must have rows with finite squares"):
        SAGRegressor().fit(X * 1e200, Y)


def test_a_table_that_does_not_fit_says_how_large_it_is(monkeypatch):
    monkeypatch.setattr(_finite_sum, "available_bytes", lambda: 100.0)
    with pytest.raises(MemoryError, match=r"a table of 80 rows x 1 outputs takes 0\.0 GB of mem"):
        SAGRegressor().fit(X, Y)


# Around


def test_with_the_tools_of_scikit_learn():
    pipeline = make_pipeline(StandardScaler(), SAGClassifier(random_state=0))
    search = GridSearchCV(pipeline, {"sagclassifier__alpha": [1e-3, 1e-1]}, cv=3).fit(X, KINDS)
    assert search.best_score_ > 0.6
    assert search.best_estimator_.predict_proba(X).sum(axis=1) == pytest.approx(1)


def test_verbose_shows_a_bar_on_a_terminal_only(capsys):
    SAGRegressor(alpha=0.1, verbose=True, random_state=0).fit(X, Y)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
