"""gradstep.torch over tensors of 16 and 8 bits: the bits of the classes of gradstep."""

from __future__ import annotations

import copy
import io
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from gradstep import reference
from oracle import RULES, assert_same_bits

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytestmark = pytest.mark.torch
import gradstep.torch as gt  # noqa: E402
from gradstep.torch import settings, tensors  # noqa: E402
from test_torch import DENSE, VARIANTS, assert_same_everything, everything  # noqa: E402

IN_NUMPY = {
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
}
BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT8, UINT8 = IN_NUMPY
#: Of the parameters, the gradients and the states, the last as the option has it.
HELD = [
    (BFLOAT16, BFLOAT16, None),
    (BFLOAT16, FLOAT32, "float32"),
    (FLOAT16, FLOAT16, torch.bfloat16),
    (FLOAT32, BFLOAT16, BFLOAT16),
    (FLOAT32, FLOAT32, "float16"),
    (FLOAT64, BFLOAT16, FLOAT32),
]
SHAPES = [(3, 5), (), (0,), (1,), (40_000,), (70, 30)]
#: The same, where states are in 8 bits.
HELD_IN_8_BITS = [
    (FLOAT32, FLOAT32),
    (FLOAT32, BFLOAT16),
    (BFLOAT16, BFLOAT16),
    (FLOAT16, FLOAT32),
]
#: Around the least size and around blocks.
SHAPES_IN_8_BITS = [(4095,), (64, 64), (), (4097,), (0,), (4351,), (17, 256), (3, 1451), (20_001,)]


def rule_of(name, options):
    return RULES[getattr(gs, name)(np.ones((1, 1)), **options).rule]


TAKE_ANY = [
    (name, options)
    for name, options in VARIANTS
    if name in DENSE and rule_of(name, options).any_storage
]
TAKE_WIDE = sorted({name for name, _ in VARIANTS} - {name for name, _ in TAKE_ANY})


def in_numpy(tensor):
    """A copy with the same bits."""
    tensor = tensor.detach().contiguous()
    bits = tensor.view(torch.int16) if tensor.element_size() == 2 else tensor
    return bits.numpy().copy().view(IN_NUMPY[tensor.dtype])


def parameters(*shapes, dtype=torch.bfloat16, grad_dtype=None, seed=0):
    rng = np.random.default_rng(seed)
    params = [torch.nn.Parameter(torch.tensor(rng.standard_normal(s)).to(dtype)) for s in shapes]
    for param in params:
        param.grad_dtype = grad_dtype or dtype
    return params


def give_gradients(params, t):
    for i, param in enumerate(params):
        rng = np.random.default_rng([t, i])
        param.grad = torch.tensor(rng.standard_normal(param.shape)).to(param.grad_dtype)


def steps(opt, params, times):
    for t in times:
        give_gradients(params, t)
        opt.step()


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert_same_bits(in_numpy(a), in_numpy(b))


def states(opt):
    """All tensors of the states, in order."""
    every = (p for group in opt.param_groups for p in group["params"])
    return [v for p in every for v in opt.state[p].values() if torch.is_tensor(v)]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Numbers ------------------------------------------------------------------------------------------


@pytest.mark.covering
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("held", HELD, ids=str)
@pytest.mark.parametrize(("name", "options"), TAKE_ANY, ids=str)
def test_the_bits_of_the_class_of_gradstep(name, options, held, threads):
    gs.set_num_threads(threads)
    dtype, grad_dtype, state_dtype = held
    rounding = {"rounding": "nearest"} if name == "AdamW" else {"rounding_seed": 7}
    options = {**options, **rounding}
    params = parameters(*SHAPES, dtype=dtype, grad_dtype=grad_dtype)
    arrays = [in_numpy(p) for p in params]
    # The places of parameters are counted through the groups.
    opt = getattr(gt, name)([{"params": params[:2]}], state_dtype=state_dtype, **options)
    opt.add_param_group({"params": params[2:]})
    of_numpy = str(state_dtype).removeprefix("torch.") if state_dtype else None
    twin = getattr(gs, name)(arrays, state_dtype=of_numpy, **options)
    for t in range(4):
        give_gradients(params, t)
        opt.step()
        twin.step([in_numpy(p.grad) for p in params])
    for p, w in zip(params, arrays, strict=True):
        assert_same_bits(in_numpy(p), w)
    names = settings.STATE_NAMES.get(name, {})
    for state, kept in twin.state.items():
        for p, array in zip(params, kept, strict=True):
            assert_same_bits(in_numpy(opt.state[p][names.get(state, state)]), array)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_small_steps_are_not_lost(dtype):
    """PyTorch rounds to the nearest, which is where the parameter was."""
    shape, lr, times = (20_000,), 1e-5, 40
    ours, theirs = parameters(shape, dtype=dtype)[0], parameters(shape, dtype=dtype)[0]
    for param in (ours, theirs):
        param.data.fill_(1.0)
        param.grad = torch.ones_like(param)
    opt, their_opt = gt.SGD([ours], lr=lr), torch.optim.SGD([theirs], lr=lr, fused=True)
    for _ in range(times):
        opt.step()
        their_opt.step()
    assert (theirs == 1).all()
    assert (1 - ours.detach().double().mean()).item() == pytest.approx(lr * times, rel=0.1)
    # Were the chances of all steps the same, some elements would have moved at each of them.
    assert (1 - ours.detach().double()).max() < times / 2 * torch.finfo(dtype).eps / 2


