"""Numbers and lines of reports."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 120


def is_loss(ratio: float) -> bool:
    """Whether a peer is ahead, by what a table shows."""
    return round(ratio, 2) < 1


def machine_line(told: Mapping[str, Any], threads: str) -> str:
    """What runs where, from `bench.machine`, with so many threads."""
    cores = f"{told['cores']} core{'s' * (told['cores'] != 1)}"
    one = "thread" if threads == "1" else "threads"
    return (
        f"gradstep {told['version']}, {told['isa']}, {told['compiler']}, on {told['processor']}, "
        f"{cores}; {threads} {one}; {told['system']}, Python {told['python']}"
    )


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _or_dash(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def three_digits(value: float) -> str:
    """1.84, 14.9, 153; what is below 1 has two decimals."""
    text = f"{value:.2f}"
    return text if len(text) <= 4 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def seconds_text(seconds: float) -> str:
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if seconds * factor < 999.5:
            return f"{three_digits(seconds * factor)} {unit}"
    return _or_dash(seconds, "{:.2f} s")
