"""The states of an optimizer: their shapes and dtypes, and where they are stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from . import state_files
from .formats import (
    EXTRA_STATES,
    blocks_shape,
    decoded,
    fill_blocks,
    from_blocks,
    is_in_blocks,
    state_format,
    to_blocks,
)
from .memory import zeros_beside

Array = NDArray[Any]


class States:
    """Arrays by the name of the state, one for each parameter.

    Args:
        rule: the native rule.
        params: the parameters.
        dtype: the option `state_dtype`.
        default: the dtype without it; None for that of each parameter.
        directory: where the states are files; None for memory.
    """

    def __init__(
        self,
        rule: _core.Rule,
        params: Sequence[Array],
        dtype: np.dtype[Any] | None = None,
        default: np.dtype[Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._rule, self._params = rule, params
        self.dtype, self._default, self.directory = dtype, default, directory
        self.arrays: dict[str, list[Array]] = {}

    def __getitem__(self, name: str) -> list[Array]:
        return self.arrays[name]

    def add(self, names: Sequence[str], rows: int | None = None) -> None:
        """Add states of zeros; the one that has rows, if there is one, with this many."""
        forms = [[self._form(name, param, rows) for param in self._params] for name in names]
        shapes = [[shape for shape, _ in kind] for kind in forms]
        dtypes = [[dtype for _, dtype in kind] for kind in forms]
        if self.directory is None:
            arrays = zeros_beside(self._params, shapes, dtypes)
        else:
            arrays = state_files.zeros(self.directory, names, shapes, dtypes)
        self.arrays |= zip(names, arrays, strict=True)

    def _form(
        self, name: str, param: Array, rows: int | None
    ) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The shape and dtype of a state of a parameter."""
        if name not in self._rule.states:
            return param.shape, EXTRA_STATES.get(name, param.dtype)
        default = self._default or param.dtype
        stored = state_format(
            self.dtype and self.dtype.name,
            default.name,
            param.size,
            name in self._rule.never_negative,
        )
        known = {dtype.name: dtype for dtype in (default, self.dtype) if dtype is not None}
        dtype = known.get(stored) or np.dtype(stored)
        if stored in ("int8", "uint8"):
            return blocks_shape(param.size), dtype
        leading = (rows,) if rows is not None and name == self._rule.row_state else ()
        return (*leading, *self._rule.state_shape(name, param.shape)), dtype

    def fill(self, name: str, start: float, argument: str) -> None:
        """Fill a state with the number that an argument gave."""
        with self.removed_on_error():
            for array, param in zip(self.arrays[name], self._params, strict=True):
                self._fill(array, param, start, argument)

    def _fill(self, array: Array, param: Array, start: float, argument: str) -> None:
        in_blocks = is_in_blocks(array)
        with np.errstate(all="ignore"):
            number = np.array([start]).astype(np.float32 if in_blocks else array.dtype)
        if in_blocks:
            number = from_blocks(to_blocks(number, array.dtype), 1)
        if float(number[0]) == np.inf:
            raise ValueError(f"{argument} is {start}, which {array.dtype} cannot hold")
        if start == 0:  # zeros are not touched before the first step
            return
        if in_blocks:
            fill_blocks(array, start, param.size)
        else:
            array.fill(start)

    def numbers(self, name: str) -> Iterator[Array]:
        """The numbers of a state in the shape of each parameter: the arrays, unless in blocks."""
        for array, param in zip(self.arrays[name], self._params, strict=True):
            yield decoded(array, param)

    @contextlib.contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Remove the files of the states if an error is raised."""
        try:
            yield
        except BaseException:
            if self.directory is not None:
                state_files.remove(self.arrays)
            raise
