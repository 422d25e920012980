"""gradstep.torch: PyTorch's optimizers in all that is seen of them, gradstep's in their bits."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from oracle import RULES, as_taken, assert_same_bits, needed, python

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytestmark = pytest.mark.torch
#: PyTorch's own steps along rows warn once of what they do not check.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
import gradstep.torch as gt  # noqa: E402
from gradstep.torch import settings  # noqa: E402
from test_against_torch import CASES as ALL_CASES  # noqa: E402
from test_against_torch import COMMON, gradient  # noqa: E402

CASES = [(name, options) for name, options in ALL_CASES if name in gt.CLASSES]

OPTIONS = {name: needed(cls) for name, cls in gt.CLASSES.items()}
SHARED = [name for name in gt.CLASSES if hasattr(torch.optim, name)]
#: What takes nothing but sparse gradients, and what takes all others.
BY_ROWS = ["SparseAdam", "SparseAdagrad"]
DENSE = [name for name in gt.CLASSES if name not in BY_ROWS]
#: Those to which rows and columns are more than places in memory.
OF_MATRICES = ["Adafactor", "Muon"]
#: Every rule at least once, with every state that it can have.
VARIANTS = [
    *CASES,
    ("Momentum", {"lr": 0.05}),
    ("Momentum", {"lr": 0.05, "average": True}),
    ("Nesterov", {"lr": 0.05}),
    ("Adagrad", {"lr": 0.05, "beta": 0.8}),
    ("Adam", {"lr": 0.05, "bias_correction": False}),
    ("ADOPT", {"lr": 0.05}),
    ("ADOPT", {"lr": 0.05, "decoupled_weight_decay": True}),
    ("ASGD", {"lr": 0.05, "t0": 1}),
    ("ScheduleFreeSGD", {"lr": 0.05, "warmup_steps": 3, "r": 1.5}),
    ("ScheduleFreeAdamW", {"lr": 0.05, "warmup_steps": 3, "weight_lr_power": 0.5}),
]
VARIANTS += [(name, OPTIONS[name]) for name in gt.CLASSES if name not in dict(VARIANTS)]


@pytest.fixture
def _scalars_in_double(request):
    """NAdam's and ASGD's scalars are tensors in PyTorch, of the default dtype."""
    if request.node.callspec.params["name"] in ("NAdam", "ASGD"):
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parameters(*shapes, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.nn.Parameter(torch.tensor(rng.standard_normal(s)).to(dtype)) for s in shapes]


def fitting(name, *shapes):
    """Shapes as a class takes them."""
    if name == "Muon":
        return [shape if len(shape) == 2 else (1, int(np.prod(shape))) for shape in shapes]
    return [shape or (1,) for shape in shapes] if name in BY_ROWS else shapes


def give_gradients(params, t, scale=1.0, opt=None):
    """The same for every list of parameters that holds the same numbers."""
    for i, param in enumerate(params):
        rng = np.random.default_rng([t, i])
        param.grad = torch.tensor(scale * rng.standard_normal(param.shape)).to(param.dtype)
        if type(opt).__name__ in BY_ROWS:
            param.grad = param.grad.to_sparse(1)


def given(opt, params):
    """Those gradients, as the class of `gradstep` takes them."""
    return as_taken(opt._class, [p.grad.to_dense().numpy() for p in params])


def numbers(params):
    return [param.detach().numpy().copy() for param in params]


def assert_equal(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        if tolerance:
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), **tolerance)
        else:
            assert_same_bits(a.detach().numpy(), b.detach().numpy())


def everything(opt):
    """The bits of all that a step can change."""
    params = [p for group in opt.param_groups for p in group["params"]]
    state = {
        i: {k: v.clone() if torch.is_tensor(v) else v for k, v in opt.state[p].items()}
        for i, p in enumerate(params)
        if p in opt.state
    }
    return [p.detach().clone() for p in params], state


def assert_same_everything(before, after):
    torch.testing.assert_close(before, after, rtol=0, atol=0, equal_nan=True)


# Numbers ------------------------------------------------------------------------------------------


def test_every_rule_that_needs_only_gradients_is_there():
    assert set(gt.CLASSES) >= {"SGD", "Momentum", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW"}
    rules = {r for name in gt.CLASSES for r in gt.CLASSES[name].rules}
    tested = set()
    for name, options in VARIANTS:
        tested.add(getattr(gs, name)(np.ones((1, 1)), **options).rule)
    assert tested == rules - {"muon_direction"}
    others = set(gs.optimizers.CLASSES) - set(gt.CLASSES.values())
    assert {cls.__name__ for cls in others} == {"WindowSAG", "SAG", "SAGA", "SVRG"}


@pytest.mark.covering
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("common", COMMON, ids=lambda c: "-".join(c) or "plain")
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_the_bits_of_the_class_of_gradstep(name, options, common, threads):
    gs.set_num_threads(threads)
    if name in BY_ROWS and "weight_decay" in common:
        pytest.skip("it has none")
    options = {**options, **common}
    shapes = fitting(name, (3, 5), (), (0,), (1,), (40_000,), (70, 30))
    for dtypes in ([torch.float32] * 6, [torch.float64, torch.float32] * 3):
        params = [parameters(s, dtype=d)[0] for s, d in zip(shapes, dtypes, strict=True)]
        arrays = numbers(params)
        opt, twin = getattr(gt, name)(params, **options), getattr(gs, name)(arrays, **options)
        for t in range(4):
            give_gradients(params, t, opt=opt)
            opt.step()
            twin.step(given(opt, params))
        for p, w in zip(params, arrays, strict=True):
            assert_same_bits(p.detach().numpy(), w)
        names = settings.STATE_NAMES.get(name, {})
        for state, kept in twin.state.items():
            for p, array in zip(params, kept, strict=True):
                if RULES[twin.rule].has_state(state, p.ndim):
                    assert_same_bits(opt.state[p][names.get(state, state)].numpy(), array)
                else:
                    assert state not in opt.state[p]


@pytest.mark.usefixtures("_scalars_in_double")
@pytest.mark.parametrize("common", COMMON, ids=lambda c: "-".join(c) or "plain")
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_fifty_steps_beside_pytorch(name, options, common):
    if name == "Rprop" and "weight_decay" in common:
        pytest.skip("it has none")
    start = torch.tensor(np.random.default_rng(0).standard_normal(37))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    opt = getattr(gt, name)([ours], **{**options, **common})
    their_opt = getattr(torch.optim, name)([theirs], **{**options, **common})
    for t in range(50):
        for w in (ours, theirs):
            w.grad = torch.tensor(gradient(w.detach().numpy(), t))
        opt.step()
        their_opt.step()
    assert_equal([ours], [theirs], rtol=1e-12)
    assert (ours.detach() - start).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["Adam", "Adafactor", "SparseAdam"])
def test_each_parameter_counts_its_own_steps(name):
    """One without a gradient is left alone; one that joins late begins at its first step."""
    ours, theirs = parameters((3,), (4,), (2, 2)), parameters((3,), (4,), (2, 2))
    opt = getattr(gt, name)(ours, lr=0.1)
    their_opt = getattr(torch.optim, name)(theirs, lr=0.1)
    for t in range(6):
        for params in (ours, theirs):
            give_gradients(params, t, opt=opt)
            if t < 3:
                params[1].grad = None
            if t % 2:
                params[2].grad = None
        opt.step()
        their_opt.step()
        assert (ours[1] in opt.state) == (t >= 3)
    assert [int(opt.state[p]["step"]) for p in ours] == [6, 3, 3]
    assert_equal(ours, theirs, rtol=1e-12)


@pytest.mark.usefixtures("_scalars_in_double")
@pytest.mark.parametrize("name", gt.CLASSES)
def test_accumulated_gradients_and_a_real_network(name):
    def train(cls):
        model, x = network(name)
        opt = cls(model.parameters(), **OPTIONS[name])
        for t in range(12):
            (model(x) - 0.3).square().mean().backward()
            if t % 3 == 2:
                opt.step()
                opt.zero_grad()
        return list(model.parameters())

    ours = train(getattr(gt, name))
    theirs = getattr(torch.optim, settings.CLASS_NAMES.get(name, name), None)
    if theirs and name != "Muon":
        assert_equal(ours, train(theirs), rtol=1e-10)
    assert all(p.isfinite().all() for p in ours)


# Memory -------------------------------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda: torch.randn(5, 7, dtype=torch.float64).t(),
    "channels last": lambda: torch.randn(2, 3, 4, 5, dtype=torch.float64).to(
        memory_format=torch.channels_last
    ),
    "permuted": lambda: torch.randn(2, 3, 4, dtype=torch.float64).permute(1, 2, 0),
    "contiguous": lambda: torch.randn(7, 5, dtype=torch.float64),
    "a row": lambda: torch.randn(9, 1, dtype=torch.float64).t(),
}
GRADIENTS = {
    "as the parameter": torch.clone,
    "contiguous": lambda g: g.contiguous(),
    "transposed": lambda g: g.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda g: torch.stack([g, g + 1], -1)[..., 0],
    "expanded": lambda g: g.flatten()[0].expand(g.shape),
    "negated": lambda g: torch.complex(g, -g).conj().imag,
}


@pytest.mark.covering
@pytest.mark.usefixtures("_scalars_in_double")
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, layout, gradients):
    """PyTorch's plain implementation is right with all of them."""
    torch.manual_seed(0)
    start = LAYOUTS[layout]()
    if name in OF_MATRICES and not start.is_contiguous():
        pytest.skip("refused, see below")
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    assert ours.stride() == start.stride()
    plain = torch.nn.Parameter(start.clone().contiguous())
    opt, twin = (
        getattr(gt, name)([ours], **OPTIONS[name]),
        getattr(gt, name)([plain], **OPTIONS[name]),
    )
    plainly = {"foreach": False} if name != "Muon" else {}
    their_opt = getattr(torch.optim, name)([theirs], **plainly) if name in SHARED else None
    for t in range(3):
        g = torch.tensor(np.random.default_rng(t).standard_normal(start.shape))
        laid_out = GRADIENTS[gradients](torch.empty_like(start).copy_(g))
        ours.grad, theirs.grad, plain.grad = laid_out, laid_out, laid_out.contiguous().resolve_neg()
        opt.step()
        twin.step()
        if their_opt:
            their_opt.step()
    # A norm is summed in the order of the memory.
    rounding = {"rtol": 1e-14} if RULES[gt.CLASSES[name].rules[0]].has_trust else {}
    assert_equal([ours], [plain], **rounding)
    if their_opt:
        assert_equal([ours], [theirs], **({"rtol": 1e-12} if name != "Muon" else BFLOAT16))


