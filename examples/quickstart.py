"""Your own gradient, one line per step: least squares on a line."""

import numpy as np

import gradstep as gs

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, 1000)
y = 3.5 * x + 4 + rng.normal(0, 0.5, 1000)

params = {"slope": np.zeros(1), "intercept": np.zeros(1)}
opt = gs.Adam(params, lr=gs.schedules.cosine(0.1, total_steps=500))
for _ in range(500):
    error = params["slope"] * x + params["intercept"] - y
    grads = {"slope": np.array([error @ x / 1000]), "intercept": np.array([error.mean()])}
    opt.step(grads)

print(f"y = {params['slope'][0]:.2f} x + {params['intercept'][0]:.2f}")
