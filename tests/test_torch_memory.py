"""gradstep.torch: the memory that a step works on, its order there, and options between steps."""

from __future__ import annotations

import gc
import re
import weakref

import numpy as np
import pytest

from oracle import python

torch = pytest.importorskip("torch", reason="needs PyTorch")
import gradstep.torch as gt  # noqa: E402
from gradstep.torch import optimizer  # noqa: E402
from test_torch import (  # noqa: E402
    BY_ROWS,
    OPTIONS,
    assert_equal,
    assert_same_everything,
    everything,
    fitting,
    give_gradients,
    parameters,
    through_a_file,
)

#: PyTorch's own steps along rows warn once of what they do not check.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")


# Tensors without memory of their own --------------------------------------------------------------


class Pair(torch.Tensor):
    """A wrapper subclass: two tensors that are shown as one."""

    @staticmethod
    def __new__(cls, first, second):
        return torch.Tensor._make_wrapper_subclass(cls, first.shape, dtype=first.dtype)

    def __init__(self, first, second):
        self.pair = first, second

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        first, second = (
            func(*(arg.pair[i] if isinstance(arg, cls) else arg for arg in args), **(kwargs or {}))
            for i in range(2)
        )
        return cls(first, second) if isinstance(first, torch.Tensor) else first


def fake(x):
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(x)


