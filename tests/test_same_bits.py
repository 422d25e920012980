"""Every rule gives the oracle's bits: any level, threads, size, place, and mixture of arrays."""

from __future__ import annotations

import functools
import hashlib

import hypothesis
import hypothesis.extra.numpy as nps
import hypothesis.strategies as st
import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, functional, reference
from oracle import (
    DTYPES,
    LARGE_SIZES,
    LEVELS,
    OLDER_PROCESSOR,
    RULES,
    SMALL_SIZES,
    SPAN,
    THREADS,
    Run,
    assert_same_bits,
    hostile,
    hyper_of,
    mild,
    needs_glibc,
    python,
    zero_states,
)

every_rule = pytest.mark.parametrize("rule", RULES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@functools.cache
def oracle_result(rule, size, dtype, numbers):
    return Run(rule, size, dtype, numbers).by_oracle()


@pytest.mark.covering(3)
@every_rule
@every_dtype
@pytest.mark.parametrize("numbers", [hostile, mild])
def test_sizes_and_threads(rule, dtype, level, numbers):
    assert _core.get_isa() == level
    for size in SMALL_SIZES + (LARGE_SIZES if numbers is hostile else ()):
        for threads in THREADS if size in LARGE_SIZES else (1,):
            gs.set_num_threads(threads)
            results = Run(rule, size, dtype, numbers).natively()
            for actual, expected in zip(
                results, oracle_result(rule, size, dtype, numbers), strict=True
            ):
                assert_same_bits(actual, expected, f"{size} elements, {threads} threads")


@pytest.mark.covering
@every_rule
@every_dtype
def test_places(rule, dtype, level):
    """Any alignment that a NumPy array of its dtype can have."""
    cases = [(65, offset) for offset in range(1, 17)] + [(5003, offset) for offset in (1, 6, 13)]
    for size, offset in cases:

        def shifted(array, offset=offset):
            room = np.empty(array.size + offset, array.dtype)[offset:]
            room[...] = array
            return room

        run = Run(rule, size, dtype)
        for actual, expected in zip(run.natively(shifted), run.by_oracle(), strict=True):
            assert_same_bits(actual, expected, f"{size} elements, offset {offset}")


@every_rule
def test_many_arrays_are_one(rule, level):
    """Arrays of both dtypes and odd shapes in one call, against each alone."""
    shapes = [(3, 5), (), (0,), (2 * SPAN + 3,), (1,), (SPAN - 7,), (7, 1, 2), (64,), (4 * SPAN,)]
    rng = np.random.default_rng(0)
    dtypes = [DTYPES[i % 2] for i in range(len(shapes))]

    def draw():
        return [
            hostile(rng, int(np.prod(shape)), dtype).reshape(shape)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]

    params = draw()
    expected = [param.copy() for param in params]
    expected_states = [zero_states(rule, p) for p in params]
    states = list(map(list, zip(*(zero_states(rule, p) for p in params), strict=True)))
    plan = _core.Plan(
        rule,
        params,
        states,
        ["params", "grads", *RULES[rule].states],
        [str(i) for i in range(len(params))],
    )
    scalars = list(hyper_of(rule).values()), 0.1, False, 0
    for t, threads in enumerate(THREADS, 1):
        gs.set_num_threads(threads)
        grads = draw()
        plan.step(grads, None, (t - 1, *scalars))
        for i, (w, g) in enumerate(zip(expected, grads, strict=True)):
            reference.step(rule, w, g, expected_states[i], t=t, weight_decay=0.1, **hyper_of(rule))
    wanted_states = zip(*expected_states, strict=True)
    for actual, wanted in zip([params, *states], [expected, *wanted_states], strict=True):
        for a, b in zip(actual, wanted, strict=True):
            assert_same_bits(a, b)


# Numbers of float32, because a range must hold after rounding too.
fraction = st.floats(0, 1, exclude_max=True, width=32)
finite_hyper = {
    "lr": st.floats(0, 1024, width=32),
    "dampening": st.floats(0, 1, width=32),
    "lr_decay": st.floats(0, 8, width=32),
    "eps": st.floats(2**-100, 1, width=32),
    "bias_correction": st.booleans(),
    "seen": st.integers(1, 10**6).map(float),
    "row_weight": st.floats(2**-20, 2**20, width=32),
    "weight_seen": st.floats(2**-20, 2**20, width=32),
    "rows_seen": st.integers(1, 10**6).map(float),
    "l1": st.floats(0, 1024, width=32),
    "momentum_decay": st.floats(0, 8, width=32),
    "mu_product": st.floats(0, 1, width=32),
    "alpha_warmup": st.integers(0, 10**6).map(float),
    "beta3_warmup": st.integers(0, 10**6).map(float),
    "etaplus": st.floats(1, 8, width=32),
    "step_min": st.floats(0, 1, width=32),
    "step_max": st.floats(2**-20, 1024, width=32),
    "lambd": st.floats(0, 1, width=32),
    "l2": st.floats(0, 1024, width=32),
    "trust_coefficient": st.floats(2**-20, 8, width=32),
    "beta2_decay": st.floats(-8, 0, width=32),
    "eps1": st.floats(0, 1, width=32),
    "eps2": st.floats(0, 1024, width=32),
    "d": st.floats(2**-20, 1024, width=32),
    "nesterov": st.booleans(),
    "beta": st.floats(0, 1, exclude_max=True, width=32),
    "share": st.floats(0, 1, width=32),
    "t0": st.integers(0, 10**6).map(float),
}


@every_rule
@every_dtype
@hypothesis.given(data=st.data())
def test_any_numbers(rule, dtype, data):
    """Hypothesis picks the arrays, the states, the hyper-parameters, the step and the level."""
    size = data.draw(st.integers(0, 70), "size")
    shapes = {"w": size, "g": size}
    shapes |= {name: RULES[rule].state_shape(name, (size,)) for name in RULES[rule].states}
    arrays = [
        data.draw(nps.arrays(dtype, shape, elements=nps.from_dtype(np.dtype(dtype))), name)
        for name, shape in shapes.items()
    ]
    hyper = {
        name: data.draw(finite_hyper.get(name, fraction), name)
        for name in RULES[rule].hyperparameters
    }
    t = data.draw(st.integers(1, 2**40), "t")
    weight_decay = data.draw(st.floats(0, 10), "weight_decay")
    maximize = data.draw(st.booleans(), "maximize")
    expected = [array.copy() for array in arrays]
    options = {"t": t, "weight_decay": weight_decay, "maximize": maximize, **hyper}
    reference.step(rule, expected[0], expected[1], expected[2:], **options)
    getattr(functional, rule)(*arrays, **options)
    for actual, wanted in zip(arrays, expected, strict=True):
        assert_same_bits(actual, wanted)


DIGEST = """
import hashlib
from gradstep import _core
from oracle import DTYPES, RULES, Run, hostile
assert {level!r} in (None, _core.get_isa())
digest = hashlib.sha256()
for rule in RULES:
    for dtype in DTYPES:
        for result in Run(rule, 1003, dtype).{how}():
            result[result != result] = 0
            digest.update(result.tobytes())
print(digest.hexdigest())
"""


@functools.cache
def oracle_digest():
    return python(DIGEST.format(level=None, how="by_oracle"))


@pytest.mark.parametrize("chosen", LEVELS)
def test_level_chosen_by_the_environment(chosen):
    """The level in a new process, as users choose it."""
    native = python(DIGEST.format(level=chosen, how="natively"), GRADSTEP_ISA=chosen)
    assert native == oracle_digest()
    assert len(native.strip()) == hashlib.sha256().digest_size * 2


@needs_glibc
def test_older_processor_as_the_c_library_sees_it():
    """Its pow, exp, log and cos have other last bits there, so a step must not use them."""
    native = python(DIGEST.format(level=None, how="natively"), **OLDER_PROCESSOR)
    assert native == oracle_digest()


@pytest.mark.parametrize("t", [1, 2, 3, 10, 999, 10**6 + 3, 10**12])
def test_powers_of_beta_at_any_step(t, level):
    for dtype in DTYPES:
        rng = np.random.default_rng(t)
        arrays = [mild(rng, 33, dtype) for _ in range(3)] + [mild(rng, 33, dtype) ** 2]
        expected = [array.copy() for array in arrays]
        functional.adam(*arrays, t=t, lr=0.1)
        hyper = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "bias_correction": 1.0}
        reference.step("adam", expected[0], expected[1], expected[2:], t=t, **hyper)
        assert_same_bits(arrays[0], expected[0])
