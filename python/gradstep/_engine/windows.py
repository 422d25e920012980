"""States on disk, and steps over vectors that are larger than memory.

A step goes over the arrays window by window. Another thread reads the next one meanwhile, and the
system is told which is done, so that it writes behind and takes the memory back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..reference.storage import STATE_BLOCK, TOP, from_blocks
from ..reference.sums import BLOCK
from .paging import _interrupts_held, _read, _reading, _releasing

Array = NDArray[Any]
Treatment = tuple[float, float | None, float | None, bool]
Scalars = tuple[int, Sequence[float], float, bool, int]
#: Elements of each array that are in memory together, whole blocks of the norm.
WINDOW = 512 * BLOCK


def checked_directory(path: str | os.PathLike[str]) -> Path:
    """A directory that is there."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"state_dir must be a path, got {path!r}")
    directory = Path(path)
    if not directory.is_dir():
        raise NotADirectoryError(f"state_dir must be a directory, got {os.fspath(path)!r}")
    return directory


def zeros(
    directory: Path,
    names: Sequence[str],
    shapes: Sequence[Sequence[tuple[int, ...]]],
    dtypes: Sequence[Sequence[np.dtype[Any]]],
) -> list[list[Array]]:
    """Zeros in new files of a directory: `m_0.npy` is the state m beside the first parameter.

    Args:
        directory: where the files will be.
        names: of the kinds of states.
        shapes: for each kind of state, the shape beside each parameter.
        dtypes: and the dtype there.

    Raises:
        OSError: a file is there already, or has no room. None is left then.
    """
    made: list[Path] = []
    try:
        return [
            [
                _zeros_in(directory / f"{name}_{i}.npy", shape, dtype, made)
                for i, (shape, dtype) in enumerate(zip(*kind, strict=True))
            ]
            for name, *kind in zip(names, shapes, dtypes, strict=True)
        ]
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def remove(states: Mapping[str, Sequence[Array]]) -> None:
    """Remove the files of states that are not to be."""
    for array in (array for arrays in states.values() for array in arrays):
        Path(array.filename).unlink(missing_ok=True)  # type: ignore[attr-defined]


def _zeros_in(path: Path, shape: tuple[int, ...], dtype: Any, made: list[Path]) -> Array:
    if path.exists():
        raise FileExistsError(f"state_dir holds {path.name} already: {os.fspath(path)!r}")
    made.append(path)
    array: Array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # Where the disk is full, writing to the memory of a file would end the process.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def windows(array: Array, beside: Array) -> Iterator[tuple[Array, Array]]:
    """A parameter and a state of it, in parts that are in memory together."""
    vector, other = array.reshape(-1), _vector(beside)
    for begin in range(0, vector.size, WINDOW):
        part = vector[begin : begin + WINDOW]
        held = _part(other, slice(begin, begin + part.size))
        yield part, from_blocks(held, part.size) if held.dtype.name in TOP else held


def _vector(array: Array) -> Array:
    """The elements of an array in a row, or of blocks these."""
    return array if array.dtype.name in TOP else array.reshape(-1)


def _part(vector: Array, window: slice) -> Array:
    """What a vector has of some elements; a window begins where a block does."""
    if vector.dtype.name in TOP:
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
        make: Callable[..., _core.Plan],
        rule: str,
        params: Sequence[Array],
        states: Sequence[Sequence[Array]],
        nouns: Sequence[str],
        suffixes: Sequence[str],
        **options: Any,
    ) -> None:
        self._whole = make(rule, params, states, nouns, suffixes, **options)
        self.check, self.check_apart = self._whole.check, self._whole.check_apart
        self.acquire, self.release = self._whole.acquire, self._whole.release
        self.check_grads, self.check_treatment = (
            self._whole.check_grads,
            self._whole.check_treatment,
        )
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
        treatment: Treatment | None = None,
        scalars: Scalars | None = None,
        second_grads: None = None,
        acquired: bool = False,
        norm: float | None = None,
    ) -> tuple[float, bool, bool] | None:
        """As `_core.Plan.step`. Ctrl-C waits until all windows are done."""
        treatment = treatment or (1.0, None, None, False)
        grad_scale, clip_norm, _, zero_grad = treatment
        self.acquire()
        try:
            self.check_treatment(treatment)
            given = self.check_grads(grads, zero_grad)
            self.check()
            vectors = [_core.view(g, "grads").reshape(-1) for g in given]
            asked = clip_norm is not None or self._skips
            if asked and norm is None:
                norm, finite = self._norm(vectors, grad_scale)
                usable = finite if clip_norm is None else np.isfinite(norm)
                if not usable and self._skips:
                    return norm, False, True
                if not usable:
                    self._whole.step(given, treatment, scalars, acquired=True)  # which says why
            if scalars is not None:
                self._scalars = scalars
            assert self._scalars is not None
            t = self.t
            now = (t if scalars is None else scalars[0], *self._scalars[1:])
            report = None
            with _interrupts_held(), closing(self._sweep(vectors, with_states=True)) as windows:
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

    def _sweep(
        self, grads: Sequence[Array], with_states: bool
    ) -> Generator[tuple[_core.Plan, Array]]:
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
