"""The faults of `mutants.py` still fit the sources, so that the measure of the suite cannot rot."""

from __future__ import annotations

import pytest

from mutants import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_applies(mutation):
    def count(path):
        return path.read_text(encoding="utf-8").count(mutation.old)

    path = ROOT / mutation.path
    if not path.is_file() or count(path) != 1:
        files = [*ROOT.glob("python/**/*.py"), *ROOT.glob("cpp/**/*.[ch]pp")]
        places = {f"{other.relative_to(ROOT)}": count(other) for other in files if count(other)}
        pytest.fail(f"{mutation.old!r} must stand once in {mutation.path}; it is in {places}")
    assert mutation.new != mutation.old
    missing = [name for name in mutation.tests.split() if not (ROOT / "tests" / name).is_file()]
    assert mutation.tests
    assert not missing


def test_faults_have_names_of_their_own():
    faults = [mutation.fault for mutation in MUTATIONS]
    assert len({*faults}) == len(faults)
