"""Whatever shows memory of the CPU is a parameter, a gradient, a state: no copy, and no mix-up."""

from __future__ import annotations

import array
import ctypes
import gc
import re

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, functional
from oracle import as_taken, assert_same_bits, beside, needed

try:
    import torch
except ImportError:
    torch = None

START, GRADIENT = [1.0, -2.0, 3.0, 0.5], [0.1, -10.0, 0.0, 2.0]


class Exporter:
    """An array of a library that speaks DLPack, and no more."""

    def __init__(self, numbers, device=(1, 0)):
        self.memory, self.device = np.array(numbers), device

    def __dlpack__(self, **options):
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


def mapped(numbers, tmp_path):
    made = np.memmap(tmp_path / "numbers", np.float64, "w+", shape=len(numbers))
    made[:] = numbers
    return made


def typed_bytearray(numbers, _):
    view = memoryview(bytearray(8 * len(numbers))).cast("d")
    view[:] = array.array("d", numbers)
    return view


KINDS = {
    "numpy": lambda numbers, _: np.array(numbers),
    "memmap": mapped,
    "array.array": lambda numbers, _: array.array("d", numbers),
    "memoryview": lambda numbers, _: memoryview(array.array("d", numbers)),
    "bytearray": typed_bytearray,
    "ctypes": lambda numbers, _: (ctypes.c_double * len(numbers))(*numbers),
    "DLPack": lambda numbers, _: Exporter(numbers),
}
if torch is not None:
    KINDS["torch"] = lambda numbers, _: torch.tensor(numbers, dtype=torch.float64)


def numbers_in(thing):
    if isinstance(thing, Exporter):
        return thing.memory.copy()
    return np.array(thing) if torch is None or not torch.is_tensor(thing) else thing.numpy().copy()


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


#: Muon takes matrices: see test_orthogonal.py.
OF_VECTORS = [cls for cls in gs.optimizers.CLASSES if cls is not gs.Muon]


@pytest.mark.covering
@pytest.mark.parametrize("cls", OF_VECTORS, ids=lambda cls: cls.__name__)
def test_every_rule_updates_it_in_place(cls, kind, tmp_path):
    if cls is gs.SVRG:
        options = {"lr": 0.1, "full_gradient": lambda v: v * 0.3, "every": 4}
    else:
        options = needed(cls)
    ours, expected = kind(START, tmp_path), np.array(START)
    opt, twin = cls(ours, **options), cls(expected, **options)
    assert opt.params is ours
    for t in range(5):
        g = np.array(GRADIENT) * (t + 1)
        opt.step(as_taken(cls, g), **beside(opt, g, t))
        twin.step(as_taken(cls, g), **beside(twin, g, t))
    assert_same_bits(numbers_in(ours), expected)
    assert not np.array_equal(expected, START)


@pytest.mark.parametrize("structure", [lambda x: [x], lambda x: {"w": x}], ids=["list", "dict"])
def test_in_structures_as_gradients_and_in_numpy(structure, kind, tmp_path):
    ends = []
    for cls in (gs.AdamW, gs.reference.in_numpy(gs.AdamW)):
        ours = kind(START, tmp_path)
        opt = cls(structure(ours), lr=0.1)
        for _ in range(3):
            g = kind(GRADIENT, tmp_path) if kind is not KINDS["memmap"] else np.array(GRADIENT)
            opt.step(structure(g), clip_norm=1.0)
            opt.step(structure(g))
        assert (opt.params["w"] if isinstance(opt.params, dict) else opt.params[0]) is ours
        ends.append(numbers_in(ours))
    expected = np.array(START)
    twin = gs.AdamW(expected, lr=0.1)
    for _ in range(3):
        twin.step(np.array(GRADIENT), clip_norm=1.0)
        twin.step(np.array(GRADIENT))
    assert_same_bits(ends[0], expected)
    assert_same_bits(ends[1], expected)


