"""How long the linear models take here and in scikit-learn, on the same data with the same penalty.

`gradstep bench --linear` prints what this module finds. All fit in this process, in rounds that
alternate, and are only timed after their optimum has been compared with that of another method:
L-BFGS, or the closed form of least squares. It needs the extra `gradstep[linear]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets import demo_packages
from ..report import aligned, count
from .linear_works import (
    CHECK_EXCESS,
    CHECK_TOL,
    CONTESTANTS,
    GRADIENT_GOAL,
    NOT_THERE,
    OBJECTIVE_GOAL,
    OURS,
    R2_GOAL,
    THEIRS,
    VARIANTS,
    Contestant,
    Result,
    Row,
    Work,
)
from .measure import _progress
from .record import in_rounds
from .system import machine
from .text import is_loss, machine_line, seconds_text, three_digits, wrapped

ROUNDS = 5


# What is found


@dataclass
class Found:
    """What was found: the machine and the versions, the rows, and how often each was timed."""

    machine: dict[str, Any]
    versions: dict[str, str]
    rows: list[Row]
    rounds: int

    @property
    def wrong(self) -> list[Row]:
        """The rows at which gradstep ended elsewhere."""
        return [
            row
            for row in self.rows
            if any(
                contestant.library == OURS and result.problem not in ("", NOT_THERE)
                for contestant, result in row.results.items()
            )
        ]


def bench(works: Sequence[Work], *, rounds: int = ROUNDS) -> Found:
    """Have every solver do every work.

    Args:
        works: what to do.
        rounds: how often each is timed.

    Raises:
        UsageError: scikit-learn is missing.

    Example:
        >>> from functools import partial
        >>> from gradstep.tools.bench.linear import bench
        >>> from gradstep.tools.bench.linear_works import Epochs, logistic
        >>> found = bench([Epochs("logistic", partial(logistic, 100, 5), epochs=10)], rounds=3)
        >>> [row.title for row in found.rows]
        ['logistic, 100 x 5: an epoch', 'logistic, 100 x 5: fit of one']
        >>> len(found.rows[0].ratios("sag"))
        3
    """
    with demo_packages():
        import scipy
        import sklearn
    versions = {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__}
    with _progress(rounds * len(works)) as advance:
        rows = [row for work in works for row in work.measure(rounds, advance)]
    return Found(machine(), versions, rows, rounds)


def table(found: Found) -> str:
    """The machine, the rows, and what the columns mean."""

    def ratio(variant: str) -> Callable[[Row], str]:
        def cell(row: Row) -> str:
            value = row.ratio(variant)
            return (
                "-"
                if math.isnan(value)
                else f"{three_digits(value)}{'!' if is_loss(value) else 'x'}"
            )

        return cell

    def seconds(contestant: Contestant) -> Callable[[Row], str]:
        return lambda row: seconds_text(row.seconds(contestant))

    columns: list[tuple[tuple[str, str], Callable[[Row], str]]] = [
        (("", "work"), lambda row: row.title),
        *(((c.library, c.variant), seconds(c)) for c in CONTESTANTS),
        *((("ratio", variant), ratio(variant)) for variant in VARIANTS),
    ]
    cells = [[*heading, *map(cell, found.rows)] for heading, cell in columns]
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    heading = [*wrapped(machine_line(found.machine, str(found.machine["threads"]))), versions]
    notes = [line for note in _notes(found) for line in wrapped(note)]
    return "\n".join([*heading, "", *aligned(cells), "", *notes])


def _notes(found: Found) -> Iterator[str]:
    yield (
        f"The median of {count(found.rounds, 'round')} in which all take turns. 1.84x: "
        "scikit-learn takes 1.84 times as long as gradstep, the median ratio of a round; 0.95! "
        "marks where it is faster. Of sparse rows both are to gradstep's saga: it has no sag for "
        "them."
    )
    yield (
        f"Before, each was fitted with tol={CHECK_TOL[64]:g}, in float32 {CHECK_TOL[32]:g}: its "
        f"objective was within {CHECK_EXCESS:g} of the least, as L-BFGS or the closed form finds "
        "it, or it has no time."
    )
    yield "logistic: two classes, float32, alpha = 1/n. an epoch: the difference of longer fits."
    yield (
        f"digits: softmax. gradstep to a gradient of the norm {GRADIENT_GOAL:g}, scikit-learn with "
        f"the loosest tol = 1, 0.1, ... that gets within {OBJECTIVE_GOAL:g} of the least objective."
    )
    yield (
        "photo: least squares, alpha = 1e-4. All with the loosest such tol that gets within "
        f"{R2_GOAL:g} of the R2 of the closed form."
    )
    for row in found.rows:
        told = [
            f"{c} tol={r.tol:.2g}, {r.epochs} epochs"
            for c, r in row.results.items()
            if r.tol is not None
        ]
        if told:
            yield f"{row.title}: {'; '.join(told)}."
        for contestant, result in row.results.items():
            if result.problem not in ("", NOT_THERE):
                yield f"{contestant}: {row.title}: {result.problem}"


def as_json(found: Found) -> dict[str, Any]:
    """All that was found, for `json.dumps`."""
    return {
        "machine": found.machine,
        "versions": found.versions,
        "rounds": found.rounds,
        "works": [
            {
                "title": row.title,
                "contestants": {
                    str(contestant): _result_as_json(row, contestant, result)
                    for contestant, result in row.results.items()
                },
            }
            for row in found.rows
        ],
    }


def _result_as_json(row: Row, contestant: Contestant, result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {"problem": result.problem}
    if result.tol is not None:
        told |= {"tol": result.tol, "epochs": result.epochs}
    if result.seconds:
        told["seconds"] = in_rounds(result.seconds)
    if contestant.library == THEIRS and (ratios := row.ratios(contestant.variant)):
        told["ratio"] = in_rounds(ratios)
    return told
