"""Sums and norms in the order in which the kernels form them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def lane_sums(squares: Array) -> Array:
    """The sum of each row, by LANES lanes of which lane k adds the elements k, k + LANES, ..."""
    count, size = squares.shape
    turns = -(-size // LANES)
    padded = np.zeros((count, turns * LANES))
    padded[:, :size] = squares
    lanes = np.zeros((count, LANES))
    for turn in np.moveaxis(padded.reshape(count, turns, LANES), 1, 0):
        lanes += turn
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def tile_sums(g: Array) -> tuple[Array, Array]:
    """Sums of squares along the rows and down the columns of a matrix, in float64, by tiles."""
    height, width = TILE
    squares = np.square(g.astype(np.float64))
    along, down = np.zeros(g.shape[0]), np.zeros(g.shape[1])
    for left in range(0, g.shape[1], width):
        along += lane_sums(squares[:, left : left + width])
    for top in range(0, g.shape[0], height):
        down += np.cumsum(squares[top : top + height], axis=0)[-1]
    return along, down


#: A norm is summed in blocks of so many elements, each from the start of its array, and a block in
#: so many lanes, of which lane k adds the elements k, k + LANES, k + 2 LANES, ...
BLOCK, LANES = 4096, 32
#: Where squares are summed along rows and down columns, it is by tiles of so many rows and columns.
TILE = 64, 1024


def block_sums(g: Array, scale: float = 1.0, unit: float = 1.0) -> Array:
    """The sum of squares of each block of `scale g`, times `unit**2`, in float64."""
    blocks = -(-g.size // BLOCK)
    x = np.zeros(blocks * BLOCK)
    x[: g.size] = unit * (g.dtype.type(scale) * g.ravel()).astype(np.float64)
    return lane_sums((x * x).reshape(blocks, BLOCK))


def tree_sum(sums: Array) -> float:
    """Neighbours added pair by pair: the shape depends on their number alone."""
    while sums.size > 1:
        sums = np.append(sums, np.zeros(sums.size % 2))
        sums = sums[0::2] + sums[1::2]
    return float(sums[0]) if sums.size else 0.0


def grad_norm(grads: Sequence[Array], scale: float = 1.0) -> float:
    """The L2 norm over all gradients, each times `scale`, as clipping uses it.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> reference.grad_norm([np.array([3.0]), np.array([[-4.0]])])
        5.0
    """
    with np.errstate(all="ignore"):

        def total(unit: float) -> float:
            sums = [block_sums(g, scale, unit) for g in grads]
            return tree_sum(np.concatenate(sums) if sums else np.zeros(0))

        # Squares of float64 can overflow or underflow: then again, with a power of two that brings
        # them back.
        norm_square, unit = total(1.0), 1.0
        if not math.isfinite(norm_square):
            unit = 2.0**-540
        elif norm_square < 2.0**-960:
            unit = 2.0**540
        return float(np.sqrt(np.float64(norm_square if unit == 1 else total(unit))) / unit)


def _finite(grads: Sequence[Array], scale: float) -> bool:
    with np.errstate(all="ignore"):
        return all(bool(np.isfinite(g.dtype.type(scale) * g).all()) for g in grads)


def sum_rows(table: Array, seen: Array, weights: Array | None = None) -> Array:
    """The sum of the rows seen, each times its weight, in float64 and in their order.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> table = np.array([[1.0, 2.0], [np.nan, np.nan], [3.0, 4.0]])
        >>> reference.sum_rows(table, np.array([True, False, True]), np.array([1.0, 1.0, 0.5]))
        array([2.5, 4. ])
    """
    total = np.zeros(table.shape[1:])
    with np.errstate(all="ignore"):
        for row in np.flatnonzero(seen):
            total += (1.0 if weights is None else weights[row]) * table[row].astype(np.float64)
        return total.astype(table.dtype)


def coalesce(indices: Array, rows: Array) -> tuple[Array, Array]:
    """The indices without repetition, ascending, and the sum of the rows of each, in their order.

    Example:
        >>> import numpy as np
        >>> from gradstep.reference import coalesce
        >>> coalesce(np.array([2, 0, 2]), np.array([1.0, 10.0, 0.5]))
        (array([0, 2]), array([10. ,  1.5]))
    """
    order = np.argsort(indices, kind="stable")
    touched, first, count = np.unique(indices[order], return_index=True, return_counts=True)
    sums = rows[order[first]]
    with np.errstate(all="ignore"):
        for nth in range(1, count.max(initial=0)):
            more = count > nth
            sums[more] += rows[order[first[more] + nth]]
    return touched, sums


def clip_factors(grad_scale: float, clip_norm: float, norm: float) -> tuple[float, float]:
    """The two factors of a gradient that is clipped: `grad_scale` and `clip_norm / norm`.

    A quotient that float32 or float64 could not hold, after a gradient that has exploded, is
    divided among both.

    Example:
        >>> from gradstep.reference import clip_factors
        >>> clip_factors(1.0, 0.5, 2.0)
        (1.0, 0.25)
        >>> clip_factors(1.0, 2.0**-60, 2.0**60) == (2.0**-60, 2.0**-60)
        True
    """
    (ratio, exponent), (ratio_of_norm, exponent_of_norm) = math.frexp(clip_norm), math.frexp(norm)
    exponent -= exponent_of_norm
    shared = -(-exponent // 2) if exponent < -64 else 0
    return math.ldexp(grad_scale, shared), math.ldexp(ratio / ratio_of_norm, exponent - shared)
