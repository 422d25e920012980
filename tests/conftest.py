"""Fixtures of all tests, and which of their items run when."""

from __future__ import annotations

import heapq
import itertools
import os
import signal
from collections import defaultdict

import hypothesis
import pytest

# OpenMP reads it when it is loaded. Threads that spin while they wait keep others from running.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gradstep as gs
from gradstep import _core
from oracle import LEVELS

#: It begins with MPI, which not every place has.
collect_ignore = ["mpi_ranks.py"]

hypothesis.settings.register_profile("quick", max_examples=10, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=300, deadline=None, print_blob=True)
hypothesis.settings.load_profile("quick")


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


def cases_of(items):
    """The items of one test by their indices along the axes of its product."""
    axes = defaultdict(dict)  # the identities of values, in the order in which they come
    return {
        tuple(
            axes[name].setdefault(id(value), len(axes[name]))
            for name, value in item.callspec.params.items()
        ): item
        for item in items
    }


def covering(cases, strength=2):
    """A choice of cases in which any values that `strength` axes take together still occur.

    Cases are tuples of indices. The next one is always that which adds the most combinations of
    values (Cohen et al., The AETG system, 1997).
    """

    def combinations(case):
        return {*itertools.combinations(enumerate(case), strength)}

    seen, chosen = set(), []
    # Gains only fall, so that a case whose gain still holds when it comes up is the best.
    heap = [(-len(combinations(case)), hash(case), case) for case in cases]
    heapq.heapify(heap)
    while heap:
        before, tie, case = heapq.heappop(heap)
        gain = len(combinations(case) - seen)
        if gain == -before:
            chosen.append(case)
            seen |= combinations(case)
        elif gain:
            heapq.heappush(heap, (-gain, tie, case))
    return chosen


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test that is marked `covering`, what the choice leaves out is for the nights."""
    products = defaultdict(list)
    for item in items:
        runs = not any(any(mark.args) for mark in item.iter_markers("skipif"))
        if runs and (mark := item.get_closest_marker("covering")):
            products[(item.function, *mark.args)].append(item)
    for (_, *strength), product in products.items():
        cases = cases_of(product)
        for case in cases.keys() - covering(cases, *strength):
            cases[case].add_marker("nightly")
