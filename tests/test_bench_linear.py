"""`gradstep bench --linear`: what is timed, that it is the same everywhere, and what is printed."""

from __future__ import annotations

import json
import sys
from functools import partial

import numpy as np
import pytest

import gradstep as gs
from gradstep.tools import cli, cli_bench
from gradstep.tools.bench import linear as bench_linear
from gradstep.tools.bench import linear_works, system
from gradstep.tools.bench.linear import Found
from gradstep.tools.bench.linear_works import (
    CONTESTANTS,
    NOT_THERE,
    OURS,
    THEIRS,
    Contestant,
    Epochs,
    Fit,
    Goal,
    Problem,
    Result,
    Row,
)

pytestmark = pytest.mark.slow

DENSE = Epochs("dense", partial(linear_works.logistic, 60, 5), epochs=3)
SPARSE = Epochs("sparse", partial(linear_works.sparse_logistic, 60, 20, 0.2), epochs=3)


def few_digits():
    """Three classes of them: little to fit."""
    whole = linear_works.digits(0.01)
    rows = np.flatnonzero(whole.y < 3)[:60]
    return Problem(whole.x[rows], whole.y[rows], 0.01)


DIGITS = Goal("digits", few_digits, linear_works.near_least, linear_works.to_gradient)
PHOTO = Goal("photo", partial(linear_works.photo, 300), linear_works.near_r2)


@pytest.fixture(scope="module")
def found():
    return bench_linear.bench([DENSE, SPARSE, DIGITS, PHOTO], rounds=2)


# What is timed


def test_everyone_is_at_the_optimum_and_timed(found):
    titles = ["dense, 60 x 5: an epoch", "dense, 60 x 5: fit of one"]
    titles += ["sparse, 60 x 20: an epoch", "sparse, 60 x 20: fit of one"]
    assert [row.title for row in found.rows] == [*titles, "digits, 60 x 64", "photo, 1,808 x 24"]
    assert found.wrong == []
    for row in found.rows:
        for contestant, result in row.results.items():
            there = contestant != (OURS, "sag") or "sparse" not in row.title
            assert result.problem == ("" if there else NOT_THERE), (row.title, contestant)
            assert len(result.seconds) == 2 * there
        assert len(row.ratios("sag")) == len(row.ratios("saga")) == 2


@pytest.mark.parametrize(
    "work", [DENSE, SPARSE, DIGITS, PHOTO], ids=["dense", "sparse", "digits", "photo"]
)
def test_the_objective_is_least_at_the_reference(work):
    """Written out anew: its derivative is 0 there, and it grows in every direction."""
    problem = work.problem()
    x = problem.x if isinstance(problem.x, np.ndarray) else problem.x.toarray()
    x = np.column_stack([x.astype(float), np.ones(len(x))])
    model, y = problem.best, problem.y
    coef = np.atleast_2d(
        np.column_stack([model.coef_.reshape(-1, x.shape[1] - 1), model.intercept_])
    )
    z = x @ coef.T
    if problem.regression:
        each, slope = 0.5 * (z[:, 0] - y) ** 2, z - y[:, None]
    elif len(coef) == 1:
        each, slope = np.logaddexp(0, np.where(y == 1, -1, 1) * z[:, 0]), 1 / (1 + np.exp(-z))
        slope = slope - y[:, None]
    else:
        share = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        each, slope = -np.log(share[np.arange(len(y)), y]), share - np.eye(len(coef))[y]
    penalty = problem.alpha * coef * (np.arange(x.shape[1]) < x.shape[1] - 1)
    assert np.abs(slope.T @ x / len(x) + penalty).max() < 1e-6
    expected = each.mean() + 0.5 * np.sum(penalty * coef)
    assert problem.objective(model) == pytest.approx(expected, rel=1e-6)


