"""How long a step takes here and in every other package that is installed, in one run.

`gradstep bench` prints what this module finds. Each contestant works in a process of its own, takes
the same steps from the same start, and is only timed after its parameters have been compared with
those of NumPy. Rounds of all contestants alternate. Matplotlib is imported only to draw.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _checks as check
from . import reference, runtime
from ._memory import available_bytes
from .compare import check_picture
from .datasets import UsageError
from .optimizers import CLASSES, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from .reference import STATE_BLOCK

Array = NDArray[Any]
Item = TypeVar("Item")

CLIP_NORM = 1.0
#: The steps that are checked, and how far a peer may end from NumPy's parameters, as a part of the
#: Euclidean distance that those have moved. gradstep must have NumPy's bits.
CHECKED_STEPS, TOLERANCE = 3, 1e-3
#: Numbers repeat after this many, a prime, so that those of large arrays are quickly drawn.
PERIOD = 1_048_573
#: The longest that a worker may take for an answer; DeepSpeed compiles at its first step.
PATIENCE_SECONDS = 600
#: Threads of the contestant before may still spin.
PAUSE_SECONDS = 0.01
NO_RULE = "has no such rule"
ROUNDS = 15
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


PLAIN = "float32"
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


@dataclass(frozen=True)
class Contestant:
    """Who takes part: its class in a worker, what must be installed, and its line in the picture.

    `packages` are the modules to import; `ranked` is False for what computes nothing. Who has not
    `any_storage` does a work in float32.
    """

    cls: str
    packages: tuple[str, ...]
    colour: str
    marker: str
    ranked: bool = True
    any_storage: bool = False


CONTESTANTS: Mapping[str, Contestant] = {
    "gradstep": Contestant(
        "gradstep._peers:Gradstep", ("gradstep",), "#000000", "o", any_storage=True
    ),
    "roofline": Contestant(
        "gradstep._peers:Roofline", ("gradstep",), "#909090", "", ranked=False, any_storage=True
    ),
    PLAIN: Contestant("gradstep._peers:Gradstep", ("gradstep",), "#000000", ""),
    "smaller": Contestant("gradstep._peers:Smaller", ("gradstep",), "#000000", "", ranked=False),
    "numpy": Contestant("gradstep._peers:NumPy", ("numpy",), "#CC79A7", "s"),
    "numba": Contestant("gradstep._peers:Numba", ("numba",), "#E69F00", "D"),
    "torch": Contestant("gradstep._peers:Torch", ("torch",), "#56B4E9", "v"),
    "torch-foreach": Contestant("gradstep._peers:TorchForeach", ("torch",), "#0072B2", "<"),
    "torch-fused": Contestant("gradstep._peers:TorchFused", ("torch",), "#003E7E", "^"),
    "deepspeed": Contestant("gradstep._peers:DeepSpeed", ("deepspeed", "torch"), "#009E73", "P"),
    "optax": Contestant("gradstep._peers:Optax", ("optax", "jax"), "#D55E00", "X"),
    "thinc": Contestant("gradstep._peers:Thinc", ("thinc",), "#8C6D31", "p"),
}
#: In the table of classes.
CLASS_PEERS = ("numpy", "torch", "torch-foreach", "torch-fused")
#: In the table of storages.
STORAGE_PEERS = ("torch-fused",)
ALWAYS = ("gradstep", "roofline")
OURS = (*ALWAYS, PLAIN, "smaller")
PEERS: tuple[str, ...] = tuple(name for name in CONTESTANTS if name not in OURS)
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
        >>> from gradstep.bench import Work
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
        enough = min(self.size, check.LEAST_IN_8_BITS)
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
        >>> from gradstep.bench import matrix
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
        >>> from gradstep.bench import classes
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
        >>> from gradstep.bench import storages
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


def find_classes(names: str) -> list[str]:
    """The rules of the classes in a list such as "adam,lion"; "all" means every class.

    Raises:
        UsageError: no such class, or one that cannot be timed.

    Example:
        >>> from gradstep.bench import find_classes
        >>> find_classes("lion,Adam")
        ['Lion', 'adam', 'amsgrad']
    """
    known: dict[str, list[str]] = {"all": list(CLASS_RULES)}
    for name, rule in CLASS_RULES.items():
        known.setdefault(rule.cls.__name__.lower(), []).append(name)
    wanted = {name.strip().lower() for name in names.split(",")}
    for name, why in LEFT_OUT.items():
        if name.lower() in wanted:
            raise UsageError(f"class {name!r} is not timed: {why}")
    return _find("class", names, known)


def find_rules(names: str) -> list[str]:
    """The rules in a list such as "adam,sgd".

    Raises:
        UsageError: no such rule.
    """
    return _find("rule", names, {name: [name] for name in RULES})


def find_peers(names: str) -> list[str]:
    """The peers in a list such as "numpy,torch"; "torch" means all that PyTorch has.

    Raises:
        UsageError: no such peer.

    Example:
        >>> from gradstep.bench import find_peers
        >>> find_peers("torch,numpy")
        ['torch', 'torch-foreach', 'torch-fused', 'numpy']
    """
    return _find("peer", names, {name: _family(name) for name in PEERS})


def find_pythons(choices: Sequence[str]) -> dict[str, str]:
    """The interpreters in a list such as ["deepspeed=/opt/env/bin/python"].

    Raises:
        UsageError: no such peer, or no such file.
    """
    pythons = {}
    for choice in choices:
        names, _, python = choice.partition("=")
        if not Path(python).is_file():
            raise UsageError(f"--python {choice} must be PEER=PATH, the path of an interpreter")
        pythons.update(dict.fromkeys(find_peers(names), python))
    return pythons


def find_picture(path: Path | None) -> Path | None:
    """Where to draw: bench.png where nothing is said, or None if Matplotlib is missing then.

    Raises:
        UsageError: the file cannot be written, or not be drawn.
    """
    if path is None and find_spec("matplotlib") is None:
        return None
    path = path or Path("bench.png")
    check_picture(path)
    return path


def _family(name: str) -> list[str]:
    return [peer for peer in PEERS if peer == name or peer.startswith(f"{name}-")]


def _find(noun: str, names: str, known: Mapping[str, list[str]]) -> list[str]:
    wanted = [name.strip().lower() for name in names.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        plural = noun + ("es" if noun.endswith("s") else "s")
        raise UsageError(f"unknown {noun} {unknown[0]!r}; the {plural} are {', '.join(known)}")
    return list(dict.fromkeys(found for name in wanted for found in known[name]))


# The same numbers for all


def draw(work: Work, seed: int) -> list[Array]:
    """Standard normal numbers for each array, the same in every process."""
    numbers = _period(work, seed)
    arrays = [np.empty(work.size, work.dtype) for _ in range(work.arrays)]
    for i, begin, end, at in _pieces(work):
        arrays[i][begin:end] = numbers[at : at + end - begin]
    return [array.reshape(work.array_shape) for array in arrays]


def gradients(work: Work) -> Iterator[list[Array]]:
    """The gradients of the steps that are checked."""
    for step in range(1, CHECKED_STEPS + 1):
        yield draw(work, step)


def _period(work: Work, seed: int) -> Array:
    size = min(work.elements, PERIOD)
    numbers = np.random.default_rng(seed).standard_normal(size, np.float32)
    return numbers.astype(work.dtype, copy=False)


def _pieces(work: Work) -> Iterator[tuple[int, int, int, int]]:
    """Of all arrays, laid end to end, the pieces between repetitions: array, begin, end, origin."""
    period = min(work.elements, PERIOD)
    for i in range(work.arrays):
        begin = 0
        while begin < work.size:
            at = (i * work.size + begin) % period
            end = min(work.size, begin + period - at)
            yield i, begin, end, at
            begin = end


class Check(NamedTuple):
    """How the parameters compare with NumPy's after `CHECKED_STEPS`.

    Args:
        same_bits: whether they are the same.
        deviation: the distance from NumPy's, over the distance that NumPy's have moved.
    """

    same_bits: bool
    deviation: float


class Oracle:
    """What the parameters must be after the steps that are checked, by NumPy.

    A rule that looks at each element alone repeats itself as its numbers do: one period is enough.
    With clipping, or a norm in the rule, all elements count. What is rounded by chance does not
    repeat itself: only the first period is compared, and the whole blocks of it.
    """

    def __init__(self, work: Work) -> None:
        self._pieces, size = list(_pieces(work)), min(work.elements, PERIOD)
        if work.storage != PLAIN:
            size = min(work.size, PERIOD)
            size -= size % STATE_BLOCK if size < work.size else 0
            self._pieces = [(0, 0, size, 0)]
        self.work, cls = work, reference.in_numpy(work.optimizer)
        self._start, self._whole = _period(work, 0), not work.by_element
        if self._whole:
            self._params = draw(work, 0)
            steps = gradients(work)
        else:
            self._params = [self._start[:size].copy()]
            steps = ([_period(work, step)[:size]] for step in range(1, CHECKED_STEPS + 1))
        opt = cls(self._params, **work.own_options)
        for grads in steps:
            opt.step(grads, clip_norm=CLIP_NORM if work.clip else None)

    def check(self, param: Callable[[int, int, int], Array]) -> Check:
        """Compare parameters, given a function that gets a piece of an array of them."""
        same, off, moved = True, 0.0, 0.0
        for i, begin, end, at in self._pieces:
            size = end - begin
            got, start = param(i, begin, end), self._start[at : at + size]
            whole, first = (self._params[i], begin) if self._whole else (self._params[0], at)
            expected = whole.reshape(-1)[first : first + size]
            if got.dtype != expected.dtype or got.shape != expected.shape:
                return Check(False, math.nan)
            same = same and got.tobytes() == expected.tobytes()
            off += _square_sum(got - expected)
            moved += _square_sum(expected - start)
        return Check(same, math.sqrt(off / moved) if moved else math.nan)


def _square_sum(x: Array) -> float:
    return float(np.square(x.astype(np.float64)).sum())


# Workers


class WorkerError(Exception):
    """What went wrong in a worker, in one line; `fatal` if it is gone."""

    def __init__(self, text: str, fatal: bool) -> None:
        super().__init__(text)
        self.fatal = fatal


class Worker:
    """A process of a contestant's own, so that none meets another's threads, or end.

    Args:
        contestant: whose.
        threads: the most that it may use; it gets as many processors.
        python: the interpreter, which must have gradstep and the package.
    """

    def __init__(self, contestant: Contestant, threads: int, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, "-c", "from gradstep._peers import serve; serve()"],
            env=_environment(threads, python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._contestant, self._threads, self._gave_up = contestant, threads, False

    def load(self) -> str:
        """Import the packages. Returns their versions."""
        cpus = _processors()[-self._threads :] if self._threads < len(_processors()) else []
        return str(self.ask("load", self._contestant.cls, self._contestant.packages, cpus))

    def ask(self, command: str, *arguments: Any) -> Any:
        """Have a method of `_peers.Session` called, and wait for what it returns.

        Raises:
            WorkerError: it raised, the process died, or it does not answer.
        """
        process, late = self._process, threading.Timer(PATIENCE_SECONDS, self._give_up)
        assert process.stdin is not None
        assert process.stdout is not None
        late.start()
        try:
            pickle.dump((command, arguments), process.stdin)
            process.stdin.flush()
            good, answer = pickle.load(process.stdout)
        except Exception:  # nothing, half an answer, or none at all
            raise WorkerError(self._last_words(), fatal=True) from None
        finally:
            late.cancel()
        if not good:
            raise WorkerError(answer, fatal=False)
        return answer

    def _give_up(self) -> None:
        self._gave_up = True
        self._process.kill()

    def close(self) -> None:
        """End the process, whatever it does."""
        with self._process as process:
            process.kill()
            if process.stdin is not None:
                with contextlib.suppress(OSError):  # it may hold half a command
                    process.stdin.close()

    def _last_words(self) -> str:
        if self._gave_up:
            return f"did not answer for {PATIENCE_SECONDS} seconds"
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "its answer cannot be read"
        # Until it serves, its stderr is ours: a traceback, whose last line says why.
        said = self._process.stderr.read().decode(errors="replace") if self._process.stderr else ""
        if said.strip():
            return said.strip().splitlines()[-1]
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with code {code}"


def _environment(threads: int, python: str) -> dict[str, str]:
    """For a worker of so many threads. Tools beside its interpreter are on its path."""
    libraries = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA", "GRADSTEP")
    single = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    xla = [os.environ.get("XLA_FLAGS", ""), *([single] if threads == 1 else [])]
    return {
        **os.environ,
        **{f"{library}_NUM_THREADS": str(threads) for library in libraries},
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(xla).strip(),
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")]),
        "PYTHONSAFEPATH": "1",
    }


def _processors() -> list[int]:
    """Those that this process may use, or none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def needed_bytes(work: Work, contestants: int) -> int:
    """About what a work takes: all contestants have their arrays at once.

    Each has parameter, gradient, states and what refills the gradient. One at a time, it has the
    temporaries of three expressions. The oracle keeps its result where all elements count.
    """
    arrays = contestants * (2 + sum(work.states) + work.clip) + 3 + (not work.by_element)
    return round(4 * work.elements * arrays)


