"""Steps shared out among processes: the bits of one, and no rank that waits for ever."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import checkpoint
from gradstep._engine import files as state_files
from gradstep.tools.cli import main
from gradstep.tools.compare.ranks import find_mpiexec
from gradstep.tools.datasets import UsageError
from oracle import python

pytest.importorskip("mpi4py", reason="needs mpi4py")
try:
    MPIEXEC = find_mpiexec()
except UsageError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = [pytest.mark.mpi, pytest.mark.slow]
HERE = Path(__file__).parent


def run(ranks: int, *command: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Start a Python program on so many ranks."""
    done = subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def on_ranks(ranks: int, function: str, *arguments: object, fails: bool = False) -> str:
    """Run a function of mpi_ranks.py. What the processes wrote to stderr."""
    return run(ranks, HERE / "mpi_ranks.py", function, *arguments, fails=fails).stderr


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_bits_of_one_process(ranks):
    on_ranks(ranks, "same_bits")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_parameters_of_the_caller_are_updated(ranks, tmp_path):
    on_ranks(ranks, "in_place", tmp_path / "state")


@pytest.mark.parametrize("ranks", [1, 4])
def test_states_in_bfloat16(ranks, tmp_path):
    pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    on_ranks(ranks, "rounded_by_chance", tmp_path / "state")


def test_ten_million_on_four_ranks():
    on_ranks(4, "ten_million")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_schedules_weights_and_memory_of_its_own(ranks):
    on_ranks(ranks, "schedules_and_own_memory")


def test_what_differs_between_ranks_is_named():
    on_ranks(2, "disagreements")


@pytest.mark.parametrize("ranks", [1, 3])
def test_gradients_that_are_not_finite(ranks):
    on_ranks(ranks, "not_finite")


def test_an_exception_on_one_rank_ends_all():
    told = on_ranks(2, "uncaught", fails=True)
    assert "LookupError: the data of this rank are lost" in told


def test_states_outlive_the_ranks(tmp_path):
    for name, ranks in {"four": 4, "bucket": 2, "one": 1}.items():
        path = tmp_path / name
        on_ranks(ranks, "save", path)
        parts = [file.name for file in tmp_path.iterdir() if file.name.startswith(f"{name}.")]
        assert len(parts) == ranks + 2  # and the plain one, and the next step
    on_ranks(1, "load", tmp_path / "four", tmp_path / "other")
    on_ranks(2, "load", tmp_path / "four", tmp_path / "other")
    on_ranks(3, "load", tmp_path / "bucket", tmp_path / "other")
    plain = gs.ScheduleFreeAdamW(
        {"a": np.zeros(30_000, np.float32), "b": np.zeros((6667, 3), np.float32)}
    )
    plain.load(tmp_path / "one")
    assert plain.t == 3
    left = [file.name for file in tmp_path.iterdir() if file.name.startswith("other.")]
    assert len(left) == 3  # those of the last state alone


@pytest.mark.parametrize("moment", ["part", "header"])
def test_a_rank_killed_while_saving(tmp_path, moment):
    path = tmp_path / "state"
    on_ranks(2, "save", path)
    files = set(tmp_path.iterdir())
    on_ranks(2, "killed", path, moment, fails=True)
    assert set(tmp_path.iterdir()) > files
    on_ranks(2, "load", path, path)  # as it was, and what is left of the others is removed
    named = [file for file in tmp_path.iterdir() if file.name.startswith("state.")]
    assert len(named) == 4


def test_a_rank_killed_in_an_epoch_and_other_ranks_that_go_on(tmp_path):
    on_ranks(4, "epoch", tmp_path / "state", "dies", fails=True)
    on_ranks(2, "epoch", tmp_path / "state", "resumes")
    on_ranks(1, "epoch", tmp_path / "state", "resumes")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_train(ranks):
    on_ranks(ranks, "trained")


def test_train_stops_for_one_reason():
    on_ranks(2, "training_stops")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_example(ranks):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    done = run(ranks, HERE.parent / "examples" / "mpi_train.py")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{ranks} ranks: epochs: 10 done, held-out accuracy ")
    assert float(re.search(r"([\d.]+)%", first)[1]) > 88
    assert second == "read back with the same bits: True"


