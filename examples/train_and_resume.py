"""Softmax regression on digits with mini-batches, stopped half-way and resumed to the same bits."""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import gradstep as gs

x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
train, held_out = (x[:1500], y[:1500]), (x[1500:], y[1500:])
loss_and_grad = gs.losses.linear(gs.losses.softmax)


def new_optimizer() -> gs.Adam:
    params = {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}
    return gs.Adam(params, lr=1e-2)


def run(opt: gs.Adam, epochs: int, rng: np.random.Generator) -> gs.History:
    return gs.train(opt, loss_and_grad, train, epochs=epochs, validation=held_out, seed=rng)


unbroken = new_optimizer()
history = run(unbroken, 20, np.random.default_rng(0))

with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(folder) / "digits.npz"
    rng = np.random.default_rng(0)
    first = new_optimizer()
    run(first, 10, rng)
    first.save(checkpoint)  # parameters, states, step count, hyper-parameters

    resumed = new_optimizer()
    resumed.load(checkpoint)
    run(resumed, 10, rng)

weight, bias = unbroken.params["weight"], unbroken.params["bias"]
accuracy = np.mean((held_out[0] @ weight + bias).argmax(axis=1) == held_out[1])
print(f"held-out accuracy {accuracy:.1%}, stopped by {history.reason}")
print("resumed run has the same bits:", np.array_equal(resumed.params["weight"], weight))
