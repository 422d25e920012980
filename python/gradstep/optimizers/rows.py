"""SAG and SAGA: a table with a gradient for each row of a finite sum."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._engine import checks as check
from .._engine.plan import GradTransform
from .arguments import Fixed, Number, Setting
from .options import Array, Arrays, LearningRate, StepResult
from .tables import _TableMethod

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import Options, StepOptions

__all__ = ["SAG", "SAGA"]

#: The orders in which `next_row` goes through the rows.
ORDERS = ("random", "permutation")


class _RowMethod(_TableMethod):
    """What the rules share whose steps name the row of their gradient."""

    step_needs = "the row of each gradient"

    rows = Fixed[int]()
    order = Setting[str]()
    seed = Setting[int]()

    def __init__(
        self,
        params: Arrays,
        rule: str,
        *,
        rows: int,
        row_weights: ArrayLike | None,
        order: str,
        seed: int,
        **others: Any,
    ) -> None:
        rows = check.integer("rows", rows, 1)
        self._row_weights = None if row_weights is None else _numbers(row_weights, rows)
        settings = {"order": order, "seed": seed}
        fixed = {"row_weights": row_weights is not None}
        super().__init__(params, rule, rows=rows, settings=settings, fixed=fixed, **others)
        self._check_counters(self._counters())
        #: The steps so far and, after them, the number of rows seen and the sum of their weights,
        #: which is exact: what is forgotten leaves no trace.
        self._tally: tuple[int, int, int | Fraction] = (-1, 0, 0)
        self._epoch: tuple[Any, ...] = ()

    def step(
        self, grads: Arrays, row: int | None = None, **options: Unpack[StepOptions]
    ) -> StepResult | None:
        """Update once with the gradient of one row.

        Args:
            grads: the gradients of that row, in the structure, shapes and dtypes of `params`.
            row: which row, from 0: `next_row()`, or any other.
            grad_scale, clip_norm, clip_value, zero_grad: see `Optimizer.step`. What the table keeps
                is the gradient after scaling and clipping.

        Raises:
            IndexError: no such row.
            TypeError, ValueError: an array that does not fit, by name; without `skip_nonfinite`, a
                gradient that holds NaN or infinity, which `d` would keep. Nothing has changed then.
        """
        if row is None:
            raise TypeError(
                f"{type(self).__name__}.step() needs the row that the gradient is of: "
                "step(grads, row), where row is what next_row() gave"
            )
        row, t = self._checked_row(row), self.t
        count, total = self._tallied(t)
        weight = self._weight(row)
        if not self._seen[row]:
            count, total = count + 1, total + weight
        scalars = self._scalars(
            t,
            self._next_lr(),
            row,
            {
                "row_weight": float(weight),
                "weight_seen": float(total),
                "rows_seen": float(count),
            },
        )
        result = self._apply(grads, GradTransform.checked(**options), scalars)
        if result is None or not result.skipped:
            self._tally = t + 1, count, total
        return result

    def forget(self, row: int) -> None:
        """Take a row for one that was never seen, as if its gradient had not been in the sum.

        `d` is summed again from the other rows.

        Raises:
            IndexError: no such row.
        """
        row = self._checked_row(row)
        self._tally = (-1, 0, 0)
        self._plan.forget(row)

    def next_row(self) -> int:
        """The row for the step to come, in `order`: a function of `seed`, `rows` and `t` alone.

        It is the same until a step is taken, so a resumed run goes on with the rows of an unbroken
        one. A skipped step is not taken.
        """
        epoch, place = divmod(self.t, self._rows)
        key = (self._settings["order"], self._settings["seed"], epoch)
        if self._epoch != key:
            self._epoch_rows, self._epoch = _epoch_rows(self._rows, *key), key
        return int(self._epoch_rows[place])

    def _checked_row(self, row: int) -> int:
        row = check.integer("row", row, 0)
        if row >= self._rows:
            raise IndexError(f"row must be below rows={self._rows}, got {row}")
        return row

    def _weight(self, row: int) -> int | Fraction:
        return 1 if self._row_weights is None else Fraction(float(self._row_weights[row]))

    def _tallied(self, t: int) -> tuple[int, int | Fraction]:
        """The number of rows seen, and the sum of their weights."""
        if self._tally[0] != t:  # after loading, or where a step was interrupted at its end
            count = int(np.count_nonzero(self._seen))
            weights = self._row_weights
            exact = () if weights is None else map(Fraction, weights[self._seen].tolist())
            self._tally = t, count, count if weights is None else sum(exact)
        return self._tally[1:]

    def _plan_options(self) -> dict[str, Any]:
        return {**super()._plan_options(), "row_weights": self._row_weights}

    def _counters(self) -> dict[str, Array]:
        weights = {} if self._row_weights is None else {"row_weights": self._row_weights}
        return {"seen": self._seen, **weights}

    def _check_counters(self, counters: Mapping[str, Array]) -> None:
        if self._row_weights is not None:
            for dtype in dict.fromkeys([np.dtype(np.float64), *(p.dtype for p in self._params)]):
                _check_weights(counters["row_weights"], dtype)

    def _checked_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        if settings["order"] not in ORDERS:
            wanted = " or ".join(map(repr, ORDERS))
            raise ValueError(f"order must be {wanted}, got {settings['order']!r}")
        return {
            **super()._checked_settings(settings),
            "order": settings["order"],
            "seed": check.integer("seed", settings["seed"], 0),
        }

    def _restored(self) -> None:
        self._tally = (-1, 0, 0)


def _numbers(row_weights: ArrayLike, rows: int) -> NDArray[np.float64]:
    """A copy of the weights. Their range is checked where it is known."""
    weights = np.asarray(row_weights)
    if weights.dtype.kind not in "iuf":
        raise TypeError(f"row_weights must be numbers, got dtype {weights.dtype}")
    if weights.shape != (rows,):
        raise ValueError(f"row_weights must hold rows={rows} numbers, got shape {weights.shape}")
    return weights.astype(np.float64)


def _check_weights(weights: Array, dtype: np.dtype[Any]) -> None:
    """Raise unless each weight and their sum are positive and finite in this dtype."""
    with np.errstate(all="ignore"):
        rounded, total = weights.astype(dtype), weights.sum().astype(dtype)
    bad = np.flatnonzero(~(np.isfinite(rounded) & (rounded > 0)))
    if bad.size:
        raise ValueError(
            f"row_weights must be above 0 and finite in {dtype}, got {weights[bad[0]]} "
            f"for row {bad[0]}"
        )
    if not np.isfinite(total):
        raise ValueError(f"row_weights must have a sum that is finite in {dtype}, got {total}")


def _epoch_rows(rows: int, order: str, seed: int, epoch: int) -> NDArray[np.int64]:
    """The rows of one epoch.

    Made of the raw numbers of Philox, which is keyed and whose stream NumPy keeps from version to
    version; `Generator.integers` and `permutation` may change.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(rows)
    if order == "permutation":
        return np.argsort(raw, kind="stable")
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    return np.asarray(rows * uniform, np.int64)


