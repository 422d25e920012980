"""What `gradstep bench` shows of what it has found: a table and a picture."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._files import replacing
from .bench import (
    CHECKED_STEPS,
    CLASS_PEERS,
    CONTESTANTS,
    LEFT_OUT,
    NO_RULE,
    OURS,
    PEERS,
    PLAIN,
    SMALLER,
    TOLERANCE,
    Bench,
    Result,
    Row,
    Work,
    short,
)
from .compare import PICTURE_STYLE, aligned, label_end, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 120


def table(found: Bench) -> str:
    """The machine, a row per work, and what the columns mean."""
    columns = [[*heading, *map(cell, found.rows)] for heading, cell in _columns(found)]
    return "\n".join([*_heading(found), "", *aligned(columns, WIDTH), "", *_notes(found)])


def class_table(found: Bench) -> str:
    """The machine, a table in Markdown with a row per rule, and what its columns mean."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("class", _class_cell),
        ("bytes per element", lambda row: str(row.work.bytes_per_element)),
        ("elements", lambda row: row.work.shape),
        ("ms", lambda row: _or_dash(1e3 * row.seconds("gradstep"), "{:.3g}")),
        ("of the memory's limit", lambda row: _or_dash(100 * row.ratio("roofline"), "{:.0f} %")),
        ("NumPy", lambda row: _against("numpy", row)),
        ("PyTorch", _against_torch),
    ]
    return _in_markdown(found, columns, _class_notes(found))


def _in_markdown(
    found: Bench, columns: Sequence[tuple[str, Callable[[Row], str]]], notes: Sequence[str]
) -> str:
    """A table of these headings and cells, without elements if all rows have as many."""
    if len({row.work.shape for row in found.rows}) == 1:
        columns = [column for column in columns if column[0] != "elements"]
    lines = [
        [heading for heading, _ in columns],
        ["---" for _ in columns],
        *([cell(row) for _, cell in columns] for row in found.rows),
    ]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    told = [line for note in notes for line in wrapped(note)]
    return "\n".join([*_heading(found), "", *rows, "", *told])


def _elements(found: Bench) -> str:
    return ", ".join(dict.fromkeys(row.work.shape for row in found.rows))


def storage_table(found: Bench) -> str:
    """The machine, a table in Markdown with a row per storage, and what its columns mean."""

    def time(row: Row) -> str:
        return _or_dash(1e9 * row.seconds("gradstep") / row.work.elements, "{:.3f}")

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("storage", lambda row: row.work.storage),
        ("elements", lambda row: row.work.shape),
        ("bytes per element", lambda row: str(row.work.bytes_per_element)),
        ("ns per element", time),
        ("PyTorch", lambda row: _against("torch-fused", row)),
        (PLAIN, lambda row: _against(PLAIN, row)),
    ]
    notes = [
        f"ns per element: a step of Adam over {_elements(found)} elements, the median of "
        f"{found.rounds} rounds in which all contestants take turns.",
        "storage: of the states, or of parameters, gradients and states. Rounding is stochastic "
        "where it is not said to be to the nearest.",
        "PyTorch: how many times as long its fused Adam in float32 takes, the median ratio of a "
        "round. Bold where it is faster. Empty: it is not installed.",
        f"{PLAIN}: the same of gradstep's own step in float32; in the first row, the noise.",
        f"Before, {CHECKED_STEPS} steps were compared with NumPy's, of what is held in fewer bits "
        "those of the first million elements.",
        *_failures(found),
    ]
    return _in_markdown(found, columns, notes)


def _class_cell(row: Row) -> str:
    """The class as code, and what else its title says."""
    name = row.work.optimizer.__name__
    return f"`{name}`{row.work.title.removeprefix(name)}"


def _against_torch(row: Row) -> str:
    """How many times as long the fastest of PyTorch's ways takes, and which one that is."""
    names = [name for name in CLASS_PEERS if name.startswith("torch")]
    timed = [name for name in names if row.ratios(name)]
    if not timed:
        return next((text for text in (_against(name, row) for name in names) if text), "")
    best = min(timed, key=row.ratio)
    return f"{_against(best, row)} ({best.partition('-')[2] or 'for-loop'})"


def _against(name: str, row: Row) -> str:
    """How many times as long a peer takes; bold where it is faster."""
    result, ratio = row.results.get(name, Result()), row.ratio(name)
    if math.isnan(ratio):
        return "differs" if result.check is not None and result.problem else ""
    text = three_digits(ratio)
    return f"**{text}**" if is_loss(ratio) else text


def _class_notes(found: Bench) -> list[str]:
    works = [row.work for row in found.rows]
    rings = [work for work in works if "window" in work.options]
    return [
        f"ms: a step on {_elements(found)} float32 elements with the default options, the median "
        f"of {found.rounds} rounds in which all contestants take turns.",
        "of the memory's limit: the time of the same reads and writes without arithmetic, over "
        "gradstep's. It is one pass: a rule that needs a norm before its step cannot reach it.",
        "NumPy, PyTorch: how many times as long they take, the median ratio of a round; of "
        "PyTorch's ways the fastest, and its name. Bold where they are faster. Empty: there is no "
        f"such rule. Before, {CHECKED_STEPS} steps were compared, as `gradstep bench` does.",
        *(
            f"{work.title} keeps {work.options['window']} gradients. One step in so many sums them "
            "again, which the median leaves out."
            for work in rings
        ),
        *(f"left out: {name}: {why}." for name, why in LEFT_OUT.items()),
        *_failures(found),
    ]


