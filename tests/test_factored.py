"""Adafactor of matrices: the oracle's bits for any shape, level and threads; refusals."""

from __future__ import annotations

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, reference
from oracle import DTYPES, SPAN, THREADS, assert_same_bits, hostile, mild

HEIGHT, WIDTH = reference.TILE
#: Vectors, matrices of one tile, of parts of some, and stacks of them, some larger than one share.
SHAPES = [
    (), (5,), (0,), (2 * SPAN + 3,),
    (1, 1), (3, 4), (0, 3), (3, 0), (1, 5 * WIDTH + 3), (3000, 1),
    (HEIGHT, WIDTH), (HEIGHT + 1, WIDTH + 1), (HEIGHT - 1, WIDTH - 1), (2 * HEIGHT + 2, 7),
    (2, 3, 4), (2, 2, HEIGHT + 2, 33), (16, 8, 3, 3), (2, 0, 3),
]  # fmt: skip


def arrays(seed, numbers, dtype):
    rng = np.random.default_rng(seed)
    return [numbers(rng, int(np.prod(shape)), dtype).reshape(shape) for shape in SHAPES]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numbers", [hostile, mild])
def test_every_shape_has_the_bits_of_the_oracle(dtype, numbers, level):
    assert _core.get_isa() == level
    options = {"lr": 0.02, "weight_decay": 0.1, "maximize": True}
    treatments = [{}, {"zero_grad": True}, {"grad_scale": 0.5, "clip_value": 0.4}]
    oracle = reference.in_numpy(gs.Adafactor)(arrays(0, numbers, dtype), **options)
    for t, treatment in enumerate(treatments, 1):
        oracle.step(arrays(t, numbers, dtype), **treatment)
    for threads in THREADS:
        gs.set_num_threads(threads)
        native = gs.Adafactor(arrays(0, numbers, dtype), **options)
        for t, treatment in enumerate(treatments, 1):
            grads = arrays(t, numbers, dtype)
            before = [g.copy() for g in grads]
            native.step(grads, **treatment)
            for g, same in zip(grads, before, strict=True):
                assert_same_bits(g, np.zeros_like(g) if "zero_grad" in treatment else same)
        places = native._named_arrays(with_params=True)
        for (place, actual), wanted in zip(places.items(), oracle._arrays(), strict=True):
            assert_same_bits(actual, wanted, f"{place}, {threads} threads")


@hypothesis.given(st.lists(st.integers(0, 70), min_size=2, max_size=3), st.integers(0, 99))
def test_any_shape(shape, seed):
    rng = np.random.default_rng(seed)
    w = mild(rng, int(np.prod(shape)), np.float32).reshape(shape)
    twin = w.copy()
    native, oracle = gs.Adafactor(w), reference.in_numpy(gs.Adafactor)(twin)
    for _ in range(2):
        g = hostile(rng, w.size, np.float32).reshape(shape)
        native.step(g)
        oracle.step(g)
    for actual, wanted in zip(native._arrays(), oracle._arrays(), strict=True):
        assert_same_bits(actual, wanted)


def test_memory_is_a_row_and_a_column():
    opt = gs.Adafactor(np.ones((300, 200), np.float32))
    assert sum(array.size for array in opt.state.values()) == 300 + 200


def test_a_stack_is_its_matrices_but_for_the_lengths_of_steps():
    """Factors are those of each matrix; the root mean square is that of the whole array."""
    rng = np.random.default_rng(0)
    stack, g = rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5))
    whole = gs.Adafactor(stack)
    whole.step(g)
    for i in range(3):
        one = gs.Adafactor(np.ones((4, 5)))
        one.step(g[i])
        for name in ("row_var", "col_var"):
            np.testing.assert_array_equal(whole.state[name][i], one.state[name])


def test_what_cannot_be_measured_counts_as_0():
    """An infinite parameter does not move the others by infinity."""
    w, plain = np.ones((2, 3)), np.zeros((2, 3))
    w[0, 0] = np.inf
    for array in (w, plain):
        gs.Adafactor(array).step(np.ones((2, 3)))
    np.testing.assert_allclose(w[1] - 1, plain[1], rtol=1e-10)


def test_a_skipped_step_leaves_the_factors():
    w = np.ones((2, 3))
    opt = gs.Adafactor(w, skip_nonfinite=True)
    opt.step(np.ones((2, 3)))
    before = [array.copy() for array in opt._arrays()]
    assert opt.step(np.full((2, 3), np.nan)).skipped
    for actual, wanted in zip(opt._arrays(), before, strict=True):
        assert_same_bits(actual, wanted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": 1e-3}, TypeError, "eps must be a pair of numbers, or of None and a number, got"),
        ({"eps": (0.0, 1e-3)}, ValueError, "eps[0] must be above 0, or None, got 0.0"),
        ({"eps": (None, -1.0)}, ValueError, "eps2 must be at least 0 and finite, got -1.0"),
        ({"d": 0.0}, ValueError, "d must be above 0 and finite, got 0.0"),
        ({"beta2_decay": 0.5}, ValueError, "beta2_decay must be at most 0 and finite, got 0.5"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gs.Adafactor(np.ones((2, 2)), **options)


def test_states_of_another_shape_are_refused():
    opt = gs.Adafactor(np.ones((3, 4)))
    state = opt.state_dict()
    state["state"]["row_var"] = np.zeros((4, 1))
    with pytest.raises(ValueError, match=r"state row_var is float64 of shape \(4, 1\), not"):
        opt.load_state_dict(state)
    w, g, factors = np.ones((3, 4)), np.ones((3, 4)), (np.zeros((3, 1)), np.zeros((1, 4)))
    gs.functional.adafactor(w, g, np.zeros(0), *factors)
    with pytest.raises(ValueError, match=r"variance must have the shape \(0,\), got \(3, 4\)"):
        gs.functional.adafactor(w, g, np.zeros((3, 4)), *factors)