def test_steps_of_sgd_are_counted_where_chances_differ():
    """The first one sets the buffer all the same."""
    params = parameters((5,)) + parameters((4,), dtype=torch.float32)
    opt = gt.SGD(params, lr=0.1, momentum=0.9, dampening=0.5)
    steps(opt, params, range(3))
    assert opt.state[params[0]]["step"] == 3
    assert "step" not in opt.state[params[1]]


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop"])
@pytest.mark.parametrize("layout", ["transposed", "channels last", "a gradient otherwise"])
def test_layouts(name, layout):
    torch.manual_seed(0)
    start = torch.randn(2, 3, 4, 5).to(BFLOAT16)
    if layout == "transposed":
        start = start.transpose(0, -1)
    if layout == "channels last":
        start = start.to(memory_format=torch.channels_last)
    ours = torch.nn.Parameter(start.clone())
    flat = start.permute(*np.argsort(start.stride())[::-1].tolist())  # as it lies in memory
    plain = torch.nn.Parameter(flat.contiguous())
    options = {"momentum": 0.9} if name == "SGD" else {}
    opt, twin = (getattr(gt, name)([p], lr=0.1, **options) for p in (ours, plain))
    order = np.argsort(start.stride())[::-1].tolist()
    for p in (ours, plain):
        p.grad_dtype = FLOAT32
    for _ in range(3):
        g = torch.randn(start.shape)
        ours.grad = g.transpose(0, 1).contiguous().transpose(0, 1)
        plain.grad = g.permute(*order).contiguous()
        opt.step()
        twin.step()
    assert_equal([ours.permute(*order)], [plain])
    for a, b in zip(states(opt), states(twin), strict=True):
        assert a.shape == () or a.stride() == ours.stride()
        assert_equal([a.permute(*order) if a.shape else a], [b])


KNOWN = {}


def steps_of_the_oracle(name, options, held):
    """All that it has written after a few steps. The same for all levels, so computed once."""
    key = name, str(options), held
    if key not in KNOWN:
        KNOWN.clear()
        params = parameters(*SHAPES_IN_8_BITS, dtype=held[0], grad_dtype=held[1])
        arrays = [in_numpy(p) for p in params]
        twin = reference.in_numpy(getattr(gs, name))(arrays, state_dtype="int8", **options)
        for t in range(3):
            give_gradients(params, t)
            twin.step([in_numpy(p.grad) for p in params])
        KNOWN[key] = arrays, twin._states.arrays
    return KNOWN[key]


@pytest.mark.covering
@pytest.mark.parametrize("held", HELD_IN_8_BITS, ids=str)
@pytest.mark.parametrize(("name", "options"), TAKE_ANY, ids=str)
def test_states_in_8_bits_have_the_bits_of_the_oracle(name, options, held, level):
    rounding = {"rounding": "nearest"} if name == "AdamW" else {"rounding_seed": 7}
    options = {**options, **rounding}
    arrays, kinds = steps_of_the_oracle(name, options, held)
    params = parameters(*SHAPES_IN_8_BITS, dtype=held[0], grad_dtype=held[1])
    opt = getattr(gt, name)([{"params": params[:2]}], state_dtype="int8", **options)
    opt.add_param_group({"params": params[2:]})
    steps(opt, params, range(3))
    for p, w in zip(params, arrays, strict=True):
        assert_same_bits(in_numpy(p), w)
    names = settings.STATE_NAMES.get(name, {})
    for state, kept in kinds.items():
        for p, array in zip(params, kept, strict=True):
            assert_same_bits(in_numpy(opt.state[p][names.get(state, state)]), array)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_over_states_in_8_bits(threads, level):
    gs.set_num_threads(threads)
    params = parameters((300_001,), (5000,), dtype=FLOAT32)
    arrays = [in_numpy(p) for p in params]
    opt, twin = (
        gt.Adam(params, state_dtype=INT8),
        reference.in_numpy(gs.Adam)(arrays, state_dtype="int8"),
    )
    steps(opt, params, range(2))
    for t in range(2):
        give_gradients(params, t)
        twin.step([in_numpy(p.grad) for p in params])
    for p, w in zip(params, arrays, strict=True):
        assert_same_bits(in_numpy(p), w)


