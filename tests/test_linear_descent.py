"""GDRegressor and GDClassifier, against closed forms, scikit-learn's solvers and loops by hand."""

from __future__ import annotations

import functools
import math
import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

import gradstep as gs
from gradstep import losses
from gradstep.linear import GDClassifier, GDRegressor
from gradstep.linear._gradient import _largest_eigenvalue
from gradstep.linear._weights import relative_weights
from gradstep.stability import max_stable_lr
from oracle import python, ridge

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)) * [1.0, 2.0, 0.5, 1.0] + [0.0, 1.0, 0.0, 3.0]
Y = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 1.5 + RNG.normal(size=60)
SIGNS = np.where(Y + 2 * RNG.normal(size=60) > np.median(Y), "yes", "no")
KINDS = np.array(["a", "b", "c"])[np.digitize(Y + RNG.normal(size=60), np.quantile(Y, [0.3, 0.6]))]
WEIGHTS = RNG.integers(0, 4, size=60)
IRIS, SPECIES = load_iris(return_X_y=True)
IRIS = scale(IRIS)
both = pytest.mark.parametrize(
    ("estimator", "y"), [(GDRegressor, Y), (GDClassifier, KINDS)], ids=["regressor", "classifier"]
)


def expected_failures(estimator):
    if estimator.loss == "hinge":
        slow = "Subgradients descend slowly on rows that are not scaled."
        return {"check_class_weight_classifiers": slow}
    if estimator.batch_size == "full":
        return {}
    noisy = "Batches of a weighted row and of a row twice are not the same batches."
    return {"check_sample_weight_equivalence_on_dense_data": noisy}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        GDRegressor(),
        GDRegressor("huber", rule="momentum"),
        GDRegressor(batch_size=8, max_iter=50),
        GDClassifier(),
        GDClassifier("squared_hinge", rule=gs.Nesterov),
        GDClassifier("hinge"),
        GDClassifier(batch_size=8, rule=gs.Adam, max_iter=50),
    ],
    expected_failed_checks=expected_failures,
)
def test_manners_of_scikit_learn(estimator, check):
    check(estimator)


# What the optimum is


#: Each reaches the optimum of a problem with noise by full batches.
FULL = {
    "SGD": {},
    "momentum": {"rule_options": {"momentum": 0.8}},
    "nesterov": {"rule_options": {"momentum": 0.8, "nesterov": True}},
    "Momentum": {"rule": "Momentum"},
    "average": {"rule": gs.Momentum, "rule_options": {"average": True}},
    "Nesterov": {"rule": gs.Nesterov},
    "WindowSAG": {"rule": "windowsag", "rule_options": {"window": 3}},
    "a number": {"lr": 0.05},
    "a schedule": {"lr": gs.schedules.warmup(gs.schedules.constant(0.05), steps=50)},
    "Adam": {"rule": "adam", "lr": gs.schedules.exponential(0.3, 0.999)},
}


@pytest.mark.parametrize("options", FULL.values(), ids=FULL.keys())
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_ridge_in_closed_form(options, weights):
    model = GDRegressor(alpha=0.1, tol=1e-10, max_iter=20_000, **options).fit(X, Y, weights)
    coef, intercept = ridge(X, Y, 0.1, weights)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-7)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-7)
    assert model.coef_.shape == (4,)
    assert np.ndim(model.intercept_) == 0


def test_ridge_without_intercept():
    model = GDRegressor(alpha=0.1, tol=1e-11, max_iter=20_000, fit_intercept=False).fit(X, Y)
    expected = np.linalg.solve(X.T @ X / 60 + 0.1 * np.eye(4), X.T @ Y / 60)
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-8)
    assert model.intercept_ == 0


@pytest.mark.parametrize("k", [1, 3])
def test_several_targets(k):
    y = np.column_stack([Y, -2 * Y + X[:, 0], X[:, 1] ** 2])[:, :k]
    model = GDRegressor(alpha=0.1, tol=1e-11, max_iter=20_000).fit(X, y)
    coef, intercept = ridge(X, y, 0.1)
    assert model.coef_.shape == (k, 4)
    assert model.intercept_.shape == (k,)
    assert model.predict(X).shape == (60, k)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-7)
    np.testing.assert_allclose(model.intercept_, intercept, rtol=1e-7)


