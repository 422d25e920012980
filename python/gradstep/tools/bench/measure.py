"""How long a step takes here and in every other package that is installed, in one run.

`gradstep bench` prints what this module finds. Each contestant works in a process of its own, takes
the same steps from the same start, and is only timed after its parameters have been compared with
those of NumPy. Rounds of all contestants alternate. Matplotlib is imported only to draw.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from ..._engine.memory import available_bytes
from .entrants import ALWAYS, CONTESTANTS, OURS, PEERS, PLAIN
from .oracle import Check, Oracle
from .system import machine
from .workers import Worker, WorkerError, needed_bytes
from .works import NO_RULE, TOLERANCE, Work

Item = TypeVar("Item")
#: Threads of the contestant before may still spin.
PAUSE_SECONDS = 0.01
ROUNDS = 15


# What is found


@dataclass
class Result:
    """What one contestant did at one work.

    Args:
        seconds: the median of each round.
        check: how its parameters compare with NumPy's; None if it computes nothing.
        problem: why it has no place in the ranking, if it has none.
    """

    seconds: list[float] = field(default_factory=list)
    check: Check | None = None
    problem: str = ""

    @property
    def timed(self) -> bool:
        return bool(self.seconds) and not self.problem


@dataclass
class Row:
    """A work, and who did it how fast. `skipped` says why nobody did it."""

    work: Work
    results: dict[str, Result] = field(default_factory=dict)
    skipped: str = ""

    def seconds(self, name: str) -> float:
        """The median of the contestant's rounds; NaN if it was not timed."""
        return float(np.median(self.results[name].seconds)) if self.timed(name) else math.nan

    def timed(self, name: str) -> bool:
        """Whether the contestant finished, with the right result."""
        return name in self.results and self.results[name].timed

    def ratios(self, name: str) -> list[float]:
        """How many times as long as gradstep it took in each round, if both were timed."""
        if not (self.timed(name) and self.timed("gradstep")):
            return []
        pairs = zip(self.results[name].seconds, self.results["gradstep"].seconds, strict=True)
        return [theirs / ours for theirs, ours in pairs]

    def ratio(self, name: str) -> float:
        """The median of `ratios`; NaN if one of them was not timed."""
        ratios = self.ratios(name)
        return float(np.median(ratios)) if ratios else math.nan


@dataclass
class Bench:
    """What was found.

    Args:
        machine: the processor, and what runs the kernels.
        versions: by contestant, its packages and their versions.
        unused: by contestant, why it took no part, or no further part.
        rows: one per work.
        rounds: how often each was timed.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    unused: dict[str, str]
    rows: list[Row]
    rounds: int

    @property
    def wrong_bits(self) -> list[Row]:
        """The works at which gradstep did not have NumPy's bits."""
        checks = ((row, row.results.get("gradstep", Result()).check) for row in self.rows)
        return [row for row, check in checks if check is not None and not check.same_bits]


def bench(
    works: Sequence[Work],
    peers: Sequence[str] = PEERS,
    *,
    rounds: int = ROUNDS,
    pythons: Mapping[str, str] = MappingProxyType({}),
) -> Bench:
    """Have every contestant that is installed do every work.

    Args:
        works: what to do.
        peers: names in `PEERS`; gradstep and the roofline always take part.
        rounds: how often each contestant is timed at each work.
        pythons: the interpreters of peers that have one of their own.

    Example:
        >>> from gradstep.tools.bench import Work, bench
        >>> found = bench([Work("sgd", 1000)], ["numpy"], rounds=3)
        >>> found.rows[0].results["gradstep"].check.same_bits
        True
        >>> len(found.rows[0].ratios("numpy"))
        3
    """
    found = Bench(machine(), {}, {}, [], rounds)
    with _progress(rounds * len(works)) as advance:
        for threads, group in groupby(works, lambda work: work.threads):
            own = list(group)
            wanted = {*ALWAYS, *(name for work in own for name in work.peers)}
            names = [name for name in (*OURS, *peers) if name in wanted]
            with _team(names, threads, pythons, found) as team:
                found.rows += [_measure(work, team, found, advance) for work in own]
    return found