@pytest.mark.parametrize("name", [*OF_MATRICES, *BY_ROWS, "SGD", "Adagrad"])
def test_rows_and_columns_lie_in_the_order_of_c(name):
    params = [torch.nn.Parameter(torch.ones(5, 7).t()), torch.nn.Parameter(torch.ones(2, 3))]
    opt = getattr(gt, name)(params)
    give_gradients(params, 0, opt=opt)
    if name not in OF_MATRICES:
        params[0].grad = params[0].grad.to_sparse(1)
    reason = "whose rows and columns are its rule's" if name in OF_MATRICES else "whose rows"
    before = everything(opt)
    with pytest.raises(ValueError, match=re.escape(f"params[0] (shape (7, 5)), {reason}")):
        opt.step()
    assert_same_everything(before, everything(opt))
    params[0].data = params[0].data.contiguous()
    opt.state.clear()
    opt.step()
    assert not torch.equal(params[0], torch.ones(7, 5))


def test_a_transposed_gradient_that_the_fused_implementation_mixes_up():
    """PyTorch 2.13: fused=True reads the gradient as if it lay in the order of the parameter."""
    start, g = torch.zeros(2, 3), torch.arange(1.0, 7.0).reshape(3, 2).t() ** 2
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours.grad, theirs.grad = g, g
    gt.SGD([ours], lr=1.0).step()
    torch.optim.SGD([theirs], lr=1.0, foreach=False).step()
    assert_same_bits(ours.detach().numpy(), -g.numpy())
    assert_equal([ours], [theirs])
    adam = torch.nn.Parameter(start.clone())
    adam.grad = g
    opt = gt.Adam([adam], lr=1.0)
    opt.step()
    torch.testing.assert_close(opt.state[adam]["exp_avg"], 0.1 * g)


def sparse(p):
    p.grad = torch.ones(p.shape, dtype=p.dtype).to_sparse()


def shrunk(p):
    p.grad = torch.ones(p.shape, dtype=p.dtype)
    p.data = torch.ones(2, dtype=p.dtype)


def complex_data(p):
    p.grad = None
    p.data = torch.ones(4, dtype=torch.complex64)
    p.grad = torch.ones(4, dtype=torch.complex64)


def as_dtype(dtype):
    def change(p):
        p.grad = None
        p.data = p.data.to(dtype)
        p.grad = torch.ones(4, dtype=dtype)

    return change


def strided_parameter(p):
    p.data = torch.ones(8, dtype=p.dtype)[::2]


def expanded_parameter(p):
    p.data = torch.ones(1, dtype=p.dtype).expand(4)


UNFIT = [
    (sparse, " in the memory of the CPU, got torch.float64, device(type='cpu'), torch.sparse_coo, "
     "shape (4,), sparse_dim 1; sparse gradients are for SparseAdam and the like"),
    (shrunk, "the gradient of params[1] (shape (2,)) must be a "),
    (as_dtype(torch.float8_e5m2), " tensor in the memory of the CPU, got torch.float8_e5m2"),
    (as_dtype(torch.complex128), "got torch.complex128"),
    (strided_parameter, "params[1] (shape (4,)) must be a dense float32"),
    (expanded_parameter, "got torch.float64, device(type='cpu'), torch.strided, shape (4,), "
     "strides (0,)"),
]  # fmt: skip


