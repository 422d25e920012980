"""Batches and train, against hand-written loops that must give the same bits."""

from __future__ import annotations

import math
import pickle
import sys

import numpy as np
import pytest

import gradstep as gs
from gradstep import SAG, SAGA, SVRG, SparseAdam, losses
from gradstep.training.history import Epoch, History
from gradstep.training.loop import train
from gradstep.training.minibatches import batches
from oracle import NO_ARRAY

ROWS = 23
X = np.random.default_rng(1).normal(size=(ROWS, 4))
Y = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 0.1
DATA = X, Y
linear_regression = losses.linear(losses.least_squares)


def adam(w: np.ndarray | None = None) -> gs.Adam:
    """An optimizer whose steps need its states and `t`."""
    return gs.Adam(np.zeros(4) if w is None else w, lr=0.05)


def bits(opt: gs.Optimizer) -> list[bytes]:
    return [*(array.tobytes() for array in opt._arrays()), bytes(opt.t)]


# Batches


@pytest.mark.parametrize("batch_size", [1, 7, 22, 23, 24])
def test_each_epoch_holds_each_row_once_in_an_order_of_its_own(batch_size):
    epochs = batches(X, Y, np.arange(ROWS), batch_size=batch_size, seed=3)
    orders = []
    for _ in range(2):
        epoch = list(epochs)
        assert len(epoch) == len(epochs) == math.ceil(ROWS / batch_size)
        assert {len(rows) for _, _, rows in epoch[:-1]} <= {batch_size}
        for x, y, rows in epoch:
            np.testing.assert_array_equal(x, X[rows])
            np.testing.assert_array_equal(y, Y[rows])
        orders.append(np.concatenate([rows for _, _, rows in epoch]))
        assert sorted(orders[-1]) == list(range(ROWS))
    assert list(orders[0]) != list(orders[1])
    assert list(orders[0]) != sorted(orders[0])


def orders(seed, epochs=2):
    feed = batches(np.arange(ROWS), batch_size=5, seed=seed)
    return [np.concatenate([rows for (rows,) in feed]).tolist() for _ in range(epochs)]


def test_the_seed_decides_the_orders():
    assert orders(5) == orders(5)
    assert orders(5) != orders(6)
    assert orders(None) != orders(None)
    rng = np.random.default_rng(5)
    assert orders(rng, 1) + orders(rng, 1) == orders(5)


def test_unshuffled_batches_are_views_in_order():
    epoch = list(batches(X, Y, batch_size=5, shuffle=False))
    assert all(np.shares_memory(x, X) and np.shares_memory(y, Y) for x, y in epoch)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in epoch]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in epoch]), Y)


def test_full_batches_are_the_arrays_themselves():
    epochs = batches(X, Y, batch_size="full", seed=0)
    for _ in range(2):
        ((x, y),) = epochs
        assert x is X
        assert y is Y
    assert len(epochs) == 1


def test_drop_last():
    epoch = list(batches(X, batch_size=5, drop_last=True))
    assert [len(x) for (x,) in epoch] == [5, 5, 5, 5]
    assert len(batches(X, batch_size=ROWS, drop_last=True)) == 1
    assert len(batches(X, batch_size="full", drop_last=True)) == 1


def test_a_single_array_comes_in_tuples():
    assert [type(batch) for batch in batches(X, batch_size=20)] == [tuple, tuple]


@pytest.mark.parametrize("order", ["F", "strided", "big endian"])
def test_rows_of_any_memory_layout(order):
    x = {"F": np.asfortranarray(X), "strided": np.repeat(X, 2, axis=1)[:, ::2]}.get(order)
    x = X.astype(">f8") if x is None else x
    for got, rows in batches(x, np.arange(ROWS), batch_size=4, seed=0):
        np.testing.assert_array_equal(got, X[rows])