# What is found


@dataclass
class Result:
    """What one contestant did at one work.

    Args:
        seconds: the median of each round.
        check: how its parameters compare with NumPy's; None if it computes nothing.
        problem: why it has no place in the ranking, if it has none.
    """

    seconds: list[float] = field(default_factory=list)
    check: Check | None = None
    problem: str = ""

    @property
    def timed(self) -> bool:
        return bool(self.seconds) and not self.problem


@dataclass
class Row:
    """A work, and who did it how fast. `skipped` says why nobody did it."""

    work: Work
    results: dict[str, Result] = field(default_factory=dict)
    skipped: str = ""

    def seconds(self, name: str) -> float:
        """The median of the contestant's rounds; NaN if it was not timed."""
        return float(np.median(self.results[name].seconds)) if self.timed(name) else math.nan

    def timed(self, name: str) -> bool:
        """Whether the contestant finished, with the right result."""
        return name in self.results and self.results[name].timed

    def ratios(self, name: str) -> list[float]:
        """How many times as long as gradstep it took in each round, if both were timed."""
        if not (self.timed(name) and self.timed("gradstep")):
            return []
        pairs = zip(self.results[name].seconds, self.results["gradstep"].seconds, strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def ratio(self, name: str) -> float:
        """The median of `ratios`; NaN if one of them was not timed."""
        ratios = self.ratios(name)
        return float(np.median(ratios)) if ratios else math.nan


@dataclass
class Bench:
    """What was found.

    Args:
        machine: the processor, and what runs the kernels.
        versions: by contestant, its packages and their versions.
        unused: by contestant, why it took no part, or no further part.
        rows: one per work.
        rounds: how often each was timed.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    unused: dict[str, str]
    rows: list[Row]
    rounds: int

    @property
    def wrong_bits(self) -> list[Row]:
        """The works at which gradstep did not have NumPy's bits."""
        checks = ((row, row.results.get("gradstep", Result()).check) for row in self.rows)
        return [row for row, check in checks if check is not None and not check.same_bits]


def bench(
    works: Sequence[Work],
    peers: Sequence[str] = PEERS,
    *,
    rounds: int = ROUNDS,
    pythons: Mapping[str, str] = MappingProxyType({}),
) -> Bench:
    """Have every contestant that is installed do every work.

    Args:
        works: what to do.
        peers: names in `PEERS`; gradstep and the roofline always take part.
        rounds: how often each contestant is timed at each work.
        pythons: the interpreters of peers that have one of their own.

    Example:
        >>> from gradstep.bench import Work, bench
        >>> found = bench([Work("sgd", 1000)], ["numpy"], rounds=3)
        >>> found.rows[0].results["gradstep"].check.same_bits
        True
        >>> len(found.rows[0].ratios("numpy"))
        3
    """
    found = Bench(machine(), {}, {}, [], rounds)
    with _progress(rounds * len(works)) as advance:
        for threads, group in groupby(works, lambda work: work.threads):
            own = list(group)
            wanted = {*ALWAYS, *(name for work in own for name in work.peers)}
            names = [name for name in (*OURS, *peers) if name in wanted]
            with _team(names, threads, pythons, found) as team:
                found.rows += [_measure(work, team, found, advance) for work in own]
    return found


@contextlib.contextmanager
def _team(
    names: Sequence[str], threads: int, pythons: Mapping[str, str], found: Bench
) -> Iterator[dict[str, Worker]]:
    """A worker for each contestant that can be imported."""
    with contextlib.ExitStack() as stack:
        team: dict[str, Worker] = {}
        for name in names:
            try:
                python = pythons.get(name, sys.executable)
                team[name] = Worker(CONTESTANTS[name], threads, python)
            except OSError as error:
                found.unused[name] = str(error)
            else:
                stack.callback(team[name].close)
        for name, worker in list(team.items()):
            try:
                found.versions[name] = worker.load()
            except WorkerError as error:
                found.unused[name] = str(error)
                del team[name]
        yield team


def _measure(
    work: Work, team: dict[str, Worker], found: Bench, advance: Callable[[int], object]
) -> Row:
    """Check and time whoever is in the team."""
    row = Row(work)
    present = [name for name in team if name in ALWAYS or name in work.peers]
    needed, available = needed_bytes(work, len(present)), available_bytes()
    if needed > 0.9 * available:
        row.skipped = f"needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} are free"
        advance(found.rounds)
        return row
    oracles = {
        storage: Oracle(replace(work, storage=storage))
        for storage in dict.fromkeys((work.storage, PLAIN))
    }
    for name in present:
        oracle = oracles[work.storage if CONTESTANTS[name].any_storage else PLAIN]
        with _noted(name, row, team, found):
            _start(name, team[name], oracle, row.results[name])
    for turn in range(found.rounds):
        able = [name for name in present if not row.results[name].problem]
        for name in rotated(able, turn):
            with _noted(name, row, team, found):
                time.sleep(PAUSE_SECONDS)
                row.results[name].seconds.append(team[name].ask("round"))
        advance(1)
    for name in filter(team.__contains__, present):
        with _noted(name, row, team, found):
            team[name].ask("end")
    return row


@contextlib.contextmanager
def _noted(name: str, row: Row, team: dict[str, Worker], found: Bench) -> Iterator[None]:
    """Make what goes wrong with a contestant a line of its result. Who dies leaves the team."""
    result = row.results.setdefault(name, Result())
    try:
        yield
    except WorkerError as error:
        result.problem = str(error)
        if error.fatal:
            found.unused[name] = f"{error} at {row.work}"
            del team[name]


def _start(name: str, worker: Worker, oracle: Oracle, result: Result) -> None:
    """Have the steps taken that are checked, and check them."""
    if not worker.ask("start", oracle.work):
        result.problem = NO_RULE
    elif CONTESTANTS[name].ranked:
        result.check = oracle.check(lambda *piece: worker.ask("param", *piece))
        result.problem = _complaint(name, result.check)


def _complaint(name: str, check: Check) -> str:
    """What keeps a contestant with these parameters from being ranked."""
    if name in OURS:
        return "" if check.same_bits else "has other bits than NumPy"
    within = check.deviation <= TOLERANCE  # which NaN is not
    return "" if within else f"ends {check.deviation:.2g} of the distance moved away from NumPy"


def rotated(items: Sequence[Item], turn: int) -> list[Item]:
    """The items in their order, from another one on at each turn.

    Example:
        >>> from gradstep.bench import rotated
        >>> rotated("abc", 1)
        ['b', 'c', 'a']
    """
    first = turn % len(items) if items else 0
    return [*items[first:], *items[:first]]


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A function to call after some of so many rounds: it moves a bar on a terminal, with tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda rounds: None
        return
    with tqdm(total=total, desc="measuring", leave=False, unit=" rounds", disable=None) as bar:
        yield bar.update


def machine() -> dict[str, Any]:
    """The processor and the system, and what `gradstep.info` says."""
    return {
        "processor": _processor(),
        "cores": len(_processors()) or os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **runtime.info(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    return platform.processor() or platform.machine()


def as_json(found: Bench) -> dict[str, Any]:
    """All that was found, for `json.dumps`."""
    return {
        "machine": found.machine,
        "versions": found.versions,
        "unused": found.unused,
        "rounds": found.rounds,
        "checked_steps": CHECKED_STEPS,
        "tolerance": TOLERANCE,
        "works": [
            {
                **{name: value for name, value in asdict(row.work).items() if name != "peers"},
                "class": row.work.optimizer.__name__,
                "title": row.work.title,
                "options": row.work.options,
                "bytes_per_element": row.work.bytes_per_element,
                "skipped": row.skipped,
                "contestants": {
                    name: _result_as_json(row, name, result) for name, result in row.results.items()
                },
            }
            for row in found.rows
        ],
    }


def _result_as_json(row: Row, name: str, result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {"problem": result.problem}
    if result.check is not None:
        deviation = result.check.deviation  # JSON has no NaN
        told["same_bits"] = result.check.same_bits
        told["deviation"] = deviation if math.isfinite(deviation) else None
    for noun, values in (("seconds", result.seconds), ("ratio", row.ratios(name))):
        if values:
            told[noun] = in_rounds(values)
    return told


def in_rounds(values: Sequence[float]) -> dict[str, Any]:
    """What each round gave, and where the middle of it lies."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "median": float(median),
        "quartiles": [float(low), float(high)],
        "rounds": list(values),
    }
