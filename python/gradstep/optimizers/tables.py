"""Tables of gradients, and the mean of the last n."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._engine import checks as check
from .._engine import memory
from .._engine.plan import GradTransform
from .arguments import Fixed
from .base import Optimizer
from .options import Array, Arrays, LearningRate, StepResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import Options, StepOptions

__all__ = ["WindowSAG"]


class _TableMethod(Optimizer):
    """What the rules with a table of gradients share.

    Every so many steps as there are rows, `d` is summed again from the table, or the rounding
    errors of all steps would stay in it.
    """

    #: The argument that says how many rows there are.
    _size_name: ClassVar[str] = "rows"

    def __init__(
        self,
        params: Arrays,
        rule: str,
        *,
        rows: int,
        table: Arrays | None,
        fixed: Mapping[str, Any] = MappingProxyType({}),
        **others: Any,
    ) -> None:
        self._rows, self._table = rows, table
        fixed = {self._size_name: rows, "table": table is not None, **fixed}
        super().__init__(params, rule, fixed=fixed, **others)
        del self._table

    def _add_states(self) -> None:
        if self._table is None:
            self._check_room()
            self._states.add(self._rule.states, self._rows)
        else:
            self._states.add(["d"])
            self._states.arrays["y"] = self._checked_table()
        self._seen = np.zeros(self._rows, np.bool_)

    def _check_room(self) -> None:
        """Raise unless a new table fits into memory."""
        size = sum(param.nbytes for param in self._params)
        needed, free = self._rows * size, memory.available_bytes()
        if needed > free:
            raise MemoryError(
                f"{self._size_name}={self._rows} gradients of {size} bytes each take "
                f"{needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free; give table= arrays "
                "of np.memmap, which lie on disk"
            )

    def _checked_table(self) -> list[Array]:
        """The table of the user. What else its arrays must be, the plan checks."""
        arrays = self._structure.views(self._table, "table")
        labels = self._labels("table")
        for label, suffix, array, param in zip(
            labels, self._structure.suffixes, arrays, self._params, strict=True
        ):
            check.array(label, array)
            if array.shape != (self._rows, *param.shape):
                raise ValueError(
                    f"{label} must have the shape ({self._size_name}, *params{suffix}.shape), "
                    f"{(self._rows, *param.shape)}, got {array.shape}"
                )
        return arrays

    def _state_label(self, state: str) -> str:
        is_given = state == "y" and self._table is not None
        return "table" if is_given else super()._state_label(state)

    def _plan_options(self) -> dict[str, Any]:
        return {"refuse_nonfinite": True, "seen": self._seen}


class WindowSAG(_TableMethod):
    r"""Descent along the mean of the last n gradients.

    ```
    d = d + (g - y)      y: the row of the ring that is n steps old
    y = g
    w = w - lr / m d     m = min(t, n)
    ```

    On curvature L it is stable for `lr < n (1 - cos(pi / n)) / L` only: 2/L for n = 1 and 2,
    0.49/L for n = 10, about pi^2 / (2 n L) for large n. It does not converge to a lower noise
    floor than SGD; `SAG` does. `window=1` is bit for bit `SGD`. `d` is summed again from the ring
    in float64 at every turn.

    Args:
        window: n, the gradients kept, at least 1. The ring takes n times the memory of `params`.
        table: the ring, in the structure of `params`: arrays of the shape (window, *param.shape),
            which are used in place, such as those of `np.memmap`. What they hold counts as 0. None
            (default) makes one. `window=1` has none.

    Raises:
        MemoryError: a ring that does not fit into memory.
        ValueError: at a step, a gradient that holds NaN or infinity, which `d` would keep. Nothing
            has changed then.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0])
        >>> opt = gs.WindowSAG(w, lr=0.5, window=2)
        >>> for g in (1.0, 2.0, 3.0):
        ...     opt.step(np.array([g]))
        >>> w                                       # 1 - 0.5 (1 + 1.5 + 2.5)
        array([-1.5])

    References:
        Blatt, Hero and Gauchman, A convergent incremental gradient method with a constant step
        size, 2007: the same step where n is the number of batches and their order is cyclic.
    """

    rules = ("window_sag",)
    _size_name = "window"

    window = Fixed[int]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate,
        window: int,
        *,
        weight_decay: float = 0.0,
        table: Arrays | None = None,
        **options: Unpack[Options],
    ) -> None:
        window = check.integer("window", window, 1)
        alone = window == 1  # one row is the gradient itself: d + (g - y) would round
        if alone and table is not None:
            raise ValueError("table must be None for window=1, which keeps no gradients")
        super().__init__(
            params,
            "sgd" if alone else "window_sag",
            lr=lr,
            weight_decay=weight_decay,
            rows=window,
            table=table,
            **options,
        )

    def step(self, grads: Arrays, **options: Unpack[StepOptions]) -> StepResult | None:
        t = self.t
        seen = {"seen": min(t + 1, self._rows)}
        scalars = self._scalars(t, self._next_lr(), t % self._rows, seen)
        return self._apply(grads, GradTransform.checked(**options), scalars)

    def _plan_options(self) -> dict[str, Any]:
        return {} if self._rows == 1 else super()._plan_options()

    def _restored(self) -> None:
        self._seen[...] = np.arange(self._rows) < self.t
