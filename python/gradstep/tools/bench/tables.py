"""What `gradstep bench` shows of what it has found: a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..report import aligned
from .entrants import CLASS_PEERS, CONTESTANTS, OURS, PLAIN
from .measure import Bench, Result, Row
from .text import WIDTH, _or_dash, is_loss, machine_line, seconds_text, three_digits, wrapped
from .works import CHECKED_STEPS, LEFT_OUT, NO_RULE, SMALLER, TOLERANCE, short


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


def _heading(found: Bench) -> list[str]:
    threads = ", ".join(str(n) for n in dict.fromkeys(row.work.threads for row in found.rows))
    versions = dict.fromkeys(
        part
        for name, text in found.versions.items()
        if name not in OURS
        for part in text.split(", ")
    )
    return [*wrapped(machine_line(found.machine, threads)), *wrapped(", ".join(versions))]


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