def test_states_of_functional_and_flatten(kind, tmp_path):
    w = kind(START, tmp_path)
    m, v = array.array("d", [0.0] * 4), np.zeros(4)
    functional.adam(w, np.array(GRADIENT), m, v, lr=0.1)
    expected, m2, v2 = np.array(START), np.zeros(4), np.zeros(4)
    functional.adam(expected, np.array(GRADIENT), m2, v2, lr=0.1)
    assert_same_bits(numbers_in(w), expected)
    assert_same_bits(np.array(m), m2)
    assert_same_bits(gs.flatten([w]).flat, expected)


def test_a_table_of_another_library():
    table = array.array("d", bytes(8 * 6))
    opt = gs.SAG(np.zeros(2), lr=0.1, rows=3, table=memoryview(table).cast("B").cast("d", (3, 2)))
    opt.step(np.array([1.0, 2.0]), row=1)
    assert list(table) == [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]


def frozen(numbers):
    made = np.array(numbers)
    made.setflags(write=False)
    return made


READ_ONLY = {
    "memoryview": lambda numbers: memoryview(array.array("d", numbers)).toreadonly(),
    "bytes": lambda numbers: memoryview(array.array("d", numbers).tobytes()).cast("d"),
    "numpy": frozen,
    "DLPack": lambda numbers: Exporter(frozen(numbers)),
}


@pytest.mark.parametrize("make", READ_ONLY.values(), ids=READ_ONLY)
def test_read_only(make):
    """Refused as a parameter, and where it would be cleared; welcome as a gradient."""
    numbers = make(GRADIENT)
    if isinstance(numbers, Exporter):
        numbers.memory = frozen(GRADIENT)
    with pytest.raises(ValueError, match=re.escape("params['w'] is read-only, so it cannot be")):
        gs.Adam({"w": numbers})
    w, twin = np.array(START), np.array(START)
    opt = gs.Adam([w], lr=0.1)
    with pytest.raises(ValueError, match=re.escape("grads[0] is read-only")):
        opt.step([numbers], zero_grad=True)
    opt.step([numbers])
    gs.Adam(twin, lr=0.1).step(np.array(GRADIENT))
    assert_same_bits(w, twin)


REFUSED = [
    (lambda: [1.0, 2.0], TypeError, "[1] must be a numpy.ndarray, or expose a CPU buffer or"),
    (lambda: 3.0, TypeError, "got float"),
    (lambda: np.float64(3.0), TypeError, "got float64"),
    (
        lambda: b"12345678",
        TypeError,
        "[1] must have dtype float32, float64",
    ),
    (lambda: array.array("i", [1, 2, 3, 4]), TypeError, "got int32"),
    (
        lambda: memoryview(np.ones(8))[::2],
        ValueError,
        "[1] must be C-contiguous, got shape (4,) with strides (16,)",
    ),
    (lambda: memoryview(np.ones((2, 2), order="F")), ValueError, "must be C-contiguous"),
    (
        lambda: Exporter(START, device=(2, 0)),
        ValueError,
        "[1] must lie in the memory of the CPU, got DLPack's device (2, 0)",
    ),
    (lambda: Exporter([1, 2, 3, 4]), TypeError, "bfloat16 or float16, got int64"),
]
if torch is not None:
    REFUSED += [
        (lambda: torch.ones(4, device="meta"), TypeError, "[1] must expose its memory, float32 or"),
        (lambda: torch.ones(4).to_sparse(), TypeError, "layout other than torch.strided"),
        (lambda: torch.ones(2, 2).t(), ValueError, "[1] must be C-contiguous, got shape (2, 2)"),
        (lambda: torch.ones(4, dtype=torch.int32), TypeError, "got int32"),
        (lambda: torch._neg_view(torch.ones(4)), ValueError, "[1] is a negated view"),
    ]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_what_cannot_be_updated_is_refused_by_name(make, error, message):
    if message.startswith("["):
        message = "params" + message
    with pytest.raises(error, match=re.escape(message)):
        gs.Adam([np.ones(4), make()])


