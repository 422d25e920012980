"""The machine, and other things that reports say."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from ... import runtime
from .workers import _processors


def machine() -> dict[str, Any]:
    """The processor and the system, and what `gradstep.info` says."""
    return {
        "processor": _processor(),
        "cores": len(_processors()) or os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **runtime.info(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    return platform.processor() or platform.machine()
