"""The C API has Python's bits, Python's words, and survives what C allows."""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, reference
from gradstep._engine import checks as check
from gradstep.tools import cli
from oracle import (
    DTYPES,
    RULES,
    SPAN,
    Run,
    assert_same_bits,
    hostile,
    hyper_of,
    mild,
    python,
)

OK, INVALID, NONFINITE = 0, 1, 2
HERE = Path(__file__).parent


class Array(Structure):
    """`gradstep_array`."""

    _fields_ = (
        ("param", c_void_p),
        ("grad", c_void_p),
        ("states", c_void_p * 4),
        ("size", c_int64),
        ("dtype", c_int32),
        ("held", c_int32),
    )


class Scalars(Structure):
    """`gradstep_scalars`."""

    _fields_ = (
        ("scalars_size", c_size_t),
        ("array_size", c_size_t),
        ("t", c_int64),
        ("hyper", POINTER(c_double)),
        ("hyper_count", c_int64),
        ("weight_decay", c_double),
        ("grad_scale", c_double),
        ("clip_norm", POINTER(c_double)),
        ("clip_value", POINTER(c_double)),
        ("maximize", c_int32),
        ("zero_grad", c_int32),
        ("skip_nonfinite", c_int32),
        ("flush_denormals", c_int32),
        ("rounding_seed", c_uint64),
        ("round_to_nearest", c_int32),
        ("reserved", c_int32),
    )


class Result(Structure):
    """`gradstep_result`."""

    _fields_ = (
        ("result_size", c_size_t),
        ("grad_norm", c_double),
        ("clipped", c_int32),
        ("skipped", c_int32),
    )


STEP = [c_void_p, POINTER(Array), c_int64, POINTER(Scalars), POINTER(Result)]
lib = ctypes.CDLL(gs.get_library())
for name, result, *arguments in (
    ("last_error", c_char_p),
    ("version", c_char_p),
    ("abi_version", c_int32),
    ("find_rule", c_void_p, c_char_p),
    ("rule_at", c_void_p, c_int32),
    ("rule_count", c_int32),
    ("rule_name", c_char_p, c_void_p),
    ("hyper_name", c_char_p, c_void_p, c_int32),
    ("hyper_range", c_char_p, c_void_p, c_int32),
    ("state_name", c_char_p, c_void_p, c_int32),
    ("state_is_gradient", c_int32, c_void_p, c_int32),
    ("row_state", c_int32, c_void_p),
    ("is_decoupled", c_int32, c_void_p),
    ("step", c_int32, *STEP),
    ("check", c_int32, *STEP[:-1]),
    ("get_num_threads", c_int32),
    ("set_num_threads", c_int32, c_int32),
    ("get_isa", c_char_p),
    ("isa_name", c_char_p, c_int32),
    ("isa_is_supported", c_int32, c_int32),
    ("get_api", c_void_p),
):
    function = getattr(lib, f"gradstep_{name}")
    function.restype, function.argtypes = result, arguments


def last_error() -> str:
    return lib.gradstep_last_error().decode()


def find(rule: str) -> int:
    found = lib.gradstep_find_rule(rule.encode())
    assert found, last_error()
    return found


def array_of(param, grad, states=()) -> Array:
    array = Array(param.ctypes.data, grad.ctypes.data)
    array.states[: len(states)] = [state.ctypes.data for state in states]
    array.size, array.dtype = param.size, {4: 1, 8: 2}[param.itemsize]
    return array


def scalars_of(t: int, hyper, **others) -> Scalars:
    """`clip_norm` and `clip_value` may be numbers."""
    for clip in ("clip_norm", "clip_value"):
        if clip in others:
            others[clip] = ctypes.pointer(c_double(others[clip]))
    values = (c_double * len(hyper))(*hyper)
    settings = {"weight_decay": 0.0, "grad_scale": 1.0, **others}
    return Scalars(ctypes.sizeof(Scalars), ctypes.sizeof(Array), t, values, len(hyper), **settings)


def step(rule: str, arrays: list[Array], scalars: Scalars) -> tuple[int, Result]:
    result = Result(ctypes.sizeof(Result))
    together = (Array * len(arrays))(*arrays)
    return lib.gradstep_step(find(rule), together, len(arrays), scalars, result), result


def states_in_c(rule: str) -> int:
    """C knows no shapes, so that no array is a matrix there and none has factors."""
    return len(RULES[rule].states) - len(RULES[rule].factors)


def from_c(run: Run) -> list[np.ndarray]:
    """As `Run.natively`."""
    w, states = run.w.copy(), [state.copy() for state in run.states]
    given = states[: states_in_c(run.rule)]
    hyper = [run.options[name] for name in RULES[run.rule].hyperparameters]
    for t, g in enumerate(run.grads, 1):
        scalars = scalars_of(t, hyper, weight_decay=0.01, maximize=1)
        status, result = step(run.rule, [array_of(w, g, given)], scalars)
        assert status == OK, last_error()
        assert (result.grad_norm, result.clipped, result.skipped) == (0, 0, 0)
    return [w, *states]


@pytest.mark.covering
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_the_bits_of_the_oracle(rule, dtype, level):
    for size, numbers in ((0, mild), (1, mild), (17, hostile), (1000, hostile), (1000, mild)):
        run = Run(rule, size, dtype, numbers)
        for actual, expected in zip(from_c(run), run.by_oracle(), strict=True):
            assert_same_bits(actual, expected, f"{rule} {size}")


@pytest.mark.covering
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_the_bits_of_the_oracle_on_threads(rule, dtype, threads):
    assert lib.gradstep_set_num_threads(threads) == OK
    run = Run(rule, 2 * SPAN + 1, dtype)
    for actual, expected in zip(from_c(run), run.by_oracle(), strict=True):
        assert_same_bits(actual, expected, rule)


TREATMENTS = (
    {},
    {"clip_norm": 1.0},
    {"clip_norm": float("inf"), "grad_scale": 0.25},
    {"clip_norm": 1e-3, "clip_value": 1e-4, "grad_scale": 7.0, "zero_grad": True},
    {"clip_value": 0.5, "zero_grad": True},
)


