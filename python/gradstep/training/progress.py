"""A bar on a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class _NoBar:
    """What is used of a tqdm bar, showing nothing."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...


def _bar(total: int, show: bool, unit: str = " steps") -> Any:
    """A tqdm bar, which hides where there is no terminal."""
    if not show:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, unit=unit, disable=None)