@pytest.mark.parametrize(
    ("arrays", "options", "error", "message"),
    [
        ((), {}, ValueError, "arrays must hold at least one array, got none"),
        ((X, Y[:9]), {}, ValueError, r"arrays\[1\] must have the 23 rows of arrays\[0\], got 9"),
        ((X[:0], Y[:0]), {}, ValueError, "arrays must have at least one row, got 0"),
        ((X, np.array(1.0)), {}, ValueError, r"arrays\[1\] must have rows, got the shape \(\)"),
        ((X, list(Y)), {}, TypeError, r"arrays\[1\] must be a NumPy array, got list"),
        ((X,), {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ((X,), {"batch_size": "all"}, ValueError, r'batch_size must be .* "full", got \'all\''),
        ((X,), {"batch_size": 2.5}, TypeError, r"batch_size must be a whole number, got 2\.5"),
        ((X,), {"batch_size": None}, TypeError, "batch_size must be a whole number, got None"),
        ((X,), {"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
        ((X,), {"drop_last": "no"}, TypeError, "drop_last must be True or False, got 'no'"),
        ((X,), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ((X,), {"seed": "x"}, TypeError, "seed must be a whole number, got 'x'"),
        ((X,), {"batch_size": 24, "drop_last": True}, ValueError, "drop_last=True leaves nothing"),
    ],
)
def test_bad_batches(arrays, options, error, message):
    with pytest.raises(error, match=message):
        batches(*arrays, **options)


# Training


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100, "full"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_a_loop_by_hand(batch_size, dtype):
    x, y = X.astype(dtype), Y.astype(dtype)
    opt = gs.Adam(np.zeros(4, dtype), lr=lambda t: 0.1 / (1 + t))
    history = train(
        opt, linear_regression, (x, y), batch_size=batch_size, epochs=3, seed=7, validation=(x, y)
    )

    hand = gs.Adam(np.zeros(4, dtype), lr=lambda t: 0.1 / (1 + t))
    rng = np.random.default_rng(7)
    expected = {"loss": [], "val_loss": [], "lr": [], "grad_norm": []}
    for _ in range(3):
        order = np.arange(ROWS) if batch_size == "full" else rng.permutation(ROWS)
        size = ROWS if batch_size == "full" else batch_size
        measured = []
        for i in range(0, ROWS, size):
            rows = order[i : i + size]
            value, grad = linear_regression(hand.params, x[rows], y[rows])
            measured.append((value, np.linalg.norm(grad), len(rows)))
            expected_lr = hand.current_lr
            hand.step(grad)
        values, norms, lengths = zip(*measured, strict=True)
        expected["loss"].append(np.average(values, weights=lengths))
        expected["val_loss"].append(linear_regression(hand.params, x, y)[0])
        expected["lr"].append(expected_lr)
        expected["grad_norm"].append(np.mean(norms))

    assert bits(opt) == bits(hand)
    assert history["val_loss"] == expected["val_loss"]
    assert history["lr"] == expected["lr"]
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-14)
    np.testing.assert_allclose(history["grad_norm"], expected["grad_norm"], rtol=1e-6)
    assert history.steps == opt.t
    assert sorted(history["seconds"]) == history["seconds"]
    assert history["seconds"][0] >= 0


def test_one_batch_gives_its_very_loss():
    opt, hand = adam(), adam()
    history = train(opt, linear_regression, DATA, batch_size="full", epochs=5)
    for loss in history["loss"]:
        value, grad = linear_regression(hand.params, *DATA)
        hand.step(grad)
        assert loss == value


@pytest.mark.parametrize(
    "params",
    [[np.zeros(4), np.zeros(1)], {"weight": np.zeros(4), "bias": np.zeros(1)}],
    ids=["list", "dict"],
)
def test_structures(params):
    history = train(gs.SGD(params, lr=0.1), linear_regression, DATA, epochs=600, seed=0)
    weight, bias = params.values() if isinstance(params, dict) else params
    np.testing.assert_allclose(weight, [1, -2, 0.5, 3], atol=1e-6)
    np.testing.assert_allclose(bias, 0.1, atol=1e-6)
    assert history["grad_norm"][-1] < 1e-5


def test_the_gradient_norm_is_over_all_arrays():
    def f(params, x):
        return 0.0, [np.array([3.0]), np.array([[4.0, 12.0]])]

    opt = gs.SGD([np.zeros(1), np.zeros((1, 2))], lr=1.0)
    assert train(opt, f, (X,), epochs=2)["grad_norm"] == [13.0, 13.0]


def test_clipping():
    """Each step's gradient is clipped, the history has its norm before that."""
    x, y = np.ones((1, 1)), np.full(1, 100.0)
    f = losses.linear(losses.least_squares)
    w = np.zeros(1)
    history = train(gs.SGD(w, lr=1.0), f, (x, y), epochs=3, clip_norm=2.0, clip_value=1.5)
    assert w == 4.5
    assert history["grad_norm"] == [100.0, 98.5, 97.0]
    for options, error in (
        ({"clip_norm": -1.0}, ValueError),
        ({"clip_norm": 0.0}, ValueError),
        ({"clip_value": "x"}, TypeError),
    ):
        with pytest.raises(error, match=f"{next(iter(options))} must be"):
            train(gs.SGD(w, lr=1.0), f, (x, y), epochs=3, **options)
    assert w == 4.5


def test_resumed_equals_unbroken(tmp_path):
    unbroken = adam()
    train(unbroken, linear_regression, DATA, batch_size=5, epochs=6, seed=2)

    rng = np.random.default_rng(2)
    first = adam()
    train(first, linear_regression, DATA, batch_size=5, epochs=2, seed=rng)
    second = adam(first.params.copy())
    second.load_state_dict(first.state_dict())
    rng = pickle.loads(pickle.dumps(rng))
    train(second, linear_regression, DATA, batch_size=5, epochs=4, seed=rng)
    assert bits(second) == bits(unbroken)


def test_history_without_validation():
    history = train(adam(), linear_regression, DATA, epochs=2)
    assert list(history) == ["loss", "lr", "grad_norm", "seconds"]
    assert history.epochs == 2
    assert repr(history) == "<History of 2 epochs, 2 steps; epochs: 2 done>"


def test_history_can_be_pickled():
    history = train(adam(), linear_regression, DATA, epochs=2)
    copy = pickle.loads(pickle.dumps(history))
    assert type(copy) is History
    assert copy == history
    assert (copy.stop, copy.reason, copy.steps) == ("epochs", "epochs: 2 done", 2)


# Reasons to stop


@pytest.mark.parametrize(
    ("options", "stop", "reason", "epochs", "steps"),
    [
        ({"epochs": 3}, "epochs", "epochs: 3 done", 3, 15),
        ({"epochs": 0}, "epochs", "epochs: 0 done", 0, 0),
        ({"max_steps": 0}, "max_steps", "max_steps: 0 taken", 0, 0),
        ({"max_steps": 3}, "max_steps", "max_steps: 3 taken", 1, 3),
        ({"max_steps": 10}, "max_steps", "max_steps: 10 taken", 2, 10),
        ({"max_steps": 13}, "max_steps", "max_steps: 13 taken", 3, 13),
        ({"max_steps": 13, "epochs": 2}, "epochs", "epochs: 2 done", 2, 10),
        ({"max_steps": 7, "epochs": 2}, "max_steps", "max_steps: 7 taken", 2, 7),
        ({"max_steps": 10, "epochs": 2}, "epochs", "epochs: 2 done", 2, 10),
    ],
)
def test_epochs_and_max_steps(options, stop, reason, epochs, steps):
    opt = adam()
    history = train(opt, linear_regression, DATA, batch_size=5, validation=DATA, **options)
    assert (history.stop, history.reason) == (stop, reason)
    assert (history.epochs, history.steps, opt.t) == (epochs, steps, steps)
    assert {len(values) for values in history.values()} == {epochs}


def test_a_partial_epoch_is_measured_over_its_own_steps():
    whole = train(adam(), linear_regression, DATA, batch_size=5, epochs=1, shuffle=False)
    part = train(adam(), linear_regression, DATA, batch_size=5, max_steps=2, shuffle=False)
    first = train(
        adam(), linear_regression, (X[:10], Y[:10]), batch_size=5, epochs=1, shuffle=False
    )
    assert part["loss"] == first["loss"] != whole["loss"]


def test_a_schedule_is_asked_once_per_step():
    asked = []
    opt = gs.ScheduleFreeSGD(np.zeros(4), lr=lambda t: asked.append(t) or 0.1 / (1 + t))
    history = train(opt, linear_regression, DATA, batch_size=5, epochs=2)
    assert asked == list(range(history.steps))
    assert history["lr"] == [0.1 / history.steps * 2, 0.1 / history.steps]


def test_the_first_of_several_reasons_counts():
    """All of them come with the second epoch."""
    reasons = {
        "callback": {"callbacks": [lambda epoch: epoch.epoch == 2]},
        "tolerance": {"tol": 4.0},
        "patience": {"patience": 1},
        "epochs": {"epochs": 2},
        "max_steps": {"max_steps": 2},
    }
    while reasons:
        norms = iter([5.0, 4.0])
        given = {name: value for options in reasons.values() for name, value in options.items()}
        history = train(
            gs.SGD(np.zeros(1), lr=0.1),
            lambda w, x, norms=norms: (1.0, np.array([next(norms)])),
            (np.ones(1),),
            **{"max_steps": 9, **given},
        )
        assert (history.stop, history.epochs) == (next(iter(reasons)), 2)
        del reasons[history.stop]


def test_one_array_of_several_overflows_in_the_last_step():
    params = [np.ones(3), np.full(2, 1e308), np.ones(3)]
    history = train(
        gs.SGD(params, lr=1.0),
        lambda params, x: (1.0, [np.ones(3), np.full(2, -1e308), np.ones(3)]),
        (np.ones(1),),
        epochs=1,
    )
    assert history.stop == "non-finite"
    assert "non-finite parameters after step 1" in history.reason
    assert [array.max() for array in params] == [1.0, 1e308, 1.0]


def test_a_norm_that_equals_the_tolerance_is_small_enough():
    def loss_and_grad(w, x):
        return 1.0, np.array([3.0, 4.0])

    for tol, epochs in ((5.0, 1), (math.nextafter(5.0, 0), 2)):
        opt = gs.SGD(np.zeros(2), lr=0.1)
        assert train(opt, loss_and_grad, (np.ones(1),), epochs=2, tol=tol).epochs == epochs


def test_tolerance():
    opt = gs.SGD(np.zeros(4), lr=0.5)
    history = train(opt, linear_regression, DATA, batch_size="full", epochs=10_000, tol=1e-4)
    *before, last = history["grad_norm"]
    assert last <= 1e-4 < min(before)
    assert history.stop == "tolerance"
    expected = f"tolerance: gradient norm {last:.3g} <= tol 0.0001 after epoch {history.epochs}"
    assert history.reason == expected


def losses_of(*values):
    """A function with the given losses, one per call, and a gradient of 1."""
    left = iter(values)
    return lambda w, *batch: (next(left), np.ones_like(w))


def test_patience_on_the_loss():
    f = losses_of(3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.0, 1.2, 0.5)
    history = train(adam(), f, DATA, batch_size="full", epochs=9, patience=3)
    assert history.stop == "patience"
    assert history.reason == "patience: 3 epochs without a better loss 1 of epoch 5"
    assert history["loss"] == [3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.0, 1.2]


def test_patience_on_the_validation_loss():
    # Calls alternate between the batch and the validation.
    f = losses_of(9.0, 2.0, 8.0, math.nan, 7.0, 3.0, 6.0, 1.0)
    history = train(adam(), f, DATA, batch_size="full", epochs=4, patience=2, validation=DATA)
    assert history.reason == "patience: 2 epochs without a better val_loss 2 of epoch 1"
    assert history["loss"] == [9.0, 8.0, 7.0]
    np.testing.assert_array_equal(history["val_loss"], [2.0, math.nan, 3.0])


def test_patience_of_an_optimizer_that_climbs():
    opt = gs.SGD(np.zeros(4), lr=0.1, maximize=True)
    history = train(opt, losses_of(1, 2, 3, 2, 2), DATA, batch_size="full", epochs=5, patience=2)
    assert history.reason == "patience: 2 epochs without a better loss 3 of epoch 3"


def test_callbacks_see_every_epoch_and_stop_the_run():
    seen: list[Epoch] = []

    def enough(epoch: Epoch) -> bool:
        return epoch.epoch == 3

    opt = adam()
    history = train(
        opt,
        linear_regression,
        DATA,
        batch_size=5,
        epochs=9,
        validation=DATA,
        callbacks=[enough, seen.append],
    )
    assert history.stop == "callback"
    assert history.reason == "callback: enough asked to stop after epoch 3"
    assert [epoch.steps for epoch in seen] == [5, 10, 15]
    assert all(epoch.opt is opt for epoch in seen)
    for name, values in history.items():
        assert [getattr(epoch, name) for epoch in seen] == values
    with pytest.raises(AttributeError):
        seen[0].loss = 0.0


def test_a_callback_without_a_name():
    class Stop:
        def __call__(self, epoch):
            return np.bool_(True)

    history = train(adam(), linear_regression, DATA, epochs=9, callbacks=(c for c in [Stop()]))
    assert history.reason == "callback: Stop asked to stop after epoch 1"


# Numbers that are not finite


def with_fault(at_step, loss=None, grad=None):
    """Linear regression whose loss or first gradient entry goes wrong at one call."""
    calls = iter(range(1, 10_000))

    def f(w, x, y):
        value, g = linear_regression(w, x, y)
        if next(calls) == at_step:
            value = value if loss is None else loss
            g[0] = g[0] if grad is None else grad
        return value, g

    return f


faults = pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"loss": math.nan}, "loss nan"),
        ({"loss": math.inf}, "loss inf"),
        ({"loss": -math.inf}, "loss -inf"),
        ({"loss": np.float32("nan")}, "loss nan"),
        ({"grad": math.nan}, "gradient norm nan"),
        ({"grad": -math.inf}, "gradient norm inf"),
    ],
)


