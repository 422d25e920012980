"""16 and 8 bits: how numbers become them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: What each buffer, the parameter and then the states, multiplies the random bits by.
BUFFER_SALT = (0x85EBCA6B, 1, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1)


def _mixed(x: int, y: int) -> int:
    """64 bits of two numbers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), twice."""
    for added in 0, 0x9E3779B97F4A7C15 * (y + 1):
        x = (x + added) % 2**64
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 % 2**64
        x ^= x >> 27
        x = x * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
    return x


def random_bits(
    seed: int, t: int, array: int, buffer: int, size: int, first: int = 0, bits: int = 16
) -> Array:
    """Random bits for each element of a buffer, in one step: two elements share 32 bits.

    `first` is the place of the first element in its array, an even number.
    """
    pair = np.uint64(first // 2) + np.arange(-(-size // 2), dtype=np.uint64)
    upper = pair >> 32
    keys = {int(u): _mixed(_mixed(_mixed(seed, t), array), int(u)) for u in np.unique(upper)}
    key = np.array([keys[u] for u in upper.tolist()], np.uint64)
    x = ((key & 0xFFFFFFFF) + pair * 0x9E3779B1).astype(np.uint32)
    x ^= x >> 16
    x ^= (key >> 32).astype(np.uint32)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(BUFFER_SALT[buffer])
    return np.stack([x & (2**bits - 1), x >> (32 - bits)], axis=1).ravel()[:size]


def rounded(x: Array, dtype: np.dtype[Any], random_bits: Array | None = None) -> Array:
    """The numbers in another dtype: rounded to nearest, or stochastically by 16 random bits.

    Stochastic rounding is for float32 that become bfloat16 or float16. A number at the fraction `s`
    of the way to its neighbour farther from 0 goes there where `random_bits + s 2**16 >= 2**16`.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import rounded
        >>> x = np.full(4, 1 + 2.0**-12, np.float32)  # a quarter of the way to the next float16
        >>> rounded(x, np.dtype(np.float16), np.array([0, 2**14, 3 * 2**14, 2**16 - 1])).tolist()
        [1.0, 1.0, 1.0009765625, 1.0009765625]
    """
    with np.errstate(all="ignore"):
        if random_bits is None or dtype.itemsize > 2:
            return x.astype(dtype)
        bits = x.view(np.uint32)
        size, sign = bits & 0x7FFFFFFF, bits >> 31 << 15
        random_bits = random_bits.reshape(x.shape).astype(np.uint32)
        if dtype.name == "bfloat16":
            halves = (size + random_bits) >> 16
        else:
            # Denormals of float16 are multiples of 2^-24, 16 bits above the unit here.
            small = np.where(size < 113 << 23, np.abs(x), np.float32(0)) * np.float32(2.0**40)
            denormal = (small.astype(np.uint32) + random_bits) >> 16
            normal = (np.minimum(size + (random_bits >> 3), 143 << 23) - (112 << 23)) >> 13
            halves = np.where(size < 113 << 23, denormal, normal)
        return np.where(np.isnan(x), np.full_like(x, np.nan).astype(dtype),
                        (sign | halves).astype(np.uint16).view(dtype))  # fmt: skip


#: Of states in 8 bits so many share an exponent, a byte in front of them. Word i of a block has the
#: numbers i of its four quarters.
STATE_BLOCK = 256
QUARTER = STATE_BLOCK // 4
#: A number of them is a power of two, from 0 to `TOP`, with 3 bits of mantissa; int8 has a sign.
TOP = {"int8": 15, "uint8": 31}
#: The last of their codes, without the sign.
LAST_CODE = {name: 8 * top + 7 for name, top in TOP.items()}
#: The least exponent of a block, biased as float32's: no number is denormal then.
LEAST_EXPONENT = 37


def blocks_shape(size: int) -> tuple[int, int]:
    """The shape of so many numbers in 8 bits."""
    return -(-size // STATE_BLOCK), 1 + STATE_BLOCK


def to_blocks(x: Array, dtype: np.dtype[Any], random_bits: Array | None = None) -> Array:
    """float32 numbers in 8 bits: int8, or uint8 where they are never negative.

    ```
    x = sign (2^p (1 + k / 8) - 1) 2^(E + 1 - TOP)      0 <= p <= TOP, 0 <= k < 8
    ```

    `E` is odd, and the least with which all numbers of the block are below `2^(E + 1)`. In uint8 a
    number that is not 0 does not become 0, because roots of such states are divided by. NaN and
    infinity are the two last codes, of blocks whose first byte is odd.

    Args:
        x: the numbers.
        dtype: int8 or uint8.
        random_bits: to round stochastically by, 20 bits for each number of a block, as
            `block_random_bits` gives them; None (default) rounds to nearest.

    Returns:
        An array of shape `blocks_shape(x.size)`. After its first byte, a block has the number
        `64 k + i` at place `4 i + k`. The last block is filled up with 0.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import from_blocks, to_blocks
        >>> x = np.array([1.0, -0.3, 1e-3, 0.0], np.float32)
        >>> held = to_blocks(x, np.dtype(np.int8))
        >>> held.shape
        (1, 257)
        >>> from_blocks(held, 4)
        array([ 0.99993896, -0.31243896,  0.0010376 ,  0.        ], dtype=float32)
    """
    blocks, _ = blocks_shape(x.size)
    numbers = np.zeros((blocks, STATE_BLOCK), np.float32)
    numbers.ravel()[: x.size] = x.ravel()
    bits = numbers.view(np.uint32)
    size = bits & 0x7FFFFFFF
    infinite, nan = size == 0x7F800000, size > 0x7F800000
    size[infinite | nan] = 0
    largest = size.max(axis=1, keepdims=True) >> 23
    exponent = np.maximum(largest | 1, LEAST_EXPONENT).astype(np.uint32)
    scale = ((254 + TOP[dtype.name] - exponent) << 23).view(np.float32)
    last = LAST_CODE[dtype.name]
    with np.errstate(under="ignore"):
        total = (size.view(np.float32) * scale + np.float32(2)).view(np.uint32)
    half = 0x7FFFF + (total >> 20 & 1) if random_bits is None else random_bits.astype(np.uint32)
    code = (total + half) >> 20 & last
    if dtype.name == "uint8":
        code = np.maximum(code, size > 0)
    code = np.where(nan, last, np.where(infinite, last - 1, code))
    if dtype.name == "int8":
        code |= np.where(nan, 0, bits >> 24 & 0x80)
    held = np.empty(blocks_shape(x.size), np.uint8)
    special = (infinite | nan).any(axis=1)
    held[:, 0] = np.where(special, exponent[:, 0], exponent[:, 0] - 1)
    held[:, 1:] = code.reshape(blocks, 4, QUARTER).transpose(0, 2, 1).reshape(blocks, STATE_BLOCK)
    return held.view(dtype)


def from_blocks(held: Array, size: int) -> Array:
    """The float32 numbers that `to_blocks` made 8 bits of; `size` is how many."""
    last, top = LAST_CODE[held.dtype.name], TOP[held.dtype.name]
    blocks, code = len(held), held.view(np.uint8)[:, 1:].astype(np.uint32)
    exponent = np.maximum(held.view(np.uint8)[:, :1].astype(np.uint32) | 1, LEAST_EXPONENT)
    magnitude = code & last
    scale = ((exponent - top) << 23).view(np.float32)
    with np.errstate(over="ignore"):
        x = (((magnitude << 20) + 0x40000000).view(np.float32) - np.float32(2)) * scale
    special = held.view(np.uint8)[:, :1] & 1 == 1
    x = np.where(special & (magnitude == last - 1), np.float32(np.inf), x)
    x = np.where(special & (magnitude == last), np.float32(np.nan), x)
    x = np.where(code > last, -x, x)
    numbers: Array = x.reshape(blocks, QUARTER, 4).transpose(0, 2, 1).ravel()[:size]
    return numbers


def fill_blocks(held: Array, number: float, size: int) -> None:
    """Make so many numbers in 8 bits all the same: the nearest that there is."""
    numbers = np.full(STATE_BLOCK, number, np.float32)
    held[...] = to_blocks(numbers, held.dtype)
    held[-1:] = to_blocks(numbers[: size - (len(held) - 1) * STATE_BLOCK], held.dtype)


def block_random_bits(
    seed: int, t: int, array: int, buffer: int, size: int, first: int = 0
) -> Array:
    """The `random_bits` of `to_blocks`, where `first` is a multiple of its blocks."""
    blocks, _ = blocks_shape(size)
    drawn = random_bits(seed, t, array, buffer, blocks * STATE_BLOCK, first, bits=20)
    # Two numbers that share their bits lie a quarter of a block apart.
    apart: Array = drawn.reshape(blocks, 2, QUARTER, 2).transpose(0, 1, 3, 2)
    return apart.reshape(blocks, STATE_BLOCK)


def joined(high: Array, low: Array) -> Array:
    """The float32 numbers of which `split` made two parts.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import joined, split
        >>> joined(*split(np.array([0.1, -3.3e38], np.float32)))
        array([ 1.0e-01, -3.3e+38], dtype=float32)
    """
    bits = high.view(np.uint16).astype(np.uint32)
    bits <<= 16
    bits += low.view(np.int16).astype(np.int32).view(np.uint32)
    return bits.view(np.float32)


def split(x: Array) -> tuple[Array, Array]:
    """The nearest bfloat16 of each number, as its bits, and by how many units the number differs.

    Exact: `joined` makes the same numbers of the two. NaN loses what it carries.
    """
    bits = np.asarray(np.where(np.isnan(x), np.uint32(0x7FC00000), x.view(np.uint32)))
    high, low = (bits + 0x8000) >> 16, bits & 0xFFFF
    return np.asarray(high, np.uint16), np.asarray(low, np.uint16)
