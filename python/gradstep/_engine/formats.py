"""Number formats: which ones arrays and states may have, and conversions between them.

A state in 8 bits is stored in blocks: a shared exponent and one byte per number, with a sign
("int8") or, where it is never negative, without one ("uint8"). All conversions are those of the
kernels and round to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core

Array = NDArray[Any]

#: The formats of parameters and gradients, and those of states.
FLOATS = ("float64", "float32", "bfloat16", "float16")
STATES = (*FLOATS, "int8")
#: The dtypes of arrays that consist of blocks.
IN_BLOCKS = ("int8", "uint8")
#: Arrays of fewer elements have float32 states instead of 8-bit ones.
LEAST_IN_8_BITS = 4096
#: Numbers in a block of 8 bits, and in a block of the sums of which a norm consists.
STATE_BLOCK, NORM_BLOCK = _core.STATE_BLOCK, _core.NORM_BLOCK
#: States that belong to no rule: float32 master weights, and the bits that bfloat16 lacks of them.
MASTER, LOW_BITS = "master", "low_bits"
EXTRA_STATES: Mapping[str, np.dtype[Any]] = {
    MASTER: np.dtype(np.float32),
    LOW_BITS: np.dtype(np.uint16),
}


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether steps take arrays of this dtype."""
    return dtype.isnative and dtype.name in FLOATS


def is_in_blocks(array: Array) -> bool:
    """Whether a state is stored in 8 bits."""
    return array.dtype.name in IN_BLOCKS


def state_format(state_dtype: str | None, dtype: str, size: int, never_negative: bool) -> str:
    """The dtype of a state.

    Args:
        state_dtype: the option of that name; None for the dtype of the parameter.
        dtype: that of the parameter.
        size: its elements.
        never_negative: whether the state is.
    """
    if state_dtype != "int8":
        return state_dtype or dtype
    if size < LEAST_IN_8_BITS:
        return "float32"
    return "uint8" if never_negative else "int8"


def blocks_shape(size: int) -> tuple[int, int]:
    """The shape of an array with this many numbers in blocks."""
    return -(-size // STATE_BLOCK), 1 + STATE_BLOCK


def to_blocks(numbers: Array, dtype: np.dtype[Any]) -> Array:
    """float32 numbers in 8 bits, int8 or uint8."""
    blocks = np.empty(blocks_shape(numbers.size), dtype)
    _core.to_blocks(np.ascontiguousarray(numbers), blocks)
    return blocks


def from_blocks(blocks: Array, size: int) -> Array:
    """The float32 numbers that blocks contain; `size` is how many."""
    numbers = np.empty(size, np.float32)
    _core.from_blocks(np.ascontiguousarray(blocks), numbers)
    return numbers


def fill_blocks(blocks: Array, number: float, size: int) -> None:
    """Make all numbers in 8 bits the same."""
    numbers = np.full(STATE_BLOCK, number, np.float32)
    blocks[...] = to_blocks(numbers, blocks.dtype)
    blocks[-1:] = to_blocks(numbers[: size - (len(blocks) - 1) * STATE_BLOCK], blocks.dtype)


def decoded(state: Array, param: Array) -> Array:
    """The numbers of a state in the shape of its parameter: the state itself, unless in blocks."""
    return from_blocks(state, param.size).reshape(param.shape) if is_in_blocks(state) else state


def split(numbers: Array) -> tuple[Array, Array]:
    """float32 numbers as the bits of the nearest bfloat16, and the bits that it lacks."""
    high, low = np.empty(numbers.shape, np.uint16), np.empty(numbers.shape, np.uint16)
    _core.split(np.ascontiguousarray(numbers), high, low)
    return high, low


def join(high: Array, low: Array) -> Array:
    """The float32 numbers that `split` made two parts of."""
    numbers = np.empty(high.shape, np.float32)
    _core.join(np.ascontiguousarray(high).view(np.uint16), np.ascontiguousarray(low), numbers)
    return numbers