@faults
@pytest.mark.parametrize(("at_step", "good"), [(12, 10), (15, 10), (2, 0)])
def test_non_finite_goes_back_to_the_first_point_of_the_epoch(fault, words, at_step, good):
    opt, expected = adam(), adam()
    history = train(opt, with_fault(at_step, **fault), DATA, batch_size=5, epochs=9, shuffle=False)
    train(expected, linear_regression, DATA, batch_size=5, max_steps=good, shuffle=False)
    assert bits(opt) == bits(expected)
    assert history.stop == "non-finite"
    value, _ = linear_regression(expected.params, X[:5], Y[:5])
    epoch = good // 5 + 1
    assert history.reason == (
        f"non-finite {words} in epoch {epoch}, step {at_step}: "
        f"parameters restored to those after step {good}, of loss {value:.6g}"
    )
    assert (history.epochs, history.steps) == (epoch - 1, good)


@pytest.mark.parametrize("fault", [{"loss": math.nan}, {"grad": math.nan}], ids=["loss", "grad"])
def test_non_finite_at_the_first_step_of_an_epoch(fault):
    # With a finite loss this step's own point is good; without, the last is an epoch ago.
    good = 10 if "grad" in fault else 5
    opt, expected = adam(), adam()
    history = train(opt, with_fault(11, **fault), DATA, batch_size=5, epochs=9, shuffle=False)
    train(expected, linear_regression, DATA, batch_size=5, max_steps=good, shuffle=False)
    assert bits(opt) == bits(expected)
    assert (history.epochs, history.steps) == (2, good)


