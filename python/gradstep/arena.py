"""Many arrays in one vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._engine import checks as check
from ._engine.formats import FLOATS, is_float
from ._engine.memory import ALIAS, STAGGER, zeros_at
from ._engine.structure import Structure

Array = NDArray[Any]


class Arena:
    """One vector and the arrays that it consists of; made by `flatten`.

    A copy, or what is read from a pickle, is an arena of its own with the same numbers.
    """

    def __init__(
        self,
        structure: Structure,
        shapes: list[tuple[int, ...]],
        dtype: Any,
        address: int = 0,
        multiple: int = 1,
    ) -> None:
        """Zeros.

        Args:
            address: where they begin, modulo a page.
            multiple: of so many elements the memory is one; what is too much is in no array.
        """
        self._structure, self._shapes = structure, shapes
        sizes = [math.prod(shape) for shape in shapes]
        size = sum(sizes)
        self._padded = zeros_at((size + -size % multiple,), dtype, address, ALIAS)
        self._flat = self._padded[:size]
        parts = np.split(self._flat, np.cumsum(sizes)[:-1])
        self._arrays = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def flat(self) -> Array:
        """The vector: contiguous, and at a cache line."""
        return self._flat

    @property
    def views(self) -> Any:
        """The arrays, in the structure that was given to `flatten`. They are parts of `flat`."""
        return self._structure.build(self._arrays)

    def zeros_like(self) -> Arena:
        """Another arena of the same layout, filled with 0: for gradients."""
        beside = self._flat.ctypes.data + STAGGER // 2  # and beside the states
        return Arena(self._structure, self._shapes, self._flat.dtype, beside)

    def __repr__(self) -> str:
        return f"<Arena of {self._flat.size} {self._flat.dtype} in {len(self._shapes)} arrays>"

    def __reduce__(self) -> tuple[Any, ...]:
        return flatten, (self.views,)


def flatten(arrays: Any) -> Arena:
    """Copy arrays into one contiguous vector, which an optimizer sweeps without a gap.

    Train on `flat` and compute with `views`, which share its memory. For the gradients,
    `zeros_like()` gives a second arena: write them into its `views` and step with its `flat`.

    Args:
        arrays: an array of any library, or a flat list, tuple or dict of arrays of one dtype. They
            are copied, once, and stay as they are.

    Returns:
        An `Arena` with `flat`, `views` and `zeros_like()`.

    Raises:
        TypeError: not arrays, arrays of more than one dtype, or of one that no rule takes.
        ValueError: no arrays, or one array twice.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> params = gs.flatten({"weight": np.ones((2, 2)), "bias": np.zeros(2)})
        >>> grads = params.zeros_like()
        >>> grads.views["bias"][...] = 1.0
        >>> gs.SGD(params.flat, lr=0.5).step(grads.flat)
        >>> params.flat
        array([ 1. ,  1. ,  1. ,  1. , -0.5, -0.5])
        >>> params.views["bias"]
        array([-0.5, -0.5])
    """
    return arena_of(arrays, "arrays")


def arena_of(arrays: Any, noun: str) -> Arena:
    """What `flatten` does; messages call the arrays by the noun."""
    structure = Structure(arrays, noun)
    given, leaves = structure.arrays(arrays, noun), structure.views(arrays, noun)
    for i, (suffix, leaf) in enumerate(zip(structure.suffixes, leaves, strict=True)):
        check.array(f"{noun}{suffix}", leaf)
        if not is_float(leaf.dtype):
            raise TypeError(f"{noun}{suffix} must have dtype {', '.join(FLOATS)}, got {leaf.dtype}")
        if any(given[i] is other for other in given[:i]):
            raise ValueError(f"{noun}{suffix} is there twice, and an arena would part the two")
        if leaf.dtype != leaves[0].dtype:
            raise TypeError(
                f"{noun}{suffix} is {leaf.dtype}, the first is {leaves[0].dtype}: "
                "an arena has one dtype"
            )
    arena = Arena(structure, [leaf.shape for leaf in leaves], leaves[0].dtype)
    for view, leaf in zip(arena._arrays, leaves, strict=True):
        view[...] = leaf
    return arena
