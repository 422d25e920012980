"""Gradients of some rows: the oracle's bits, rows that rest, PyTorch as the second opinion."""

from __future__ import annotations

import array
import functools
import re
import sys

import hypothesis
import hypothesis.extra.numpy as nps
import hypothesis.strategies as st
import numpy as np
import pytest

import gradstep as gs
from gradstep import reference
from oracle import DTYPES, NO_ARRAY, SPAN, THREADS, assert_same_bits, hostile, mild, python

NAN, INF = float("nan"), float("inf")
SPARSE = (gs.SparseAdam, gs.SparseAdagrad)
every_class = pytest.mark.parametrize("cls", SPARSE)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)

#: Indices of rows, given a number generator and how many rows there are.
KINDS = {
    "none": lambda rng, rows: np.zeros(0, np.int64),
    "one": lambda rng, rows: np.array([rows - 1]),
    "distinct": lambda rng, rows: rng.permutation(rows)[: rows // 2],
    "ascending": lambda rng, rows: np.sort(rng.permutation(rows)[: rows // 2]),
    "repeated": lambda rng, rows: rng.integers(0, max(rows // 8, 1), rows),
    "repeated, ascending": lambda rng, rows: np.sort(rng.integers(0, rows, rows)),
    "all": lambda rng, rows: np.arange(rows),
    "all, backwards": lambda rng, rows: np.arange(rows)[::-1].copy(),
    "the same": lambda rng, rows: np.full(rows, rows // 2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
#: Of parameters; the rows have 1, 1, 3, 17, 64, 15 and 1,000 elements.
SHAPES = [(300,), (300, 1), (200, 3), (100, 17), (70, 64), (40, 3, 5), (20, 1000)]
#: What is done to gradients, by the step.
TREATMENTS = [{}, {"clip_norm": 0.5}, {"grad_scale": 0.25, "clip_value": 0.1, "zero_grad": True}]


def twins(cls, params, **options):
    """An optimizer and its oracle, each with parameters of its own."""
    copies = [p.copy() for p in params] if isinstance(params, list) else params.copy()
    return cls(params, **options), reference.in_numpy(cls)(copies, **options)


def assert_equal_arrays(opt, oracle):
    for actual, expected in zip(opt._arrays(), oracle._arrays(), strict=True):
        assert_same_bits(actual, expected)


def draw(rng, kind, param, numbers=mild, index_type=np.int64):
    indices = KINDS[kind](rng, len(param)).astype(index_type)
    size = len(indices) * param[0].size
    return indices, numbers(rng, size, param.dtype.type).reshape(len(indices), *param.shape[1:])


@pytest.mark.covering
@every_class
@every_dtype
@every_kind
@pytest.mark.parametrize("numbers", [hostile, mild])
def test_equals_the_oracle(cls, dtype, kind, numbers, level):
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        param = numbers(rng, int(np.prod(shape)), dtype).reshape(shape)
        opt, oracle = twins(cls, param, lr=0.1, maximize=len(shape) == 2)
        for t in range(4):
            index_type = (np.int64, np.int32)[t % 2]
            given = draw(rng, kind, param, numbers, index_type)
            copies = [x.copy() for x in given]
            treatment = TREATMENTS[t % 3]
            if numbers is hostile:  # which have no norm
                treatment = {key: x for key, x in treatment.items() if key != "clip_norm"}
            assert opt.step(given, **treatment) == oracle.step(copies, **treatment)
            assert_equal_arrays(opt, oracle)
            for ours, theirs in zip(given, copies, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        assert opt.t == oracle.t == 4


@functools.cache
def large_steps(cls, kind, width):
    """Parameters of both types with enough elements for seven threads, gradients, and the ends."""
    rng = np.random.default_rng(1)
    start = [
        mild(rng, rows * columns, DTYPES[i % 2]).reshape(rows, columns)
        for i, (rows, columns) in enumerate([(4 * SPAN // width, width), (5, 3)] * 2)
    ]
    grads = [[draw(rng, kind, param) for param in start] for _ in range(2)]
    # The oracle measures row by row.
    treatments = [{}, {"clip_norm": 0.5}] if width >= 64 else [{}, {"clip_value": 0.1}]
    calls = [(pairs, treatment) for pairs in grads for treatment in treatments]
    oracle = twins(cls, start)[1]
    return start, calls, oracle, [oracle.step(pairs, **treatment) for pairs, treatment in calls]


@pytest.mark.covering
@every_class
@pytest.mark.parametrize("kind", ["distinct", "repeated", "all", "the same"])
@pytest.mark.parametrize("width", [1, 17, 64, 1000])
def test_threads(cls, kind, width, level):
    start, calls, oracle, results = large_steps(cls, kind, width)
    measured = []
    for threads in THREADS:
        gs.set_num_threads(threads)
        opt = cls([param.copy() for param in start])
        assert [opt.step(pairs, **treatment) for pairs, treatment in calls] == results
        assert_equal_arrays(opt, oracle)
        measured.append(opt.step(calls[0][0], clip_norm=1e-3))
    assert len(set(measured)) == 1


@every_class
@every_dtype
def test_rows_without_a_gradient_keep_their_bits(cls, dtype):
    """NaN, denormals and -0 among them, in the parameter and in every state."""
    rng = np.random.default_rng(2)
    w = hostile(rng, 60, dtype).reshape(20, 3)
    opt = cls(w)
    for state in opt.state.values():
        state[...] = hostile(rng, 60, dtype).reshape(20, 3)
    rests = np.ones(20, bool)
    rests[[3, 7, 19]] = False
    before = [x[rests].tobytes() for x in opt._arrays()]
    for _ in range(5):
        opt.step((np.array([19, 3, 7, 3]), mild(rng, 12, dtype).reshape(4, 3)))
    assert [x[rests].tobytes() for x in opt._arrays()] == before
    opt.step((np.zeros(0, int), np.zeros((0, 3), dtype)))
    assert opt.t == 6


def test_rows_of_one_index_are_summed_in_their_order():
    """In their own type: here the large numbers go before the small one comes, or after."""
    for order, gradient in [([1e8, -1e8, 1.0], 1.0), ([1e8, 1.0, -1e8], 0.0)]:
        w = np.zeros(2, np.float32)
        gs.SparseAdagrad(w, lr=1.0).step((np.ones(3, int), np.array(order, np.float32)))
        np.testing.assert_array_equal(w, [0, -gradient])


@every_dtype
def test_sparse_adagrad_is_adagrad(dtype):
    """Whose rows without a gradient rest too."""
    rng = np.random.default_rng(3)
    w = mild(rng, 90, dtype).reshape(30, 3)
    dense = w.copy()
    sparse_opt, opt = gs.SparseAdagrad(w, lr_decay=0.1), gs.Adagrad(dense, lr_decay=0.1)
    for _ in range(10):
        indices, rows = draw(rng, "repeated", w)
        touched, sums = reference.coalesce(indices, rows)
        g = np.zeros_like(w)
        g[touched] = sums
        sparse_opt.step((indices, rows))
        opt.step(g)
    assert_same_bits(w, dense)
    assert_same_bits(sparse_opt.state["s"], opt.state["s"])


@every_class
@hypothesis.given(data=st.data())
def test_anything(cls, data):
    """Hypothesis picks shapes, indices, numbers, treatments and threads."""
    dtype = np.dtype(data.draw(st.sampled_from(DTYPES), "dtype"))
    shape = data.draw(nps.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9), "shape")
    numbers = st.floats(-8, 8, width=32) if data.draw(st.booleans()) else nps.from_dtype(dtype)
    start = data.draw(nps.arrays(dtype, shape, elements=numbers), "w")
    opt, oracle = twins(cls, start, lr=0.1, skip_nonfinite=data.draw(st.booleans()))
    gs.set_num_threads(data.draw(st.sampled_from(THREADS)))
    for _ in range(2):
        indices = data.draw(
            nps.arrays(
                data.draw(st.sampled_from([np.int32, np.int64])),
                st.integers(0, 12),
                elements=st.integers(0, shape[0] - 1),
            ),
            "indices",
        )
        rows = data.draw(nps.arrays(dtype, (len(indices), *shape[1:]), elements=numbers), "rows")
        treatment = {
            "grad_scale": data.draw(st.floats(0.25, 4, width=32), "grad_scale"),
            "clip_value": data.draw(st.none() | st.floats(0.25, 4, width=32), "clip_value"),
            "zero_grad": data.draw(st.booleans(), "zero_grad"),
        }
        if np.isfinite(rows).all() and abs(rows).max(initial=0) <= 8:
            treatment["clip_norm"] = data.draw(st.none() | st.floats(0.25, 4), "clip_norm")
        copy = rows.copy()
        found = opt.step((indices, rows), **treatment)
        np.testing.assert_equal(found, oracle.step((indices, copy), **treatment))
        assert_equal_arrays(opt, oracle)
        assert_same_bits(rows, copy)


def test_neighbours_in_memory_keep_their_own_states():
    """Parameters and gradients of an arena touch, but not the states of a small and a large one."""
    rng = np.random.default_rng(2)
    start = [rng.standard_normal(shape) for shape in ((4, 3), (1000, 3))]
    rows = [rng.standard_normal((2, 3)) for _ in start]
    indices = [np.array([2, 3]), np.array([0, 1])]
    outcomes = []
    for params, grads in (
        ([w.copy() for w in start], rows),
        (gs.flatten(start).views, gs.flatten(rows).views),
    ):
        opt = gs.SparseAdam(params, lr=0.1)
        for _ in range(2):
            opt.step([*zip(indices, grads, strict=True)])
        outcomes.append(opt._arrays())
    for ours, expected in zip(*outcomes, strict=True):
        assert_same_bits(ours, expected)


def test_more_rows_than_three_bytes_count():
    w = np.zeros(2**24 + 7, np.float32)
    far = 2**24 + 6
    indices = np.array([far, 6, 2**16 + 6, 2**8 + 6, 2**24, far])  # equal but for one byte
    gs.SparseAdagrad(w, lr=1.0, eps=1.0).step((indices, np.ones(6, np.float32)))
    np.testing.assert_array_equal(np.flatnonzero(w), np.unique(indices))
    np.testing.assert_array_equal(w[[far, *indices[1:5]]], -np.array([2 / 3, *[1 / 2] * 4], "f"))


def test_rows_without_elements():
    w = np.zeros((4, 0))
    opt = gs.SparseAdam([w, np.zeros((0, 3))])
    nothing = np.zeros(0, np.int32), np.zeros((0, 3))
    assert opt.step([(np.array([1, 1, 0]), np.zeros((3, 0))), nothing], clip_norm=1.0) == (0, 0, 0)
    with pytest.raises(ValueError, match=r"indices of grads\[1\] must be at least 0 and below 0"):
        opt.step([(np.array([1]), np.zeros((1, 0))), (np.array([0]), np.zeros((1, 3)))])
    assert opt.t == 1


@pytest.mark.parametrize("make", [list, tuple, lambda arrays: dict(enumerate(arrays))])
def test_structures(make):
    single = np.float32
    opt = gs.SparseAdagrad(make([np.zeros((3, 2), single), np.zeros(4, single)]), lr=1.0)
    pair = np.array([1]), np.ones((1, 2), single)
    opt.step(make([pair, (np.array([], np.int32), np.zeros(0, single))]))
    pair = [np.array([0]), np.full((1, 2), -5, single)]  # a list of two is a pair too
    opt.step(make([pair, (np.array([2, 0]), np.ones(2, single))]))
    w, b = (opt.params[i] for i in range(2))
    np.testing.assert_array_equal(w, [[1, 1], [-1, -1], [0, 0]])
    np.testing.assert_array_equal(b, [-1, 0, -1, 0])


@pytest.mark.torch
def test_arrays_of_other_libraries():
    w = np.zeros(4, np.float32)
    opt = gs.SparseAdagrad(w, lr=1.0)
    opt.step((array.array("q", [3, 0]), array.array("f", [1.0, -1.0])))
    np.testing.assert_array_equal(w, [1, 0, 0, -1])
    opt.step((memoryview(array.array("i", [1])), np.ones(1, np.float32)))
    torch = pytest.importorskip("torch", reason="no PyTorch")
    opt.step((torch.tensor([2]), torch.ones(1)))
    np.testing.assert_array_equal(w, [1, -1, -1, -1])


# Options ------------------------------------------------------------------------------------------


def test_the_norm_is_that_of_the_sums():
    w = np.zeros((3, 2))
    opt = gs.SparseAdagrad(w, lr=1.0, eps=1.0)
    pair = np.array([1, 0, 1]), np.array([[1.0, 1.0], [0.0, 8.0], [2.0, 3.0]])
    found = opt.step(pair, grad_scale=2.0, clip_norm=INF)
    assert found == gs.StepResult(2 * (3**2 + 4**2 + 8**2) ** 0.5, clipped=False, skipped=False)
    assert opt.step(pair, clip_norm=1.0).clipped


def test_zero_grad_clears_all_rows_and_no_index():
    indices, rows = np.array([2, 0, 2]), np.ones((3, 2))
    gs.SparseAdam(np.zeros((4, 2))).step((indices, rows), zero_grad=True)
    np.testing.assert_array_equal(rows, np.zeros((3, 2)))
    np.testing.assert_array_equal(indices, [2, 0, 2])


def test_gradients_are_only_read():
    pair = np.array([2, 0, 2], np.int32), np.ones((3, 2))
    for x in pair:
        x.setflags(write=False)
    gs.SparseAdam(np.zeros((4, 2))).step(pair)
    with pytest.raises(ValueError, match="rows of grads is read-only"):
        gs.SparseAdam(np.zeros((4, 2))).step(pair, zero_grad=True)
    np.testing.assert_array_equal(pair[1], np.ones((3, 2)))


def test_a_skipped_step_changes_nothing():
    """Also where each gradient is finite and their sum is not."""
    w, rows = np.ones((3, 1), np.float32), np.full((2, 1), 3e38, np.float32)
    opt = gs.SparseAdam(w, skip_nonfinite=True)
    for bad in (rows, np.array([[NAN], [1]], np.float32)):
        found = opt.step((np.array([1, 1]), bad), zero_grad=True)
        assert found.skipped
        assert opt.t == 0
        np.testing.assert_array_equal(w, np.ones((3, 1)))
        assert bad.any()
    assert not opt.step((np.array([1, 0]), rows)).skipped
    with pytest.raises(ValueError, match=r"grads\[1\] holds NaN or infinity, so clip_norm cannot"):
        gs.SparseAdam([np.ones(2), np.ones(3)]).step(
            [(np.array([0]), np.ones(1)), (np.array([0, 2]), np.array([1, NAN]))], clip_norm=1.0
        )


@pytest.mark.skipif(sys.platform == "win32", reason="untested")
def test_flushed_denormals_count_as_0_in_sums():
    indices, rows = np.zeros(2, int), np.full(2, 1.5e-308)  # the sum is no denormal
    for flush in (False, True):
        w = np.zeros(1)
        gs.SparseAdagrad(w, lr=1.0, flush_denormals=flush).step((indices, rows))
        assert (w[0] == 0) == flush


def test_resumes_with_the_same_bits(tmp_path):
    rng = np.random.default_rng(4)
    steps = [draw(rng, "repeated", np.zeros((40, 5))) for _ in range(10)]
    schedule = gs.schedules.cosine(0.1, total_steps=10)
    whole, first = (gs.SparseAdam(np.ones((40, 5)), lr=schedule) for _ in range(2))
    for pair in steps:
        whole.step(pair)
    for pair in steps[:4]:
        first.step(pair)
    first.save(tmp_path / "state.npz")
    by_file = gs.SparseAdam(np.zeros((40, 5)), lr=schedule)
    by_file.load(tmp_path / "state.npz")
    by_dict = gs.SparseAdam(first.params.copy(), lr=schedule)
    by_dict.load_state_dict(first.state_dict())
    for opt in (by_file, by_dict):
        for pair in steps[4:]:
            opt.step(pair)
        assert_equal_arrays(opt, whole)


def test_there_is_no_weight_decay():
    message = r"\(\) has no argument 'weight_decay', which would move all rows"
    for cls in SPARSE:
        with pytest.raises(TypeError, match=message):
            cls(np.ones(3), weight_decay=0.0)
        opt = cls(np.ones(3))
        assert "weight_decay" not in opt.hyperparameters
        assert "weight_decay" not in repr(opt)
        state = opt.state_dict()
        state["hyperparameters"]["weight_decay"] = 0.1
        with pytest.raises(ValueError, match=r"unknown \['weight_decay'\]"):
            opt.load_state_dict(state)


# Bad calls ----------------------------------------------------------------------------------------

good, three = np.array([0, 2, 1]), np.ones((3, 2))
room = np.zeros(48, np.uint8)

BAD_GRADS = [
    (np.ones((4, 2)), TypeError, "grads must be a pair (indices, rows), got ndarray; dense"),
    (None, TypeError, "grads must be a pair (indices, rows), got NoneType"),
    ((good,), TypeError, "grads must be a pair (indices, rows), got tuple of 1"),
    ([good, three, three], TypeError, "got list of 3"),
    (([0, 2, 1], three), TypeError, f"indices of grads {NO_ARRAY}list"),
    ((good, [[1.0, 1.0]] * 3), TypeError, f"rows of grads {NO_ARRAY}list"),
    ((three, good), TypeError, "indices of grads must have dtype int32 or int64, got float64"),
    ((good.astype(np.int16), three), TypeError, "int32 or int64, got int16"),
    ((good.astype(np.uint64), three), TypeError, "int32 or int64, got uint64"),
    ((good > 0, three), TypeError, "int32 or int64, got bool"),
    ((good.astype(">i8"), three), TypeError, "indices of grads must have the byte order"),
    ((np.ma.array(good), three), TypeError, "indices of grads must be a numpy.ndarray, got a mas"),
    ((good[:, None], three), ValueError, "indices of grads must have one axis, got shape (3, 1)"),
    ((np.array(0), three[:1]), ValueError, "indices of grads must have one axis, got shape ()"),
    ((good[::-1], three), ValueError, "indices of grads must be C-contiguous, got shape (3,)"),
    ((room[4:28].view(np.int64), three), None, ""),
    ((np.array([0, 4, -1]), three), ValueError, "at least 0 and below 4, got 4 at position 1"),
    ((np.array([0, 1, -1], np.int32), three), ValueError, "below 4, got -1 at position 2"),
    ((np.array([0, 2**40, 0]), three), ValueError, "got 1099511627776 at position 1"),
    ((good, three.astype("f")), TypeError, "rows of grads must have the dtype of params, float64"),
    ((good, three.astype(int)), TypeError, "rows of grads must have dtype float32, float64"),
    ((good, three[:2]), ValueError, "row of params for each index, shape (3, 2), got (2, 2)"),
    ((good, np.ones(3)), ValueError, "row of params for each index, shape (3, 2), got (3,)"),
    ((good, np.ones((3, 3))), ValueError, "shape (3, 2), got (3, 3)"),
    ((good, np.ones((2, 3)).T), ValueError, "rows of grads must be C-contiguous"),
]


@every_class
@pytest.mark.parametrize(("grads", "error", "message"), BAD_GRADS)
def test_gradients_that_do_not_fit(cls, grads, error, message):
    if error is None:  # where 8 bytes need not be aligned to 8
        pytest.skip("this array is aligned") if grads[0].flags.aligned else None
        error, message = ValueError, "indices of grads must be aligned to its 8-byte elements"
    opt = cls(np.ones((4, 2)))
    opt.step((good, three))
    before = [x.copy() for x in opt._arrays()]
    with pytest.raises(error, match=re.escape(message)):
        opt.step(grads, zero_grad=True)
    assert opt.t == 1
    for x, kept in zip(opt._arrays(), before, strict=True):
        np.testing.assert_array_equal(x, kept)
    assert three.all()


def test_a_wrong_index_in_a_later_array_changes_nothing():
    params = {"a": np.ones((4, 2)), "b": np.ones(3)}
    opt = gs.SparseAdam(params)
    with pytest.raises(ValueError, match=re.escape("indices of grads['b'] must be at least 0 and")):
        opt.step({"a": (good, three), "b": (np.array([3]), np.ones(1))})
    assert opt.t == 0
    assert all((param == 1).all() for param in params.values())
    opt.step({"a": (good, three), "b": (np.array([2]), np.ones(1))})
    assert opt.t == 1


def test_params_have_rows():
    with pytest.raises(ValueError, match=re.escape("params[1] must have rows, along its first")):
        gs.SparseAdam([np.ones(2), np.ones(())])


def test_memory_that_is_shared():
    both = np.zeros((8, 2))
    opt = gs.SparseAdam([both[:4], np.ones((4, 2))])
    other = good, np.ones((3, 2))
    state = opt.state["m"][1]
    as_indices = both.reshape(-1).view(np.int64)[:3]
    for pair, name in [
        ((good, both[1:4]), "rows of grads[0] shares memory with params[0]"),
        ((good, state[:3]), "rows of grads[0] shares memory with state m[1]"),
        ((as_indices, other[1]), "indices of grads[0] shares memory with params[0]"),
    ]:
        with pytest.raises(ValueError, match=re.escape(name + ", which the step writes to")):
            opt.step([pair, other])
    opt.step([other, other])  # which are only read
    with pytest.raises(ValueError, match=r"is the same array as .*, so zero_grad would clear one"):
        opt.step([other, other], zero_grad=True)
    rows = np.zeros((2, 2))
    with pytest.raises(ValueError, match=re.escape("indices of grads[1] shares memory with rows")):
        opt.step([(good[:2], rows), (rows.view(np.int64)[0], rows + 1)], zero_grad=True)
    apart = good, np.ones((3, 2))
    opt.step([other, apart], zero_grad=True)  # the same indices for both
    assert opt.t == 2
    assert not apart[1].any()


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_no_memory_for_the_sums():
    code = """
import resource, numpy as np, gradstep as gs
w, rows = np.ones((10, 10**6), np.float32), np.ones((30, 10**6), np.float32)
opt = gs.SparseAdam(w)
opt.step((np.array([1]), rows[:1]))
before = [x.copy() for x in opt._arrays()]
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24,) * 2)
try:
    opt.step((np.arange(30) % 10, rows), zero_grad=True)
except MemoryError:
    print(opt.t, rows.all(), all(map(np.array_equal, opt._arrays(), before)))
"""
    assert python(code, GRADSTEP_NUM_THREADS="1") == "1 True True\n"


# PyTorch ------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("SparseAdam", "SparseAdam", {"lr": 0.01}),
        ("SparseAdam", "SparseAdam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}),
        ("SparseAdagrad", "Adagrad", {"lr": 0.05}),
        ("SparseAdagrad", "Adagrad", {"lr": 0.05, "lr_decay": 0.1, "eps": 1e-4}),
        ("SparseAdagrad", "Adagrad", {"lr": 0.05, "initial_accumulator_value": 0.3}),
    ],
)
@pytest.mark.parametrize("maximize", [False, True])
def test_fifty_steps_of_torch(ours, theirs, options, maximize):
    torch = pytest.importorskip("torch", reason="no PyTorch, no second opinion")
    rng = np.random.default_rng(5)
    start = rng.standard_normal((30, 4))
    w, tensor = start.copy(), torch.tensor(start, requires_grad=True)
    opt = getattr(gs, ours)(w, maximize=maximize, **options)
    their_opt = getattr(torch.optim, theirs)([tensor], maximize=maximize, **options)
    for t in range(50):
        indices = rng.integers(0, 20, (0 if t == 7 else 12))
        rows = rng.standard_normal((len(indices), 4))
        opt.step((indices, rows))
        with torch.sparse.check_sparse_tensor_invariants():  # or PyTorch warns
            tensor.grad = torch.sparse_coo_tensor(
                torch.from_numpy(indices)[None], torch.from_numpy(rows), (30, 4)
            )
            their_opt.step()
    np.testing.assert_allclose(w, tensor.detach().numpy(), rtol=1e-12)
    np.testing.assert_array_equal(w[20:], start[20:])
    assert (w != start)[:20].all()


@pytest.mark.torch
@pytest.mark.parametrize(("ours", "theirs"), [("SparseAdam",) * 2, ("SparseAdagrad", "Adagrad")])
def test_defaults_are_those_of_torch(ours, theirs):
    torch = pytest.importorskip("torch", reason="no PyTorch, no second opinion")
    found = getattr(gs, ours)(np.ones(3)).hyperparameters
    defaults = getattr(torch.optim, theirs)([torch.ones(3)]).defaults
    for i, beta in enumerate(defaults.pop("betas", ()), 1):
        defaults[f"beta{i}"] = beta
    assert found == {name: defaults[name] for name in found}
