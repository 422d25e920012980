"""The arguments of a class as attributes: read, set and checked; other names raise, with a hint."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest

import gradstep as gs
from gradstep.optimizers.arguments import Argument, Fixed, Setting
from gradstep.optimizers.base import CLASSES
from gradstep.optimizers.options import Options
from oracle import assert_same_bits

NEEDED = {"rows": 4, "window": 3, "full_gradient": lambda w: 0 * w}
#: What makes an argument count at all.
MAKES_USED = {
    (gs.SGD, "momentum"): {"momentum": 0.9},
    (gs.SGD, "dampening"): {"momentum": 0.9},
    (gs.RMSprop, "momentum"): {"momentum": 0.9},
    (gs.Adagrad, "beta"): {"beta": 0.5},
    (gs.SAGA, "l1"): {"l1": 0.1},
}
#: A value that is allowed, where half of the default is not.
OTHER = {
    "lr": 0.25, "weight_decay": 0.125, "momentum": 0.5, "dampening": 0.25, "beta2_decay": -0.5,
    "beta": 0.25, "l1": 0.25, "l2": 0.25, "betas": None, "eps": None, "etas": (0.25, 2.0),
    "step_sizes": (1e-3, 2.0), "adjust_lr_fn": "match_rms_adamw", "order": "permutation", "seed": 7,
    "ns_steps": 3, "ns_coefficients": (3.0, -4.0, 2.0), "maximize": True, "t0": 1.0,
    "alpha_warmup": 4.0, "beta3_warmup": 4.0, "lr_decay": 0.5, "lambd": 0.25,
}  # fmt: skip


def make(cls, w=None, **options):
    asked = inspect.signature(cls).parameters
    needed = {name: value for name, value in NEEDED.items() if name in asked}
    if asked["lr"].default is inspect.Parameter.empty:
        needed["lr"] = 0.1
    return cls(np.ones((2, 3)) if w is None else w, **needed | options)


def settable():
    return list(all_settable())


def all_settable():
    for cls in CLASSES:
        for name in inspect.signature(cls).parameters:
            found = inspect.getattr_static(cls, name, None)
            is_option = name in Options.__annotations__ and name != "maximize"
            is_changeable = isinstance(found, (Argument, property)) and not isinstance(found, Fixed)
            if is_changeable and not is_option and name != "params" and name not in cls._pinned:
                has_decay = name != "weight_decay" or not cls.__name__.startswith("Sparse")
                if has_decay:
                    yield cls, name


def other(opt, name):
    """Another value of an argument."""
    before = getattr(opt, name)
    if OTHER.get(name) is not None:
        return OTHER[name]
    if isinstance(before, tuple):
        return tuple(0.5 if x is None else x / 2 for x in before)
    return not before if isinstance(before, bool) else before / 2


def step(opt):
    g = np.arange(1.0, 7).reshape(2, 3)
    if opt.step_needs.startswith("the indices"):
        opt.step((np.array([0, 1]), g))
    elif isinstance(opt, gs.SVRG):
        if opt.t == 0:
            opt.take_snapshot()
        opt.step(g, 0 * g)
    elif opt.step_needs:
        opt.step(g, opt.next_row())
    else:
        opt.step(g)


@pytest.mark.parametrize(("cls", "name"), settable())
def test_set_is_as_made_so(cls, name):
    """From the next step on, in the state dict and in the repr."""
    used = MAKES_USED.get((cls, name), {})
    opt = make(cls, **used)
    value = other(opt, name)
    assert getattr(opt, name) != value
    setattr(opt, name, value)
    expected = make(cls, **used | {name: value})
    assert getattr(opt, name) == getattr(expected, name) == value
    assert repr(opt) == repr(expected)
    for _ in range(3):
        step(opt)
        step(expected)
    assert_same_bits(opt.params, expected.params)
    assert opt.state_dict()["hyperparameters"] == expected.state_dict()["hyperparameters"]
    step(opt)  # the quick way, and then another value again
    setattr(opt, name, getattr(make(cls, **used), name))
    assert repr(opt).partition("#")[0] == repr(make(cls, **used)).partition("#")[0]
    step(opt)


@pytest.mark.parametrize(("cls", "name"), settable())
def test_wrong_values_change_nothing(cls, name):
    opt = make(cls)
    before = repr(opt)
    with pytest.raises((TypeError, ValueError), match=r"\w"):
        setattr(opt, name, "wrong")
    if not isinstance(inspect.getattr_static(cls, name), Setting):
        with pytest.raises((TypeError, ValueError), match=r"\w"):
            setattr(opt, name, (-1.0, -2.0, np.inf) if name in ("betas", "etas") else np.inf)
    assert repr(opt) == before


@pytest.mark.parametrize("cls", CLASSES)
def test_the_repr_makes_the_same_optimizer(cls):
    opt = make(cls, maximize=True)
    names = {**vars(gs), "params": np.ones((2, 3)), "full_gradient": NEEDED["full_gradient"]}
    again = eval(repr(opt), names)
    assert repr(again) == repr(opt)
    assert again.hyperparameters == opt.hyperparameters
    with_schedule = make(cls, lr=gs.schedules.cosine(0.1, 5))
    assert "lr=cosine(lr=0.1, total_steps=5, min_lr=0.0)" in repr(with_schedule)


@pytest.mark.parametrize("cls", CLASSES)
def test_other_names(cls):
    opt = make(cls)
    for name, hint in {
        "learning_rate": "use lr",
        "zero_grad": "use step(grads, zero_grad=True)",
        "param_groups": "make an optimizer for each group of parameters",
        "Lr": "its arguments are params, lr",
    }.items():
        message = re.escape(f"{cls.__name__} has no {name!r}: {hint}")
        with pytest.raises(AttributeError, match=message):
            setattr(opt, name, 1.0)
        with pytest.raises(AttributeError, match=message if name != "Lr" else "no attribute 'Lr'"):
            getattr(opt, name)
        assert not hasattr(opt, name)
    assert not hasattr(opt, "_no_such_thing")
    with pytest.raises(AttributeError, match="params"):
        opt.params = np.ones(3)


def test_what_cannot_change():
    for opt, name, value in (
        (gs.Adam(np.ones(3)), "amsgrad", True),
        (gs.SAG(np.ones(3), 0.1, 4), "rows", 5),
        (gs.Nesterov(np.ones(3), 0.1), "momentum", 0.5),
        (gs.ScheduleFreeAdamW(np.ones(3)), "betas", (0.5, 0.5)),
        (gs.SGD(np.ones(3)), "skip_nonfinite", True),
        (gs.SGD(np.ones(3)), "rounding", "nearest"),
    ):
        with pytest.raises(AttributeError, match=name):
            setattr(opt, name, value)
    for opt, name in (
        (gs.SGD(np.ones(3)), "momentum"),
        (gs.Adagrad(np.ones(3)), "beta"),
        (gs.SAGA(np.ones(3), 0.1, 4), "l1"),
    ):
        with pytest.raises(
            ValueError, match=f"{name} cannot change from .* make another optimizer"
        ):
            setattr(opt, name, 0.5)
        setattr(opt, name, getattr(opt, name)) if name != "beta" else None
    with pytest.raises(ValueError, match="nesterov needs momentum above 0"):
        gs.SGD(np.ones(3), momentum=0.9, nesterov=True).momentum = 0.0


def test_rounding_may_change():
    w, expected = (np.ones(64, np.float16) for _ in range(2))
    opt, other = gs.SGD(w, lr=1e-3), gs.SGD(expected, lr=1e-3, rounding="nearest")
    opt.rounding = "nearest"
    for one in opt, other:
        one.step(np.full(64, 0.3, np.float16))
    assert_same_bits(w, expected)
    opt.rounding_seed = 3
    assert opt.hyperparameters["rounding_seed"] == 3


def test_advice():
    with pytest.raises(TypeError, match=r"wider than.*: convert it, g\.astype\(np\.float32\)"):
        gs.Adam(np.ones(3, np.float32)).step(np.ones(3))
    with pytest.raises(TypeError, match="nested structures are not supported"):
        gs.Adam({"a": {"w": np.ones(3)}})
    for cls in gs.SAG, gs.SAGA:
        with pytest.raises(TypeError, match=rf"{cls.__name__}\.step\(\) needs the row"):
            cls(np.ones(3), 0.1, 4).step(np.ones(3))
    with pytest.raises(TypeError, match=r"got list: convert it, np\.asarray"):
        gs.batches([1.0, 2.0])
    with pytest.raises(FileNotFoundError, match="there is no such gradstep state file"):
        gs.Adam(np.ones(3)).load("none.npz")