def test_the_real_data_of_ridge():
    x, y = load_diabetes(return_X_y=True)
    x = scale(x)
    options = {"alpha": 0.01, "tol": 1e-9, "max_iter": 20_000, "rule": "momentum"}
    model = GDRegressor(**options).fit(x, y)
    np.testing.assert_allclose(model.coef_, ridge(x, y, 0.01)[0], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "nesterov"])
def test_batches_reach_an_optimum_without_noise(batch_size, rule):
    y = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 1.5
    model = GDRegressor(
        rule=rule, alpha=0.0, batch_size=batch_size, tol=1e-9, max_iter=2000, random_state=0
    ).fit(X, y)
    assert model.history_.stop == "callback"
    np.testing.assert_allclose(model.coef_, [1.0, -2.0, 0.5, 3.0], rtol=1e-5)
    np.testing.assert_allclose(model.intercept_, 1.5, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_huber_ends_where_its_gradient_does(weights):
    y = Y.copy()
    y[::10] += 50
    model = GDRegressor("huber", delta=0.7, alpha=0.05, tol=1e-10, max_iter=50_000)
    model.fit(X, y, weights)
    s = np.ones(60) if weights is None else weights / weights.mean()
    slopes = s * np.clip(X @ model.coef_ + model.intercept_ - y, -0.7, 0.7)
    np.testing.assert_allclose(X.T @ slopes / 60 + 0.05 * model.coef_, 0, atol=1e-8)
    np.testing.assert_allclose(slopes.mean(), 0, atol=1e-8)
    assert abs(model.coef_ - [1.0, -2.0, 0.5, 3.0]).max() < 1


@pytest.mark.parametrize(
    ("x", "y"),
    [(X, SIGNS), (X, KINDS), (IRIS, SPECIES)],
    ids=["two classes", "three classes", "iris"],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "nesterov"])
def test_logistic_regression_of_scikit_learn(x, y, weighted, rule):
    weights = np.resize(WEIGHTS, len(x)) if weighted else None
    total = len(x) if weights is None else weights.sum()
    alpha = 0.02
    peer = LogisticRegression(C=1 / (alpha * total), tol=1e-12, max_iter=10_000)
    peer.fit(x, y, weights)
    model = GDClassifier(rule=rule, alpha=alpha, tol=1e-9, max_iter=50_000).fit(x, y, weights)
    assert model.coef_.shape == peer.coef_.shape
    assert model.intercept_.shape == peer.intercept_.shape
    np.testing.assert_array_equal(model.classes_, peer.classes_)
    np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        model.intercept_ - model.intercept_.mean(),
        peer.intercept_ - peer.intercept_.mean(),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(model.decision_function(x), peer.decision_function(x), atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(x), peer.predict_proba(x), atol=1e-6)
    np.testing.assert_allclose(
        np.exp(model.predict_log_proba(x)), model.predict_proba(x), rtol=1e-13
    )
    np.testing.assert_array_equal(model.predict(x), peer.predict(x))


@pytest.mark.parametrize("y", [SIGNS, KINDS], ids=["two classes", "three classes"])
def test_squared_hinge_of_scikit_learn(y):
    peer = LinearSVC(dual=False, C=1 / (0.05 * 60), tol=1e-12, fit_intercept=False).fit(X, y)
    model = GDClassifier(
        "squared_hinge", alpha=0.05, tol=1e-10, max_iter=50_000, fit_intercept=False
    ).fit(X, y)
    np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(model.predict(X), peer.predict(X))


@pytest.mark.parametrize("y", [SIGNS, KINDS], ids=["two classes", "three classes"])
def test_hinge_comes_close_to_its_least_value(y):
    """Within 1 % of the exact solver, and no warning although its gradient stays large."""
    alpha = 0.05

    def value(coef, classes):
        signs = np.where(y[:, None] == (classes[1:] if len(classes) == 2 else classes), 1, -1)
        gaps = np.maximum(1 - signs * (X @ coef.T), 0)
        return gaps.mean(axis=0).sum() + alpha / 2 * np.sum(coef**2)

    peer = LinearSVC(
        loss="hinge", C=1 / (alpha * 60), tol=1e-10, fit_intercept=False, max_iter=1_000_000
    ).fit(X, y)
    model = GDClassifier("hinge", alpha=alpha, max_iter=5000, fit_intercept=False).fit(X, y)
    least = value(peer.coef_, peer.classes_)
    assert least <= value(model.coef_, model.classes_) * (1 + 1e-6)
    assert value(model.coef_, model.classes_) < 1.01 * least


