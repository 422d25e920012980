"""What was measured, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .measure import Bench, Result, Row
from .works import CHECKED_STEPS, TOLERANCE


def as_json(found: Bench) -> dict[str, Any]:
    """All that was found, for `json.dumps`."""
    return {
        "machine": found.machine,
        "versions": found.versions,
        "unused": found.unused,
        "rounds": found.rounds,
        "checked_steps": CHECKED_STEPS,
        "tolerance": TOLERANCE,
        "works": [
            {
                **{name: value for name, value in asdict(row.work).items() if name != "peers"},
                "class": row.work.optimizer.__name__,
                "title": row.work.title,
                "options": row.work.options,
                "bytes_per_element": row.work.bytes_per_element,
                "skipped": row.skipped,
                "contestants": {
                    name: _result_as_json(row, name, result) for name, result in row.results.items()
                },
            }
            for row in found.rows
        ],
    }


def _result_as_json(row: Row, name: str, result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {"problem": result.problem}
    if result.check is not None:
        deviation = result.check.deviation  # JSON has no NaN
        told["same_bits"] = result.check.same_bits
        told["deviation"] = deviation if math.isfinite(deviation) else None
    for noun, values in (("seconds", result.seconds), ("ratio", row.ratios(name))):
        if values:
            told[noun] = in_rounds(values)
    return told


def in_rounds(values: Sequence[float]) -> dict[str, Any]:
    """What each round gave, and where the middle of it lies."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {
        "median": float(median),
        "quartiles": [float(low), float(high)],
        "rounds": list(values),
    }
