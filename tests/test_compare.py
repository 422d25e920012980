"""`gradstep compare` and `gradstep info`: what they find, print and draw, and how they fail."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, losses, reference
from gradstep.tools import cli, compare, datasets, report
from gradstep.tools.compare import picture
from gradstep.tools.compare.problem import Batches, Problem
from gradstep.tools.compare.recipes import ALL_RULES, RULES
from gradstep.tools.compare.runs import Run, Training

pytestmark = pytest.mark.slow
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture(scope="module")
def problems():
    """Each built-in data set; of photo, a few rows."""
    loaded = {name: datasets.load(name) for name in ("digits", "line", "diabetes")}
    raw = datasets.BUILT_IN["photo"]()
    few = dataclasses.replace(raw, x=raw.x[::1000], y=raw.y[::1000])
    return {**loaded, "photo": datasets._prepared(few, 0)}


#: Rules whose steps are as long as the weights, which begin at 0.
RELATIVE = {"LARS", "LAMB"}


def least_squares(data):
    """Weights, bias and loss of the optimum."""
    ones = np.column_stack([data.x, np.ones(len(data.x))])
    solution = np.linalg.lstsq(ones, data.y)[0]
    return solution, 0.5 * np.mean((ones @ solution - data.y) ** 2)


def rows_of(text):
    """The cells of a printed table, by rule."""
    lines = [line.split() for line in text.splitlines() if not line.endswith(".")]
    return {cells[0]: cells[1:] for cells in lines if cells and cells[0] in ALL_RULES}


def read_picture(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


# What is found


def test_every_rule_has_a_recipe_and_the_table_is_the_only_place():
    assert {recipe.cls for recipe in RULES.values()} <= set(gs.optimizers.CLASSES)
    lines = [(recipe.colour, recipe.dash) for recipe in RULES.values()]
    assert len(set(lines)) == len(RULES)
    assert "" not in {colour for colour, _ in lines}
    compared = {recipe.cls for recipe in ALL_RULES.values()}
    assert compared == {
        cls for cls in gs.optimizers.CLASSES if not cls.step_needs or cls in compare.ROW_METHODS
    }
    assert set(ALL_RULES) == {cls.__name__ for cls in compared} | {"AMSGrad"}
    assert list(ALL_RULES)[: len(RULES)] == list(RULES)


def test_a_class_without_a_recipe_gets_one(problems):
    batches = Batches(Problem(problems["diabetes"]), 32, 0)
    bounded, adaptive, own = (compare.recipe_for(cls) for cls in (gs.Nesterov, gs.Adamax, gs.Lion))
    half = 0.5 * gs.max_stable_lr("nesterov", batches.problem.curvature(32))
    assert bounded.learning_rate(batches) == pytest.approx(half, rel=5e-3)
    assert adaptive.learning_rate(batches) == RULES["Adam"].learning_rate(batches)
    assert own.learning_rate(batches) < adaptive.learning_rate(batches)


@pytest.mark.parametrize("name", ["digits", "line", "diabetes", "photo"])
def test_every_rule_learns_each_data_set_with_numpys_bits(problems, name):
    found = compare.compare(problems[name], list(ALL_RULES), epochs=6)
    assert {run.name for run in found.runs} == ALL_RULES.keys() - found.left_out.keys()
    assert all("two dimensions" in why for why in found.left_out.values())
    final = [run.losses[-1] for run in found.runs]
    assert final == sorted(final)
    for run in found.runs:
        assert run.same_bits, run.name
        assert run.epochs == 6
        steps = 1 if run.recipe.full_batch else len(found.batches)
        assert {training.opt.t for training in run.trainings} == {6 * steps}
        if run.name not in RELATIVE:
            # A step per epoch is soon counted.
            least = 0.98 if run.recipe.full_batch else 0.9
            assert run.losses[-1] < least * run.losses[0], run.name
        assert all(np.diff(seconds).min() > 0 for seconds in run.seconds)


def test_sgd_reaches_the_least_squares_optimum(problems):
    data = problems["line"]
    optimum, least = least_squares(data)
    run = compare.compare(data, ["SGD"], epochs=700, batch_size=750).runs[0]
    np.testing.assert_allclose(np.concatenate(run.params), optimum, rtol=1e-12)
    assert run.losses[-1] == pytest.approx(least, rel=1e-14)
    assert run.batches.problem.least == pytest.approx(least, rel=1e-14)


def test_sag_reaches_the_optimum_with_batches_of_unequal_size(problems):
    """SGD does not; and SAG would not, were the last batch not weighted by its size."""
    data = problems["line"]
    optimum, _ = least_squares(data)
    sag, sgd = compare.compare(data, ["SGD", "SAG"], epochs=300, batch_size=400).runs
    assert (sag.name, sgd.name) == ("SAG", "SGD")
    np.testing.assert_allclose(np.concatenate(sag.params), optimum, rtol=1e-10)
    uneven = Run(Batches(Problem(data), 101, seed=0), "SAG", seed=0)
    assert {len(x) for x, _, _ in uneven.batches.items} == {93, 94}
    for _ in range(400):
        uneven.epoch()
    np.testing.assert_allclose(np.concatenate(uneven.params), optimum, rtol=1e-10)


def test_defaults_on_digits(problems):
    found = compare.compare(problems["digits"], ["SGD", "Adam"])
    for run in found.runs:
        assert found.problem.score(run.params) > 0.9, run.name
        assert 20 <= run.epochs <= 100


def test_batches_are_a_partition_whose_mean_gradient_is_the_whole(problems):
    problem = Problem(problems["diabetes"])
    batches = Batches(problem, 50, seed=1)
    assert len(batches) == 7
    rows = np.concatenate([x for x, _, _ in batches.items])
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(problem.data.x, axis=0))
    rng = np.random.default_rng(0)
    params = [rng.normal(size=10), rng.normal(size=1)]
    _, whole = losses.linear(losses.least_squares)(params, problem.data.x, problem.data.y)
    grads = [batches.gradient(params, row) for row in range(len(batches))]
    for part, expected in zip(map(np.array, zip(*grads, strict=True)), whole, strict=True):
        np.testing.assert_allclose(part.mean(axis=0), expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "factor"), [("digits", 0.5), ("diabetes", 1)])
def test_curvature(problems, name, factor):
    problem = Problem(problems[name])
    rows = len(problem.data.x)
    x = problem.with_ones
    overall = factor * np.linalg.norm(x, 2) ** 2 / rows
    worst = factor * max(np.linalg.norm(row) ** 2 for row in x)
    assert problem.curvature(rows) == pytest.approx(overall)
    assert problem.curvature(1) == pytest.approx(worst)
    assert overall < problem.curvature(32) < worst
    wide = dataclasses.replace(problem.data, x=problem.data.x[:7], y=problem.data.y[:7])
    expected = factor * np.linalg.norm(Problem(wide).with_ones, 2) ** 2 / 7
    assert Problem(wide).curvature(7) == pytest.approx(expected)


#: What takes long on digits does so at night.
sometimes_digits = pytest.mark.parametrize(
    "name", [pytest.param("digits", marks=pytest.mark.nightly), "line", "diabetes"]
)


@sometimes_digits
def test_rules_whose_steps_are_a_share_of_the_weights_learn_in_the_end(problems, name):
    for run in compare.compare(problems[name], sorted(RELATIVE & ALL_RULES.keys())).runs:
        assert run.losses[-1] < 0.9 * run.losses[0], run.name


POINTS = {
    "ASGD": lambda opt: opt.average(),
    "Nesterov": lambda opt: opt.position(),
    "ScheduleFreeSGD": lambda opt: opt.eval(),
    "ScheduleFreeAdamW": lambda opt: opt.eval(),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_rule_is_judged_at_its_point_and_goes_on_as_if_nobody_had_looked(problems, name):
    batches = Batches(Problem(problems["diabetes"]), 32, 0)
    run, alone = Run(batches, name, seed=0), Training(batches, ALL_RULES[name])
    order = np.random.default_rng(0)
    for _ in range(3):
        run.epoch()
        for row in order.permutation(len(batches)):
            alone.step(row)
    for param, expected in zip(run.params, alone.params, strict=True):
        np.testing.assert_array_equal(param, expected)
    point = POINTS[name](alone.opt) or alone.params
    for param, expected in zip(run.point, point, strict=True):
        np.testing.assert_array_equal(param, expected)
    assert run.losses[-1] == batches.problem.value(point) != batches.problem.value(run.params)
    weight, bias = run.point
    z = batches.problem.data.x_test @ weight + bias
    y = batches.problem.data.y_test
    expected = 1 - np.sum((z - y) ** 2) / np.sum((y - y.mean()) ** 2)
    found = compare.compare(problems["diabetes"], [name], epochs=3)
    assert float(rows_of(compare.table(found))[name][3]) == pytest.approx(expected, abs=6e-5)
    words = {"ASGD": "average", "Nesterov": "position"}
    assert f"take them: {name} at {words.get(name, 'eval')}()." in compare.table(found)


def test_the_paths_are_of_the_points_that_are_judged(problems):
    names = ["SGD", "ASGD", "ScheduleFreeSGD"]
    paths = compare.compare(problems["line"], names, epochs=1).paths
    # ASGD takes SGD's steps, but for a small decay, and averages its points from the second on.
    later = paths["SGD"][2:]
    mean = np.cumsum(later, axis=0) / np.arange(1, len(later) + 1)[:, None]
    np.testing.assert_allclose(paths["ASGD"][2:], mean, atol=0.01)
    for name in names:
        np.testing.assert_array_equal(paths[name][0], compare.PATH_START)


def test_learning_rates_follow_the_units_of_the_data(problems):
    """Features ten times as large: L is a hundred times, the weights are a tenth as large."""
    data = problems["diabetes"]
    larger = dataclasses.replace(data, x=10 * data.x)
    first, second = (Batches(Problem(each), 1000, 0) for each in (data, larger))
    for name, power in (("SGD", 2), ("Adam", 1)):
        ratio = RULES[name].learning_rate(first) / RULES[name].learning_rate(second)
        assert ratio == pytest.approx(10**power, rel=0.01)


def test_score_is_that_of_scikit_learn(problems):
    from sklearn.metrics import accuracy_score, r2_score

    rng = np.random.default_rng(0)
    for name in ("digits", "diabetes"):
        problem = Problem(problems[name])
        params = [rng.normal(size=p.shape) for p in problem.start()]
        z = problem.data.x_test @ params[0] + params[1]
        measure = r2_score if name == "diabetes" else accuracy_score
        y = z if name == "diabetes" else z.argmax(axis=1)
        assert problem.score(params) == pytest.approx(measure(problem.data.y_test, y))


def test_batch_sizes_of_sgd(problems):
    found = compare.compare(problems["line"], ["Adam"], epochs=2)
    assert [len(run.batches) for run in found.sizes] == [1, 24, 750]
    assert {run.name for run in found.sizes} == {"SGD"}
    whole = compare.compare(problems["line"], ["Adam"], epochs=2, batch_size=10**9)
    assert [len(run.batches) for run in whole.sizes] == [1, 750]


@pytest.mark.parametrize("name", ["digits", "line", "diabetes", "photo"])
def test_sag_and_saga_reach_the_optimum_where_others_stall(problems, name):
    races = {race.name: race for race in compare.compare(problems[name], ["SGD"]).races}
    assert list(races) == ["SGD", "WindowSAG", "SAG", "SAGA"]
    logs = {name: np.log(race.distances) for name, race in races.items()}
    assert {len(log) for log in logs.values()} == {compare.FINITE_SUM_PASSES + 1}
    for name in ("SAG", "SAGA"):
        first, _, third, fourth = (half.mean() for half in np.array_split(logs[name], 4))
        assert logs[name][0] - logs[name][-1] > np.log(1e6), name
        assert third - fourth > 0.2 * (first - fourth), name  # it does not slow down
    for name in ("SGD", "WindowSAG"):
        early, late = (np.median(part) for part in np.array_split(logs[name][10:], 2))
        assert late == pytest.approx(early, abs=1), name
        assert late > max(logs["SAG"][-1], logs["SAGA"][-1]) + np.log(1e3), name


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_the_penalised_optimum(problems, name):
    """The penalty makes the loss strongly convex: |w - w*| is at most |gradient| / penalty."""
    problem, penalty = Problem(problems[name]), 0.03
    params = problem.penalised_optimum(penalty)
    _, grads = problem.gradient(params, problem.data.x, problem.data.y)
    square = sum(np.sum((g + penalty * p) ** 2) for g, p in zip(grads, params, strict=True))
    assert np.sqrt(square) / penalty < 1e-12


def test_rules_race_with_the_same_steps(problems, monkeypatch):
    seen = {}

    def noted(training, row):
        seen.setdefault(training.opt, []).append(row)

    monkeypatch.setattr(compare.Training, "step", noted)
    races = compare.compare(problems["line"], ["Adam"], epochs=2).races
    rows = [seen[race.trainings[0].opt] for race in races]
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert len(rows[0]) == 2 * 150
    assert len(set(rows[0])) < 150
    curvature = Problem(problems["line"]).curvature(5)
    for race in races:
        told = race.trainings[0].opt.hyperparameters
        assert told["weight_decay"] == pytest.approx(curvature / 150, rel=5e-3)
        assert told["lr"] == pytest.approx(1 / (3 * (curvature + told["weight_decay"])), rel=5e-3)
        assert told["lr"] < gs.max_stable_lr(
            type(race.trainings[0].opt),
            curvature + told["weight_decay"],
            **({"window": compare.WINDOW} if race.name == "WindowSAG" else {}),
        ) * (1.01 if race.name == "SAGA" else 1)


def test_large_data_is_cut_for_single_samples(problems):
    data = problems["line"]
    large = dataclasses.replace(data, x=np.tile(data.x, (4, 1)), y=np.tile(data.y, 4))
    found = compare.compare(large, ["SGD"], epochs=1, batch_size=1500)
    assert [run.batches.size for run in found.sizes] == [2000, 32, 1]
    assert len(found.runs[0].batches) == 2


def test_paths_lead_from_the_start_to_the_optimum(problems):
    found = compare.compare(problems["diabetes"], epochs=1)
    assert list(found.paths) == list(RULES)
    assert found.line.optimum is not None
    optimum = np.concatenate(found.line.optimum)
    for name, points in found.paths.items():
        np.testing.assert_array_equal(points[0], compare.PATH_START)
        assert len(points) > compare.PATH_STEPS
        assert np.linalg.norm(points[-1] - optimum) < 1.5, name


def test_a_rule_that_diverges_comes_last_and_is_drawn(problems, monkeypatch, tmp_path):
    wild = dataclasses.replace(RULES["SGD"], lr=compare.over_curvature(50))
    monkeypatch.setitem(ALL_RULES, "SGD", wild)
    found = compare.compare(problems["diabetes"], ["SGD", "Adam"], epochs=40)
    assert [run.name for run in found.runs] == ["Adam", "SGD"]
    assert found.runs[1].diverged
    assert found.runs[1].same_bits
    table = compare.table(found)
    cells = rows_of(table)["SGD"]
    assert cells[1:4] == ["diverged", "-", "-"]
    assert f"\ndiverged: SGD in epoch {found.runs[1].epochs}.\n" in table
    assert 1 < found.runs[1].epochs < 40
    assert cells[-1] == "yes"
    compare.save_picture(found, tmp_path / "a.png")


def test_a_rule_that_does_not_take_the_parameters_is_left_out(problems, monkeypatch):

    class Picky(gs.Adam):
        def __init__(self, params, lr):
            if any(param.ndim != 2 for param in params):
                raise ValueError("params[1] must have 2 dimensions, got 1")

    monkeypatch.setitem(ALL_RULES, "Picky", compare.recipe_for(Picky))
    found = compare.compare(problems["line"], ["SGD", "Picky"], epochs=1)
    assert [run.name for run in found.runs] == list(found.paths) == ["SGD"]
    assert "\nleft out: Picky: params[1] must have 2 dimensions, got 1\n" in compare.table(found)
    with pytest.raises(datasets.UsageError, match=r"^Picky: params\[1\] must have 2 dim"):
        compare.compare(problems["line"], ["Picky"], epochs=1)


@pytest.mark.usefixtures("_no_picture")
def test_other_bits_are_seen(problems, monkeypatch, tmp_path, capsys):
    def off(w, g, *, t, lr):
        w -= lr * (1 + 1e-12) * g

    monkeypatch.setitem(reference.RULES, "sgd", off)
    arguments = ["compare", "--data", "line", "--rules", "sgd,adam", "--epochs", "2"]
    assert cli.main([*arguments, "--out", str(tmp_path / "a.png")]) == 1
    out, err = capsys.readouterr()
    assert rows_of(out)["SGD"][-1] == "NO"
    assert rows_of(out)["Adam"][-1] == "yes"
    assert err.startswith("gradstep: error: SGD ended with other bits")


def test_the_clock_counts_what_it_says(problems):
    run = Run(Batches(Problem(problems["line"]), 250, seed=0), "SAG", seed=0, with_numpy=True)
    for _ in range(4):
        run.epoch()
    for training, seconds, updates in zip(
        run.trainings, run.seconds, run.update_seconds, strict=True
    ):
        assert training.opt.t == 4 * 3
        assert 0 < training.update_seconds < training.seconds
        assert (seconds[-1], updates[-1]) == (training.seconds, training.update_seconds)
    run.update_seconds = [[0.0, 1.0, 2.0, 3.0, 300.0], [0.0, 2.0, 4.0, 600.0, 602.0]]
    assert run.update_microseconds == pytest.approx([1e6 / 3, 2e6 / 3])


# What is printed and drawn


def run_compare(tmp_path, capsys, *arguments):
    path = tmp_path / "picture.png"
    code = cli.main(["compare", *map(str, arguments), "--out", str(path)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.endswith(f"\npicture: {path}\n")
    return out


@pytest.fixture
def _no_picture(monkeypatch):
    """Drawing takes longer than what is looked at."""
    monkeypatch.setattr(compare, "save_picture", lambda found, path: None)


@pytest.mark.usefixtures("_no_picture")
def test_the_numbers_of_the_table(tmp_path, capsys, problems):
    """Against the same training, written out anew in NumPy."""
    out = run_compare(tmp_path, capsys, "--data", "diabetes", "--rules", "sgd", "--epochs", 5)
    lr, loss, above, r2, ours, numpys, ratio, update, numpys_update, faster, bits = rows_of(out)[
        "SGD"
    ]
    data = problems["diabetes"]
    order = np.random.default_rng(0)
    parts = np.array_split(np.random.default_rng(0).permutation(331), 11)
    w, b = np.zeros(10), 0.0
    for _ in range(5):
        for i in order.permutation(11):
            x, y = data.x[parts[i]], data.y[parts[i]]
            error = (x @ w + b - y) * (11 / 331)
            w, b = w - float(lr) * x.T @ error, b - float(lr) * error.sum()
    final = 0.5 * np.mean((data.x @ w + b - data.y) ** 2)
    residual = data.y_test - data.x_test @ w - b
    expected_r2 = 1 - np.sum(residual**2) / np.sum((data.y_test - data.y_test.mean()) ** 2)
    assert float(loss) == pytest.approx(final, rel=1e-3)
    assert float(above) == pytest.approx(final - least_squares(data)[1], rel=0.06)
    assert float(r2) == pytest.approx(expected_r2, abs=1e-4)
    assert bits == "yes"
    assert float(ratio) == pytest.approx(float(numpys) / float(ours), rel=0.5, abs=0.1)
    assert float(faster) == pytest.approx(float(numpys_update) / float(update), rel=0.1, abs=0.1)
    curvature = Problem(data).curvature(32)
    assert float(lr) == pytest.approx(1 / curvature, rel=5e-3)
    told = "331 rows x 10 features; 111 rows held out; 5 epochs of 11 batches of 32"
    assert told in " ".join(out.split())


@pytest.mark.usefixtures("_no_picture")
def test_the_printed_distances(tmp_path, capsys, problems):
    """SGD's against the same steps and the same optimum, written out anew in NumPy."""
    out = run_compare(tmp_path, capsys, "--data", "diabetes", "--rules", "adam", "--epochs", 5)
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("distance to optimum  "))
    assert lines[at - 1].split() == ["start", "SGD", "WindowSAG", "SAG", "SAGA"]
    start, sgd, *_ = map(float, lines[at].split()[3:])
    told = re.search(
        r"after 5 passes over 111 batches of 3, .* lr ([\d.]+), .* weight_decay ([\d.]+)\.\n",
        out,
        re.DOTALL,
    )
    lr, decay = map(float, told.groups())
    data = problems["diabetes"]
    x = np.column_stack([data.x, np.ones(331)])
    augmented = np.concatenate([x, np.sqrt(331 * decay) * np.eye(11)])
    optimum = np.linalg.lstsq(augmented, np.append(data.y, np.zeros(11)))[0]
    assert start == pytest.approx(np.linalg.norm(optimum), rel=0.05)
    parts = np.array_split(np.random.default_rng(0).permutation(331), 111)
    draws, w = np.random.default_rng(0), np.zeros(11)
    for _ in range(5):
        for i in draws.integers(111, size=111):
            rows = parts[i]
            error = (x[rows] @ w - data.y[rows]) * (111 / 331)
            w = w - lr * (x[rows].T @ error + decay * w)
    assert sgd == pytest.approx(np.linalg.norm(w - optimum), rel=0.05)


