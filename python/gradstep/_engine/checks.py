"""Checks of single arguments. Each returns the value in the type it is used as, or raises."""

from __future__ import annotations

import importlib
import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .formats import FLOATS, STATES, is_float

#: float64 holds every whole number up to here.
MAX_INTEGER = 2**53
ROUNDINGS = ("stochastic", "nearest")


def _is_a(kind: type, value: Any) -> bool:
    # Both count as whole numbers to Python and NumPy.
    return isinstance(value, kind) and not isinstance(value, (bool, np.timedelta64))


def number(name: str, value: Any) -> float:
    """A real number, as a float. Its range is checked where it is known."""
    if type(value) is float:  # nearly always, and at every step
        return value
    if not _is_a(numbers.Real, value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got a number beyond float64") from None


def non_negative(name: str, value: Any) -> float:
    x = number(name, value)
    if not (math.isfinite(x) and x >= 0):
        raise ValueError(f"{name} must be at least 0 and finite, got {x}")
    return x


def positive(name: str, value: Any) -> float:
    x = number(name, value)
    if not (math.isfinite(x) and x > 0):
        raise ValueError(f"{name} must be above 0 and finite, got {x}")
    return x


def integer(name: str, value: Any, minimum: int, maximum: int = MAX_INTEGER) -> int:
    if type(value) is not int and not _is_a(numbers.Integral, value):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if value > maximum:
        limit = "2**53" if maximum == MAX_INTEGER else maximum
        raise ValueError(f"{name} must be at most {limit}, got {value}")
    return int(value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict, got {value!r}")
    return value


def choice(name: str, value: Any, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def pair(name: str, value: Any) -> tuple[float, float]:
    first, second = _numbers(name, value, 2)
    return first, second


def triple(name: str, value: Any) -> tuple[float, float, float]:
    first, second, third = _numbers(name, value, 3)
    return first, second, third


def _numbers(name: str, value: Any, count: int) -> list[float]:
    return [number(f"{name}[{i}]", x) for i, x in enumerate(several(name, value, count))]


def several(name: str, value: Any, count: int) -> list[Any]:
    """What a sequence or an array of so many elements holds."""
    found = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(found, Sequence) or isinstance(found, (str, bytes)) or len(found) != count:
        what = {2: "a pair of numbers", 3: "three numbers"}[count]
        raise TypeError(f"{name} must be {what}, got {value!r}")
    return list(found)


def float_dtype(name: str, value: DTypeLike, known: Sequence[str] = FLOATS) -> np.dtype[Any]:
    """A dtype that steps take, by name or as NumPy has it."""
    refusal = f"{name} must be one of {', '.join(known)}, got {value!r}"
    try:
        if value == "bfloat16":
            value = importlib.import_module("ml_dtypes").bfloat16
        dtype = np.dtype(value)
    except ImportError:
        raise ValueError(
            f"{name} is 'bfloat16', which NumPy knows with ml_dtypes: "
            "pip install 'gradstep[bfloat16]'"
        ) from None
    except TypeError:
        raise TypeError(refusal) from None
    if not (dtype.isnative and dtype.name in known):
        raise TypeError(refusal)
    return dtype


def state_dtype(name: str, value: DTypeLike) -> np.dtype[Any]:
    """A dtype that states may have; int8 stands for 8 bits, with or without a sign."""
    return float_dtype(name, value, STATES)


def array(name: str, value: Any) -> None:
    """An array whose elements are all that there is to it."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
    if isinstance(value, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"{name} must be a plain NumPy array, got {type(value).__name__}")


def array_like(name: str, value: Any, target: NDArray[Any], convert: bool = False) -> None:
    """An array that can be copied over another, without a conversion unless that is asked for."""
    array(name, value)
    both = is_float(value.dtype) and is_float(target.dtype)
    dtype = target.dtype if convert and both else value.dtype
    if (dtype, value.shape) != (target.dtype, target.shape):
        raise ValueError(
            f"{name} is {value.dtype} of shape {value.shape}, "
            f"not {target.dtype} of shape {target.shape}"
        )
    if value.dtype == np.bool_ and (value.view(np.uint8) > 1).any():
        raise ValueError(f"{name} must be True or False everywhere, got other bytes")
