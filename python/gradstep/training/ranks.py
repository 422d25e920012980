"""What ranks agree about before they act. An optimizer that is not shared has one rank."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .minibatches import Seed

Result = TypeVar("Result")


class Comm(Protocol):
    """What is used of a communicator of mpi4py."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def allgather(self, given: Any, /) -> list[Any]: ...
    def bcast(self, given: Any, /) -> Any: ...
    def Allgather(self, mine: Any, every: Any, /) -> None: ...  # noqa: N802


class Alone:
    """The communicator of one rank."""

    rank, size = 0, 1

    def allgather(self, given: Any, /) -> list[Any]:
        return [given]

    def bcast(self, given: Any, /) -> Any:
        return given

    def Allgather(self, mine: NDArray[Any], every: NDArray[Any], /) -> None:  # noqa: N802
        every[...] = mine


def shown(value: Any) -> str:
    """What tells whether ranks were given the same."""
    if isinstance(value, np.random.Generator):
        return f"a generator at {value.bit_generator.state}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(shown, value))})"
    return repr(value)


def common_seed(comm: Comm, seed: Seed) -> Seed:
    """The seed, or one of rank 0 where there is none."""
    if seed is not None:
        return seed
    drawn: int = comm.bcast(secrets.randbits(128))
    return drawn


def together(comm: Comm, act: Callable[[], Result], only: int | None = None) -> Result:
    """What `act` returns, or an error on all ranks if it raises on one.

    Args:
        comm: all ranks of it call this.
        act: what each does for itself.
        only: the rank that does it; None (default) for all. The others return None.
    """
    results: list[Result] = []
    error = None
    if only in (None, comm.rank):
        error = caught(lambda: results.append(act()))
    raise_for_all(comm, error)
    return results[0] if results else None  # type: ignore[return-value]


def caught(act: Callable[[], None]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def raise_for_all(comm: Comm, error: Exception | None) -> None:
    """Raise what this rank has met, or else what another one has."""
    told = None if error is None else f"{type(error).__name__}: {error}"
    for rank, message in enumerate(comm.allgather(told)):
        if error is not None:
            raise error
        if message is not None:
            raise RuntimeError(f"rank {rank}: {message}")


def check_alike(comm: Comm, description: Mapping[str, str]) -> None:
    """Raise the same error on all ranks unless all have the same description."""
    digest = hashlib.sha256(repr(sorted(description.items())).encode()).digest()
    if len(set(comm.allgather(digest))) == 1:
        return
    first, *others = comm.allgather(dict(description))
    for rank, other in enumerate(others, 1):
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                here, there = (d.get(name, "missing") for d in (first, other))
                raise ValueError(f"{name} is {there} on rank {rank}, {here} on rank 0")
