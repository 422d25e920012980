"""Every data set is read as it says, and every fault of a file is named."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gradstep.tools import datasets
from gradstep.tools.datasets import BUILT_IN, UsageError, _held_out, load

ROWS = 40


def all_rows(data):
    """The rows that were split, together again, in an order of their own."""
    x, y = np.concatenate([data.x, data.x_test]), np.concatenate([data.y, data.y_test])
    return np.array(sorted(np.column_stack([x, y]).tolist()))


def standardised(columns, like):
    """As the loader should do it, by the training rows of `like`."""
    columns = np.asarray(columns, float)
    return (columns - columns[like].mean(axis=0)) / columns[like].std(axis=0)


@pytest.fixture
def numbers():
    rng = np.random.default_rng(3)
    x = rng.normal(5, [1, 100, 1e-3], (ROWS, 3))
    return x, x @ [1, 0.1, 100] + rng.normal(size=ROWS)


def write_csv(path, header, rows, newline="\n", encoding="utf-8"):
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_bytes((newline.join(lines) + newline).encode(encoding))
    return str(path)


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize(
    ("name", "rows", "features", "classes"),
    [
        ("digits", 1797, 64, 10),
        ("line", 1000, 1, 0),
        ("diabetes", 442, 10, 0),
        ("photo", 542_300, 24, 0),
    ],
)
def test_built_in(name, rows, features, classes):
    data = load(name)
    assert (data.name, data.classes) == (name, classes)
    assert len(data.x) + len(data.x_test) == rows
    assert data.x.shape[1] == data.x_test.shape[1] == features
    assert len(data.x_test) == pytest.approx(rows / 4, abs=5)
    assert data.x.dtype == np.float64
    assert data.x.flags.c_contiguous
    if name in ("diabetes", "photo"):
        np.testing.assert_allclose(data.x.mean(axis=0), 0, atol=1e-9)
        np.testing.assert_allclose(data.x.std(axis=0), 1)
        assert (data.y.mean(), data.y.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))


def test_built_in_names_are_those_of_this_file():
    assert list(BUILT_IN) == ["digits", "line", "diabetes", "photo"]


def test_digits_are_in_the_unit_interval_and_stratified():
    data = load("digits")
    assert (data.x.min(), data.x.max()) == (0, 1)
    whole = np.bincount(np.concatenate([data.y, data.y_test]))
    np.testing.assert_allclose(np.bincount(data.y_test), whole / 4, atol=0.5)


def test_line_is_the_line():
    data = load("line")
    (slope, intercept), residual, *_ = np.linalg.lstsq(
        np.column_stack([data.x, np.ones(len(data.x))]), data.y
    )
    assert slope == pytest.approx(3.5, abs=0.1)
    assert intercept == pytest.approx(4, abs=0.1)
    assert np.sqrt(residual[0] / len(data.x)) == pytest.approx(0.5, abs=0.05)


def test_photo_holds_the_neighbours_of_each_pixel():
    from sklearn.datasets import load_sample_images

    raw = BUILT_IN["photo"]()
    row, column, width = 123, 456, 640 - 2
    picture = load_sample_images().images[1].astype(float)
    window = picture[row : row + 3, column : column + 3]
    index = (427 - 2 + row) * width + column
    around = [
        window[i, j, c] for c in range(3) for i in range(3) for j in range(3) if (i, j) != (1, 1)
    ]
    np.testing.assert_array_equal(raw.x[index], around)
    assert raw.y[index] == pytest.approx(window[1, 1].mean())


def test_the_seed_picks_the_rows_held_out():
    first, again, other = (load("diabetes", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.y_test, other.y_test)


def test_csv_round_trip(tmp_path, numbers):
    x, y = numbers
    path = write_csv(tmp_path / "a.csv", "u,v,w,y", np.column_stack([x, y]).tolist())
    data = load(path, "y")
    assert data.classes == 0
    held_out = datasets._held_out(np.zeros(ROWS, int), 0)
    expected = standardised(np.column_stack([x, y]), ~held_out)
    np.testing.assert_allclose(data.x, expected[~held_out, :3], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(data.y_test, expected[held_out, 3], rtol=1e-9, atol=1e-9)


def test_csv_forms_that_programs_write(tmp_path, numbers):
    """The target anywhere, quotes, a byte order mark, CRLF, spaces, blank lines, numbers' forms."""
    x, y = numbers
    rows = np.column_stack([x[:, 0], y, x[:, 1]]).tolist()
    plain = write_csv(tmp_path / "plain.csv", "u,y,v", rows)
    quoted = [(f'"{a!r}"', f" {b:+.17e} ", repr(c)) for a, b, c in rows]
    header = '" u ","target, ""y""",v'
    odd = write_csv(tmp_path / "ODD.CSV", header, [*quoted, "", (), ",, "], "\r\n", "utf-8-sig")
    np.testing.assert_allclose(all_rows(load(plain, "y")), all_rows(load(odd, 'target, "y"')))


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_constant_and_huge_columns(tmp_path, suffix, numbers):
    _, y = numbers
    x = np.column_stack([np.full(ROWS, 0.1), np.zeros(ROWS), 1e308 * np.linspace(-1, 1, ROWS), y])
    if suffix == "csv":
        path = write_csv(tmp_path / "a.csv", "a,b,c,d,y", np.column_stack([x, y]).tolist())
    else:
        path = save_npz(tmp_path / "a.npz", X=x, y=y)
    data = load(path, "y")
    np.testing.assert_array_equal(data.x[:, :2], 0)
    np.testing.assert_allclose(data.x[:, 2:].std(axis=0), 1)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["red", "green", "blue"], 3),
        (["no", "yes"], 2),
        (["1", "2", "3+"], 3),
        ([0, 1], 2),
        ([-1, +7, 9], 3),
        (range(20), 20),
        (range(21), 0),
        (["1.0", "2.0"], 0),
        (["1", "2.5"], 0),
        ([f"label {i}" for i in range(25)], 25),
    ],
)
def test_what_is_classification_in_csv(tmp_path, values, classes):
    rows = [(i, value) for i, value in enumerate(list(values) * 5)]
    assert load(write_csv(tmp_path / "a.csv", "x,y", rows), "y").classes == classes


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (np.array(["red", "green"]), 2),
        (np.array([b"red", b"gr\xfcn"]), 2),
        (np.array([True, False]), 2),
        (np.array([3, 5, 9], np.uint8), 3),
        (np.arange(20), 20),
        (np.arange(21), 0),
        (np.array([1.0, 2.0]), 0),
        (np.array([1, 2], np.float16), 0),
    ],
)
def test_what_is_classification_in_npz(tmp_path, values, classes):
    y = np.tile(values, 5 + 15 // len(values))
    assert load(save_npz(tmp_path / "a.npz", X=np.arange(len(y)), y=y)).classes == classes


def test_labels_keep_their_rows(tmp_path):
    """Each class is recognised by its feature, and a class of one row is kept for training."""
    labels = ["b", "c"] * 10 + ["a"]
    rows = [(ord(label), label) for label in labels]
    data = load(write_csv(tmp_path / "a.csv", "x,y", rows), "y")
    assert data.classes == 3
    assert len(np.unique(np.column_stack([data.x, data.y]), axis=0)) == 3
    assert 0 in data.y
    assert sorted(data.y_test) == [1, 1, 1, 2, 2, 2] or sorted(data.y_test) == [1, 1, 2, 2]


def test_npz_features_are_x_or_all_the_others(tmp_path, numbers):
    x, y = numbers
    one = save_npz(tmp_path / "a.npz", X=x, y=y, other=np.zeros(3))
    two = save_npz(tmp_path / "b.npz", first=x[:, 0], price=y, rest=x[:, 1:])
    np.testing.assert_array_equal(all_rows(load(one)), all_rows(load(two, "price")))


def fails(path, target, *words):
    with pytest.raises(UsageError) as caught:
        load(str(path), target)
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, message


GOOD = [(i, i * i, i / 7) for i in range(12)]


def changed(row, column, value):
    rows = [list(cells) for cells in GOOD]
    rows[row][column] = value
    return rows


CSV_FAULTS = {
    "no column": ("a,b,y", GOOD, "z", ["'z'", "a, b, y"]),
    "no target": ("a,b,y", GOOD, None, ["--target", "a, b, y"]),
    "text": ("a,b,y", changed(4, 1, "abc"), "y", ["'b'", "row 5 (line 6)", "'abc'"]),
    "empty cell": ("a,b,y", changed(0, 0, ""), "y", ["'a'", "row 1 (line 2)", "''"]),
    "underscore": ("a,b,y", changed(0, 0, "1_0"), "y", ["'a'", "row 1 (line 2)", "'1_0'"]),
    "nan": ("a,b,y", changed(11, 0, "nan"), "y", ["'a'", "row 12 (line 13)", "'nan'", "finite"]),
    "infinity": ("a,b,y", changed(2, 1, "-inf"), "y", ["'b'", "row 3", "'-inf'", "finite"]),
    "overflow": ("a,b,y", changed(2, 1, "1e999"), "y", ["'b'", "row 3", "'1e999'", "finite"]),
    "target nan": ("a,b,y", changed(3, 2, "NaN"), "y", ["'y'", "row 4", "'NaN'", "finite"]),
    "target text": ("a,b,y", changed(3, 2, "high"), "y", ["'y'", "row 4", "'high'"]),
    "target empty": ("a,b,y", changed(3, 2, " "), "y", ["'y'", "row 4 (line 5)", "empty"]),
    "short row": ("a,b,y", [*GOOD[:6], (1, 2), *GOOD], "y", ["row 7 (line 8)", "2 cells", "3"]),
    "long row": ("a,b,y", [*GOOD, (1, 2, 3, 4)], "y", ["row 13 (line 14)", "4 cells"]),
    "twice": ("a,a,y", GOOD, "y", ["'a'"]),
    "no header": ("1,2,3", GOOD, "y", ["first line", "names"]),
    "one class": ("a,b,y", [(i, i, "same") for i in range(20)], "y", ["one class", "'same'"]),
    "one value": ("a,b,y", [(i, i, "2.5") for i in range(20)], "y", ["one target value", "2.5"]),
    "all differ": ("a,b,y", [(i, i, f"name {i}") for i in range(20)], "y", ["class of its own"]),
    "few rows": ("a,b,y", GOOD[:9], "y", ["9 rows", "10"]),
    "no rows": ("a,b,y", [], "y", ["0 rows", "10"]),
    "no features": ("y", [(i / 3,) for i in range(20)], "y", ["no features"]),
    "bad quotes": ("a,b,y", [*GOOD, ('"1"2', 3, 4)], "y", ["line 14", "expected after"]),
    "nul": ("a,b,y", [*GOOD, ('"1', 3, 4)], "y", ["line 14", "end of data"]),
}


@pytest.mark.parametrize(("header", "rows", "target", "words"), CSV_FAULTS.values(), ids=CSV_FAULTS)
def test_faults_of_csv(tmp_path, header, rows, target, words):
    path = write_csv(tmp_path / "faulty.csv", header, rows)
    fails(path, target, "faulty.csv", *words)


def test_blank_lines_are_counted_in_lines_but_not_in_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\na,y\n1,2\n\n"\n3",4\nx,5\n')
    fails(path, "y", "row 3 (line 7)", "'x'")


def test_csv_that_is_no_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,y\n1,\xff\n")
    fails(path, "y", "a.csv", "utf-8")
    path.write_bytes(b"")
    fails(path, "y", "a.csv", "empty")
    path.write_bytes(b"\xef\xbb\xbf\r\n , \r\n")
    fails(path, "y", "a.csv", "empty")


NPZ_FAULTS = {
    "no array": ({"X": np.eye(12)}, None, ["'y'", "X"]),
    "no such array": ({"X": np.eye(12), "y": np.arange(12.0)}, "z", ["'z'", "X, y"]),
    "target of two dimensions": ({"X": np.eye(12), "y": np.eye(12)}, None, ["'y'", "dimension"]),
    "three dimensions": ({"X": np.ones((12, 2, 2)), "y": np.arange(12.0)}, None, ["'X'", "not 3"]),
    "no dimensions": ({"a": 1.0, "y": np.arange(12.0)}, None, ["'a'", "not 0"]),
    "other rows": ({"X": np.eye(11), "y": np.arange(12.0)}, None, ["'X'", "11 rows", "12"]),
    "text": ({"X": np.full((12, 2), "a"), "y": np.arange(12.0)}, None, ["'X'", "numbers", "<U1"]),
    "complex": ({"X": np.eye(12) * 1j, "y": np.arange(12.0)}, None, ["'X'", "complex128"]),
    "complex target": ({"X": np.eye(12), "y": np.ones(12) * 1j}, None, ["'y'", "complex128"]),
    "nan": (
        {"X": np.diag([1.0] * 4 + [np.nan] + [1.0] * 7), "y": np.arange(12.0)},
        None,
        ["'X'", "row 5, column 5", "nan"],
    ),
    "infinite target": (
        {"X": np.eye(12), "y": np.r_[np.arange(11), -np.inf]},
        None,
        ["'y'", "row 12", "-inf"],
    ),
    "no features": ({"y": np.arange(12.0)}, None, ["no features"]),
    "few rows": ({"X": np.eye(3), "y": np.arange(3.0)}, None, ["3 rows"]),
    "one class": ({"X": np.eye(12), "y": np.ones(12, int)}, None, ["one class", "'1'"]),
}


@pytest.mark.parametrize(("arrays", "target", "words"), NPZ_FAULTS.values(), ids=NPZ_FAULTS)
def test_faults_of_npz(tmp_path, arrays, target, words):
    fails(save_npz(tmp_path / "faulty.npz", **arrays), target, "faulty.npz", *words)


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "a.npz"
    whole = tmp_path / "whole.npz"
    np.savez(whole, X=np.eye(12), y=np.arange(12.0))
    with (tmp_path / "single.npy").open("wb") as file:
        np.save(file, np.eye(3))
    objects = tmp_path / "objects.npz"
    np.savez(objects, allow_pickle=True, X=np.array([{}]), y=np.arange(12.0))
    for content in (
        b"",
        b"text",
        whole.read_bytes()[:-30],
        whole.read_bytes().replace(b"descr", b"xxxxx"),
        (tmp_path / "single.npy").read_bytes(),
        objects.read_bytes(),
    ):
        path.write_bytes(content)
        fails(path, None, "a.npz", "damaged")


@pytest.mark.parametrize("name", ["absent.csv", "absent.npz"])
def test_absent_file(tmp_path, name):
    fails(tmp_path / name, "y", name, "No such file")


def test_directory(tmp_path):
    (tmp_path / "a.csv").mkdir()
    fails(tmp_path / "a.csv", "y", "a.csv")


@pytest.mark.parametrize("name", ["data.txt", "digit", "data"])
def test_unknown_data(name):
    fails(name, None, repr(name), "digits, line, diabetes, photo", ".csv", ".npz")


def test_target_of_built_in_data():
    fails("digits", "y", "--target", "digits")


@pytest.mark.parametrize(
    ("package", "name"), [("sklearn", "digits"), ("sklearn", "diabetes"), ("PIL", "photo")]
)
def test_missing_package(monkeypatch, package, name):
    for module in list(sys.modules):
        if module.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.datasets", None)
    fails(name, None, 'pip install "gradstep[demo]"', {"PIL": "P"}.get(package, package))


def test_a_column_constant_where_it_is_trained_is_zero_everywhere(tmp_path):
    """Its mean is rounded, so that its spread is about 1e-17, by which nothing may be divided."""
    held_out = np.flatnonzero(_held_out(np.zeros(40, int), 0))
    x = np.full((40, 2), 0.1)
    x[:, 1] = np.arange(40)
    x[held_out[0], 0] = 0.3
    np.savez(tmp_path / "a.npz", X=x, y=np.linspace(0, 1, 40))
    data = load(str(tmp_path / "a.npz"))
    assert not data.x[:, 0].any()
    assert not data.x_test[:, 0].any()


@pytest.mark.parametrize("name", ["X", "y"])
def test_long_doubles_beyond_float64(tmp_path, name):
    arrays = {"X": np.arange(30, dtype=np.longdouble)[:, None], "y": np.arange(30.0)}
    arrays[name] = arrays[name].astype(np.longdouble)
    arrays[name][4] = np.longdouble("1e4000")
    np.savez(tmp_path / "a.npz", **arrays)
    if np.isinf(arrays[name][4]).all():
        pytest.skip("long double is float64 here")
    with pytest.raises(UsageError, match=f"array '{name}', row 5.*inf is not finite"):
        load(str(tmp_path / "a.npz"))


def test_no_rows(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.zeros((0, 3)), y=np.zeros(0))
    with pytest.raises(UsageError, match="has 0 rows; at least 10 are needed"):
        load(str(tmp_path / "a.npz"))
