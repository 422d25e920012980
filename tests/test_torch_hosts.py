"""gradstep.torch in other hands: checkpoints that do not fit, distributed ones, DeepSpeed, DDP."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import gradstep as gs
from oracle import RULES

torch = pytest.importorskip("torch", reason="needs PyTorch")
import gradstep.torch as gt  # noqa: E402
from gradstep.torch import tensors  # noqa: E402
from test_torch import (  # noqa: E402
    BY_ROWS,
    OPTIONS,
    assert_equal,
    assert_same_everything,
    everything,
    fitting,
    give_gradients,
    parameters,
    steps,
    through_a_file,
)

# Checkpoints --------------------------------------------------------------------------------------


def changed(state, key, value, index=0):
    """A state dict with another value in one of its states."""
    state = copy.deepcopy(state)
    state["state"][index][key] = value
    return state


def group_changed(state, **options):
    state = copy.deepcopy(state)
    state["param_groups"][0] |= options
    return state


def of(cls, *shapes, **options):
    """The state dict of an optimizer that has made two steps."""
    params = parameters(*shapes)
    opt = cls(params, **options)
    steps(opt, params, range(2))
    return opt.state_dict()


def test_a_state_dict_that_does_not_fit_changes_nothing():
    shapes = (3, 2), (4,)
    adam, sgd = of(gt.Adam, *shapes), of(gt.SGD, *shapes, lr=0.5, momentum=0.9)
    lion = of(gt.Lion, *shapes)
    plain = copy.deepcopy(adam)
    del plain["state"][1]["exp_avg_sq"]
    renamed = group_changed(adam, params=[7, 8])
    cases = [
        (gt.Adam, sgd, "the state dict is not of Adam: its param_groups[0] has no 'betas', only"),
        (gt.SGD, adam, "the state dict is not of SGD: its param_groups[0] has no 'momentum', only"),
        (gt.Adam, lion, "not of Adam: its param_groups[0] has no 'eps'"),
        (gt.Adamax, adam, "the state of params[0] (shape (3, 2)) has no 'exp_inf', only ['step',"),
        (
            gt.Adam,
            group_changed(adam, amsgrad=True),
            "the state of params[0] (shape (3, 2)) has no 'max_exp_avg_sq'",
        ),
        (gt.Adam, plain, "the state of params[1] (shape (4,)) has no 'exp_avg_sq'"),
        (gt.Adam, of(gt.Adam, (2, 3), (4,)), "'exp_avg' of params[0] (shape (3, 2)) in the state"),
        (gt.Adam, of(gt.Adam, (3, 2)), "in each group as the optimizer, [2], got [1]"),
        (gt.Adam, changed(adam, "step", torch.tensor(0.5), 1), "at least 0, got tensor(0.5000)"),
        (gt.Adam, changed(adam, "step", -1), "must be one whole number, at least 0, got -1"),
        (gt.Adam, changed(adam, "step", float("nan")), "at least 0, got nan"),
        (gt.Adam, changed(adam, "step", float("inf")), "at least 0, got inf"),
        (gt.Adam, changed(adam, "step", torch.ones(2)), "at least 0, got tensor([1., 1.])"),
        (gt.Adam, changed(adam, "exp_avg", 3), "got 3"),
        (
            gt.Adam,
            changed(adam, "exp_avg", torch.ones(3, 2).to_sparse()),
            "(3, 2), torch.sparse_coo",
        ),
        (gt.Adam, changed(adam, "exp_avg", torch.ones(3, 2, dtype=torch.int8)), "got torch.int8"),
        (gt.Adam, changed(adam, "exp_avg", torch.ones(3, 2) * 1j), "got torch.complex64 of (3, 2)"),
        (gt.Adam, {}, "must have a dict 'state' and a list 'param_groups' of dicts"),
        (gt.Adam, adam | {"state": None}, "must have a dict 'state'"),
        (gt.Adam, adam | {"param_groups": [{}]}, "of dicts with 'params'"),
        (gt.Adam, adam | {"state": {0: 5}}, "the state of params[0] (shape (3, 2)) must be a dict"),
        (gt.Adam, group_changed(adam, lr=-1.0), "lr must be at least 0"),
        (gt.Adam, group_changed(adam, betas=(0.9, 2.0)), "beta2 must be in [0, 1), got 2.0"),
        (gt.NAdam, changed(of(gt.NAdam, *shapes), "mu_product", -1.0), "'mu_product' of params[0]"),
    ]
    for cls, state, message in cases:
        for stepped in (False, True):
            params = parameters(*shapes)
            opt = cls(params, lr=0.25)
            if stepped:
                steps(opt, params, range(1))
            before = everything(opt), copy.deepcopy(opt.param_groups)
            with pytest.raises(ValueError, match=re.escape(message)):
                opt.load_state_dict(state)
            assert_same_everything(before[0], everything(opt))
            assert str(before[1]) == str(opt.param_groups)
            steps(opt, params, range(1, 2))
    opt = gt.Adam(parameters(*shapes))
    opt.load_state_dict(renamed)  # states of nobody, as PyTorch has them
    assert list(opt.state) == [0, 1]


def test_counts_of_every_type_are_taken():
    for count in (
        3,
        3.0,
        *(torch.tensor(3, dtype=getattr(torch, name)) for name in ("int64", "int32", "uint8")),
        *(torch.tensor(3.0, dtype=dtype) for dtype in tensors.DTYPES.values()),
        torch.tensor([3]),
    ):
        params, twin = parameters((3,)), parameters((3,))
        state = of(torch.optim.Adam, (3,))
        state["state"][0]["step"] = torch.tensor(3.0)
        opt, wanted = gt.Adam(params), gt.Adam(twin)
        wanted.load_state_dict(state)
        opt.load_state_dict(changed(state, "step", count))
        for one, its in ((opt, params), (wanted, twin)):
            steps(one, its, range(2))
        assert_equal(params, twin)
        assert opt.state[params[0]]["step"] == 5
    # More than float32 can tell apart.
    opt.load_state_dict(changed(state, "step", 2**24 + 1))
    assert opt.state[params[0]]["step"] == 2**24 + 1


def test_names_tell_whose_a_state_is():
    """Of one shape, so that only names do."""
    start = parameters((3,), (3,), (3,))
    for names, params in (("abc", [0, 1, 2]), ("cab", [2, 0, 1])):
        run = copy.deepcopy(start)
        opt = gt.Adam([(name, run[i]) for name, i in zip(names, params, strict=True)], lr=0.1)
        steps(opt, run, range(2))
        saved = through_a_file(opt.state_dict())
        other = gt.Adam(list(zip("abc", run, strict=True)), lr=0.1)
        other.load_state_dict(saved)
        for param in run:
            assert_equal([other.state[param]["exp_avg"]], [opt.state[param]["exp_avg"]])
        assert other.param_groups[0]["param_names"] == ["a", "b", "c"]
    missing = gt.Adam(list(zip("abd", start, strict=True)))
    wanted = "param_groups[0] of the state dict must have the parameters ['a', 'b', 'd'], got ['c',"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        missing.load_state_dict(saved)
    assert not missing.state
    for names in (None, ["module.a", "module.b", "module.c"]):  # of nothing that is shared, order
        opt = gt.Adam(start if names is None else list(zip(names, start, strict=True)))
        opt.load_state_dict(saved)
        assert_equal([opt.state[start[0]]["exp_avg"]], [saved["state"][0]["exp_avg"]])


def test_a_load_copies():
    for state_dtype in (None, "int8", "bfloat16"):
        a, b = parameters((5000,), dtype=torch.float32), parameters((5000,), dtype=torch.float32)
        opt, other = (gt.Adam(its, state_dtype=state_dtype) for its in (a, b))
        steps(opt, a, range(1))
        other.load_state_dict(opt.state_dict())
        before = everything(opt)
        steps(other, b, range(1, 2))
        assert_same_everything(before, everything(opt))
    # Those that are not in use, too.
    params = parameters((3,))
    opt = gt.Adam(params, amsgrad=True)
    steps(opt, params, range(1))
    state = opt.state_dict()
    state["param_groups"][0]["amsgrad"] = False
    other = gt.Adam(params)
    other.load_state_dict(state)
    kept = other.state[params[0]]["max_exp_avg_sq"]
    assert kept.data_ptr() != opt.state[params[0]]["max_exp_avg_sq"].data_ptr()


def test_checkpoints_of_an_older_version():
    """Axes were a tuple of tuples, the option was PyTorch's dtype; a pickle has states as here."""
    params = parameters((70, 61), dtype=torch.float32)
    opt = gt.Adam(params, state_dtype="int8")
    steps(opt, params, range(1))
    saved = opt.state_dict()
    assert saved["state"][0]["axes"].tolist() == [[0, 70], [1, 61]]
    assert opt.state[params[0]]["axes"] == ((0, 70), (1, 61))
    for axes in (((0, 70), (1, 61)), [[0, 70], [1, 61]]):
        other = gt.Adam(copy.deepcopy(params))
        other.load_state_dict(changed(group_changed(saved, state_dtype=torch.int8), "axes", axes))
        assert_equal(
            [v for v in next(iter(other.state.values())).values() if torch.is_tensor(v)],
            [v for v in opt.state[params[0]].values() if torch.is_tensor(v)],
        )
        its = other.param_groups[0]["params"]
        steps(other, its, range(1, 2))