# How it gets there


@both
@pytest.mark.parametrize("batch_size", ["full", 1, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_a_loop_by_hand(estimator, y, batch_size, dtype):
    """Bit by bit, sample weights too: gs.batches deals the rows, the rule steps."""
    x, schedule = X.astype(dtype), gs.schedules.cosine(0.05, total_steps=1000)
    model = estimator(
        rule="adam", lr=schedule, batch_size=batch_size, alpha=0.1, max_iter=3, tol=None
    )
    model.set_params(random_state=5).fit(x, y, WEIGHTS)

    regression = estimator is GDRegressor
    shape = (4,) if regression else (4, 3)
    weight, bias = np.zeros(shape, dtype), np.zeros(shape[1:] or 1, dtype)
    targets = y.astype(dtype) if regression else np.unique(y, return_inverse=True)[1]
    s = WEIGHTS / WEIGHTS.max()
    s /= s.mean()
    opt = gs.Adam([weight, bias], lr=schedule)
    rng = np.random.default_rng(np.random.RandomState(5).randint(2**31 - 1))
    feed = gs.batches(x, targets, s, batch_size=batch_size, seed=rng)
    loss = losses.least_squares if regression else losses.softmax
    for _ in range(3):
        for rows, t, r in feed:
            _, dz = loss(rows @ weight + bias, t, r)
            opt.step([rows.T @ dz + 0.1 * weight, dz.sum(axis=0).reshape(bias.shape)])
    np.testing.assert_array_equal(model.coef_, weight.T)
    np.testing.assert_array_equal(model.intercept_, bias[0] if regression else bias)
    assert model.coef_.dtype == model.intercept_.dtype == dtype


@both
def test_random_state_decides(estimator, y):
    def coef(seed, **options):
        model = estimator(batch_size=7, max_iter=2, tol=None, random_state=seed, **options)
        return model.fit(X, y).coef_.tobytes()

    assert coef(3) == coef(3)
    assert coef(3) != coef(4)
    assert coef(None) != coef(None)
    assert coef(3, shuffle=False) == coef(4, shuffle=False)
    assert coef(np.random.RandomState(3)) == coef(3)


@both
def test_a_weight_of_2_is_a_row_twice(estimator, y):
    repeated = np.repeat(np.arange(60), WEIGHTS)
    options = {"alpha": 0.1, "max_iter": 30, "tol": None, "lr": 0.05, "rule": "momentum"}
    weighted = estimator(**options).fit(X, y, WEIGHTS)
    twice = estimator(**options).fit(X[repeated], y[repeated])
    np.testing.assert_allclose(weighted.coef_, twice.coef_, rtol=1e-11)
    np.testing.assert_allclose(weighted.intercept_, twice.intercept_, rtol=1e-11)
    np.testing.assert_allclose(weighted.history_["loss"], twice.history_["loss"], rtol=1e-12)


@both
@pytest.mark.parametrize("batch_size", ["full", 7])
@pytest.mark.parametrize("rule", ["sgd", "adam", "momentum"])
def test_partial_fits_are_the_epochs_of_a_fit(estimator, y, batch_size, rule):
    """Bit by bit: states, step count, schedule and order of rows go on, through pickling too."""
    options = {"rule": rule, "batch_size": batch_size, "random_state": 1}
    if rule == "adam":
        options["lr"] = gs.schedules.cosine(0.1, total_steps=20)
    whole = estimator(**options, max_iter=5, tol=None).fit(X, y)
    parts = estimator(**options)
    for i in range(5):
        classes = {"classes": np.unique(y)} if i == 0 and estimator is GDClassifier else {}
        parts.partial_fit(X, y, **classes)
        assert parts.n_iter_ == 1
        parts = pickle.loads(pickle.dumps(parts))
    np.testing.assert_array_equal(parts.coef_, whole.coef_)
    np.testing.assert_array_equal(parts.intercept_, whole.intercept_)
    np.testing.assert_array_equal(parts.predict(X), whole.predict(X))


def test_partial_fit_goes_on_from_a_fit():
    whole = GDRegressor(max_iter=6, tol=None, rule="momentum").fit(X, Y)
    parts = GDRegressor(max_iter=5, tol=None, rule="momentum").fit(X, Y).partial_fit(X, Y)
    np.testing.assert_array_equal(parts.coef_, whole.coef_)


def test_partial_fit_takes_new_arguments():
    model = GDRegressor(lr=0.01, rule="adam").partial_fit(X, Y)
    before = model.coef_
    model.set_params(lr=0.0).partial_fit(X, Y)
    np.testing.assert_array_equal(model.coef_, before)
    model.set_params(rule="sgd", lr=0.01).partial_fit(X, Y)
    assert model._state["rule"] == "sgd"


def test_partial_fit_of_classes_that_come_later():
    model = GDClassifier(lr=0.1)
    model.partial_fit(X[:5], ["a"] * 5, classes=["c", "a", "b"])
    np.testing.assert_array_equal(model.classes_, ["a", "b", "c"])
    assert model.coef_.shape == (3, 4)
    for _ in range(300):
        model.partial_fit(X, KINDS)
    assert model.score(X, KINDS) > 0.7
    with pytest.raises(ValueError, match=r"y contains previously unseen labels: .*'d'"):
        model.partial_fit(X[:2], ["a", "d"])
    with pytest.raises(ValueError, match="is not the same as on last call to partial_fit"):
        model.partial_fit(X, KINDS, classes=["a", "b"])
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        GDClassifier().partial_fit(X, KINDS)
    with pytest.raises(ValueError, match="classes must hold at least two classes, got one class"):
        GDClassifier().partial_fit(X[:5], ["a"] * 5, classes=["a"])


def test_rows_that_come_one_by_one_stay_stable():
    """The learning rate falls where a later row is larger."""
    model, rates = GDRegressor(alpha=0.0), []
    for i in [*range(60)] * 3:
        model.partial_fit(X[i : i + 1], Y[i : i + 1])
        rates.append(model.lr_)
    assert rates == sorted(rates, reverse=True)
    squares = np.square(X).sum(axis=1) + 1
    assert rates[-1] == pytest.approx(1 / squares.max(), rel=1e-3)
    assert model.score(X, Y) > 0.5


@both
def test_warm_start_goes_on_from_the_coefficients(estimator, y):
    model = estimator(max_iter=3, tol=None, lr=0.02, warm_start=True)
    for _ in range(4):
        model.fit(X, y)
    cold = estimator(max_iter=12, tol=None, lr=0.02).fit(X, y)
    np.testing.assert_array_equal(model.coef_, cold.coef_)
    np.testing.assert_array_equal(model.intercept_, cold.intercept_)
    model.set_params(warm_start=False).fit(X, y)
    np.testing.assert_array_equal(
        model.coef_, estimator(max_iter=3, tol=None, lr=0.02).fit(X, y).coef_
    )


def test_a_warm_start_at_the_optimum_is_done_at_once():
    model = GDRegressor(alpha=0.1, tol=1e-8, max_iter=20_000, warm_start=True).fit(X, Y)
    assert model.n_iter_ > 10
    assert model.fit(X, Y).n_iter_ == 1


def test_what_resumes_must_fit():
    model = GDRegressor(warm_start=True, tol=None, max_iter=1).fit(X, Y)
    with pytest.raises(ValueError, match="X has 3 features, but GDRegressor is expecting 4"):
        model.fit(X[:, :3], Y)
    with pytest.raises(ValueError, match=r"y must have one number per row, .*, got the shape \(60"):
        model.partial_fit(X, np.column_stack([Y, Y]))
    model = GDRegressor(tol=None, max_iter=1).fit(X, np.column_stack([Y, Y]))
    with pytest.raises(ValueError, match="y must have the 2 columns of the fit before, got 3"):
        model.partial_fit(X, np.column_stack([Y, Y, Y]))


# The learning rate


def exact_curvature(x, weights=None, intercept=True):
    ones = np.column_stack([x, np.ones(len(x))]) if intercept else x
    s = np.ones(len(x)) if weights is None else relative_weights(weights, x)
    return np.linalg.eigvalsh((s * ones.T) @ ones / len(x))[-1]


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("x", [X, load_breast_cancer().data[:60]], ids=["mild", "badly scaled"])
def test_the_power_iteration_is_close_from_below(x, weights, intercept):
    exact = exact_curvature(x, weights, intercept)
    s = None if weights is None else relative_weights(weights, x)
    assert 0.95 * exact < _largest_eigenvalue(x, s, intercept) <= exact * (1 + 1e-12)


@pytest.mark.parametrize(
    ("model", "y", "factor"),
    [
        (GDRegressor(), Y, 1.0),
        (GDRegressor("huber"), Y, 1.0),
        (GDClassifier(), SIGNS, 0.25),
        (GDClassifier(), KINDS, 0.5),
        (GDClassifier("squared_hinge"), SIGNS, 2.0),
    ],
)
@pytest.mark.parametrize(
    ("rule", "options"),
    [("sgd", {}), ("sgd", {"momentum": 0.9}), ("nesterov", {}), ("windowsag", {"window": 4})],
)
def test_auto_is_half_the_stable_rate(model, y, factor, rule, options):
    model = clone(model).set_params(rule=rule, rule_options=options, max_iter=5, tol=None)
    curvature = factor * exact_curvature(X) + model.alpha
    expected = 0.5 * max_stable_lr(rule, curvature, **options)
    assert expected * (1 - 1e-9) <= model.fit(X, y).lr_ < 1.05 * expected


def test_auto_of_single_rows_is_that_of_the_largest():
    model = GDRegressor(batch_size=1, max_iter=1, tol=None, alpha=0.5).fit(X, Y)
    largest = (np.square(X).sum(axis=1) + 1).max()
    assert model.lr_ == pytest.approx(1 / (largest + 0.5), rel=1e-12)
    weighted = clone(model).fit(X, Y, WEIGHTS).lr_
    s = relative_weights(WEIGHTS, X)
    assert weighted == pytest.approx(
        1 / ((s * (np.square(X).sum(axis=1) + 1)).max() + 0.5), rel=1e-12
    )
    momentum = clone(model).set_params(rule_options={"momentum": 0.9}).fit(X, Y).lr_
    assert momentum == pytest.approx(0.1 * model.lr_, rel=1e-12)


def test_auto_of_rules_without_a_bound_is_their_default():
    for rule, lr in (("adam", 1e-3), ("rmsprop", 1e-2), (gs.AdamW, 1e-3), (gs.Adagrad, 1e-2)):
        assert GDRegressor(rule=rule, max_iter=1, tol=None).fit(X, Y).lr_ == lr


def test_auto_of_data_without_curvature():
    model = GDRegressor(alpha=0.0, fit_intercept=False).fit(np.zeros((3, 2)), np.ones(3))
    np.testing.assert_array_equal(model.coef_, 0)


@pytest.mark.parametrize("x", [1e200 * X, (1e25 * X).astype(np.float32)], ids=["f8", "f4"])
def test_auto_of_data_whose_squares_overflow(x):
    with pytest.raises(ValueError, match=r"X must have squares that float\d\d can hold, got \d"):
        GDRegressor().fit(x, Y)


# Why it stops


def norm_in_units_of_columns(coef, intercept, y, alpha):
    """Each slope of a centred column over the root of its curvature, and that of the intercept."""
    slopes = X @ coef + intercept - y
    of_columns = (X - X.mean(axis=0)).T @ slopes / 60 + alpha * coef
    return math.hypot(*(of_columns / np.sqrt(X.var(axis=0) + alpha)), slopes.mean())


def test_tolerance_is_relative_to_the_gradient_of_the_best_constant():
    for factor in (1.0, 1e6, 1e-6):
        y = factor * Y
        start = norm_in_units_of_columns(np.zeros(4), y.mean(), y, 0.0)
        model = GDRegressor(tol=1e-3, alpha=0.0).fit(X, y)
        assert model.history_.reason.startswith("callback: converged asked to stop after epoch")
        epochs = model.n_iter_
        norms = []  # of the gradients at which the last two steps were taken
        for before in (1, 2):
            model = GDRegressor(tol=None, alpha=0.0, max_iter=epochs - before).fit(X, y)
            norms.append(norm_in_units_of_columns(model.coef_, model.intercept_, y, 0.0))
        assert norms[0] <= 1e-3 * start < norms[1]


def test_tolerance_of_batches_looks_at_all_rows():
    """The norms of single rows stay large where the targets have noise."""
    lr = gs.schedules.inverse_time(0.02, 0.001)
    options = {"batch_size": 5, "alpha": 0.1, "tol": 0.02, "max_iter": 5000, "random_state": 0}
    model = GDRegressor(lr=lr, **options).fit(X, Y)
    assert model.history_.stop == "callback"
    norm = norm_in_units_of_columns(model.coef_, model.intercept_, Y, 0.1)
    start = norm_in_units_of_columns(np.zeros(4), Y.mean(), Y, 0.1)
    assert norm <= 0.02 * start
    slopes = X @ model.coef_ + model.intercept_ - Y
    norm = math.hypot(*(X.T @ slopes / 60 + 0.1 * model.coef_), slopes.mean())
    assert norm < min(model.history_["grad_norm"])


def test_no_convergence_is_told_with_numbers_and_advice():
    with pytest.warns(ConvergenceWarning) as caught:
        GDRegressor(max_iter=2).fit(X, Y)
    words = str(caught[0].message)
    assert words.startswith("GDRegressor has not converged: after 2 epochs the norm of the ")
    one = GDRegressor(max_iter=1, tol=None).fit(X, Y)  # where the last gradient was formed
    norm, start = (
        norm_in_units_of_columns(*point, Y, 1e-4)
        for point in ((one.coef_, one.intercept_), (np.zeros(4), Y.mean()))
    )
    assert f" is {norm / start:.3g} times that of the best model without features" in words
    assert "above tol=0.001" in words
    assert "StandardScaler" in words
    assert "raise max_iter" in words
    assert caught[0].filename == __file__
    with pytest.warns(ConvergenceWarning, match="Batches are noisy: lower lr by a schedule"):
        GDRegressor(max_iter=2, batch_size=7).fit(X, Y)
    GDRegressor(max_iter=2, tol=None).fit(X, Y)
    GDRegressor(max_iter=2).partial_fit(X, Y)


def test_divergence_is_told_and_leaves_finite_coefficients():
    with pytest.warns(ConvergenceWarning, match=r"non-finite .* Lower lr, or scale the features"):
        model = GDRegressor(lr=100.0).fit(X, Y)
    assert model.history_.stop == "non-finite"
    assert np.isfinite(model.coef_).all()


def test_patience_and_rows_held_out():
    options = {"patience": 3, "tol": None, "random_state": 0, "batch_size": 5}
    model = GDClassifier(**options, validation_fraction=0.25, max_iter=500).fit(
        X, KINDS, WEIGHTS + 1
    )
    assert model.history_.stop == "patience"
    values = model.history_["val_loss"]
    assert len(values) == model.n_iter_ < 500
    assert min(values) == values[-4]
    GDRegressor(**options, max_iter=500).fit(X, Y)
    model = GDRegressor(validation_fraction=0.5, max_iter=4, tol=None, random_state=0).fit(X, Y)
    assert len(model.history_["val_loss"]) == 4


# What goes in


def test_dtypes():
    for dtype, kept in ((np.float32, np.float32), (np.float16, np.float64), (int, np.float64)):
        for model, y in ((GDRegressor(), Y), (GDClassifier(), SIGNS)):
            model.set_params(max_iter=5, tol=None).fit((10 * X).astype(dtype), y)
            assert model.coef_.dtype == model.intercept_.dtype == kept
    model.fit(X.astype(np.float32), SIGNS)
    assert model.decision_function(X.astype(np.float32)).dtype == np.float32
    assert model.partial_fit(X, SIGNS).coef_.dtype == np.float32


def test_nothing_that_is_given_is_written_to():
    given = [X.copy(), Y.copy(), WEIGHTS.astype(float)]
    GDRegressor(batch_size=7, max_iter=3, tol=None).fit(*given)
    for array, before in zip(given, (X, Y, WEIGHTS), strict=True):
        np.testing.assert_array_equal(array, before)


def unfitted_or_as_before(model):
    return {name: id(value) for name, value in vars(model).items()}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "squared"}, ValueError, "loss must be one of 'least_squares', 'huber', got 'sq"),
        ({"loss": None}, ValueError, "loss must be one of .*, got None"),
        ({"loss": "huber", "delta": 0.0}, ValueError, "delta must be above 0"),
        ({"rule": "sgdd"}, ValueError, "rule must be one of sgd, .*, got 'sgdd'"),
        ({"rule": 3}, TypeError, "rule must be an optimizer class or its name, got 3"),
        ({"rule": gs.SAG}, ValueError, "rule must step by the gradient alone, got SAG, .* row of"),
        ({"rule": "sparseadam"}, ValueError, "got SparseAdam, whose step needs the indices of"),
        ({"rule_options": 3}, TypeError, "rule_options must be a dict or None, got 3"),
        ({"rule_options": {"lr": 1.0}}, ValueError, "rule_options must not hold 'lr', got"),
        ({"rule_options": {"beta": 1.0}}, TypeError, r"SGD\(\) has no argument 'beta'"),
        ({"rule_options": {"momentum": 1.0}}, ValueError, "momentum must be below 1 .*, got 1"),
        ({"lr": "fast"}, ValueError, "lr must be a number, a schedule or \"auto\", got 'fast'"),
        ({"lr": -0.1}, ValueError, r"lr must be .*, got -0\.1"),
        ({"lr": None}, TypeError, "lr must be a number, got None"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": "all"}, ValueError, "batch_size must be .* \"full\", got 'all'"),
        ({"alpha": -1.0}, ValueError, r"alpha must be at least 0 and finite, got -1\.0"),
        ({"alpha": "1"}, TypeError, "alpha must be a number, got '1'"),
        ({"fit_intercept": 1}, TypeError, "fit_intercept must be True or False, got 1"),
        ({"max_iter": 0}, ValueError, "max_iter must be at least 1, got 0"),
        ({"max_iter": 1.5}, TypeError, r"max_iter must be a whole number, got 1\.5"),
        ({"tol": -1.0}, ValueError, r"tol must be at least 0 and finite, got -1\.0"),
        ({"patience": 0}, ValueError, "patience must be at least 1, got 0"),
        (
            {"validation_fraction": 1.0},
            ValueError,
            r"validation_fraction must be below 1, got 1\.0",
        ),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
        ({"warm_start": "no"}, TypeError, "warm_start must be True or False, got 'no'"),
        ({"random_state": "x"}, ValueError, "'x' cannot be used to seed"),
    ],
)
def test_bad_arguments_change_nothing(options, error, message):
    fitted = GDRegressor(max_iter=2, tol=None).fit(X, Y)
    for model in (fitted, GDRegressor()):
        model.set_params(**options)
        before = unfitted_or_as_before(model)
        with pytest.raises(error, match=message):
            model.fit(X[:, :2], Y)
        assert unfitted_or_as_before(model) == before


