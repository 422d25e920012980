"""States on disk, and steps over vectors that are larger than memory.

A step goes over the arrays window by window. Another thread reads the next one meanwhile, and the
system is told which is done, so that it writes behind and takes the memory back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .formats import NORM_BLOCK, STATE_BLOCK, from_blocks, is_in_blocks
from .paging import _interrupts_deferred, _read, _reading, _releasing
from .plan import AnyScalars, AnyTransform, GradTransform, MakePlan, Plan, Scalars

Array = NDArray[Any]
#: Elements of each array that are in memory together, whole blocks of the norm.
WINDOW = 512 * NORM_BLOCK


def windows(array: Array, beside: Array) -> Iterator[tuple[Array, Array]]:
    """A parameter and a state of it, in parts that are in memory together."""
    vector, other = array.reshape(-1), _vector(beside)
    for begin in range(0, vector.size, WINDOW):
        part = vector[begin : begin + WINDOW]
        stored = _part(other, slice(begin, begin + part.size))
        yield part, from_blocks(stored, part.size) if is_in_blocks(stored) else stored


def _vector(array: Array) -> Array:
    """The elements of an array in a row, or of blocks these."""
    return array if is_in_blocks(array) else array.reshape(-1)


def _part(vector: Array, window: slice) -> Array:
    """What a vector has of some elements; a window begins where a block does."""
    if is_in_blocks(vector):
        return vector[window.start // STATE_BLOCK : -(-window.stop // STATE_BLOCK)]
    return vector[window]


class WindowedPlan:
    """A plan whose steps go window by window; of rules that work element by element.

    Args:
        make: makes a plan for some arrays, `_core.Plan` or what takes its place.
        others: what it is given.
    """

    def __init__(
        self,
        make: MakePlan,
        rule: str,
        params: Sequence[Array],
        states: Sequence[Sequence[Array]],
        nouns: Sequence[str],
        suffixes: Sequence[str],
        **options: Any,
    ) -> None:
        self._whole = make(rule, params, states, nouns, suffixes, **options)
        whole = self._whole
        self.check, self.check_apart = whole.check, whole.check_apart
        self.check_grads, self.check_second_grads = whole.check_grads, whole.check_second_grads
        self.check_treatment, self.block_sums = whole.check_treatment, whole.block_sums
        self.acquire, self.release, self.forget = whole.acquire, whole.release, whole.forget
        self._skips = options.get("skip_nonfinite", False)
        self._single = all(param.dtype != np.float64 for param in params)
        beside = {name: options.pop(name) for name in ("copies", "low_bits") if name in options}
        #: Of each array its memory, as one vector: the parameter, its states and what is beside.
        kinds = [params, *states, *beside.values()]
        self._vectors = [[_vector(a) for a in arrays] for arrays in zip(*kinds)]  # noqa: B905 - no states
        self._windows = [
            (i, slice(begin, min(begin + WINDOW, param.size)))
            for i, param in enumerate(params)
            for begin in range(0, param.size, WINDOW)
        ]
        self._plans = [
            make(
                rule,
                [self._vectors[i][0][window]],
                [[_part(state, window)] for state in self._vectors[i][1 : 1 + len(states)]],
                nouns,
                [suffixes[i]],
                **options,
                **{name: [_vector(arrays[i])[window]] for name, arrays in beside.items()},
            )
            for i, window in self._windows
        ]
        self._scalars: Scalars | None = None

    def set_rounding(self, stochastic: bool, seed: int, array: int = 0, first: int = 0) -> None:
        for plan, (i, window) in zip(self._plans, self._windows, strict=True):
            place = first if i == 0 else 0
            plan.set_rounding(stochastic, seed, array + i, place + window.start)

    @property
    def t(self) -> int:
        return self._whole.t

    @t.setter
    def t(self, t: int) -> None:
        self._whole.t = t

    def step(
        self,
        grads: Sequence[Any],
        treatment: AnyTransform | None = None,
        scalars: AnyScalars | None = None,
        second_grads: Sequence[Any] | None = None,
        acquired: bool = False,
        norm: float | None = None,
    ) -> tuple[float, bool, bool] | None:
        """As `_core.Plan.step`. Ctrl-C waits until all windows are done."""
        treatment = GradTransform(*treatment) if treatment else GradTransform()
        clip_norm = treatment.clip_norm
        self.acquire()
        try:
            self.check_treatment(treatment)
            given = self.check_grads(grads, treatment.zero_grad)
            self.check()
            vectors = [_core.view(g, "grads").reshape(-1) for g in given]
            asked = clip_norm is not None or self._skips
            if asked and norm is None:
                norm, finite = self._norm(vectors, treatment.grad_scale)
                usable = finite if clip_norm is None else np.isfinite(norm)
                if not usable and self._skips:
                    return norm, False, True
                if not usable:
                    self._whole.step(given, treatment, scalars, acquired=True)  # which says why
            if scalars is not None:
                self._scalars = Scalars(*scalars)
            assert self._scalars is not None
            t = self.t
            now = self._scalars if scalars is not None else self._scalars._replace(t=t)
            report = None
            with _interrupts_deferred(), closing(self._sweep(vectors, with_states=True)) as windows:
                for plan, gradient in windows:
                    plan.t = t
                    report = plan.step([gradient], treatment, now, norm=norm)
                self.t = t + 1
            if asked and report is None:  # there are no elements
                report = (0.0, False, False)
            return report
        finally:
            self.release()

    def _norm(self, vectors: Sequence[Array], scale: float) -> tuple[float, bool]:
        def total(unit: float) -> float:
            with closing(self._sweep(vectors, with_states=False)) as windows:
                sums = [plan.block_sums([part], scale, unit) for plan, part in windows]
            return _core.sum_of_blocks(np.concatenate([np.zeros(0), *sums]))

        return _core.norm_from(total, self._single)

    def _sweep(self, grads: Sequence[Array], with_states: bool) -> Generator[tuple[Plan, Array]]:
        """Each plan, and what of the gradient belongs to it; closed, no thread is left."""
        touched = [
            [grad, *(vectors if with_states else [])]
            for grad, vectors in zip(grads, self._vectors, strict=True)
        ]
        with ExitStack() as stack:
            releases = [[stack.enter_context(_releasing(a)) for a in arrays] for arrays in touched]

            def on_disk(number: int) -> Iterator[tuple[Array, Callable[[Array], None]]]:
                if number in range(len(self._windows)):
                    i, window = self._windows[number]
                    for array, release in zip(touched[i], releases[i], strict=True):
                        if release is not None:
                            yield _part(array, window), release

            def read(number: int) -> None:
                for part, _ in on_disk(number):
                    _read(part)

            def give_back(number: int) -> None:
                for part, release in on_disk(number):
                    release(part)

            read(0)  # here, so that what is wrong with a file is raised before anything has changed
            wanted = stack.enter_context(_reading(read))
            for number, (plan, (i, window)) in enumerate(
                zip(self._plans, self._windows, strict=True)
            ):
                wanted(number + 1)
                yield plan, touched[i][0][window]
                give_back(number)
                give_back(number - 2)  # what could not go before it was written