@pytest.mark.usefixtures("_no_picture")
def test_accuracy_is_printed_for_classes(tmp_path, capsys):
    out = run_compare(tmp_path, capsys, "--rules", "Adagrad,NESTEROV", "--epochs", 3)
    assert "accuracy" in out
    assert "above" not in out
    assert {float(cells[2]) > 80 for cells in rows_of(out).values()} == {True}
    assert {cells[3] for cells in rows_of(out).values()} == {"%"}


@pytest.mark.usefixtures("_no_picture")
def test_files(tmp_path, capsys):
    """The same numbers as CSV and as NPZ make the same table, but for the clock."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    label = np.where(x @ [1, -2] > 0, "ja", "nein")
    csv = tmp_path / "täble $1$.csv"
    lines = [f"{a!r},{b!r},{c}" for (a, b), c in zip(x.tolist(), label, strict=True)]
    csv.write_text("\n".join(["a,b,c", *lines]), encoding="utf-8")
    np.savez(tmp_path / "a.npz", X=x, c=label)
    options = ["--target", "c", "--rules", "sgd", "--epochs", "2", "--seed", "7", "--threads", "1"]
    first = run_compare(tmp_path, capsys, "--data", csv, *options)
    second = run_compare(tmp_path, capsys, "--data", tmp_path / "a.npz", *options)
    assert gs.get_num_threads() == 1
    assert "2 classes; 15 rows held out" in first
    assert rows_of(first)["SGD"][:4] == rows_of(second)["SGD"][:4]


@pytest.mark.usefixtures("_no_picture")
def test_the_seed_decides_all_but_the_clock(tmp_path, capsys):
    def numbers(seed):
        arguments = ["--data", "diabetes", "--rules", "adam,sag", "--epochs", 2, "--seed", seed]
        out = run_compare(tmp_path, capsys, *arguments)
        return {name: cells[:4] for name, cells in rows_of(out).items()}

    assert numbers(1) == numbers(1) != numbers(2)


def test_the_picture_shows_each_rule_in_its_colour(tmp_path, capsys):
    from matplotlib.colors import to_rgb

    def code(colours):
        return np.rint(255 * np.asarray(colours)).astype(int) @ [1 << 16, 1 << 8, 1]

    def shown(picture):
        pixels = dict(zip(*np.unique(code(picture), return_counts=True), strict=True))
        return {
            name
            for name, recipe in RULES.items()
            if pixels.get(code(to_rgb(recipe.colour)), 0) > 300
        }

    def picture(rules):
        run_compare(tmp_path, capsys, "--data", "diabetes", "--epochs", 3, "--rules", rules)
        return read_picture(tmp_path / "picture.png")

    one, two = picture("rmsprop"), picture("rmsprop,adagrad")
    always = {"SGD", "WindowSAG", "SAG", "SAGA"}  # of batch sizes and of who reaches the optimum
    assert shown(one) == {"RMSprop", *always}
    assert shown(two) == {"RMSprop", "Adagrad", *always}
    assert one.shape == two.shape
    assert min(one.shape[:2]) > 1000
    halves = [half for side in np.array_split(one, 2, axis=1) for half in np.array_split(side, 2)]
    assert all((panel < 0.95).mean() > 0.01 for panel in halves)


@pytest.fixture(
    scope="module",
    params=[["SAG"], ["Adam", "SGD"], ["Lion", "Adam"], list(RULES), list(ALL_RULES)],
    ids=["one", "two", "without a colour", "default", "all"],
)
def drawn(request, problems):
    """What was found, its picture, and a renderer for it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = compare.compare(problems["diabetes"], request.param, epochs=4)
    with rc_context(report.PICTURE_STYLE):
        figure = compare.draw(found)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return found, figure, canvas.get_renderer()


