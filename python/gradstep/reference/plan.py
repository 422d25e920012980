"""The oracle behind an optimizer class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .steps import step, stored_step
from .storage import joined, split
from .sums import _finite, block_sums, clip_factors, coalesce, grad_norm, sum_rows

Array = NDArray[Any]
Class = TypeVar("Class")


class Plan:
    """The oracle behind an optimizer class: what `_core.Plan` does, in NumPy."""

    def __init__(
        self,
        rule: str,
        params: Sequence[Array],
        states: Sequence[Sequence[Array]],
        nouns: Sequence[str],
        suffixes: Sequence[str],
        skip_nonfinite: bool = False,
        flush_denormals: bool = False,
        refuse_nonfinite: bool = False,
        seen: Array | None = None,
        row_weights: Array | None = None,
        by_rows: bool = False,
        copies: Sequence[Array] | None = None,
        low_bits: Sequence[Array] | None = None,
    ) -> None:
        self.copies, self.low_bits = copies, low_bits
        if flush_denormals:
            raise ValueError("flush_denormals=True is not possible in NumPy")
        self.rule, self.params, self.states, self.t = rule, params, states, 0
        self.skip_nonfinite, self.refuse_nonfinite = skip_nonfinite, refuse_nonfinite
        self.seen, self.row_weights, self.by_rows = seen, row_weights, by_rows
        spec = next(r for r in _core.rules() if r.name == rule)
        self.hyper_names, self.state_names = spec.hyperparameters, spec.states
        self.has_rows = spec.row_state is not None
        self.set_rounding(stochastic=False, seed=0)

    def check(self) -> None:
        """Nothing: NumPy checks for itself, and this is no place to look for errors."""

    acquire = release = check

    def check_apart(self, array: Array, name: str) -> None:
        """Nothing, as above."""

    def check_grads(self, grads: Sequence[Any], zero_grad: bool = False) -> Sequence[Array]:
        scalar = np.generic  # what arithmetic on 0-d arrays gives
        return [np.asarray(g) if isinstance(g, scalar) else _core.view(g, "grads") for g in grads]

    check_second_grads = check_grads

    def check_treatment(self, treatment: tuple[float, float | None, float | None, bool]) -> None:
        """Nothing, as above."""

    def block_sums(self, grads: Sequence[Any], grad_scale: float, unit: float) -> Array:
        with np.errstate(all="ignore"):
            sums = [block_sums(g, grad_scale, unit) for g in self.check_grads(grads)]
            return np.concatenate(sums)

    def _sum_again(self, seen: Array) -> None:
        d, y = (self.states[self.state_names.index(name)] for name in ("d", "y"))
        for total, table in zip(d, y, strict=True):
            total[...] = sum_rows(table, seen, self.row_weights)

    def set_rounding(self, stochastic: bool, seed: int, array: int = 0, first: int = 0) -> None:
        self.rounding = {"stochastic": stochastic, "seed": seed, "array": array, "first": first}

    def forget(self, row: int) -> bool:
        if self.seen is None or not self.seen[row]:
            return False
        self.seen[row] = False
        self._sum_again(self.seen)
        return True

    def step(
        self,
        grads: Sequence[Any],
        treatment: tuple[float, float | None, float | None, bool] | None = None,
        scalars: tuple[int, Sequence[float], float, bool, int] | None = None,
        second_grads: Sequence[Array] | None = None,
        acquired: bool = False,
        norm: float | None = None,
    ) -> tuple[float, bool, bool] | None:
        if scalars is not None:
            _, hyper, weight_decay, maximize, self.row = scalars
            self.options: dict[str, Any] = dict(zip(self.hyper_names, hyper, strict=True))
            self.options.update(weight_decay=weight_decay, maximize=maximize)
        if self.by_rows:
            pairs = [self.check_grads(pair) for pair in grads]
            given = [rows for _, rows in pairs]
            touched, grads = zip(*(coalesce(*pair) for pair in pairs), strict=True)
        else:
            grads = self.check_grads(grads)
            given = list(grads)
        second_grads = None if second_grads is None else self.check_second_grads(second_grads)
        grad_scale, clip_norm, clip_value, zero_grad = treatment or (1.0, None, None, False)
        report, clip = None, 1.0
        asked = clip_norm is not None or self.skip_nonfinite
        if asked or self.refuse_nonfinite:
            if norm is None:
                wide = [g if g.itemsize > 2 else g.astype(np.float32) for g in grads]
                norm = grad_norm(
                    [g for rows in wide for g in rows] if self.by_rows else wide, grad_scale
                )
            usable = math.isfinite(norm) if clip_norm is not None else _finite(grads, grad_scale)
            if not usable and not self.skip_nonfinite:
                raise ValueError("the gradients hold NaN or infinity, or have no norm to clip")
            if usable and asked and second_grads is not None:
                usable = _finite(second_grads, grad_scale)
            clipped = usable and clip_norm is not None and norm > clip_norm
            report = (norm, clipped, not usable) if asked else None
            if not usable:
                return report
            if clip_norm is not None and clipped:
                grad_scale, clip = clip_factors(grad_scale, clip_norm, norm)
        self.t += 1
        fresh = self.seen is not None and not self.seen[self.row]
        for i, (w, g) in enumerate(zip(self.params, grads, strict=True)):
            states = []
            for kind in self.states[: len(self.state_names)]:
                state = (kind or second_grads)[i]  # type: ignore[index]
                if state.ndim > w.ndim and self.has_rows:  # this step's is a view
                    state = state[self.row, ...]
                    if fresh:
                        state.fill(0)
                states.append(state)
            high = w
            if self.low_bits is not None:
                w = joined(high, self.low_bits[i])
            whole = [w, *states]
            if self.by_rows:
                w, *states = parts = [array[touched[i]] for array in whole]
            narrow = len({array.dtype for array in (w, g, *states)}) > 1 or w.itemsize < 4
            place = {"array": self.rounding["array"] + i}
            held: dict[str, Any] = {**self.rounding, **place} if narrow else {}
            (stored_step if narrow else step)(
                self.rule,
                w,
                g,
                states,
                t=self.t,
                grad_scale=grad_scale,
                clip=clip,
                clip_value=math.inf if clip_value is None else clip_value,
                **held,
                **self.options,
            )
            if self.by_rows:
                for array, part in zip(whole, parts, strict=True):
                    array[touched[i]] = part
            if self.copies is not None:
                with np.errstate(over="ignore"):
                    self.copies[i][...] = w
            if self.low_bits is not None:
                high.view(np.uint16)[...], self.low_bits[i][...] = split(w)
            if zero_grad:
                given[i].fill(0)
        if self.seen is not None:
            self.seen[self.row] = True
            if self.t % self.seen.size == 0:
                self._sum_again(self.seen)
        return report


def in_numpy(cls: type[Class]) -> type[Class]:
    """An optimizer class with the same arguments and results, whose steps are NumPy's.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.ones(2)
        >>> gs.reference.in_numpy(gs.Adam)(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(6)
        array([0.9, 0.9])
    """
    return type(f"NumPy{cls.__name__}", (cls,), {"_plan_class": Plan})
