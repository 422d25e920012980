"""One contestant in a process of its own, which pipes ask."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import time
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contestants import MOST_CALLS, MOST_WARM_UPS, ROUND_NS, WARM_UP_NS, Contestant
from .oracle import draw, gradients
from .works import Work

Array = NDArray[Any]


class Session:
    """A contestant from its first work to its last, as the worker is told."""

    def __init__(self) -> None:
        self._class: type[Contestant] = Contestant
        self._now: Contestant | None = None
        self._refill: list[Array] = []

    def load(self, contestant: str, packages: Sequence[str], cpus: Sequence[int]) -> str:
        """Stay on these processors, if any are given, and import the packages.

        Returns:
            Their names and versions.
        """
        if cpus:
            os.sched_setaffinity(0, cpus)
        for package in packages:
            import_module(package)
        module, _, name = contestant.partition(":")
        self._class = getattr(import_module(module), name)
        return ", ".join(f"{package} {metadata.version(package)}" for package in packages)

    def start(self, work: Work) -> bool:
        """Take the steps that are checked, unless the contestant cannot do such work."""
        if not self._class.can(work):
            return False
        self._now = self._class(work, draw(work, 0))
        for grads in gradients(work):
            self._now.fill(grads)
            self._now.step()
            self._refill = grads if work.clip or self._class.spoils_gradient else []
        return True

    def param(self, i: int, begin: int, end: int) -> Array:
        """A piece of an array of parameters."""
        assert self._now is not None
        return self._now.param(i).reshape(-1)[begin:end]

    def round(self) -> float:
        """The median of some calls, in seconds."""
        assert self._now is not None
        step, fill, refill = self._now.step, self._now.fill, self._refill

        def calls(budget_ns: int, most: int) -> list[int]:
            times: list[int] = []
            while len(times) < most and sum(times) < budget_ns:
                if refill:
                    fill(refill)
                start = time.perf_counter_ns()
                step()
                times.append(time.perf_counter_ns() - start)
            return times

        gc.disable()
        calls(WARM_UP_NS, MOST_WARM_UPS)
        times = calls(ROUND_NS, MOST_CALLS)
        gc.enable()
        return float(np.median(times)) / 1e9

    def end(self) -> None:
        """Let the arrays go."""
        self._now, self._refill = None, []
        gc.collect()


def serve() -> None:
    """Answer the commands on stdin until it is closed. What packages print goes nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    session = Session()
    while True:
        try:
            command, arguments = pickle.load(commands)
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            answer = True, getattr(session, command)(*arguments)
        except ModuleNotFoundError as error:
            answer = False, f"{error.name} is not installed"
        except Exception as error:
            answer = False, " ".join(f"{type(error).__name__}: {error}".split())
        pickle.dump(answer, answers, protocol=5)
        answers.flush()
