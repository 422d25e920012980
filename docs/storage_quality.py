"""Trains with numbers held in fewer bits: `python docs/storage_quality.py`.

The table of what it found goes between the two marks in docs/storage.md, the picture is
docs/storage.png. Models are of NumPy, with a forward and a backward pass in float32: what is held
in fewer bits is cast to it before, and the gradient back after. Every storage has the same starts
and batches. It takes some minutes; needs scikit-learn, Matplotlib and ml_dtypes.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

import gradstep as gs
from gradstep.tools.bench.entrants import PLAIN
from gradstep.tools.bench.works import STORAGES, Storage
from gradstep.tools.report import PICTURE_STYLE

Array = NDArray[Any]

PAGE, PICTURE = (Path(__file__).with_name(f"storage.{suffix}") for suffix in ("md", "png"))
BEGIN, END = "<!-- made by storage_quality.py -->\n", "<!-- to here -->\n"
SEEDS = 5
#: The most rows or characters that a loss is a mean of in the end.
JUDGED = 20_000
#: Of the loss, which keeps the squares of gradients above what float16 can hold.
SCALE = 1024
SCALED = f", loss times {SCALE:,}"


@dataclass(frozen=True)
class Data:
    """Rows and their labels, those to train with and those held out; the number of labels."""

    x: Array
    y: Array
    train: Array
    held_out: Array
    labels: int


@lru_cache
def digits() -> Data:
    """8 x 8 pictures of digits, a quarter of them held out."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    held_out, train = np.split(np.random.default_rng(0).permutation(len(x)), [len(x) // 4])
    return Data((x / 16).astype(np.float32), y, train, held_out, 10)


@lru_cache
def text(context: int = 8) -> Data:
    """The help texts of Python, a character after each `context` of them.

    Of every ten pieces of 10,000 characters, one is held out.
    """
    letters = "\n".join(topics[name] for name in sorted(topics))
    alphabet, codes = np.unique(list(letters), return_inverse=True)
    x, y = np.lib.stride_tricks.sliding_window_view(codes[:-1], context), codes[context:]
    away = np.arange(len(y)) // 10_000 % 10 == 9
    return Data(x, y, np.flatnonzero(~away), np.flatnonzero(away), len(alphabet))


class Network:
    """One hidden layer of tanh, and softmax; where rows are codes, a vector for each before it.

    Args:
        data: what it is for.
        hidden: units of the layer.
        embedding: elements of the vector of a code; 0 for rows of numbers.
    """

    def __init__(self, data: Data, hidden: int, embedding: int = 0) -> None:
        inputs = data.x.shape[1] * (embedding or 1)
        self.shapes = {
            "embedding": (data.labels, embedding),
            "w1": (inputs, hidden),
            "b1": (hidden,),
            "w2": (hidden, data.labels),
            "b2": (data.labels,),
        }

    def parts(self, flat: Array) -> dict[str, Array]:
        """Views of one vector."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])
        pieces = np.split(flat, ends[:-1])
        return {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }

    def start(self, rng: np.random.Generator) -> Array:
        """Normal weights, smaller the more there are for a unit; biases of 0."""
        flat = np.zeros(sum(map(math.prod, self.shapes.values())), np.float32)
        for name, part in self.parts(flat).items():
            if not name.startswith("b"):
                size = 1.0 if name == "embedding" else 1 / math.sqrt(len(part))
                part[...] = size * rng.standard_normal(part.shape)
        return flat

    def loss_and_grad(self, flat: Array, x: Array, y: Array) -> tuple[float, Array]:
        """The mean cross-entropy, and its gradient."""
        w, rows = self.parts(flat), np.arange(len(y))
        embedded = w["embedding"].size > 0
        inputs = w["embedding"][x].reshape(len(x), -1) if embedded else x
        hidden = np.tanh(inputs @ w["w1"] + w["b1"])
        scores = hidden @ w["w2"] + w["b2"]
        scores -= scores.max(axis=1, keepdims=True)
        sums = np.exp(scores).sum(axis=1, keepdims=True)
        loss = float((np.log(sums[:, 0]) - scores[rows, y]).mean())
        d_scores = np.exp(scores) / sums
        d_scores[rows, y] -= 1
        d_scores /= len(y)
        d_hidden = (d_scores @ w["w2"].T) * (1 - hidden**2)
        flat_grad = np.zeros_like(flat)
        grad = self.parts(flat_grad)
        grad["w1"][...], grad["b1"][...] = inputs.T @ d_hidden, d_hidden.sum(axis=0)
        grad["w2"][...], grad["b2"][...] = hidden.T @ d_scores, d_scores.sum(axis=0)
        if embedded:
            np.add.at(grad["embedding"], x, (d_hidden @ w["w1"].T).reshape(*x.shape, -1))
        return loss, flat_grad


@dataclass(frozen=True)
class Task:
    """What is trained, and for how long."""

    title: str
    data: Callable[[], Data]
    hidden: int
    lr: float
    steps: int
    batch_size: int
    embedding: int = 0

    @property
    def length(self) -> str:
        return f"lr {self.lr:g}, {self.steps:,} steps"


TASKS = (
    Task("digits", digits, 64, 1e-3, 2_500, 32),
    Task("digits, small steps", digits, 64, 1e-4, 10_000, 32),
    Task("text", text, 128, 1e-3, 5_000, 64, embedding=16),
)


@dataclass(frozen=True)
class Setting:
    """A storage, and what the loss is multiplied by."""

    storage: Storage
    scale: int = 1


SETTINGS: Mapping[str, Setting] = {
    **{name: Setting(storage) for name, storage in STORAGES.items()},
    **{
        name + SCALED: Setting(storage, SCALE)
        for name, storage in STORAGES.items()
        if storage.states == "float16"
    },
}


def train(setting: Setting, task: Task, seed: int) -> tuple[float, float]:
    """The loss over rows to train with, and over those held out, after all steps."""
    gs.set_num_threads(1)
    data, dtype = task.data(), setting.storage.dtype
    network = Network(data, task.hidden, task.embedding)
    rng = np.random.default_rng(seed)
    w = network.start(rng).astype(dtype)
    opt = gs.Adam(w, lr=task.lr, rounding_seed=seed, **setting.storage.options)
    for _ in range(task.steps):
        rows = rng.choice(data.train, task.batch_size)
        _, grad = network.loss_and_grad(w.astype(np.float32), data.x[rows], data.y[rows])
        opt.step((np.float32(setting.scale) * grad).astype(dtype))
    rng = np.random.default_rng(0)
    train_loss, held_out_loss = (
        network.loss_and_grad(w.astype(np.float32), data.x[rows], data.y[rows])[0]
        for rows in (rng.permutation(part)[:JUDGED] for part in (data.train, data.held_out))
    )
    return train_loss, held_out_loss


#: By setting and task: a row per seed, of the two losses.
Losses = Mapping[str, Sequence[Array]]


def measure() -> Losses:
    """Train all, in as many processes as there are processors."""
    runs = list(product(SETTINGS.values(), TASKS, range(SEEDS)))
    with ProcessPoolExecutor() as pool:
        found = np.array(list(pool.map(train, *zip(*runs, strict=True))))
    return dict(zip(SETTINGS, found.reshape(len(SETTINGS), len(TASKS), SEEDS, 2), strict=True))


def is_within(losses: Array, plain: Array) -> bool:
    """Whether the mean lies within a standard deviation around the mean of float32's, or below."""
    return bool(losses.mean() <= plain.mean() + plain.std(ddof=1))


