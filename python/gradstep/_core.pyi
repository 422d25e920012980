"""
The native core of gradstep. Use the gradstep package; this module is an implementation detail.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "NORM_BLOCK",
    "STATE_BLOCK",
    "FiniteSum",
    "Plan",
    "Rule",
    "TensorRule",
    "TensorSteps",
    "c_api",
    "check_params",
    "compiler",
    "cos_pi",
    "elements_per_thread",
    "exp",
    "from_blocks",
    "get_isa",
    "get_num_threads",
    "isa_levels",
    "join",
    "lacks_memory",
    "log",
    "norm",
    "norm_from",
    "openmp",
    "power",
    "rules",
    "set_isa",
    "set_num_threads",
    "shows_memory",
    "split",
    "streams",
    "sum_of_blocks",
    "thread_limit",
    "to_blocks",
    "view",
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
    def has_state(self, state: str, axes: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Whether there is such a state beside a parameter of so many axes; otherwise it is empty.
        """
    def state_shape(
        self, state: str, shape: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> tuple[int, ...]:
        """
        The shape of a state beside a parameter of this shape. Rows are an axis more, in front.
        """
    @property
    def any_storage(self) -> bool:
        """
        Whether memory may hold buffers in fewer bits than the arithmetic has.
        """
    @property
    def decoupled(self) -> bool:
        """
        Whether weight decay shrinks the parameter instead of joining the gradient.
        """
    @property
    def factors(self) -> tuple[str, ...]:
        """
        The states that are factors per row and per column of matrices.
        """
    @property
    def gradients(self) -> tuple[str, ...]:
        """
        The states that are gradients too: steps only read them.
        """
    @property
    def has_trust(self) -> bool:
        """
        Whether each array has a factor of its own, which follows from norms over it.
        """
    @property
    def hyperparameters(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def never_negative(self) -> tuple[str, ...]:
        """
        The states that are never negative.
        """
    @property
    def row_state(self) -> str | None:
        """
        The state that has a row per sample or batch, if one has.
        """
    @property
    def states(self) -> tuple[str, ...]: ...
    @property
    def streams(self) -> int:
        """
        How many arrays as large as the parameter a step reads, and writes, taken together.
        """

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
        skip_nonfinite: bool = False,
        flush_denormals: bool = False,
        refuse_nonfinite: bool = False,
        seen: numpy.typing.NDArray[numpy.bool] | None = None,
        row_weights: numpy.typing.NDArray[numpy.float64] | None = None,
        by_rows: bool = False,
        copies: collections.abc.Sequence[typing.Any] | None = None,
        low_bits: collections.abc.Sequence[typing.Any] | None = None,
    ) -> None: ...
    def acquire(self) -> None:
        """
        Keep other threads out until release(), or raise if one is in.
        """
    def block_sums(
        self,
        grads: typing.Any,
        grad_scale: typing.SupportsFloat | typing.SupportsIndex,
        unit: typing.SupportsFloat | typing.SupportsIndex,
    ) -> numpy.typing.NDArray[numpy.float64]:
        """
        The sum of squares of each block of the gradients, each element times both factors.
        """
    def check(self) -> None:
        """
        Raise unless every array is as it was when the plan was made.
        """
    def check_apart(self, array: typing.Any, name: str) -> None:
        """
        Raise if the array shares memory with what steps write to.
        """
    def check_grads(self, grads: typing.Any, zero_grad: bool = False) -> list[typing.Any]:
        """
        Raise unless step() would take these gradients; return them, as NumPy arrays where need be.
        """
    def check_second_grads(self, second_grads: typing.Any) -> list[typing.Any]:
        """
        The same for the second gradients.
        """
    def check_treatment(
        self,
        treatment: tuple[
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex | None,
            typing.SupportsFloat | typing.SupportsIndex | None,
            bool,
        ],
    ) -> None:
        """
        Raise unless step() would take it.
        """
    def forget(self, row: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Make a row one that was never seen, and sum the others again. Return whether it was seen.
        """
    def release(self) -> None: ...
    def set_rounding(
        self,
        stochastic: bool,
        seed: typing.SupportsInt | typing.SupportsIndex,
        array: typing.SupportsInt | typing.SupportsIndex = 0,
        first: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        Round what becomes 16 or 8 bits by chance, which the seed begins, or to the nearest.
        Parts of an array give its number and the place of their first element.
        """
    def step(
        self,
        grads: typing.Any,
        treatment: tuple[
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex | None,
            typing.SupportsFloat | typing.SupportsIndex | None,
            bool,
        ]
        | None = None,
        scalars: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
            typing.SupportsFloat | typing.SupportsIndex,
            bool,
            typing.SupportsInt | typing.SupportsIndex,
        ]
        | None = None,
        second_grads: typing.Any | None = None,
        acquired: bool = False,
        norm: typing.SupportsFloat | typing.SupportsIndex | None = None,
    ) -> tuple[float, bool, bool] | None:
        """
        Update everything once, or raise and change nothing. The treatment of the gradients is
        (grad_scale, clip_norm or None, clip_value or None, zero_grad), the scalars are (t so far,
        hyper-parameters, weight_decay, maximize, row), those of the step before by default.
        `acquired` says that the caller has called acquire(). `norm` is that of all gradients, where
        these are a part of them: then it is not measured, and all are finite.
        Where clip_norm or skip_nonfinite had the gradients measured, return their norm, whether it
        was clipped, and whether the step was skipped.
        """
    @property
    def t(self) -> int:
        """
        Steps taken so far.
        """
    @t.setter
    def t(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None: ...

class FiniteSum:
    """
    The weighted mean of a linear model's losses over rows.
    """
    def __init__(
        self,
        rows: tuple[
            numpy.ndarray, numpy.ndarray, numpy.ndarray, typing.SupportsInt | typing.SupportsIndex
        ]
        | numpy.ndarray,
        targets: typing.Annotated[numpy.typing.ArrayLike, numpy.float64],
        weights: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None,
        loss: str,
        outputs: typing.SupportsInt | typing.SupportsIndex,
        delta: typing.SupportsFloat | typing.SupportsIndex,
        centre: bool,
    ) -> None:
        """
        Rows are a table, or (values, columns, offsets, features) of CSR; values are not copied.
        """
    def descend(
        self,
        variant: str,
        lr: typing.SupportsFloat | typing.SupportsIndex,
        l2: typing.SupportsFloat | typing.SupportsIndex,
        l1: typing.SupportsFloat | typing.SupportsIndex,
        fit_intercept: bool,
        draws: typing.SupportsInt | typing.SupportsIndex,
        seed: typing.SupportsInt | typing.SupportsIndex,
        first: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        Step at so many rows, the first of which is the draw `first` of the seed.
        """
    def gradient(
        self,
    ) -> tuple[numpy.typing.NDArray[numpy.float64], numpy.typing.NDArray[numpy.float64]]:
        """
        The sums that snapshot() would form; nothing changes.
        """
    def snapshot(self) -> None:
        """
        Form all slopes at the present weights, and so the table and its sum.
        """
    @property
    def coef(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def coverage(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def intercept(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def intercept_sum(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def largest_norm(self) -> float: ...
    @property
    def means(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def squares(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def sum(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def table(self) -> numpy.typing.NDArray[numpy.float64]: ...
    @property
    def total_weight(self) -> float: ...

class TensorRule:
    """
    A rule, as the parameters of a group of gradstep.torch have it.
    """
    def __init__(
        self,
        rule: str,
        states: collections.abc.Sequence[str],
        counts: bool,
        progress: collections.abc.Sequence[str],
        dense: bool,
        sparse: bool,
    ) -> None:
        """
        The names of the states that are kept, whether a state "step" counts, the names of the
        numbers that each step moves on, and which gradients are taken.
        """

class TensorSteps:
    """
    What carries out the steps of an optimizer of gradstep.torch.
    """
    def __init__(
        self, relaid: typing.Any, as_axes: typing.Any, increment_version: typing.Any
    ) -> None: ...
    def step(
        self,
        optimizer: typing.Any,
        groups: collections.abc.Sequence[
            tuple[
                list[typing.Any],
                TensorRule,
                tuple[
                    collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
                    typing.SupportsFloat | typing.SupportsIndex,
                    bool,
                ]
                | collections.abc.Callable[
                    [int, list[float]],
                    tuple[
                        tuple[
                            collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
                            typing.SupportsFloat | typing.SupportsIndex,
                            bool,
                        ],
                        collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
                    ],
                ],
                collections.abc.Callable[
                    [list[typing.Any], list[typing.Any]], collections.abc.Sequence[typing.Any]
                ]
                | None,
                tuple[
                    bool,
                    typing.SupportsInt | typing.SupportsIndex,
                    typing.SupportsInt | typing.SupportsIndex,
                ],
            ]
        ],
    ) -> None:
        """
        Update every tensor that has a gradient, or raise and change nothing. A group is (params,
        rule, scalars, form, rounding). The scalars are (hyper-parameters, weight_decay, maximize),
        or, where there is progress, a function of the steps so far and the progress that gives them
        and the progress then. Where a rule reads more than gradients and states, `form` is a
        function of both that forms it, for each parameter; otherwise None. The rounding is
        (stochastic, seed, the place of the first of these parameters among all of the optimizer).
        """

def check_params(
    params: collections.abc.Sequence[typing.Any], noun: str, suffixes: collections.abc.Sequence[str]
) -> None:
    """
    Raise unless each array can be updated in place and none overlaps another.
    """

def cos_pi(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> typing.Any: ...
def exp(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> typing.Any: ...
@typing.overload
def from_blocks(
    blocks: numpy.typing.NDArray[numpy.int8], numbers: numpy.typing.NDArray[numpy.float32]
) -> None:
    """
    Load float32 numbers from 8-bit blocks.
    """

@typing.overload
def from_blocks(
    blocks: numpy.typing.NDArray[numpy.uint8], numbers: numpy.typing.NDArray[numpy.float32]
) -> None:
    """
    Load float32 numbers from 8-bit blocks.
    """

def get_isa() -> str:
    """
    The level in use.
    """

def get_num_threads() -> int: ...
def isa_levels() -> dict[str, bool]:
    """
    Each compiled level, and whether this processor supports it.
    """

def join(
    high: numpy.typing.NDArray[numpy.uint16],
    low: numpy.typing.NDArray[numpy.uint16],
    numbers: numpy.typing.NDArray[numpy.float32],
) -> None:
    """
    Join what split() has split.
    """

def lacks_memory(tensor: typing.Any) -> bool:
    """
    Whether a tensor with elements has no memory of its own.
    """

def log(x: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> typing.Any: ...
def norm(array: typing.Any) -> float:
    """
    The L2 norm over an array, summed in the order in which clipping does it.
    """

def norm_from(
    total: collections.abc.Callable[[float], typing.SupportsFloat | typing.SupportsIndex],
    single_precision: bool,
) -> tuple[float, bool]:
    """
    The L2 norm of what is nowhere whole, and whether it is finite: total(unit) is the sum of the
    squares of all elements, each times that power of two.
    """

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
def shows_memory(thing: typing.Any) -> bool:
    """
    Whether an object is an array, of NumPy or any other library, or has a buffer.
    """

def split(
    numbers: numpy.typing.NDArray[numpy.float32],
    high: numpy.typing.NDArray[numpy.uint16],
    low: numpy.typing.NDArray[numpy.uint16],
) -> None:
    """
    Split float32 numbers into the bits of the nearest bfloat16 and the remainder.
    """

def streams(written: collections.abc.Sequence[typing.Any], read: typing.Any) -> None:
    """
    Read and write what a rule's step would, with next to no arithmetic: a limit to measure.
    """

def sum_of_blocks(sums: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> float:
    """
    The sum of blocks' sums, in the order of the norm.
    """

@typing.overload
def to_blocks(
    numbers: numpy.typing.NDArray[numpy.float32], blocks: numpy.typing.NDArray[numpy.int8]
) -> None:
    """
    Store float32 numbers in 8-bit blocks, rounded to nearest.
    """

@typing.overload
def to_blocks(
    numbers: numpy.typing.NDArray[numpy.float32], blocks: numpy.typing.NDArray[numpy.uint8]
) -> None:
    """
    Store float32 numbers in 8-bit blocks, rounded to nearest.
    """

def view(array: typing.Any, name: str) -> typing.Any:
    """
    The memory of an array of any library, as a NumPy array: no copy is made.
    """

NORM_BLOCK: int = 4096
STATE_BLOCK: int = 256
__version__: str = "0.5.0"
c_api: typing.Any
compiler: str = "GCC 12.2.0"
elements_per_thread: int = 16384
openmp: int = 201511
thread_limit: int = 1024