@pytest.mark.parametrize("layout", ["transposed", "channels last"])
def test_states_in_8_bits_are_in_the_order_of_memory(layout):
    torch.manual_seed(0)
    start = torch.randn(9, 5, 11, 13)
    if layout == "transposed":
        start = start.transpose(0, -1)
    else:
        start = start.to(memory_format=torch.channels_last)
    order = np.argsort(start.stride())[::-1].tolist()
    ours = torch.nn.Parameter(start.clone())
    plain = torch.nn.Parameter(start.permute(order).contiguous())
    opt, twin = (gt.Adam([p], lr=0.1, state_dtype="int8") for p in (ours, plain))
    for _ in range(3):
        ours.grad = torch.randn(start.shape)
        plain.grad = ours.grad.permute(order).contiguous()
        opt.step()
        twin.step()
    assert_equal([ours.permute(order)], [plain])
    assert_equal(states(opt), states(twin))


def test_states_in_8_bits_know_the_order_of_memory():
    """When that of the parameter becomes another, a step and a load follow it."""
    (param,) = parameters((3, 70, 61, 1), dtype=FLOAT32)
    opt = gt.Adam([param], state_dtype="int8")
    steps(opt, [param], range(2))
    saved = through_a_file(opt.state_dict())
    wide = gt.Adam([param], state_dtype="int8")
    held = copy.deepcopy(saved)
    held["param_groups"][0]["state_dtype"] = None
    wide.load_state_dict(held)
    param.data = param.data.to(memory_format=torch.channels_last)
    before = param.detach().clone()
    give_gradients([param], 2)
    opt.step()
    stepped = everything(opt)
    param.data = before
    opt.load_state_dict(saved)
    for name, dtype in [("exp_avg", INT8), ("exp_avg_sq", UINT8)]:
        numbers = in_numpy(wide.state[param][name].permute(0, 2, 3, 1))
        wanted = reference.to_blocks(numbers, IN_NUMPY[dtype])
        assert_same_bits(in_numpy(opt.state[param][name]), wanted)
    opt.step()
    assert_same_everything(everything(opt), stepped)
    assert opt.state[param]["axes"] == ((0, 3), (2, 61), (1, 70))
    # As many elements, but not those.
    (other,) = parameters((61, 70, 3, 1), dtype=FLOAT32)
    opt = gt.Adam([other])
    with pytest.raises(ValueError, match=re.escape("got torch.int8 of (51, 257)")):
        opt.load_state_dict(saved)
    opt = gt.Adam([other], state_dtype="int8")
    steps(opt, [other], range(1))
    opt.state[other]["axes"] = ((0, 3), (1, 70), (2, 61))
    with pytest.raises(ValueError, match=re.escape("got ((0, 3), (1, 70), (2, 61))")):
        opt.step()
    del opt.state[other]["axes"]
    with pytest.raises(ValueError, match=re.escape("(shape (61, 70, 3, 1)) has no 'axes', only")):
        opt.step()


# Memory -------------------------------------------------------------------------------------------


def test_nothing_is_copied():
    params = parameters((1000,), (30, 4))
    opt = gt.Adam(params, state_dtype="float32")
    steps(opt, params, range(1))
    places = [t.data_ptr() for t in (*params, *states(opt))]
    steps(opt, params, range(1, 3))
    assert places == [t.data_ptr() for t in (*params, *states(opt))]
    assert {s.dtype for s in states(opt)} == {FLOAT32}


def test_nothing_is_copied_in_8_bits():
    params = parameters((5000,), (30, 4), dtype=FLOAT32)
    opt = gt.Adam(params, state_dtype=INT8)
    steps(opt, params, range(1))
    places = [t.data_ptr() for t in (*params, *states(opt))]
    steps(opt, params, range(1, 3))
    assert places == [t.data_ptr() for t in (*params, *states(opt))]
    of_large, of_small = (opt.state[p] for p in params)
    assert (of_large["exp_avg"].dtype, of_large["exp_avg"].shape) == (INT8, (20, 257))
    assert (of_large["exp_avg_sq"].dtype, of_large["exp_avg_sq"].shape) == (UINT8, (20, 257))
    assert {v.dtype for v in of_small.values()} == {FLOAT32}


