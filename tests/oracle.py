"""What the tests share: rules, levels and dtypes, hostile numbers, the comparison of bits."""

from __future__ import annotations

import functools
import inspect
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, reference
from gradstep._engine import checks as check

RULES = {rule.name: rule for rule in _core.rules()}
#: Rules that differ from another one in constants alone, and have its loops.
SHARING = {
    "adamw",
    "adamw_amsgrad",
    "nadam_decoupled",
    "radam_decoupled",
    "adopt_decoupled",
    "sparse_adagrad",
}
DTYPES = (np.float32, np.float64)
LEVELS = [
    pytest.param(
        level, marks=pytest.mark.skipif(not runs, reason=f"this processor does not run {level}")
    )
    for level, runs in _core.isa_levels().items()
]
THREADS = (1, 2, 3, 7)
SPAN = _core.elements_per_thread
SMALL_SIZES = (0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000)
LARGE_SIZES = (2 * SPAN - 1, 2 * SPAN, 2 * SPAN + 1, 7 * SPAN + 13)

#: Values for hyper-parameters, none at its default; others are 0.9.
HYPER = {
    "lr": 0.0123,
    "momentum": 0.87,
    "dampening": 0.3,
    "lr_decay": 0.01,
    "eps": 1e-7,
    "alpha": 0.93,
    "beta": 0.83,
    "beta1": 0.88,
    "beta2": 0.97,
    "bias_correction": True,
    "seen": 3.0,
    "row_weight": 1.7,
    "weight_seen": 4.6,
    "rows_seen": 3.0,
    "l1": 0.3,
    "momentum_decay": 0.01,
    "mu_product": 0.8,
    "rho": 0.85,
    "beta3": 0.995,
    "alpha_warmup": 3.0,
    "beta3_warmup": 3.0,
    "etaminus": 0.4,
    "etaplus": 1.3,
    "step_min": 1e-3,
    "step_max": 0.014,
    "lambd": 0.02,
    "t0": 1.0,
    "l2": 0.2,
    "trust_coefficient": 0.02,
    "beta2_decay": -0.7,
    "eps1": 1e-6,
    "eps2": 0.01,
    "d": 0.5,
    "nesterov": True,
    "share": 0.3,
}


def full_gradient(params):
    """Of some quadratic function, in the structure of the parameters."""
    if isinstance(params, np.ndarray):
        return (params - 0.5) * params.dtype.type(0.3)
    if isinstance(params, dict):
        return {key: full_gradient(param) for key, param in params.items()}
    return [full_gradient(param) for param in params]


def as_fits(cls, array):
    """An array, as a matrix where the class takes nothing else."""
    return np.atleast_2d(array) if issubclass(cls, gs.Muon) else array


def gradient(w, t):
    """Of a badly scaled quadratic with a ripple, so that moments of all sizes occur."""
    scale = 10.0 ** np.linspace(-2, 1, w.size)
    return 0.1 * scale * (w - 1) + np.sin(3 * w + t)


#: What a message says of an object that shows no memory; its class follows.
NO_ARRAY = "must be a numpy.ndarray, or expose a CPU buffer or DLPack, got "

#: What classes need beside the parameters. `every` is not needed, but then a call is.
NEEDED = {"lr": 0.1, "window": 3, "rows": 4, "full_gradient": full_gradient, "every": 4}


def needed(cls) -> dict:
    parameters = list(inspect.signature(cls).parameters.values())[1:]
    return {p.name: NEEDED[p.name] for p in parameters if p.default is p.empty or p.name == "every"}


def as_taken(cls, grads):
    """Gradients as the steps of a class take them: where they are of rows, those of all rows."""
    if not issubclass(cls, (gs.SparseAdam, gs.SparseAdagrad)):
        return grads
    if isinstance(grads, list):
        return [as_taken(cls, g) for g in grads]
    return np.arange(len(grads)), grads


def with_decay(cls, weight_decay: float) -> dict:
    """The argument, for the classes that have it."""
    has_it = "weight_decay" in inspect.signature(cls).parameters
    return {"weight_decay": weight_decay} if has_it else {}


