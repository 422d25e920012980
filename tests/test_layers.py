"""Modules import downwards only, and nothing but tools and tests imports the oracle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gradstep

ROOT = Path(gradstep.__file__).parent
#: From the bottom to the top. A module imports from its own layer and from those below.
LAYERS = [
    ["_core"],
    ["_engine"],
    ["arena", "checkpoint", "embedding", "losses", "reference", "runtime", "schedules"],
    ["optimizers"],
    ["functional", "stability", "training"],
    ["linear", "mpi", "torch"],
    ["tools"],
    ["__init__", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]
#: Longer than 400 lines, and why.
LONG = {
    "optimizers/base.py": "a third of it documents the arguments of all classes",
    "optimizers/textbook.py": "seven classes, most of it documentation",
    "mpi/sharded.py": "one class, whose step is one exchange between ranks",
    "torch/optimizer.py": "one class: PyTorch looks for its methods there",
}


def imported(path):
    """The layers that a file imports from, with the first part of each name below `gradstep`."""
    package = path.parent.parts
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            module = [part for part in module if part]
            yield from [module[0]] if module else (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_layers(path):
    own = path.parts[0].removesuffix(".py")
    for name in imported(path):
        if name != "__version__":
            assert LEVEL[name] <= LEVEL[own], f"{path} imports {name}"
            assert name != "reference" or own in ("reference", "tools", "__init__"), path


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_short(path):
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert (lines > 400) == (str(path) in LONG), f"{path} has {lines} lines"