def test_what_states_in_8_bits_begin_with():
    """The nearest to the argument, and zeros after the last element."""
    params = parameters((5000,), (4095,), dtype=FLOAT32)
    opt = gt.Adagrad(params, initial_accumulator_value=0.3, state_dtype="int8")
    opt.share_memory()  # which makes them now
    wanted = reference.to_blocks(np.full(5000, 0.3, np.float32), np.dtype(np.uint8))
    assert_same_bits(in_numpy(opt.state[params[0]]["sum"]), wanted)
    assert (opt.state[params[1]]["sum"] == np.float32(0.3)).all()


def test_groups_have_their_own_state_dtype():
    params = [
        *parameters((5000,), dtype=FLOAT32),
        *parameters((5000,)),
        *parameters((5000,), dtype=FLOAT64),
    ]
    groups = [{"params": params[:2], "state_dtype": "int8"}, {"params": params[2:]}]
    opt = gt.SGD(groups, lr=0.1, momentum=0.9)
    steps(opt, params, range(2))
    kinds = [opt.state[p]["momentum_buffer"].dtype for p in params]
    assert kinds == [INT8, INT8, FLOAT64]
    assert [opt.state[p].get("step") for p in params] == [2, 2, None]  # where chances differ


def test_states_have_the_dtype_of_their_parameter_or_that_of_their_group():
    params = [*parameters((3,)), *parameters((4,), dtype=FLOAT16), *parameters((5,), dtype=FLOAT32)]
    groups = [{"params": params[:2]}, {"params": params[2:], "state_dtype": "bfloat16"}]
    opt = gt.Adam(groups)
    steps(opt, params, range(2))
    kinds = [opt.state[p]["exp_avg"].dtype for p in params]
    assert kinds == [BFLOAT16, FLOAT16, BFLOAT16]
    assert all(opt.state[p]["step"].dtype == FLOAT32 for p in params)


@pytest.mark.parametrize("name", TAKE_WIDE)
def test_rules_that_take_none_of_it(name):
    params = parameters((3, 4), (2, 2))
    opt = getattr(gt, name)(params, lr=0.1)
    give_gradients(params, 0)
    wanted = "params[0] (shape (3, 4)) must be a dense float32 or float64 tensor in the memory of"
    kept = [in_numpy(p) for p in params]
    with pytest.raises(ValueError, match=re.escape(wanted)):
        opt.step()
    with pytest.raises(TypeError, match="cannot have a state_dtype, because"):
        getattr(gt, name)(params, lr=0.1, state_dtype="bfloat16")
    for p, w in zip(params, kept, strict=True):
        assert_same_bits(in_numpy(p), w)


def test_what_does_not_fit_is_refused_before_anything_has_changed():
    params = parameters((3,), (4,))
    opt = gt.Adam(params)
    steps(opt, params, range(1))
    before = [in_numpy(t) for t in (*params, *states(opt))]

    def check_refused(match):
        with pytest.raises(ValueError, match=re.escape(match)):
            opt.step()
        for array, tensor in zip(before, (*params, *states(opt)), strict=True):
            assert_same_bits(array, in_numpy(tensor))

    give_gradients(params, 1)
    params[1].grad = None
    params[1].grad_dtype = FLOAT64
    params[1].grad = torch.ones(4, dtype=FLOAT64)
    check_refused(
        "the gradient of params[1] (shape (4,)) must be a dense floating-point tensor of its shape,"
        " no wider than its arithmetic, in the memory of the CPU, got torch.float64"
    )
    params[1].grad = None
    params[1].grad_dtype = BFLOAT16
    give_gradients(params, 1)
    state = opt.state[params[1]]
    kept = state["exp_avg_sq"]
    state["exp_avg_sq"] = kept.double()
    with pytest.raises(ValueError, match=re.escape("state 'exp_avg_sq' of params[1] (shape (4,))")):
        opt.step()
    state["exp_avg_sq"] = kept
    opt.add_param_group({"params": parameters((2,), dtype=FLOAT64), "state_dtype": "bfloat16"})
    opt.param_groups[1]["params"][0].grad = torch.ones(2, dtype=FLOAT64)
    with pytest.raises(ValueError, match=re.escape("state 'exp_avg' of param_groups[1] params[0]")):
        opt.step()
    del opt.param_groups[1]
    for array, tensor in zip(before, (*params, *states(opt)), strict=True):
        assert_same_bits(array, in_numpy(tensor))