def _columns(found: Bench) -> list[tuple[tuple[str, str], Callable[[Row], str]]]:
    """Of each column the heading in two lines, and its cell for a work."""

    def bandwidth(row: Row) -> str:
        bytes_moved = row.work.elements * row.work.bytes_per_element
        return _or_dash(bytes_moved / row.seconds("gradstep") / 1e9, "{:.0f}")

    def share(row: Row) -> str:
        return _or_dash(100 * row.ratio("roofline"), "{:.0f} %")

    def against(name: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            result = row.results.get(name, Result())
            if result.check is not None and result.problem:
                return "differs"
            ratio = row.ratio(name)
            if math.isnan(ratio):
                return "-"
            return three_digits(ratio) + ("!" if is_loss(ratio) else "x")

        return cell

    several = len({row.work.threads for row in found.rows}) > 1
    return [
        (("", "step"), lambda row: row.work.title),
        (("", "elements"), lambda row: row.work.shape),
        *([(("thr-", "eads"), lambda row: str(row.work.threads))] if several else []),
        (("", "gradstep"), lambda row: seconds_text(row.seconds("gradstep"))),
        (("", "GB/s"), bandwidth),
        (("of", "roof"), share),
        *((_two_lines(name), against(name)) for name in _entrants(found) if name not in OURS),
    ]


def _two_lines(name: str) -> tuple[str, str]:
    first, _, second = {"deepspeed": "deep-speed"}.get(name, name).partition("-")
    return (first, second) if second else ("", first)


def _entrants(found: Bench) -> list[str]:
    """Who was timed, or was wrong, at one work at least."""
    return [
        name
        for name in CONTESTANTS
        if any(
            result.seconds or result.check
            for row in found.rows
            if (result := row.results.get(name)) is not None
        )
    ]


def is_loss(ratio: float) -> bool:
    """Whether a peer is ahead, by what a table shows."""
    return round(ratio, 2) < 1


def _heading(found: Bench) -> list[str]:
    threads = ", ".join(str(n) for n in dict.fromkeys(row.work.threads for row in found.rows))
    versions = dict.fromkeys(
        part
        for name, text in found.versions.items()
        if name not in OURS
        for part in text.split(", ")
    )
    return [*wrapped(machine_line(found.machine, threads)), *wrapped(", ".join(versions))]


def machine_line(told: Mapping[str, Any], threads: str) -> str:
    """What runs where, from `bench.machine`, with so many threads."""
    cores = f"{told['cores']} core{'s' * (told['cores'] != 1)}"
    one = "thread" if threads == "1" else "threads"
    return (
        f"gradstep {told['version']}, {told['isa']}, {told['compiler']}, on {told['processor']}, "
        f"{cores}; {threads} {one}; {told['system']}, Python {told['python']}"
    )


def _notes(found: Bench) -> list[str]:
    notes = [
        f"gradstep: the time of a step on float32 arrays, the median of {found.rounds} rounds in "
        "which all contestants take turns.",
        "GB/s: parameter and states read and written, gradient read, over that time; with clip "
        "and zero the gradient is read twice and written. Beyond the memory's: in cache.",
        "of roof: the time of the same reads and writes without arithmetic, over gradstep's.",
        "1.84x: it takes 1.84 times as long as gradstep, the median ratio of a round. Above 1 "
        "gradstep is faster, 0.95! marks where it is not.",
        f"Before, {CHECKED_STEPS} steps were compared: gradstep has NumPy's bits, and a peer ends "
        f"within {TOLERANCE:g} of the distance that NumPy's parameters have moved, or differs.",
        *(["thinc zeroes the gradient at every step."] if "thinc" in _entrants(found) else []),
        *_growth(found),
        *_failures(found),
    ]
    return [line for note in notes for line in wrapped(note)]


def _failures(found: Bench) -> Iterator[str]:
    """A line for what was skipped, and for whoever was not used, or failed."""
    for row in found.rows:
        if row.skipped:
            yield f"skipped: {row.work}: {row.skipped}"
    missing = [name for name, reason in found.unused.items() if "not installed" in reason]
    for name, reason in found.unused.items():
        if name not in missing:
            yield f"{name}: not used: {reason}"
    for row in found.rows:
        for name, result in row.results.items():
            if result.problem not in ("", NO_RULE) and name not in found.unused:
                yield f"{name}: {row.work}: {result.problem}"
    if missing:
        yield f"not installed: {', '.join(missing)}"


def _growth(found: Bench) -> list[str]:
    """How the time per element grows, from rounds that a smaller work had part in."""
    notes = []
    for row in found.rows:
        if ratios := row.ratios("smaller"):
            work, times = row.work, row.work.elements / SMALLER
            growth = 1 / (float(np.median(ratios)) * times)
            notes.append(
                f"growth: {work.title} takes {1e9 * row.seconds('gradstep') / work.elements:.3f} "
                f"ns per element at {work.shape}, {growth:.2f} times as long as at "
                f"{short(SMALLER)} in the same rounds."
            )
    return notes


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
