"""
The native core of gradstep. Use the gradstep package; this module is an implementation detail.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "Plan",
    "Rule",
    "check_params",
    "compiler",
    "cos_pi",
    "elements_per_thread",
    "exp",
    "get_isa",
    "get_num_threads",
    "isa_levels",
    "log",
    "openmp",
    "power",
    "rules",
    "set_isa",
    "set_num_threads",
]

class Rule:
    """
    What is known of an update rule: names, in the order of the C++ code.
    """
    def check_hyper(
        self, name: str, value: typing.SupportsFloat | typing.SupportsIndex, single_precision: bool
    ) -> None:
        """
        Raise unless the value lies in the range of this hyper-parameter, or of weight_decay.
        """
    @property
    def decoupled(self) -> bool:
        """
        Whether weight decay shrinks the parameter instead of joining the gradient.
        """
    @property
    def hyperparameters(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def states(self) -> tuple[str, ...]: ...

class Plan:
    """
    A rule bound to the memory of parameters and states.
    """
    def __init__(
        self,
        rule: str,
        params: collections.abc.Sequence[typing.Any],
        states: collections.abc.Sequence[collections.abc.Sequence[typing.Any]],
        nouns: collections.abc.Sequence[str],
        suffixes: collections.abc.Sequence[str],
    ) -> None: ...
    def step(
        self,
        grads: collections.abc.Sequence[typing.Any],
        hyper: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
        weight_decay: typing.SupportsFloat | typing.SupportsIndex,
        maximize: bool,
        row: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        Update everything once, or raise and change nothing.
        """
    @property
    def t(self) -> int:
        """
        Steps taken so far.
        """
    @t.setter
    def t(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None: ...

def check_params(
    params: collections.abc.Sequence[typing.Any], noun: str, suffixes: collections.abc.Sequence[str]
) -> None:
    """
    Raise unless each array can be updated in place and none overlaps another.
    """

def cos_pi(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> typing.Any: ...
def exp(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> typing.Any: ...
def get_isa() -> str:
    """
    The level in use.
    """

def get_num_threads() -> int: ...
def isa_levels() -> dict[str, bool]:
    """
    Each compiled level, and whether this processor supports it.
    """

def log(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> typing.Any: ...
def power(
    base: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
    exponent: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
) -> typing.Any: ...
def rules() -> list[Rule]:
    """
    Every rule, in order of increasing complexity.
    """

def set_isa(name: str) -> None:
    """
    Use another level from now on. For tests: the bits do not depend on it.
    """

def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None: ...

__version__: str
compiler: str
elements_per_thread: int
openmp: int