def test_the_panels_show_what_was_found(drawn):
    found, figure, _ = drawn
    by_epoch, by_time, by_size, surface, to_optimum = figure.axes
    lines = picture._lines(found.runs)
    coloured = [run for run in found.runs if lines[run.name]["color"] != compare.OTHERS]
    bold = [line for line in by_epoch.lines if not line.get_alpha()]
    for run, line in zip(found.runs, bold, strict=True):
        above = np.array(run.losses) - found.problem.least
        np.testing.assert_allclose(line.get_ydata(), picture._smooth(above))
        np.testing.assert_array_equal(line.get_xdata(), range(5))
        assert line.get_color() == lines[run.name]["color"]
        assert (line.get_linewidth() == 2) == (run in coloured)
    faint = [line for line in by_epoch.lines if line.get_alpha()]
    for run, line in zip(coloured, faint, strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.array(run.losses) - found.problem.least)
    clocks = [run.seconds[0] for run in found.runs] + [found.runs[0].seconds[1]]
    timed = [line for line in by_time.lines if not line.get_alpha() and len(line.get_xdata())]
    for clock, line in zip(clocks, timed, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), clock)
        floor = by_time.get_ylim()[0]
        assert max(line.get_xdata()[line.get_ydata() >= floor]) < by_time.get_xlim()[1]
    for run, line in zip(found.sizes, by_size.lines[::2], strict=True):
        assert len(line.get_ydata()) == len(run.losses)
    assert len({line.get_linestyle() for line in by_size.lines[1::2]}) == 3
    *paths, start, optimum = surface.lines
    assert {line.get_color() for line in paths} == {lines[run.name]["color"] for run in coloured}
    assert start.get_xydata()[0] == pytest.approx(compare.PATH_START)
    assert optimum.get_xydata()[0] == pytest.approx(np.concatenate(found.line.optimum))
    for race, line in zip(found.races, to_optimum.lines, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), race.distances)
        assert line.get_label().startswith(f"{race.name}: ")
        assert line.get_color() == RULES[race.name].colour


