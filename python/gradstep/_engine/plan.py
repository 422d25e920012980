"""What carries steps out: the interface between an optimizer and native code.

`_core.Plan` is the native one, `windows.WindowedPlan` takes vectors that are larger than memory
window by window, and `reference.Plan` is the oracle in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from . import checks as check

Array = NDArray[Any]
#: The norm of the gradients, whether they were clipped, whether the step was skipped.
Report = tuple[float, bool, bool]


class GradTransform(NamedTuple):
    """What a step does to the gradients before the rule sees them; see `Optimizer.step`."""

    grad_scale: float = 1.0
    clip_norm: float | None = None
    clip_value: float | None = None
    zero_grad: bool = False

    @classmethod
    def checked(
        cls,
        grad_scale: float = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
    ) -> GradTransform:
        """From arguments of a user. Their ranges are checked by the plan."""
        return cls(
            check.number("grad_scale", grad_scale),
            None if clip_norm is None else check.number("clip_norm", clip_norm),
            None if clip_value is None else check.number("clip_value", clip_value),
            check.flag("zero_grad", zero_grad),
        )


#: The gradients as they are.
UNCHANGED = GradTransform()


class Scalars(NamedTuple):
    """The numbers of one step.

    Args:
        t: the steps so far. A plan refuses if another thread has taken one since.
        hyper: the hyper-parameters in the rule's order.
        weight_decay, maximize: as the optimizer has them.
        row: the row of a gradient table to update, where there is one.
    """

    t: int
    hyper: Sequence[float]
    weight_decay: float
    maximize: bool
    row: int = 0


#: What plans take, named or not.
AnyTransform = tuple[float, float | None, float | None, bool]
AnyScalars = tuple[int, Sequence[float], float, bool, int]


class Plan(Protocol):
    """Parameters and states that are checked once, and the steps over them."""

    @property
    def t(self) -> int:
        """The number of steps taken."""

    @t.setter
    def t(self, t: int) -> None: ...

    def step(
        self,
        grads: Sequence[Any],
        treatment: AnyTransform | None = None,
        scalars: AnyScalars | None = None,
        second_grads: Sequence[Any] | None = None,
        acquired: bool = False,
        norm: float | None = None,
    ) -> Report | None:
        """Take a step, or raise and change nothing.

        Args:
            grads: the gradients, one per parameter.
            treatment: the gradient transform; None for none.
            scalars: None for those of the last step.
            second_grads: the gradients at a second point, for rules that need them.
            acquired: whether the caller holds the lock.
            norm: of all gradients, where these are only a part of them.

        Returns:
            A report if `clip_norm` or `skip_nonfinite` asks for one.
        """

    def check(self) -> None:
        """Raise unless every array still has its memory and can be written."""

    def check_apart(self, array: Any, name: str) -> None:
        """Raise if an array overlaps parameters or states."""

    def check_grads(self, grads: Sequence[Any], zero_grad: bool = False) -> Sequence[Any]:
        """The gradients as arrays, or raise unless a step can use them."""

    def check_second_grads(self, second_grads: Sequence[Any]) -> Sequence[Any]:
        """The same for gradients at a second point."""

    def check_treatment(self, treatment: GradTransform) -> None:
        """Raise unless the numbers are in their ranges."""

    def block_sums(self, grads: Sequence[Any], grad_scale: float, unit: float) -> Array:
        """The sums of squares of each block of the gradients."""

    def set_rounding(self, stochastic: bool, seed: int, array: int = 0, first: int = 0) -> None:
        """How numbers are rounded to 16 or 8 bits.

        Args:
            stochastic: otherwise to nearest.
            seed: of the random bits.
            array, first: the index of the first parameter, and of its first element, which the
                random bits depend on.
        """

    def forget(self, row: int) -> bool:
        """Drop a row of a gradient table. False if it was not there."""

    def acquire(self) -> None:
        """Keep steps of other threads out, or raise if one is running."""

    def release(self) -> None:
        """Let them in again."""


MakePlan = Callable[..., Plan]
