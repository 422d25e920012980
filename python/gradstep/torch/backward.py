"""Steps in the backward pass."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

import torch

from .optimizer import Optimizer


def _check_not_averaged(optimizer: Optimizer) -> bool:
    """Raise where DDP or FSDP own a parameter. False where there can be none yet.

    A parameter does not show to whom it belongs, so the owners are looked for.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    owners = (torch.nn.parallel.DistributedDataParallel, FullyShardedDataParallel, FSDPModule)
    params = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for owner in gc.get_objects():
        if issubclass(type(owner), owners) and any(id(p) in params for p in owner.parameters()):
            raise ValueError(
                f"step_in_backward would step before {type(owner).__name__} has averaged the "
                "gradients, and the ranks would part: call step() of an optimizer after backward()"
            )
    return True


class BackwardSteps:
    """What `step_in_backward` has set up: an optimizer that steps while gradients are formed."""

    def __init__(self, optimizer: Optimizer) -> None:
        #: The optimizer: its `param_groups` are there for schedulers, its state for checkpoints.
        self.optimizer = optimizer
        _check_not_averaged(optimizer)
        self._is_checked = False
        optimizer._prepare()
        self._handles = [
            param.register_post_accumulate_grad_hook(self._hook(g, place))
            for g, first in enumerate(optimizer._places())
            for place, param in enumerate(optimizer.param_groups[g]["params"], first)
            if param.requires_grad
        ]

    def _hook(self, group: int, place: int) -> Callable[[torch.Tensor], None]:
        optimizer = self.optimizer

        def step_and_free(param: torch.Tensor) -> None:
            if not self._is_checked:  # a module may have been wrapped since
                self._is_checked = _check_not_averaged(optimizer)
            optimizer._step_one(group, place, param)
            param.grad = None

        return step_and_free

    def remove(self) -> None:
        """Take the hooks off: gradients stay, and `optimizer.step()` uses them again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def step_in_backward(
    model: torch.nn.Module | Iterable[Any],
    optimizer_class: Callable[..., Optimizer],
    **options: Any,
) -> BackwardSteps:
    """Update each parameter as soon as its gradient is complete, and free the gradient.

    The parameter and its gradient are still in the cache then, and no more than a few gradients
    are in memory at once. `backward()` does it all; do not call `step()`. What needs all gradients
    at once is not possible: clipping by the norm, `torch.amp.GradScaler`, and gradients accumulated
    over several calls of `backward()`. Hooks of the optimizer's `step()` do not run.

    Not for parameters of `DistributedDataParallel` or FSDP, which average gradients after this step
    would have been taken: these raise, here or in the first `backward()`.

    Args:
        model: a `torch.nn.Module`, or parameters or groups of them, as optimizers take.
        optimizer_class: a class of this module.
        options: its arguments beside the parameters.

    Returns:
        A handle: `optimizer`, for schedulers and checkpoints, and `remove()`.

    Raises:
        ValueError: DDP or FSDP own a parameter; in `backward()`, what `step()` would raise, where
            parameters whose turn came before have moved.

    Example:
        >>> import torch, gradstep.torch
        >>> model = torch.nn.Linear(3, 1)
        >>> handle = gradstep.torch.step_in_backward(model, gradstep.torch.SGD, lr=0.1)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> model.weight.grad is None
        True
        >>> handle.remove()
    """
    params: Any = model.parameters() if isinstance(model, torch.nn.Module) else model
    optimizer = optimizer_class(params, **options)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer_class must be one of gradstep.torch, got {type(optimizer).__name__}"
        )
    return BackwardSteps(optimizer)