@pytest.mark.parametrize(
    ("state", "wrong"),
    [
        ("exp_avg", lambda held: held.view(torch.uint8)),
        ("exp_avg_sq", lambda held: held.view(torch.int8)),
        ("exp_avg_sq", lambda held: held[:-1]),
        ("exp_avg", lambda held: held.reshape(-1)),
        ("exp_avg", lambda held: torch.zeros(40, 257, dtype=torch.int8)[::2]),
    ],
)
def test_states_in_8_bits_that_do_not_fit(state, wrong):
    params = parameters((100,), (5000,), dtype=FLOAT32)
    opt = gt.Adam(params, state_dtype="int8")
    steps(opt, params, range(1))
    before = [in_numpy(t) for t in (*params, *states(opt))]
    its = opt.state[params[1]]
    kept, its[state] = its[state], wrong(its[state])
    wanted = f"state '{state}' of params[1] (shape (5000,)), in 8 bits, must be contiguous, of the "
    of = f"shape (20, 257) and torch.{'uint8' if state == 'exp_avg_sq' else 'int8'}, got torch."
    with pytest.raises(ValueError, match=re.escape(wanted + of)):
        opt.step()
    its[state] = kept
    for array, tensor in zip(before, (*params, *states(opt)), strict=True):
        assert_same_bits(array, in_numpy(tensor))


def test_states_in_8_bits_may_not_share_memory():
    """They may touch: each ends after the last byte of its last block."""
    params = parameters((4352,), (4352,), dtype=FLOAT32)
    opt = gt.Lion(params, state_dtype="int8")
    steps(opt, params, range(1))
    held = 17 * 257
    room = torch.zeros(2 * held, dtype=INT8)
    opt.state[params[0]]["m"] = room[:held].view(17, 257)
    opt.state[params[1]]["m"] = room[held - 1 : -1].view(17, 257)
    with pytest.raises(ValueError, match=re.escape("shares memory with a state of params[0]")):
        opt.step()
    assert not room.any()
    opt.state[params[1]]["m"] = room[held:].view(17, 257)
    opt.step()


def test_float64_takes_no_states_in_8_bits():
    params = [*parameters((3,), dtype=FLOAT32), *parameters((4,), dtype=FLOAT64)]
    refusal = r"state_dtype is int8, which params\[1\] \(shape \(4,\)\) of float64 does not take"
    with pytest.raises(TypeError, match=refusal):
        gt.Adam(params, state_dtype="int8")
    opt = gt.Adam(params)
    steps(opt, params, range(1))
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0] |= {"state_dtype": INT8, "lr": 0.5}
    before = [in_numpy(t) for t in (*params, *states(opt))]
    with pytest.raises(TypeError, match=refusal):
        opt.load_state_dict(saved)
    assert (opt.param_groups[0]["lr"], opt.param_groups[0]["state_dtype"]) == (0.001, None)
    opt.param_groups[0]["state_dtype"] = "int8"
    with pytest.raises(TypeError, match=refusal):
        opt.step()
    for array, tensor in zip(before, (*params, *states(opt)), strict=True):
        assert_same_bits(array, in_numpy(tensor))


def test_a_parameter_that_became_float64_beside_8_bits():
    (param,) = parameters((5000,), dtype=FLOAT32)
    opt = gt.Lion([param], state_dtype="int8")
    steps(opt, [param], range(1))
    param.data = param.data.double()
    param.grad = None
    param.grad_dtype = FLOAT64
    give_gradients([param], 1)
    with pytest.raises(ValueError, match=re.escape("state 'm' of params[0] (shape (5000,)) must")):
        opt.step()