def freed(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def part_of_freed(x):
    """Its address is not null, but an offset from null."""
    room = torch.zeros(8 + x.numel(), dtype=x.dtype)
    part = room[8:].view(x.shape)
    room.untyped_storage().resize_(0)
    return part


WITHOUT_MEMORY = {
    fake: "FakeTensor",
    lambda x: Pair(x, x.clone()): "Pair",
    freed: "Tensor",
    part_of_freed: "Tensor",
}


class Ones(torch.autograd.Function):
    """Of a parameter whose numbers are not looked at: its gradient."""

    @staticmethod
    def forward(ctx, param):
        ctx.shape = param.shape
        return torch.tensor(0.0)

    @staticmethod
    def backward(ctx, _):
        return torch.ones(ctx.shape)


def refusal(name, cls):
    return "^" + re.escape(f"{name} is a {cls} without memory of its own: steps update")


@pytest.mark.parametrize("name", gt.CLASSES)
def test_tensors_without_memory_are_refused_by_name_and_class(name):
    """As parameter, gradient or state, before the parameter in front of it has moved."""
    shapes = fitting(name, (4, 1), (3, 2))
    second = f"params[1] (shape {tuple(shapes[1])})"
    for empty, cls in WITHOUT_MEMORY.items():
        params = parameters(*shapes)
        opt = getattr(gt, name)(params, **OPTIONS[name])
        give_gradients(params, 0, opt=opt)
        opt.step()
        before = everything(opt)
        grad = params[1].grad
        if name in BY_ROWS:
            parts = {"indices": grad._indices(), "values": grad._values()}
            for part in ("indices", "values") if empty is freed else ():
                emptied = {**parts, part: freed(parts[part])}
                params[1].grad = torch.sparse_coo_tensor(
                    *emptied.values(), grad.shape, check_invariants=False
                )
                wanted = refusal(f"the {part} of the gradient of {second}", cls)
                with pytest.raises(ValueError, match=wanted):
                    opt.step()
        else:
            params[1].grad = empty(grad)
            with pytest.raises(ValueError, match=refusal(f"the gradient of {second}", cls)):
                opt.step()
        params[1].grad = grad
        for state, value in dict(opt.state.get(params[1], {})).items():
            if not isinstance(value, torch.Tensor) or value.numel() == 0:
                continue
            opt.state[params[1]][state] = empty(value)
            with pytest.raises(ValueError, match=refusal(f"state '{state}' of {second}", cls)):
                opt.step()
            opt.state[params[1]][state] = value
        assert_same_everything(before, everything(opt))
        hollow = [params[0], empty(params[1].detach())]
        opt = getattr(gt, name)(hollow, **OPTIONS[name])
        give_gradients(params[:1], 0, opt=opt)
        hollow[1].grad = empty(grad) if empty is not freed else None
        if hollow[1].grad is None:
            hollow[1].grad = grad
        with pytest.raises(ValueError, match=refusal(second, cls)):
            opt.step()
        assert not opt.state
        assert_equal(params[:1], before[0][:1])


def test_steps_in_backward_of_tensors_without_memory():
    param = torch.nn.Parameter(torch.ones(4))
    param.untyped_storage().resize_(0)
    handle = gt.step_in_backward([param], gt.Adam)
    with pytest.raises(ValueError, match=refusal("params[0] (shape (4,))", "Parameter")):
        Ones.apply(param).backward()
    handle.remove()


DTENSOR = """
import torch, gradstep.torch as gt, torch.distributed as dist
from torch.distributed.tensor import DeviceMesh, Replicate, distribute_tensor
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = DeviceMesh("cpu", [0])
param = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()]))
param.sum().backward()
try:
    gt.Adam([param]).step()
except ValueError as error:
    print(error)
dist.destroy_process_group()
"""


def test_a_dtensor_is_refused_by_name_and_class():
    assert python(DTENSOR).startswith("params[0] (shape (4,)) is a DTensor without memory")


def test_tensors_without_elements_need_no_memory():
    params = parameters((0,), (0, 3), (2,))
    opt = gt.Adam(params)
    give_gradients(params, 0)
    opt.step()


# What a step holds --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", gt.CLASSES)
def test_cycles_through_an_optimizer_are_collected(name):
    """One parameter, and many, whose states are found in another way."""
    for count in (1, 9):
        params = parameters(*fitting(name, *[(2, 2)] * count))
        module = torch.nn.Module()
        module.params = torch.nn.ParameterList(params)
        params[0].owner = module
        module.opt = opt = getattr(gt, name)(params, **OPTIONS[name])
        for t in range(2):
            give_gradients(params, t, opt=opt)
            opt.step()
        if hasattr(opt, "eval"):
            opt.eval()
            opt.train()
        params[-1].data = torch.ones(3, 3, dtype=torch.float64)
        with pytest.raises(ValueError, match="the gradient of params"):
            opt.step()
        state = next(
            v for v in [*opt.state.get(params[0], {}).values(), params[0]] if torch.is_tensor(v)
        )
        gone = [weakref.ref(x) for x in (module, opt, state, *params)]
        del module, opt, params, state
        gc.collect()
        assert [ref() for ref in gone] == [None] * len(gone)


def test_steps_in_backward_hold_nothing_when_they_have_been_removed():
    module = torch.nn.Linear(2, 2)
    module.handle = gt.step_in_backward(module, gt.Adam)
    module(torch.ones(1, 2)).sum().backward()
    module.handle.remove()
    gone = [weakref.ref(x) for x in (module, module.handle.optimizer, module.weight)]
    del module
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


EXCHANGE = """
import threading, torch, gradstep.torch as gt
params = [torch.nn.Parameter(torch.zeros(1_000_000)) for _ in range(2)]
for p in params:
    p.grad = torch.ones_like(p)
opt = gt.Adam(params)
opt.step()
done = threading.Event()
def exchange():
    while not done.is_set():
        for p in params:
            for name in ("exp_avg", "exp_avg_sq", "step"):
                opt.state[p][name] = opt.state[p][name].clone()
thread = threading.Thread(target=exchange)
thread.start()
for _ in range(20):
    opt.step()
done.set()
thread.join()
print("done", bool(torch.isfinite(params[0]).all()))
"""


def test_states_are_held_while_a_step_works_on_them():
    """Another thread exchanges them meanwhile: memory that is given back may not be written to."""
    assert python(EXCHANGE) == "done True\n"


# Memory in another order --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_states_follow_their_parameter_into_another_memory_format(dtype):
    """After a step, or a load; what comes out are the numbers of a run whose order has stayed."""
    wide = [name for name in gt.CLASSES if name not in (*BY_ROWS, "Adafactor", "Muon")]
    by_norms = ("LARS", "LAMB")  # the sum of a norm has the order of memory
    for name in [n for n in wide if dtype != torch.bfloat16 or n not in by_norms]:
        options = {**OPTIONS[name]}
        if dtype == torch.bfloat16:
            options["rounding"] = "nearest"
        runs = {}
        for way in ("stays", "after a step", "after a load"):
            params = parameters((3, 4, 5, 2), (2, 3), dtype=dtype)
            opt = getattr(gt, name)(params, **options)
            for t in range(4):
                if t == 2 and way == "after a load":
                    saved = through_a_file(opt.state_dict())
                    opt = getattr(gt, name)(params, **options)
                    opt.load_state_dict(saved)
                if t == 2 and way != "stays":
                    params[0].data = params[0].data.to(memory_format=torch.channels_last)
                give_gradients(params, t)
                opt.step()
                state = opt.state.get(params[0], {})
                if t == 2 and way != "stays":
                    held = [v for v in state.values() if torch.is_tensor(v)]
                    places = [v.data_ptr() for v in held]
            if way != "stays":
                beside = [v for v in held if v.shape == params[0].shape]
                assert {v.stride() for v in beside} <= {params[0].stride()}
                now = [v for v in state.values() if torch.is_tensor(v)]
                assert places == [v.data_ptr() for v in now]
            if hasattr(opt, "eval"):
                opt.eval()
            runs[way] = everything(opt)
        tolerance = 1e-6 if name in by_norms else 0
        for way in ("after a step", "after a load"):
            torch.testing.assert_close(runs[way], runs["stays"], rtol=tolerance, atol=tolerance)


def test_states_that_follow_are_kept_when_everything_fits():
    params = parameters((3, 4, 5, 2), (2,))
    opt = gt.Adam(params)
    give_gradients(params, 0)
    opt.step()
    params[0].data = params[0].data.to(memory_format=torch.channels_last)
    held = dict(opt.state[params[0]])
    params[1].data = torch.ones(3)
    with pytest.raises(ValueError, match="the gradient of params"):
        opt.step()
    assert all(opt.state[params[0]][name] is value for name, value in held.items())
    params[1].data = torch.ones(2, dtype=torch.float64)
    # A state whose memory has gaps is a part of something else, which a copy would part it from.
    params[1].grad = torch.ones(2, dtype=torch.float64)
    opt.state[params[1]]["exp_avg"] = torch.ones(4, dtype=torch.float64)[::2]
    with pytest.raises(ValueError, match=r"'exp_avg' of params.1. .* must be laid out as"):
        opt.step()


# Options ------------------------------------------------------------------------------------------


def test_a_number_that_changes_at_each_step_makes_no_optimizer_anew(monkeypatch):
    """The bits are those of an optimizer made with it; what else may depend on it is made anew."""
    moved = {
        "betas": [(0.8, 0.9), (0.85, 0.92), [0.7, 0.95]],
        "eps": [1e-7, 1e-6, 1e-5],
        "weight_decay": [0.1, 0.2, np.float64(0.3)],
        "momentum": [0.5, 0.6, 0.7],
        "alpha": [0.9, 0.8, 0.7],
    }
    for name in ("Adam", "AdamW", "NAdam", "SGD", "RMSprop", "Lion", "LAMB", "ASGD"):
        ours, theirs = parameters((3, 2)), parameters((3, 2))
        known = [option for option in moved if option in getattr(gt, name)._options]
        known = [option for option in known if (name, option) != ("LAMB", "eps")]
        first = {option: moved[option][0] for option in known}
        opt, twin = (getattr(gt, name)(p, **OPTIONS[name] | first) for p in (ours, theirs))
        for t in range(3):
            if t == 1:
                monkeypatch.setattr(optimizer, "_Settings", None)
            for option in known:
                opt.param_groups[0][option] = twin.param_groups[0][option] = moved[option][t]
            give_gradients(ours, t)
            opt.step()
        monkeypatch.undo()
        for t in range(3):
            for option in known:
                twin.param_groups[0][option] = moved[option][t]
            twin._known_settings.clear()
            give_gradients(theirs, t)
            twin.step()
        assert_equal(ours, theirs)
        before = everything(opt)
        for option in known:
            kept = opt.param_groups[0][option]
            for bad in (-1.0, "0.5", (0.5, float("nan")), None):
                opt.param_groups[0][option] = bad
                with pytest.raises((TypeError, ValueError), match=option.replace("betas", "beta")):
                    opt.step()
            opt.param_groups[0][option] = kept
        assert_same_everything(before, everything(opt))
        opt.step()
    # 0 is another rule of SGD.
    (param,) = parameters((2,))
    opt = gt.SGD([param], momentum=0.9)
    param.grad = torch.ones(2, dtype=torch.float64)
    opt.param_groups[0]["momentum"] = 0
    opt.step()
    assert not opt.state


def test_a_text_as_a_number_is_named():
    for name in gt.CLASSES:
        cls = getattr(gt, name)
        params = parameters(*fitting(name, (2, 2)))
        for option, parameter in cls._signature.parameters.items():
            default = parameter.default
            is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
            if option == "lr" or (is_number and option in cls._options):
                wanted = f"^{option} must be a (whole )?number, got '1e-5'"
                for group in ({"params": params}, {"params": params, option: "1e-5"}):
                    given = (
                        {**OPTIONS[name]} if option in group else {**OPTIONS[name], option: "1e-5"}
                    )
                    with pytest.raises(TypeError, match=wanted):
                        cls([group], **given)
            elif isinstance(default, tuple):
                with pytest.raises(TypeError, match=rf"^{option} must be (a pair|three)"):
                    cls(params, **OPTIONS[name], **{option: default[:1]})
                bad = ("x", *default[1:])
                with pytest.raises(TypeError, match=rf"^{option}\[0\] must be a number, got 'x'"):
                    cls(params, **OPTIONS[name], **{option: bad})


def test_pairs_as_any_sequence_or_array():
    kinds = [list, tuple, np.array, torch.tensor, lambda x: [torch.tensor(b) for b in x]]
    for kind in kinds:
        ours, theirs = parameters((3,)), parameters((3,))
        betas = kind((0.5, 0.75))
        for opt, params in (
            (gt.Adam(ours, betas=betas), ours),
            (gt.Adam([{"params": theirs, "betas": betas}]), theirs),
        ):
            for t in range(2):
                give_gradients(params, t)
                opt.step()
            through_a_file(opt.state_dict())
        plain = parameters((3,))
        opt = gt.Adam(plain, betas=(0.5, 0.75))
        for t in range(2):
            give_gradients(plain, t)
            opt.step()
        assert_equal(ours, plain)
        assert_equal(theirs, plain)


def test_a_parameter_that_is_there_twice_is_named_by_both_places():
    (a, b) = parameters((3,), (2,))
    give_gradients([a, b], 0)
    opt = gt.SGD([a])
    opt.param_groups[0]["params"] = [a, b, a]
    wanted = "params[2] (shape (3,)) is the same array as params[0] (shape (3,))"
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        opt.step()
    opt = gt.SGD([{"params": [b]}, {"params": [a]}])
    opt.param_groups[0]["params"].append(a)
    wanted = (
        "param_groups[1] params[0] (shape (3,)) is the same array as "
        "param_groups[0] params[1] (shape (3,))"
    )
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        opt.step()


def test_the_groups_of_the_caller_stay_as_they_are():
    params = parameters((3,), (2,))
    first, later = {"params": iter(params[:1]), "lr": 0.5}, {"params": params[1]}
    opt = gt.Adam([first])
    opt.add_param_group(later)
    assert list(first) == ["params", "lr"]
    assert list(later) == ["params"]
    assert later["params"] is params[1]
    assert [group["params"] for group in opt.param_groups] == [params[:1], params[1:]]


# States of Adagrad --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adagrad", "SparseAdagrad"])
def test_parameters_of_adagrad_may_be_exchanged(name):
    """Its first step makes states, as with all others; PyTorch's checkpoint may bring them."""
    params, others = parameters((4, 1)), parameters((3, 1))
    options = {"lr": 0.1, "initial_accumulator_value": 0.5}
    opt = getattr(gt, name)(params, **options)
    assert opt.state_dict()["state"] == {}
    opt.param_groups[0]["params"] = others
    assert opt.state_dict()["state"] == {}
    give_gradients(others, 0, opt=opt)
    opt.step()
    theirs = parameters((3, 1))
    at_first = torch.optim.Adagrad(theirs, **options)
    ours = parameters((3, 1))
    begun = getattr(gt, name)(ours, **options)
    begun.load_state_dict(through_a_file(at_first.state_dict()))
    assert begun.state[ours[0]]["sum"].tolist() == [[0.5]] * 3
    at_first.load_state_dict(through_a_file(getattr(gt, name)(ours, **options).state_dict()))
    for params, one in ((ours, begun), (theirs, at_first)):
        give_gradients(params, 0, opt=opt)
        one.step()
    assert_equal(ours, others)
    assert_equal(theirs, others, rtol=1e-12)
    opt = getattr(gt, name)(parameters((4, 1), (3, 1)), **options)
    opt.share_memory()
    assert all(state["sum"].is_shared() for state in opt.state.values())
    assert len(opt.state) == 2


def test_freed_states_are_neither_loaded_nor_moved_along():
    param = torch.nn.Parameter(torch.ones(6000))
    opt = gt.ScheduleFreeSGD([param], lr=0.1)
    param.grad = torch.ones(6000)
    opt.step()
    saved = opt.state_dict()
    freed = saved["state"][0]["z"] = saved["state"][0]["z"].clone()
    freed.untyped_storage().resize_(0)
    before = param.detach().clone()
    with pytest.raises(ValueError, match=r"the state 'z' of params.0. .* must be a dense tensor"):
        opt.load_state_dict(saved)
    opt.state[param]["z"] = freed
    with pytest.raises(ValueError, match=r"its state 'z' must be dense .* with memory of the CPU"):
        opt.eval()
    assert (param == before).all()
