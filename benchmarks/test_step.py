"""One step of every rule against the NumPy expression of the same rule, interleaved.

Each round runs NumPy's step and then ours on arrays of their own, so that a machine that slows down
slows both. Both start from the same numbers and must end with the same bits.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from gradstep import _core, functional, reference

HYPER = {
    "weight_decay": 0.0,
    "lr": 1e-3,
    "dampening": 0.0,
    "lr_decay": 1e-3,
    "eps": 1e-8,
    "alpha": 0.99,
    "beta2": 0.999,
    "bias_correction": True,
    "seen": 10.0,
}
ROUNDS = {1_000: 201, 100_000: 51, 10_000_000: 7}


class Side:
    """Arrays of one contestant, and its times."""

    def __init__(self, rule: _core.Rule, size: int, step) -> None:
        rng = np.random.default_rng(0)
        self.w = rng.standard_normal(size, np.float32)
        self.g = rng.standard_normal(size, np.float32)
        self.states = [np.zeros_like(self.w) for _ in rule.states]
        self.hyper = {
            name: HYPER.get(name, 0.9) for name in (*rule.hyperparameters, "weight_decay")
        }
        self.step, self.t, self.seconds = step, 0, []

    def run(self) -> None:
        self.t += 1
        start = time.perf_counter()
        self.step(self)
        self.seconds.append(time.perf_counter() - start)


@pytest.mark.parametrize("size", ROUNDS)
@pytest.mark.parametrize("rule", _core.rules(), ids=lambda rule: rule.name)
def test_step(benchmark, rule, size):
    function = getattr(functional, rule.name)
    ours = Side(rule, size, lambda s: function(s.w, s.g, *s.states, t=s.t, **s.hyper))
    numpy = Side(
        rule,
        size,
        lambda s: reference.step(rule.name, s.w, s.g, s.states, t=s.t, **s.hyper),
    )
    numpy.run()
    ours.run()  # the first step touches the memory
    benchmark.group = f"float32 x {size}"
    benchmark.pedantic(ours.run, setup=numpy.run, rounds=ROUNDS[size])
    for a, b in zip([ours.w, *ours.states], [numpy.w, *numpy.states], strict=True):
        np.testing.assert_array_equal(a, b)
    medians = [float(np.median(side.seconds[1:])) for side in (ours, numpy)]
    streams = 2 * (1 + len(rule.states)) + 1  # each state and w read and written, g read
    benchmark.extra_info.update(
        rule=rule.name,
        size=size,
        seconds=medians[0],
        numpy_seconds=medians[1],
        ratio=medians[1] / medians[0],
        bytes_per_second=streams * 4 * size / medians[0],
    )