def test_of_many_rules_the_best_have_colours_and_names(drawn):
    found, figure, _ = drawn
    labels = {note.get_text(): note.get_color() for note in figure.axes[0].texts}
    colours = {name: line["color"] for name, line in picture._lines(found.runs).items()}
    names = [run.name for run in found.runs]
    if set(names) <= set(RULES):
        assert labels == {}
        assert colours == {name: RULES[name].colour for name in names}
        return
    shown = {name: colour for name, colour in colours.items() if colour != compare.OTHERS}
    assert labels == shown
    best = [name for name in names if name != "SGD"][: len(compare.BEST_COLOURS)]
    assert set(shown) == {*best, *({"SGD"} & set(names))}
    assert len(set(shown.values())) == len(shown)
    for name in {"SGD"} & set(names):
        assert shown[name] == RULES["SGD"].colour


def test_the_words_of_the_picture(drawn):
    found, figure, renderer = drawn
    for panel in figure.axes:
        assert panel.get_title(loc="left")
        assert panel.get_xlabel()
        assert panel.get_ylabel()
    names, lines = [run.name for run in found.runs], picture._lines(found.runs)
    ranked = [
        f"{i}. {name}" if len(names) > 1 else name
        for i, name in enumerate(names, 1)
        if lines[name]["color"] != compare.OTHERS
    ]
    others = len(names) - len(ranked)
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    grey = [f"{others} others, in the table"] if others else []
    assert shown == [*ranked, *grey, f"{names[0]} in NumPy"]
    assert [note.get_text() for note in figure.axes[3].texts] == ["start", "optimum"]
    assert_no_overlaps(figure, renderer)


