"""One step against the same step as a NumPy expression, interleaved.

Each round runs NumPy's step and then ours, on arrays of their own, so that a machine that slows
down slows both. Both start from the same numbers and must end with the same bits: each side
computes exactly what the other does.
"""

from __future__ import annotations

import inspect
import time

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, functional, reference
from gradstep.optimizers.base import CLASSES, CORE_RULES

ROUNDS = {1_000: 301, 100_000: 51, 10_000_000: 9}
#: What classes need beside the parameters, and functions beside the arrays.
NEEDED = {"lr": 1e-3, "window": 3, "rows": 2, "momentum": 0.9, "beta": 0.9, "seen": 10.0}
NEEDED |= {"row_weight": 1.5, "weight_seen": 12.0, "rows_seen": 10.0, "l1": 0.1}
NEEDED |= {"mu_product": 0.8, "share": 0.1}
NEEDED |= {"etaminus": 0.5, "etaplus": 1.2, "step_min": 1e-6, "step_max": 50.0}
NEEDED |= {"full_gradient": lambda params: 0.5 * params}


class Side:
    """A contestant: its step, and its times."""

    def __init__(self, step) -> None:
        self.step, self.seconds = step, []

    def run(self) -> None:
        start = time.perf_counter()
        self.step()
        self.seconds.append(time.perf_counter() - start)


def needed(function) -> dict[str, float]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: NEEDED[p.name] for p in parameters if p.default is p.empty and p.name in NEEDED}


def compete(benchmark, name, size, ours, numpys, arrays, rule) -> None:
    ours, numpys = Side(ours), Side(numpys)
    numpys.run()
    ours.run()  # the first step touches the memory
    benchmark.pedantic(ours.run, setup=numpys.run, rounds=ROUNDS[size])
    for a, b in zip(*arrays, strict=True):
        np.testing.assert_array_equal(a, b)
    seconds, numpy_seconds = (float(np.median(side.seconds[1:])) for side in (ours, numpys))
    benchmark.group = f"float32 x {size}"
    benchmark.extra_info.update(
        name=name,
        size=size,
        seconds=seconds,
        numpy_seconds=numpy_seconds,
        ratio=numpy_seconds / seconds,
        bytes_per_second=CORE_RULES[rule].streams * 4 * size / seconds,
    )


def numbers(size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size, np.float32)


@pytest.mark.parametrize("size", ROUNDS)
@pytest.mark.parametrize("cls", CLASSES)
def test_class(benchmark, cls, size):
    """`opt.step(g)`, as most users call it."""
    shape = (size // 10, 10) if cls is gs.Muon else (size,)
    opts = [c(numbers(size).reshape(shape), **needed(c)) for c in (cls, reference.in_numpy(cls))]
    g = numbers(size).reshape(shape)
    grads = (np.arange(size), g) if issubclass(cls, (gs.SparseAdam, gs.SparseAdagrad)) else g
    beside = {gs.SAG: {"row": 0}, gs.SAGA: {"row": 0}, gs.SVRG: {"snapshot_grads": numbers(size)}}
    for opt in opts:
        if cls is gs.SVRG:
            opt.take_snapshot()
    steps = [lambda o=opt: o.step(grads, **beside.get(cls, {})) for opt in opts]
    arrays = [[opt.params, *opt.state.values()] for opt in opts]
    compete(benchmark, f"{cls.__name__}.step", size, *steps, arrays, opts[0].rule)


@pytest.mark.parametrize("size", [1_000, 10_000_000])
@pytest.mark.parametrize("rule", _core.rules(), ids=lambda rule: rule.name)
def test_function(benchmark, rule, size):
    """`gs.functional`, which has every variant of every rule."""
    function = getattr(functional, rule.name)
    options = {**inspect.signature(function).parameters}
    hyper = {
        name: options[name].default
        for name in rule.hyperparameters
        if options[name].default is not inspect.Parameter.empty
    } | needed(function)
    g = numbers(size)
    shapes = [rule.state_shape(name, (size,)) for name in rule.states]
    arrays = [[numbers(size), *(np.zeros(shape, np.float32) for shape in shapes)] for _ in "ab"]
    (w, *states), (numpy_w, *numpy_states) = arrays
    compete(
        benchmark,
        f"functional.{rule.name}",
        size,
        lambda: function(w, g, *states, t=2, weight_decay=0.0, **hyper),
        lambda: reference.step(rule.name, numpy_w, g, numpy_states, t=2, **hyper),
        arrays,
        rule.name,
    )