@both
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(60), r"sample_weight must be at least 0, got -1\.0"),
        (np.zeros(60), "eights? must .* (non-zero|above zero)"),
        (np.ones(59), r"sample_weight.shape == \(59,\), expected \(60,\)"),
        (np.full(60, np.nan), "sample_weight contains NaN"),
    ],
)
def test_bad_weights_change_nothing(estimator, y, weights, message):
    model = estimator()
    before = unfitted_or_as_before(model)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, weights)
    assert unfitted_or_as_before(model) == before


def test_huge_weights_are_relative():
    model = GDRegressor(max_iter=5, tol=None).fit(X, Y, np.full(60, 1e308))
    np.testing.assert_array_equal(model.coef_, GDRegressor(max_iter=5, tol=None).fit(X, Y).coef_)


def test_bad_targets():
    with pytest.raises(ValueError, match=r"y must fit in float32, the dtype of X, got 1e\+300"):
        GDRegressor().fit(X.astype(np.float32), np.full(60, 1e300))
    with pytest.raises(ValueError, match="y must hold at least two classes, got one class: a"):
        GDClassifier().fit(X, ["a"] * 60)
    with pytest.raises(ValueError, match="y must hold at least two classes, got one class: yes"):
        GDClassifier().fit(X, SIGNS, SIGNS == "yes")
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        GDClassifier().fit(X, Y)
    with pytest.warns(DataConversionWarning):
        GDClassifier(tol=None, max_iter=1).fit(X, SIGNS[:, None])
    for model in (GDRegressor(), GDClassifier()):
        with pytest.raises(NotFittedError):
            model.predict(X)