@pytest.mark.covering
@pytest.mark.parametrize("name", [name for name in DENSE if name != "Muon"])
@pytest.mark.parametrize("stepped", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize(
    ("change", "message"), UNFIT, ids=lambda x: getattr(x, "__name__", "message")
)
def test_what_does_not_fit_is_refused_before_anything_has_changed(name, change, message, stepped):
    if change is sparse and name in ("SGD", "Adagrad"):
        pytest.skip("it fits")
    params = parameters((3,), (4,), (2, 2))
    opt = getattr(gt, name)(params, **OPTIONS[name])
    if stepped:
        give_gradients(params, 0)
        opt.step()
    give_gradients(params, 1)
    change(params[1])
    before = everything(opt)
    known = len(opt.state)
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()
    assert len(opt.state) == known
    assert_same_everything(before, everything(opt))


def test_another_device():
    params = parameters((3,))
    opt = gt.Adam([*params, torch.nn.Parameter(torch.ones(4, device="meta"))])
    give_gradients(params, 0)
    kept = numbers(params)
    opt.param_groups[0]["params"][1].grad = torch.ones(4, device="meta")
    with pytest.raises(ValueError, match=re.escape("got torch.float32, device(type='meta')")):
        opt.step()
    assert not opt.state
    assert_same_bits(kept[0], numbers(params)[0])


def test_all_groups_are_looked_at_before_the_first_moves():
    params = parameters((3,), (4,))
    opt = gt.Adam([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    give_gradients(params, 0)
    sparse(params[1])
    before = everything(opt)
    wanted = "the gradient of param_groups[1] params[0] (shape (4,)) must be"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        opt.step()
    assert_same_everything(before, everything(opt))
    give_gradients(params, 0)
    opt.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match=re.escape("lr must be at least 0 and finite, got -1.0")):
        opt.step()
    assert_same_everything(before, everything(opt))


def test_a_parameter_with_gaps_is_refused_where_states_are_made_at_once():
    gaps = torch.nn.Parameter(torch.ones(8)[::2])
    opt = gt.Adagrad([gaps])
    gaps.grad = torch.ones(4)
    with pytest.raises(ValueError, match=re.escape("params[0] (shape (4,)) must be a dense float")):
        opt.step()
    handle = gt.step_in_backward([gaps], gt.Adam)
    gaps.grad = None
    with pytest.raises(ValueError, match=re.escape("params[0] (shape (4,)) must be a dense float")):
        gaps.sum().backward()
    handle.remove()
    assert gaps.tolist() == [1.0] * 4


def test_names_of_parameters_are_in_messages():
    model = torch.nn.Linear(2, 1).double()
    opt = gt.Adam(model.named_parameters(), lr=0.1)
    sparse(model.bias)
    with pytest.raises(ValueError, match=re.escape("params[1] ('bias', shape (1,)) must be")):
        opt.step()


def test_memory_that_is_shared_is_refused():
    room = torch.ones(10, dtype=torch.float64)
    a, b = torch.nn.Parameter(room[:6]), torch.nn.Parameter(room[4:])
    opt = gt.SGD([a, b], lr=0.1)
    for p in (a, b):
        p.grad = torch.ones(6, dtype=torch.float64)
    message = "params[1] (shape (6,)) shares memory with params[0] (shape (6,))"
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()
    b.grad, a.grad = None, a.detach()
    message = "the gradient of params[0] (shape (6,)) shares memory with params[0] (shape (6,))"
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()
    assert room.tolist() == [1.0] * 10


STATES = [
    (
        {"exp_avg": torch.zeros(3).bfloat16()},
        "state 'exp_avg' of params[0] (shape (3,)) must be laid out as",
    ),
    ({"exp_avg": None}, "strides (1,), got None"),
    ({"exp_avg_sq": torch.zeros(4, dtype=torch.float64)}, "state 'exp_avg_sq' of params[0]"),
    ({"step": torch.tensor(-1.0)}, "whole and at least 0, got -1.0"),
    ({"step": torch.tensor(float("nan"))}, "got nan"),
    ({"step": torch.tensor(0.5)}, "got 0.5"),
    ({"step": 3}, "state 'step' of params[0] (shape (3,)) must be one float32 or float64 number"),
]


@pytest.mark.parametrize(("change", "message"), STATES)
def test_states_that_do_not_fit(change, message):
    params = parameters((3,))
    opt = gt.Adam(params)
    give_gradients(params, 0)
    opt.step()
    kept = numbers(params)
    opt.state[params[0]].update(change)
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()
    del opt.state[params[0]][next(iter(change))]
    with pytest.raises(ValueError, match=re.escape("the state of params[0] (shape (3,)) has no")):
        opt.step()
    assert_same_bits(numbers(params)[0], kept[0])


@pytest.mark.parametrize("count", [3, 20])
def test_everything_that_users_exchange_is_seen(count):
    """Data, states, whole states, a state's data: a step works on what is there."""
    ours, theirs = parameters(*[(4,)] * count), parameters(*[(4,)] * count)
    opt, their_opt = gt.Adam(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for t in range(12):
        for params, one in ((ours, opt), (theirs, their_opt)):
            give_gradients(params, t)
            p = params[1]
            if t == 2:
                p.data = p.data + 1
            if t == 3:
                one.state[p]["exp_avg"] = one.state[p]["exp_avg"] * 2
            if t == 4:
                one.state[p] = {k: v.clone() * 2 for k, v in one.state[p].items()}
            if t == 5:
                one.state[p]["exp_avg_sq"].data = one.state[p]["exp_avg_sq"].data + 1
            if t == 6:
                del one.state[p]
            if t == 7:
                one.state[p]["step"].fill_(3)
            if t == 8:
                one.param_groups[0]["params"][0] = torch.nn.Parameter(params[0].detach().clone())
                params[0] = one.param_groups[0]["params"][0]
                params[0].grad = torch.ones(4, dtype=torch.float64)
            if t == 9:
                one.state[p]["exp_avg"].share_memory_()
            if t == 10:
                one.state.clear()
            one.step()
    assert_equal(ours, theirs, rtol=1e-10)


def test_autograd_sees_that_parameters_have_changed():
    w = torch.nn.Parameter(torch.ones(3))
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    gt.SGD([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# PyTorch's manners --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
def test_arguments_are_those_of_pytorch(name):
    ours = inspect.signature(getattr(gt, name)).parameters
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[p].default == theirs[p].default for p in theirs)
    made, their = (getattr(one, name)([torch.ones(3, 1)]) for one in (gt, torch.optim))
    assert {k: made.defaults[k] for k in their.defaults} == their.defaults
    assert isinstance(made, (torch.optim.Optimizer, getattr(torch.optim, name)))
    options = inspect.signature(gt.CLASSES[name]).parameters
    assert set(ours) == set(theirs) | set(options) - {
        "skip_nonfinite",
        "flush_denormals",
        "state_dir",
        "copy_to",
        "master",
    }


def test_arguments_of_the_others_are_those_of_gradstep():
    opt = gt.Nesterov([torch.ones(3)], 0.1, 0.5, weight_decay=0.1)
    assert opt.defaults["lr"] == 0.1
    assert opt.defaults["momentum"] == 0.5
    assert list(inspect.signature(gt.Momentum).parameters)[:3] == ["params", "lr", "momentum"]
    with pytest.raises(TypeError, match="missing a required argument: 'lr'"):
        gt.Momentum([torch.ones(3)])


BAD = [
    ("Adam", {"foreach": True}, "foreach must be None, got True: a step is one pass"),
    ("Adam", {"capturable": True}, "capturable must be False, got True: CUDA graphs"),
    ("SGD", {"differentiable": True}, "differentiable must be False, got True: autograd"),
    ("Adam", {"lr": -1.0}, "Invalid learning rate: -1.0"),
    ("Adam", {"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1: 1.0"),
    ("Adam", {"eps": 0.0}, "eps must be above 0 and finite, got 0.0"),
    ("Adam", {"lr": float("nan")}, "nan"),
    ("Adam", {"eps": 1e-50}, "eps must be above 0 and finite in float32 too"),
    ("SGD", {"nesterov": True}, "Nesterov momentum requires a momentum and zero dampening"),
    ("SGD", {"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ("RMSprop", {"momentum": -1.0}, "Invalid momentum value: -1.0"),
    ("Adagrad", {"lr_decay": -1.0}, "Invalid lr_decay value: -1.0"),
    ("Momentum", {"lr": 0.1, "momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ("Nesterov", {"lr": -0.1}, "lr must be at least 0 and finite, got -0.1"),
    ("NAdam", {"momentum_decay": -1.0}, "Invalid momentum_decay value: -1.0"),
    ("NAdam", {"capturable": True}, "capturable must be False, got True: CUDA graphs"),
    ("ASGD", {"lambd": -1.0}, "lambd must be at least 0 and finite, got -1.0"),
    ("ASGD", {"foreach": True}, "foreach must be None, got True: a step is one pass"),
    ("ScheduleFreeSGD", {"momentum": 0.0}, "momentum must be above 0, because eval() divides"),
    ("ScheduleFreeAdamW", {"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_arguments(name, options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        getattr(gt, name)([torch.ones(3)], **options)


def test_other_bad_arguments():
    for bad, message in [
        ([], "empty parameter list"),
        ([3], "optimizer can only optimize Tensors"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            gt.Adam(bad)
    with pytest.raises(TypeError, match="should be an iterable of Tensors"):
        gt.Adam(torch.ones(3))
    with pytest.raises(TypeError, match="unexpected keyword argument 'rate'"):
        gt.Adam([torch.ones(3)], rate=1)
    with pytest.raises(ValueError, match="can't optimize a non-leaf Tensor"):
        gt.Adam([torch.ones(3, requires_grad=True) * 2])
    with pytest.raises(AttributeError, match=r"gradstep\.torch has no 'SAG'"):
        gt.SAG  # noqa: B018
    with pytest.raises(TypeError, match=r"optimizer_class must be one of gradstep\.torch, got A"):
        gt.step_in_backward([torch.ones(3)], torch.optim.Adam)


def test_options_of_a_group_that_change_between_steps_count():
    """Those of PyTorch's classes alone among them, and a tensor that changes in place."""
    sides = []
    for cls in (gt.Adam, torch.optim.Adam):
        beta1 = torch.tensor(0.5, dtype=torch.float64)
        param = torch.nn.Parameter(torch.linspace(1, 2, 5, dtype=torch.float64))
        opt = cls([param], lr=0.1, betas=(beta1, torch.tensor(0.9)), weight_decay=0.1)
        for t in range(4):
            param.grad = torch.full_like(param, t - 1.5)
            opt.step()
            opt.param_groups[0]["decoupled_weight_decay"] = t > 0
            beta1.fill_(0.5 + t / 10)
            opt.param_groups[0]["eps"] = 1e-8 + t / 100
        sides.append((opt, param.detach()))
    torch.testing.assert_close(sides[0][1], sides[1][1], rtol=1e-6, atol=0)
    ours, before = sides[0][0], sides[0][1].clone()
    ours.param_groups[0]["foreach"] = True
    with pytest.raises(ValueError, match="foreach must be None, got True"):
        ours.step()
    assert (sides[0][1] == before).all()


@pytest.mark.covering
@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("fused", [None, False, True])
def test_flags_that_may_be_given(name, fused):
    flags = {"fused": fused, "foreach": False, "differentiable": False}
    known = inspect.signature(getattr(gt, name)).parameters
    params = parameters((3, 1))
    opt = getattr(gt, name)(params, **{flag: flags[flag] for flag in flags if flag in known})
    give_gradients(params, 0, opt=opt)
    opt.step()
    assert not hasattr(opt, "_step_supports_amp_scaling")


def test_adam_with_decoupled_weight_decay_is_adamw():
    ends = []
    for cls, options in ((gt.Adam, {"decoupled_weight_decay": True}), (gt.AdamW, {})):
        params = parameters((5,))
        give_gradients(params, 0)
        cls(params, lr=0.1, weight_decay=0.3, **options).step()
        ends.append(params)
    assert_equal(*ends)


@pytest.mark.parametrize("name", SHARED)
def test_tensors_as_learning_rates(name):
    ours, theirs = parameters((3, 2)), parameters((3, 2))
    make = [getattr(gt, name), getattr(torch.optim, name)]
    opts = [cls(p, lr=torch.tensor(0.1)) for cls, p in zip(make, (ours, theirs), strict=True)]
    for t in range(3):
        for opt, params in zip(opts, (ours, theirs), strict=True):
            give_gradients(params, t, opt=opt)
            opt.step()
            opt.param_groups[0]["lr"].mul_(0.5)
    # The rate is of float32.
    assert_equal(ours, theirs, **({"rtol": 1e-6} if name != "Muon" else BFLOAT16))
    with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
        make[0](ours, lr=torch.ones(2))


def test_groups_have_their_own_options():
    ours, theirs = parameters((3,), (4,), (5,)), parameters((3,), (4,), (5,))
    opts = []
    for cls, params in ((gt.AdamW, ours), (torch.optim.AdamW, theirs)):
        groups = [{"params": params[:1], "lr": 0.3, "betas": (0.5, 0.6)}, {"params": params[1:2]}]
        opts.append(cls(groups, lr=0.01, weight_decay=0.2))
    for t in range(6):
        for opt, params in zip(opts, (ours, theirs), strict=True):
            if t == 2:
                opt.add_param_group({"params": [params[2]], "weight_decay": 0.0, "amsgrad": True})
            if t == 4:
                opt.param_groups[0]["eps"] = 0.1
            give_gradients(params, t)
            opt.step()
    assert_equal(ours, theirs, rtol=1e-12)
    assert [g["weight_decay"] for g in opts[0].param_groups] == [0.2, 0.2, 0.0]


def test_a_group_that_is_refused_is_not_added():
    opt = gt.Adam(parameters((3,)))
    with pytest.raises(ValueError, match="eps must be above 0"):
        opt.add_param_group({"params": parameters((2,)), "eps": 0.0})
    assert len(opt.param_groups) == 1
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        opt.add_param_group({"params": opt.param_groups[0]["params"]})


def has_momentum(opt):
    return not opt.defaults.keys().isdisjoint({"momentum", "betas"})


SCHEDULERS = {
    "StepLR": lambda s, o: s.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [2, 5]),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9),
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda t: 1 / (1 + t)),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 4),
    "LinearLR": lambda s, o: s.LinearLR(o),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o, 9),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=has_momentum(o)),
    "CyclicLR": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 4, cycle_momentum=has_momentum(o)),
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o, patience=2),
    "SequentialLR": lambda s, o: s.SequentialLR(
        o, [s.ConstantLR(o, 0.1, 3), s.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.covering
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.usefixtures("_scalars_in_double")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {}),
        ("SGD", {"momentum": 0.9}),
        ("NAdam", {}),
        ("ASGD", {"lambd": 0.02}),
        ("Adafactor", {}),
        ("SparseAdam", {}),
    ],
    ids=str,
)
def test_schedulers(name, options, scheduler):
    ours, theirs = parameters((6,)), parameters((6,))
    rates = []
    for cls, params in ((getattr(gt, name), ours), (getattr(torch.optim, name), theirs)):
        opt = cls(params, lr=0.05, **options)
        schedule = SCHEDULERS[scheduler](torch.optim.lr_scheduler, opt)
        rates.append([])
        for t in range(15):
            give_gradients(params, t, opt=opt)
            opt.step()
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
            rates[-1].append(opt.param_groups[0]["lr"])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1
    assert_equal(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", [gt.Adam, torch.optim.Adam])
def test_closure(cls, dtype):
    params = parameters((3,), dtype=dtype)
    opt = cls(params, lr=0.1)
    losses = []

    def closure():
        opt.zero_grad()
        assert torch.is_grad_enabled()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        for _ in range(5):
            losses.append(opt.step(closure).item())
    assert losses == sorted(losses, reverse=True)
    assert opt.step() is None


def test_hooks():
    params = parameters((3,))
    opt, seen = gt.SGD(params, lr=0.1), []
    opt.register_step_pre_hook(lambda o, args, kwargs: seen.append("before"))
    opt.register_step_post_hook(lambda o, args, kwargs: seen.append("after"))
    opt.register_state_dict_post_hook(lambda o, state: state | {"more": 1})
    opt.register_load_state_dict_pre_hook(lambda o, state: seen.append("loading"))
    give_gradients(params, 0)
    opt.step()
    state = opt.state_dict()
    assert state.pop("more") == 1
    opt.load_state_dict(state)
    assert seen == ["before", "after", "loading"]


def test_zero_grad():
    params = parameters((3,))
    opt = gt.SGD(params)
    give_gradients(params, 0)
    opt.zero_grad(set_to_none=False)
    assert params[0].grad.tolist() == [0.0] * 3
    opt.zero_grad()
    assert params[0].grad is None
    opt.step()
    assert not opt.state


def test_a_gradient_scaler():
    ours, theirs = parameters((5,), dtype=torch.float32), parameters((5,), dtype=torch.float32)
    for cls, params in ((gt.Adam, ours), (torch.optim.Adam, theirs)):
        opt = cls(params, lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for t in range(6):
            opt.zero_grad()
            loss = (params[0] * (float("inf") if t == 3 else 1.0)).square().sum()
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
        assert scaler.get_scale() != 1024.0
        assert opt.state[params[0]]["step"] == 5  # the one with infinity was left out
    assert_equal(ours, theirs, rtol=1e-5)


# Checkpoints --------------------------------------------------------------------------------------


def steps(opt, params, times):
    for t in times:
        give_gradients(params, t, opt=opt)
        opt.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.usefixtures("_scalars_in_double")
@pytest.mark.parametrize("into", [gt, torch.optim], ids=["to ours", "to PyTorch's"])
@pytest.mark.parametrize("begun", [gt, torch.optim], ids=["from ours", "from PyTorch's"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_checkpoints_are_exchanged(name, options, begun, into):
    shapes = [(3, 4), (), (6,)]
    params, unbroken = parameters(*shapes), parameters(*shapes)
    steps(getattr(torch.optim, name)(unbroken, **options), unbroken, range(10))
    first = getattr(begun, name)(params, **options)
    steps(first, params, range(5))
    state = through_a_file(first.state_dict())
    other = getattr(into, name)(params)
    other.load_state_dict(state)
    steps(other, params, range(5, 10))
    assert_equal(params, unbroken, rtol=1e-12)
    theirs = getattr(torch.optim, name)(parameters(shapes[0]), **options)
    give_gradients(theirs.param_groups[0]["params"], 0)
    theirs.step()
    assert set(other.state_dict()["state"].get(0, {})) == set(
        theirs.state_dict()["state"].get(0, {})
    )


@pytest.mark.parametrize("name", gt.CLASSES)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(name):
    shapes = fitting(name, (5, 2), (3,))
    params, unbroken = parameters(*shapes), parameters(*shapes)
    steps(getattr(gt, name)(unbroken, **OPTIONS[name]), unbroken, range(6))
    first = getattr(gt, name)(params, **OPTIONS[name])
    steps(first, params, range(3))
    other = getattr(gt, name)(params, **OPTIONS[name])
    other.load_state_dict(through_a_file(first.state_dict()))
    steps(other, params, range(3, 6))
    assert_equal(params, unbroken)


def test_what_a_checkpoint_of_pytorch_may_hold():
    """Counts that are numbers, states of another layout, flags of another device."""
    params = [torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64).t())]
    twin = [torch.nn.Parameter(params[0].detach().contiguous())]
    opts = gt.Adam(params, lr=0.1), torch.optim.Adam(twin, lr=0.1, foreach=True)
    steps(opts[1], twin, range(3))
    with torch.no_grad():
        params[0].copy_(twin[0])
    state = opts[1].state_dict()
    state["state"][0]["step"] = 3
    state["param_groups"][0]["capturable"] = False
    opts[0].load_state_dict(state)
    assert opts[0].state[params[0]]["exp_avg"].stride() == params[0].stride()
    assert opts[0].param_groups[0]["foreach"] is None
    steps(opts[0], params, range(3, 6))
    opts[1].load_state_dict(
        copy.deepcopy(state) | {"state": {0: state["state"][0] | {"step": torch.tensor(3.0)}}}
    )
    steps(opts[1], twin, range(3, 6))
    assert_equal(params, twin, rtol=1e-12)


@pytest.mark.parametrize("name", gt.CLASSES)
def test_copies_and_pickles_go_their_own_way(name):
    params = parameters(*fitting(name, (4,), (3, 2)))
    opt = getattr(gt, name)(params, **OPTIONS[name])
    steps(opt, params, range(2))
    for copied in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert type(copied) is type(opt)
        theirs = copied.param_groups[0]["params"]
        assert_equal(theirs, params)
        twin = copy.deepcopy(params)
        again = getattr(gt, name)(twin, **OPTIONS[name])
        again.load_state_dict(copy.deepcopy(opt.state_dict()))  # PyTorch does not copy it
        steps(copied, theirs, range(2, 4))
        steps(again, twin, range(2, 4))
        assert_equal(theirs, twin)
    assert type(opt).__name__ in repr(opt)


# Matrices -----------------------------------------------------------------------------------------

#: How far apart the numbers are in which PyTorch's Muon iterates, some steps later.
BFLOAT16 = {"rtol": 2**-6, "atol": 2**-8}


@pytest.mark.parametrize("common", COMMON, ids=lambda c: "-".join(c) or "plain")
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (70, 1100), (2, 3, 5, 4)], ids=str)
def test_adafactor_of_matrices_beside_pytorch(shape, common):
    ours, theirs = parameters(shape), parameters(shape)
    opts = [one.Adafactor(p, lr=0.05, **common) for one, p in ((gt, ours), (torch.optim, theirs))]
    for t in range(20):
        for opt, params in zip(opts, (ours, theirs), strict=True):
            give_gradients(params, t)
            opt.step()
    assert_equal(ours, theirs, rtol=1e-12, atol=1e-14)
    state, their_state = opts[0].state[ours[0]], opts[1].state[theirs[0]]
    assert list(state) == list(their_state)
    assert_equal(state.values(), their_state.values(), rtol=1e-12)


FACTORS = [
    ({"row_var": torch.zeros(3, 4, dtype=torch.float64)}, "state 'row_var' of params[0] (shape "
     "(3, 4)) must be contiguous, of the shape (3, 1) and its parameter's dtype, got torch.float"),
    ({"row_var": torch.zeros(1, 3, dtype=torch.float64)}, "of the shape (3, 1)"),
    ({"col_var": torch.zeros(1, 4)}, "of the shape (1, 4) and its parameter's dtype, got torch.fl"),
    ({"col_var": torch.zeros(1, 8, dtype=torch.float64)[:, ::2]}, "strides (8, 2)"),
    ({"col_var": None}, "got None"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FACTORS)
def test_factors_that_do_not_fit(change, message):
    params = parameters((3, 4))
    opt = gt.Adafactor(params)
    steps(opt, params, range(1))
    kept = numbers(params)
    opt.state[params[0]].update(change)
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()
    assert_same_bits(numbers(params)[0], kept[0])


@pytest.mark.parametrize("into", [gt, torch.optim], ids=["to ours", "to PyTorch's"])
@pytest.mark.parametrize("begun", [gt, torch.optim], ids=["from ours", "from PyTorch's"])
def test_checkpoints_of_muon_are_exchanged(begun, into):
    """Momenta are those of PyTorch; what is made of them differs by its iteration in bfloat16."""
    shapes = [(16, 48), (48, 16), (5, 5)]
    options = {"lr": 0.05, "momentum": 0.8, "ns_steps": 4, "adjust_lr_fn": "match_rms_adamw"}
    params, unbroken = parameters(*shapes), parameters(*shapes)
    whole = torch.optim.Muon(unbroken, **options)
    steps(whole, unbroken, range(10))
    first = begun.Muon(params, **options)
    steps(first, params, range(5))
    other = into.Muon(params)
    other.load_state_dict(through_a_file(first.state_dict()))
    steps(other, params, range(5, 10))
    for p, q, start in zip(params, unbroken, parameters(*shapes), strict=True):
        assert (p - q).norm() < 2**-6 * (q - start).norm()
        assert list(other.state[p]) == list(whole.state[q]) == ["momentum_buffer"]
        assert_equal(other.state[p].values(), whole.state[q].values(), rtol=1e-12, atol=1e-15)


def test_muon_takes_matrices_alone():
    matrices, vectors = parameters((3, 2)), parameters((3,))
    with pytest.raises(ValueError, match=re.escape("must have two dimensions, got shape (3,)")):
        gt.Muon(matrices + vectors)
    opt = gt.Muon(matrices)
    with pytest.raises(ValueError, match="leave it to another rule, such as AdamW"):
        opt.add_param_group({"params": vectors})
    assert len(opt.param_groups) == 1
    matrices[0].data = vectors[0].data
    give_gradients(matrices, 0)
    with pytest.raises(ValueError, match=re.escape("params[0] (shape (3,)) must have two dim")):
        opt.step()


def test_muon_interrupted_between_its_passes_has_changed_nothing(monkeypatch):
    params = parameters((3, 2), (4, 4))
    opt = gt.Muon(params)
    steps(opt, params[:1], range(1))
    give_gradients(params, 1)
    before = everything(opt)
    products = []

    def interrupted(*args, **options):
        products.append(matmul(*args, **options))
        if len(products) == 20:
            raise KeyboardInterrupt

    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.step()
    monkeypatch.undo()
    assert_same_everything(before, everything(opt))
    assert len(opt.state) == 1
    opt.step()
    assert len(opt.state) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, opt: setattr(p, "data", torch.ones(2, 2)), "the gradient of params[0]"),
        (lambda p, opt: opt.state[p].clear(), "has no 'momentum_buffer', only []"),
        (lambda p, opt: (setattr(p, "grad", None), setattr(p, "data", p.data.t()))[0], "contigu"),
    ],
    ids=["the parameter", "its state", "its order"],
)
def test_what_is_exchanged_between_the_passes_of_muon_is_seen(monkeypatch, change, message):
    params = parameters((3, 2))
    opt = gt.Muon(params)
    steps(opt, params, range(1))

    def directions(self, grads, means):
        change(params[0], opt)
        return original(self, grads, means)

    original = gs.Muon.directions
    monkeypatch.setattr(gs.Muon, "directions", directions)
    give_gradients(params, 1)
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()


# Sparse gradients ---------------------------------------------------------------------------------


def rows_of(param, indices, t, coalesced=False):
    """A gradient of these rows, in this order."""
    values = np.random.default_rng([t, len(indices)]).standard_normal(
        (len(indices), *param.shape[1:])
    )
    sparse = torch.sparse_coo_tensor(
        torch.tensor(indices, dtype=torch.int64)[None],
        torch.tensor(values).to(param.dtype),
        param.shape,
        check_invariants=False,
    )
    return sparse.coalesce() if coalesced else sparse


#: What touches no row, some, one of them several times, all of them.
ROWS = [[3], [], [5, 0, 3], [2, 2, 5, 2], [5, 4, 3, 2, 1, 0], [0, 1, 0]]
#: The classes that take sparse gradients, with that of `gradstep` for them.
TAKE_ROWS = [
    ("SparseAdam", {"lr": 0.05}, gs.SparseAdam),
    ("SparseAdam", {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-4, "maximize": True}, gs.SparseAdam),
    ("SparseAdagrad", {"lr": 0.05}, gs.SparseAdagrad),
    ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.3}, gs.SparseAdagrad),
    ("SGD", {"lr": 0.05, "maximize": True}, gs.SGD),
]


@pytest.mark.covering
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("coalesced", [False, True], ids=["as it comes", "coalesced"])
@pytest.mark.parametrize(("name", "options", "twin"), TAKE_ROWS, ids=str)
def test_rows_have_the_bits_of_gradstep(name, options, twin, coalesced, dtype, threads):
    gs.set_num_threads(threads)
    params = parameters((6, 3), (6,), (6, 8000), (6, 2, 2), (6, 0), dtype=dtype)
    arrays = numbers(params)
    opt, one = getattr(gt, name)(params, **options), twin(arrays, **options)
    for t, indices in enumerate(ROWS):
        grads = [rows_of(p, indices, t, coalesced) for p in params]
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        opt.step()
        pairs = [(g._indices()[0].numpy(), g._values().numpy()) for g in grads]
        if twin is gs.SGD:
            sums = []
            for (rows, values), w in zip(pairs, arrays, strict=True):
                sums.append(np.zeros_like(w))
                np.add.at(sums[-1], rows, values)
            pairs = sums
        one.step(pairs)
        for p, w in zip(params, arrays, strict=True):
            assert_same_bits(p.detach().numpy(), w)
    names = settings.STATE_NAMES.get(name, {})
    for state, kept in one.state.items():
        for p, array in zip(params, kept, strict=True):
            assert_same_bits(opt.state[p][names.get(state, state)].numpy(), array)


@pytest.mark.parametrize("begun", [gt, torch.optim], ids=["from ours", "from PyTorch's"])
@pytest.mark.parametrize("into", [gt, torch.optim], ids=["to ours", "to PyTorch's"])
@pytest.mark.parametrize(("name", "options", "_"), TAKE_ROWS, ids=str)
def test_checkpoints_of_rows_are_exchanged(name, options, _, begun, into):
    """Fifty steps, of which the second half is taken by the other."""

    def run(opt, params, times):
        for t in times:
            for i, p in enumerate(params):
                p.grad = rows_of(p, ROWS[(t + i) % len(ROWS)], t) if (t + i) % 5 else None
            opt.step()

    def make(module):
        return getattr(module, name if module is gt else settings.CLASS_NAMES.get(name, name))

    params, unbroken = parameters((6, 3), (6,)), parameters((6, 3), (6,))
    whole = make(torch.optim)(unbroken, **options)
    run(whole, unbroken, range(50))
    first = make(begun)(params, **options)
    run(first, params, range(25))
    other = make(into)(params)
    other.load_state_dict(through_a_file(first.state_dict()))
    run(other, params, range(25, 50))
    assert_equal(params, unbroken, rtol=1e-12)
    for p, q in zip(params, unbroken, strict=True):
        assert set(other.state.get(p, {})) == set(whole.state.get(q, {}))
        assert other.state.get(p, {}).get("step", 40) == 40


@pytest.mark.parametrize("name", ["Adagrad", "SGD"])
def test_dense_and_sparse_gradients_in_one_step(name):
    def train(cls):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(9, 4, sparse=True)
        model = torch.nn.Sequential(embedding, torch.nn.Flatten(), torch.nn.Linear(12, 1)).double()
        opt = cls(model.parameters(), lr=0.1)
        for t in range(12):
            opt.zero_grad()
            model(torch.tensor([[t % 9, 3, t % 4], [5, 5, t % 7]])).square().mean().backward()
            opt.step()
        return list(model.parameters())

    assert_equal(train(getattr(gt, name)), train(getattr(torch.optim, name)), rtol=1e-12)


def test_a_gradient_is_dense_once_and_sparse_then():
    ours, theirs = parameters((6, 3)), parameters((6, 3))
    for opt, params in ((gt.Adagrad(ours), ours), (torch.optim.Adagrad(theirs), theirs)):
        for t in range(6):
            give_gradients(params, t)
            if t % 2:
                params[0].grad = rows_of(params[0], [4, 1, 4], t)
            opt.step()
    assert_equal(ours, theirs, rtol=1e-12)


def test_values_that_are_expanded_or_negated():
    ours, theirs = parameters((6, 3)), parameters((6, 3))
    for opt, params in ((gt.SparseAdam(ours), ours), (torch.optim.SparseAdam(theirs), theirs)):
        one = torch.ones(1, 1, dtype=torch.float64)
        for value in (one, torch.complex(one, one).conj().imag):
            params[0].grad = torch.sparse_coo_tensor(
                [[5, 2]], value.expand(2, 3), (6, 3), check_invariants=False
            )
            assert value.is_neg() or not params[0].grad._values().is_contiguous()
            opt.step()
    assert_equal(ours, theirs, rtol=1e-12)


def indexed(rows):
    return lambda p: rows_of(p, rows, 0)


UNFIT_ROWS = [
    ("SparseAdam", {}, torch.ones_like, "the gradient of params[1] (shape (6, 3)) must be a sparse "
     "tensor of its shape and dtype, with one sparse dimension, in the memory of the CPU, got "
     "torch.float64, device(type='cpu'), torch.strided, shape (6, 3), strides (3, 1); "
     "dense gradients are for Adam and the like"),
    ("SparseAdagrad", {}, torch.ones_like, "dense gradients are for Adam and the like"),
    ("SparseAdam", {}, lambda p: torch.ones_like(p).to_sparse(), "sparse_dim 2"),
    ("Adagrad", {}, lambda p: torch.ones_like(p).to_sparse(), "must be a tensor of its shape and "
     "dtype, dense or with one sparse dimension, in the memory of the CPU, got torch.float64"),
    ("SparseAdam", {}, indexed([2, 7]), "the indices of the gradient of params[1] (shape (6, 3)) "
     "must be at least 0 and below 6, got 7 at position 1"),
    ("SGD", {}, indexed([-1]), "must be at least 0 and below 6, got -1 at position 0"),
    ("SGD", {"weight_decay": 0.1}, indexed([2]), "weight_decay must be 0 where gradients are "
     "sparse, as that of params[1] (shape (6, 3)) is, got 0.1: it would move all rows"),
    ("SGD", {"momentum": 0.9}, indexed([2]), "sparse gradients are for SparseAdam and the like"),
    ("Adagrad", {"beta": 0.9}, indexed([2]), "sparse gradients are for SparseAdam and the like"),
]  # fmt: skip


@pytest.mark.parametrize("stepped", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize(("name", "options", "grad", "message"), UNFIT_ROWS)
def test_rows_that_do_not_fit(name, options, grad, message, stepped):
    params = parameters((6, 3), (6, 3))
    opt = getattr(gt, name)(params, **options)
    dense = "momentum" in options or "beta" in options or "weight_decay" in options
    for t in range(1 + stepped):
        for p in params:
            p.grad = torch.ones_like(p) if dense else rows_of(p, [4, 1], t)
        if t < stepped:
            opt.step()
    params[1].grad = grad(params[1].detach())
    before, known = everything(opt), len(opt.state)
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()
    assert len(opt.state) == known
    assert_same_everything(before, everything(opt))


def test_rows_of_another_dtype_or_shape_or_shared_memory():
    params = parameters((6, 3))
    opt = gt.SparseAdam(params)
    params[0].grad = rows_of(params[0], [1], 0)
    opt.step()
    kept = everything(opt)
    params[0].data = params[0].data.float()
    with pytest.raises(ValueError, match=re.escape("with one sparse dimension, in the memory")):
        opt.step()
    params[0].data = kept[0][0][:, :2].contiguous()
    with pytest.raises(
        ValueError, match=re.escape("got torch.float64, device(type='cpu'), torch.s")
    ):
        opt.step()
    params[0].data = kept[0][0]
    params[0].grad = torch.sparse_coo_tensor(
        [[1]], params[0].data[2:3], (6, 3), check_invariants=False
    )
    with pytest.raises(ValueError, match=re.escape("params[0] (shape (6, 3)) shares memory with")):
        opt.step()
    untouched = opt.state[params[0]]["exp_avg"].view(torch.int64)[5:, :1]
    params[0].grad = torch.sparse_coo_tensor(
        untouched, kept[0][0][:1].clone(), (6, 3), check_invariants=False
    )
    message = "the indices of the gradient of params[0] (shape (6, 3)) shares memory with a state"
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()


def test_sparse_adagrad_is_an_adagrad_of_pytorch():
    opt = gt.SparseAdagrad(parameters((6, 3)), 0.1, foreach=False)
    assert isinstance(opt, torch.optim.Adagrad)
    ours, theirs = (
        inspect.signature(cls).parameters for cls in (gt.SparseAdagrad, torch.optim.Adagrad)
    )
    assert list(ours) == [*theirs, *settings.HELD]
    assert "`torch.optim.Adagrad`" in gt.SparseAdagrad.__doc__
    message = "weight_decay must be 0, got 0.1: gradstep.SparseAdagrad has no such option"
    with pytest.raises(ValueError, match=re.escape(message)):
        gt.SparseAdagrad(parameters((6, 3)), weight_decay=0.1)


# What a rule knows of its past beside arrays ------------------------------------------------------

WITH_PROGRESS = ["NAdam", "ASGD", "ScheduleFreeSGD", "ScheduleFreeAdamW"]
SCHEDULE_FREE = [
    ("ScheduleFreeSGD", {"lr": 0.3, "warmup_steps": 4}),
    ("ScheduleFreeAdamW", {"lr": 0.05, "weight_decay": 0.1, "r": 1.0}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", WITH_PROGRESS)
def test_progress_is_that_of_gradstep_in_double(name, dtype):
    """It loses nothing on its way through a checkpoint, whatever the type of the parameters."""
    params = parameters((3,), dtype=dtype)
    arrays = numbers(params)
    opt, twin = getattr(gt, name)(params, lr=0.1), getattr(gs, name)(arrays, lr=0.1)
    for t in range(5):
        give_gradients(params, t)
        opt.step()
        twin.step([p.grad.numpy() for p in params])
    counters = twin.state_dict()["counters"]
    if name == "ASGD":
        expected = {"eta": 0.1 / _core.power(1 + 1e-4 * 0.1 * 5, 0.75), "mu": 1.0}
    elif name == "NAdam":
        expected = {"mu_product": counters["mu_product"][0]}
    else:
        expected = dict(zip(("weight_sum", "lr_max"), counters["progress"], strict=False))
    other = getattr(gt, name)(parameters((3,), dtype=dtype))
    other.load_state_dict(through_a_file(opt.state_dict()))
    for one in (opt, other, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        state = one.state[one.param_groups[0]["params"][0]]
        assert {key: state[key] for key in expected} == expected
        assert {type(state[key]) for key in expected} == {float}


@pytest.mark.parametrize("name", WITH_PROGRESS)
def test_a_parameter_that_joins_late_has_a_past_of_its_own(name):
    """It goes as if it were alone, by whatever way the steps of the others came."""
    together = parameters((3,), (4,), dtype=torch.float32)
    alone = [torch.nn.Parameter(p.detach().clone()) for p in together]
    opt = getattr(gt, name)(together, lr=0.1)
    one, other = (getattr(gt, name)([p], lr=0.1) for p in alone)
    for t in range(8):
        give_gradients(together, t)
        for p, q in zip(together, alone, strict=True):
            q.grad = p.grad
        if t < 3 or t == 5:
            together[1].grad = None
        else:
            other.step()
        opt.step()
        one.step()
    assert [int(opt.state[p]["step"]) for p in together] == [8, 4]
    assert_equal(together, alone)
    if hasattr(opt, "eval"):
        for each in (opt, one, other):
            each.eval()
        assert_equal(together, alone)


def test_parameters_with_as_many_steps_and_different_pasts():
    together = parameters((3,), (4,))
    alone = [torch.nn.Parameter(p.detach().clone()) for p in together]
    opt = gt.NAdam(together, lr=0.1)
    others = [gt.NAdam([p], lr=0.1) for p in alone]
    for t in range(6):
        give_gradients(together, t)
        if t == 3:
            for one, p in ((opt, together[1]), (others[1], alone[1])):
                one.state[p]["mu_product"] = 0.75
        opt.step()
        for p, q, other in zip(together, alone, others, strict=True):
            q.grad = p.grad
            other.step()
    assert_equal(together, alone)
    products = [opt.state[p]["mu_product"] for p in together]
    assert products == [
        other.state[p]["mu_product"] for p, other in zip(alone, others, strict=True)
    ]
    assert products[0] != products[1]


def test_a_product_of_momenta_goes_on_where_others_were_multiplied():
    """Options are changed on the way, and a checkpoint follows: it is not formed anew."""
    ours, theirs = parameters((5,)), parameters((5,))
    torch.set_default_dtype(torch.float64)
    try:
        for cls, params in ((gt.NAdam, ours), (torch.optim.NAdam, theirs)):
            opt = torch.optim.NAdam(params, lr=0.05, betas=(0.5, 0.99))
            steps(opt, params, range(3))
            opt.param_groups[0]["betas"] = (0.95, 0.99)
            opt.param_groups[0]["momentum_decay"] = 0.3
            then = cls(params)
            then.load_state_dict(through_a_file(opt.state_dict()))
            steps(then, params, range(3, 8))
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(ours, theirs, rtol=1e-12)


BAD_PROGRESS = [
    ("NAdam", {"mu_product": -0.5}, "state 'mu_product' of params[1] (shape (4,)) must be a float, "
     "finite and at least 0, got -0.5"),
    ("NAdam", {"mu_product": float("nan")}, "got nan"),
    ("NAdam", {"mu_product": torch.tensor(0.5)}, "got tensor(0.5000)"),
    ("NAdam", {"mu_product": 1.5}, "mu_product must be in [0, 1], got 1.5"),
    ("NAdam", {"mu_product": None}, "got None"),
    ("ASGD", {"eta": 1e300}, "lr must be at least 0 and finite in float32 too, which rounds"),
    ("ScheduleFreeSGD", {"weight_sum": float("inf")}, "state 'weight_sum' of params[1]"),
    ("ScheduleFreeAdamW", {"lr_max": -1.0}, "state 'lr_max' of params[1]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), BAD_PROGRESS)
def test_progress_that_does_not_fit(name, change, message):
    params = parameters((3,), (4,))
    opt = getattr(gt, name)(params, lr=0.1)
    steps(opt, params, range(2))
    kept = everything(opt)[0]
    (key,) = change
    opt.state[params[1]].update(change)
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.step()
    del opt.state[params[1]][key]
    with pytest.raises(ValueError, match=re.escape(f"has no '{key}', only ['step', ")):
        opt.step()
    assert_same_everything(kept, everything(opt)[0])
    assert [int(opt.state[p]["step"]) for p in params] == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), SCHEDULE_FREE, ids=str)
def test_eval_and_train_have_the_bits_of_gradstep(name, options, dtype):
    params = [
        *parameters((3, 2), (), (0,), dtype=dtype),
        torch.nn.Parameter(torch.randn(4, 3, dtype=dtype).t()),
    ]
    arrays = [w.copy() for w in numbers(params)]
    opt, twin = getattr(gt, name)(params, **options), getattr(gs, name)(arrays, **options)

    def assert_twins():
        for p, w in zip(params, arrays, strict=True):
            assert_same_bits(p.detach().numpy(), w)

    for t in range(6):
        for one in (opt, twin):  # twice: the second changes nothing
            for move in ("eval", "eval", "train", "train") if t in (0, 2, 4) else ():
                getattr(one, move)()
        assert_twins()
        give_gradients(params, t)
        opt.step()
        twin.step([p.grad.numpy().copy() for p in params])
        assert_twins()
    opt.eval()
    twin.eval()
    assert_twins()


@pytest.mark.parametrize(("name", "options"), SCHEDULE_FREE, ids=str)
def test_no_step_after_eval_before_train(name, options):
    """Also in copies, pickles and checkpoints, for parameters without states, and in backward."""
    params = parameters((3,), (4,))
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.2}]
    opt = getattr(gt, name)(groups, **options)
    give_gradients(params, 0)
    params[1].grad = None
    opt.step()
    opt.eval()
    assert [group["train_mode"] for group in opt.param_groups] == [False, False]
    other = getattr(gt, name)([{"params": [p]} for p in copy.deepcopy(params)])
    other.load_state_dict(through_a_file(opt.state_dict()))
    ends = []
    for one in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), other, opt):
        theirs = [group["params"][0] for group in one.param_groups]
        give_gradients(theirs, 1)
        before = everything(one)
        with pytest.raises(RuntimeError, match=re.escape("call train() before the next step")):
            one.step()
        theirs[0].grad = None  # what is left has no state
        with pytest.raises(RuntimeError, match=re.escape("call train() before the next step")):
            one.step()
        assert_same_everything(before, everything(one))
        one.train()
        steps(one, theirs, range(1, 4))
        ends.append(theirs)
    for end in ends:
        assert_equal(end, params)

    handle = gt.step_in_backward(params, getattr(gt, name), **options)
    handle.optimizer.eval()
    for p in params:
        p.grad = None
    with pytest.raises(RuntimeError, match=re.escape("call train() before the next step")):
        sum(p.sum() for p in params).backward()
    handle.remove()


def test_eval_moves_all_or_nothing():
    params = parameters((3,), (4,))
    opt = gt.ScheduleFreeSGD(params)
    steps(opt, params, range(2))
    for change in ({"z": torch.ones(3, dtype=torch.float64)}, {"z": None}):
        kept = numbers(params)
        whole = dict(opt.state[params[1]])
        opt.state[params[1]].update(change)
        wanted = "params[1] (shape (4,)) and its state 'z' must be dense floating-point"
        with pytest.raises(ValueError, match=re.escape(wanted)):
            opt.eval()
        for before, now in zip(kept, numbers(params), strict=True):
            assert_same_bits(before, now)
        opt.state[params[1]].update(whole)
    opt.eval()
    assert not np.array_equal(kept[0], numbers(params)[0])


def test_autograd_sees_that_eval_has_moved_parameters():
    w = torch.nn.Parameter(torch.ones(3))
    opt = gt.ScheduleFreeSGD([w])
    w.grad = torch.ones(3)
    opt.step()
    loss = (w * w).sum()
    opt.eval()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_group_that_comes_later_is_in_training():
    params = parameters((3,), (4,))
    opt = gt.ScheduleFreeAdamW(params[:1])
    steps(opt, params, range(2))
    opt.eval()
    opt.add_param_group({"params": params[1:]})
    with pytest.raises(RuntimeError, match=re.escape("call train() before the next step")):
        opt.step()
    opt.train()
    steps(opt, params, range(2, 4))
    assert [int(opt.state[p]["step"]) for p in params] == [4, 2]


# One step for each parameter as soon as its gradient is there -------------------------------------


def network(name="Adam"):
    """One that a class can train, and what to feed it with."""
    torch.manual_seed(0)
    if name in BY_ROWS:
        embedding = torch.nn.Embedding(7, 3, sparse=True)
        return embedding.double(), torch.tensor([[1, 4, 1], [6, 0, 4]])
    bias = name != "Muon"
    layers = torch.nn.Linear(6, 9, bias), torch.nn.ReLU(), torch.nn.Linear(9, 2, bias)
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(5, 6)
    return torch.nn.Sequential(*layers).double(), x


@pytest.mark.parametrize("name", gt.CLASSES)
def test_steps_in_backward_have_the_bits_of_steps_after_it(name):
    (model, x), (other, _) = network(name), network(name)
    models = model, other
    after = getattr(gt, name)(models[0].parameters(), **OPTIONS[name])
    handle = gt.step_in_backward(models[1], getattr(gt, name), **OPTIONS[name])
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.8) for o in (after, handle.optimizer)]
    for t in range(6):
        if t == 4:
            handle.remove()
        for model in models:
            model(x).square().sum().backward()
        if t >= 4:
            assert all(p.grad is not None for p in models[1].parameters())
            handle.optimizer.step()
            handle.optimizer.zero_grad()
        assert all(p.grad is None for p in models[1].parameters())
        after.step()
        after.zero_grad()
        for schedule in schedules:
            schedule.step()
    assert_equal(list(models[1].parameters()), list(models[0].parameters()))
    assert len(handle.optimizer.state) == len(after.state)


