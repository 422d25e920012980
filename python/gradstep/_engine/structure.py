"""The structure of `params`: one array, or a list, tuple or dict of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core

Array = NDArray[Any]


def _label(key: Any) -> str:
    """What messages and files call the array of a key: keys of NumPy print like Python's."""
    plain = key.item() if isinstance(key, np.generic) else key
    return f"[{plain!r}]".encode("utf-8", "backslashreplace").decode()


class Structure:
    """Takes a structure of arrays apart and puts arrays of the same structure together.

    `suffixes` names the arrays in messages: `[""]` for one array, `["[0]", "[1]"]` for a list,
    `["['w']"]` for a dict.
    """

    def __init__(self, tree: Any, noun: str) -> None:
        kinds: tuple[type[Any], ...] = (dict, list, tuple)
        self._kind = next((kind for kind in kinds if isinstance(tree, kind)), None)
        if self._kind is None and not _core.shows_memory(tree):
            raise TypeError(
                f"{noun} must be a numpy.ndarray, or expose a CPU buffer or DLPack, or be a list, "
                f"tuple or dict of such arrays, got {type(tree).__name__}"
            )
        self._make = getattr(tree, "_make", None)  # of a named tuple
        self._keys: list[Any] = []
        if self._kind is not None:
            self._keys = list(tree) if self._kind is dict else list(range(len(tree)))
            if not self._keys:
                raise ValueError(f"{noun} is empty: {tree!r}")
        self.suffixes = [""] if self._kind is None else [_label(key) for key in self._keys]
        for key, suffix in zip(self._keys, self.suffixes, strict=False):
            if isinstance(tree[key], dict):
                raise TypeError(
                    f"{noun}{suffix} is a dict, and nested structures are not supported: "
                    "give one dict or list of all arrays"
                )
        #: A list and a tuple are one kind: what fits one fits the other.
        self.kind = {None: "an array", dict: "a dict"}.get(self._kind, "a sequence")
        if len(set(self.suffixes)) < len(self.suffixes):
            raise ValueError(f"{noun} must have keys that print differently, got {self._keys}")

    def arrays(self, tree: Any, noun: str) -> Sequence[Any]:
        """The leaves of `tree`, in order. The binding checks what they are."""
        if self._kind is None:
            return (tree,)
        if self._kind is dict:
            if not isinstance(tree, dict):
                raise TypeError(f"{noun} must be a dict like params, got {type(tree).__name__}")
            if tree.keys() != set(self._keys):
                missing = [key for key in self._keys if key not in tree]
                unknown = [key for key in tree if key not in self._keys]
                raise ValueError(
                    f"{noun} must have the keys of params: missing {missing}, unknown {unknown}"
                )
            return [tree[key] for key in self._keys]
        if not isinstance(tree, (list, tuple)):
            raise TypeError(
                f"{noun} must be a list or tuple like params, got {type(tree).__name__}"
            )
        if len(tree) != len(self._keys):
            raise ValueError(
                f"{noun} must hold {len(self._keys)} arrays like params, got {len(tree)}"
            )
        return tree

    def views(self, tree: Any, noun: str) -> list[Array]:
        """The leaves of `tree` as NumPy arrays that share their memory."""
        leaves = self.arrays(tree, noun)
        return [
            _core.view(leaf, noun + suffix)
            for leaf, suffix in zip(leaves, self.suffixes, strict=True)
        ]

    def build(self, arrays: Sequence[Array]) -> Any:
        """The structure again, holding `arrays`."""
        if self._kind is None:
            return arrays[0]
        if self._kind is dict:
            return dict(zip(self._keys, arrays, strict=True))
        return self._kind(arrays) if self._make is None else self._make(arrays)