class InterruptionError(Exception):
    pass


def interrupting(lr, at, step):
    if step == at:
        raise InterruptionError
    return lr


def test_an_interruption_changes_nothing():
    """Not even the order of rows to come."""
    steps = functools.partial(interrupting, 0.01, 25)
    model = GDRegressor(lr=steps, batch_size=7, rule="adam", random_state=0).partial_fit(X, Y)
    model.partial_fit(X, Y)
    before = unfitted_or_as_before(model), model.coef_.copy(), model._state["state"]["m"][0].copy()
    with pytest.raises(InterruptionError):
        model.partial_fit(X, Y)
    assert unfitted_or_as_before(model) == before[0]
    np.testing.assert_array_equal(model.coef_, before[1])
    np.testing.assert_array_equal(model._state["state"]["m"][0], before[2])
    model.set_params(lr=functools.partial(interrupting, 0.01, -1)).partial_fit(X, Y)
    unbroken = GDRegressor(lr=lambda step: 0.01, batch_size=7, rule="adam", random_state=0)
    for _ in range(3):
        unbroken.partial_fit(X, Y)
    np.testing.assert_array_equal(model.coef_, unbroken.coef_)


# Among scikit-learn's things


def test_pickling_and_cloning():
    options = {"rule": gs.Adam, "lr": gs.schedules.cosine(0.1, total_steps=100), "batch_size": 9}
    model = GDClassifier(**options, max_iter=5, tol=None, random_state=0).fit(X, KINDS)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    assert copy.history_ == model.history_
    again = clone(model)
    assert not hasattr(again, "coef_")
    np.testing.assert_array_equal(again.fit(X, KINDS).coef_, model.coef_)
    pickle.loads(pickle.dumps(GDClassifier("hinge", max_iter=2).fit(X, KINDS))).predict(X)