@pytest.mark.parametrize(("make", "error", "message"), REFUSED)
def test_what_is_no_gradient_is_refused_by_name(make, error, message):
    thing = make()
    if isinstance(thing, np.generic):
        message = "[1] must have the shape of params[1], (4,), got ()"
        error = ValueError
    w = [np.ones(4), np.ones(4)]
    opt = gs.Adam(w)
    with pytest.raises(error, match=re.escape(message.replace("[1]", "grads[1]", 1))):
        opt.step([np.ones(4), thing])
    assert opt.t == 0
    assert_same_bits(w[0], np.ones(4))


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
def test_what_numpy_has_no_dtype_for_is_a_gradient_alone():
    with pytest.raises(TypeError, match=r"got Tensor of dtype torch\.bfloat16: "):
        gs.Adam(torch.ones(4, dtype=torch.bfloat16))
    for dtype in (np.float32, np.float64):
        w = np.ones(4, dtype)
        gs.SGD(w, lr=1.0).step(torch.ones(4, dtype=torch.bfloat16))
        assert_same_bits(w, np.zeros(4, dtype))


def test_memory_is_held_as_long_as_the_optimizer_lives():
    numbers, pool = array.array("d", START), bytearray(32)
    opt = gs.SGD([numbers, memoryview(pool).cast("d")], lr=1.0)
    with pytest.raises(BufferError):
        numbers.append(1.0)
    with pytest.raises(BufferError):
        pool.extend(b"more")
    del opt
    gc.collect()
    numbers.append(1.0)
    pool.extend(b"more")


def test_two_views_of_one_buffer_are_one_array():
    numbers = array.array("d", START)
    with pytest.raises(ValueError, match=re.escape("params[1] is the same array as params[0]")):
        gs.SGD([numbers, memoryview(numbers)])
    opt = gs.SGD([numbers])
    with pytest.raises(ValueError, match=re.escape("grads[0] shares memory with params[0]")):
        opt.step([memoryview(numbers)])


def test_a_step_that_is_skipped_or_raises_changes_nothing():
    numbers = array.array("d", START)
    opt = gs.Adam(numbers, skip_nonfinite=True)
    opt.step(array.array("d", [np.nan] * 4))
    assert list(numbers) == START


@pytest.mark.skipif(torch is None, reason="needs PyTorch")
class TestTorch:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_gradients_of_all_ages(self, dtype):
        """Fresh ones, the same again, ones that need a gradient, single elements, empty ones."""
        shapes = [(3, 4), (1,), (), (0,), (2, 1, 5)]
        rng = np.random.default_rng(0)
        ours = [torch.tensor(rng.standard_normal(s).astype(dtype)) for s in shapes]
        twins = [w.numpy().copy() for w in ours]
        opt, twin = gs.Adam(ours, lr=0.1), gs.Adam(twins, lr=0.1)
        grads = [torch.tensor(rng.standard_normal(s).astype(dtype)) for s in shapes]
        for t in range(4):
            if t == 2:
                grads = [torch.tensor(g.numpy() + 1, requires_grad=True) for g in grads]
            opt.step(grads, clip_norm=0.5 if t == 3 else None)
            twin.step([g.detach().numpy() for g in grads], clip_norm=0.5 if t == 3 else None)
        for w, expected in zip(ours, twins, strict=True):
            assert_same_bits(w.numpy(), expected)

    def test_a_parameter_that_needs_a_gradient_says_what_to_do(self):
        w = torch.nn.Parameter(torch.ones(3))
        with pytest.raises(TypeError, match=re.escape("params[0] must expose its memory")) as info:
            gs.Adam([w])
        assert "detach()" in str(info.value)
        gs.Adam([w.detach()], lr=0.1).step([np.ones(3, np.float32)])
        torch.testing.assert_close(w.detach(), torch.full((3,), 0.9))

    def test_a_single_element_that_keeps_its_sign_apart(self):
        z = torch.tensor([3 + 4j], dtype=torch.complex128)
        minus = z.conj().imag
        assert minus.is_contiguous()
        assert minus.is_neg()
        w = np.zeros(1)
        with pytest.raises(ValueError, match=re.escape("grads is a negated view")):
            gs.SGD(w, lr=1.0).step(minus)
        gs.SGD(w, lr=1.0).step(minus.resolve_neg())
        assert w[0] == 4.0

    def test_zero_grad_clears_the_tensor(self):
        g = torch.ones(3)
        gs.SGD(np.zeros(3, np.float32)).step(g, zero_grad=True)
        assert g.tolist() == [0.0] * 3

    def test_wrong_shapes_and_dtypes_by_name(self):
        opt = gs.SGD({"w": np.zeros(3, np.float32)})
        for g, message in [
            (
                torch.ones(3, dtype=torch.float64),
                "grads['w'] must not be wider than",
            ),
            (torch.ones(3, 1), "grads['w'] must have the shape of params['w'], (3,), got (3, 1)"),
        ]:
            with pytest.raises((TypeError, ValueError), match=re.escape(message)):
                opt.step({"w": g})

    def test_memory_outlives_the_tensor(self):
        w = torch.ones(100_000)
        opt = gs.SGD(w.detach(), lr=1.0)
        address = w.data_ptr()
        del w
        gc.collect()
        others = [torch.zeros(100_000) for _ in range(5)]
        assert address not in [other.data_ptr() for other in others]
        opt.step(np.ones(100_000, np.float32))
        assert opt.params.sum() == 0


