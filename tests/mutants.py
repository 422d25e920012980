"""Faults put into the sources, one at a time: the tests named beside each one must notice it.

This measures the suite. `pytest -m mutants tests/mutants.py` builds the package once from a copy of
the sources, runs the tests on it as it is, then makes one change after the other and prints which
test failed first, and after how long. A fault that no test notices fails the run.

A new fault needs an `old` text that stands once in its file. `test_mutants.py`, which is part of
the suite, checks that each still does. The faults of one file stand together, because a change of a
C++ header compiles everything that includes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: What the package is built from.
SOURCES = ("CMakeLists.txt", "pyproject.toml", "cpp", "python")
#: Longer than the tests of any fault take, in seconds: a fault can make a step hang.
TIME_LIMIT = 400


class Mutation(NamedTuple):
    """A change of one place in the sources that is a fault."""

    #: What is wrong then.
    fault: str
    #: The file, from the root of the repository.
    path: str
    #: What stands there once, and what takes its place.
    old: str
    new: str
    #: The files of the tests that must notice it, those that do so first.
    tests: str
    #: Why nothing can notice it, if it is no fault after all.
    equivalent: str = ""


#: Where each kind of source is.
PACKAGE, SOURCE, BINDINGS = "python/gradstep/", "cpp/src/", "cpp/bindings/"

MUTATIONS: list[Mutation] = [
    # The oracle.
    Mutation(
        "the oracle's NAdam forgets the momenta before this step",
        PACKAGE + "reference/rules.py",
        "product = mu_product * mu",
        "product = mu",
        "test_same_bits.py",
    ),
    Mutation(
        "the oracle's Adamax adds eps to the maximum, not to the gradient",
        PACKAGE + "reference/rules.py",
        "np.maximum(beta2 * u, np.abs(g) + eps)",
        "np.maximum(beta2 * u, np.abs(g)) + eps",
        "test_same_bits.py",
    ),
    # Optimizer classes.
    Mutation(
        "the product of momenta moves on in a skipped step",
        PACKAGE + "optimizers/base.py",
        "if self.progress and (result is None or not result.skipped):",
        "if self.progress:",
        "test_fused_step.py",
    ),
    Mutation(
        "state_dict() hands out the live states",
        PACKAGE + "checkpoint.py",
        "opt._structure.build([array.copy() for array in arrays])",
        "opt._structure.build(list(arrays))",
        "test_state_files.py",
    ),
    Mutation(
        "load_state_dict() takes arrays that share memory with the states",
        PACKAGE + "checkpoint.py",
        "opt._plan.check_apart(array, label)",
        "pass",
        "test_state_files.py",
    ),
    Mutation(
        "a new lr counts from the step after the next one",
        PACKAGE + "optimizers/base.py",
        "self._hyper, self._scalars_kept = checked, False",
        "self._hyper = checked",
        "test_optimizers.py",
    ),
    Mutation(
        "a schedule is asked for the learning rate of the step after",
        PACKAGE + "optimizers/base.py",
        'check.number("lr", lr(self.t))',
        'check.number("lr", lr(self.t + 1))',
        "test_optimizers.py",
    ),
    Mutation(
        "an optimizer stays busy after its state was saved",
        PACKAGE + "optimizers/base.py",
        "yield\n        finally:\n            self._plan.release()",
        "yield\n        finally:\n            pass",
        "test_state_files.py",
    ),
    Mutation(
        "copies in 16 bits keep the parameters from before load()",
        PACKAGE + "optimizers/base.py",
        "self._plan.t = loaded.t\n        self._masters.write_copies()",
        "self._plan.t = loaded.t",
        "test_masters.py",
    ),
    # Checks.
    Mutation(
        "the largest whole number in the range is refused",
        PACKAGE + "_engine/checks.py",
        "if value > maximum:",
        "if value >= maximum:",
        "test_bad_calls.py",
    ),
    Mutation(
        "True counts as a number",
        PACKAGE + "_engine/checks.py",
        "(bool, np.timedelta64)",
        "np.timedelta64",
        "test_bad_calls.py",
    ),
    Mutation(
        "gradients in a dict are taken in their own order",
        PACKAGE + "_engine/structure.py",
        "return [tree[key] for key in self._keys]",
        "return [*tree.values()]",
        "test_optimizers.py",
    ),
    # Files.
    Mutation(
        "a state file may hold a pickle",
        PACKAGE + "_engine/files.py",
        "allow_pickle=False",
        "allow_pickle=True",
        "test_state_files.py",
    ),
    Mutation(
        "a saved file has its name before its bytes are on disk",
        PACKAGE + "_engine/files.py",
        "os.fsync(file.fileno())",
        "file.fileno()",
        "test_state_files.py",
    ),
    Mutation(
        "each window of states on disk is rounded like the first one",
        PACKAGE + "_engine/windows.py",
        "place + window.start)",
        "place)",
        "test_disk.py",
    ),
    # Around the step.
    Mutation(
        "warmup() reaches the schedule one step late",
        PACKAGE + "schedules/combine.py",
        "(1 - start) * _passed(step, steps)",
        "(1 - start) * _passed(step, steps + 1)",
        "test_schedules.py",
    ),
    Mutation(
        "a boundary belongs to the piece that it ends",
        PACKAGE + "schedules/schedule.py",
        'side="right"',
        'side="left"',
        "test_schedules.py",
    ),
    Mutation(
        "train() counts a short last batch like a whole one",
        PACKAGE + "training/loop.py",
        "(batch_loss - loss) * (batch_rows / rows)",
        "(batch_loss - loss) / count",
        "test_training.py",
    ),
    Mutation(
        "train() goes back to the last good parameters, but not to their step count",
        PACKAGE + "training/loop.py",
        "self._opt._set_t(t)",
        "pass",
        "test_training.py",
    ),
    # Linear models.
    Mutation(
        "the features behind the last whole block do not count for convergence",
        PACKAGE + "linear/_tolerance.py",
        "last[: len(terms) - whole] = terms[whole:]",
        "last[: len(terms) - whole] = 0",
        "test_linear_sag.py",
    ),
    Mutation(
        "a fit that raises leaves some attributes set",
        PACKAGE + "linear/_base.py",
        "self.__dict__ = before",
        "pass",
        "test_linear_sag.py",
    ),
    # PyTorch.
    Mutation(
        "states of a checkpoint go to parameters by order instead of by name",
        PACKAGE + "torch/optimizer.py",
        "ids[g][found.index(name)] for name in wanted",
        "ids[g][wanted.index(name)] for name in wanted",
        "test_torch_hosts.py",
    ),
    Mutation(
        "8-bit states of a transposed parameter are read in the wrong order",
        PACKAGE + "torch/tensors.py",
        "in_order.transpose(np.argsort([axis for axis, _ in axes]))",
        "in_order.transpose([axis for axis, _ in axes])",
        "test_torch_storage.py",
    ),
    # Bindings.
    Mutation(
        "a skipped step is counted",
        BINDINGS + "_core.cpp",
        "if (outcome.usable) ++t_;",
        "++t_;",
        "test_fused_step.py",
    ),
    Mutation(
        "two threads step one optimizer at once",
        BINDINGS + "_core.cpp",
        "if (busy_ && forks_at_hold_ == fork_count()) throw",
        "if (false) throw",
        "test_bad_calls.py test_parallel.py",
    ),
    Mutation(
        "an optimizer stays busy after a step that raised",
        BINDINGS + "_core.cpp",
        "~Hold() { plan.release(); }",
        "~Hold() { if (!std::uncaught_exceptions()) plan.release(); }",
        "test_bad_calls.py",
    ),
    Mutation(
        "the GIL is held during long steps",
        BINDINGS + "_core.cpp",
        ">= worth_releasing) release.emplace();",
        "< 0) release.emplace();",
        "test_parallel.py",
    ),
    Mutation(
        "gradients may share memory with parameters and states",
        BINDINGS + "_core.cpp",
        "    claims_.check_free(memory, name);\n    known",
        "    known",
        "test_bad_calls.py",
    ),
    Mutation(
        "sparse rows may hold a column just beyond the last one",
        BINDINGS + "finite_sum.cpp",
        "column[j] < problem_.rows.features,",
        "column[j] <= problem_.rows.features,",
        "test_linear_kernels.py",
    ),
    # Checks in C++, for Python and C.
    Mutation(
        "numbers that float32 rounds out of their range are taken",
        SOURCE + "checks.cpp",
        "(single_precision && !within(hyper.range, static_cast<float>(x)))",
        "false",
        "test_bad_calls.py",
    ),
    Mutation(
        "the lower end of a range does not belong to it",
        SOURCE + "checks.cpp",
        "interval.least <= x",
        "interval.least < x",
        "test_bad_calls.py",
    ),
    Mutation(
        "arrays that touch are said to overlap",
        SOURCE + "claims.hpp",
        "claims_[i - 1].memory.end() > claims_[i].memory.begin",
        "claims_[i - 1].memory.end() >= claims_[i].memory.begin",
        "test_bad_calls.py test_optimizers.py",
    ),
    Mutation(
        "C callers are not told that a step was skipped",
        SOURCE + "c_api.cpp",
        "result->skipped = !outcome.usable;",
        "result->skipped = 0;",
        "test_c_api.py",
    ),
    # One step: norms, threads, storage.
    Mutation(
        "a norm equal to clip_norm counts as clipped",
        SOURCE + "step.cpp",
        "outcome.norm.value > *treatment.clip_norm",
        "outcome.norm.value >= *treatment.clip_norm",
        "test_fused_step.py",
    ),
    Mutation(
        "the elements behind the last whole cache line are no thread's",
        SOURCE + "threads.cpp",
        "part == parts ? total :",
        "part > parts ? total :",
        "test_same_bits.py",
    ),
    Mutation(
        "subnormal operands are not flushed, only results",
        SOURCE + "threads.cpp",
        "flush_results | flush_operands : 0",
        "flush_results : 0",
        "test_fused_step.py",
    ),
    Mutation(
        "rows that do not fill a group are left out when a table is summed again",
        SOURCE + "threads.cpp",
        "    add_rows(sums, places, weights, count, size);\n",
        "",
        "test_finite_sums.py",
    ),
    Mutation(
        "stochastic rounding repeats itself in every step",
        SOURCE + "stored.cpp",
        "mixed(rounding.seed, static_cast<std::uint64_t>(t))",
        "mixed(rounding.seed, static_cast<std::uint64_t>(t - t))",
        "test_storage.py",
    ),
    Mutation(
        "the last 8-bit block is scaled by what lies beyond its end",
        SOURCE + "stored.cpp",
        "static_cast<std::size_t>(round_up(size, state_block) - size) * 4",
        "0",
        "test_storage.py",
    ),
    Mutation(
        "a row index equal to the number of rows is taken",
        SOURCE + "row_jobs.cpp",
        "row < 0 || row >= rows",
        "row < 0 || row > rows",
        "test_sparse.py",
    ),
    # The kernels. A change of any of these compiles all of them.
    Mutation(
        "a bfloat16 tie is rounded up instead of to even",
        SOURCE + "storage.hpp",
        "upper(x, 0x7FFF + ((bits_of(x) >> 16) & 1))",
        "upper(x, 0x8000)",
        "test_storage.py",
    ),
    Mutation(
        "the lanes of a norm are added in another order",
        SOURCE + "squares.hpp",
        "lanes[lane] += lanes[lane + half];",
        "lanes[lane] += lanes[2 * half - 1 - lane];",
        "test_fused_step.py",
    ),
    Mutation(
        "weight decay is clipped with the gradient",
        SOURCE + "folded.hpp",
        "before == Before::coupled || couples ? g + coupled * w : g;",
        "before == Before::coupled || couples ? clipped(g + coupled * w, clip_value) : g;",
        "test_fused_step.py",
    ),
    Mutation(
        "a row of a matrix starts at the column where the one before began",
        SOURCE + "factored.hpp",
        "    ++row;\n    column = 0;",
        "    ++row;",
        "test_factored.py",
    ),
    Mutation(
        "the buffers of a step share their random bits",
        SOURCE + "storage_loops.hpp",
        "pairs, own_chance[1 + I] *",
        "pairs, own_chance[0] *",
        "test_storage.py",
    ),
    Mutation(
        "Adam corrects the bias of the step before",
        SOURCE + "rules/textbook.hpp",
        "h.lr / (1 - power(h.beta1, t)) : h.lr",
        "h.lr / (1 - power(h.beta1, t - 1)) : h.lr",
        "test_same_bits.py",
    ),
    Mutation(
        "RAdam adapts one step early",
        SOURCE + "rules/adaptive.hpp",
        "adapts = r > 5;",
        "adapts = r > 4;",
        "test_against_torch.py",
    ),
    Mutation(
        "LARS has a trust ratio where the gradient is 0",
        SOURCE + "rules/layerwise.hpp",
        "if (!is_usable(w_norm) || !is_usable(g_norm)) return 1;",
        "if (!is_usable(w_norm)) return 1;",
        "test_same_bits.py",
    ),
    Mutation(
        "SAGA counts the row of the step among the others",
        SOURCE + "rules/finite_sums.hpp",
        "(h.rows_seen - 1) * h.row_weight",
        "h.rows_seen * h.row_weight",
        "test_same_bits.py",
    ),
    Mutation(
        "SAG for rows of unequal weight takes SAGA's step",
        SOURCE + "rows.cpp",
        "pace.weighs_change ? pace.lr * (weight * pace.inverse_total) : pace.lr",
        "pace.lr",
        "test_linear_kernels.py",
    ),
    Mutation(
        "whole squared blocks are summed in turns of one lane fewer",
        SOURCE + "squares.hpp",
        "i + lane_count <= size; i",
        "i + lane_count < size; i",
        "test_fused_step.py",
        equivalent="the tail adds the last whole turn to the same lanes",
    ),
]

#: Runs before everything else in each interpreter that has it on its path: takes away what would
#: find an editable install before the copy.
SITE = """
import sys
sys.meta_path[:] = [
    finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable")
]
"""


class Ran(NamedTuple):
    """What a run of tests came to."""

    #: The first test that failed, or what else ended the run; empty where all passed.
    failure: str
    seconds: float
    output: str


class Workshop:
    """A copy of the sources, the package built from it, and the tests run on that."""

    def __init__(self, place: Path) -> None:
        self.source, self.build, self.package = (
            place / name for name in ("source", "build", "package")
        )
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, self.source / name)
        # Compiles in half the time, and has the same bits.
        recipe = self.source / "CMakeLists.txt"
        recipe.write_text(re.sub("-O[23]", "-O1", recipe.read_text()))
        self.package.mkdir()
        (self.package / "sitecustomize.py").write_text(SITE)
        import pybind11

        options = {
            "SKBUILD": "ON",
            "GRADSTEP_LEVELS": "baseline",
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CXX_FLAGS_RELEASE": "-O1",
            "CMAKE_INSTALL_PREFIX": self.package,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_CXX_COMPILER_LAUNCHER": "",  # no cache: what is measured is what is compiled
        }
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        self._cmake(*generator, "-S", self.source, "-B", self.build, *definitions)
        self.install()

    def _cmake(self, *arguments: object) -> None:
        done = subprocess.run(
            ["cmake", *map(str, arguments)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.fail(f"it does not build:\n{done.stdout}{done.stderr}", pytrace=False)

    def install(self) -> None:
        """Bring the package up to date with the sources."""
        self._cmake("--build", self.build, "--parallel", str(os.cpu_count()))
        self._cmake("--install", self.build)
        shutil.copytree(
            self.source / "python" / "gradstep",
            self.package / "gradstep",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )

    @contextlib.contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """The sources with a fault in them. What is installed stays so until the next `install`."""
        file = self.source / mutation.path
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(text, encoding="utf-8")

    def run(self, *tests: str, first_failure: bool = True) -> Ran:
        """Run files of tests on the package that is installed."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment["PYTHONPATH"] = str(self.package)
        # Python tells changed sources by seconds and sizes, which two faults may share.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [
            *[sys.executable, "-m", "pytest", "-o", "addopts=", "-m", "not nightly", "-q", "-rfE"],
            *["-p", "no:xdist", "-p", "no:cacheprovider", "--color=no", "--tb=short"],
            *(["-x"] if first_failure else []),
            *[str(ROOT / "tests" / name) for name in tests],
        ]
        begin = time.perf_counter()
        with subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=TIME_LIMIT)
                failure = _failure(process.returncode, output)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                failure = f"no end within {TIME_LIMIT} seconds"
        return Ran(failure, time.perf_counter() - begin, output)

    def check_import(self) -> None:
        """Fail where the package cannot even be imported, which is no measure of the tests."""
        code = "import gradstep; print(gradstep.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": f"{self.package}"},
            cwd=self.package,
            capture_output=True,
            text=True,
            check=False,
        )
        if not done.stdout.startswith(str(self.package)):
            pytest.fail(f"the package is not there: {done.stdout}{done.stderr}", pytrace=False)