def test_grid_search_and_pipeline():
    x, y = load_breast_cancer(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), GDClassifier(tol=None, max_iter=100)),
        {"gdclassifier__rule": ["sgd", gs.Nesterov], "gdclassifier__alpha": [1e-3, 10.0]},
        cv=3,
    ).fit(x, y)
    assert search.best_params_["gdclassifier__alpha"] == 1e-3
    assert search.best_score_ > 0.96


def test_probabilities_belong_to_the_logistic_loss():
    assert hasattr(GDClassifier(), "predict_proba")
    for loss in ("hinge", "squared_hinge"):
        model = GDClassifier(loss)
        assert not hasattr(model, "predict_proba")
        with pytest.raises(AttributeError, match="has no attribute 'predict_log_proba'"):
            model.predict_log_proba(X)


def test_probabilities_far_from_a_half():
    model = GDClassifier(alpha=0.1, tol=None).fit([[-1.0], [1.0]], [0, 1])
    far = np.array([[1e4], [-1e4]])
    np.testing.assert_array_equal(model.predict_proba(far), [[0, 1], [1, 0]])
    z = model.decision_function(far)
    np.testing.assert_allclose(model.predict_log_proba(far), [[-z[0], 0], [0, z[1]]], rtol=1e-12)


def test_without_scikit_learn_it_says_what_to_install():
    words = python(
        "import sys; sys.modules['sklearn'] = None\n"
        "import gradstep\n"
        "try:\n    import gradstep.linear\n"
        "except ImportError as error:\n    print(error)"
    )
    expected = 'gradstep.linear needs scikit-learn 1.6 or later: pip install "gradstep[linear]"\n'
    assert words == expected


def test_a_bar_is_shown_only_on_a_terminal(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        GDRegressor(verbose=True, max_iter=3).fit(X, Y)
    assert capsys.readouterr() == ("", "")
