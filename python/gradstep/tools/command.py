"""What the commands share: exit codes, checks of arguments."""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from .. import runtime
from .datasets import UsageError

WRONG_BITS, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(names).lower()
    return textwrap.fill(text, 90, initial_indent="  ", subsequent_indent="  ")


def _error_line(text: str) -> str:
    return "gradstep: error: " + " ".join(text.split())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _list_of(item: Callable[[str], int]) -> Callable[[str], list[int]]:
    return lambda text: [item(part) for part in text.split(",")]


def _whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    limits = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if least <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"must be a whole number {limits}, got {text!r}")

    return parse


def _checked_info() -> dict[str, Any]:
    """What runs here; the environment may ask for what does not exist."""
    try:
        return runtime.info()
    except ValueError as error:
        raise UsageError(str(error)) from error
