"""`gradstep bench`: who is ranked, how it is measured, what it prints and draws, how it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import pkgutil
import signal
import sys
import textwrap
import threading

import numpy as np
import pytest

import gradstep as gs
from gradstep.tools import bench, cli, report
from gradstep.tools.bench import choices, contestants, measure, numba_loops, oracle, workers
from gradstep.tools.bench import session as session_of
from gradstep.tools.bench import works as works_of
from gradstep.tools.bench.entrants import (
    ALWAYS,
    CLASS_PEERS,
    CONTESTANTS,
    OURS,
    PEERS,
    PLAIN,
    STORAGE_PEERS,
    Contestant,
)
from gradstep.tools.bench.measure import Bench, Result, Row
from gradstep.tools.bench.oracle import Check, Oracle
from gradstep.tools.bench.works import (
    CLASS_RULES,
    LEFT_OUT,
    NO_RULE,
    RULES,
    SMALLER,
    STORAGES,
    Work,
)

pytestmark = pytest.mark.slow
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

FAKES = """\
import os, signal, sys, time
import numpy as np
from gradstep.tools.bench.contestants import NumPy


class Right(NumPy):
    pass


class Close(NumPy):
    def param(self, i):
        return super().param(i) * np.float32(1 + 1e-7)


class Wrong(NumPy):
    def __init__(self, work, params):
        super().__init__(work, params)
        good = self.step
        self.step = lambda: (good(), np.multiply(self.params[-1], 1.0001, out=self.params[-1]))


class Lazy(NumPy):  # it leaves out a few
    def __init__(self, work, params):
        super().__init__(work, [*params[:-1], params[-1][:-3]])
        self.whole = params[-1]
        self.grads[-1] = self.grads[-1][: self.whole.size - 3]

    def fill(self, grads):
        super().fill([*grads[:-1], grads[-1][:-3]])

    def param(self, i):
        return self.whole if i == len(self.params) - 1 else super().param(i)


class NotANumber(Wrong):
    def param(self, i):
        return np.append(super().param(i)[:-1], np.float32(np.nan))


class Double(NumPy):
    def param(self, i):
        return super().param(i).astype(np.float64)


class Raises(NumPy):
    def __init__(self, work, params):
        raise RuntimeError("not\\ntoday")


class Dies(NumPy):
    def __init__(self, work, params):
        if work.size == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(work, params)


class DiesLater(NumPy):
    def param(self, i):
        self.step = lambda: os._exit(7)
        return super().param(i)


class Sleeps(NumPy):
    def __init__(self, work, params):
        time.sleep(60)


class Chatters(NumPy):
    def __init__(self, work, params):
        super().__init__(work, params)
        print("on stdout")
        sys.stderr.write("on stderr")
        os.write(1, b"on descriptor 1")
        os.write(2, b"on descriptor 2")
        input_is_empty = sys.stdin.read() == ""
        assert input_is_empty


class Spoils(NumPy):
    spoils_gradient = True

    def __init__(self, work, params):
        super().__init__(work, params)
        good = self.step

        def step():
            assert all(grad.any() for grad in self.grads)
            good()
            for grad in self.grads:
                grad.fill(0)

        self.step = step


class Cannot(NumPy):
    @classmethod
    def can(cls, work):
        return False
