"""The stubs say what the modules have."""

from __future__ import annotations

import ast
import importlib.resources
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_stubs.py"


def declarations(source: str) -> list[str]:
    """What the stub declares, without docstrings, values and imports, which may differ."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.AnnAssign):
            node.value = None
    skipped = (ast.Import, ast.ImportFrom)
    return sorted(ast.unparse(node) for node in tree.body if not isinstance(node, skipped))


def test_stub_is_what_stubgen_makes_of_the_module(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pybind11_stubgen", "gradstep._core", "-o", tmp_path], check=True
    )
    made = (tmp_path / "gradstep" / "_core.pyi").read_text()
    kept = importlib.resources.files("gradstep").joinpath("_core.pyi").read_text()
    assert declarations(kept) == declarations(made)


@pytest.mark.parametrize(
    "path",
    [
        "__init__.pyi",
        "optimizers/__init__.pyi",
        "functional.pyi",
        pytest.param("torch/__init__.pyi", marks=pytest.mark.torch),
    ],
)
def test_stubs_of_what_is_made_at_run_time(path):
    if path.startswith("torch"):
        pytest.importorskip("torch", reason="needs PyTorch")
    made = runpy.run_path(str(SCRIPT))["STUBS"][path]()
    kept = importlib.resources.files("gradstep").joinpath(path).read_text()
    in_order = [sorted(map(ast.unparse, ast.parse(text).body)) for text in (kept, made)]
    assert in_order[0] == in_order[1], "scripts/make_stubs.py"
