"""Data for `gradstep compare`: what scikit-learn holds, a line with noise, CSV and NPZ files.

Every loader is strict: what cannot be used as it stands is refused by file, column and row.

A target is classification where it holds text, truth values, or at most 20 distinct whole numbers;
otherwise it is regression. A CSV file can ask for regression by writing `3.0` instead of `3`, an
NPZ file by holding floats.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_CLASSES = 20
MIN_ROWS = 10
WHOLE_NUMBER = re.compile(r"[+-]?\d+")


class UsageError(ValueError):
    """What was asked for cannot be done. The message is one line for the user."""


@contextmanager
def demo_packages() -> Iterator[None]:
    """Around imports that only the extra `demo` promises.

    Raises:
        UsageError: a package is missing.
    """
    try:
        yield
    except ImportError as error:
        missing = error.name or "Pillow"
        raise UsageError(f'{missing} is needed: pip install "gradstep[demo]"') from error


@dataclass(frozen=True)
class Dataset:
    """Rows to train on, and rows held out.

    Args:
        name: what to call it.
        x, y: features and targets to train on. Targets are float64, or the numbers of classes.
        x_test, y_test: the same of the rows held out.
        classes: how many classes there are; 0 for regression.
    """

    name: str
    x: Array
    y: Array
    x_test: Array
    y_test: Array
    classes: int


def load(data: str, target: str | None = None, seed: int = 0) -> Dataset:
    """Read data, hold a quarter of the rows out, and scale by what is left.

    Columns, and the targets of regression, get mean 0 and standard deviation 1. Two data sets keep
    their scale: digits is in [0, 1] throughout, and line is in the units of its equation.

    Args:
        data: a name in `BUILT_IN`, or the path of a `.csv` or `.npz` file.
        target: the column or array to predict, for files only. In an NPZ file it is "y" if not
            given; the features are the array "X", or all other arrays.
        seed: which rows are held out. Of each class it is the same part.

    Raises:
        UsageError: the data cannot be found, read or learned from.

    Example:
        >>> from gradstep.tools.datasets import load
        >>> line = load("line")
        >>> line.x.shape, line.x_test.shape
        ((750, 1), (250, 1))
    """
    if data in BUILT_IN:
        if target is not None:
            raise UsageError(f"--target is for files; {data} has its own")
        raw = BUILT_IN[data]()
    else:
        raw = _read_file(Path(data), target)
    return _prepared(raw, seed)


@dataclass(frozen=True)
class _Raw:
    """Data as it was read; `y` holds numbers or, as text, the labels of classes."""

    name: str
    x: Array
    y: Array
    standardise: bool = True

    @property
    def labelled(self) -> bool:
        return self.y.dtype.kind == "U"


def _digits() -> _Raw:
    with demo_packages():
        from sklearn.datasets import load_digits
    x, y = load_digits(return_X_y=True)
    return _Raw("digits", x / 16, y.astype(str), standardise=False)


def _line() -> _Raw:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 2, (1000, 1))
    return _Raw("line", x, 3.5 * x[:, 0] + 4 + rng.normal(0, 0.5, 1000), standardise=False)


def _diabetes() -> _Raw:
    with demo_packages():
        from sklearn.datasets import load_diabetes
    return _Raw("diabetes", *load_diabetes(return_X_y=True))


def _photo() -> _Raw:
    """The grey value of each pixel, and the colours of the eight around it."""
    with demo_packages():
        from sklearn.datasets import load_sample_images

        pictures = load_sample_images().images
    windows = np.concatenate(
        [
            np.lib.stride_tricks.sliding_window_view(picture, (3, 3), (0, 1)).reshape(-1, 27)
            for picture in pictures
        ]
    )
    centre = np.arange(27) % 9 == 4
    return _Raw("photo", windows[:, ~centre].astype(float), windows[:, centre].mean(axis=1))


#: The data sets that need no file.
BUILT_IN: Mapping[str, Callable[[], _Raw]] = {
    "digits": _digits,
    "line": _line,
    "diabetes": _diabetes,
    "photo": _photo,
}


def _read_file(path: Path, target: str | None) -> _Raw:
    read = {".csv": _read_csv, ".npz": _read_npz}.get(path.suffix.lower())
    if read is None:
        names = ", ".join(BUILT_IN)
        raise UsageError(f"unknown data {str(path)!r}: not one of {names}, nor a .csv or .npz file")
    try:
        return read(path, target)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _read_csv(path: Path, target: str | None) -> _Raw:
    lines, (header, *rows) = _csv_rows(path)
    names = [name.strip() for name in header]
    if all(_number(name) is not None for name in names):
        raise UsageError(f"{path}: the first line must hold the names of the columns, not numbers")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"{path}: two columns are called {min(twice)!r}")
    if target is None:
        raise UsageError(f"{path}: --target must name one of the columns {', '.join(names)}")
    if target not in names:
        raise UsageError(f"{path} has no column {target!r}; it has {', '.join(names)}")

    def place(row: int) -> str:
        return f"row {row + 1} (line {lines[row + 1]})"

    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise UsageError(f"{path}, {place(i)}: {len(row)} cells, the header has {len(names)}")

    def numbers(name: str, cells: Sequence[str]) -> Array:
        values = [_number(cell) for cell in cells]
        for row, value in enumerate(values):
            if value is None or not np.isfinite(value):
                what = "not finite" if value is not None else "not a number"
                cell = cells[row].strip()
                raise UsageError(f"{path}, column {name!r}, {place(row)}: {cell!r} is {what}")
        return np.array(values, float)

    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    labels = [cell.strip() for cell in columns.pop(target, ())]
    if "" in labels:
        raise UsageError(f"{path}, column {target!r}, {place(labels.index(''))}: the cell is empty")
    y = np.array(labels) if _are_labels(labels) else numbers(target, labels)
    features = [numbers(name, cells) for name, cells in columns.items()]
    return _Raw(path.name, np.reshape(features, (len(features), len(rows))).T, y)


def _csv_rows(path: Path) -> tuple[list[int], list[list[str]]]:
    """The rows that are not blank, header first, and the line in which each ends."""
    lines, rows = [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    lines.append(reader.line_num)
                    rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path}, after line {reader.line_num}: {error}") from error
    if not rows:
        raise UsageError(f"{path} is empty")
    return lines, rows


def _number(cell: str) -> float | None:
    """The number that a cell holds. Python's own `1_000` is text here."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _are_labels(cells: Sequence[str]) -> bool:
    """Whether a target names classes: see the top of this file."""
    numeric = [cell for cell in cells if _number(cell) is not None]
    whole = all(WHOLE_NUMBER.fullmatch(cell) for cell in numeric)
    return not numeric or (whole and len(set(cells)) <= MAX_CLASSES)


