"""Mini-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._engine import checks as check

Array = NDArray[Any]
Seed = int | np.random.Generator | None
#: NumPy takes seeds of any size and advises 128 bits.
MAX_SEED = 2**256


class batches:  # noqa: N801 - called like a function, as `range` is
    """The rows of some arrays in batches: each time it is iterated, one epoch.

    `batch_size="full"` is gradient descent, 1 stochastic and anything between mini-batch gradient
    descent. Each epoch has a permutation of its own, and yields each row once.

    Args:
        arrays: one or more, with the same number of rows (the first axis). They are not copied;
            a `np.memmap` is read batch by batch.
        batch_size: rows in a batch, at least 1, default 32; the last batch holds what is left, so
            one larger than the data gives a single batch. Or "full": the arrays themselves,
            neither copied nor shuffled.
        shuffle: default True. Without it, batches are views of the arrays.
        seed: where the permutations start: a whole number, or a `np.random.Generator`, which goes
            on from where it is; None (default) for another start in every run.
        drop_last: leave out a last batch that is shorter. Default False.

    Yields:
        A tuple with the rows of each array; of one array too, so that `f(*batch)` always works.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: no arrays, no rows, arrays of different lengths, a `batch_size` out of its
            range, or `drop_last` where there is no whole batch.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> x, y = np.arange(10).reshape(5, 2), np.arange(5)
        >>> epoch = gs.batches(x, y, batch_size=2, seed=0)
        >>> len(epoch)
        3
        >>> [rows.tolist() for _, rows in epoch]
        [[2, 4], [3, 0], [1]]
        >>> [rows.tolist() for _, rows in epoch]
        [[4, 1], [2, 0], [3]]

    References:
        Bottou, Curiously fast convergence of some stochastic gradient descent algorithms, 2009.
    """

    def __init__(
        self,
        *arrays: Array,
        batch_size: int | Literal["full"] = 32,
        shuffle: bool = True,
        seed: Seed = None,
        drop_last: bool = False,
    ) -> None:
        self._arrays = arrays
        self._rows = _common_length(arrays)
        self._size = _batch_size(batch_size)
        self._shuffle = check.flag("shuffle", shuffle)
        self._rng = _generator(seed)
        self._drop_last = check.flag("drop_last", drop_last)
        self._part, self._parts = 0, 1  # which part of each batch is read
        if len(self) == 0:
            raise ValueError(
                f"drop_last=True leaves nothing of {self._rows} rows, batch_size is {self._size}"
            )

    def _part_of(self, part: int, parts: int) -> batches:
        """The same batches, of which only one of several equal parts is read."""
        self._part, self._parts = part, parts
        return self

    def __len__(self) -> int:
        """Batches per epoch."""
        if self._size is None:
            return 1
        whole, rest = divmod(self._rows, self._size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        if self._size is None and self._parts == 1:
            yield self._arrays
            return
        shuffles = self._shuffle and self._size is not None
        order = self._rng.permutation(self._rows) if shuffles else None
        size = self._rows if self._size is None else self._size
        for i in range(len(self)):
            rows = part_of(i * size, min((i + 1) * size, self._rows), self._part, self._parts)
            index = rows if order is None else order[rows]
            yield tuple([array[index] for array in self._arrays])


def part_of(begin: int, end: int, part: int, parts: int) -> slice:
    """A part of some rows. The parts differ by one row at most."""
    return slice(*(begin + (end - begin) * i // parts for i in (part, part + 1)))


def _common_length(arrays: Sequence[Array], name: str = "arrays") -> int:
    if not arrays:
        raise ValueError(f"{name} must hold at least one array, got none")
    for i, array in enumerate(arrays):
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"{name}[{i}] must be a NumPy array, got {type(array).__name__}: "
                "convert it, np.asarray(x)"
            )
        if array.ndim == 0:
            raise ValueError(f"{name}[{i}] must have rows, got the shape ()")
        if len(array) != len(arrays[0]):
            raise ValueError(
                f"{name}[{i}] must have the {len(arrays[0])} rows of {name}[0], got {len(array)}"
            )
    if len(arrays[0]) == 0:
        raise ValueError(f"{name} must have at least one row, got 0")
    return len(arrays[0])


def _batch_size(value: int | str) -> int | None:
    """The rows in a batch, None for all."""
    if not isinstance(value, str):
        return check.integer("batch_size", value, 1)
    if value != "full":
        raise ValueError(f'batch_size must be a whole number or "full", got {value!r}')
    return None


def _generator(seed: Seed) -> np.random.Generator:
    known = seed is None or isinstance(seed, np.random.Generator)
    return np.random.default_rng(seed if known else check.integer("seed", seed, 0, MAX_SEED))