@pytest.mark.parametrize("treatment", TREATMENTS, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_many_arrays_and_the_whole_step_as_python_has_them(treatment, threads, level):
    gs.set_num_threads(threads)
    sizes = [(3, np.float32), (0, np.float64), (70_000, np.float32), (4097, np.float64)]
    sizes += [(5, np.float32)] * 70  # more blocks than fit in place
    rng = np.random.default_rng(1)
    ours = [mild(rng, *size) for size in sizes]
    theirs = [w.copy() for w in ours]
    states = [[np.zeros_like(w), np.zeros_like(w)] for w in ours]
    hyper = [0.1, 0.9, 0.999, 1e-8, 1]
    opt = gs.AdamW(theirs, lr=0.1, weight_decay=0.01, skip_nonfinite=True)
    for t in (1, 2, 3):
        grads = [mild(rng, *size) for size in sizes]
        kept = [g.copy() for g in grads]
        arrays = [array_of(w, g, s) for w, g, s in zip(ours, grads, states, strict=True)]
        status, result = step(
            "adamw",
            arrays,
            scalars_of(t, hyper, weight_decay=0.01, skip_nonfinite=1, **treatment),
        )
        assert status == OK, last_error()
        expected = opt.step(kept, **treatment)
        assert (result.grad_norm, bool(result.clipped), bool(result.skipped)) == expected
        for actual, wanted in zip(ours + grads, theirs + kept, strict=True):
            assert_same_bits(actual, wanted)


def test_flushed_denormals_as_python_has_them():
    tiny = np.full(9, 1e-41, np.float32)
    ours, theirs = np.zeros(9, np.float32), np.zeros(9, np.float32)
    for flush in (0, 1):
        status, _ = step("sgd", [array_of(ours, tiny)], scalars_of(1, [1.0], flush_denormals=flush))
        assert status == OK
        gs.SGD(theirs, lr=1.0, flush_denormals=bool(flush)).step(tiny)
        assert_same_bits(ours, theirs)
        assert ours.any() == (not flush)


def test_rules_are_described_as_in_python():
    assert lib.gradstep_rule_count() == len(RULES)
    for i, rule in enumerate(_core.rules()):
        handle = lib.gradstep_rule_at(i)
        assert handle == find(rule.name)
        assert lib.gradstep_rule_name(handle) == rule.name.encode()

        def names(function, handle=handle):
            found = iter(lambda: function(handle, len(seen)), None)
            seen: list[str] = []
            for name in found:
                seen.append(name.decode())
            return tuple(seen)

        assert names(lib.gradstep_hyper_name) == rule.hyperparameters
        assert len(names(lib.gradstep_hyper_range)) == len(rule.hyperparameters)
        states = names(lib.gradstep_state_name)
        assert states == rule.states[: states_in_c(rule.name)]
        gradients = [
            state for k, state in enumerate(states) if lib.gradstep_state_is_gradient(handle, k)
        ]
        assert tuple(gradients) == rule.gradients
        row = lib.gradstep_row_state(handle)
        assert (states[row] if row >= 0 else None) == rule.row_state
        assert lib.gradstep_is_decoupled(handle) == rule.decoupled
        for beyond in (-1, 99):
            assert lib.gradstep_hyper_name(handle, beyond) is None
            assert lib.gradstep_state_name(handle, beyond) is None
            assert lib.gradstep_state_is_gradient(handle, beyond) == 0
    assert lib.gradstep_rule_at(-1) is None
    assert lib.gradstep_rule_at(len(RULES)) is None


@pytest.mark.parametrize("rule", ["", "Adam", "adam\n", "x" * 5000])
def test_an_unknown_rule_is_told_with_those_that_exist(rule):
    assert lib.gradstep_find_rule(rule.encode()) is None
    assert last_error().startswith("there is no rule '" + rule.replace("\n", "?")[:900])
    if len(rule) < 99:
        assert last_error().endswith("; the rules are " + ", ".join(RULES))


def test_functions_of_a_rule_survive_what_is_none():
    for handle in (None, 8, find("adam") + 4):
        assert lib.gradstep_rule_name(handle) is None
        assert lib.gradstep_hyper_name(handle, 0) is None
        assert lib.gradstep_row_state(handle) == -1
        assert lib.gradstep_is_decoupled(handle) == 0
        assert last_error().startswith("rule must ")
    assert lib.gradstep_find_rule(None) is None
    assert last_error() == "name must not be null"


def message_of(rule: str, hyper: str, value: float) -> str | None:
    """What Python says of a hyper-parameter of float32 parameters, if it is wrong."""
    try:
        RULES[rule].check_hyper(hyper, value, True)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("rule", RULES)
def test_hyperparameters_are_refused_in_the_words_of_python(rule):
    names = RULES[rule].hyperparameters
    for i, hyper in enumerate(names):
        for value in (-0.5, 1.5, 1.0, 1 - 1e-9, 1e39, 1e-50, 5e-324, np.inf, np.nan):
            values = [hyper_of(rule)[name] for name in names]
            values[i] = value
            arrays = [np.ones(3, np.float32) for _ in range(2 + states_in_c(rule))]
            status, _ = step(rule, [array_of(*arrays[:2], arrays[2:])], scalars_of(2, values))
            message = message_of(rule, hyper, value)
            assert status == (INVALID if message else OK)
            if message:
                assert last_error() == message
                assert repr(float(value)) in message
                np.testing.assert_array_equal(arrays, 1)


def test_numbers_are_printed_as_python_prints_them():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, 3000, dtype=np.uint64).view(np.float64)
    near = 10.0 ** rng.uniform(-6, 19, 3000)
    whole = np.array([1.0, 2.0**53 + 2, 1e15, 1e16, 1e17, 1e-4, 1e-5, 123456.0, 1e22, 0.0])
    for value in map(float, [*bits, *near, *np.round(near), *whole]):
        shown = -abs(value) or np.inf  # what `lr` cannot be
        assert lib.gradstep_check(find("sgd"), None, 0, scalars_of(1, [shown])) == INVALID
        assert last_error().endswith(f", got {shown!r}")


