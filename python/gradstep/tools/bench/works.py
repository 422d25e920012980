"""What is timed: rules, sizes, storages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np

from ... import reference
from ..._engine import checks as check
from ..._engine.formats import LEAST_IN_8_BITS
from ...optimizers.base import CLASSES, Optimizer
from ...optimizers.textbook import SGD, Adagrad, Adam, AdamW, RMSprop
from ..datasets import UsageError
from .entrants import CLASS_PEERS, PEERS, PLAIN, STORAGE_PEERS

CLIP_NORM = 1.0
#: The steps that are checked, and how far a peer may end from NumPy's parameters, as a part of the
#: Euclidean distance that those have moved. gradstep must have NumPy's bits.
CHECKED_STEPS, TOLERANCE = 3, 1e-3
NO_RULE = "has no such rule"
#: Of a matrix of works, if none are given.
SIZES = (1_000, 100_000, 1_000_000, 10_000_000)
#: Of the works of `classes`, and the same in short.
CLASS_SIZE, CLASS_ROUNDS = 10_000_000, 5
QUICK_CLASS_SIZE, QUICK_CLASS_ROUNDS = 100_000, 3
#: Of the works of `storages`, and the same in short.
STORAGE_SIZE, QUICK_STORAGE_SIZE = 64_000_000, 100_000


@dataclass(frozen=True)
class Rule:
    """A rule that packages share: our class, the options that they all get, and its title."""

    cls: type[Optimizer]
    title: str
    options: Mapping[str, Any]


def _rule(cls: type[Optimizer], title: str, **options: Any) -> Rule:
    return Rule(cls, title, MappingProxyType({"lr": 1e-3, **options}))


_RMSPROP: dict[str, Any] = {"alpha": 0.99, "eps": 1e-8}
_ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}
RULES: Mapping[str, Rule] = {
    "sgd": _rule(SGD, "SGD"),
    "momentum": _rule(SGD, "SGD momentum", momentum=0.9),
    "nesterov": _rule(SGD, "SGD nesterov", momentum=0.9, nesterov=True),
    "adagrad": _rule(Adagrad, "Adagrad", eps=1e-10),
    "rmsprop": _rule(RMSprop, "RMSprop", **_RMSPROP),
    "rmsprop_centered": _rule(RMSprop, "RMSprop centered", **_RMSPROP, centered=True),
    "rmsprop_centered_momentum": _rule(
        RMSprop, "RMSprop centered momentum", **_RMSPROP, momentum=0.9, centered=True
    ),
    "adam": _rule(Adam, "Adam", **_ADAM),
    "amsgrad": _rule(Adam, "Adam amsgrad", **_ADAM, amsgrad=True),
    "adamw": _rule(AdamW, "AdamW", **_ADAM, weight_decay=0.01),
}
#: What classes ask for and have no default of.
NEEDED: Mapping[str, Any] = {"lr": 1e-3, "window": 10}
#: The largest matrix that classes of matrices are timed on, rows and columns, where a vector would
#: not be what they are for. Muon multiplies its matrix with itself, which takes n^3 operations.
MATRICES: Mapping[str, tuple[int, int]] = {"Adafactor": (10_000, 1_000), "Muon": (1_000, 1_000)}


def _by_class() -> tuple[dict[str, Rule], dict[str, str]]:
    """`RULES`, and the other classes with their defaults; and who cannot be timed, and why."""
    rules: dict[str, Rule] = {}
    left_out: dict[str, str] = {}
    for cls in CLASSES:
        shared = {name: rule for name, rule in RULES.items() if rule.cls is cls}
        asked = dict(list(inspect.signature(cls).parameters.items())[1:])
        needs = [name for name, argument in asked.items() if argument.default is argument.empty]
        if cls.step_needs:
            left_out[cls.__name__] = f"its step needs {cls.step_needs}"
        elif missing := [name for name in needs if name not in NEEDED]:
            left_out[cls.__name__] = f"it needs {', '.join(missing)}"
        else:
            options = {"lr": asked["lr"].default} | {name: NEEDED[name] for name in needs}
            rules |= shared or {cls.__name__: _rule(cls, cls.__name__, **options)}
    return rules, left_out


#: By name, every rule that can be timed, the classes in their order; and who cannot be, and why.
CLASS_RULES, LEFT_OUT = _by_class()


@dataclass(frozen=True)
class Storage:
    """How memory holds the numbers of a step.

    Args:
        params: the dtype of parameters and gradients.
        states: that of the states.
        rounding: how numbers become those that are held.
    """

    params: str = "float32"
    states: str = "float32"
    rounding: str = "stochastic"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of parameters and gradients."""
        return check.float_dtype("params", self.params)

    @property
    def options(self) -> dict[str, Any]:
        """What an optimizer is told. Not every rule takes states that differ from parameters."""
        state_dtype = None if self.states == self.params else self.states
        return {"state_dtype": state_dtype, "rounding": self.rounding}


