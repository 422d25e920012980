"""Losses against central differences, PyTorch, closed forms and what must not happen at z = 1e4."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import gradstep as gs
from gradstep import losses

M, K = 7, 4
SIGNS = np.array([1, -1, -1, 1, 1, -1, 1])
CLASSES = np.array([0, 3, 1, 1, 2, 0, 3])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


#: Each loss with predictions and targets; the scores of the hinges stay away from their kinks.
CASES = {
    "least_squares": (losses.least_squares, normal(M), normal(M, seed=1)),
    "least_squares, k outputs": (losses.least_squares, normal(M, K), normal(M, K, seed=1)),
    "huber": (losses.huber, normal(M), 2 * normal(M, seed=1)),
    "huber, k outputs": (losses.huber, normal(M, K), 2 * normal(M, K, seed=1)),
    "huber, delta": (partial(losses.huber, delta=0.3), normal(M), normal(M, seed=1)),
    "logistic": (losses.logistic, normal(M), SIGNS),
    "softmax": (losses.softmax, normal(M, K), CLASSES),
    "hinge": (losses.hinge, normal(M), SIGNS),
    "squared_hinge": (losses.squared_hinge, normal(M), SIGNS),
}
cases = pytest.mark.parametrize(("loss", "z", "y"), CASES.values(), ids=CASES.keys())
BINARY = [losses.logistic, losses.hinge, losses.squared_hinge]


def central_differences(value, at: np.ndarray, h: float = 1e-5) -> np.ndarray:
    slopes = np.empty_like(at)
    for i in np.ndindex(at.shape):
        low, high = at.copy(), at.copy()
        low[i] -= h
        high[i] += h
        slopes[i] = (value(high) - value(low)) / (2 * h)
    return slopes


@cases
def test_derivative_is_the_slope(loss, z, y):
    _, dz = loss(z, y)
    np.testing.assert_allclose(
        dz, central_differences(lambda z: loss(z, y)[0], z), rtol=1e-7, atol=1e-9
    )


@cases
def test_is_the_mean_over_the_rows(loss, z, y):
    value, dz = loss(z, y)
    rows = [loss(z[i : i + 1], y[i : i + 1]) for i in range(M)]
    assert value == pytest.approx(np.mean([row for row, _ in rows]), rel=1e-14)
    np.testing.assert_allclose(dz, np.concatenate([d for _, d in rows]) / M, rtol=1e-14)


@cases
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types(loss, z, y, dtype):
    z = z.astype(dtype)
    before = z.copy()
    value, dz = loss(z, y)
    assert type(value) is float
    assert dz.dtype == dtype
    assert dz.shape == z.shape
    assert dz.flags.c_contiguous
    np.testing.assert_array_equal(z, before)
    double, dz64 = loss(z.astype(np.float64), y)
    assert value == pytest.approx(double, rel=1e-6)
    np.testing.assert_allclose(dz, dz64, rtol=1e-5, atol=1e-7)


@cases
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_weight_of_2_is_a_row_twice(loss, z, y, dtype):
    """And one of 0 a row left out: over all rows, the sums are the same."""
    weights = np.array([2, 1, 0, 1, 3, 0, 1])
    z = z.astype(dtype)
    value, dz = loss(z, y, weights)
    repeated = np.repeat(np.arange(M), weights)
    expected, expected_dz = loss(z[repeated], y[repeated])
    rtol = 1e-6 if dtype == np.float32 else 1e-14
    assert value * M == pytest.approx(expected * len(repeated), rel=rtol)
    sums = np.zeros_like(z)
    np.add.at(sums, repeated, expected_dz * len(repeated))
    np.testing.assert_allclose(dz * M, sums, rtol=rtol)
    assert dz.dtype == dtype
    assert dz.flags.c_contiguous


@cases
def test_weights_of_1_change_no_bit(loss, z, y):
    value, dz = loss(z, y, np.ones(M))
    expected, expected_dz = loss(z, y)
    assert value == expected
    np.testing.assert_array_equal(dz, expected_dz)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones(3), ValueError, r"sample_weight must have the shape \(7,\), got \(3,\)"),
        (np.ones((M, 1)), ValueError, r"sample_weight must have the shape \(7,\), got \(7, 1\)"),
        (-np.ones(M), ValueError, r"sample_weight must be at least 0 and finite, got -1\.0"),
        (np.full(M, np.nan), ValueError, "sample_weight must be at least 0 and finite, got nan"),
        (np.full(M, np.inf), ValueError, "sample_weight must be at least 0 and finite, got inf"),
        (["1"] * M, TypeError, "sample_weight must hold real numbers, got dtype <U1"),
    ],
)
@cases
def test_bad_weights(loss, z, y, weights, error, message):
    with pytest.raises(error, match=message):
        loss(z, y, weights)


def test_weights_of_a_linear_model():
    x, y, weights = normal(M, 3), normal(M, seed=1), np.array([2.0, 1, 0, 1, 3, 0, 0])
    w = normal(3, seed=2)
    value, grad = losses.linear(losses.least_squares)(w, x, y, weights)
    r = x @ w - y
    assert value == pytest.approx(np.sum(weights * r * r) / (2 * M), rel=1e-14)
    np.testing.assert_allclose(grad, x.T @ (weights * r) / M, rtol=1e-13)


@pytest.mark.parametrize("loss", BINARY)
def test_k_labels_are_k_problems(loss):
    z, y = normal(M, K), np.where(normal(M, K, seed=1) > 0, 1, -1)
    value, dz = loss(z, y)
    columns = [loss(z[:, j].copy(), y[:, j]) for j in range(K)]
    assert value == pytest.approx(sum(one for one, _ in columns), rel=1e-14)
    np.testing.assert_array_equal(dz, np.column_stack([d for _, d in columns]))


@pytest.mark.parametrize("name", losses.CURVATURES)
def test_no_slope_grows_faster_than_the_curvature(name):
    """The bound holds everywhere, and is reached somewhere."""
    loss, h = getattr(losses, name), 1e-4
    if name == "softmax":
        # Along the difference of two classes of equal score, which the others do not spoil.
        at, step, y = np.array([[0.0, 0.0, -50.0]]), np.array([[h, -h, 0.0]]) / np.sqrt(2), [0]
    else:
        at, step, y = np.array([0.0]), np.array([h]), [1]
    ratios = []
    for shift in np.linspace(-3, 3, 61):
        z = at + shift * step / h
        slopes = loss(z + step, y)[1] - loss(z - step, y)[1]
        ratios.append(np.linalg.norm(slopes) / np.linalg.norm(2 * step))
    assert max(ratios) == pytest.approx(losses.CURVATURES[name], rel=1e-6)


def torch_losses():
    functional = pytest.importorskip("torch").nn.functional
    return {
        "least_squares": lambda z, y: functional.mse_loss(z, y) / 2,
        "least_squares, k outputs": lambda z, y: functional.mse_loss(z, y) * K / 2,
        "huber": functional.huber_loss,
        "huber, k outputs": lambda z, y: functional.huber_loss(z, y) * K,
        "huber, delta": lambda z, y: functional.huber_loss(z, y, delta=0.3),
        "logistic": functional.soft_margin_loss,
        "softmax": functional.cross_entropy,
        "hinge": lambda z, y: (1 - y * z).clamp(min=0).mean(),
        "squared_hinge": lambda z, y: (1 - y * z).clamp(min=0).square().mean(),
    }


@pytest.mark.torch
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name, scale):
    torch = pytest.importorskip("torch")
    loss, z, y = CASES[name]
    z_torch = torch.tensor(scale * z, requires_grad=True)
    expected = torch_losses()[name](z_torch, torch.tensor(y))
    expected.backward()
    value, dz = loss(scale * z, y)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(dz, z_torch.grad.numpy(), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "value", "slopes"),
    [
        (losses.logistic, 5e3, [0, 0.25, -0.25, 0]),
        (losses.hinge, 5000.5, [0, 0.25, -0.25, 0]),
        (losses.squared_hinge, 10001.0**2 / 2, [0, 5000.5, -5000.5, 0]),
    ],
)
def test_extreme_scores_of_labels(loss, value, slopes, dtype):
    got, dz = loss(np.array([1e4, 1e4, -1e4, -1e4], dtype), [1, -1, 1, -1])
    assert got == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(dz, slopes, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_scores_of_classes(dtype):
    value, dz = losses.softmax(np.array([[1e4, -1e4], [1e4, -1e4]], dtype), [0, 1])
    assert value == 1e4
    np.testing.assert_array_equal(dz, [[0, 0], [0.5, -0.5]])


def test_small_losses_keep_their_digits():
    value, _ = losses.logistic(np.array([40.0]), [1])
    assert value == pytest.approx(np.exp(-40.0), rel=1e-14, abs=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", [losses.least_squares, losses.huber])
def test_extreme_predictions(loss, dtype):
    value, dz = loss(np.array([1e4, -1e4], dtype), [0, 0])
    assert np.isfinite(value)
    assert dz[0] == -dz[1] > 0


def test_the_hinge_has_no_slope_at_its_kink():
    _, slopes = losses.hinge(np.array([1.0, -1.0]), [1, -1])
    assert slopes.tolist() == [0.0, 0.0]


def test_huber_is_least_squares_inside_delta():
    z, y = normal(M), normal(M, seed=1)
    value, dz = losses.huber(z, y, delta=100)
    expected, expected_dz = losses.least_squares(z, y)
    assert value == pytest.approx(expected, rel=1e-15)
    np.testing.assert_array_equal(dz, expected_dz)


@pytest.mark.parametrize("loss", BINARY)
@pytest.mark.parametrize(
    "labels",
    [(SIGNS + 1) // 2, SIGNS > 0, SIGNS.astype(np.float32), list(map(float, SIGNS))],
    ids=["0 and 1", "bool", "float32", "list"],
)
def test_labels_in_either_convention(loss, labels):
    value, dz = loss(normal(M), SIGNS)
    other, other_dz = loss(normal(M), labels)
    assert value == other
    np.testing.assert_array_equal(dz, other_dz)


def test_softmax_of_two_classes_is_logistic_of_the_difference():
    z = normal(M, 2)
    value, dz = losses.softmax(z, (SIGNS + 1) // 2)
    expected, expected_dz = losses.logistic(z[:, 1] - z[:, 0], SIGNS)
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(dz[:, 1], expected_dz, rtol=1e-13)
    np.testing.assert_allclose(dz.sum(axis=1), 0, atol=1e-16)


@pytest.mark.parametrize("loss", BINARY)
@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([0, 1, 2], r"\[0, 1, 2\]"),
        ([-1, 0, 1], r"\[-1, 0, 1\]"),
        ([-1, 0, 0], r"\[-1, 0\]"),
        ([1.0, 0.5, 0.0], r"\[0\.0, 0\.5, 1\.0\]"),
        ([1.0, np.nan, -1.0], r"nan\]"),
    ],
)
def test_other_labels_are_refused(loss, labels, got):
    with pytest.raises(ValueError, match=rf"^y must hold the labels .*, got .*{got}$"):
        loss(np.zeros(3), labels)


@pytest.mark.parametrize(
    ("loss", "z", "y", "error", "message"),
    [
        (losses.softmax, np.zeros((2, 3)), [0, 3], ValueError, "classes from 0 to 2, got 3"),
        (losses.softmax, np.zeros((2, 3)), [-1, 0], ValueError, "classes from 0 to 2, got -1"),
        (losses.softmax, np.zeros((2, 3)), [0.0, 1.0], TypeError, "whole numbers, got dtype fl"),
        (losses.softmax, np.zeros(2), [0, 1], ValueError, r"z must .* \(m, k\), got \(2,\)"),
        (losses.softmax, np.zeros((2, 3)), [0], ValueError, r"y must .* \(2,\) .*, got \(1,\)"),
        (losses.softmax, np.zeros((2, 0)), [0, 0], ValueError, r"z must not be empty.*\(2, 0\)"),
        (losses.logistic, np.zeros((2, 1)), [0, 1], ValueError, r"y must .* \(2, 1\) .*\(2,\)"),
        (losses.logistic, np.zeros((2, 1, 1)), [0, 1], ValueError, r"z must .*, got \(2, 1, 1\)"),
        (losses.hinge, np.zeros(2), [0], ValueError, r"y must .* \(2,\) .*, got \(1,\)"),
        (losses.squared_hinge, np.zeros(0), [], ValueError, r"z must not be empty.*\(0,\)"),
        (losses.hinge, np.zeros(1), ["1"], TypeError, "y must hold real numbers, got dtype <U1"),
        (losses.least_squares, np.zeros(()), 0.0, ValueError, r"z must .*, got \(\)"),
        (losses.least_squares, np.zeros(2), [[0], [1]], ValueError, r"y must .*, got \(2, 1\)"),
        (losses.least_squares, np.zeros(2), [0j, 0], TypeError, "real numbers, got dtype complex"),
        (losses.least_squares, [0.0], [0.0], TypeError, "z must be a NumPy array, got list"),
        (losses.huber, np.zeros(2, int), [0, 0], TypeError, "z must be float32 .*, got int64"),
        (losses.huber, np.zeros(2, "f2"), [0, 0], TypeError, "z must be float32 .*, got float16"),
    ],
)
def test_bad_arguments(loss, z, y, error, message):
    with pytest.raises(error, match=message):
        loss(z, y)


@pytest.mark.parametrize(
    ("delta", "error", "message"),
    [
        (0, ValueError, "delta must be above 0 in float64, got 0"),
        (-1.0, ValueError, "delta must be at least 0 and finite, got -1.0"),
        (np.inf, ValueError, "delta must be .* finite, got inf"),
        ("1", TypeError, "delta must be a number, got '1'"),
    ],
)
def test_bad_delta(delta, error, message):
    with pytest.raises(error, match=message):
        losses.huber(np.zeros(1), [0.0], delta=delta)


X = normal(M, 3, seed=2)


def test_least_squares_has_its_minimum_at_the_normal_equations():
    y = normal(M, seed=3)
    w = np.linalg.solve(X.T @ X, X.T @ y)
    value, grad = losses.linear(losses.least_squares)(w, X, y)
    assert value == pytest.approx(np.sum((X @ w - y) ** 2) / (2 * M), rel=1e-14)
    np.testing.assert_allclose(grad, 0, atol=1e-15)


def test_least_squares_gradient_in_closed_form():
    w, y = normal(3), normal(M, seed=3)
    _, grad = losses.linear(losses.least_squares)(w, X, y)
    np.testing.assert_array_equal(grad, X.T @ ((X @ w - y) / M))


STRUCTURES = {
    "w": (losses.logistic, SIGNS, normal(3)),
    "[w, b]": (losses.logistic, SIGNS, [normal(3), normal(1)]),
    "(w, b), b a scalar": (losses.logistic, SIGNS, (normal(3), np.array(0.3))),
    "dict": (losses.hinge, SIGNS, {"weight": normal(3), "bias": normal(1)}),
    "dict, bias first": (losses.logistic, SIGNS, {"bias": normal(1), "weight": normal(3)}),
    "W": (losses.softmax, CLASSES, normal(3, K)),
    "[W, b]": (losses.softmax, CLASSES, [normal(3, K), normal(K)]),
    "dict, k outputs": (losses.softmax, CLASSES, {"weight": normal(3, K), "bias": normal(K)}),
}
structures = pytest.mark.parametrize(
    ("loss", "y", "params"), STRUCTURES.values(), ids=STRUCTURES.keys()
)


def leaves(tree):
    if isinstance(tree, np.ndarray):
        return [tree]
    return [tree["weight"], tree["bias"]] if isinstance(tree, dict) else list(tree)


def cast(tree, dtype):
    if isinstance(tree, dict):
        return {key: array.astype(dtype) for key, array in tree.items()}
    if isinstance(tree, np.ndarray):
        return tree.astype(dtype)
    return type(tree)(array.astype(dtype) for array in tree)


@structures
def test_linear_gradients_are_the_slopes(loss, y, params):
    f = losses.linear(loss)
    params = cast(params, np.float64)
    _, grads = f(params, X, y)
    assert type(grads) is type(params)
    for array, grad in zip(leaves(params), leaves(grads), strict=True):
        start = array.copy()

        def value(at, array=array):
            array[...] = at
            return f(params, X, y)[0]

        np.testing.assert_allclose(
            grad, central_differences(value, start), rtol=1e-6, atol=1e-9, strict=True
        )
        array[...] = start


@structures
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_linear_gradients_fit_the_optimizer(loss, y, params, dtype, order):
    params = cast(params, dtype)
    before = [array.copy() for array in leaves(params)]
    _, grads = losses.linear(loss)(params, X.astype(dtype, order=order), y)
    gs.SGD(params, lr=0.5).step(grads)
    for array, old, grad in zip(leaves(params), before, leaves(grads), strict=True):
        assert grad.flags.c_contiguous
        np.testing.assert_array_equal(array, old - dtype(0.5) * grad, strict=True)


def test_linear_takes_any_loss():
    def absolute(z, y):
        return float(np.abs(z - y).mean()), np.sign(z - y) / len(z)

    value, grad = losses.linear(absolute)(np.zeros(3), X, np.ones(M))
    assert value == 1
    np.testing.assert_array_equal(grad, X.T @ np.full(M, -1 / M))


W, B = np.zeros(3), np.zeros(1)


@pytest.mark.parametrize(
    ("params", "x", "error", "message"),
    [
        (W, X.astype("f4"), TypeError, "x must be float64 like the weight, got float32"),
        (W.astype("f4"), X, TypeError, "x must be float32 like the weight, got float64"),
        ([W, B.astype("f4")], X, TypeError, "bias must be float64 like the weight, got float32"),
        (W.astype(int), X, TypeError, "weight must be float32 or float64, got int64"),
        ([[0.0] * 3, B], X, TypeError, "weight must be a NumPy array, got list"),
        (W, X.tolist(), TypeError, "x must be a NumPy array, got list"),
        (0.5, X, TypeError, "params must be an array, .*, got float"),
        ([W], X, ValueError, "params must hold a weight and a bias, got 1 items"),
        ({"w": W}, X, ValueError, r"keys 'weight' and 'bias', got \['w'\]"),
        (W, X[:, :2], ValueError, r"x must have the shape \(m, 3\), got \(7, 2\)"),
        (W, X[0], ValueError, r"x must have the shape \(m, 3\), got \(3,\)"),
        (np.zeros((3, 1, 1)), X, ValueError, r"weight must have .*, got \(3, 1, 1\)"),
        (np.zeros(()), X, ValueError, r"weight must have .*, got \(\)"),
        ([W, np.zeros(7)], X, ValueError, r"bias must have the shape \(1,\) or \(\), got \(7,\)"),
        ([np.zeros((3, 4)), B], X, ValueError, r"bias must have the shape \(4,\), got \(1,\)"),
        (W, X[:0], ValueError, r"z must not be empty, got the shape \(0,\)"),
    ],
)
def test_linear_refuses(params, x, error, message):
    with pytest.raises(error, match=message):
        losses.linear(losses.least_squares)(params, x, np.zeros(len(x)))


def test_linear_refuses_what_is_no_loss():
    with pytest.raises(TypeError, match=r"loss must be a function .*, got 'hinge'"):
        losses.linear("hinge")