def table(found: Losses) -> Iterator[str]:
    """A row per setting; bold where it is worse than float32."""
    heading = [f"{task.title}: {task.length} | held out" for task in TASKS]
    yield f"| storage | {' | '.join(heading)} |\n"
    yield f"| --- {'| --- ' * 2 * len(TASKS)}|\n"
    for name, by_task in found.items():
        cells = [
            cell(losses[:, i], plain[:, i])
            for losses, plain in zip(by_task, found[PLAIN], strict=True)
            for i in range(2)
        ]
        yield f"| {name} | {' | '.join(cells)} |\n"


def cell(losses: Array, plain: Array) -> str:
    mean, spread = losses.mean(), losses.std(ddof=1)
    decimals = max(0, math.ceil(-math.log10(spread)))
    text = f"{mean:.{decimals}f} ± {spread:.{decimals}f}"
    return text if is_within(losses, plain) else f"**{text}**"


def draw(found: Losses) -> Any:
    """A panel per task: for each setting, the training loss of each seed over float32's mean."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharex=True, sharey=True)
    names = list(found)
    for i, (axes, task) in enumerate(zip(panels, TASKS, strict=True)):
        plain = found[PLAIN][i][:, 0]
        band = np.array([-1, 1]) * plain.std(ddof=1) / plain.mean() + 1
        axes.axvspan(*band, color="#d9d9d9", zorder=0, linewidth=0)
        for height, name in enumerate(names):
            losses = found[name][i][:, 0]
            colour = "#0072B2" if is_within(losses, plain) else "#D55E00"
            ratios = losses / plain.mean()
            axes.plot(ratios, [height] * SEEDS, "o", color=colour, markersize=8, alpha=0.6, mew=0)
        axes.set_xscale("log")
        axes.set_title(task.title)
        axes.set_xlabel(f"training loss, times float32's\n({task.length})")
        axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    figure.suptitle(
        "What storage costs in training by Adam: blue is as good as float32, orange is worse\n"
        f"(a dot per seed, {SEEDS} seeds; grey: the spread of float32)",
        fontsize=13,
    )
    return figure


def main() -> None:
    from matplotlib import rc_context

    found = measure()
    written = "".join([BEGIN, "\n", *table(found), "\n", END])
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(f"{BEGIN}.*{END}", lambda _: written, page, flags=re.DOTALL), encoding="utf-8"
    )
    with rc_context(PICTURE_STYLE):
        draw(found).savefig(PICTURE)
    version = ".".join(map(str, sys.version_info[:2]))
    print(f"{written}\nthe text: that of Python {version}, {len(text().y):,} characters")


if __name__ == "__main__":
    main()