def test_steps_in_backward_of_groups_and_frozen_parameters():
    model, _ = network()
    model[0].bias.requires_grad_(False)
    kept = model[0].bias.clone()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    before = numbers(model.parameters())
    handle = gt.step_in_backward(groups, gt.SGD, lr=0.1)
    model(torch.ones(1, 6, dtype=torch.float64)).sum().backward()
    moved = [
        not np.array_equal(a, b) for a, b in zip(before, numbers(model.parameters()), strict=True)
    ]
    assert moved == [False, False, True, True]
    assert torch.equal(model[0].bias, kept)
    handle.remove()


def test_an_error_in_backward_names_the_parameter():
    model = network()[0].to(torch.bfloat16)
    gt.step_in_backward(model, gt.LARS, lr=0.1)
    with pytest.raises(
        ValueError, match=re.escape("params[3] (shape (2,)) must be a dense float32 or float64")
    ):
        model(torch.ones(1, 6, dtype=torch.bfloat16)).sum().backward()


# Around it ----------------------------------------------------------------------------------------


def test_one_thread_at_a_time():
    """A closure, or a hook, that steps the same optimizer comes before the native step."""
    params = parameters((3,))
    opt = gt.SGD(params, lr=0.1)
    give_gradients(params, 0)
    opt.step(opt.step)
    expected = parameters((3,))
    give_gradients(expected, 0)
    twice = torch.optim.SGD(expected, lr=0.1)
    twice.step()
    twice.step()
    assert_equal(params, expected, rtol=1e-12)


