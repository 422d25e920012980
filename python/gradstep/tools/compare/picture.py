"""The picture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._engine.files import replacing
from ..report import PICTURE_STYLE, count, label_end, spread
from .comparison import PATH_START, Comparison
from .recipes import FINITE_SUM_RULES, RULES, Recipe
from .runs import Race, Run
from .tables import _cut, _model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]


def save_picture(found: Comparison, path: Path) -> None:
    """Write what `draw` draws to a file, in the format of its suffix."""
    from matplotlib import rc_context, rcParamsDefault

    settings = {**rcParamsDefault, **PICTURE_STYLE}
    settings.pop("backend", None)
    with replacing(path) as file, warnings.catch_warnings(), rc_context(settings):
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        draw(found).savefig(file, format=path.suffix[1:].lower())


def draw(found: Comparison) -> Figure:
    """Five panels: loss by epoch, time and batch size, paths, and distances to the optimum."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(13, 16), layout=layout)
    grid = figure.add_gridspec(3, 2)
    by_epoch, by_time, by_size, surface = (figure.add_subplot(grid[i]) for i in range(4))
    to_optimum = figure.add_subplot(grid[2, :])
    _draw_epochs(by_epoch, found)
    _draw_seconds(by_time, found)
    _draw_sizes(by_size, found)
    _draw_paths(surface, found)
    _draw_races(to_optimum, found.races)
    many = len(found.runs) > 1
    handles, labels = by_time.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=6,
        title=_model(found.problem).replace("$", r"\$") + "; lowest loss first" * many,
        title_fontsize=14,
    )
    figure.supxlabel("Loss: faint after each epoch, bold its running median.", fontsize=10)
    return figure


def _draw_epochs(axes: Axes, found: Comparison) -> None:
    lines = _lines(found.runs)
    for run in found.runs:
        _draw_loss(axes, run, range(run.epochs + 1), **lines[run.name])
    axes.set_title("Loss by epoch: the same batches for each rule")
    _set_epoch_axis(axes)
    _set_loss_axis(axes, found.runs)
    if not _have_colours(found.runs):
        _label_ends(axes, [run for run in found.runs if lines[run.name]["color"] != OTHERS], lines)


def _label_ends(axes: Axes, runs: Sequence[Run], lines: Mapping[str, Mapping[str, Any]]) -> None:
    """The names beside the ends of their lines, moved apart where these are close."""
    bottom, top = axes.get_ylim()
    ends = [(run.epochs, min(max(_smooth(_above_least(run))[-1], bottom), top)) for run in runs]
    in_panel = axes.transData + axes.transAxes.inverted()
    places = spread([float(y) for _, y in in_panel.transform(ends)], 0.052, 0.0, 1.0)
    for run, end, place in zip(runs, ends, places, strict=True):
        colour = lines[run.name]["color"]
        label_end(axes, run.name, end, (1.03, place), colour)


def _draw_seconds(axes: Axes, found: Comparison) -> None:
    lines, grey = _lines(found.runs), 0
    for place, run in enumerate(found.runs, 1):
        label = f"{place}. {run.name}" if len(found.runs) > 1 else run.name
        if lines[run.name]["color"] == OTHERS:
            grey, label = grey + 1, ""
        _draw_loss(axes, run, run.seconds[0], label=label, **lines[run.name])
    if grey:
        axes.plot([], [], **_OTHER_LINE, label=f"{grey} other{'s' * (grey > 1)}, in the table")
    best = found.runs[0]
    numpys = {"color": "#808080", "linestyle": "-.", "label": f"{best.name} in NumPy"}
    _draw_loss(axes, best, best.seconds[1], **numpys)
    axes.set(title="Loss by time: gradients included", xlabel="seconds of training")
    _set_loss_axis(axes, found.runs)
    _end_with_the_lines(axes)


def _end_with_the_lines(axes: Axes) -> None:
    """No room beyond where the last line leaves the panel through its floor."""
    floor = axes.get_ylim()[0]
    points = [line.get_xydata() for line in axes.lines]
    end = max(x[y >= floor].max(initial=0) for x, y in (np.transpose(xy) for xy in points))
    axes.set_xlim(-0.04 * end, 1.04 * end)


def _draw_sizes(axes: Axes, found: Comparison) -> None:
    for run, dash in zip(found.sizes, ("--", "-", ":"), strict=False):
        rows, steps = count(run.batches.size, "row"), count(len(run.batches), "step")
        label = f"{rows},\n{steps} per epoch"
        line = {"color": RULES["SGD"].colour, "linestyle": dash, "label": label}
        _draw_loss(axes, run, range(run.epochs + 1), **line)
    rows = count(len(found.sizes[0].batches.problem.data.x), "row")
    axes.set_title(f"Batch size: SGD with all, some or one of {rows}", pad=44)
    _set_epoch_axis(axes)
    legend = axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, fontsize=10)
    legend.set_in_layout(False)
    _set_loss_axis(axes, found.sizes)