"""


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Make peers of the classes above: `fakes("Right", "Wrong")` returns their names."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def register(*classes, packages=()):
        for cls in classes:
            contestant = Contestant(f"fakes:{cls}", packages, "#123456", "o")
            monkeypatch.setitem(CONTESTANTS, cls.lower(), contestant)
        return tuple(map(str.lower, classes))

    return register


def run(peers, *works, rounds=2, **options):
    """Bench some small works, by default one."""
    works = [Work(*work, peers=peers) for work in works or [("adam", 1000)]]
    return bench.bench(works, peers, rounds=rounds, **options)


def made_up(works, times, **problems):
    """A finding with this many seconds in each round of each contestant."""
    rows = []
    for work in works:
        size = dict.fromkeys(times, work.elements) | {"smaller": SMALLER}
        results = {
            name: Result([s * size[name] for s in t])
            for name, t in times.items()
            if name in ALWAYS or name in work.peers
        }
        for name, result in results.items():
            result.check = None if not CONTESTANTS[name].ranked else Check(name == "gradstep", 1e-6)
            result.problem = problems.get(name, "")
        rows.append(Row(work, results))
    versions = {name: f"{name} 1.0" for name in times}
    return Bench(bench.machine(), versions, {}, rows, len(times["gradstep"]))


def after_checked_steps(work):
    """What a worker of gradstep would answer about its parameters."""
    contestant = contestants.Gradstep(work, bench.draw(work, 0))
    for grads in bench.gradients(work):
        contestant.fill(grads)
        contestant.step()
    return lambda i, begin, end: contestant.param(i).reshape(-1)[begin:end]


# Who is ranked


def test_the_same_result_or_no_place_in_the_ranking(fakes):
    good = fakes("Right", "Close", "Spoils")
    bad = fakes("Wrong", "Lazy", "NotANumber", "Double")
    found = run(good + bad, ("adam", 1000), ("sgd", 100, 3))
    for row in found.rows:
        assert row.results["gradstep"].check == Check(True, 0.0)
        assert row.results["roofline"].check is None
        for name in good:
            assert row.results[name].problem == "", name
            assert 0 <= row.results[name].check.deviation <= bench.TOLERANCE
            assert len(row.ratios(name)) == 2
        for name in bad:
            assert "away from NumPy" in row.results[name].problem, name
            assert row.results[name].seconds == row.ratios(name) == []
            assert not row.results[name].check.same_bits
    assert found.rows[0].results["right"].check.same_bits
    assert not found.rows[0].results["close"].check.same_bits
    table = bench.table(found)
    assert table.count("differs") == 2 * len(bad) + 1
    assert "\nwrong: Adam, 1 k: ends 0." in table


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("arrays", [1, 3])
def test_the_oracle_is_numpy_over_all_elements(monkeypatch, arrays, clip):
    monkeypatch.setattr(oracle, "PERIOD", 7)
    work = Work("adam", 20, arrays, clip=clip)
    contestant = contestants.NumPy(work, bench.draw(work, 0))
    for grads in bench.gradients(work):
        contestant.fill(grads)
        contestant.step()
        assert all(not grad.any() for grad in contestant.grads) == clip
    asked = []

    def param(i, begin, end):
        asked.extend((i, at) for at in range(begin, end))
        return contestant.param(i)[begin:end]

    check = Oracle(work).check(param)
    assert check.same_bits or (clip and check.deviation < 1e-6)
    assert asked == [(i, at) for i in range(arrays) for at in range(20)]
    contestant.params[-1][-1] += 1
    assert not Oracle(work).check(param).deviation < 0.1


def test_numbers_are_the_same_everywhere_and_repeat_late(monkeypatch):
    work = Work("adam", 1000, 2)
    first, second = bench.draw(work, 1)
    expected = np.random.default_rng(1).standard_normal(2000, np.float32)
    np.testing.assert_array_equal(np.append(first, second), expected)
    steps = [np.concatenate(grads) for grads in bench.gradients(work)]
    assert len(steps) == bench.CHECKED_STEPS
    assert len(np.unique(steps)) > 2.9 * 2000
    monkeypatch.setattr(oracle, "PERIOD", 7)
    repeated = np.concatenate(bench.draw(Work("adam", 10, 2), 1))
    np.testing.assert_array_equal(repeated, np.resize(expected[:7], 20))


@pytest.mark.torch
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_options_of_its_own(rule):
    """Defaults of packages differ."""
    work = Work(rule, 4)
    opt = work.optimizer(np.zeros(4, np.float32), **work.options)
    told = opt.hyperparameters
    assert told["lr"] == work.options["lr"]
    assert work.states == [1] * len(opt.state)
    assert work.bytes_per_element == 4 * (3 + 2 * len(opt.state))
    assert Work(rule, 4, clip=True).bytes_per_element == work.bytes_per_element + 8
    assert numba_loops.Numba.can(work)
    pytest.importorskip("torch")
    assert {"torch", "torch-foreach"} <= {name for name in PEERS if peer_class(name).can(work)}


def peer_class(name):
    return pkgutil.resolve_name(CONTESTANTS[name].cls)


@pytest.mark.parametrize(
    "name", ["torch", "torch-foreach", "torch-fused", "numba", "optax", "thinc"]
)
def test_installed_peers_do_the_same(name):
    for package in CONTESTANTS[name].packages:
        pytest.importorskip(package)
    works = [Work("adam", 1000), Work("adam", 50, 3, clip=True)]
    works += [Work(rule, 40_000, threads=1) for rule in ("momentum", "rmsprop_centered_momentum")]
    found = bench.bench(works, [name], rounds=1)
    assert found.unused == {}
    for row in found.rows:
        assert row.results[name].problem in ("", NO_RULE)
        assert row.timed(name) == peer_class(name).can(row.work)
    assert CONTESTANTS[name].packages[0] in found.versions[name]


# Every class


def test_every_class_is_timed_or_named_with_its_reason():
    timed = {rule.cls.__name__ for rule in CLASS_RULES.values()}
    assert timed | LEFT_OUT.keys() == {cls.__name__ for cls in gs.optimizers.CLASSES}
    assert LEFT_OUT.keys() == {cls.__name__ for cls in gs.optimizers.CLASSES if cls.step_needs}
    assert RULES.items() <= CLASS_RULES.items()
    for name in CLASS_RULES.keys() - RULES.keys():
        cls, options = CLASS_RULES[name].cls, CLASS_RULES[name].options
        assert name == cls.__name__
        needed = {k: v for k, v in bench.NEEDED.items() if k in options}
        (work,) = bench.classes([name], 1, quick=True)
        told, defaults = (
            cls(np.zeros(work.array_shape), **given).hyperparameters
            for given in (options, needed | {"lr": options["lr"]})
        )
        assert told == defaults


def test_classes_that_ask_for_more_are_left_out(monkeypatch):
    class Asks(gs.SGD):
        def __init__(self, params, lr, indices, momentum=0.0):
            pass

    monkeypatch.setattr(works_of, "CLASSES", [Asks, gs.Adam])
    assert works_of._by_class() == (
        {name: RULES[name] for name in ("adam", "amsgrad")},
        {"Asks": "it needs indices"},
    )


@pytest.mark.parametrize("name", CLASS_RULES)
def test_classes_have_numpys_bits_and_their_streams(name, monkeypatch):
    monkeypatch.setattr(works_of, "QUICK_CLASS_SIZE", 1000)
    (work,) = bench.classes([name], threads=1, quick=True)
    assert Oracle(work).check(after_checked_steps(work)) == Check(True, 0.0)
    opt = work.optimizer(np.zeros(work.array_shape, np.float32), **work.options)
    whole = sum(state.size >= work.size for state in opt.state.values())
    assert 4 * (2 * (1 + whole) + 1) <= work.bytes_per_element <= 4 * (2 * (2 + whole) + 1)
    roofline = contestants.Roofline(work, bench.draw(work, 0))
    written, _ = roofline.step.args
    assert len(written) == 1 + whole
    roofline.step()


def test_a_ring_counts_whole_for_memory_and_one_row_for_a_step():
    work = Work("WindowSAG", 1000)
    assert work.states == [1, 10]
    assert work.bytes_per_element == 28
    assert bench.needed_bytes(work, 2) - bench.needed_bytes(work, 1) == 4 * 1000 * (2 + 11)


@pytest.mark.torch
def test_pytorchs_ways():
    optimizers = pytest.importorskip("torch.optim")
    ways = {
        name: [peer for peer in CLASS_PEERS[1:] if peer_class(peer).can(Work(name, 4))]
        for name in CLASS_RULES
    }
    for name, found in ways.items():
        there = hasattr(optimizers, CLASS_RULES[name].cls.__name__)
        assert ("torch" in found) == there, name
        assert set(found) <= ({*CLASS_PEERS} if there else set()), name
    fused = {CLASS_RULES[name].cls for name, found in ways.items() if "torch-fused" in found}
    assert fused == {gs.SGD, gs.Adagrad, gs.Adam, gs.AdamW}


@pytest.mark.torch
def test_pytorchs_other_rules_do_the_same(log):
    pytest.importorskip("torch")
    works = [Work(name, 1000, peers=("torch-foreach",)) for name in ("NAdam", "Adadelta", "Rprop")]
    found = bench.bench(works, ["torch-foreach"], rounds=1)
    assert all(row.timed("torch-foreach") for row in found.rows)


def test_classes_of_matrices(log, monkeypatch):
    monkeypatch.setitem(bench.MATRICES, "Adam", (50, 40))
    monkeypatch.setitem(bench.MATRICES, "Lion", (10_000, 1_000))
    seen = set()
    init = contestants.NumPy.__init__

    def noted(self, work, params):
        seen.update(param.shape for param in params)
        init(self, work, params)

    monkeypatch.setattr(contestants.NumPy, "__init__", noted)
    adam, lion, sgd = bench.classes(["adam", "Lion", "sgd"], 1, quick=True)
    assert (adam.shape, lion.shape, sgd.shape) == ("50 x 40", "625 x 62", "100 k")
    assert (adam.by_element, lion.by_element, sgd.by_element) == (False, False, True)
    found = bench.bench([adam, lion], ["numpy"], rounds=1)
    assert seen == {(50, 40), (625, 62)}
    assert [row.results["gradstep"].check for row in found.rows] == [Check(True, 0.0)] * 2
    table = bench.class_table(found)
    assert "| `Adam` | 28 | 50 x 40 | " in table
    large = bench.classes(["Lion"], 1)[0]
    assert (large.elements, large.array_shape) == (10_000_000, (10_000, 1_000))


class Normed(gs.SGD):
    """Its rate follows from the norms of an array and its gradient."""

    def step(self, grads, **options):
        many = isinstance(grads, list)
        params, grads = ([x] if not many else x for x in (self.params, grads))
        scaled = [
            np.float32(np.linalg.norm(w) / np.linalg.norm(g)) * g
            for w, g in zip(params, grads, strict=True)
        ]
        return super().step(scaled if many else scaled[0], **options)


class States(gs.SGD):
    """It keeps less than its parameters, as factored rules do."""

    @property
    def state(self):
        whole, rows = np.zeros((4, 5), np.float32), np.zeros(4, np.float32)
        return {"whole": whole, "rows": rows}


def test_a_rule_with_a_norm_is_checked_over_all_elements(log, monkeypatch):
    monkeypatch.setattr(oracle, "PERIOD", 7)
    monkeypatch.setitem(CLASS_RULES, "Normed", works_of._rule(Normed, "Normed"))
    work = Work("Normed", 20)
    assert not work.by_element
    contestant = contestants.NumPy(work, bench.draw(work, 0))
    for grads in bench.gradients(work):
        contestant.fill(grads)
        contestant.step()
    check = Oracle(work).check(lambda i, begin, end: contestant.param(i)[begin:end])
    assert check == Check(True, 0.0)


def test_states_that_are_smaller_than_the_parameter(monkeypatch):
    monkeypatch.setitem(CLASS_RULES, "States", works_of._rule(States, "States"))
    work = Work("States", 20, columns=5)
    assert work.states == [1, 0.2]
    assert work.bytes_per_element == round(4 * (2 * (1 + 1.2) + 1))
    written = []
    monkeypatch.setattr(contestants._core, "streams", lambda arrays, read: written.extend(arrays))
    contestants.Roofline(work, bench.draw(work, 0)).step()
    assert [array.shape for array in written] == [(20,), (20,)]


# What storage costs


@pytest.mark.parametrize("name", STORAGES)
def test_storages_have_numpys_bits(name, monkeypatch):
    """Those of the first period, where chance is not the same in the next one.

    It ends within a block of 8 bits, which has numbers of the next one too.
    """
    monkeypatch.setattr(oracle, "PERIOD", 4_357)
    work = Work("adam", 10_000, storage=name)
    held, param = STORAGES[name], after_checked_steps(work)
    assert param(0, 0, 1).dtype.name == held.params
    assert Oracle(work).check(param) == Check(True, 0.0)
    all_but_one = Work("adam", 4_356, storage=name)
    assert Oracle(all_but_one).check(after_checked_steps(all_but_one)) == Check(True, 0.0)
    other = "nearest" if held.rounding == "stochastic" else "stochastic"
    monkeypatch.setitem(STORAGES, name, dataclasses.replace(held, rounding=other))
    assert Oracle(work).check(param).same_bits == (name == PLAIN)


def test_bytes_of_storages():
    works = bench.storages([1000, 10_000], threads=1)
    assert [(work.size, work.storage) for work in works] == [
        (size, name) for size in (1000, 10_000) for name in STORAGES
    ]
    small, bytes_of = (
        {work.storage: work.bytes_per_element for work in works if work.size == size}
        for size in (1000, 10_000)
    )
    assert bytes_of[PLAIN] == 28
    assert bytes_of["bfloat16 states"] == bytes_of["bfloat16 states, nearest"] == 20
    assert bytes_of["all bfloat16"] == bytes_of["all float16"] == 14
    assert bytes_of["8-bit states"] == bytes_of["8-bit states, nearest"] == 16
    assert bytes_of["all bfloat16, 8-bit states"] == 10
    assert Work("adam", 4096, storage="8-bit states").states == [257 / 256] * 2
    # Too few elements for 8 bits.
    assert small["8-bit states"] == 28
    assert small["all bfloat16, 8-bit states"] == 6 + 16
    assert Work("adam", 10, clip=True, storage="all bfloat16").bytes_per_element == 14 + 4
    assert [str(work) for work in works[:2]] == ["Adam, 1 k", "Adam, bfloat16 states, 1 k"]


def test_others_do_the_work_in_float32(log, monkeypatch):
    """They are compared with an oracle of their own, and take turns with ours."""
    work = Work("adam", 500, peers=(PLAIN, "numpy"), storage="all bfloat16")
    seen = []
    start = session_of.Session.start

    def noted(self, asked):
        seen.append((self._class, asked.storage))
        return start(self, asked)

    monkeypatch.setattr(session_of.Session, "start", noted)
    (row,) = bench.bench([work], ["numpy"], rounds=3).rows
    assert seen == [
        (contestants.Gradstep, "all bfloat16"),
        (contestants.Roofline, "all bfloat16"),
        (contestants.Gradstep, PLAIN),
        (contestants.NumPy, PLAIN),
    ]
    for name in ("gradstep", PLAIN, "numpy"):
        assert row.results[name].check == Check(True, 0.0)
    assert row.results["roofline"].problem == NO_RULE
    assert len(row.ratios(PLAIN)) == len(row.ratios("numpy")) == 3
    turns = [name for command, name in log if command == "round"]
    everyone = ["gradstep", PLAIN, "numpy"]
    assert turns == [name for turn in range(3) for name in bench.rotated(everyone, turn)]


# How it is measured


class InProcess:
    """What `Worker` is, without a process: it writes down what is asked."""

    log: list

    def __init__(self, contestant, threads, python):
        self.name = next(name for name, c in CONTESTANTS.items() if c is contestant)
        self.python, self.session = python, session_of.Session()

    def load(self):
        self.session.load(CONTESTANTS[self.name].cls, (), ())
        return f"{self.name} 1.0"

    def ask(self, command, *arguments):
        self.log.append((command, self.name))
        return getattr(self.session, command)(*arguments)

    def close(self):
        self.log.append(("close", self.name))


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(measure, "Worker", InProcess)
    monkeypatch.setattr(InProcess, "log", [], raising=False)
    monkeypatch.setattr(session_of, "ROUND_NS", 1000)
    return InProcess.log


def test_rounds_alternate_and_begin_with_another_each_time(log):
    works = [Work("sgd", 10), Work("sgd", 20, peers=()), Work("sgd", 10, threads=2)]
    found = bench.bench(works, ["numpy"], rounds=4)
    assert [row.work for row in found.rows] == works
    asked = [name for command, name in log if command == "round"]
    gradstep, roofline, numpy = "gradstep", "roofline", "numpy"
    turns = [gradstep, roofline, numpy, roofline, numpy, gradstep]
    turns += [numpy, gradstep, roofline, gradstep, roofline, numpy]
    assert asked[:12] == asked[-12:] == turns
    assert asked[12:-12] == [gradstep, roofline, roofline, gradstep] * 2
    assert [command for command, _ in log].count("close") == 6
    for row in found.rows:
        assert {len(result.seconds) for result in row.results.values()} == {4}


def test_a_round_is_a_median_of_calls_that_find_their_gradient(monkeypatch):
    session = session_of.Session()
    session.load("gradstep.tools.bench.contestants:NumPy", ["numpy"], ())
    assert session.start(Work("adam", 100, clip=True))
    contestant, calls = session._now, []
    good = contestant.step

    def step():
        calls.append(all(grad.any() for grad in contestant.grads))
        good()

    contestant.step = step
    seconds = session.round()
    assert 1e-6 < seconds < 0.1
    assert all(calls)
    assert 2 <= len(calls) <= contestants.MOST_CALLS + contestants.MOST_WARM_UPS
    calls.clear()
    monkeypatch.setattr(session_of, "ROUND_NS", 1)
    monkeypatch.setattr(session_of, "WARM_UP_NS", 1)
    session.round()
    assert len(calls) == 2
    session.end()
    assert session._now is None


def test_statistics():
    work = Work("adam", 10)
    times = {"gradstep": [1.0, 2.0, 4.0], "roofline": [0.5] * 3, "numpy": [3.0, 5.0, 8.0]}
    found = made_up([work], times, torch="")
    row = found.rows[0]
    assert row.seconds("gradstep") == 20
    assert row.ratios("numpy") == [3, 2.5, 2]
    assert row.ratio("numpy") == 2.5
    assert np.isnan(row.ratio("torch"))
    assert np.isnan(row.seconds("torch"))
    told = bench.as_json(found)["works"][0]["contestants"]["numpy"]
    assert told["ratio"] == {"median": 2.5, "quartiles": [2.25, 2.75], "rounds": [3, 2.5, 2]}
    assert told["seconds"] == {"median": 50, "quartiles": [40, 65], "rounds": [30, 50, 80]}
    assert (told["same_bits"], told["deviation"], told["problem"]) == (False, 1e-6, "")


def test_what_does_not_fit_in_memory_is_skipped(log, monkeypatch):
    monkeypatch.setattr(measure, "available_bytes", lambda: 1e6)
    found = bench.bench([Work("adam", 1000), Work("adam", 10**6)], ["numpy"], rounds=1)
    small, large = found.rows
    assert small.timed("numpy")
    assert large.results == {}
    assert large.skipped == "needs 0.1 GB of memory, 0.0 are free"
    assert f"skipped: Adam, 1 M: {large.skipped}" in bench.table(found)
    assert bench.as_json(found)["works"][1]["skipped"] == large.skipped
    assert [command for command, name in log if name == "numpy"].count("start") == 1


def test_memory_is_that_of_all_contestants():
    work = Work("adam", 10**6)
    assert measure.available_bytes() > 1e7
    assert bench.needed_bytes(work, 10) - bench.needed_bytes(work, 9) == 4 * 4 * 10**6
    assert bench.needed_bytes(Work("adam", 1000, 1000), 9) == bench.needed_bytes(work, 9)


def test_environment_of_a_worker(monkeypatch):
    told = workers._environment(3, "/somewhere/bin/python")
    assert {told[f"{name}_NUM_THREADS"] for name in ("OMP", "NUMBA", "GRADSTEP", "MKL")} == {"3"}
    assert told["PATH"].startswith("/somewhere/bin" + os.pathsep)
    assert "intra_op_parallelism_threads=1" in workers._environment(1, "python")["XLA_FLAGS"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs affinity")
def test_a_worker_has_as_many_processors_as_threads(fakes, tmp_path):
    (tmp_path / "fakes.py").write_text(
        FAKES
        + textwrap.dedent("""
            class Counts(NumPy):
                def param(self, i):
                    import gradstep
                    assert gradstep.get_num_threads() == 1
                    raise RuntimeError(f"{len(os.sched_getaffinity(0))} processors")
        """)
    )
    found = run(fakes("Counts"))
    assert found.rows[0].results["counts"].problem == "RuntimeError: 1 processors"


# What goes wrong with a contestant


def test_failures_are_a_line_each_and_leave_the_others_alone(fakes, capfd):
    peers = fakes("Dies", "DiesLater", "Raises", "Chatters", "Cannot", "Right")
    peers += fakes("Missing", packages=("no_such_package",))
    found = run(peers, ("adam", 10), ("sgd", 20), ("sgd", 30))
    assert capfd.readouterr() == ("", "")
    assert found.unused == {
        "missing": "no_such_package is not installed",
        "dieslater": "its process ended with code 7 at Adam, 10",
        "dies": "its process was ended by SIGKILL at SGD, 20",
    }
    first, second, third = found.rows
    for row in found.rows:
        assert row.timed("right")
        assert row.timed("chatters")
        assert row.results["raises"].problem == "RuntimeError: not today"
        assert row.results["cannot"].problem == NO_RULE
    assert first.timed("dies")
    assert not second.timed("dies")
    assert "dies" not in third.results
    lines = bench.table(found).splitlines()
    assert "dies: not used: its process was ended by SIGKILL at SGD, 20" in lines
    assert "not installed: missing" in lines
    assert sum(line.startswith("raises: ") for line in lines) == 3
    assert not any("cannot" in line or "Traceback" in line for line in lines[5:])
    json.dumps(bench.as_json(found), allow_nan=False)


def test_a_contestant_that_does_not_answer(fakes, monkeypatch):
    peers = fakes("Sleeps")
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 2)
    found = run(peers)
    assert found.unused == {"sleeps": "did not answer for 2 seconds at Adam, 1 k"}
    assert found.rows[0].timed("gradstep")


@posix
def test_other_interpreters(tmp_path):
    commands = {"numpy": f"exec {sys.executable} -S -c 'import not_here'", "torch": "exec yes"}
    pythons = {"numba": str(tmp_path / "nothing")}
    for peer, line in commands.items():
        pythons[peer] = str(tmp_path / peer)
        (tmp_path / peer).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / peer).chmod(0o755)
    found = bench.bench([Work("sgd", 10)], list(pythons), rounds=1, pythons=pythons)
    assert "No module named 'not_here'" in found.unused["numpy"]
    assert found.unused["torch"] == "its answer cannot be read"
    assert "nothing" in found.unused["numba"]
    assert "not used: ModuleNotFoundError" in bench.table(found)


@posix
def test_no_worker_outlives_an_interrupt(ctrl_c_interrupts, fakes, monkeypatch):
    processes = []

    class Watched(bench.Worker):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            processes.append(self._process)

    monkeypatch.setattr(measure, "Worker", Watched)
    peers = fakes("Sleeps")
    ctrl_c = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        run(peers)
    assert len(processes) == 3
    assert {process.poll() for process in processes} == {-signal.SIGKILL}
    ctrl_c.join()


# What is printed and drawn


FASTER = {name: [1e-9 * (5 + i)] * 3 for i, name in enumerate((*ALWAYS, *PEERS))}
FASTER["smaller"] = [4e-9] * 3


def test_table():
    times = {**FASTER, "torch": [4e-9] * 3}
    works = bench.standard([2])
    lines = bench.table(made_up(works, times, optax="ends far away")).splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("step "))
    rows = lines[header + 1 : header + 1 + len(works)]
    assert [row.startswith(work.title) for row, work in zip(rows, works, strict=True)] == [
        True
    ] * 13
    cells = "Adam 10 M 50.0 ms 6 120 % 1.40x 1.60x 0.80! 2.00x 2.20x 2.40x differs 2.80x"
    assert rows[3].split() == cells.split()
    text = "\n".join(lines)
    growth = "growth: Adam takes 5.000 ns per element at 250 M, 1.25 times as long as at 10 M in"
    assert growth in text
    assert gs.info()["compiler"] in text
    assert "torch-fused 1.0" in text


def test_class_table():
    times = {
        "gradstep": [5e-10] * 3,
        "roofline": [4.5e-10] * 3,
        "numpy": [4e-9] * 3,
        "torch": [3e-9] * 3,
        "torch-foreach": [2.5e-9] * 3,
        "torch-fused": [4e-10] * 3,
    }
    names = ["sgd", "rmsprop_centered", "NAdam", "WindowSAG", "Lion"]
    found = made_up(bench.classes(names, 2), times)
    _, centered, nadam, window, lion = found.rows
    for peer in CLASS_PEERS[1:]:
        window.results[peer] = Result(problem=NO_RULE)
        lion.results[peer].check, lion.results[peer].problem = Check(False, 0.1), "ends far away"
    for row in (centered, nadam):
        row.results["torch-fused"] = Result(problem=NO_RULE)
    nadam.results["torch-foreach"].problem = "RuntimeError: not today"
    text = bench.class_table(found)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| class | bytes per element | ms | of the memory's limit | NumPy | PyTorch |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `SGD` | 12 | 5 | 90 % | 8.00 | **0.80** (fused) |",
        "| `RMSprop` centered | 28 | 5 | 90 % | 8.00 | 5.00 (foreach) |",
        "| `NAdam` | 28 | 5 | 90 % | 8.00 | 6.00 (for-loop) |",
        "| `WindowSAG` | 28 | 5 | 90 % | 8.00 |  |",
        "| `Lion` | 20 | 5 | 90 % | 8.00 | differs |",
    ]
    assert "torch-foreach: NAdam, 10 M: RuntimeError: not today" in text
    assert "WindowSAG keeps 10 gradients." in text
    assert f"left out: SVRG: {LEFT_OUT['SVRG']}." in text
    assert "10 M float32 elements" in text
    assert max(map(len, text.splitlines())) <= bench.WIDTH


def test_storage_table():
    times = {"gradstep": [5e-10] * 3, PLAIN: [6e-10] * 3, "torch-fused": [4e-10] * 3}
    found = made_up(bench.storages([64_000_000], 2), times)
    found.rows[1].skipped, found.rows[1].results = "needs 9.0 GB", {}
    for row in found.rows[2:]:
        row.results["torch-fused"] = Result()
    text = bench.storage_table(found)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[:5] == [
        "| storage | bytes per element | ns per element | PyTorch | float32 |",
        "| --- | --- | --- | --- | --- |",
        "| float32 | 28 | 0.500 | **0.80** | 1.20 |",
        "| bfloat16 states | 20 | - |  |  |",
        "| bfloat16 states, nearest | 20 | 0.500 |  | 1.20 |",
    ]
    assert len(rows) == 2 + len(STORAGES)
    assert "skipped: Adam, bfloat16 states, 64 M: needs 9.0 GB" in text
    assert "over 64 M elements" in text
    assert gs.info()["compiler"] in text
    assert max(map(len, text.splitlines())) <= bench.WIDTH
    several = made_up(bench.storages([10, 20], 2), times)
    assert "| float32 | 20 | 28 | " in bench.storage_table(several)


@pytest.mark.parametrize("threads", [[2], [1, 2]])
def test_the_widest_table_fits(threads):
    times = {name: [t[0] * (1 if name in OURS else 90.04)] for name, t in FASTER.items()}
    found = made_up([*bench.standard(threads), *bench.matrix(RULES, [999_999], 1, threads)], times)
    assert max(map(len, bench.table(found).splitlines())) <= bench.WIDTH


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.156e-6, "2.16 us"),
        (99.96e-6, "100 us"),
        (9.9996e-4, "1.00 ms"),
        (0.5, "500 ms"),
        (2, "2.00 s"),
    ],
)
def test_times_have_three_digits(seconds, text):
    assert bench.seconds_text(seconds) == text
    assert bench.seconds_text(float("nan")) == "-"


@pytest.mark.parametrize(
    ("works", "times", "panels"),
    [
        (bench.standard([2]), FASTER, 2),
        (bench.standard([1, 2]), FASTER, 2),
        (bench.matrix(["sgd", "adam"], [1000], 1, [1]), FASTER, 1),
        (bench.matrix(["adam"], [1000, 2000], 1, [1]), {n: FASTER[n] for n in ALWAYS}, 1),
        (bench.matrix(["sgd"], [1000], 1, [1]), {n: FASTER[n] for n in ALWAYS}, 1),
    ],
    ids=["table", "threads", "ratios", "sizes", "nothing"],
)
def test_picture_has_no_text_over_text(tmp_path, works, times, panels):
    found = made_up(works, times)
    bench.save_picture(found, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    figure = bench.draw_picture(found)
    assert len(figure.axes) == panels
    figure.draw_without_rendering()
    texts = [figure._suptitle]
    for axes in figure.axes:
        texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            shown = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            texts += [label for at, label in shown if min(limits) <= at <= max(limits)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 5
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_labels_are_spread_within_limits():
    values = [0.0, 0.1, 0.1, 5.0, 9.9, 10.0]
    moved = report.spread(values, 0.5, 0.0, 10.0)
    assert min(np.diff(sorted(moved))) >= 0.5 - 1e-12
    assert (min(moved), max(moved), moved[3]) == (0.0, 10.0, 5.0)
    assert np.argsort(moved, kind="stable").tolist() == list(range(6))


# The command


def command(*arguments):
    return cli.main(["bench", *map(str, arguments)])


def test_command(tmp_path, capfd):
    out = tmp_path / "b.png"
    assert command("--sizes", "1000,2000", "--peers", "numpy", "--rounds", 2, "--out", out) == 0
    printed, err = capfd.readouterr()
    assert err == ""
    assert printed.endswith(f"\npicture: {out}\n")
    cells = {tuple(line.split()[:3]) for line in printed.splitlines()}
    assert {("Adam", "1", "k"), ("Adam", "2", "k")} <= cells
    assert out.stat().st_size > 10_000


def test_command_as_json(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    options = "--rules sgd,momentum --sizes 10 --arrays 3 --threads 1 --peers numpy --rounds 2"
    assert command(*options.split(), "--json") == 0
    printed, err = capfd.readouterr()
    assert err == ""
    told = json.loads(printed)
    assert told["machine"].items() >= gs.info().items()
    assert (told["rounds"], told["unused"]) == (2, {})
    assert [(w["rule"], w["size"], w["arrays"], w["threads"]) for w in told["works"]] == [
        ("sgd", 10, 3, 1),
        ("momentum", 10, 3, 1),
    ]
    for work in told["works"]:
        assert set(work["contestants"]) == {*ALWAYS, "numpy"}
        for name, result in work["contestants"].items():
            assert len(result["seconds"]["rounds"]) == 2
            assert ("same_bits" in result) == (name != "roofline")
    assert told["works"][1]["options"] == {"lr": 1e-3, "momentum": 0.9}
    assert (tmp_path / "bench.png").exists()


def test_command_for_classes(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert command("--classes", "adamax,LION", "--quick", "--threads", 1, "--rounds", 1) == 0
    printed, err = capfd.readouterr()
    assert err == ""
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| `")]
    assert [(row[0], row[1]) for row in rows] == [
        ("| `Adamax`", "28"),
        ("| `Lion`", "20"),
    ]
    assert all(float(row[4].strip("*")) > 0 for row in rows)
    assert "100 k float32 elements" in printed
    assert list(tmp_path.iterdir()) == []


def test_command_for_classes_as_json(asked, capsys):
    assert command("--classes", "Adamax", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(work["class"], work["bytes_per_element"]) for work in told["works"]] == [
        ("Adamax", 28)
    ]


def test_options_of_the_classes(asked, capsys):
    assert command("--classes") == 0
    assert asked["works"] == bench.classes(list(CLASS_RULES), gs.get_num_threads())
    assert (asked["peers"], asked["rounds"]) == (CLASS_PEERS, bench.CLASS_ROUNDS)
    assert {work.peers for work in asked["works"]} == {CLASS_PEERS}
    assert command("--classes", "all", "--quick", "--threads", "1") == 0
    assert asked["works"] == bench.classes(list(CLASS_RULES), 1, quick=True)
    assert max(work.elements for work in asked["works"]) == bench.QUICK_CLASS_SIZE
    assert asked["rounds"] == bench.QUICK_CLASS_ROUNDS
    assert command("--classes", "nadam,adam", "--rounds", "2", "--quick") == 0
    assert [work.title for work in asked["works"]] == ["NAdam", "Adam", "Adam amsgrad"]
    assert asked["rounds"] == 2
    python = f"torch={sys.executable}"
    assert command("--classes", "adam", "--python", python) == 0
    assert asked["pythons"] == dict.fromkeys(CLASS_PEERS[1:], sys.executable)


def test_command_for_storages(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert command("--storage", "--sizes", 5000, "--threads", 1, "--rounds", 1) == 0
    printed, err = capfd.readouterr()
    assert err == ""
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:2] == "| "]
    assert [row[0] for row in rows[2:]] == [*STORAGES]
    assert all(float(row[2]) > 0 for row in rows[2:])
    assert list(tmp_path.iterdir()) == []


def test_options_of_storages(asked, monkeypatch, capsys):
    threads = gs.get_num_threads()
    assert command("--storage") == 0
    assert asked["works"] == bench.storages([64_000_000], threads)
    assert (asked["peers"], asked["rounds"]) == (STORAGE_PEERS, bench.ROUNDS)
    assert command("--storage", "--quick", "--threads", "1", "--rounds", "2") == 0
    assert asked["works"] == bench.storages([bench.QUICK_STORAGE_SIZE], 1)
    assert asked["rounds"] == 2
    capsys.readouterr()
    assert command("--storage", "--sizes", "10,20", "--json") == 0
    assert asked["works"] == bench.storages([10, 20], threads)
    (told,) = json.loads(capsys.readouterr().out)["works"]
    assert (told["storage"], told["bytes_per_element"]) == (PLAIN, 28)
    monkeypatch.setattr(works_of, "find_spec", lambda name: None)
    assert command("--storage") == 2
    message = "gradstep: error: --storage needs ml_dtypes: pip install 'gradstep[bfloat16]'\n"
    assert capsys.readouterr().err == message


def test_other_bits_are_an_error(fakes, monkeypatch, tmp_path, capfd):
    fakes("Close")
    monkeypatch.setitem(CONTESTANTS, "gradstep", CONTESTANTS["close"])
    arguments = ["--sizes", "100", "--peers", "numpy", "--rounds", "1", "--json"]
    assert command(*arguments, "--out", tmp_path / "a.png") == 1
    printed, err = capfd.readouterr()
    assert err == "gradstep: error: Adam, 100: other bits than NumPy; please report this\n"
    told = json.loads(printed)["works"][0]["contestants"]
    assert told["gradstep"]["problem"] == "has other bits than NumPy"
    assert "ratio" not in told["numpy"]


@pytest.fixture
def asked(monkeypatch):
    """What the command would measure; it does not."""
    seen = {}

    def measure(works, peers, **options):
        seen.update(works=works, peers=peers, **options)
        return made_up(works[:1], FASTER)

    monkeypatch.setattr(bench, "bench", measure)
    return seen


def test_options_of_the_table(asked, tmp_path, capsys):
    out = ["--out", tmp_path / "a.png"]
    assert command(*out) == 0
    assert asked["works"] == bench.standard([gs.get_num_threads()])
    assert (asked["peers"], asked["rounds"], asked["pythons"]) == (list(PEERS), bench.ROUNDS, {})
    assert command(*out, "--quick", "--threads", "1,2", "--rounds", "3") == 0
    assert asked["works"] == bench.standard([1, 2], quick=True)
    assert max(work.elements for work in asked["works"]) == 1_000_000
    assert asked["rounds"] == 3
    python = f"torch={sys.executable}"
    assert command(*out, "--peers", "torch,thinc", "--python", python) == 0
    assert asked["peers"] == ["torch", "torch-foreach", "torch-fused", "thinc"]
    assert asked["pythons"] == dict.fromkeys(asked["peers"][:3], sys.executable)
    assert command(*out, "--arrays", "3") == 0
    assert asked["works"] == [Work("adam", size, 3, gs.get_num_threads()) for size in bench.SIZES]


def test_without_matplotlib(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
    assert command() == 0
    assert capsys.readouterr().out.endswith("\npicture: none, for matplotlib is not installed\n")
    assert list(tmp_path.iterdir()) == []


FAULTS = {
    "rule": (["--rules", "adam,adma"], ["unknown rule 'adma'", *RULES]),
    "no rule": (["--rules", ""], ["unknown rule ''"]),
    "peer": (["--peers", "torch,keras"], ["unknown peer 'keras'", *PEERS]),
    "sizes": (["--sizes", "1000,many"], ["--sizes", "whole number", "'many'"]),
    "size 0": (["--sizes", "0"], ["--sizes", "at least 1", "'0'"]),
    "arrays": (["--arrays", "1.5"], ["--arrays", "'1.5'"]),
    "threads": (["--threads", "1,9999"], ["--threads", "from 1 to 1024", "'9999'"]),
    "rounds": (["--rounds", "0"], ["--rounds", "at least 1"]),
    "python": (["--python", "torch=/nowhere/python"], ["--python", "/nowhere/python", "PEER=PATH"]),
    "python of whom": (["--python", f"keras={sys.executable}"], ["unknown peer 'keras'"]),
    "out": (["--out", "no/a.png"], ["no/a.png", "no directory no"]),
    "out suffix": (["--out", "picture"], ["picture", ".png"]),
    "class": (["--classes", "adam,adma"], ["unknown class 'adma'", "classes are all, sgd", "lion"]),
    "class that needs more": (["--classes", "adam,sag"], ["'SAG'", "the row of each gradient"]),
    "classes with rules": (["--classes", "--rules", "adam"], ["--rules is not for --classes"]),
    "classes with sizes": (["--classes", "--sizes", "10"], ["--sizes is not for --classes"]),
    "classes with threads": (["--classes", "--threads", "1,2"], ["one number", "--classes", "1,2"]),
    "classes of linear models": (["--linear", "--classes"], ["--classes is not for --linear"]),
    "storage with rules": (["--storage", "--rules", "adam"], ["--rules is not for --storage"]),
    "storage of classes": (["--storage", "--classes"], ["--classes is not for --storage"]),
    "storage with threads": (["--storage", "--threads", "1,2"], ["one number", "--storage", "1,2"]),
    "storage of linear models": (["--linear", "--storage"], ["--storage is not for --linear"]),
    "abbreviation": (["--round", "3"], ["--round"]),
}


@pytest.mark.parametrize(("arguments", "words"), FAULTS.values(), ids=FAULTS)
def test_faults(asked, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("gradstep: error: ")
    assert [word for word in words if word not in err] == []
    assert asked == {}
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    assert command("--help") == 0
    out = capsys.readouterr().out
    words = [*RULES, *PEERS, "--json", "--quick", "--linear", "--classes", "--storage"]
    assert [word for word in words if word not in out] == []
    assert max(map(len, out.splitlines())) <= 100