def assert_no_overlaps(figure, renderer):
    """No text on another, no legend on a panel or line, nothing outside the picture."""
    from matplotlib.text import Text

    boxes = [figure.legends[0].get_window_extent(renderer)]
    boxes += [Text.get_window_extent(note, renderer) for note in figure.axes[0].texts]
    for panel in figure.axes:
        legend = panel.get_legend()
        boxes.append(panel.get_window_extent(renderer))
        boxes += [panel._left_title.get_window_extent(renderer)]
        boxes += [axis.get_tightbbox(renderer) for axis in (panel.xaxis, panel.yaxis)]
        if panel is figure.axes[4]:  # its lines leave a corner free
            box = legend.get_window_extent(renderer)
            assert not any(
                line.get_path().transformed(line.get_transform()).intersects_bbox(box, filled=False)
                for line in panel.lines
            )
        elif legend:
            boxes.append(legend.get_window_extent(renderer))
    for i, box in enumerate(boxes):
        assert figure.bbox.padded(1).containsx(box.x0)
        assert figure.bbox.padded(1).containsx(box.x1)
        for other in boxes[:i]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            # Axes touch their panel, and a label sticks out over the corner of the other axis.
            assert width <= 12 or height <= 12


@sometimes_digits
def test_all_rules_in_a_table_of_100_columns_and_a_picture(problems, name):
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = compare.compare(problems[name], list(ALL_RULES), epochs=10)
    table = compare.table(found)
    assert max(map(len, table.splitlines())) <= report.WIDTH
    assert set(rows_of(table)) == ALL_RULES.keys() - found.left_out.keys()
    assert {len(cells) for cells in rows_of(table).values()} == {11}
    assert "\nfull batch: Rprop takes one step per epoch, with all rows.\n" in table
    with rc_context(report.PICTURE_STYLE):
        figure = compare.draw(found)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    assert_no_overlaps(figure, canvas.get_renderer())


