"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal

import pytest

# OpenMP reads it when it is loaded. Threads that spin while they wait keep others from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gradstep as gs
from gradstep import _core
from oracle import LEVELS

#: It begins with MPI, which not every place has.
collect_ignore = ["mpi_ranks.py"]


@pytest.fixture(params=LEVELS)
def level(request):
    """Each level that this processor runs, in use."""
    before = _core.get_isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(autouse=True)
def _keep_threads():
    before = gs.get_num_threads()
    yield
    gs.set_num_threads(before)


@pytest.fixture
def ctrl_c_interrupts():
    """Raises KeyboardInterrupt at SIGINT, which background jobs and some CI systems ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