W, G, M, V = (np.ones(8, np.float32) for _ in range(4))
GOOD = [0.1, 0.9, 0.999, 1e-8, 1]
#: Calls of `adam` with something wrong, and what they are told.
BAD_CALLS = {
    "null param": ({"param": None}, "arrays[0].param must not be null"),
    "null grad": ({"grad": None}, "arrays[0].grad must not be null"),
    "null state": (
        {"states": (M.ctypes.data, 0, 0, 0)},
        "arrays[0].states[1] (v) must not be null",
    ),
    "too many states": (
        {"states": (M.ctypes.data, V.ctypes.data, 4, 0)},
        "arrays[0].states[2] must be null: adam has 2 states",
    ),
    "misaligned": (
        {"param": W.ctypes.data + 1},
        f"arrays[0].param must be aligned to its 4-byte elements, got address {W.ctypes.data + 1}",
    ),
    "negative size": ({"size": -1}, "arrays[0].size must be at least 0, got -1"),
    "large size": ({"size": 2**62}, f"arrays[0].size must be at most {(2**63 - 1) // 16}, got"),
    "beyond memory": (
        {"size": 2**58, "grad": 2**64 - 2**16},
        "arrays[0].size is 288230376151711744, which goes beyond the memory",
    ),
    "dtype": (
        {"dtype": 0},
        "arrays[0].dtype must be GRADSTEP_FLOAT32, GRADSTEP_FLOAT64, "
        "GRADSTEP_BFLOAT16 or GRADSTEP_FLOAT16, got 0",
    ),
    "param in 8 bits": (
        {"dtype": 5},
        "arrays[0].dtype must be GRADSTEP_FLOAT32, GRADSTEP_FLOAT64, "
        "GRADSTEP_BFLOAT16 or GRADSTEP_FLOAT16, got GRADSTEP_8_BITS, which is for states",
    ),
    "grad in 8 bits": (
        {"held": 5},
        "arrays[0].grad cannot be GRADSTEP_8_BITS, which is for states",
    ),
    "8 bits beside double": (
        {"dtype": 2, "held": 5 << 8},
        "arrays[0].states[1] (v) cannot be uint8 beside param, which is float64",
    ),
    "null in 8 bits": (
        {"held": 5 << 8, "states": (M.ctypes.data, 0, 0, 0)},
        "arrays[0].states[1] (v) must not be null",
    ),
    "8 bits beyond memory": (
        {"held": 5 << 4, "states": (2**64 - 256, V.ctypes.data, 0, 0)},
        "arrays[0].size is 8, which goes beyond the memory",
    ),
    "held": ({"held": 7}, "arrays[0].held must be 0, or GRADSTEP_HELD() of types for grad and the"),
    "too much held": (
        {"held": 1 << 16},
        "arrays[0].held must be 0, or GRADSTEP_HELD() of types for grad and the 2 states of adam, "
        "got 65536",
    ),
    "wide grad": (
        {"dtype": 1, "held": 2},
        "arrays[0].grad must not be wider than the arithmetic",
    ),
    "same array": (
        {"states": (M.ctypes.data, M.ctypes.data, 0, 0)},
        "arrays[0].states[1] (v) is the same array as arrays[0].states[0] (m)",
    ),
    "overlap": (
        {"states": (M.ctypes.data, M.ctypes.data + 4, 0, 0), "size": 4},
        "arrays[0].states[1] (v) shares memory with arrays[0].states[0] (m)",
    ),
    "gradient is parameter": (
        {"grad": W.ctypes.data},
        "arrays[0].grad shares memory with arrays[0].param, which the step writes to",
    ),
    "t": ({"t": 0}, "t must be at least 1, got 0"),
    "late": ({"t": 2**53 + 1}, "t must be at most 2**53, got 9007199254740993"),
    "hyper": ({"hyper": None}, "scalars->hyper must not be null"),
    "hyper_count": ({"hyper_count": 4}, "adam takes 5 hyper-parameters, got 4"),
    "weight_decay": ({"weight_decay": -1}, "weight_decay must be at least 0 and finite, got -1.0"),
    "grad_scale": ({"grad_scale": 0}, "grad_scale must be above 0 and finite, got 0.0"),
    "clip_norm": ({"clip_norm": 0.0}, "clip_norm must be above 0, got 0.0"),
    "clip_value": (
        {"clip_value": np.inf},
        "clip_value must be above 0 and finite, got inf",
    ),
    "scalars_size": ({"scalars_size": 8}, "scalars->scalars_size must be at least 88, got 8"),
    "scalars_size unset": (
        {"scalars_size": 2**64 - 2},
        "scalars->scalars_size must be at most 4096, got 9223372036854775807",
    ),
    "reserved": ({"reserved": 7}, "scalars->reserved must be 0, got 7"),
    "flag": (
        {"hyper": (c_double * 5)(0.1, 0.9, 0.9, 1e-8, 2)},
        "bias_correction must be 0 or 1, got 2.0",
    ),
    "array_size": ({"array_size": 56}, "scalars->array_size must be at least 64, got 56"),
    "odd array_size": ({"array_size": 65}, "scalars->array_size must be sizeof(gradstep_array)"),
    "count": ({"count": -1}, "count must be at least 0, got -1"),
    "no arrays": ({"arrays": None}, "arrays must not be null"),
    "no scalars": ({"scalars": None}, "scalars must not be null"),
    "no rule": ({"rule": None}, "rule must not be null"),
    "wrong rule": ({"rule": find("adam") + 1}, "rule must come from gradstep_find_rule()"),
    "result_size": ({"result_size": 8}, "result->result_size must be at least 24, got 8"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_call_is_told_and_changes_nothing(case):
    changes, message = BAD_CALLS[case]
    changes = dict(changes)
    array, scalars, result = array_of(W, G, (M, V)), scalars_of(1, GOOD), Result(24)
    arguments = {"rule": find("adam"), "arrays": array, "count": 1, "scalars": scalars}
    if "states" in changes:
        array.states[:] = changes.pop("states")
    for clip in ("clip_norm", "clip_value"):
        if clip in changes:
            changes[clip] = ctypes.pointer(c_double(changes[clip]))
    for place, value in changes.items():
        if place in arguments:
            arguments[place] = value
        else:
            owner = next(struct for struct in (array, scalars, result) if hasattr(struct, place))
            setattr(owner, place, value)
    assert lib.gradstep_step(*arguments.values(), result) == INVALID
    assert last_error().startswith(message)
    if case != "result_size":
        assert lib.gradstep_check(*arguments.values()) == INVALID
        assert last_error().startswith(message)
    for unchanged in (W, G, M, V):
        np.testing.assert_array_equal(unchanged, np.ones(8, np.float32))


def test_rules_that_clipping_would_bias_refuse_it():
    arrays = [np.ones(3) for _ in range(4)]
    for clip in ("clip_norm", "clip_value"):
        status, _ = step(
            "svrg", [array_of(*arrays[:2], arrays[2:])], scalars_of(1, [0.1], **{clip: 1.0})
        )
        assert status == INVALID
        assert last_error() == f"{clip} must be null for svrg, whose steps clipping would bias"


def test_muon_is_two_rules_with_products_between_them():
    """Both clip the gradient alike; what is made of it is taken as it is."""
    rng = np.random.default_rng(0)
    ours = rng.standard_normal((3, 4))
    theirs, mean, u = ours.copy(), np.zeros((3, 4)), np.zeros((3, 4))
    opt = gs.Muon(theirs, lr=0.1)
    for t in (1, 2):
        g = rng.standard_normal((3, 4))
        opt.step(g, grad_scale=0.5, clip_norm=1.0)
        treatment = {"grad_scale": 0.5, "clip_norm": 1.0}
        status, _ = step(
            "muon_direction", [array_of(u, g, (mean,))], scalars_of(t, [0.1, 0.95, 1], **treatment)
        )
        assert status == OK, last_error()
        o = gs.reference.orthogonalized(u, (3.4445, -4.775, 2.0315), 5, 1e-7)
        scalars = scalars_of(t, [0.1, 0.95], weight_decay=0.1, **treatment)
        status, _ = step("muon", [array_of(ours, g, (mean, o))], scalars)
        assert status == OK, last_error()
        assert_same_bits(ours, theirs)


def test_what_is_only_read_may_overlap():
    w, g = np.ones(3), np.full(3, 0.5)
    status, _ = step("svrg", [array_of(w, g, (g, g))], scalars_of(1, [0.1]))
    assert status == OK, last_error()
    np.testing.assert_array_equal(w, np.ones(3) - 0.1 * g)
    status, _ = step("svrg", [array_of(w, g, (g, g))], scalars_of(1, [0.1], zero_grad=1))
    assert status == INVALID
    assert "which the step writes to" in last_error()


def test_arrays_that_overlap_each_other_are_found_by_check():
    memory = np.ones(100)
    grads = np.ones(100)
    scalars = scalars_of(1, [0.1])
    arrays = [array_of(memory[i : i + 10], grads[i : i + 10]) for i in range(0, 100, 10)]
    together = (Array * 10)(*arrays)
    assert lib.gradstep_check(find("sgd"), together, 10, scalars) == OK
    together[7].param = memory[35:].ctypes.data
    assert lib.gradstep_check(find("sgd"), together, 10, scalars) == INVALID
    assert last_error() == "arrays[7].param shares memory with arrays[3].param"
    together[7].param = memory[70:].ctypes.data
    together[2].grad = memory[91:].ctypes.data
    assert lib.gradstep_check(find("sgd"), together, 10, scalars) == INVALID
    assert last_error() == (
        "arrays[2].grad shares memory with arrays[9].param, which the step writes to"
    )
    np.testing.assert_array_equal(memory, np.ones(100))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_cannot_be_clipped(dtype):
    for value, scale, words in (
        (np.nan, 1.0, "arrays[1].grad holds NaN or infinity"),
        (np.inf, 2.0, "arrays[1].grad times grad_scale=2.0 holds NaN or infinity"),
    ):
        ws, gs_ = [np.ones(5, dtype) for _ in range(3)], [np.ones(5, dtype) for _ in range(3)]
        gs_[1][2] = value
        arrays = [array_of(w, g) for w, g in zip(ws, gs_, strict=True)]
        settings = {"clip_norm": 1.0, "grad_scale": scale, "zero_grad": 1}
        status, _ = step("sgd", arrays, scalars_of(1, [0.1], **settings))
        assert (status, last_error()) == (
            NONFINITE,
            f"{words}, so clip_norm cannot apply; skip_nonfinite skips such steps",
        )
        status, result = step("sgd", arrays, scalars_of(1, [0.1], skip_nonfinite=1, **settings))
        assert (status, result.skipped, result.clipped) == (OK, 1, 0)
        assert not np.isfinite(result.grad_norm)
        for w, g in zip(ws, gs_, strict=True):
            np.testing.assert_array_equal(w, np.ones(5, dtype))
            assert g.all()


def test_a_second_gradient_can_skip_the_step():
    w, g, second, mu = (np.ones(3) for _ in range(4))
    second[1] = np.nan
    status, result = step(
        "svrg", [array_of(w, g, (second, mu))], scalars_of(1, [0.1], skip_nonfinite=1)
    )
    assert (status, result.skipped) == (OK, 1)
    np.testing.assert_array_equal(w, np.ones(3))


#: The types of `gradstep.h`.
TYPES = {"float32": 1, "float64": 2, "bfloat16": 3, "float16": 4, "int8": 5, "uint8": 5}


@pytest.mark.parametrize("dtypes", [("bfloat16",) * 3, ("float32", "float32", "bfloat16"),
                                    ("float16", "float32", "float32"),
                                    ("float64", "float16", "float32")])  # fmt: skip
@pytest.mark.parametrize("nearest", [False, True])
def test_storage_as_python_has_it(dtypes, nearest, level):
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    param, grad, state = (np.dtype(check.float_dtype("dtype", name)) for name in dtypes)
    rng = np.random.default_rng(0)
    results = []
    for in_c in (True, False):
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(n).astype(param) for n in (1001, 7)]
        states = [[np.zeros(w.size, state) for w in params] for _ in range(2)]
        hyper = [*hyper_of("adam").values()]
        plan = _core.Plan("adam", params, states, ["params", "grads", "m", "v"], ["0", "1"])
        plan.set_rounding(not nearest, 9)
        for t in range(3):
            grads = [rng.standard_normal(w.size).astype(grad) for w in params]
            if not in_c:
                plan.step(grads, (1.0, 0.5, None, True), (t, hyper, 0.1, False, 0))
                continue
            arrays = []
            for i, (w, g) in enumerate(zip(params, grads, strict=True)):
                array = Array(w.ctypes.data, g.ctypes.data)
                array.states[:2] = [kind[i].ctypes.data for kind in states]
                array.size, array.dtype = w.size, TYPES[dtypes[0]]
                array.held = TYPES[dtypes[1]] | TYPES[dtypes[2]] << 4 | TYPES[dtypes[2]] << 8
                arrays.append(array)
            scalars = scalars_of(
                t + 1, hyper, weight_decay=0.1, clip_norm=0.5, zero_grad=1,
                rounding_seed=9, round_to_nearest=nearest,
            )  # fmt: skip
            assert step("adam", arrays, scalars)[0] == OK, last_error()
            assert not any(g.astype(float).any() for g in grads)
        results.append([*params, *states[0], *states[1]])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def zeros_in_8_bits(rule: str, size: int) -> list[np.ndarray]:
    """The states of an array, as they begin."""
    shape, never_negative = reference.blocks_shape(size), RULES[rule].never_negative
    return [
        np.zeros(shape, np.uint8 if state in never_negative else np.int8)
        for state in RULES[rule].states
    ]


def steps_in_8_bits(rule, sizes, param, numbers, nearest, in_c) -> list[np.ndarray]:
    """A few steps over arrays of these sizes, in C or by the oracle; all that was written to."""
    rng = np.random.default_rng(len(rule))

    def draw(size):
        with np.errstate(over="ignore"):
            return numbers(rng, size, np.float32).astype(param)

    params = [draw(size) for size in sizes]
    states = [zeros_in_8_bits(rule, size) for size in sizes]
    hyper = hyper_of(rule)
    for t in (1, 2, 3):
        grads = [draw(size) for size in sizes]
        if not in_c:
            for i, arrays in enumerate(zip(params, grads, states, strict=True)):
                reference.stored_step(
                    rule, *arrays, t=t, stochastic=not nearest, seed=9, array=i,
                    weight_decay=0.01, maximize=True, **hyper,
                )  # fmt: skip
            continue
        arrays = []
        for w, g, held in zip(params, grads, states, strict=True):
            array = Array(w.ctypes.data, g.ctypes.data)
            array.states[: len(held)] = [state.ctypes.data for state in held]
            array.size, array.dtype = w.size, TYPES[param.name]
            array.held = sum(TYPES[s.dtype.name] << 4 * k for k, s in enumerate(held, 1))
            arrays.append(array)
        scalars = scalars_of(
            t, [*hyper.values()], weight_decay=0.01, maximize=1,
            rounding_seed=9, round_to_nearest=nearest,
        )  # fmt: skip
        together = (Array * len(arrays))(*arrays)
        assert lib.gradstep_check(find(rule), together, len(arrays), scalars) == OK, last_error()
        assert step(rule, arrays, scalars)[0] == OK, last_error()
    return [*params, *(state for held in states for state in held)]


@pytest.mark.covering
@pytest.mark.parametrize("param", ["float32", "float16"])
@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.any_storage])
def test_states_in_8_bits_have_the_bits_of_the_oracle(rule, nearest, param, level):
    sizes = (0, 1, 255, 256, 257, 511, 513, 1001)
    arguments = rule, sizes, np.dtype(param), mild if nearest else hostile, nearest
    in_c, by_oracle = (steps_in_8_bits(*arguments, in_c) for in_c in (True, False))
    for actual, expected in zip(in_c, by_oracle, strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rule", ["adam", "lion", "adagrad", "ademamix"])
def test_states_in_8_bits_on_threads(rule, threads):
    assert lib.gradstep_set_num_threads(threads) == OK
    arguments = rule, (3, 2 * SPAN + 1, 4097), np.dtype(np.float32), hostile, False
    in_c, by_oracle = (steps_in_8_bits(*arguments, in_c) for in_c in (True, False))
    for actual, expected in zip(in_c, by_oracle, strict=True):
        assert_same_bits(actual, expected)


def test_states_in_8_bits_lie_anywhere_and_end_where_their_blocks_do():
    """At an odd address, with a neighbour at the next byte."""
    w, g = np.ones(300, np.float32), np.full(300, 0.3, np.float32)
    one = reference.blocks_shape(300)[0] * 257
    memory = np.full(2 * one + 3, 9, np.uint8)
    memory[1 : 2 * one + 1] = 0
    array = array_of(w, g, [memory[1:], memory[one + 1 :]])
    array.held = TYPES["int8"] << 4 | TYPES["uint8"] << 8
    scalars = scalars_of(1, [*hyper_of("adam").values()])
    assert lib.gradstep_check(find("adam"), array, 1, scalars) == OK, last_error()
    assert step("adam", [array], scalars)[0] == OK, last_error()
    assert memory[0] == 9
    np.testing.assert_array_equal(memory[2 * one + 1 :], 9)
    expected, states = np.ones(300, np.float32), zeros_in_8_bits("adam", 300)
    reference.stored_step("adam", expected, g, states, t=1, **hyper_of("adam"))
    assert_same_bits(w, expected)
    for held, place in zip(states, (1, one + 1), strict=True):
        np.testing.assert_array_equal(memory[place : place + one], held.view(np.uint8).ravel())


def test_states_in_8_bits_that_overlap():
    """Within an array and from one to another, the last byte of the last block counted."""
    w, g = np.ones((2, 300), np.float32), np.ones((2, 300), np.float32)
    one = reference.blocks_shape(300)[0] * 257
    memory = np.zeros(2 * one, np.uint8)
    arrays = [array_of(w[i], g[i], [memory[i * one :]]) for i in range(2)]
    scalars = scalars_of(1, [*hyper_of("lion").values()])
    for array in arrays:
        array.held = TYPES["int8"] << 4
    together = (Array * 2)(*arrays)
    assert lib.gradstep_check(find("lion"), together, 2, scalars) == OK, last_error()
    together[1].states[0] = memory[one - 1 :].ctypes.data
    assert lib.gradstep_check(find("lion"), together, 2, scalars) == INVALID
    assert last_error() == "arrays[1].states[0] (m) shares memory with arrays[0].states[0] (m)"

    array = array_of(w[0], g[0], [memory, memory[one - 1 :]])
    array.held = TYPES["int8"] << 4 | TYPES["uint8"] << 8
    assert step("adam", [array], scalars_of(1, [*hyper_of("adam").values()]))[0] == INVALID
    assert last_error() == "arrays[0].states[1] (v) shares memory with arrays[0].states[0] (m)"
    assert (w == 1).all()
    assert not memory.any()


def test_storage_is_not_for_every_rule():
    w = np.ones(4, np.float16)
    array = Array(w.ctypes.data, w.ctypes.data + 8)
    array.size, array.dtype = 2, TYPES["float16"]
    assert step("lars", [array], scalars_of(1, [*hyper_of("lars").values()]))[0] == INVALID
    assert "and held 0, for lars" in last_error()
    array.dtype, array.held = TYPES["float32"], TYPES["int8"] << 4
    assert step("lars", [array], scalars_of(1, [*hyper_of("lars").values()]))[0] == INVALID
    assert "and held 0, for lars" in last_error()
    array.dtype, array.held = TYPES["float64"], TYPES["bfloat16"] << 4
    array.states[0] = w.ctypes.data
    hyper = [*hyper_of("lion").values()]
    assert step("lion", [array], scalars_of(1, hyper))[0] == INVALID
    assert last_error().endswith("cannot be bfloat16 beside param, which is float64")


def test_callers_of_before_rounding():
    """Whose scalars end before it: 16 bits are rounded by chance, from the seed 0."""
    results = []
    for size in (88, ctypes.sizeof(Scalars)):
        w, g = np.ones(99, np.float16), np.full(99, 0.3, np.float16)
        array = Array(w.ctypes.data, g.ctypes.data)
        array.size, array.dtype = w.size, TYPES["float16"]
        scalars = scalars_of(1, [1e-3])
        scalars.scalars_size = size
        if size == 88:
            scalars.rounding_seed, scalars.round_to_nearest = 5, 1
        assert step("sgd", [array], scalars)[0] == OK, last_error()
        results.append(w)
    assert_same_bits(*results)


def test_structs_may_grow():
    """A newer caller's are read as far as they are known, and refused where they ask for more."""

    class NewerArray(Structure):
        _fields_ = (("known", Array), ("more", c_int64))

    class NewerScalars(Structure):
        _fields_ = (("known", Scalars), ("more", c_int64))

    w, g = np.ones(6), np.ones(6)
    arrays = (NewerArray * 2)()
    for i in range(2):
        arrays[i].known = array_of(w[3 * i : 3 * i + 3], g[3 * i : 3 * i + 3])
    scalars = NewerScalars(scalars_of(1, [0.5]))
    scalars.known.scalars_size = ctypes.sizeof(NewerScalars)
    scalars.known.array_size = ctypes.sizeof(NewerArray)

    def call():
        return lib.gradstep_step(
            find("sgd"), ctypes.cast(arrays, POINTER(Array)), 2, scalars.known, None
        )

    assert call() == OK, last_error()
    np.testing.assert_array_equal(w, np.full(6, 0.5))
    arrays[1].more = 3
    assert call() == INVALID
    assert last_error() == (
        f"scalars->array_size tells of members that gradstep {gs.__version__} does not have"
    )
    arrays[1].more, scalars.more = 0, 1
    assert call() == INVALID
    assert last_error().startswith("scalars->scalars_size tells of members")
    np.testing.assert_array_equal(w, np.full(6, 0.5))


def survive(seed: int, calls: int) -> dict[int, int]:
    """Makes calls put together at random, and returns how often each status came back.

    Each steps, or fails and changes nothing.
    """
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    outcomes = {OK: 0, INVALID: 0, NONFINITE: 0}

    def mostly(good, *odd):
        return good if rng.random() < 0.97 else rng.choice(odd)

    for call in range(calls):
        dtype, numbers_of = rng.choice(DTYPES), rng.choice([hostile, mild])
        memory = [numbers_of(numbers, 70, dtype) for _ in range(6)]  # a block in 8 bits, too
        before = [array.copy() for array in memory]
        rule = rng.choice(list(RULES))
        used = 2 + states_in_c(rule)
        places = [array.ctypes.data for array in memory]
        addresses = [
            mostly(place, 0, place + 1, place + dtype().itemsize, rng.choice(places))
            if i < used
            else mostly(0, 1, place)
            for i, place in enumerate(places)
        ]
        array = Array(*addresses[:2], tuple(addresses[2:]))
        array.size = mostly(rng.choice([0, 1, 7, 31]), -1, -(2**63), 2**62, 2**63 - 1)
        right = 1 if dtype is np.float32 else 2
        array.dtype = mostly(right, 0, 3 - right, 3, -1)
        if array.dtype == 2:
            array.size = min(array.size, 15)  # float32 arrays hold no more float64
        array.held = mostly(0, 1, 0x333, 0x50, 0x550, 5, -1)
        hyper = list(hyper_of(rule).values())
        place = rng.randrange(len(hyper))
        hyper[place] = mostly(hyper[place], -1.0, 2.0, np.nan, np.inf, 1e-60)
        settings = {
            "weight_decay": mostly(rng.choice([0.0, 0.1]), np.nan, -1.0, 1e300),
            "grad_scale": mostly(rng.choice([1.0, 0.5]), 0.0, np.inf, 1e-60),
            "maximize": rng.choice([0, 1]),
            "zero_grad": rng.choice([0, 1, 7]),
            "skip_nonfinite": rng.choice([0, 1]),
        }
        for clip in ("clip_norm", "clip_value"):
            if rng.random() < 0.3:
                settings[clip] = mostly(rng.choice([1.0, 1e-3]), np.inf, 0.0, -1.0, np.nan)
        scalars = scalars_of(mostly(rng.choice([1, 2, 2**53]), 0, -1, -(2**63)), hyper, **settings)
        scalars.reserved = mostly(0, 1, -1)
        scalars.hyper_count = mostly(len(hyper), -1, 0, 2**40)
        scalars.scalars_size = mostly(scalars.scalars_size, 0, 87)
        count = mostly(1, 0, -1, 2**40, -(2**63))
        handle = mostly(find(rule), None, 1, find(rule) - 8)
        result = Result(mostly(ctypes.sizeof(Result), 0, 23))
        status = lib.gradstep_step(handle, array, count, scalars, result)
        outcomes[status] += 1
        if status != OK or result.skipped:
            for now, then in zip(memory, before, strict=True):
                assert_same_bits(now, then, f"seed {seed}, call {call}, {rule}: {last_error()}")
    return outcomes


def test_any_call_is_survived():
    outcomes = survive(seed=0, calls=4000)
    assert all(count > 20 for count in outcomes.values()), outcomes


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_any_call_is_survived_for_long(level):
    """A crash of the process leaves the seed as the last line printed: run it with `-s`."""
    for _ in range(50):
        seed = random.SystemRandom().randrange(2**32)
        print("seed", seed, flush=True)
        gs.set_num_threads(1 + seed % 3)
        survive(seed, calls=4000)


def test_one_setting_of_threads_and_level_for_all():
    gs.set_num_threads(3)
    assert lib.gradstep_get_num_threads() == 3
    assert lib.gradstep_set_num_threads(5) == OK
    assert gs.get_num_threads() == 5
    for threads in (0, -1, 1025):
        assert lib.gradstep_set_num_threads(threads) == INVALID
        with pytest.raises(ValueError, match="threads must be") as raised:
            gs.set_num_threads(threads)
        assert last_error() == str(raised.value)
    assert gs.get_num_threads() == 5


def test_levels_as_python_has_them(level):
    assert lib.gradstep_get_isa() == level.encode()
    names, supported = [], []
    while name := lib.gradstep_isa_name(len(names)):
        supported.append(bool(lib.gradstep_isa_is_supported(len(names))))
        names.append(name.decode())
    assert dict(zip(names, supported, strict=True)) == _core.isa_levels()
    assert lib.gradstep_isa_name(-1) is None
    assert lib.gradstep_isa_is_supported(99) == 0


def test_the_environment_is_told_wrong_by_every_call():
    code = """
import ctypes, gradstep as gs
lib = ctypes.CDLL(gs.get_library())
lib.gradstep_last_error.restype = lib.gradstep_get_isa.restype = ctypes.c_char_p
print(lib.gradstep_get_num_threads(), lib.gradstep_last_error().decode())
print(lib.gradstep_get_isa(), lib.gradstep_last_error().decode())
"""
    told = python(code, GRADSTEP_NUM_THREADS="many", GRADSTEP_ISA="sse9").splitlines()
    assert told[0] == "0 GRADSTEP_NUM_THREADS must be a whole number from 1 to 1024, got 'many'"
    assert told[1].startswith("None GRADSTEP_ISA is 'sse9'; the levels are baseline")


def test_versions():
    assert lib.gradstep_version().decode() == gs.__version__
    header = (Path(gs.get_include()) / "gradstep" / "gradstep.h").read_text()
    assert f"#define GRADSTEP_ABI_VERSION {lib.gradstep_abi_version()}\n" in header


@pytest.mark.parametrize("what", ["include", "library", "cmake-dir"])
def test_the_command_tells_the_places_in_one_line(what):
    command = [sys.executable, "-m", "gradstep", f"--{what}"]
    narrow = {**os.environ, "COLUMNS": "20"}
    told = subprocess.run(command, env=narrow, capture_output=True, text=True, check=True).stdout
    assert told == getattr(gs, f"get_{what.replace('-', '_')}")() + "\n"
    assert Path(told.strip()).exists()


def test_the_command_tells_several_places(capsys):
    assert cli.main(["--library", "--include"]) == 0
    assert capsys.readouterr().out.splitlines() == [gs.get_library(), gs.get_include()]
    assert cli.main(["--include", "info"]) == 2
    assert "--include, --library and --cmake-dir do not go with a command" in (
        capsys.readouterr().err
    )


def test_threads_have_steps_and_messages_of_their_own():
    failures = []

    def work(i: int) -> None:
        run = Run("adam", 3000 + i, np.float32, mild)
        for _ in range(20):
            for actual, expected in zip(from_c(run), run.by_oracle(), strict=True):
                if not np.array_equal(actual, expected):
                    failures.append(i)
            lib.gradstep_check(find("sgd"), None, 0, scalars_of(-i, [0.1]))
            if last_error() != f"t must be at least 1, got {-i}":
                failures.append(last_error())

    before = last_error()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert last_error() == before


class Api(Structure):
    """`gradstep_api`."""

    _fields_ = (
        ("api_size", c_size_t),
        ("abi_version", c_int32),
        *((name, c_void_p) for name in ("last_error", "version", "find_rule", "rule_at")),
        *((name, c_void_p) for name in ("rule_count", "rule_name", "hyper_name", "hyper_range")),
        *((name, c_void_p) for name in ("state_name", "state_is_gradient", "row_state")),
        *((name, c_void_p) for name in ("is_decoupled", "step", "check", "get_num_threads")),
        *((name, c_void_p) for name in ("set_num_threads", "get_isa", "isa_name")),
        ("isa_is_supported", c_void_p),
    )


def test_the_capsule_holds_every_function():
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]
    address = get_pointer(_core.c_api, b"gradstep._core.c_api")
    assert address == lib.gradstep_get_api()
    api = Api.from_address(address)
    assert api.api_size == ctypes.sizeof(Api)
    assert api.abi_version == 1
    for name, _ in Api._fields_[2:]:
        function = getattr(lib, f"gradstep_{name}")
        assert getattr(api, name) == ctypes.cast(function, c_void_p).value, name


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("nm") is None, reason="reads ELF's symbols by nm"
)
def test_the_library_shows_the_c_api_and_what_core_needs_alone():
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", gs.get_library()], check=True, capture_output=True, text=True
    ).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    header = (Path(gs.get_include()) / "gradstep" / "gradstep.h").read_text()
    declared = set(re.findall(r"^(?!static)[a-z].*?\b(gradstep_\w+)\(", header, re.MULTILINE))
    public = {symbol.partition("@")[0] for symbol in symbols if symbol.endswith("@GRADSTEP_1")}
    assert public == declared
    private = f"@@GRADSTEP_PRIVATE_{gs.__version__}"
    others = [s for s in symbols if not s.endswith("@GRADSTEP_1") and "@" in s]
    assert all(s.startswith("_ZN") and "8gradstep" in s and s.endswith(private) for s in others)