@pytest.mark.parametrize("suffix", report.PICTURE_SUFFIXES)
def test_kinds_of_picture(tmp_path, capsys, suffix, problems):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(b"")
    arguments = ["--data", "line", "--rules", "sgd", "--epochs", "1", "--out", str(path)]
    assert cli.main(["compare", *arguments]) == 0
    magic = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(magic)


def test_running_median():
    values = np.arange(41.0)
    values[20] = 1000
    smooth = picture._smooth(values)
    assert smooth[0] == 0
    assert smooth.max() == 39.0
    np.testing.assert_array_equal(picture._smooth(np.array([3.0, 1.0])), [3, 1])


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for key, value in gs.info().items():
        assert key in out
        assert str(value) in out or isinstance(value, list)
    for rule in _core.rules():
        line = next(line for line in out.splitlines() if line.split()[:1] == [rule.name])
        assert ", ".join([*rule.hyperparameters, "weight_decay"]) in line
        assert ", ".join(rule.states) in line


def test_info_as_json(capsys):
    assert cli.main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rules = told.pop("rules")
    assert told == gs.info()
    assert [rule["name"] for rule in rules] == [rule.name for rule in _core.rules()]
    adamw = next(rule for rule in rules if rule["name"] == "adamw")
    assert adamw["states"] == ["m", "v"]
    assert adamw["decoupled_weight_decay"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], ["gradstep", gs.__version__]),
        (["--help"], ["compare", "info", "--version"]),
        (
            ["compare", "--help"],
            [*datasets.BUILT_IN, *map(str.lower, ALL_RULES), "--target", ".npz"],
        ),
        (["info", "--help"], ["--json"]),
    ],
)
def test_help_and_version(capsys, arguments, words):
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [word for word in words if word not in out] == []
    assert max(map(len, out.splitlines())) <= 100