def _read_npz(path: Path, target: str | None) -> _Raw:
    arrays = _npz_arrays(path)
    target = "y" if target is None else target
    if target not in arrays:
        raise UsageError(f"{path} has no array {target!r}; it has {', '.join(arrays)}")
    y = arrays.pop(target)
    if y.ndim != 1:
        raise UsageError(
            f"{path}, array {target!r}: the target must have one dimension, not {y.ndim}"
        )
    features = {"X": arrays["X"]} if "X" in arrays else arrays
    columns = [_npz_columns(path, name, array, len(y)) for name, array in features.items()]
    x = np.concatenate(columns, axis=1) if columns else np.empty((len(y), 0))
    few = y.dtype.kind in "iu" and len(np.unique(y)) <= MAX_CLASSES
    if few or y.dtype.kind in "bUS":
        text = np.char.decode(y, "utf-8", "backslashreplace") if y.dtype.kind == "S" else y
        return _Raw(path.name, x, text.astype(str))
    return _Raw(path.name, x, _npz_columns(path, target, y, len(y))[:, 0])


def _npz_arrays(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise almost anything
        raise UsageError(f"{path} is damaged, or is no .npz file of plain arrays") from error


def _npz_columns(path: Path, name: str, array: Array, rows: int) -> Array:
    """An array as float64 columns."""
    where = f"{path}, array {name!r}"
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{where} must hold numbers, not {array.dtype}")
    if array.ndim not in (1, 2):
        raise UsageError(f"{where} must have one or two dimensions, not {array.ndim}")
    if len(array) != rows:
        raise UsageError(f"{where} has {len(array)} rows, the target {rows}")
    with np.errstate(over="ignore"):  # a long double may be beyond float64
        array = array.astype(float)
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        index = tuple(wrong[0].tolist())
        axes = ("row", "column")[: array.ndim]
        place = ", ".join(f"{axis} {i + 1}" for axis, i in zip(axes, index, strict=True))
        raise UsageError(f"{where}, {place}: {array[index]} is not finite")
    return array if array.ndim == 2 else array[:, np.newaxis]


def _prepared(raw: _Raw, seed: int) -> Dataset:
    rows, features = raw.x.shape
    if rows < MIN_ROWS:
        raise UsageError(f"{raw.name} has {rows} rows; at least {MIN_ROWS} are needed")
    if features == 0:
        raise UsageError(f"{raw.name} has no features beside the target")
    classes, groups = np.unique(raw.y, return_inverse=True)
    held_out = _held_out(groups if raw.labelled else np.zeros(rows, int), seed)
    if raw.labelled and len(classes) == 1:
        raise UsageError(f"{raw.name} has one class only, {str(classes[0])!r}")
    if not held_out.any():
        raise UsageError(f"{raw.name} has a class of its own for every row")
    y = groups if raw.labelled else raw.y
    if y[~held_out].min() == y[~held_out].max():
        raise UsageError(f"{raw.name} has one target value only, {y[~held_out][0]}")
    x = np.ascontiguousarray(_standardised(raw.x, held_out) if raw.standardise else raw.x)
    if raw.standardise and not raw.labelled:
        y = _standardised(y, held_out)
    return Dataset(
        raw.name,
        x[~held_out],
        y[~held_out],
        x[held_out],
        y[held_out],
        classes=len(classes) if raw.labelled else 0,
    )


def _held_out(groups: Array, seed: int) -> NDArray[np.bool_]:
    """A mask of a quarter of each group; of a single row, nothing."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(groups), np.bool_)
    for group in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == group))
        mask[rows[: (len(rows) + 2) // 4]] = True
    return mask


def _standardised(x: Array, held_out: NDArray[np.bool_]) -> Array:
    """Columns with mean 0 and standard deviation 1 over the training rows; constant ones are 0."""
    # In units of the largest, no square overflows, and what is constant is exactly so.
    top = np.abs(x).max(axis=0)
    x = x / np.where(top > 0, top, 1)
    seen = x[~held_out]
    constant = seen.min(axis=0) == seen.max(axis=0)  # its mean is rounded, so its spread may be > 0
    spread = np.where(constant, 1, seen.std(axis=0))
    return np.where(constant, 0, (x - seen.mean(axis=0)) / spread)
