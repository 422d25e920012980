"""Adam against every other package that is installed, as `gradstep bench` does it, in short."""

from __future__ import annotations

import pytest

import gradstep as gs
from gradstep.tools import bench

SIZES = [1_000, 100_000]


@pytest.fixture(scope="module")
def found(request):
    """What was measured, which ends in the summary."""
    works = bench.matrix(["adam"], SIZES, 1, [gs.get_num_threads()])
    found = bench.bench(works, rounds=7)

    class Summary:
        @staticmethod
        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_sep("-", "gradstep against other packages")
            terminalreporter.write_line(bench.table(found))

    request.config.pluginmanager.register(Summary())
    return found


@pytest.mark.parametrize("size", SIZES)
def test_adam(found, size):
    row = next(row for row in found.rows if row.work.size == size)
    assert row.results["gradstep"].check.same_bits
    assert row.timed("roofline")
    timed = [name for name in bench.PEERS if row.timed(name)]
    assert timed == [name for name in bench.PEERS if name in found.versions]