def test_sparse_gradients_are_for_rows_as_the_arithmetic_has_them():
    w = torch.nn.Parameter(torch.ones(4, 2, dtype=BFLOAT16))
    w.grad = torch.ones_like(w).to_sparse(1)
    with pytest.raises(ValueError, match="sparse gradients are for float32 and float64"):
        gt.SGD([w]).step()
    w = torch.nn.Parameter(torch.ones(4, 2))
    opt = gt.Adagrad([w], state_dtype="bfloat16")
    w.grad = torch.ones(4, 2).to_sparse(1)
    with pytest.raises(ValueError, match=re.escape("state 'sum' of params[0] (shape (4, 2)) must")):
        opt.step()
    assert (w == 1).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"state_dtype": "int32"}, TypeError, "state_dtype must be one of float64, float32, bf"),
        ({"state_dtype": torch.int16}, TypeError, "float16, int8, or None, got torch.int16"),
        ({"state_dtype": "uint8"}, TypeError, "float16, int8, or None, got 'uint8'"),
        ({"rounding": "up"}, ValueError, "rounding must be one of 'stochastic', 'nearest', got"),
        ({"rounding_seed": -1}, ValueError, "rounding_seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gt.Adam([torch.ones(3)], **options)


def test_a_start_that_float16_cannot_hold():
    params = parameters((3,), dtype=FLOAT32)
    with pytest.raises(ValueError, match=r"sum begins with 100000.0, which torch.float16 cannot"):
        gt.Adagrad(params, initial_accumulator_value=1e5, state_dtype="float16")


def test_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    params = parameters((3,), dtype=FLOAT32)
    opt = gt.Adam(params, state_dtype="bfloat16")
    steps(opt, params, range(2))
    assert opt.state[params[0]]["exp_avg"].dtype == BFLOAT16


# Checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({name for name, _ in TAKE_ANY}))
@pytest.mark.parametrize(("dtype", "state_dtype"), [(h[0], h[2]) for h in HELD[:5]], ids=str)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(name, dtype, state_dtype):
    options = dict(TAKE_ANY)[name] | {"rounding_seed": 3, "state_dtype": state_dtype}
    shapes = (5, 2), (), (700,)
    params, unbroken = (parameters(*shapes, dtype=dtype) for _ in range(2))
    whole = getattr(gt, name)(unbroken, **options)
    steps(whole, unbroken, range(6))
    first = getattr(gt, name)(params, **options)
    steps(first, params, range(3))
    twins = copy.deepcopy(first)
    other = getattr(gt, name)(params, **dict(TAKE_ANY)[name])
    other.load_state_dict(through_a_file(first.state_dict()))
    steps(other, params, range(3, 6))
    copies = [p for group in twins.param_groups for p in group["params"]]
    for param in copies:
        param.grad_dtype = dtype
    steps(twins, copies, range(3, 6))
    for these, opt in ((params, other), (copies, twins)):
        assert_equal(these, unbroken)
        assert_equal(states(opt), states(whole))


@pytest.mark.parametrize("name", sorted({name for name, _ in TAKE_ANY}))
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_a_run_in_8_bits_that_is_resumed(name, dtype):
    options = dict(TAKE_ANY)[name] | {"rounding_seed": 3, "state_dtype": INT8}
    shapes = (5, 2), (), (70, 61)
    params, unbroken = (parameters(*shapes, dtype=dtype) for _ in range(2))
    whole = getattr(gt, name)(unbroken, **options)
    steps(whole, unbroken, range(6))
    first = getattr(gt, name)(params, **options)
    steps(first, params, range(3))
    twins = copy.deepcopy(first), pickle.loads(pickle.dumps(first))
    other = getattr(gt, name)(params, **dict(TAKE_ANY)[name])
    other.load_state_dict(through_a_file(first.state_dict()))
    assert_equal(states(other), states(first))
    steps(other, params, range(3, 6))
    runs = [(params, other)]
    for twin in twins:
        copies = [p for group in twin.param_groups for p in group["params"]]
        for param in copies:
            param.grad_dtype = dtype
        steps(twin, copies, range(3, 6))
        runs.append((copies, twin))
    for these, opt in runs:
        assert_equal(these, unbroken)
        assert_equal(states(opt), states(whole))


@pytest.mark.parametrize("module", [torch.optim, gt], ids=lambda module: module.__name__)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_states_come_to_8_bits_and_go(module, dtype):
    """To the nearest, in the order of memory."""
    params = parameters((70, 61), (5,), dtype=dtype)
    params[0].data = params[0].data.t().contiguous().t()
    before = module.Adam(params, lr=0.01)
    steps(before, params, range(2))
    saved = through_a_file(before.state_dict())
    opt = gt.Adam(params, state_dtype="int8")
    saved["param_groups"][0].pop("state_dtype", None)
    opt.load_state_dict(saved)
    large, small = (opt.state[p] for p in params)
    for name, kind in [("exp_avg", INT8), ("exp_avg_sq", UINT8)]:
        numbers = in_numpy(saved["state"][0][name].t().float())
        assert_same_bits(in_numpy(large[name]), reference.to_blocks(numbers, IN_NUMPY[kind]))
        assert_equal([small[name]], [saved["state"][1][name].float()])
    steps(opt, params, range(2, 3))
    held = through_a_file(opt.state_dict())
    for state_dtype in (None, "float32", "float16"):
        held["param_groups"][0]["state_dtype"] = state_dtype
        opt = gt.Adam(params)
        opt.load_state_dict(held)
        wanted = dtype if state_dtype is None else tensors.DTYPES[state_dtype]
        for name in ("exp_avg", "exp_avg_sq"):
            numbers = reference.from_blocks(in_numpy(held["state"][0][name]), 4270)
            numbers = torch.from_numpy(numbers).view(61, 70).t().to(wanted)
            assert opt.state[params[0]][name].stride() == params[0].stride()
            assert_equal([opt.state[params[0]][name]], [numbers])
            assert opt.state[params[1]][name].dtype == wanted
        steps(opt, params, range(3, 4))


def test_states_in_8_bits_of_another_size_are_not_loaded():
    """They are not taken for numbers."""
    saved = []
    for size in (5000, 9000):
        params = parameters((size,), dtype=FLOAT32)
        opt = gt.Lion(params, state_dtype="int8")
        steps(opt, params, range(1))
        saved.append(opt.state_dict())
    for state_dtype in ("int8", None):
        saved[0]["param_groups"][0]["state_dtype"] = state_dtype
        opt = gt.Lion(params)
        with pytest.raises(ValueError, match=r"the shape \(9000,\), or torch.int8 blocks of them"):
            opt.load_state_dict(saved[0])
        assert not opt.state


@pytest.mark.parametrize("state_dtype", [None, "float32"])
@pytest.mark.parametrize(("name", "options"), [("Adam", {}), ("SGD", {"momentum": 0.9})], ids=str)
def test_checkpoints_of_pytorch_go_on(name, options, state_dtype):
    params = parameters((6,), (300,))
    theirs = getattr(torch.optim, name)(params, lr=0.01, **options)
    steps(theirs, params, range(3))
    saved = through_a_file(theirs.state_dict())
    opt = getattr(gt, name)(params, lr=0.5, state_dtype=state_dtype, rounding_seed=5)
    opt.load_state_dict(saved)
    (group,) = opt.param_groups
    assert (group["lr"], group["state_dtype"], group["rounding_seed"]) == (0.01, state_dtype, 5)
    wanted = FLOAT32 if state_dtype else BFLOAT16
    kept = [v for k, v in saved["state"][1].items() if k != "step"]
    ours = [v for k, v in opt.state[params[1]].items() if k != "step"]
    assert_equal(ours, [v.to(wanted) for v in kept])
    steps(opt, params, range(3, 5))
    assert opt.state[params[0]]["step"] == (5 if name == "Adam" else 3)
    # And back.
    theirs.load_state_dict(through_a_file(opt.state_dict()))
    steps(theirs, params, range(5, 7))
    assert all(p.isfinite().all() for p in params)


def test_hooks_change_what_is_loaded():
    params = parameters((3,))
    opt = gt.Adam(params, state_dtype="float32")
    steps(opt, params, range(2))
    opt.register_load_state_dict_pre_hook(
        lambda _, d: d | {"state": {0: d["state"][0] | {"exp_avg": torch.full((3,), 1 + 2.0**-20)}}}
    )
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert (opt.state[params[0]]["exp_avg"] == 1 + 2.0**-20).all()


# PyTorch's manners --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "Adam", "ScheduleFreeAdamW", "Lion"])
def test_steps_in_backward_have_the_bits_of_steps_after_it(name):
    def model():
        torch.manual_seed(0)
        layers = torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2)
        return torch.nn.Sequential(*layers).to(BFLOAT16)

    models = model(), model()
    groups = [[{"params": m[0].parameters()}, {"params": m[2].parameters()}] for m in models]
    after = getattr(gt, name)(groups[0], lr=0.01)
    handle = gt.step_in_backward(groups[1], getattr(gt, name), lr=0.01)
    x = torch.linspace(-1, 1, 30).reshape(5, 6).to(BFLOAT16)
    for _ in range(4):
        for one in models:
            one(x).square().sum().backward()
        after.step()
        after.zero_grad()
    handle.remove()
    assert_equal(list(models[1].parameters()), list(models[0].parameters()))


