"""The picture."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._engine.files import replacing
from ..report import PICTURE_STYLE, label_end, spread
from .entrants import CONTESTANTS, PEERS
from .measure import Bench, Row
from .works import Work, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# The picture


def save_picture(found: Bench, path: Path) -> None:
    """Write what `draw_picture` draws to a file, in the format of its suffix."""
    from matplotlib import rc_context, rcParamsDefault

    settings = {**rcParamsDefault, **PICTURE_STYLE}
    settings.pop("backend", None)
    with replacing(path) as file, warnings.catch_warnings(), rc_context(settings):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        draw_picture(found).savefig(file, format=path.suffix[1:].lower())


def draw_picture(found: Bench) -> Figure:
    """Two panels: Adam's time per element by size, and every ratio. An empty one is left out."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    curves = _curves(found)
    ranked = [row for row in found.rows if any(row.ratios(name) for name in PEERS)]
    panels: list[Callable[[Axes], None]] = []
    if any(len(points) > 1 for points in curves.values()):
        panels.append(lambda axes: _draw_sizes(axes, curves))
    if ranked or not panels:
        panels.append(lambda axes: _draw_ratios(axes, ranked, found))
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.06)
    figure = Figure(figsize=(6.8 * len(panels), max(5.5, 2.2 + 0.42 * len(ranked))), layout=layout)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
    if ranked:
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4 * len(panels)
        )
    cores = f"{found.machine['cores']} core{'s' * (found.machine['cores'] != 1)}"
    title = f"One optimizer step on {found.machine['processor']}, {cores}, float32"
    figure.suptitle(textwrap.fill(title, 60 * len(panels)).replace("$", r"\$"), fontsize=14)
    return figure


def _curves(found: Bench) -> dict[str, list[tuple[int, float]]]:
    """By contestant, elements and nanoseconds per element of Adam on one array."""
    most = max(row.work.threads for row in found.rows)
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in sorted(found.rows, key=lambda row: row.work.size):
        work = row.work
        shown = (work.rule, work.arrays, work.threads, work.clip) == ("adam", 1, most, False)
        if shown and not row.timed("smaller"):  # that one has its own rounds
            for name in filter(row.timed, CONTESTANTS):
                point = work.size, 1e9 * row.seconds(name) / work.size
                curves.setdefault(name, []).append(point)
    return curves


def _draw_sizes(axes: Axes, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    ends = {}
    for name, points in curves.items():
        sizes, times = zip(*points, strict=True)
        axes.plot(sizes, times, **_line(name))
        ends[name] = points[-1]
    axes.set(xscale="log", yscale="log", xlabel="elements", ylabel="nanoseconds per element")
    axes.set_title("Adam by size: lower is faster")
    _label_ticks(axes.xaxis, short, (1,))
    _label_ticks(axes.yaxis, "{:g}".format, (1, 2, 5))
    low, high = np.log10(axes.get_ylim())
    heights = spread([math.log10(y) for _, y in ends.values()], 0.045 * (high - low), low, high)
    for (name, point), height in zip(ends.items(), heights, strict=True):
        place = 1.06, (height - low) / (high - low)
        weight = "bold" if name == "gradstep" else "normal"
        label_end(axes, name, point, place, CONTESTANTS[name].colour, weight)


def _draw_ratios(axes: Axes, rows: Sequence[Row], found: Bench) -> None:
    several = len({row.work.threads for row in found.rows}) > 1
    heights = range(len(rows))
    for name in (name for name in PEERS if any(row.ratios(name) for row in rows)):
        line = _line(name)
        axes.plot(
            [row.ratio(name) for row in rows],
            heights,
            linestyle="",
            marker=line["marker"],
            markersize=8,
            color=line["color"],
            markeredgecolor="w",
            markeredgewidth=0.6,
            label=name,
        )
    axes.set_yticks(heights, [_label(row.work, several) for row in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="times as long as gradstep")
    axes.set_title("Right of the line gradstep is faster")
    low, high = axes.get_xlim()
    low, high = min(low, 0.75), max(high, 2.2)
    axes.set_xlim(low, high)
    axes.axvspan(low, 1, color="#f4e6e6", zorder=0, linewidth=0)
    axes.axvline(1, color="#000000", linewidth=2)
    _label_ticks(axes.xaxis, "{:g}x".format, (1, 2, 5))


def _label(work: Work, with_threads: bool) -> str:
    return f"{work}, {work.threads} thread{'s' * (work.threads > 1)}" if with_threads else str(work)


def _label_ticks(axis: Axis, text: Callable[[Any], str], digits: Sequence[int]) -> None:
    """Ticks of a logarithmic axis at these multiples of powers of ten, and no others."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10, digits))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def _line(name: str) -> dict[str, Any]:
    contestant = CONTESTANTS[name]
    return {
        "color": contestant.colour,
        "marker": contestant.marker,
        "linewidth": 3.2 if name == "gradstep" else 1.4,
        "linestyle": "-" if contestant.ranked else "--",
        "zorder": 3 if name == "gradstep" else 2,
    }
