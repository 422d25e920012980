"""The reasons to stop a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .._engine import checks as check
from .history import Epoch, Verdict


def _limit(epochs: int | None, max_steps: int | None, per_epoch: int) -> tuple[int, Verdict]:
    """The steps that a run may take, and the verdict when it has taken them."""
    if epochs is None and max_steps is None:
        raise ValueError("epochs or max_steps must be given, got neither")
    limits: list[tuple[int, Verdict]] = []
    if epochs is not None:
        epochs = check.integer("epochs", epochs, 0)
        limits.append((epochs * per_epoch, ("epochs", f"epochs: {epochs} done")))
    if max_steps is not None:
        max_steps = check.integer("max_steps", max_steps, 0)
        limits.append((max_steps, ("max_steps", f"max_steps: {max_steps} taken")))
    steps, verdict = min(limits, key=lambda limit: limit[0])
    return min(steps, check.MAX_INTEGER), verdict


class _Patience:
    """The best loss so far, and how long it may stay the best."""

    def __init__(self, epochs: int | None, climbs: bool) -> None:
        self._epochs = None if epochs is None else check.integer("patience", epochs, 1)
        self._sign = -1 if climbs else 1
        self._best = self._sign * math.inf
        self._when = 0

    def verdict(self, epoch: Epoch) -> Verdict | None:
        name = "loss" if epoch.val_loss is None else "val_loss"
        loss: float = getattr(epoch, name)
        if self._sign * loss < self._sign * self._best:
            self._best, self._when = loss, epoch.epoch
        waited = epoch.epoch - self._when
        if waited != self._epochs:
            return None
        best = f"{name} {self._best:.6g} of epoch {self._when}"
        return "patience", f"patience: {waited} epochs without a better {best}"


def _asked(callbacks: Sequence[Callable[[Epoch], object]], epoch: Epoch) -> Verdict | None:
    asking = [callback for callback in callbacks if callback(epoch)]
    if not asking:
        return None
    name = getattr(asking[0], "__name__", type(asking[0]).__name__)
    return "callback", f"callback: {name} asked to stop after epoch {epoch.epoch}"


def _tolerated(tol: float | None, epoch: Epoch) -> Verdict | None:
    if tol is None or epoch.grad_norm > tol:
        return None
    norms = f"gradient norm {epoch.grad_norm:.3g} <= tol {tol:.3g}"
    return "tolerance", f"tolerance: {norms} after epoch {epoch.epoch}"
