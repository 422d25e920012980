"""Processes that hold one contestant each."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from .entrants import Contestant
from .works import Work

#: The longest that a worker may take for an answer; DeepSpeed compiles at its first step.
PATIENCE_SECONDS = 600


# Workers


class WorkerError(Exception):
    """What went wrong in a worker, in one line; `fatal` if it is gone."""

    def __init__(self, text: str, fatal: bool) -> None:
        super().__init__(text)
        self.fatal = fatal


class Worker:
    """A process of a contestant's own, so that none meets another's threads, or end.

    Args:
        contestant: whose.
        threads: the most that it may use; it gets as many processors.
        python: the interpreter, which must have gradstep and the package.
    """

    def __init__(self, contestant: Contestant, threads: int, python: str = sys.executable) -> None:
        self._process = subprocess.Popen(
            [python, "-c", "from gradstep.tools.bench.session import serve; serve()"],
            env=_environment(threads, python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._contestant, self._threads, self._gave_up = contestant, threads, False

    def load(self) -> str:
        """Import the packages. Returns their versions."""
        cpus = _processors()[-self._threads :] if self._threads < len(_processors()) else []
        return str(self.ask("load", self._contestant.cls, self._contestant.packages, cpus))

    def ask(self, command: str, *arguments: Any) -> Any:
        """Have a method of `session.Session` called, and wait for what it returns.

        Raises:
            WorkerError: it raised, the process died, or it does not answer.
        """
        process, late = self._process, threading.Timer(PATIENCE_SECONDS, self._give_up)
        assert process.stdin is not None
        assert process.stdout is not None
        late.start()
        try:
            pickle.dump((command, arguments), process.stdin)
            process.stdin.flush()
            good, answer = pickle.load(process.stdout)
        except Exception:  # nothing, half an answer, or none at all
            raise WorkerError(self._last_words(), fatal=True) from None
        finally:
            late.cancel()
        if not good:
            raise WorkerError(answer, fatal=False)
        return answer

    def _give_up(self) -> None:
        self._gave_up = True
        self._process.kill()

    def close(self) -> None:
        """End the process, whatever it does."""
        with self._process as process:
            process.kill()
            if process.stdin is not None:
                with contextlib.suppress(OSError):  # it may hold half a command
                    process.stdin.close()

    def _last_words(self) -> str:
        if self._gave_up:
            return f"did not answer for {PATIENCE_SECONDS} seconds"
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "its answer cannot be read"
        # Until it serves, its stderr is ours: a traceback, whose last line says why.
        said = self._process.stderr.read().decode(errors="replace") if self._process.stderr else ""
        if said.strip():
            return said.strip().splitlines()[-1]
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with code {code}"


def _environment(threads: int, python: str) -> dict[str, str]:
    """For a worker of so many threads. Tools beside its interpreter are on its path."""
    libraries = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA", "GRADSTEP")
    single = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    xla = [os.environ.get("XLA_FLAGS", ""), *([single] if threads == 1 else [])]
    return {
        **os.environ,
        **{f"{library}_NUM_THREADS": str(threads) for library in libraries},
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(xla).strip(),
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")]),
        "PYTHONSAFEPATH": "1",
    }


def _processors() -> list[int]:
    """Those that this process may use, or none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def needed_bytes(work: Work, contestants: int) -> int:
    """About what a work takes: all contestants have their arrays at once.

    Each has parameter, gradient, states and what refills the gradient. One at a time, it has the
    temporaries of three expressions. The oracle keeps its result where all elements count.
    """
    arrays = contestants * (2 + sum(work.states) + work.clip) + 3 + (not work.by_element)
    return round(4 * work.elements * arrays)