def _draw_paths(axes: Axes, found: Comparison) -> None:
    line = found.line
    assert line.optimum is not None  # it is least squares
    optimum = np.concatenate(line.optimum)
    lines = _lines(found.runs)
    one_per_colour = {lines[name]["color"]: name for name in reversed(found.paths)}
    for colour, name in one_per_colour.items():
        if colour != OTHERS:
            path = {**lines[name], "marker": ".", "markersize": 5, "linewidth": 1.2}
            axes.plot(*found.paths[name].T, **path)
    for text, (x, y), marker in (("start", PATH_START, "o"), ("optimum", optimum, "*")):
        axes.plot(x, y, "k", marker=marker, markersize=14, markeredgecolor="w", zorder=5)
        below: Any = {"xytext": (0, -26), "textcoords": "offset points", "ha": "center"}
        box = {"color": "w", "alpha": 0.8, "pad": 1}
        axes.annotate(text, (x, y), **below, weight="bold", bbox=box)
    axes.margins(0.12)
    slope, intercept = (np.linspace(*limits, 200) for limits in (axes.get_xlim(), axes.get_ylim()))
    away = np.stack(np.meshgrid(slope, intercept), axis=-1) - optimum
    hessian = line.with_ones.T @ line.with_ones / len(line.with_ones)
    height = 0.5 * np.einsum("...i,ij,...j", away, hessian, away)
    levels = height.max() / 2.0 ** np.arange(12, 0, -1)
    axes.contour(slope, intercept, height, levels, colors="#b8b8b8", linewidths=0.8, zorder=0)
    axes.set(title="Paths over the error surface of a line", xlabel="slope", ylabel="intercept")
    axes.grid(False)


def _draw_races(axes: Axes, races: Sequence[Race]) -> None:
    for race in races:
        label = f"{race.name}: {FINITE_SUM_RULES[race.name]}"
        axes.plot(_drawn(race.distances), **_own_line(race.recipe), label=label)
    cut = _cut(races[0].batches)
    axes.set_title(f"Who reaches the optimum: one learning rate for all, {cut}")
    _set_epoch_axis(axes)
    axes.set_ylabel("distance to the optimum")
    axes.legend(loc="lower left", title="gradients kept", alignment="left", title_fontsize=11)
    _set_log_axis(axes, [_drawn(race.distances) for race in races], depth=1e-12)


def _draw_loss(axes: Axes, run: Run, times: Sequence[float], **line: Any) -> None:
    above = _above_least(run)
    if line["color"] != OTHERS:
        axes.plot(times, above, color=line["color"], alpha=0.2, linewidth=0.8)
    axes.plot(times, _smooth(above), **{"linewidth": 2, **line})


def _above_least(run: Run) -> Array:
    return _drawn(np.array(run.losses) - run.batches.problem.least)


def _drawn(values: ArrayLike) -> Array:
    """What is drawn of a curve. That of a rule that diverges ends far above the picture."""
    values = np.asarray(values)
    return np.asarray(np.fmin(values, 1000 * values[0]))


def _set_epoch_axis(axes: Axes) -> None:
    axes.set_xlabel("epochs (passes over the training rows)")
    axes.locator_params(axis="x", integer=True)


def _set_loss_axis(axes: Axes, runs: Sequence[Run]) -> None:
    least = runs[0].batches.problem.optimum is not None
    axes.set_ylabel("training loss above the least possible" if least else "training loss")
    _set_log_axis(axes, [_above_least(run) for run in runs])


def _set_log_axis(axes: Axes, curves: Sequence[Array], depth: float = 1e-9) -> None:
    """Only as far as matters: a rule may diverge, or reach the optimum itself."""
    values = np.concatenate(curves)
    start = values[0]
    if start > 0:  # else it starts at the optimum: constant features say nothing
        lowest = values[values > 0].min()
        axes.set_yscale("log")
        axes.set_ylim(max(lowest / 1.5, depth * start), 1.5 * min(values.max(), 10 * start))


def _smooth(values: Array) -> Array:
    """The running median over a tenth of the values; the first stay."""
    reach = len(values) // 20
    near = (slice(max(0, i - min(i, reach)), i + min(i, reach) + 1) for i in range(len(values)))
    return np.array([np.median(values[part]) for part in near])


#: Where there are rules without a colour, so many of the best have one; SGD is to compare with.
BEST_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#7B3FA0", "#56B4E9")
OTHERS = "#b8b8b8"
_OTHER_LINE: dict[str, Any] = {"color": OTHERS, "linestyle": "-", "linewidth": 0.9}


def _have_colours(runs: Sequence[Run]) -> bool:
    return all(run.recipe.colour for run in runs)


def _lines(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """By rule, how its line is drawn: in its own colour where all have one, else by its place."""
    if _have_colours(runs):
        return {run.name: _own_line(run.recipe) for run in runs}
    lines = {run.name: dict(_OTHER_LINE) for run in runs}
    ranked = [name for name in lines if name != "SGD"]
    for name, colour in zip(ranked, BEST_COLOURS, strict=False):
        lines[name] = {"color": colour, "linestyle": "-", "zorder": 2.2}
    if "SGD" in lines:
        lines["SGD"] = _own_line(RULES["SGD"])
    return lines


def _own_line(recipe: Recipe) -> dict[str, Any]:
    """Where two lines coincide, the dashed one goes on top and both are seen."""
    order = 2.1 + (recipe.dash != "-")
    return {"color": recipe.colour, "linestyle": recipe.dash, "linewidth": 2, "zorder": order}
