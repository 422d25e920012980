"""What tables and pictures share."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .datasets import UsageError, demo_packages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of what is printed.
WIDTH = 100


def aligned(columns: Sequence[Sequence[str]], width: float = math.inf) -> list[str]:
    """The rows of a table, the first column to the left and the others to the right.

    Two blanks lie between columns, or one where they would be wider than the width.
    """
    widths = [max(map(len, column)) for column in columns]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= width else " "
    return [
        gap.join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
PICTURE_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelsize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 11,
    "savefig.dpi": 140,
}


def check_picture(path: Path) -> None:
    """Find out whether `save_picture` will do, before the training.

    Raises:
        UsageError: Matplotlib is missing, the suffix is unknown, or the file cannot be written.
    """
    with demo_packages():
        try:
            import matplotlib  # noqa: F401
        except ValueError as error:  # MPLBACKEND names none
            raise UsageError(f"matplotlib cannot be used: {error}") from error
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError(f"--out {path} must end in one of {', '.join(PICTURE_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no directory {path.parent}")
    special = path.exists() and not path.is_file()
    if special or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--out {path} cannot be written")


def label_end(
    axes: Axes,
    text: str,
    end: tuple[float, float],
    place: tuple[float, float],
    colour: str,
    weight: str = "normal",
) -> None:
    """Write a name right of the panel, and a thin line from there to where a curve ends."""
    axes.annotate(
        text,
        end,
        place,
        textcoords="axes fraction",
        color=colour,
        weight=weight,
        va="center",
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.8,
            "alpha": 0.6,
            "relpos": (0, 0.5),
            "shrinkA": 1,
            "shrinkB": 4,
        },
    )


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The values moved apart by at least a gap, little and within limits that have room.

    Example:
        >>> from gradstep.tools.report import spread
        >>> spread([1.0, 5.0, 1.0], 1.0, 0.0, 6.0)
        [1.0, 5.0, 2.0]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    moved = list(values)
    floor = low
    for i in order:
        moved[i] = max(moved[i], floor)
        floor = moved[i] + gap
    ceiling = high
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{plural * (number != 1)}"
