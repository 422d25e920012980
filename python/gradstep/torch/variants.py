"""What single rules have in addition."""

from __future__ import annotations

from typing import Any

import torch

from ..optimizers import averaging, orthogonal
from .optimizer import Optimizer
from .tensors import NARROW, _as_axes, _from_blocks, _is_dense, _is_in_blocks


class _ScheduleFree(Optimizer):
    """What the schedule-free rules have beside: the mean of the points.

    Like its step count, the mean of a parameter is its own: steps in which it has no gradient do
    not count in it.
    """

    def eval(self) -> None:
        """Move the parameters to the mean of the points, which is what to use."""
        self._move(to_mean=True)

    def train(self) -> None:
        """Move the parameters back to where gradients are taken."""
        self._move(to_mean=False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        # From the start: distributed checkpoints keep the options that they find.
        self.param_groups[-1].setdefault("train_mode", True)

    def _native_group(self, index: int, place: int = 0) -> tuple[Any, ...]:
        averaging.check_training(self.param_groups[index].get("train_mode", True))
        return super()._native_group(index, place)

    def _move(self, to_mean: bool) -> None:
        moves = []
        for index, group in enumerate(self.param_groups):
            if group.get("train_mode", True) == to_mean:
                params = [p for p in group["params"] if self.state.get(p, {}).get("step", 0) > 0]
                moves.append((group, index, params, [self._points(p) for p in params]))
        for group, index, params, points in moves:
            torch.autograd.graph.increment_version(params)
            self._settings(index).move_points([(w.numpy(), z.numpy()) for w, z in points], to_mean)
            for param, (w, _) in zip(params, points, strict=True):
                if param.dtype in NARROW:
                    param.detach().copy_(w)
            group["train_mode"] = not to_mean

    def _points(self, param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A parameter and its `z` as the arithmetic has them: in place, unless they are narrow."""
        state = self.state[param]
        z, axes = state.get("z"), _as_axes(state.get("axes", ()))
        if _is_dense(param) and _is_in_blocks(z, param, axes):
            z = _from_blocks(z, param, axes)
        both = [x for x in (param, z) if isinstance(x, torch.Tensor)]
        if len(both) < 2 or param.shape != z.shape or not all(map(_is_dense, both)):
            kinds = [(x.dtype, x.device, x.shape) for x in both]
            raise ValueError(
                f"{self._name(param)} and its state 'z' must be dense floating-point tensors of "
                f"one shape with memory of the CPU, got {kinds}"
            )
        arithmetic = torch.promote_types(param.dtype, torch.float32)
        return param.detach().to(arithmetic), z.to(arithmetic)


class _Adagrad(Optimizer):
    """What Adagrad has beside."""

    def share_memory(self) -> None:
        """Share the states with other processes, as `torch.optim.Adagrad` can."""
        made = self._all_states()
        self.state.update({param: made[param] for param in made if not self.state.get(param)})
        parent: Any = super()
        parent.share_memory()


class _Muon(Optimizer):
    """What Muon has beside: no parameters but matrices."""

    def _native_group(self, index: int, place: int = 0) -> tuple[Any, ...]:
        for param in self.param_groups[index]["params"]:
            if param.ndim != 2:
                orthogonal.check_matrix(self._name(param), tuple(param.shape))
        return super()._native_group(index, place)