# How it fails


@pytest.fixture
def _no_training(monkeypatch):
    def started(*_, **__):
        raise AssertionError("the training started")

    monkeypatch.setattr(compare, "compare", started)


FAULTS = {
    "no command": ([], ["required", "compare"]),
    "unknown command": (["frobnicate"], ["frobnicate", "compare"]),
    "unknown option": (["compare", "--frobnicate"], ["--frobnicate"]),
    "abbreviated option": (["compare", "--epoch", "3"], ["--epoch"]),
    "missing value": (["compare", "--epochs"], ["--epochs", "expected"]),
    "epochs 0": (["compare", "--epochs", "0"], ["--epochs", "at least 1", "'0'"]),
    "epochs -1": (["compare", "--epochs=-1"], ["--epochs", "at least 1", "'-1'"]),
    "epochs text": (["compare", "--epochs", "1.5"], ["--epochs", "whole number", "'1.5'"]),
    "batch size": (["compare", "--batch-size", "0"], ["--batch-size", "at least 1", "'0'"]),
    "threads 0": (["compare", "--threads", "0"], ["--threads", "from 1 to 1024", "'0'"]),
    "threads many": (["compare", "--threads", "99999999999999"], ["--threads", "1024"]),
    "seed": (["compare", "--seed", "-1"], ["--seed", "at least 0"]),
    "unknown rule": (
        ["compare", "--rules", "adam,sdg"],
        ["'sdg'", "all", *map(str.lower, ALL_RULES)],
    ),
    "rule of two gradients": (
        ["compare", "--rules", "sgd,SVRG"],
        ["'svrg'", "not compared", gs.SVRG.step_needs],
    ),
    "empty rules": (["compare", "--rules", ""], ["''", "sgd"]),
    "unknown data": (["compare", "--data", "digit"], ["'digit'", *datasets.BUILT_IN, ".csv"]),
    "unknown suffix": (["compare", "--data", "a.txt"], ["'a.txt'", ".csv", ".npz"]),
    "missing file": (["compare", "--data", "no.csv", "--target", "y"], ["no.csv", "No such file"]),
    "built-in target": (["compare", "--target", "y"], ["--target", "digits"]),
    "out directory": (["compare", "--out", "no/a.png"], ["no/a.png", "no directory no"]),
    "out suffix": (["compare", "--out", "picture"], ["picture", ".png, .pdf, .svg"]),
    "out is a directory": (["compare", "--out", "dir.png"], ["dir.png", "cannot be written"]),
    "csv text": (
        ["compare", "--data", "text.csv", "--target", "y"],
        ["text.csv", "'x'", "row 2 (line 3)", "'two'", "not a number"],
    ),
    "csv nan": (
        ["compare", "--data", "text.csv", "--target", "z"],
        ["text.csv", "'z'", "row 1 (line 2)", "'nan'", "not finite"],
    ),
    "csv column": (["compare", "--data", "text.csv", "--target", "q"], ["'q'", "x, y, z"]),
    "csv no target": (["compare", "--data", "text.csv"], ["--target", "x, y, z"]),
    "npz array": (["compare", "--data", "a.npz"], ["a.npz", "'y'", "a, b"]),
    "npz nan": (["compare", "--data", "a.npz", "--target", "a"], ["'b'", "row 2", "nan"]),
}


