"""What all linear models share: coefficients set by hand, class weights, rows in any layout."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from gradstep.linear import GDClassifier, GDRegressor, SAGClassifier, SAGRegressor

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)) * [1.0, 2.0, 0.5, 1.0] + [0.0, 1.0, 0.0, 3.0]
Y = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 1.5 + RNG.normal(size=60)
KINDS = np.array(["a", "b", "c"])[np.digitize(Y + RNG.normal(size=60), np.quantile(Y, [0.2, 0.7]))]
WEIGHTS = RNG.integers(0, 4, size=60)
SAG = {"alpha": 0.1, "tol": 1e-10, "max_iter": 5000, "random_state": 0}
GD = {"alpha": 0.1, "tol": 1e-8, "max_iter": 50_000, "random_state": 0}
GD |= {"rule": "momentum", "rule_options": {"momentum": 0.8}}
MODELS = [(SAGRegressor, SAG, Y), (SAGClassifier, SAG, KINDS)]
MODELS += [(GDRegressor, GD, Y), (GDClassifier, GD, KINDS)]
every_model = pytest.mark.parametrize(
    ("estimator", "options", "y"), MODELS, ids=lambda x: getattr(x, "__name__", "")
)
every_classifier = pytest.mark.parametrize(
    ("estimator", "options"), [(SAGClassifier, SAG), (GDClassifier, GD)]
)


# Coefficients set by hand


def private(model):
    return [name for name in vars(model) if name.startswith("_")]


@every_model
def test_partial_fit_resumes_from_coefficients_set_by_hand(estimator, options, y):
    fitted = estimator(**options).fit(X, y)
    names = ["coef_", "intercept_", *(["classes_"] if hasattr(fitted, "classes_") else [])]
    for dtype in (np.float64, np.float32):
        by_hand = estimator(**options)
        for name in names:
            value = np.asarray(getattr(fitted, name))
            setattr(by_hand, name, value if name == "classes_" else value.astype(dtype))
        by_hand.partial_fit(X, y)  # an epoch from the optimum, which ends beside it
        assert by_hand.coef_.dtype == dtype
        np.testing.assert_allclose(by_hand.coef_, fitted.coef_, rtol=0.3, atol=0.1)
        assert by_hand.n_features_in_ == 4
        by_hand.partial_fit(X, y).predict(X)
    # Without the states that an older version did not keep it is a model set by hand.
    older = estimator(**options).fit(X, y)
    for name in private(older):
        delattr(older, name)
    by_hand = estimator(**options)
    for name in names:
        setattr(by_hand, name, getattr(fitted, name))
    np.testing.assert_array_equal(older.partial_fit(X, y).coef_, by_hand.partial_fit(X, y).coef_)


@every_model
def test_what_else_is_missing_starts_anew(estimator, options, y):
    """A missing intercept is 0, and classes come with the first call, or with the targets."""
    fitted = estimator(**options).fit(X, y)
    classes = {"classes": np.unique(y)} if hasattr(fitted, "classes_") else {}
    model, expected = estimator(**options), estimator(**options)
    model.coef_ = fitted.coef_.tolist()  # as JSON has them
    expected.coef_, expected.intercept_ = fitted.coef_, 0 * fitted.intercept_
    model.partial_fit(X, y, **classes)
    expected.partial_fit(X, y, **classes)
    np.testing.assert_array_equal(model.coef_, expected.coef_)
    assert abs(model.coef_ - fitted.coef_).max() < abs(fitted.coef_).max()  # not begun at 0
    warm = estimator(**options, warm_start=True)
    warm.coef_ = np.rint(fitted.coef_).astype(int)
    warm.fit(X, y)
    np.testing.assert_allclose(warm.coef_, fitted.coef_, rtol=1e-5, atol=1e-6)


@every_model
def test_coefficients_that_do_not_fit_are_named(estimator, options, y):
    fitted = estimator(**options).fit(X, y)
    classes = {"classes": np.unique(y)} if hasattr(fitted, "classes_") else {}
    wide, nan = np.zeros((*fitted.coef_.shape[:-1], 7)), np.full_like(fitted.coef_, np.nan)
    for changes, message in (
        ({"coef_": wide}, r"coef_ must have the shape \(.*4,?\) .* got \(.*7,?\)"),
        ({"coef_": nan}, "coef_ must be finite, got nan"),
        ({"coef_": fitted.coef_, "intercept_": np.zeros(9)}, "intercept_ must have .* got .9,."),
        ({"coef_": fitted.coef_, "intercept_": np.inf}, "intercept_ must be finite, got inf"),
    ):
        model = estimator(**options)
        vars(model).update(changes)
        before = dict(vars(model))
        with pytest.raises(ValueError, match=message):
            model.partial_fit(X, y, **classes)
        assert vars(model) == before


# Class weights


def balanced(y, weights):
    """By hand: the classes count alike, and the weights keep their sum."""
    total = {c: weights[y == c].sum() for c in np.unique(y)}
    return {c: weights.sum() / (len(total) * total[c]) for c in total}


@every_classifier
def test_class_weights_are_those_of_logistic_regression(estimator, options):
    two = np.where(KINDS == "c", "b", KINDS)
    for y, weights in ((KINDS, WEIGHTS), (two, None), (two, WEIGHTS)):
        for class_weight in ({"a": 5.0, "b": 0.3}, "balanced"):
            model = estimator(class_weight=class_weight, **options).fit(X, y, weights)
            s = np.ones(60) if weights is None else weights / weights.mean()
            by_class = balanced(y, s) if class_weight == "balanced" else class_weight
            peer = LogisticRegression(
                C=1 / (0.1 * 60), class_weight=by_class, tol=1e-12, max_iter=10_000
            ).fit(X, y, s)
            np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-4, atol=1e-5)
            centred = peer.intercept_ - peer.intercept_.mean()
            np.testing.assert_allclose(
                model.intercept_ - model.intercept_.mean(), centred, rtol=1e-4, atol=1e-4
            )
    counts = compute_class_weight("balanced", classes=np.unique(KINDS), y=KINDS)
    np.testing.assert_allclose(list(balanced(KINDS, np.ones(60)).values()), counts)


@every_classifier
def test_class_weights_in_partial_fits(estimator, options):
    """Rows of one class alone count as much: a rate is for all calls alike."""
    options = options | {"alpha": 0.0, "lr": 1e-3}
    options |= (
        {"rule": "sgd", "rule_options": None} if estimator is GDClassifier else {"variant": "svrg"}
    )
    steps = []
    for weight in (1.0, 3.0):
        model = estimator(class_weight={"b": weight}, **options)
        model.partial_fit(X[:1], ["a"], classes=["a", "b"])
        before = model.coef_.copy()
        steps.append(model.partial_fit(X[1:2], ["b"]).coef_ - before)
    np.testing.assert_allclose(steps[1], 3 * steps[0], rtol=1e-9)
    with pytest.raises(ValueError, match="class_weight must be a dict or None in partial_fit"):
        estimator(class_weight="balanced").partial_fit(X, KINDS, classes=np.unique(KINDS))


@every_classifier
def test_class_weights_that_make_no_sense(estimator, options):
    for class_weight, message in (
        ("even", "class_weight must be a dict, \"balanced\" or None, got 'even'"),
        (3, 'class_weight must be a dict, "balanced" or None, got 3'),
        ({"a": -1.0}, "class_weight must hold numbers of at least 0, got {'a': -1.0}"),
        ({"a": np.nan}, "class_weight must hold numbers of at least 0, got {'a': nan}"),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "class_weight must leave rows with a weight above 0"),
        ({"d": 1.0}, "class"),
    ):
        model = estimator(class_weight=class_weight)
        with pytest.raises(ValueError, match=message):
            model.fit(X, KINDS)
        assert vars(model) == vars(estimator(class_weight=class_weight))


def test_held_out_rows_keep_class_weights():
    options = {"tol": None, "max_iter": 3, "random_state": 0, "validation_fraction": 0.25}
    plain, triple = (
        GDClassifier(lr=lr, alpha=alpha, class_weight=dict.fromkeys("abc", weight), **options)
        for lr, alpha, weight in ((0.3, 0.1, 1.0), (0.1, 0.3, 3.0))
    )
    np.testing.assert_allclose(triple.fit(X, KINDS).coef_, plain.fit(X, KINDS).coef_, rtol=1e-12)


# Rows in any layout


def unaligned(array):
    """As a field of a packed structure is, without padding before it."""
    packed = np.zeros(len(array), [("flag", "i1"), ("value", array.dtype, array.shape[1:])])
    packed["value"] = array
    assert not packed["value"].flags.aligned
    return packed["value"]


@every_model
def test_unaligned_rows_are_taken(estimator, options, y):
    for dtype in (np.float64, np.float32):
        x = X.astype(dtype)
        expected = estimator(**options | {"tol": 1e-3}).fit(x, y, 0 * Y + 1)
        targets = unaligned(y) if y is Y else y
        weights = unaligned(0 * Y + 1)
        model = estimator(**options | {"tol": 1e-3}).fit(unaligned(x), targets, weights)
        np.testing.assert_array_equal(model.coef_, expected.coef_)
        np.testing.assert_array_equal(model.predict(unaligned(x)), expected.predict(x))
        model.partial_fit(unaligned(x), targets)
    if "SAG" in estimator.__name__:
        rows = sparse.csr_matrix(X)
        expected = estimator(**options).fit(rows, y)
        rows.data, rows.indices = unaligned(rows.data), unaligned(rows.indices)
        np.testing.assert_array_equal(estimator(**options).fit(rows, y).coef_, expected.coef_)


@pytest.mark.parametrize("estimator", [SAGClassifier, GDClassifier])
def test_classes_set_by_hand_are_kept_by_partial_fit(estimator):
    """Of a model that is told its classes before its first rows, which do not have all of them."""
    x = np.random.default_rng(0).normal(size=(30, 2))
    model = estimator(random_state=0)
    model.classes_ = np.array([0, 1, 2])
    model.partial_fit(x, (x[:, 0] > 0).astype(int), classes=[0, 1, 2])
    assert model.classes_.tolist() == [0, 1, 2]
    assert model.coef_.shape == (3, 2)
