"""gradstep.torch over tensors of bfloat16 and float16: the bits of the classes of gradstep."""

from __future__ import annotations

import copy
import io
import re

import ml_dtypes
import numpy as np
import pytest

import gradstep as gs
from oracle import RULES, assert_same_bits

torch = pytest.importorskip("torch", reason="needs PyTorch")
import gradstep.torch as gt  # noqa: E402
from test_torch import DENSE, VARIANTS  # noqa: E402

IN_NUMPY = {
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float16: np.dtype(np.float16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
BFLOAT16, FLOAT16, FLOAT32, FLOAT64 = IN_NUMPY
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
    names = gt.STATE_NAMES.get(name, {})
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


# Memory -------------------------------------------------------------------------------------------


def test_nothing_is_copied():
    params = parameters((1000,), (30, 4))
    opt = gt.Adam(params, state_dtype="float32")
    steps(opt, params, range(1))
    places = [t.data_ptr() for t in (*params, *states(opt))]
    steps(opt, params, range(1, 3))
    assert places == [t.data_ptr() for t in (*params, *states(opt))]
    assert {s.dtype for s in states(opt)} == {FLOAT32}


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
        ({"state_dtype": torch.int16}, TypeError, "or None, got torch.int16"),
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
