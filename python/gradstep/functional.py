"""The rules without a class around them: one function per native rule.

`gradstep.functional.adam(param, grad, m, v, t=1, lr=1e-3)` updates `param`, `m` and `v` in place.
The functions are made from the list of native rules, so their names are those of `gradstep info`.
Each takes the parameter, the gradient, the states, the step count `t` (from 1), the rule's
hyper-parameters, `weight_decay` and `maximize`, with the defaults of the optimizer classes. Nothing
is kept between calls.

Example:
    >>> import numpy as np
    >>> from gradstep import functional
    >>> w, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> functional.adam(w, np.array([0.1, 10.0]), m, v, t=1, lr=0.1)
    >>> w.round(6)
    array([0.9, 0.9])
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from . import _checks as check
from . import _core
from .optimizers import CLASSES, CORE_RULES, Array, Optimizer

__all__ = list(CORE_RULES)


class Update(Protocol):
    """The signature of every function here."""

    __name__: str

    def __call__(
        self,
        param: Array,
        grad: Array,
        *states: Array,
        t: int = 1,
        weight_decay: float = 0.0,
        maximize: bool = False,
        **hyper: float,
    ) -> None: ...


def _defaults(cls: type[Optimizer]) -> dict[str, Any]:
    """The defaults in a class's signature, with `betas` taken apart."""
    parameters = inspect.signature(cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    betas = defaults.pop("betas", ())
    return {**defaults, **{f"beta{i}": beta for i, beta in enumerate(betas, 1)}}


def _update(rule: _core.Rule, cls: type[Optimizer]) -> Update:
    name = rule.name
    class_defaults = _defaults(cls)
    hyper_defaults = {
        key: class_defaults[key]
        for key in rule.hyperparameters
        if class_defaults.get(key) is not None
    }
    decay_default = class_defaults["weight_decay"]
    checks = [
        (key, check.flag if isinstance(class_defaults.get(key), bool) else check.number)
        for key in rule.hyperparameters
    ]
    nouns = ["param", "grad", *rule.states]

    def update(
        param: Array,
        grad: Array,
        *states: Array,
        t: int = 1,
        weight_decay: float = decay_default,
        maximize: bool = False,
        **hyper: float,
    ) -> None:
        if len(states) != len(rule.states):
            raise TypeError(f"{name}() takes the states {rule.states}, got {len(states)} arrays")
        given = {**hyper_defaults, **hyper}
        if given.keys() != set(rule.hyperparameters):
            raise TypeError(f"{name}() takes {rule.hyperparameters}, got {tuple(given)}")
        plan = _core.Plan(name, [param], [[state] for state in states], nouns, [""])
        plan.t = check.integer("t", t, 1) - 1
        plan.step(
            (grad,),
            [float(checked(key, given[key])) for key, checked in checks],
            check.number("weight_decay", weight_decay),
            check.flag("maximize", maximize),
        )

    update.__name__ = update.__qualname__ = name
    update.__doc__ = (
        f"One step of `gradstep.{cls.__name__}`, in place: {', '.join(['param', *rule.states])} "
        "are written, grad is read. See the class for the formula and the arguments."
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = {
        "t": 1,
        **{key: hyper_defaults.get(key, inspect.Parameter.empty) for key, _ in checks},
    }
    options |= {"weight_decay": decay_default, "maximize": False}
    update.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(noun, inspect.Parameter.POSITIONAL_ONLY) for noun in nouns]
        + [inspect.Parameter(key, keyword, default=value) for key, value in options.items()]
    )
    return update


def __getattr__(name: str) -> Update:
    if name not in CORE_RULES:
        raise AttributeError(f"gradstep.functional has no rule {name!r}; it has {__all__}")
    cls = next(cls for cls in CLASSES if name in cls.rules)
    function = globals()[name] = _update(CORE_RULES[name], cls)
    return function


def __dir__() -> list[str]:
    return __all__