def test_adam_loads_from_adamw_and_becomes_it():
    """Even where the optimizer has made steps with what it was."""
    params, twin = parameters((3,)), parameters((3,))
    opt, wanted = gt.Adam(params, lr=0.1, weight_decay=0.5), gt.AdamW(twin, lr=0.1)
    steps(opt, params, range(1))
    state = of(torch.optim.AdamW, (3,), lr=0.1, weight_decay=0.5)
    for one, its in ((opt, params), (wanted, twin)):
        with torch.no_grad():
            its[0].fill_(1.0)
        one.load_state_dict(state)
        steps(one, its, range(1))
    assert_equal(params, twin)


# PyTorch's distributed checkpoints ----------------------------------------------------------------


def model(name, dtype):
    torch.manual_seed(0)
    if name in BY_ROWS:
        return torch.nn.Embedding(7, 3, sparse=True).to(dtype)
    bias = name != "Muon"
    layers = torch.nn.Linear(70, 61, bias), torch.nn.Linear(61, 3, bias)
    return torch.nn.Sequential(*layers).to(dtype)


#: Of the parameters and the states.
STORAGES = [
    (torch.float32, None),
    (torch.float32, "int8"),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.int8),
]


def takes_any_storage(name, options):
    return (
        name not in BY_ROWS
        and RULES[getattr(gs, name)(np.ones((1, 1)), **options).rule].any_storage
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("full", [False, True], ids=["local", "full"])
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
def test_distributed_checkpoints(full, flat):
    """Of every class, in every storage: the bits of the unbroken run."""
    from torch.distributed.checkpoint import state_dict as its

    if full and flat:
        pytest.skip("PyTorch loads none of its own classes so: KeyError('param_groups.0.params.0')")
    how = its.StateDictOptions(full_state_dict=full, flatten_optimizer_state_dict=flat)
    for name in gt.CLASSES:
        cls, options = getattr(gt, name), dict(OPTIONS[name])
        if name == "SGD":
            options["momentum"] = 0.9  # without, PyTorch finds no device in its own either
        for dtype, state_dtype in STORAGES if takes_any_storage(name, options) else STORAGES[:1]:
            kept = options | ({"state_dtype": state_dtype} if state_dtype else {})
            whole = model(name, dtype)
            params = list(whole.parameters())
            opt = cls(params, **kept)
            steps(opt, params, range(2))
            opt.zero_grad()
            saved = its.get_optimizer_state_dict(whole, opt, options=how)
            other = copy.deepcopy(whole)
            resumed = list(other.parameters())
            again = cls(resumed, **kept)
            if name in BY_ROWS:  # PyTorch begins states by a step with dense gradients
                steps(again, resumed, range(1))
                again.zero_grad()
            with torch.no_grad():
                for a, b in zip(resumed, params, strict=True):
                    a.copy_(b)
            its.set_optimizer_state_dict(other, again, saved, options=how)
            for one, its_params in ((opt, params), (again, resumed)):
                steps(one, its_params, range(2, 4))
            assert all(map(torch.equal, resumed, params)), (name, dtype, state_dtype)


@pytest.mark.filterwarnings("ignore")
def test_a_step_at_lr_0_moves_no_parameter():
    """By which PyTorch begins the states of a new optimizer. They may round."""
    for name in sorted(set(gt.CLASSES) - set(BY_ROWS)):
        params = parameters(*fitting(name, (3, 2), (4,)), dtype=torch.float32)
        opt = getattr(gt, name)(params, **OPTIONS[name])
        for group in opt.param_groups:
            group["lr"] = 0.0
        before = [p.detach().clone() for p in params]
        for param in params:
            param.grad = torch.zeros_like(param)
        opt.step()
        for a, b in zip(params, before, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=1e-6, atol=0)


def test_a_mean_that_is_in_use_stays_in_use():
    """Flattened, PyTorch keeps the options alone that the new optimizer has."""
    from torch.distributed.checkpoint import state_dict as its

    how = its.StateDictOptions(flatten_optimizer_state_dict=True)
    one, two = model("", torch.float32), model("", torch.float32)
    opt, other = (gt.ScheduleFreeSGD(list(m.parameters()), lr=0.1) for m in (one, two))
    steps(opt, list(one.parameters()), range(2))
    opt.zero_grad()
    opt.eval()
    opt.train()
    opt.eval()
    saved = its.get_optimizer_state_dict(one, opt, options=how)
    its.set_optimizer_state_dict(two, other, saved, options=how)
    assert other.param_groups[0]["train_mode"] is False


# Hosts that make an optimizer anew ----------------------------------------------------------------


def test_an_optimizer_is_made_anew_of_its_defaults():
    for name in gt.CLASSES:
        cls = getattr(gt, name)
        params = parameters(*fitting(name, (3, 2), (4,)))
        opt = cls(params, **OPTIONS[name], maximize=True, rounding_seed=3)
        loaded = copy.deepcopy(opt)
        loaded.load_state_dict(opt.state_dict())
        for one in (opt, loaded, pickle.loads(pickle.dumps(opt))):
            again = cls(params, **one.defaults)
            assert type(again) is cls
            assert again.param_groups[0] == opt.param_groups[0]
            give_gradients(params, 0, opt=again)
            again.step()


def test_own_options_do_not_get_lost_in_a_class_of_pytorch():
    """DeepSpeed makes a `torch.optim.Adagrad` of the defaults of whatever is an instance of it."""
    params = parameters((3,))
    ours = gt.Adagrad(params, lr=0.1, lr_decay=0.5)
    assert isinstance(ours, torch.optim.Adagrad)
    torch.optim.Adagrad(params, **ours.defaults)
    for options in ({"beta": 0.5}, {"state_dtype": "float32"}, {"rounding": "nearest"}):
        ours = gt.Adagrad(params, lr=0.1, **options)
        with pytest.raises(TypeError, match=next(iter(options))):
            torch.optim.Adagrad(params, **ours.defaults)
        ours.add_param_group({"params": parameters((2,))})
        assert ours.param_groups[1].items() >= options.items()
    with pytest.raises(TypeError, match="decoupled_weight_decay"):
        gt.AdamW(params, decoupled_weight_decay=False)


# DDP ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_ddp_averages_before_steps():
    if not torch.distributed.is_available():
        pytest.skip("PyTorch without distributed")
    refusal = pytest.raises(ValueError, match="step before DistributedDataParallel has averaged")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        alone, early, net = (torch.nn.Linear(3, 2) for _ in range(3))
        handle = gt.step_in_backward(early, gt.SGD, lr=0.1)
        ddp = torch.nn.parallel.DistributedDataParallel(net)
        for owned in (ddp, net, net.parameters(), [{"params": [net.bias]}]):
            with refusal:
                gt.step_in_backward(owned, gt.SGD, lr=0.1)
        ddp(torch.ones(1, 3)).sum().backward()
        assert net.bias.grad is not None
        # One that is wrapped later.
        wrapped = torch.nn.parallel.DistributedDataParallel(early)
        before = [p.detach().clone() for p in early.parameters()]
        with refusal:
            wrapped(torch.ones(1, 3)).sum().backward()
        assert_equal(early.parameters(), before)
        handle.remove()
        # And one that nobody owns.
        gt.step_in_backward(alone, gt.SGD, lr=0.1)
        before = alone.bias.detach().clone()
        alone(torch.ones(1, 3)).sum().backward()
        assert not torch.equal(alone.bias, before)
    finally:
        torch.distributed.destroy_process_group()
