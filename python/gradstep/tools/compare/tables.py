"""The table."""

from __future__ import annotations

from collections.abc import Callable

from ..report import WIDTH, _wrapped, aligned, count
from .comparison import Comparison
from .problem import Batches, Problem
from .runs import Run, judged_by


def table(found: Comparison) -> str:
    """What was found, in words and numbers, best first."""
    columns = [
        [*heading, *(cell(run) for run in found.runs)] for heading, cell in _columns(found.problem)
    ]
    races = [[race.name, f"{race.distances[-1]:.1e}"] for race in found.races]
    start = ["start", f"{found.races[0].distances[0]:.1e}"]
    distances = [["", "distance to optimum"], start, *races]
    tables = [*aligned(columns, WIDTH), "", *aligned(distances, WIDTH)]
    return "\n".join([*_wrapped(_heading(found)), "", *tables, "", *_notes(found)])


def _columns(problem: Problem) -> list[tuple[tuple[str, str], Callable[[Run], str]]]:
    """Of each column the heading in two lines, and its cell for a run."""

    def above_least(run: Run) -> str:
        return "-" if run.diverged else f"{max(0.0, run.losses[-1] - problem.least):.1e}"

    def update_ratio(run: Run) -> str:
        ours, numpys = run.update_microseconds
        return f"{numpys / ours:.1f}"

    def score(run: Run) -> str:
        if run.diverged:
            return "-"
        value = problem.score(run.point)
        return f"{100 * value:.1f} %" if problem.data.classes else f"{value:.4f}"

    columns: list[tuple[tuple[str, str], Callable[[Run], str]]] = [
        (("", "rule"), lambda run: run.name),
        (("", "lr"), lambda run: f"{run.recipe.learning_rate(run.batches):g}"),
        (("training", "loss"), lambda run: "diverged" if run.diverged else f"{run.losses[-1]:.4g}"),
        (("above", "least"), above_least),
        (("held out", "accuracy" if problem.data.classes else "R2"), score),
        (("training", "seconds"), lambda run: f"{run.seconds[0][-1]:.3f}"),
        (("in", "NumPy"), lambda run: f"{run.seconds[1][-1]:.3f}"),
        (("", "ratio"), lambda run: f"{run.seconds[1][-1] / run.seconds[0][-1]:.1f}"),
        (("update", "us"), lambda run: f"{run.update_microseconds[0]:.1f}"),
        (("in", "NumPy"), lambda run: f"{run.update_microseconds[1]:.1f}"),
        (("", "ratio"), update_ratio),
        (("same", "bits"), lambda run: "yes" if run.same_bits else "NO"),
    ]
    return [c for c in columns if problem.optimum is not None or c[0] != ("above", "least")]


def _model(problem: Problem) -> str:
    rows, features = problem.data.x.shape
    classes = f", {problem.data.classes} classes" if problem.data.classes else ""
    model = "softmax regression" if problem.data.classes else "least squares"
    size = f"{count(rows, 'row')} x {count(features, 'feature')}"
    name = problem.data.name.encode("utf-8", "backslashreplace").decode()
    name = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)
    return f"{name}: {model}, {size}{classes}"


def _heading(found: Comparison) -> str:
    held_out = f"{len(found.problem.data.x_test):,} rows held out"
    epochs = count(max(run.epochs for run in found.runs), "epoch")
    return f"{_model(found.problem)}; {held_out}; {epochs} of {_cut(found.batches)}"


def _cut(batches: Batches) -> str:
    return f"{count(len(batches), 'batch', 'es')} of {batches.size:,}"


def _notes(found: Comparison) -> list[str]:
    notes = [
        "training seconds: the whole training with its gradients, which are NumPy's on both sides.",
        "update us: one step without its gradient, in microseconds, in the median epoch.",
        "same bits: NumPy's training ended with the same parameters, bit for bit.",
    ]
    if found.problem.optimum is not None:
        least = f"least: the least possible loss, {found.problem.least:.6g} (numpy.linalg.lstsq)."
        notes.insert(0, least)
    drawn = [name for name in ("SAG", "SAGA") if name in found.paths]
    if drawn:
        who = f"{' and '.join(drawn)} draw{'s' * (len(drawn) == 1)}"
        notes.append(f"{who} batches at random; other rules see each once per epoch.")
    for run in found.runs:
        if run.diverged:
            notes.append(f"diverged: {run.name} in epoch {run.epochs}.")
        if run.recipe.full_batch:
            notes.append(f"full batch: {run.name} takes one step per epoch, with all rows.")
    used = {run.name: judged_by(run.recipe.cls) for run in found.runs}
    points = [f"{name} at {method}()" for name, method in used.items() if method]
    if points:
        notes += _wrapped(f"judged where their users take them: {', '.join(points)}.")
    for name, why in found.left_out.items():
        notes += _wrapped(f"left out: {name}: {why}")
    first = found.races[0]
    passes, batches = count(first.epochs, "pass", "es"), _cut(first.batches)
    lr, weight_decay = first.finite_sum.lr, first.finite_sum.weight_decay
    notes += [
        f"distance to optimum: after {passes} over {batches}, the same random ones for each rule,",
        f"  all with lr {lr:g}, which SAGA is sure to converge with, and weight_decay "
        f"{weight_decay:g}.",
    ]
    return notes
