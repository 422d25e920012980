"""The classes."""

from __future__ import annotations

import inspect

from .. import optimizers
from ..optimizers import averaging, orthogonal, sparse
from ..optimizers.base import CORE_RULES
from ..optimizers.options import Options
from .optimizer import Optimizer
from .settings import AS_IN_TORCH, CLASSES, DECOUPLED, HELD, STATE_NAMES, _in_torch
from .variants import _Adagrad, _Muon, _ScheduleFree


def _optimizer(name: str) -> type[Optimizer]:
    """The class for PyTorch of a class of `gradstep`, with the arguments of both."""
    cls, theirs = CLASSES[name], _in_torch(name)
    own = {
        p.name: p
        for p in inspect.signature(cls).parameters.values()
        if p.name not in Options.__annotations__.keys() - {"maximize", *HELD}
    }
    shared = dict(inspect.signature(theirs or cls).parameters)
    beside = [p for p in own if p not in shared] if theirs else []
    parameters = own
    if theirs:
        extra = {p: own[p].replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in beside}
        parameters = {**shared, **extra}
    like = f"`torch.optim.{theirs.__name__}`" if theirs else "those of `torch.optim`"
    options = tuple(p for p in own if p != "params")
    others = [p for p in shared if p not in {*own, "fused"}]
    names = STATE_NAMES.get(name, {})
    taken = {(one, "decoupled_weight_decay") for pair in DECOUPLED.items() for one in pair}
    bases = {averaging.ScheduleFree: _ScheduleFree, orthogonal.Muon: _Muon}
    bases |= {optimizers.Adagrad: _Adagrad, sparse.SparseAdagrad: _Adagrad}
    base = next((bases[one] for one in cls.__mro__ if one in bases), Optimizer)
    return type(
        name,
        (base,) if theirs is None else (base, theirs),
        {
            "__module__": __package__,
            "__doc__": f"`gradstep.{name}` for PyTorch, used like {like}. "
            f"See there, and `gradstep.{name}` for the formula.",
            "__signature__": inspect.Signature(list(parameters.values())),
            "_signature": inspect.Signature(list(parameters.values())),
            "_class": cls,
            "_options": options,
            "_watched": (*(p for p in options if p != "lr"), *others),
            "_progress": tuple(AS_IN_TORCH.get(cls, cls).progress),
            "_own": tuple(beside),
            "_fixed": {"decoupled_weight_decay": True} if cls in DECOUPLED.values() else {},
            "_never_negative": frozenset(
                names.get(state, state)
                for rule in cls.rules
                for state in CORE_RULES[rule].never_negative
            ),
            "_others": {
                name: p.default
                for name, p in shared.items()
                if name in others and (cls, name) not in taken
            },
        },
    )
