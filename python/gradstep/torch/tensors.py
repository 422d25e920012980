"""Tensors of PyTorch as memory: dtypes, layouts, 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .. import _core
from .._engine.formats import FLOATS, STATES, blocks_shape, from_blocks, to_blocks

#: What steps take, by name.
DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in FLOATS}
#: What states may be held in; int8 stands for both of the next two.
STATE_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in STATES}
#: 8 bits are whole numbers in blocks: with a sign, and for states that are never negative.
IN_8_BITS = (torch.int8, torch.uint8)
#: Those with stochastic rounding. Every rule counts steps there, because random bits differ.
NARROW = frozenset({torch.bfloat16, torch.float16, *IN_8_BITS})


def _relaid(param: torch.Tensor, other: torch.Tensor, axes: Any = None) -> torch.Tensor:
    """A copy of a tensor, laid out in memory as a parameter is. `axes`: those beside 8 bits."""
    if axes is not None:
        return _to_blocks(_from_blocks(other, param, axes), param, other.dtype)
    return torch.empty_like(param.detach(), dtype=other.dtype).copy_(other.detach())


def _in_numpy(tensor: torch.Tensor) -> Any:
    """Its memory. NumPy may not know of bfloat16, and is shown whole numbers."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """That of the arrays in which such numbers are held."""
    held: np.dtype[Any] = _in_numpy(torch.empty(0, dtype=dtype)).dtype
    return held


def _state_dtype(value: Any) -> torch.dtype | None:
    """The option of that name, as a dtype of PyTorch."""
    dtype = value if isinstance(value, torch.dtype) else STATE_DTYPES.get(str(value))
    if value is not None and dtype not in STATE_DTYPES.values():
        raise TypeError(
            f"state_dtype must be one of {', '.join(STATE_DTYPES)}, or None, got {value!r}"
        )
    return dtype


def _axes(param: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """The axes of more than one element, with their sizes, from the outermost in memory on.

    It stands beside states in 8 bits, which do not show for which elements their numbers are.
    """
    axes = [axis for axis, size in enumerate(param.shape) if size > 1]
    axes.sort(key=param.stride, reverse=True)
    return tuple((axis, param.shape[axis]) for axis in axes)


def _as_axes(saved: Any) -> tuple[tuple[int, int], ...]:
    """Those of a checkpoint: a table, or tuples or lists of pairs. None where it is neither."""
    try:
        pairs = saved.tolist() if isinstance(saved, torch.Tensor) else saved
        return tuple((int(axis), int(size)) for axis, size in pairs)
    except (TypeError, ValueError):
        return ()


def _is_in_blocks(value: Any, param: torch.Tensor, axes: Any) -> bool:
    """Whether it has a number for each element of a parameter, in 8 bits."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in IN_8_BITS
        and value.shape == blocks_shape(param.numel())
        and sorted(axes) == sorted(_axes(param))
    )


def _to_blocks(value: torch.Tensor, param: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A state beside a parameter in 8 bits: the nearest, in the order of the parameter's memory."""
    in_order = _relaid(param, value.to(torch.float32)).as_strided((param.numel(),), (1,))
    return torch.from_numpy(to_blocks(in_order.numpy(), _numpy_dtype(dtype)))


def _from_blocks(held: torch.Tensor, param: torch.Tensor, axes: Any) -> torch.Tensor:
    """The float32 numbers of a state in 8 bits."""
    in_order = from_blocks(held.numpy(), param.numel()).reshape([size for _, size in axes])
    numbers = in_order.transpose(np.argsort([axis for axis, _ in axes]))
    return torch.from_numpy(numbers.reshape(param.shape))


def _is_dense(param: torch.Tensor) -> bool:
    """Whether the elements fill a range of memory, so that others can be laid out as they are."""
    return (
        (param.device.type, param.layout) == ("cpu", torch.strided)
        and param.dtype in DTYPES.values()
        and not _core.lacks_memory(param)
        and torch.empty_like(param, device="meta").stride() == param.stride()
    )