@faults
def test_non_finite_from_the_start_writes_nothing(fault, words):
    opt = adam()
    before = bits(opt)
    history = train(opt, with_fault(1, **fault), DATA, batch_size=5, epochs=9)
    assert bits(opt) == before
    assert history.reason.startswith(f"non-finite {words} in epoch 1, step 1: ")
    assert history.epochs == history.steps == 0
    if "loss" in fault:
        assert history.reason.endswith(": nothing was written")


def test_a_run_that_diverges_ends_at_finite_parameters():
    opt = gs.SGD(np.zeros(4), lr=1e3)
    with np.errstate(over="ignore", invalid="ignore"):
        history = train(opt, linear_regression, DATA, batch_size="full", epochs=1000)
    assert history.stop == "non-finite"
    value, _ = linear_regression(opt.params, *DATA)
    assert value == history["loss"][-1]


def test_the_states_of_a_ring_are_restored_too():
    def opt():
        return gs.WindowSAG(np.zeros(4), lr=0.01, window=3)

    broken, expected = opt(), opt()
    train(broken, with_fault(13, loss=math.nan), DATA, batch_size=5, epochs=9, shuffle=False)
    train(expected, linear_regression, DATA, batch_size=5, epochs=2, shuffle=False)
    assert bits(broken) == bits(expected)


