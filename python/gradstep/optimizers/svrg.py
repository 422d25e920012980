"""SVRG, which keeps the gradient of all rows at a snapshot of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from .._engine import checks as check
from .._engine.plan import GradTransform
from .arguments import Fixed
from .base import Optimizer
from .options import Array, Arrays, LearningRate, StepResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import Options, StepOptions

__all__ = ["SVRG"]


class SVRG(Optimizer):
    r"""Stochastic variance-reduced gradient: each gradient is corrected by one at a snapshot.

    ```
    w = (1 - lr weight_decay) w - lr (g_i(w) - g_i(v) + mu)
    ```

    `v` is the snapshot, a copy of the parameters, and `mu` the gradient of the mean over all rows
    at it. It keeps no table: three arrays instead of a parameter's one, and two gradients per
    step. With L the largest curvature of a row, theory wants `lr` below 1/(4 L); 1/(10 L) is usual,
    and a snapshot every 2 passes over the rows.

    Args:
        full_gradient: `full_gradient(params)` gives the gradients of the mean over all rows, in the
            structure, shapes and dtypes of `params`. It is called with a snapshot.
        every: take a snapshot at the start of the first step and then every so many steps, at least
            1; None (default) only where `take_snapshot()` is called.
        weight_decay: exact L2 regularisation, which neither gradient holds. At least 0, default 0.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> targets = np.array([1.0, 2.0, 6.0])
        >>> w = np.zeros(1)
        >>> opt = gs.SVRG(w, lr=0.1, full_gradient=lambda v: v - targets.mean(), every=6)
        >>> for t in range(200):
        ...     opt.step(w - targets[t % 3], opt.snapshot - targets[t % 3])
        >>> w.round(6)
        array([3.])

    References:
        Johnson and Zhang, Accelerating stochastic gradient descent using predictive variance
        reduction, 2013, theorem 1.
    """

    rules = ("svrg",)
    step_needs = "the gradients of each row at the snapshot too"

    every = Fixed[int | None]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate,
        full_gradient: Callable[[Arrays], Arrays],
        *,
        every: int | None = None,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        if not callable(full_gradient):
            raise TypeError(f"full_gradient must be a function, got {full_gradient!r}")
        self._full_gradient = full_gradient
        self._every = None if every is None else check.integer("every", every, 1)
        #: The steps that had been taken at the snapshot; -1: there is none.
        self._snapshot_t = np.array(-1, np.int64)
        super().__init__(
            params,
            "svrg",
            lr=lr,
            weight_decay=weight_decay,
            fixed={"every": self._every, "full_gradient": True},
            **options,
        )

    @property
    def snapshot(self) -> Arrays:
        """The parameters at the snapshot, in their structure; before the first, as they began."""
        return self._structure.build(self._states["snapshot"])

    def take_snapshot(self) -> None:
        """Copy the parameters to the snapshot, and take the full gradient there.

        Raises:
            TypeError, ValueError: a full gradient that does not fit, by name, or that holds NaN or
                infinity. The old snapshot is whole then, as where `full_gradient` raises.
        """
        with self._alone():
            t, snapshot = self.t, [param.copy() for param in self._params]
        mu = self._structure.arrays(
            self._full_gradient(self._structure.build(snapshot)), "full_gradient()"
        )
        labels = self._labels("full_gradient()")
        # Arithmetic on 0-d arrays gives NumPy scalars.
        mu = [
            np.asarray(array) if isinstance(array, np.generic) else _core.view(array, label)
            for array, label in zip(mu, labels, strict=True)
        ]
        for label, array, param in zip(labels, mu, self._params, strict=True):
            check.array_like(label, array, param)
            if not np.isfinite(array).all():
                raise ValueError(f"{label} holds NaN or infinity")
        self._put_snapshot(snapshot, mu, t)

    def step(  # type: ignore[override]
        self, grads: Arrays, snapshot_grads: Arrays, **options: Unpack[StepOptions]
    ) -> StepResult | None:
        """Update once with the gradients of one row at two points.

        A step that `every` begins with a snapshot uses `grads` for both: the points are one then.

        Args:
            grads: the gradients of a row at the parameters, in their structure, shapes and dtypes.
            snapshot_grads: those of the same row at `snapshot`. They are only read.
            grad_scale: above 0, default 1, for these and for the full gradient.
            zero_grad: fill `grads` with 0 afterwards. Default False.
            clip_norm, clip_value: None. To clip one gradient of three would bias the step.

        Raises:
            RuntimeError: there is no snapshot.
            TypeError, ValueError: an argument or array that does not fit, by name. Nothing has
                changed then.
        """
        for name in ("clip_norm", "clip_value"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name} must be None for SVRG, whose steps clipping would bias, "
                    f"got {options[name]!r}"
                )
        transform = GradTransform.checked(**options)
        t, taken = self.t, int(self._snapshot_t)
        second = self._structure.arrays(snapshot_grads, "snapshot_grads")
        if self._every is None or 0 <= taken <= t < taken + self._every:
            if taken < 0:
                raise RuntimeError("there is no snapshot: call take_snapshot(), or give every=")
            return self._apply(grads, transform, self._scalars(t, self._next_lr()), second)
        first = self._structure.arrays(grads, "grads")
        self._plan.check_grads(first)
        self._plan.check_second_grads(second)
        old_snapshot, old_mu = (
            [array.copy() for array in self._states[name]] for name in ("snapshot", "mu")
        )
        self.take_snapshot()
        result = None
        try:
            result = self._apply(grads, transform, self._scalars(t, self._next_lr()), first)
        finally:
            if self.t == t:  # no step was taken
                self._put_snapshot(old_snapshot, old_mu, taken)
        return result

    def _put_snapshot(self, snapshot: Sequence[Array], mu: Sequence[Array], t: int) -> None:
        with self._alone():
            for name, arrays in (("snapshot", snapshot), ("mu", mu)):
                for target, array in zip(self._states[name], arrays, strict=True):
                    np.copyto(target, array)
            self._snapshot_t[...] = t

    def _add_states(self) -> None:
        self._states.add(["mu", "snapshot"])
        for target, param in zip(self._states["snapshot"], self._params, strict=True):
            np.copyto(target, param)

    def _state_label(self, state: str) -> str:
        return "snapshot_grads" if state == "snapshot_grad" else super()._state_label(state)

    def _counters(self) -> dict[str, Array]:
        return {"snapshot_t": self._snapshot_t}

    def _check_counters(self, counters: Mapping[str, Array]) -> None:
        check.integer("counter snapshot_t", int(counters["snapshot_t"]), -1)
