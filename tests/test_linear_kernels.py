"""Descent along rows gives the oracle's bits, and the optimum: any layout, level, threads, size."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from dataclasses import dataclass, replace
from decimal import Context, Decimal

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, losses
from gradstep.linear import _reference as reference
from oracle import (
    DTYPES,
    OLDER_PROCESSOR,
    THREADS,
    assert_same_bits,
    hostile,
    mild,
    needs_glibc,
    python,
)

LABELS = ("logistic", "softmax", "squared_hinge")
VARIANTS = ("sag", "saga", "svrg")
INDICES = (np.int32, np.int64)
MOVED = ("coef", "intercept", "table", "sum", "intercept_sum")
FIXED = ("means", "squares", "coverage", "largest_norm", "total_weight")
OUTPUTS = (1, 2, 3, 7, 8, 9, 17)
FEATURES = (1, 7, 8, 9, 15, 16, 17, 33, 511, 512, 513)  # from 513 on rows are read where they lie
ROWS = (1, 2, 3, 65, 300)


def csr(table, index=np.int32):
    """Sparse rows as `FiniteSum` takes them, of the elements that are not 0."""
    held = table != 0  # NaN is
    offsets = np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(index)
    return table[held], np.nonzero(held)[1].astype(index), offsets, table.shape[1]


@dataclass(frozen=True)
class Case:
    """Data drawn by the sizes, and what is done with them."""

    loss: str = "logistic"
    variant: str = "saga"
    dtype: type = np.float64
    index: type | None = None  # of sparse rows
    features: int = 9
    rows: int = 65
    outputs: int = 1
    weights: str = "none"
    l1: float = 0.0
    intercept: bool = True
    lr: float = 0.05
    numbers: str = "mild"
    draws: int = 25

    def data(self):
        rng = np.random.default_rng([self.features, self.rows, self.outputs])
        numbers = {"mild": mild, "hostile": hostile}[self.numbers]
        table = numbers(rng, self.rows * self.features, self.dtype)
        table = table.reshape(self.rows, self.features)
        if self.numbers == "mild":
            table += self.dtype(1.5)  # so that centring counts
        if self.index is not None:
            table[rng.random(table.shape) < min(0.6, 1 - 6 / self.features)] = 0
        if self.loss in LABELS:
            targets = rng.integers(0, max(self.outputs, 2), self.rows).astype(np.float64)
        else:
            targets = rng.standard_normal((self.rows, self.outputs))
        unequal = rng.uniform(0.1, 3, self.rows)
        some = np.where(np.arange(self.rows) % 3 == 1, 0.0, unequal)
        weights = {
            "none": None, "equal": np.full(self.rows, 2.5), "unequal": unequal, "zeros": some,
        }[self.weights]  # fmt: skip
        return table, targets, weights

    def make(self, implementation, table=None):
        own, targets, weights = self.data()
        table = own if table is None else table
        rows = table if self.index is None else csr(table, self.index)
        return implementation.FiniteSum(rows, targets, weights, self.loss, self.outputs, 0.7, True)

    def descend(self, finite_sum, draws=None, first=5):
        draws = self.draws if draws is None else draws
        finite_sum.descend(
            self.variant, self.lr, 0.1, self.l1, self.intercept, draws, 2**64 - 3, first
        )

    def results(self, implementation, table=None) -> dict[str, np.ndarray]:
        """Descent from nothing known, a snapshot of where it came to, and descent from there."""
        finite_sum = self.make(implementation, table)
        self.descend(finite_sum)
        found = {f"{name} at first": state(finite_sum, name) for name in (*FIXED, *MOVED)}
        found["loss"] = np.float64(finite_sum.snapshot())
        found |= {f"{name} of the snapshot": state(finite_sum, name) for name in MOVED}
        self.descend(finite_sum)
        return found | {f"{name} at last": state(finite_sum, name) for name in MOVED}


def state(finite_sum, name):
    return np.array(getattr(finite_sum, name))


@functools.cache
def oracle_results(case):
    return case.results(reference)


def assert_same(actual, expected, message=""):
    assert actual.keys() == expected.keys()
    for name in actual:
        assert_same_bits(actual[name], expected[name], f"{name}; {message}")


def covering():
    """Every loss, variant and layout with one another; the rest as a fixed seed deals it."""
    layouts = itertools.product(DTYPES, (None, *INDICES))
    for n, (loss, variant, (dtype, index)) in enumerate(
        itertools.product(reference.LOSSES, VARIANTS, layouts)
    ):
        rng = np.random.default_rng(n)
        outputs = int(rng.choice(OUTPUTS[1:] if loss == "softmax" else OUTPUTS))
        yield Case(
            loss, variant, dtype, index,
            features=int(rng.choice(FEATURES[:-3])),
            rows=int(rng.choice(ROWS[:-1])),
            outputs=1 if loss == "logistic" else outputs,
            weights=str(rng.choice(["none", "equal", "unequal", "zeros"])),
            l1=float(rng.choice([0.0, 0.02])),
            intercept=bool(rng.integers(2)),
        )  # fmt: skip


def sizes():
    """Every size beside the borders of vectors, and of the room that copies of rows may take."""
    for dtype, features in itertools.product(DTYPES, FEATURES):
        yield Case("logistic", dtype=dtype, features=features, weights="unequal")
        yield Case("squared_hinge", "sag", dtype, features=features, outputs=2, l1=0.02, rows=3)
    for outputs, index in itertools.product(OUTPUTS[1:], (None, *INDICES)):
        yield Case("softmax", index=index, outputs=outputs, rows=7)
        yield Case("least_squares", "svrg", np.float32, index, outputs=outputs, rows=7, l1=0.02)
    for index, rows in itertools.product((None, np.int32), ROWS):
        yield Case("huber", "sag", index=index, rows=rows, weights="zeros")


def far():
    """Rows with NaN, infinity and denormals; steps so long that weights become infinite and NaN."""
    for loss, index in itertools.product(reference.LOSSES, (None, np.int32)):
        case = Case(loss, index=index, outputs=1 if loss == "logistic" else 3, l1=0.02, rows=20)
        yield replace(case, numbers="hostile", variant="svrg", dtype=np.float32)
        yield replace(case, numbers="hostile")
        for lr in (1e3, 1e200):
            yield replace(case, lr=lr)
            yield replace(case, lr=lr, l1=0.0, variant="sag", weights="zeros")


CASES = tuple(dict.fromkeys((*covering(), *sizes(), *far())))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.loss}-{case.variant}")
def test_same_bits(case, level):
    gs.set_num_threads(2)
    assert_same(case.results(_core), oracle_results(case), str(case))


def test_the_cases_hold_every_choice():
    for name, choices in (("features", FEATURES), ("rows", ROWS), ("outputs", OUTPUTS)):
        assert {getattr(case, name) for case in CASES} >= set(choices)
    for one, other in itertools.combinations(
        ("loss", "variant", "dtype", "index", "weights", "l1", "intercept"), 2
    ):
        pairs = {(getattr(case, one), getattr(case, other)) for case in CASES}
        wanted = itertools.product(*({getattr(c, name) for c in CASES} for name in (one, other)))
        assert pairs == set(wanted), f"{one} and {other}"
    far_away = oracle_results(replace(Case(), rows=20, l1=0.02, lr=1e200))
    assert np.isnan(far_away["coef at last"]).any(), "divergence is to be seen"


@pytest.mark.parametrize("index", [None, np.int32])
@pytest.mark.parametrize("threads", THREADS)
def test_threads(level, threads, index):
    """As many rows and columns as are worth two threads and more, in blocks of 64 rows."""
    gs.set_num_threads(threads)
    for case in (
        Case("logistic", dtype=np.float32, features=513, rows=300, index=index, draws=3),
        Case("softmax", features=33, rows=300, outputs=9, index=index, draws=3, weights="unequal"),
    ):
        assert_same(case.results(_core), oracle_results(case), str(case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_anywhere_in_memory(dtype, level):
    """Steps over rows, columns of a wider table, any alignment, memory that is only read."""
    for features, rows in itertools.product((1, 5, 8, 13, 513), (1, 2, 3, 20)):
        case = Case(dtype=dtype, features=features, rows=rows)
        table, _, _ = case.data()
        expected = oracle_results(case)

        def within(shape, part, table=table):
            room = np.full(shape, np.nan, table.dtype)
            room[part] = table
            room.setflags(write=False)
            return room[part]

        places = {
            "every other row": within((2 * rows, features), np.s_[::2]),
            "the first columns": within((rows, features + 3), np.s_[:, :features]),
            "the last columns": within((rows, features + 9), np.s_[:, 9:]),
            "both": within((3 * rows + 1, features + 1), np.s_[1::3, 1:]),
        }
        for place, view in places.items():
            assert_same(case.results(_core, view), expected, f"{place}; {case}")


@pytest.mark.parametrize("features", [1, 9, 600])
@pytest.mark.parametrize("index", [None, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_resumed_descent_is_one_long_descent(dtype, index, features, level):
    """In parts that end beside the batches of 256 in which rows are drawn."""
    case = Case("least_squares", features=features, dtype=dtype, index=index, weights="zeros")
    parts = (0, 1, 255, 256, 257, 0, 511, 7)
    long, resumed = case.make(_core), case.make(_core)
    case.descend(long, sum(parts))
    for first, draws in zip(itertools.accumulate((5, *parts)), parts, strict=False):
        case.descend(resumed, draws, first)
    for name in MOVED:
        assert_same_bits(state(resumed, name), state(long, name), name)
    if features == 1:  # the others take the oracle long
        expected = case.make(reference)
        case.descend(expected, sum(parts))
        for name in MOVED:
            assert_same_bits(state(long, name), state(expected, name), name)


def digest(implementation=_core) -> str:
    """Of all results, printed in a subprocess too."""
    total = hashlib.sha256()
    for case in covering():
        found = oracle_results(case) if implementation is reference else case.results(_core)
        for result in found.values():
            total.update(np.where(np.isnan(result), 0, result).tobytes())
    return total.hexdigest()


@needs_glibc
def test_older_processor_as_the_c_library_sees_it():
    code = "import test_linear_kernels; print(test_linear_kernels.digest())"
    assert python(code, **OLDER_PROCESSOR).strip() == digest(reference)