@pytest.mark.parametrize("size", [1e30, 1e-22, 1e-30])
def test_a_float32_gradient_whose_squares_leave_the_range_is_finite(size):
    def f(w, x):
        return 1.0, np.full(4, size, np.float32)

    history = train(gs.SGD(np.zeros(4, np.float32), lr=1e-6), f, (X,), epochs=2)
    assert history.stop == "epochs"
    np.testing.assert_allclose(history["grad_norm"], 2 * size, rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "norm"),
    [
        ([0.0, 0.0], 0.0),
        ([], 0.0),
        ([3.0, 4.0], 5.0),
        ([3e200, 4e200], 5e200),
        ([3e-200, 4e-200], 5e-200),
        ([1.0, -math.inf], math.inf),
        ([1e300, math.nan], math.nan),
        ([0.0, math.nan], math.nan),
    ],
)
def test_norm(values, norm):
    split = [np.array(values[:1]), np.array(values[1:])]
    for grads in split, split[::-1]:
        opt = gs.SGD([np.zeros_like(grad) for grad in grads])
        assert opt._norm(grads) == pytest.approx(norm, rel=1e-15, abs=0, nan_ok=True)


# What raises


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_leaves_the_steps_before_it(error):
    calls = iter(range(1, 100))

    def f(w, x, y):
        if next(calls) == 8:
            raise error
        return linear_regression(w, x, y)

    opt, expected = adam(), adam()
    with pytest.raises(error):
        train(opt, f, DATA, batch_size=5, epochs=9, shuffle=False)
    train(expected, linear_regression, DATA, batch_size=5, max_steps=7, shuffle=False)
    assert bits(opt) == bits(expected)