def test_compare_on_ranks(capfd):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    arguments = ["--data", "line", "--rules", "sgd,schedulefreesgd,lamb", "--epochs", "9"]
    assert main(["compare", "--ranks", "2", *arguments]) == 0
    printed = capfd.readouterr().out
    rows = [re.split(r"  +", line) for line in printed.splitlines()]
    found = {tuple(row[:2]): row[2:] for row in rows if len(row) == 7}
    for rule in ("SGD", "ScheduleFreeSGD"):
        alone, shared = found[rule, "1"], found[rule, "2"]
        assert alone[0] == shared[0]
        assert alone[4] == "-"
        assert float(shared[4]) < 1e-12
    assert "left out: LAMB cannot be sharded" in printed


def test_compare_without_mpi(monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert main(["compare", "--ranks", "2", "--data", "line"]) == 2
    assert '--ranks needs mpiexec: pip install "gradstep[mpi]"' in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "short", "of another state"])
def test_a_damaged_part(tmp_path, damage):
    on_ranks(2, "save", tmp_path / "state")
    part = next(file for file in tmp_path.iterdir() if re.search(r"\.1$", file.name))
    if damage == "missing":
        part.unlink()
    elif damage == "short":
        part.write_bytes(part.read_bytes()[:-100])
    else:
        shutil.copy(part.with_suffix(".0"), part)
    plain = gs.ScheduleFreeAdamW(
        {"a": np.zeros(30_000, np.float32), "b": np.zeros((6667, 3), np.float32)}
    )
    with pytest.raises((OSError, ValueError), match=part.name):
        plain.load(tmp_path / "state")
    assert plain.t == 0
    assert not plain.params["a"].any()


def test_one_rank_trains_as_without_mpi():
    """It stops after the same epoch, with the same bits, and asks the schedule as often."""
    code = """
import numpy as np, gradstep as gs
from gradstep.mpi import MPI, Sharded
rng = np.random.default_rng(0)
x = rng.normal(size=(300, 200)).astype(np.float32)
data = x, (x @ rng.normal(size=200)).astype(np.float32)
f = gs.losses.linear(gs.losses.least_squares)
def train(make, tol, **options):
    asked, w = [], np.zeros(200, np.float32)
    opt = make(w, lr=lambda t: asked.append(t) or 1e-3)
    history = gs.train(opt, f, data, epochs=9, tol=tol, seed=0, **options)
    assert asked == list(range(history.steps))
    return history["grad_norm"], history.reason, w.tolist()
shared = lambda w, **options: Sharded(gs.SGD, w, comm=MPI.COMM_SELF, **options)
for tol in train(gs.SGD, None)[0]:
    assert train(gs.SGD, tol) == train(shared, tol)
print("done")
"""
    assert python(code) == "done\n"


def test_hostile_files(tmp_path):
    """Those of ranks and plain ones load whole, or raise and change nothing."""
    code = f"""
from pathlib import Path
import numpy as np, gradstep as gs
from gradstep.mpi import MPI, Sharded
from gradstep.mpi.checkpoint import vectors_of
from test_hostile_states import fuzz_files, run, stepped
class Named(Sharded):
    "Has what the fuzzer looks at."
    _plan = property(lambda self: self._shards[0]._plan)
    def _named_arrays(self, with_params):
        shard, sizes = self._shards[0], [p.size for p in self._params]
        named = {{"counter " + name: array for name, array in shard._counters().items()}}
        for kind, vector in vectors_of(shard).items():
            parts = np.split(vector, np.cumsum(sizes)[:-1])
            arrays = [part.reshape(p.shape) for part, p in zip(parts, self._params)]
            arrays = self._params if kind == "params" else arrays
            named |= {{kind + s: a for s, a in zip(self._structure.suffixes, arrays)}}
        return named
for cls in (gs.Adam, gs.ScheduleFreeSGD):
    for name, save in {{
        "ranks": Sharded.save,
        "plain": lambda opt, path: stepped(cls).save(path),
    }}.items():
        folder = Path({str(tmp_path)!r}) / (cls.__name__ + name)
        folder.mkdir()
        make = lambda: stepped(lambda params: Named(cls, params, comm=MPI.COMM_SELF))
        print(0 < run(fuzz_files(folder, 4, make, save), 60) < 60)
"""
    assert python(code) == "True\n" * 4