@pytest.mark.parametrize("name", ["SGD", "Adam", "ScheduleFreeAdamW", "Lion"])
def test_steps_in_backward_with_states_in_8_bits(name):
    ours, theirs = (torch.nn.Linear(70, 60) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    options = {"lr": 0.01, "state_dtype": "int8"} | ({"momentum": 0.9} if name == "SGD" else {})
    after = getattr(gt, name)(theirs.parameters(), **options)
    handle = gt.step_in_backward(ours, getattr(gt, name), **options)
    x = torch.linspace(-1, 1, 210).reshape(3, 70)
    for _ in range(3):
        for one in (ours, theirs):
            one(x).square().sum().backward()
        after.step()
        after.zero_grad()
    handle.remove()
    assert_equal(list(ours.parameters()), list(theirs.parameters()))
    assert_equal(states(handle.optimizer), states(after))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_a_gradient_scaler(dtype):
    params = parameters((50,), dtype=dtype)
    opt = gt.Adam(params, lr=0.1, state_dtype="bfloat16")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    before = params[0].detach().float().square().sum()
    for t in range(6):
        opt.zero_grad()
        loss = (params[0] * (float("inf") if t == 3 else 1.0)).square().sum()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
    assert opt.state[params[0]]["step"] == 5  # the one with infinity was left out
    assert params[0].detach().float().square().sum() < before


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW"])
@pytest.mark.parametrize("held", HELD, ids=str)
def test_eval_and_train_have_the_bits_of_gradstep(name, held):
    dtype, grad_dtype, state_dtype = held
    params = parameters((30,), (), dtype=dtype, grad_dtype=grad_dtype)
    arrays = [in_numpy(p) for p in params]
    of_numpy = str(state_dtype).removeprefix("torch.") if state_dtype else None
    opt = getattr(gt, name)(params, state_dtype=state_dtype)
    twin = getattr(gs, name)(arrays, state_dtype=of_numpy)
    for t in range(2):
        for _ in range(2):
            give_gradients(params, t)
            opt.step()
            twin.step([in_numpy(p.grad) for p in params])
        for move in ("eval", "train"):
            getattr(opt, move)()
            getattr(twin, move)()
            for p, w in zip(params, arrays, strict=True):
                assert_same_bits(in_numpy(p), w)


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_eval_and_train_decode_8_bits(name, dtype):
    """As if `z` had the numbers that 8 bits hold, in float32."""
    params = parameters((70, 61), (3,), dtype=dtype)
    params[0].data = params[0].data.t().contiguous().t()
    opt = getattr(gt, name)(params, state_dtype="int8")
    steps(opt, params, range(2))
    twins = copy.deepcopy(params)
    twin = getattr(gt, name)(twins)
    held = opt.state_dict()
    held["param_groups"][0]["state_dtype"] = "float32"
    twin.load_state_dict(held)
    kept = [in_numpy(t) for t in states(opt)]
    for move in ("eval", "train"):
        getattr(opt, move)()
        getattr(twin, move)()
        assert_equal(params, twins)
    for array, tensor in zip(kept, states(opt), strict=True):
        assert_same_bits(array, in_numpy(tensor))
    opt.state[params[0]]["z"] = opt.state[params[0]]["z"].view(torch.uint8)[:-1]
    with pytest.raises(ValueError, match=re.escape("and its state 'z' must be dense floating-")):
        opt.eval()


def test_8_bits_do_not_drop_signs():
    param = torch.nn.Parameter(torch.ones(5000))
    param.grad = torch.ones(5000)
    wide, narrow = (gt.Adam([param], state_dtype=d) for d in ("float32", "int8"))
    wide.step()
    saved = wide.state_dict()
    saved["state"][0]["exp_avg_sq"][7] = -1.0
    saved["param_groups"][0]["state_dtype"] = "int8"
    with pytest.raises(ValueError, match=r"'exp_avg_sq' of .* holds negative numbers, which its 8"):
        narrow.load_state_dict(saved)
    assert not narrow.state


def test_a_host_may_put_the_states_of_a_state_dict_in_place_itself():
    """As ZeroRedundancyOptimizer does, which does not call `load_state_dict`."""
    params, opts = [], []
    for _ in range(2):
        params.append(torch.nn.Parameter(torch.linspace(1, 2, 8192).reshape(64, 128)))
        opts.append(gt.ScheduleFreeAdamW([params[-1]], state_dtype="int8"))
    for t in range(4):
        for param in params:
            param.grad = torch.full_like(param, t - 1.3)
        if t == 2:
            saved = opts[1].state_dict()["state"][0]
            opts[1].state[params[1]] = dict(saved)
            opts[1].eval()
            opts[1].train()
            opts[0].eval()
            opts[0].train()
        for opt in opts:
            opt.step()
    assert_same_bits(*(param.detach().numpy() for param in params))
    assert isinstance(opts[1].state[params[1]]["axes"], tuple)
