"""The rules for sums of finitely many rows, which keep gradients: SAG and its family.

A row is a sample or a mini-batch. The methods with a table keep one gradient per row, `y`, and
their sum, `d`; SVRG keeps the gradient of all rows at a snapshot of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _checks as check
from . import _core, _memory
from .optimizers import Array, Arrays, LearningRate, Optimizer, StepResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .optimizers import Options, StepOptions

__all__ = ["SAG", "SAGA", "SVRG", "WindowSAG"]

#: The orders in which `next_row` goes through the rows.
ORDERS = ("random", "permutation")


class _TableMethod(Optimizer):
    """What the rules with a table of gradients share.

    Every so many steps as there are rows, `d` is summed again from the table, or the rounding
    errors of all steps would stay in it.
    """

    #: The argument that says how many rows there are.
    _size_name: ClassVar[str] = "rows"

    def __init__(
        self, params: Arrays, rule: str, *, rows: int, table: Arrays | None, **others: Any
    ) -> None:
        self._rows, self._table = rows, table
        super().__init__(params, rule, **others)
        del self._table

    def _new_states(self) -> dict[str, list[Array]]:
        if self._table is None:
            self._check_room()
            states = self._zeros(self._rule.states, self._rows)
        else:
            states = {**self._zeros(["d"]), "y": self._checked_table()}
        self._seen = np.zeros(self._rows, np.bool_)
        return states

    def _check_room(self) -> None:
        """Raise unless a new table fits into memory."""
        size = sum(param.nbytes for param in self._params)
        needed, free = self._rows * size, _memory.available_bytes()
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

    def _noun(self, state: str) -> str:
        return "table" if state == "y" and self._table is not None else super()._noun(state)

    def _plan_options(self) -> dict[str, Any]:
        return {"refuse_nonfinite": True, "seen": self._seen}

    def _sizes(self) -> dict[str, int | None]:
        return {self._size_name: self._rows}


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
        scalars = self._scalars(t, t % self._rows, seen=min(t + 1, self._rows))
        return self._step(grads, scalars, **options)

    def _plan_options(self) -> dict[str, Any]:
        return {} if self._rows == 1 else super()._plan_options()

    def _restored(self) -> None:
        self._seen[...] = np.arange(self._rows) < self.t


class _RowMethod(_TableMethod):
    """What the rules share whose steps name the row of their gradient."""

    step_needs = "the row of each gradient"

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
        super().__init__(params, rule, rows=rows, settings=settings, **others)
        self._check_counters(self._counters())
        #: The steps so far and, after them, the number of rows seen and the sum of their weights,
        #: which is exact: what is forgotten leaves no trace.
        self._tally: tuple[int, int, int | Fraction] = (-1, 0, 0)
        self._epoch: tuple[Any, ...] = ()

    def step(  # type: ignore[override]
        self, grads: Arrays, row: int, **options: Unpack[StepOptions]
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
        row, t = self._checked_row(row), self.t
        count, total = self._tallied(t)
        weight = self._weight(row)
        if not self._seen[row]:
            count, total = count + 1, total + weight
        scalars = self._scalars(
            t, row, row_weight=float(weight), weight_seen=float(total), rows_seen=float(count)
        )
        result = self._step(grads, scalars, **options)
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


class SVRG(Optimizer):
    r"""Stochastic variance-reduced gradient: each gradient is corrected by one at a snapshot.

    ```
    w = (1 - lr weight_decay) w - lr (g_i(w) - g_i(v) + mu)
    ```

    `v` is the snapshot, a copy of the parameters, and `mu` the gradient of the mean over all rows
    at it. It keeps no table: three arrays in the place of a parameter's one, and two gradients per
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
        super().__init__(params, "svrg", lr=lr, weight_decay=weight_decay, **options)

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
        t, taken = self.t, int(self._snapshot_t)
        second = self._structure.arrays(snapshot_grads, "snapshot_grads")
        if self._every is None or 0 <= taken <= t < taken + self._every:
            if taken < 0:
                raise RuntimeError("there is no snapshot: call take_snapshot(), or give every=")
            return self._step(grads, self._scalars(t), second, **options)
        first = self._structure.arrays(grads, "grads")
        self._plan.check_grads(first)
        self._plan.check_second_grads(second)
        old_snapshot, old_mu = (
            [array.copy() for array in self._states[name]] for name in ("snapshot", "mu")
        )
        self.take_snapshot()
        result = None
        try:
            result = self._step(grads, self._scalars(t), first, **options)
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

    def _new_states(self) -> dict[str, list[Array]]:
        states = self._zeros(["mu", "snapshot"])
        for target, param in zip(states["snapshot"], self._params, strict=True):
            np.copyto(target, param)
        return states

    def _noun(self, state: str) -> str:
        return "snapshot_grads" if state == "snapshot_grad" else super()._noun(state)

    def _counters(self) -> dict[str, Array]:
        return {"snapshot_t": self._snapshot_t}

    def _check_counters(self, counters: Mapping[str, Array]) -> None:
        check.integer("counter snapshot_t", int(counters["snapshot_t"]), -1)

    def _sizes(self) -> dict[str, int | None]:
        return {"every": self._every}