def test_errors_of_validation_pass_through():
    with pytest.raises(ValueError, match=r"x must have the shape \(m, 4\), got \(23, 3\)"):
        train(adam(), linear_regression, DATA, epochs=1, validation=(X[:, :3], Y))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((1.0, np.ones(3)), "grads must have the shape of params"),
        ((1.0, np.ones(4, np.longdouble)), "grads must have dtype float32, float64, bfloat16 or"),
        ((1.0, np.ones(4, object)), "grads must have dtype .* or float16, got object"),
        (
            (1.0, None),
            f"grads {NO_ARRAY}NoneType",
        ),
        ((1.0, "a"), f"grads {NO_ARRAY}str"),
        ((None, np.ones(4)), "the loss that loss_and_grad returns must be a number, got None"),
        ((1j, np.ones(4)), "the loss that loss_and_grad returns must be a number, got 1j"),
        (1.0, "loss_and_grad must return a loss and gradients, got 1.0"),
        (None, "loss_and_grad must return a loss and gradients, got None"),
    ],
)
def test_results_that_do_not_fit_are_named(result, message):
    opt = adam()
    before = bits(opt)
    with pytest.raises((TypeError, ValueError), match=message):
        train(opt, lambda w, x, y: result, DATA, epochs=1)
    assert bits(opt) == before