class SAG(_RowMethod):
    r"""Stochastic average gradient: descent along the mean of one stored gradient per row.

    ```
    d = d + r_i (g - y_i)                        r_i: the weight of row i
    y_i = g
    w = (1 - lr weight_decay) w - lr / m d       m: the weights of the rows seen so far, added up
    ```

    A row is a sample or a mini-batch of a finite sum; its gradient is the last one that was taken
    at it. It converges to the optimum with a constant `lr`, in theory at 1/(16 L), in practice at
    1/L, where L is the largest curvature of a row, times its weight over the mean weight. Rows in a
    fixed cyclic order are bad for it: `next_row()` draws them. `d` is summed again from the table
    in float64 every `rows` steps, which costs a read of one row per step on average.

    Args:
        rows: the number of rows, at least 1. The table takes that many times the memory of
            `params`.
        weight_decay: exact L2 regularisation, which is never stored in the table. At least 0,
            default 0.
        table: the table, in the structure of `params`: arrays of the shape (rows, *param.shape),
            which are used in place, such as those of `np.memmap`. What they hold counts as 0. None
            (default) makes one.
        row_weights: a positive number for each row, such as the sizes of unequal mini-batches; they
            are copied. None (default) for 1 each.
        order: of `next_row()`: "random" (default), drawn anew for each step, or "permutation",
            each row once per epoch.
        seed: of that order, a whole number, at least 0, default 0.

    Raises:
        MemoryError: a table that does not fit into memory.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> targets = np.array([1.0, 2.0, 6.0])
        >>> w = np.zeros(1)
        >>> opt = gs.SAG(w, lr=0.5, rows=3)
        >>> for _ in range(200):
        ...     i = opt.next_row()
        ...     opt.step(w - targets[i], row=i)
        >>> w.round(6)
        array([3.])

    References:
        Schmidt, Le Roux and Bach, Minimizing finite sums with the stochastic average gradient,
        2017.
    """

    rules = ("sag",)

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate,
        rows: int,
        *,
        weight_decay: float = 0.0,
        table: Arrays | None = None,
        row_weights: ArrayLike | None = None,
        order: str = "random",
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "sag",
            lr=lr,
            weight_decay=weight_decay,
            rows=rows,
            table=table,
            row_weights=row_weights,
            order=order,
            seed=seed,
            **options,
        )


class SAGA(_RowMethod):
    r"""SAGA: SAG with steps that are unbiased, and with an L1 penalty.

    ```
    delta = g - y_i
    d = d + r_i delta                            r_i: the weight of row i
    y_i = g
    w = (1 - lr weight_decay) w - lr ((c - 1) r_i / m delta + d / m)
    w = sign(w) max(|w| - lr l1, 0)
    ```

    `c` is the number of rows seen so far, `m` the sum of their weights. The mean of a step over all
    rows, drawn uniformly, is the full gradient's. It converges with a constant `lr` of 1/(3 L), L
    as for `SAG`. Rows in a fixed cyclic order are bad for it: `next_row()` draws them.

    Args:
        l1: the factor of the sum of magnitudes in the objective, at least 0, default 0.
        rows, weight_decay, table, row_weights, order, seed: see `SAG`.

    Raises:
        MemoryError: a table that does not fit into memory.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> targets = np.array([[1.0, 0.0], [2.0, 0.3], [6.0, 0.0]])
        >>> w = np.zeros(2)
        >>> opt = gs.SAGA(w, lr=0.3, rows=3, l1=0.2)
        >>> for _ in range(200):
        ...     i = opt.next_row()
        ...     opt.step(w - targets[i], row=i)
        >>> w.round(6)
        array([2.8, 0. ])

    References:
        Defazio, Bach and Lacoste-Julien, SAGA: a fast incremental gradient method with support for
        non-strongly convex composite objectives, 2014.
    """

    rules = ("saga", "saga_l1")

    l1 = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate,
        rows: int,
        *,
        l1: float = 0.0,
        weight_decay: float = 0.0,
        table: Arrays | None = None,
        row_weights: ArrayLike | None = None,
        order: str = "random",
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "saga" if check.number("l1", l1) == 0 else "saga_l1",
            lr=lr,
            hyper={"l1": l1},
            weight_decay=weight_decay,
            rows=rows,
            table=table,
            row_weights=row_weights,
            order=order,
            seed=seed,
            **options,
        )
