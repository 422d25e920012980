"""Mixed precision: 16-bit parameters with float32 master weights, and 16-bit copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks as check
from .formats import EXTRA_STATES, LOW_BITS, MASTER, join, split
from .states import States

Array = NDArray[Any]


def checked_master(master: Any) -> bool | str:
    """The option `master`."""
    if isinstance(master, (bool, np.bool_)):
        return bool(master)
    if not (isinstance(master, str) and master == "split"):
        raise ValueError(f"master must be True, False or 'split', got {master!r}")
    return master


def check_params(
    master: bool | str, labels: Sequence[str], params: Sequence[Array], with_copies: bool
) -> None:
    """Raise unless parameters can have master weights. `labels`: what messages call them."""
    if with_copies:
        raise ValueError(f"copy_to must be None with master={master!r}: params are the copy")
    known = ("bfloat16",) if master == "split" else ("bfloat16", "float16")
    for label, param in zip(labels, params, strict=True):
        if param.dtype.name not in known:
            raise TypeError(
                f"{label} must have dtype {' or '.join(known)} with master={master!r}, "
                f"got {param.dtype}"
            )


class Masters:
    """Which arrays steps update, and what follows from them.

    There are three ways: parameters are updated themselves, and may have copies; or they are the
    rounded copy of float32 master weights, a state; or they and the state `low_bits` are the two
    halves of these.

    Args:
        kind: the option `master`, checked.
        params: the parameters.
        copies: the option `copy_to`.
        states: the states, which are given one more.
    """

    def __init__(
        self, kind: bool | str, params: Sequence[Array], copies: Sequence[Array], states: States
    ) -> None:
        self.kind, self._params, self._states = kind, params, states
        #: The arrays that steps update, and the arrays that they write copies to.
        self.updated, self.copies = params, copies
        if kind == "split":
            states.add([LOW_BITS])
        elif kind:
            states.add([MASTER])
            self.updated, self.copies = states[MASTER], params
            for whole, param in zip(self.updated, params, strict=True):
                np.copyto(whole, param)

    def plan_options(self) -> dict[str, Any]:
        """What a plan needs to know of it."""
        options: dict[str, Any] = {"copies": self.copies} if self.copies else {}
        return options | ({"low_bits": self._states[LOW_BITS]} if self.kind == "split" else {})

    def write_copies(self) -> None:
        """Make the copies follow the arrays that steps update."""
        for copy, updated in zip(self.copies, self.updated, strict=bool(self.copies)):
            with np.errstate(all="ignore"):
                np.copyto(copy, updated, casting="unsafe")

    def whole(self) -> Sequence[Array]:
        """The parameters in full precision. With "split" these are new arrays."""
        if self.kind != "split":
            return self.updated
        return [join(*halves) for halves in zip(self._params, self._states[LOW_BITS], strict=True)]

    @contextlib.contextmanager
    def points(self) -> Iterator[Sequence[Array]]:
        """The same, to be written to, with NumPy's warnings off; everything else follows."""
        whole = self.whole()
        with np.errstate(all="ignore"):
            yield whole
        if self.kind == "split":
            for x, param, low in zip(whole, self._params, self._states[LOW_BITS], strict=True):
                param.view(np.uint16)[...], low[...] = split(x)
        self.write_copies()

    def converted(
        self, sources: Mapping[str, Array], targets: Mapping[str, Array], suffixes: Sequence[str]
    ) -> dict[str, Array]:
        """The arrays of a checkpoint, with or without master weights as the optimizer has them.

        Args:
            sources: the arrays of the checkpoint by name.
            targets: the arrays of the optimizer.
            suffixes: what comes after "params" in the names of the parameters.
        """
        converted = dict(sources)
        for suffix, param in zip(suffixes, self._params, strict=True):
            own = f"params{suffix}"
            master, low = (f"state {name}{suffix}" for name in (MASTER, LOW_BITS))
            given = sources.get(own, param)
            exact = converted.pop(master, given)
            bits = converted.pop(low, None)
            for label, x in ((own, given), (master, exact)):
                check.array_like(label, x, param, convert=True)
            if bits is not None and given.dtype.name == "bfloat16":
                check.array_like(low, bits, np.empty(param.shape, EXTRA_STATES[LOW_BITS]))
                exact = join(given, bits)
            single = exact.astype(np.float32)
            if master in targets:
                converted[master] = single
            elif low in targets:
                high, converted[low] = split(single)
                given = high.view(param.dtype)
            elif param.dtype.itemsize >= 4:
                given = exact
            if own in sources:
                converted[own] = given
        return converted
