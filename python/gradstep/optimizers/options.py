"""The arguments that all optimizers share, and what a step reports."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

from numpy.typing import DTypeLike, NDArray

from .._engine import files

#: An array of NumPy, or of any library that shows its memory, or a list, tuple or dict of arrays.
Arrays = Any
Array = NDArray[Any]
#: A learning rate, or a function of the step (from 0) that gives one.
LearningRate = float | Callable[[int], float]


class Options(TypedDict, total=False):
    """What every class takes beside its own arguments; see `Optimizer`."""

    maximize: bool
    skip_nonfinite: bool
    flush_denormals: bool
    state_dtype: DTypeLike | None
    rounding: str
    rounding_seed: int
    state_dir: files.PathLike | None
    copy_to: Arrays | None
    master: bool | str


class StepOptions(TypedDict, total=False):
    """What `step` takes beside the gradients; see `Optimizer.step`."""

    grad_scale: float
    clip_norm: float | None
    clip_value: float | None
    zero_grad: bool


class StepResult(NamedTuple):
    """What a step found out about its gradients, where `clip_norm` or `skip_nonfinite` had it look.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> gs.SGD(np.zeros(2), lr=1.0).step(np.array([3.0, 4.0]), clip_norm=1.0)
        StepResult(grad_norm=5.0, clipped=True, skipped=False)
    """

    #: The L2 norm over all gradients, each times `grad_scale`, before clipping.
    grad_norm: float
    #: Whether the norm was above `clip_norm`.
    clipped: bool
    #: Whether nothing was updated, because a gradient held NaN or infinity, or had no finite norm
    #: to clip.
    skipped: bool


def spell_out_options(function: Callable[..., Any], like: Callable[..., Any]) -> None:
    """Show in a signature what `**options` stands for, as another one has it."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(own) < len(signature.parameters):
        named = Options.__annotations__ | StepOptions.__annotations__
        options = [p for p in inspect.signature(like).parameters.values() if p.name in named]
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *options]
        )