@contextlib.contextmanager
def _team(
    names: Sequence[str], threads: int, pythons: Mapping[str, str], found: Bench
) -> Iterator[dict[str, Worker]]:
    """A worker for each contestant that can be imported."""
    with contextlib.ExitStack() as stack:
        team: dict[str, Worker] = {}
        for name in names:
            try:
                python = pythons.get(name, sys.executable)
                team[name] = Worker(CONTESTANTS[name], threads, python)
            except OSError as error:
                found.unused[name] = str(error)
            else:
                stack.callback(team[name].close)
        for name, worker in list(team.items()):
            try:
                found.versions[name] = worker.load()
            except WorkerError as error:
                found.unused[name] = str(error)
                del team[name]
        yield team


def _measure(
    work: Work, team: dict[str, Worker], found: Bench, advance: Callable[[int], object]
) -> Row:
    """Check and time whoever is in the team."""
    row = Row(work)
    present = [name for name in team if name in ALWAYS or name in work.peers]
    needed, available = needed_bytes(work, len(present)), available_bytes()
    if needed > 0.9 * available:
        row.skipped = f"needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} are free"
        advance(found.rounds)
        return row
    oracles = {
        storage: Oracle(replace(work, storage=storage))
        for storage in dict.fromkeys((work.storage, PLAIN))
    }
    for name in present:
        oracle = oracles[work.storage if CONTESTANTS[name].any_storage else PLAIN]
        with _noted(name, row, team, found):
            _start(name, team[name], oracle, row.results[name])
    for turn in range(found.rounds):
        able = [name for name in present if not row.results[name].problem]
        for name in rotated(able, turn):
            with _noted(name, row, team, found):
                time.sleep(PAUSE_SECONDS)
                row.results[name].seconds.append(team[name].ask("round"))
        advance(1)
    for name in filter(team.__contains__, present):
        with _noted(name, row, team, found):
            team[name].ask("end")
    return row


@contextlib.contextmanager
def _noted(name: str, row: Row, team: dict[str, Worker], found: Bench) -> Iterator[None]:
    """Make what goes wrong with a contestant a line of its result. Who dies leaves the team."""
    result = row.results.setdefault(name, Result())
    try:
        yield
    except WorkerError as error:
        result.problem = str(error)
        if error.fatal:
            found.unused[name] = f"{error} at {row.work}"
            del team[name]


def _start(name: str, worker: Worker, oracle: Oracle, result: Result) -> None:
    """Have the steps taken that are checked, and check them."""
    if not worker.ask("start", oracle.work):
        result.problem = NO_RULE
    elif CONTESTANTS[name].ranked:
        result.check = oracle.check(lambda *piece: worker.ask("param", *piece))
        result.problem = _complaint(name, result.check)


def _complaint(name: str, check: Check) -> str:
    """What keeps a contestant with these parameters from being ranked."""
    if name in OURS:
        return "" if check.same_bits else "has other bits than NumPy"
    within = check.deviation <= TOLERANCE  # which NaN is not
    return "" if within else f"ends {check.deviation:.2g} of the distance moved away from NumPy"


def rotated(items: Sequence[Item], turn: int) -> list[Item]:
    """The items in their order, from another one on at each turn.

    Example:
        >>> from gradstep.tools.bench import rotated
        >>> rotated("abc", 1)
        ['b', 'c', 'a']
    """
    first = turn % len(items) if items else 0
    return [*items[first:], *items[:first]]


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    """A function to call after some of so many rounds: it moves a bar on a terminal, with tqdm."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda rounds: None
        return
    with tqdm(total=total, desc="measuring", leave=False, unit=" rounds", disable=None) as bar:
        yield bar.update