def beside(opt, grads, t: int = 0) -> dict:
    """What the step of an optimizer needs beside the gradients."""
    if isinstance(opt, (gs.SAG, gs.SAGA)):
        return {"row": [0, 2, 2, 1, 3, 0, 1][t % 7]}
    if isinstance(opt, gs.SVRG):
        if isinstance(grads, list):
            return {"snapshot_grads": [g * g.dtype.type(0.7) for g in grads]}
        return {"snapshot_grads": np.asarray(grads * grads.dtype.type(0.7))}
    return {}


def hyper_of(rule: str) -> dict[str, float]:
    return {name: HYPER.get(name, 0.9) for name in RULES[rule].hyperparameters}


def hostile(rng: np.random.Generator, size: int, dtype: type) -> np.ndarray:
    """Numbers from 1e-30 to 1e30 of both signs; NaN, infinities, zeros and denormals among them."""
    x = (rng.standard_normal(size) * 10.0 ** rng.integers(-30, 31, size)).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    specials = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -3 * tiny], dtype)
    where = rng.random(size) < 0.1
    x[where] = rng.choice(specials, np.count_nonzero(where))
    return x


def mild(rng: np.random.Generator, size: int, dtype: type) -> np.ndarray:
    return rng.standard_normal(size).astype(dtype)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, message: str = "") -> None:
    """Equal to the last bit, the sign of zero included; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype, message
    assert actual.shape == expected.shape, message

    def bits(x: np.ndarray) -> np.ndarray:
        if not check.is_float(x.dtype):
            return x
        return np.where(np.isnan(x), x.dtype.type(np.nan), x).view(f"u{x.itemsize}")

    np.testing.assert_array_equal(bits(actual), bits(expected), err_msg=message)


def zero_states(rule: str, param: np.ndarray) -> list[np.ndarray]:
    spec = RULES[rule]
    return [np.zeros(spec.state_shape(name, param.shape), param.dtype) for name in spec.states]


@functools.cache
def drawn(numbers, size: int, dtype: type) -> list[np.ndarray]:
    """The same for all rules, because drawing takes longer than stepping. Nobody writes to them."""
    rng = np.random.default_rng(size)
    arrays = [numbers(rng, size, dtype) for _ in range(5)]
    for array in arrays:
        array.setflags(write=False)
    return arrays


class Run:
    """A few steps of a rule on one array, natively or by the oracle."""

    def __init__(self, rule: str, size: int, dtype: type, numbers=hostile) -> None:
        self.rule = rule
        self.w, *self.grads = drawn(numbers, size, dtype)
        self.states = zero_states(rule, self.w)
        self.options = {"weight_decay": 0.01, "maximize": True, **hyper_of(rule)}

    def by_oracle(self) -> list[np.ndarray]:
        w, states = self.w.copy(), [state.copy() for state in self.states]
        for t, g in enumerate(self.grads, 1):
            reference.step(self.rule, w, g, states, t=t, **self.options)
        return [w, *states]

    def natively(self, place=np.copy) -> list[np.ndarray]:
        """`place` copies an array to where it shall lie."""
        from gradstep import functional

        w, states = place(self.w), [place(state) for state in self.states]
        for t, g in enumerate(self.grads, 1):
            getattr(functional, self.rule)(w, place(g), *states, t=t, **self.options)
        return [w, *states]


needs_glibc = pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="GLIBC_TUNABLES hides processor features on x86 Linux only",
)
#: Where the C library sees neither FMA nor AVX2 nor AVX-512.
OLDER_PROCESSOR = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-AVX512F"}


def python(code: str, **environment: str) -> str:
    """What a new interpreter prints for `code`; a failure fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ridge(x, y, alpha, weights=None):
    """The minimum of the weighted mean of half the squares, plus the penalty; and its intercept."""
    s = np.ones(len(x)) if weights is None else weights
    mean, target = np.average(x, axis=0, weights=s), np.average(y, axis=0, weights=s)
    centred = x - mean
    gram = (s * centred.T) @ centred / s.sum() + alpha * np.eye(x.shape[1])
    coef = np.linalg.solve(gram, (s * centred.T) @ (y - target) / s.sum())
    return coef.T, target - mean @ coef