def assert_one_line(err, words):
    assert err.startswith("gradstep: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


@pytest.mark.usefixtures("_no_training")
@pytest.mark.parametrize(("arguments", "words"), FAULTS.values(), ids=FAULTS)
def test_faults(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir.png").mkdir()
    rows = [f"{i},{i / 7},{i / 9}" for i in range(20)]
    rows[:2] = ["0,0.5,nan", "two,1.5,0"]
    (tmp_path / "text.csv").write_text("\n".join(["x,y,z", *rows]))
    np.savez(tmp_path / "a.npz", a=np.arange(30.0), b=np.r_[1, np.nan, np.ones(28)])
    before = sorted(tmp_path.iterdir())
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err, words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("_no_training")
def test_out_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cli.main(["compare", "--out", str(tmp_path / "a.png")]) == 2
    assert_one_line(capsys.readouterr().err, ["a.png", "cannot be written"])


@pytest.mark.usefixtures("_no_training")
@pytest.mark.parametrize("package", ["matplotlib", "sklearn"])
def test_missing_package(tmp_path, monkeypatch, capsys, package):
    for module in [name for name in sys.modules if name.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["compare", "--out", str(tmp_path / "a.png")]) == 2
    assert_one_line(capsys.readouterr().err, [package, 'pip install "gradstep[demo]"'])


def test_every_option_arrives(tmp_path, monkeypatch, capsys):
    seen = {}

    def load(data, target, seed):
        seen.update(data=data, target=target, held_out=seed)
        return "data"

    def train(data, rules, **options):
        seen.update(rules=rules, **options, threads=gs.get_num_threads())
        raise datasets.UsageError("enough")

    monkeypatch.setattr(datasets, "load", load)
    monkeypatch.setattr(compare, "compare", train)
    options = "--data a.csv --target t --rules SAG,sgd,sag --epochs 3 --batch-size 5 --seed 7"
    arguments = [*options.split(), "--threads", "4", "--out", str(tmp_path / "a.png")]
    assert cli.main(["compare", *arguments]) == 2
    assert capsys.readouterr().err == "gradstep: error: enough\n"
    assert seen == {
        "data": "a.csv",
        "target": "t",
        "held_out": 7,
        "rules": ["SAG", "SGD"],
        "epochs": 3,
        "batch_size": 5,
        "seed": 7,
        "threads": 4,
    }


def test_a_failing_disk_does_not_lose_the_table(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compare, "save_picture", full)
    arguments = ["--data", "line", "--rules", "sgd", "--epochs", "1"]
    assert cli.main(["compare", *arguments, "--out", str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert "SGD" in rows_of(out)
    assert_one_line(err, ["No space left"])


@pytest.mark.usefixtures("_no_picture")
def test_without_tqdm(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    run_compare(tmp_path, capsys, "--data", "line", "--rules", "sgd", "--epochs", 1)


def test_interrupt(ctrl_c_interrupts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Run, "epoch", lambda self: signal.raise_signal(signal.SIGINT))
    assert cli.main(["compare", "--data", "line", "--out", str(tmp_path / "a.png")]) == 130
    assert capsys.readouterr() == ("", "gradstep: interrupted\n")


def command(*arguments, **settings):
    return subprocess.run(
        [sys.executable, "-m", "gradstep", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **settings,
    )


def test_the_command_itself(tmp_path):
    arguments = ["--data", "line", "--rules", "sag", "--epochs", "2"]
    done = command("compare", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\npicture: compare.png\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "compare.png"]


@pytest.mark.parametrize(
    ("variable", "words"),
    [("GRADSTEP_ISA", ["GRADSTEP_ISA", "'486'"]), ("GRADSTEP_NUM_THREADS", ["NUM_THREADS", "486"])],
)
@pytest.mark.parametrize("arguments", [["info"], ["compare"]])
def test_environment_that_asks_for_what_is_not(tmp_path, variable, words, arguments):
    value = "486" if variable == "GRADSTEP_ISA" else "-486"
    done = command(*arguments, cwd=tmp_path, env={**os.environ, variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, words)
    assert list(tmp_path.iterdir()) == []


@posix
def test_nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "gradstep", "info"],
            stdout=nobody,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@posix
def test_progress_on_a_terminal(tmp_path):
    """Where there is a terminal there is a bar, and it leaves no trace in the output."""
    import fcntl
    import pty
    import select
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments = ["--data", "line", "--rules", "sgd", "--epochs", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "gradstep", "compare", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=120,
        check=True,
    )
    readable, _, _ = select.select([ours], [], [], 10)
    shown = os.read(ours, 100_000).decode() if readable else ""
    os.close(theirs)
    os.close(ours)
    assert "training:" in shown
    assert b"training:" not in done.stdout


def test_the_package_imports_nothing_optional():
    code = (
        "import sys, gradstep, gradstep.tools.cli, gradstep.tools.compare\n"
        "print({'matplotlib', 'sklearn', 'PIL', 'tqdm', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_start_at_the_optimum(tmp_path):
    """Constant features say nothing: every loss stays where it began, and is drawn all the same."""
    rows = "\n".join(f"1,2,{y:.2f}" for y in np.random.default_rng(0).standard_normal(40))
    (tmp_path / "flat.csv").write_text("a,b,y\n" + rows + "\n")
    out = tmp_path / "flat.png"
    arguments = ["compare", "--data", str(tmp_path / "flat.csv"), "--target", "y", "--epochs", "2"]
    assert cli.main([*arguments, "--rules", "sgd,adam", "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "picture.png"
    out.write_bytes(b"old")

    def full(self, file, **options):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    arguments = ["compare", "--data", "line", "--epochs", "1", "--rules", "sgd"]
    assert cli.main([*arguments, "--out", str(out)]) == 2
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_names_of_any_bytes(tmp_path):
    rows = "".join(f"{i},{i % 3}\n" for i in range(30))
    for name in ("bad\udcff.csv", "control\x01\x1b$_^.csv", "文字.csv"):
        (tmp_path / name).write_text("a,y\n" + rows)
        arguments = ["compare", "--data", str(tmp_path / name), "--target", "y", "--epochs", "1"]
        out = tmp_path / "picture.svg"
        assert cli.main([*arguments, "--rules", "sgd", "--out", str(out)]) == 0
        xml.etree.ElementTree.parse(out)


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors as POSIX shells do")
@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 0), (">/dev/full", 2), ("2>&-", 0), (">&- 2>&-", 0)]
)
def test_streams_that_are_closed_or_full(redirection, code):
    done = subprocess.run(
        f"{sys.executable} -m gradstep info {redirection}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    assert len(done.stderr.splitlines()) == (code != 0)


@pytest.mark.parametrize("environment", [{"MPLBACKEND": "foo"}])
def test_settings_of_matplotlib_that_cannot_be_used(environment, tmp_path):
    arguments = ["compare", "--data", "line", "--epochs", "1", "--rules", "sgd", "--out"]
    done = subprocess.run(
        [sys.executable, "-m", "gradstep", *arguments, tmp_path / "a.png"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gradstep: error: matplotlib cannot be used")
    assert len(done.stderr.splitlines()) == 1