def test_one_who_minimises_something_else_has_no_time(monkeypatch, capsys):
    good = Problem.model

    def other(problem, contestant, max_iter, tol):
        model = good(problem, contestant, max_iter, tol)
        if contestant == (OURS, "saga"):
            model.set_params(alpha=2 * problem.alpha)
        if contestant == (THEIRS, "sag"):
            model.set_params(fit_intercept=False)
        return model

    monkeypatch.setattr(Problem, "model", other)
    monkeypatch.setattr(cli_bench, "standard", lambda quick: [DENSE, PHOTO])
    assert cli.main(["bench", "--linear", "--rounds", "1"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("gradstep: error: dense, 60 x 5: an epoch; dense, 60 x 5: fit of one; ")
    assert err.endswith(": gradstep is not at the optimum; please report this\n")
    lines = [line.split() for line in out.splitlines() if line.startswith("dense, ")]
    assert [line[-1] for line in lines] == ["-", "-"]
    assert out.count("gradstep saga: dense, 60 x 5: an epoch: ends ") == 1
    assert out.count("scikit-learn sag: dense, 60 x 5: an epoch: ends ") == 1


def test_the_goal_of_digits_is_a_gradient():
    problem = few_digits()
    tol = linear_works.to_gradient(problem)
    model = problem.fit(Contestant(OURS, "saga"), 1000, tol).model
    assert model.gradient_norm_ <= tol
    x = problem.x - problem.x.mean(axis=0)
    z = problem.x @ model.coef_.T + model.intercept_
    share = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) - np.eye(3)[problem.y]
    gradient = x.T @ share / 60 + 0.01 * model.coef_.T
    norm = np.hypot(np.linalg.norm(gradient), np.linalg.norm(share.mean(axis=0)))
    assert 1e-9 < norm < 1e-6
    assert model.n_iter_ < problem.fit(Contestant(OURS, "saga"), 1000, tol / 10).epochs


def test_the_loosest_tolerance_that_reaches_the_goal():
    problem = PHOTO.problem()
    row = Row("", {c: Result() for c in CONTESTANTS})
    reached = linear_works.near_r2(problem)
    for contestant, result in row.results.items():
        linear_works._look(problem, contestant, result, linear_works.LADDER, reached)
        at = linear_works.LADDER.index(result.tol)
        best = problem.best.score(problem.x, problem.y)
        for tol in linear_works.LADDER[: at + 1]:
            r2 = problem.fit(contestant, 2000, tol).model.score(problem.x, problem.y)
            assert (r2 >= best - 1e-4) == (tol == result.tol), (contestant, tol)
    result = Result()
    linear_works._look(problem, CONTESTANTS[0], result, [1e-1, 1e-2], lambda model: False)
    assert result.problem.startswith("does not get there: tol=0.01, ")


@pytest.fixture
def log(monkeypatch):
    """Nothing is fitted: what would be is written down, and takes made-up seconds."""
    asked = []

    def fit(problem, contestant, max_iter, tol=None):
        asked.append((contestant, max_iter, tol))
        each = 1 + CONTESTANTS.index(contestant)
        return Fit(None, 10.0 + max_iter * each, max_iter)

    monkeypatch.setattr(Problem, "fit", fit)
    monkeypatch.setattr(
        Problem, "complaint", lambda problem, c: "" if problem.has(c) else NOT_THERE
    )
    return asked


def test_rounds_alternate_and_epochs_are_differences(log):
    dense, whole, sparse, _ = bench_linear.bench([DENSE, SPARSE], rounds=2).rows
    for each, contestant in enumerate(CONTESTANTS, 1):
        assert dense.seconds(contestant) == each
        assert whole.seconds(contestant) == 10 + each
    first = [contestant for contestant, max_iter, _ in log[:16] if max_iter == 4]
    assert first == [*CONTESTANTS, *CONTESTANTS[1:], CONTESTANTS[0]]
    assert {tol for _, _, tol in log} == {None}
    assert (dense.ratio("sag"), dense.ratio("saga")) == (3, 2)
    assert sparse.results[CONTESTANTS[0]].seconds == []
    assert (sparse.ratio("sag"), sparse.ratio("saga")) == (1.5, 2)  # both to SAGA


def test_goals_are_timed_with_their_tolerances(log):
    goal = Goal("goal", DENSE.problem, lambda problem: lambda model: True, lambda problem: 0.5)
    (row,) = bench_linear.bench([goal], rounds=2).rows
    assert [result.tol for result in row.results.values()] == [0.5, 0.5, 1.0, 1.0]
    assert [tol for _, _, tol in log[4:8]] == [0.5, 0.5, 1.0, 1.0]
    assert {len(result.seconds) for result in row.results.values()} == {2}


def test_without_an_epoch_there_is_no_division_by_zero(log, monkeypatch):
    monkeypatch.setattr(Problem, "fit", lambda *_: Fit(None, 1.0, 1))
    row = bench_linear.bench([DENSE], rounds=1).rows[0]
    assert row.ratio("sag") == 1


def test_the_works():
    shapes = [(100_000, 54), (20_000, 784), (2_000, 20_000)]
    full, quick = linear_works.standard(), linear_works.standard(quick=True)
    assert [work.problem.args for work in full[:3]] == shapes
    assert full[3].problem.args == (50_000, 20_000, 0.001)
    assert [work.problem.args for work in full[4:]] == [(1e-3,), (None,), (1,)]
    assert [type(work) for work in quick] == [type(work) for work in full]
    problem = linear_works.sparse_logistic(300, 200, 0.01)
    assert problem.x.nnz == 600
    assert (problem.x.format, problem.x.dtype, problem.alpha) == ("csr", np.float32, 1 / 300)
    assert linear_works.digits(None).alpha == 1 / 1797
    assert linear_works.photo(1).shape == "542,300 x 24"


# What is printed


def made_up():
    titles = ["logistic, density 0.001, 50,000 x 20,000: fit of one", "digits, 1,797 x 64"]
    sparse = {c: Result([3e-3 * i], problem="") for i, c in enumerate(CONTESTANTS, 1)}
    sparse[CONTESTANTS[0]] = Result(problem=NOT_THERE)
    digits = {c: Result([1.0 / i], 1e-5, 77) for i, c in enumerate(CONTESTANTS, 1)}
    digits[CONTESTANTS[3]] = Result(problem="does not get there: tol=0.01, 2,000 epochs")
    rows = [Row(title, each) for title, each in zip(titles, (sparse, digits), strict=True)]
    return Found(system.machine(), {"scikit-learn": "1.0"}, rows, 5)


def test_table():
    text = bench_linear.table(made_up())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    sparse, digits = (
        next(line for line in lines if line.startswith(start))
        for start in ("logistic, ", "digits, ")
    )
    assert " ".join(sparse.split()).endswith(": fit of one - 6.00 ms 9.00 ms 12.0 ms 1.50x 2.00x")
    assert " ".join(digits.split()).endswith(" 1,797 x 64 1.00 s 500 ms 333 ms - 0.33! -")
    assert "scikit-learn 1.0" in text
    assert "gradstep sag tol=1e-05, 77 epochs" in text
    assert "scikit-learn saga: digits, 1,797 x 64: does not get there: tol=0.01" in text


def test_command(monkeypatch, capsys):
    monkeypatch.setattr(cli_bench, "standard", lambda quick: [DENSE] if quick else [PHOTO])
    assert cli.main(["bench", "--linear", "--quick", "--rounds", "2", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert (err, gs.get_num_threads()) == ("", 1)
    assert "dense, 60 x 5: an epoch" in out
    assert "; 1 thread; " in out
    assert cli.main(["bench", "--linear", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rounds"] == bench_linear.ROUNDS
    assert set(told["versions"]) == {"scikit-learn", "scipy"}
    (work,) = told["works"]
    assert work["title"] == "photo, 1,808 x 24"
    assert set(work["contestants"]) == {str(contestant) for contestant in CONTESTANTS}
    for name, result in work["contestants"].items():
        assert len(result["seconds"]["rounds"]) == bench_linear.ROUNDS
        assert result["tol"] in linear_works.LADDER
        assert ("ratio" in result) == name.startswith(THEIRS)
    json.dumps(bench_linear.as_json(made_up()), allow_nan=False)


FAULTS = {
    "rules": (["--rules", "adam"], "--rules is not for --linear"),
    "sizes": (["--sizes", "10"], "--sizes is not for --linear"),
    "arrays": (["--arrays", "10"], "--arrays is not for --linear"),
    "peers": (["--peers", "torch"], "--peers is not for --linear"),
    "python": (["--python", "torch=python"], "--python is not for --linear"),
    "out": (["--out", "a.png"], "--out is not for --linear"),
    "threads": (["--threads", "1,2"], "--threads must be one number with --linear, got 1,2"),
}


@pytest.mark.parametrize(("arguments", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(bench_linear, "bench", None)
    assert cli.main(["bench", "--linear", *arguments]) == 2
    assert capsys.readouterr() == ("", f"gradstep: error: {message}\n")


def test_without_scikit_learn(monkeypatch, capsys):
    for module in [name for name in sys.modules if name.split(".")[0] == "sklearn"] + ["sklearn"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["bench", "--linear", "--quick"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gradstep: error: sklearn")
    assert 'pip install "gradstep[demo]"' in err