def test_a_plain_file_that_lacks_a_state(tmp_path):
    """Nothing may be left as memory happens to be."""
    path = tmp_path / "state"
    opt = gs.Adam([np.ones(3), np.ones(2)])
    arrays = opt._named_arrays(with_params=True)
    meta = {**checkpoint.meta_of(opt), "params": "a sequence"}
    code = f"""
import numpy as np
import gradstep as gs
from gradstep.mpi import MPI, Sharded
opt = Sharded(gs.Adam, [np.ones(3), np.ones(2)], comm=MPI.COMM_SELF)
try:
    opt.load({str(path)!r})
except ValueError as error:
    print(error)
"""
    for broken, message in (
        (np.ones(1), "state m[1] has the shape (1,), not (2,)"),
        (np.ones(2, np.float32), "its state m are float32, here they are float64"),
        (None, "the state does not fit: missing ['state m[1]'], unknown []"),
    ):
        changed = arrays | {"state m[1]": broken}
        state_files.write(path, meta, {k: a for k, a in changed.items() if a is not None})
        assert python(code) == f"{path} does not fit: {message}\n"


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (gs.LARS, "its steps depend on norms of whole arrays"),
        (gs.LAMB, "its steps depend on norms of whole arrays"),
        (gs.Adafactor, "its steps depend on norms of whole arrays"),
        (gs.Muon, "its steps are of whole matrices"),
        (gs.SparseAdam, "its step needs the indices of the rows that a gradient has"),
        (gs.WindowSAG, "it keeps a table of gradients"),
        (gs.SAGA, "it keeps a table of gradients"),
        (gs.SVRG, "its step needs the gradients of each row at the snapshot too"),
    ],
)
def test_rules_that_are_not_elementwise(cls, why):
    code = f"""
import numpy as np, gradstep as gs
from gradstep.mpi import MPI, Sharded
try:
    Sharded(gs.{cls.__name__}, np.ones((2, 2)), comm=MPI.COMM_SELF, lr=0.1)
except TypeError as error:
    print(error)
"""
    assert python(code) == f"{cls.__name__} cannot be sharded, because {why}\n"


def test_bad_arguments():
    code = """
import numpy as np, gradstep as gs
from gradstep.mpi import MPI, Sharded
for optimizer, params, comm in [
    ("Adam", np.ones(2), MPI.COMM_SELF),
    (gs.Adam, np.ones(2), "world"),
    (gs.Adam, [np.ones(2), np.ones(2, np.float32)], MPI.COMM_SELF),
    (gs.Adam, 3, MPI.COMM_SELF),
]:
    try:
        Sharded(optimizer, params, comm=comm, lr=0.1)
    except TypeError as error:
        print(error)
for act in (
    lambda: Sharded(gs.Adam, np.ones(2), comm=MPI.COMM_SELF, lr=0.1).eval(),
    lambda: Sharded(gs.Adam, np.ones(2), comm=MPI.COMM_SELF, lr=0.1, state_dir="."),
):
    try:
        act()
    except TypeError as error:
        print(error)
"""
    assert python(code).splitlines() == [
        "optimizer must be a class of gradstep, such as Adam, got 'Adam'",
        "comm must be an intracommunicator of mpi4py, got 'world'",
        "params[1] is float32, the first is float64: an arena has one dtype",
        "params must be a numpy.ndarray, or expose a CPU buffer or DLPack, or be a list, "
        "tuple or dict of such arrays, got int",
        "Adam has no eval()",
        "Sharded() has no argument 'state_dir': each rank's states are in memory",
    ]


def test_docstrings():
    code = """
import doctest, gradstep.mpi
for module in gradstep.mpi, gradstep.mpi.sharded:
    print(doctest.testmod(module, optionflags=doctest.ELLIPSIS))
"""
    result = r"TestResults\(failed=0, attempted=\d+\)\n"
    assert re.fullmatch(result * 2, python(code))
