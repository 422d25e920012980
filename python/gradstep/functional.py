"""The rules without a class around them: one function per native rule.

`gradstep.functional.adam(param, grad, m, v, t=1, lr=1e-3)` updates `param`, `m` and `v` in place.
The functions are made from the list of native rules, so their names are those of `gradstep info`.
Each takes the parameter, the gradient and the states (arrays of any library, as the classes do),
the step count `t` (from 1), the rule's hyper-parameters, `weight_decay`, `maximize`, `rounding` and
`rounding_seed`, with the defaults of the optimizer classes. Nothing is kept between calls.

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

from . import _core
from ._engine import checks as check
from .optimizers.base import CLASSES, CORE_RULES, Optimizer, check_rounding
from .optimizers.options import Array

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
        rounding: str = "stochastic",
        rounding_seed: int = 0,
        **hyper: float,
    ) -> None: ...


def _defaults(cls: type[Optimizer]) -> dict[str, Any]:
    """The defaults in a class's signature, with `betas` and pairs of `eps` taken apart."""
    parameters = inspect.signature(cls).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    for names, name in ("betas", "beta"), ("eps", "eps"):
        if isinstance(defaults.get(names), tuple):
            parts = enumerate(defaults.pop(names), 1)
            defaults |= {f"{name}{i}": 0.0 if part is None else part for i, part in parts}
    return defaults


def _update(rule: _core.Rule, cls: type[Optimizer]) -> Update:
    name, hypers, state_count = rule.name, rule.hyperparameters, len(rule.states)
    class_defaults = _defaults(cls)
    defaults = [class_defaults.get(hyper) for hyper in hypers]  # None: it must be given
    decay_default = class_defaults.get("weight_decay", 0.0)
    checks = [check.flag if isinstance(value, bool) else check.number for value in defaults]
    place = {hyper: i for i, hyper in enumerate(hypers)}
    nouns = ["param", "grad", *rule.states]
    read = ["grad", *rule.gradients]
    written = [noun for noun in nouns if noun not in read]

    def update(
        param: Array,
        grad: Array,
        *states: Array,
        t: int = 1,
        weight_decay: float = decay_default,
        maximize: bool = False,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
        **hyper: float,
    ) -> None:
        if len(states) != state_count:
            raise TypeError(f"{name}() takes the states {rule.states}, got {len(states)} arrays")
        values: list[Any] = defaults.copy()
        for key, value in hyper.items():
            if key not in place:
                raise TypeError(f"{name}() takes {hypers}, got {key!r}")
            values[place[key]] = checks[place[key]](key, value)
        if None in values:
            raise TypeError(f"{name}() needs {hypers[values.index(None)]!r}")
        param, *views = (
            _core.view(array, noun)
            for array, noun in zip((param, *states), ["param", *rule.states], strict=True)
        )
        plan = _core.Plan(name, [param], [[state] for state in views], nouns, [""])
        how = check_rounding(rounding, rounding_seed)
        plan.set_rounding(how["rounding"] == "stochastic", how["rounding_seed"])
        plan.t = check.integer("t", t, 1) - 1
        decay = check.number("weight_decay", weight_decay)
        plan.step((grad,), None, (plan.t, values, decay, check.flag("maximize", maximize), 0))

    update.__name__ = update.__qualname__ = name
    update.__doc__ = (
        f"One step of `gradstep.{cls.__name__}`, in place. Written: {', '.join(written)}. "
        f"Read: {', '.join(read)}. See the class for the formula and the arguments."
    )
    empty = inspect.Parameter.empty
    options = {hyper: empty if v is None else v for hyper, v in zip(hypers, defaults, strict=True)}
    options = {
        "t": 1,
        **options,
        "weight_decay": decay_default,
        "maximize": False,
        "rounding": "stochastic",
        "rounding_seed": 0,
    }
    update.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(noun, inspect.Parameter.POSITIONAL_ONLY) for noun in nouns]
        + [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=value)
            for option, value in options.items()
        ]
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