def without_memory():
    """Arrays of four float32 whose memory does not exist."""
    yield (ctypes.c_float * 4).from_address(0)
    if torch is None:
        return
    fake_tensors = pytest.importorskip("torch._subclasses.fake_tensor")
    fake = fake_tensors.FakeTensorMode().from_tensor(torch.ones(4))
    yield fake

    class Old:  # speaks DLPack without the exchange API
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack__(self, **options):
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.tensor.__dlpack_device__()

    yield Old(fake)

    @classmethod
    def refused(cls, *_):
        raise NotImplementedError

    yield torch.Tensor._make_wrapper_subclass(
        type("Wrapper", (torch.Tensor,), {"__torch_dispatch__": refused}), (4,), dtype=torch.float32
    )
    for begin in (0, 4):  # a view does not begin at null
        freed = torch.ones(8)
        part = freed[begin : begin + 4]
        freed.untyped_storage().resize_(0)
        yield part
        yield Old(part)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")
def test_arrays_without_memory_are_refused_by_name_and_class():
    ones = np.ones(4, np.float32)
    w, half, row = ones.copy(), np.ones(4, np.float16), np.zeros((1, 4), np.float32)
    sgd, adam, sparse = gs.SGD([w]), gs.Adam({"w": w}), gs.SparseAdagrad(row)
    svrg = gs.SVRG(w, 0.1, lambda w: ones, every=1)
    for nothing in without_memory():
        for name, call in (
            ("params", lambda x: gs.SGD(x)),
            ("params['w']", lambda x: gs.Adam({"v": ones, "w": x})),
            ("arrays[1]", lambda x: gs.flatten([half, x])),
            ("grads[0]", lambda x: sgd.step([x])),
            ("grads[0]", lambda x: sgd.step([x], zero_grad=True, clip_norm=1.0)),
            ("grads['w']", lambda x: adam.step({"w": x}, grad_scale=0.5)),
            ("rows of grads", lambda x: sparse.step((np.array([0]), x))),
            ("indices of grads", lambda x: sparse.step((x, row))),
            ("snapshot_grads", lambda x: svrg.step(ones, x)),
            ("grad", lambda x: functional.sgd(ones, x, lr=0.1)),
            ("param", lambda x: functional.sgd(x, ones, lr=0.1)),
            ("m", lambda x: functional.adam(ones, ones, x, ones, t=1, lr=0.1)),
        ):
            with pytest.raises(ValueError, match="without memory of its own") as raised:
                call(nothing)
            assert str(raised.value).startswith(f"{name} is a {type(nothing).__name__} "), name
    for unchanged in (w, half, ones):
        assert (unchanged == 1).all()
    assert sgd.t == adam.t == sparse.t == svrg.t == 0
    if torch is not None:  # no elements need no memory
        assert gs.SGD(torch.ones(0)).step(torch.ones(0)) is None


def test_it_is_told_from_what_shows_no_memory():
    assert _core.shows_memory(np.ones(3))
    assert _core.shows_memory(b"")
    for thing in (1, 1.0, np.float32(1), "a", [1.0], None, {}):
        assert not _core.shows_memory(thing)