def test_a_rule_of_another_kind_is_refused_by_the_native_step():
    with pytest.raises(KeyError):
        _core.TensorRule("none", [], False, [], dense=True, sparse=False)
    with pytest.raises(ValueError, match="adam: wrong number of states"):
        _core.TensorRule("adam", ["m"], False, [], dense=True, sparse=False)


def test_importing_gradstep_does_not_import_torch():
    assert python("import sys, gradstep; print('torch' in sys.modules)") == "False\n"


def test_without_torch_the_extra_is_named():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import gradstep.torch\nexcept ImportError as error:\n    print(error)"
    )
    assert python(code) == 'gradstep.torch needs PyTorch: pip install "gradstep[torch]"\n'


def test_an_old_torch_is_told_so():
    code = (
        "import torch; del torch.Tensor.__dlpack_c_exchange_api__\n"
        "try:\n    import gradstep.torch\nexcept ImportError as error:\n    print(error)"
    )
    assert "needs a PyTorch whose tensors have the exchange API of DLPack 1.3" in python(code)


def train_apart(rank, name, address, start, queue):
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer

    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    try:
        params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
        opt = ZeroRedundancyOptimizer(params, optimizer_class=getattr(gt, name), lr=0.1)
        steps(opt, params, range(4))
        queue.put((rank, numbers(params)))
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_a_zero_redundancy_optimizer_shares_the_states_out(tmp_path):
    """Two processes with half of the states each, and the bits of one process."""
    if not torch.distributed.is_available():
        pytest.skip("PyTorch without distributed")
    shapes = [(3, 4), (6,), (5,), (2, 2)]
    alone = parameters(*shapes)
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = ("Adam", str(tmp_path / "meet"), numbers(alone), queue)
    torch.multiprocessing.spawn(train_apart, arguments, nprocs=2, join=True)
    steps(gt.Adam(alone, lr=0.1), alone, range(4))
    for _ in range(2):
        _, found = queue.get(timeout=30)
        for w, expected in zip(found, numbers(alone), strict=True):
            assert_same_bits(w, expected)