#: By name, in the order of the table. Each is a row of it, and of docs/storage.md.
STORAGES: Mapping[str, Storage] = {
    PLAIN: Storage(),
    "bfloat16 states": Storage(states="bfloat16"),
    "bfloat16 states, nearest": Storage(states="bfloat16", rounding="nearest"),
    "all bfloat16": Storage("bfloat16", "bfloat16"),
    "all bfloat16, nearest": Storage("bfloat16", "bfloat16", rounding="nearest"),
    "8-bit states": Storage(states="int8"),
    "8-bit states, nearest": Storage(states="int8", rounding="nearest"),
    "all bfloat16, 8-bit states": Storage("bfloat16", "int8"),
    "float16 states": Storage(states="float16"),
    "all float16": Storage("float16", "float16"),
}
#: To see how the time grows with the elements, gradstep itself takes part with so many.
SMALLER = 10_000_000


@dataclass(frozen=True)
class Work:
    """One step of a rule on arrays, of float32 if nothing else is said.

    Args:
        rule: a name in `RULES` or `CLASS_RULES`.
        size: the elements of each array.
        arrays: how many there are.
        threads: the most that a contestant may use.
        clip: clip the gradient by its global norm before the step, zero it after.
        peers: who takes part beside gradstep and the roofline.
        columns: of each array, if it is a matrix.
        storage: a name in `STORAGES`.

    Example:
        >>> from gradstep.tools.bench import Work
        >>> work = Work("adam", 1000, arrays=20)
        >>> work.elements, work.bytes_per_element, work.title
        (20000, 28, 'Adam')
    """

    rule: str
    size: int
    arrays: int = 1
    threads: int = 1
    clip: bool = False
    peers: tuple[str, ...] = PEERS
    columns: int = 0
    storage: str = PLAIN

    @property
    def optimizer(self) -> type[Optimizer]:
        return CLASS_RULES[self.rule].cls

    @property
    def options(self) -> dict[str, Any]:
        return dict(CLASS_RULES[self.rule].options)

    @property
    def own_options(self) -> dict[str, Any]:
        """Those that gradstep has beside, and what it is told of the storage."""
        return self.options | STORAGES[self.storage].options

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of parameters and gradients."""
        return STORAGES[self.storage].dtype

    @property
    def elements(self) -> int:
        return self.size * self.arrays

    @property
    def array_shape(self) -> tuple[int, ...]:
        return (self.size // self.columns, self.columns) if self.columns else (self.size,)

    @property
    def states(self) -> list[float]:
        """Of each state, its elements per element of the parameter."""
        return [size for size, _ in self._states()]

    def _states(self) -> list[tuple[float, int]]:
        """The same, and the bytes of each element."""
        enough = min(self.size, LEAST_IN_8_BITS)
        param = np.zeros(self.array_shape if self.columns else enough, self.dtype)
        states = self.optimizer(param, **self.own_options).state.values()
        return [(state.size / param.size, state.itemsize) for state in states]

    @property
    def bytes_per_element(self) -> int:
        """What must move: parameter and states twice, the gradient once.

        Of a state with rows, a step updates one. To clip by the norm, the gradient is read twice;
        to zero it, it is written.
        """
        states = sum(size / max(1, int(size)) * itemsize for size, itemsize in self._states())
        return round(2 * states + (3 + 2 * self.clip) * self.dtype.itemsize)

    @property
    def by_element(self) -> bool:
        """Whether each element has steps of its own, on which no other has an influence."""
        if self.clip or self.columns:
            return False
        both, grads = np.array([[1.0, 30.0], [-0.5, 2.0]], np.float32)
        alone = both[:1].copy()
        for param in (both, alone):
            opt = reference.in_numpy(self.optimizer)(param, **self.options)
            for _ in range(CHECKED_STEPS):
                opt.step(grads[: param.size])
        return bool(both[0] == alone[0])

    @property
    def title(self) -> str:
        storage = f", {self.storage}" if self.storage != PLAIN else ""
        return CLASS_RULES[self.rule].title + ", clip and zero" * self.clip + storage

    def __str__(self) -> str:
        return f"{self.title}, {self.shape}"

    @property
    def shape(self) -> str:
        """The elements, and in how many arrays, or rows and columns."""
        if self.columns:
            return f"{self.size // self.columns:,} x {self.columns:,}"
        return f"{self.arrays:,} x {short(self.size)}" if self.arrays > 1 else short(self.size)


def short(number: float) -> str:
    """64 M for 64,000,000, 100 k for 100,000; other numbers in full."""
    for unit, factor in (("M", 10**6), ("k", 1000)):
        if number >= factor and number % factor == 0:
            return f"{number // factor:,.0f} {unit}"
    return f"{number:,.0f}"


def standard(threads: Sequence[int], quick: bool = False) -> list[Work]:
    """The works of the table.

    Args:
        threads: all of it with so many, again for each number.
        quick: only works of at most 1,000,000 elements.
    """
    small = [Work("adam", size) for size in (1_000, 100_000, 1_000_000)]
    large = [Work("adam", size) for size in (10_000_000, 64_000_000)]
    lists = [Work("adam", 1_000, arrays=1_000)]
    others = ("rmsprop", "rmsprop_centered_momentum", "sgd", "momentum", "adagrad")
    rest = [
        Work("adam", 64_000_000, clip=True),
        *(Work(rule, 10_000_000) for rule in others),
        Work("adam", 250_000_000, peers=("smaller",)),
    ]
    works = [*small, *lists] if quick else [*small, *large, *lists, *rest]
    return [replace(work, threads=n) for n in threads for work in works]


def matrix(
    rules: Sequence[str], sizes: Sequence[int], arrays: int, threads: Sequence[int]
) -> list[Work]:
    """Each rule at each size with each number of threads.

    Example:
        >>> from gradstep.tools.bench import matrix
        >>> [work.shape for work in matrix(["sgd"], [1000, 2500], 3, [1])]
        ['3 x 1 k', '3 x 2,500']
    """
    return [Work(r, size, arrays, n) for n in threads for r in rules for size in sizes]


def classes(names: Sequence[str], threads: int, quick: bool = False) -> list[Work]:
    """Each rule on one large array.

    Args:
        names: in `CLASS_RULES`.
        threads: the most that a contestant may use.
        quick: on a smaller one.

    Example:
        >>> from gradstep.tools.bench import classes
        >>> [work.shape for work in classes(["sgd", "NAdam"], threads=1)]
        ['10 M', '10 M']
    """
    size = QUICK_CLASS_SIZE if quick else CLASS_SIZE
    works = []
    for name in names:
        rows, columns = MATRICES.get(CLASS_RULES[name].cls.__name__, (1, 0))
        while rows * columns > size:
            rows, columns = rows // 2, columns // 2
        work = Work(name, rows * columns or size, threads=threads, peers=CLASS_PEERS)
        works.append(replace(work, columns=columns))
    return works


def storages(sizes: Sequence[int], threads: int) -> list[Work]:
    """Adam with each storage at each size.

    Args:
        sizes: the elements.
        threads: the most that a contestant may use.

    Raises:
        UsageError: ml_dtypes is missing, which has bfloat16.

    Example:
        >>> from gradstep.tools.bench import storages
        >>> [work.bytes_per_element for work in storages([10_000], threads=1)]
        [28, 20, 20, 14, 14, 16, 16, 10, 20, 14]
    """
    if find_spec("ml_dtypes") is None:
        raise UsageError("--storage needs ml_dtypes: pip install 'gradstep[bfloat16]'")
    peers = PLAIN, *STORAGE_PEERS
    return [
        Work("adam", size, threads=threads, peers=peers, storage=name)
        for size in sizes
        for name in STORAGES
    ]