def _failure(code: int, output: str) -> str:
    """The first test that failed, or what else ended pytest."""
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    if code == 0:
        return ""
    if code == 1 and found:
        return found[1].removeprefix("tests/")
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    running = re.findall(r"^(?:tests/)?(test_\w+\.py)", output, re.MULTILINE)
    if "Timeout" in output and running:
        return f"no end of a test of {running[-1]}"
    pytest.fail(f"pytest ended with {code}, which is no failed test:\n{output}", pytrace=False)


@pytest.fixture(scope="session")
def say(request):
    """Prints a line at once, whatever pytest captures."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end=" ", flush=True)

    return line


@pytest.fixture(scope="session")
def workshop(request, tmp_path_factory, say):
    """The package without a fault, on which all tests pass that are about to be run."""
    shop = Workshop(tmp_path_factory.mktemp("mutants"))
    shop.check_import()
    chosen = [item.callspec.params["mutation"] for item in request.session.items]
    tests = dict.fromkeys(name for mutation in chosen for name in mutation.tests.split())
    for name in tests:
        control = shop.run(name)
        say(f"without a fault | {name} | {control.failure or 'passes'} | {control.seconds:.0f} s")
        if control.failure:
            pytest.fail(f"{name} fails without a fault:\n{control.output}", pytrace=False)
    return shop


@pytest.mark.mutants
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_is_noticed(mutation, workshop, say):
    with workshop.mutated(mutation):
        workshop.install()
        workshop.check_import()
        ran = workshop.run(*mutation.tests.split())
    name = f"{Path(mutation.path).name}: {mutation.fault}"
    if mutation.equivalent:
        say(f"{name} | no fault: {mutation.equivalent} | {ran.seconds:.0f} s")
        assert not ran.failure, f"it is a fault: {ran.failure} notices it"
    else:
        say(f"{name} | {ran.failure or 'SURVIVES'} | {ran.seconds:.0f} s")
        assert ran.failure, f"no test notices it:\n- {mutation.old}\n+ {mutation.new}"