def test_loss_in_an_array_of_one_number():
    f = linear_regression
    history = train(adam(), lambda *a: (np.array([f(*a)[0]]), f(*a)[1]), DATA, epochs=2, seed=0)
    assert history["loss"] == train(adam(), f, DATA, epochs=2, seed=0)["loss"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": None}, ValueError, "epochs or max_steps must be given, got neither"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0, got -1"),
        ({"epochs": 1.5}, TypeError, r"epochs must be a whole number, got 1\.5"),
        ({"max_steps": -1}, ValueError, "max_steps must be at least 0, got -1"),
        ({"max_steps": "9"}, TypeError, "max_steps must be a whole number, got '9'"),
        ({"tol": -1e-3}, ValueError, r"tol must be at least 0 and finite, got -0\.001"),
        ({"tol": math.nan}, ValueError, "tol must be at least 0 and finite, got nan"),
        ({"patience": 0}, ValueError, "patience must be at least 1, got 0"),
        ({"patience": True}, TypeError, "patience must be a whole number, got True"),
        ({"batch_size": "all"}, ValueError, "batch_size must be .* \"full\", got 'all'"),
        ({"shuffle": None}, TypeError, "shuffle must be True or False, got None"),
        ({"seed": 0.5}, TypeError, r"seed must be a whole number, got 0\.5"),
        ({"progress": 1}, TypeError, "progress must be True or False, got 1"),
        ({"validation": X}, TypeError, "validation must be a tuple of arrays, got ndarray"),
        ({"callbacks": [print, 3]}, TypeError, r"callbacks\[1\] must be a function, got 3"),
        ({"data": X}, TypeError, "data must be a tuple of arrays, got ndarray"),
        ({"data": ()}, ValueError, "arrays must hold at least one array, got none"),
        ({"data": (X, Y[:5])}, ValueError, r"arrays\[1\] must have the 23 rows"),
        ({"loss_and_grad": 1.0}, TypeError, r"loss_and_grad must be a function, got 1\.0"),
        ({"opt": "adam"}, TypeError, "opt must be a gradstep optimizer, got str"),
        ({"opt": SAG(np.zeros(4), 0.1, rows=2)}, TypeError, "opt must not be SAG"),
        ({"opt": SAGA(np.zeros(4), 0.1, rows=2)}, TypeError, "opt must not be SAGA, whose step"),
        ({"opt": SparseAdam(np.zeros(4))}, TypeError, "SparseAdam, whose step needs the indices"),
        ({"opt": SVRG(np.zeros(4), 0.1, np.copy)}, TypeError, "opt must not be SVRG, whose step"),
        ({"callbacks": print}, TypeError, "callbacks must be a list of functions, got <built-in"),
        ({"max_steps": 10**20}, ValueError, r"max_steps must be at most 2\*\*53"),
    ],
)
def test_bad_arguments(options, error, message):
    opt = adam()
    before = bits(opt)
    arguments = {"opt": opt, "loss_and_grad": linear_regression, "data": DATA, "epochs": 1}
    with pytest.raises(error, match=message):
        train(**{**arguments, **options})
    assert bits(opt) == before


# Progress


class Terminal:
    """A stderr that says it is one."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch):
    pytest.importorskip("tqdm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(adam(), linear_regression, DATA, batch_size=5, epochs=2)
    assert "10/10" in terminal.text
    assert "loss" in terminal.text


@pytest.mark.parametrize("how", ["progress=False", "no terminal", "no tqdm"])
def test_no_progress(how, monkeypatch, capsys):
    terminal = Terminal()
    if how != "no terminal":
        monkeypatch.setattr(sys, "stderr", terminal)
    if how == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm", None)
    train(adam(), linear_regression, DATA, epochs=2, progress=how != "progress=False")
    assert terminal.text == ""
    assert capsys.readouterr().err == ""
