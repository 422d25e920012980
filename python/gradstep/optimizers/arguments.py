"""Hyper-parameters as attributes: `opt.eps` and `opt.eps = 1e-6`, checked as in the constructor."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

from .._engine import checks as check
from .options import Options

if TYPE_CHECKING:
    from typing_extensions import Self

    from .base import Optimizer

Value = TypeVar("Value")


class Argument(Generic[Value]):
    """An argument of a class that its optimizers show."""

    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, opt: None, owner: type) -> Self: ...
    @overload
    def __get__(self, opt: Optimizer, owner: type) -> Value: ...

    def __get__(self, opt: Optimizer | None, owner: type) -> Any:
        return self if opt is None else self.of(opt)

    def __set__(self, opt: Optimizer, value: Value) -> None:
        self.change(opt, value)

    def of(self, opt: Optimizer) -> Value:
        raise NotImplementedError

    def change(self, opt: Optimizer, value: Value) -> None:
        raise NotImplementedError


class Number(Argument[float]):
    """A number of the rule. It may be set between steps."""

    def of(self, opt: Optimizer) -> float:
        return opt._hyper.get(self.name)  # type: ignore[return-value]

    def change(self, opt: Optimizer, value: float) -> None:
        opt._change_hyper(self.name, {self.name: value})


class Flag(Argument[bool]):
    """A number of the rule that is 0 or 1."""

    def of(self, opt: Optimizer) -> bool:
        return bool(opt._hyper[self.name])

    def change(self, opt: Optimizer, value: bool) -> None:
        opt._change_hyper(self.name, {self.name: float(check.flag(self.name, value))})


class Numbers(Argument[tuple[float, ...]]):
    """Several numbers of the rule, as a tuple."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def of(self, opt: Optimizer) -> tuple[float, ...]:
        return tuple(opt._hyper[name] for name in self.names)

    def change(self, opt: Optimizer, value: tuple[float, ...]) -> None:
        numbers = check.several(self.name, value, len(self.names))
        checked = [check.number(f"{self.name}[{i}]", x) for i, x in enumerate(numbers)]
        opt._change_hyper(self.name, dict(zip(self.names, checked, strict=True)))


class Setting(Argument[Value]):
    """What is no number of the rule but may be set between steps too."""

    def of(self, opt: Optimizer) -> Value:
        return opt._settings.get(self.name)  # type: ignore[return-value]

    def change(self, opt: Optimizer, value: Value) -> None:
        opt._change_setting(self.name, value)


class Fixed(Argument[Value]):
    """What an optimizer keeps from its construction: the rule or its states depend on it."""

    def of(self, opt: Optimizer) -> Value:
        return opt._fixed[self.name]  # type: ignore[no-any-return]

    def change(self, opt: Optimizer, value: Value) -> None:
        raise AttributeError(
            f"{self.name} of {type(opt).__name__} cannot change, because the states or the rule "
            "depend on it: make another optimizer"
        )


class Hint:
    """A name of another library: reading and setting it say what to use instead."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, opt: Optimizer | None, owner: type[Optimizer]) -> NoReturn:
        raise AttributeError(hint_for(owner, self.name))

    def __set__(self, opt: Optimizer, value: object) -> NoReturn:
        raise AttributeError(hint_for(type(opt), self.name))


#: Names of other libraries, and what to use instead.
HINTS = {
    "learning_rate": "use lr",
    "zero_grad": "use step(grads, zero_grad=True)",
    "param_groups": "make an optimizer for each group of parameters",
    "defaults": "use hyperparameters",
    "parameters": "use params",
    "epsilon": "use eps",
    "beta1": "use betas",
    "beta2": "use betas",
    "clip_norm": "use step(grads, clip_norm=...)",
    "clip_value": "use step(grads, clip_value=...)",
    "grad_scale": "use step(grads, grad_scale=...)",
}


def hint_for(cls: type[Optimizer], name: str) -> str:
    """The message about an attribute that optimizers of a class do not have."""
    if name.startswith("_"):
        return f"{cls.__name__!r} object has no attribute {name!r}"
    known = [n for n in inspect.signature(cls).parameters if is_argument(cls, n)]
    hint = HINTS.get(name, f"its arguments are {', '.join(known)}")
    return f"{cls.__name__} has no {name!r}: {hint}"


def is_argument(cls: type[Optimizer], name: str) -> bool:
    """Whether optimizers of a class show an argument."""
    return isinstance(inspect.getattr_static(cls, name, None), (Argument, property))


def shown(opt: Optimizer) -> str:
    """The call that makes an optimizer like this one, where `params` and other arrays are names."""
    texts = ["params"]
    for name, parameter in inspect.signature(type(opt)).parameters.items():
        if name == "params":
            continue
        if is_argument(type(opt), name):
            value = getattr(opt, name)
            if name not in Options.__annotations__ or value not in (None, parameter.default):
                is_function = callable(value) and hasattr(value, "__name__")
                texts.append(f"{name}={value.__name__ if is_function else repr(value)}")
        elif opt._fixed.get(name):  # an array or a function
            texts.append(f"{name}={name}")
    return f"{type(opt).__name__}({', '.join(texts)})"


#: Why a hyper-parameter is pinned.
AT_A_POINT = "it says at which point the parameters are, and they would have to move with it"