# Programs of others ------------------------------------------------------------------------------


def compile_and_run(tmp_path: Path, compiler: str, source: Path, *flags: str) -> str:
    found = shutil.which(compiler)
    if found is None or sys.platform == "win32":
        pytest.skip(f"{compiler} is not installed")
    program, library = tmp_path / "program", Path(gs.get_library())
    command = [found, *flags, "-Wall", "-Wextra", "-pedantic", "-Werror", str(source)]
    command += [f"-I{gs.get_include()}", f"-L{library.parent}", "-lgradstep"]
    command += [f"-Wl,-rpath,{library.parent}", "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run(
        [program], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_program_in_c99(tmp_path):
    """It includes the header, prints sizes of structs and of blocks, and has Python's bits."""
    out = compile_and_run(tmp_path, "cc", HERE / "embedded.c", "-std=c99", "-O1")
    sizes, blocks, *numbers = out.splitlines()
    expected = [np.prod(reference.blocks_shape(size)) for size in (0, 1, 256, 257, 2**31 - 1)]
    assert blocks.split() == [str(size) for size in expected]
    structs = (Array, Scalars, Result, Api)
    assert sizes.split() == [str(ctypes.sizeof(struct)) for struct in structs]
    w = np.linspace(-1, 1, 1000, dtype=np.float32)
    opt = gs.Adam(w, lr=0.01, amsgrad=True)
    for _ in range(10):
        opt.step(w * np.float32(0.5))
    np.testing.assert_array_equal(np.array(numbers, np.float32), w)


def test_a_program_in_cpp17(tmp_path):
    """It has checks of its own (tests/embedded.cpp), and Python's bits."""
    out = compile_and_run(
        tmp_path, "c++", HERE / "embedded.cpp", "-std=c++17", "-O1", "-Wconversion"
    )
    a, b = np.linspace(-1, 1, 100), np.linspace(2, 3, 7)
    opt = gs.Adagrad([a, b], lr=0.1, weight_decay=0.01)
    for _ in range(5):
        opt.step([a * 0.5, b * 0.5], clip_norm=1.0)
    np.testing.assert_array_equal(np.array(out.split(), np.float64), np.concatenate([a, b]))


def test_a_program_in_cpp11_takes_the_c_header(tmp_path):
    source = tmp_path / "version.cpp"
    source.write_text(
        "#include <gradstep/gradstep.h>\n#include <cstdio>\n"
        "int main() { return std::puts(gradstep_version()) < 0; }\n"
    )
    out = compile_and_run(tmp_path, "c++", source, "-std=c++11")
    assert out.strip() == gs.__version__


def page(language: str) -> str:
    """The code of docs/embedding.md in a language."""
    text = (HERE.parent / "docs" / "embedding.md").read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_a_program_of_the_page_in_c(tmp_path):
    include, _, body = page("c").partition("\n")
    source = tmp_path / "page.c"
    source.write_text(
        f"{include}\n#include <stdio.h>\nint main(void) {{\n"
        "float param[8] = {0}, grad[8] = {1}, m[8] = {0}, v[8] = {0};\n"
        f"const int64_t t = 1, size = 8;\n{body}\n"
        'return printf("%.9g %.9g", param[0], param[1]) < 0;\n}\n'
    )
    out = compile_and_run(tmp_path, "cc", source, "-std=c99")
    w = np.zeros(8, np.float32)
    gs.Adam(w, lr=1e-3, weight_decay=0.01).step(np.eye(8, dtype=np.float32)[0])
    np.testing.assert_array_equal(np.array(out.split(), np.float32), w[:2])


def test_a_program_of_the_page_in_cpp(tmp_path):
    source = tmp_path / "page.cpp"
    source.write_text(
        "#include <cstdio>\n#include <gradstep/gradstep.hpp>\nint main() {\n"
        f"std::vector<float> weights(8), gradient(8, 1.0f);\n{page('cpp')}\n"
        'return std::printf("%.9g", weights[0]) < 0;\n}\n'
    )
    out = compile_and_run(tmp_path, "c++", source, "-std=c++17")
    w = np.zeros(8, np.float32)
    gs.Adam(w, lr=1e-3).step(np.ones(8, np.float32))
    assert np.float32(out) == w[0]
