"""The stub of the native module says what the module has."""

from __future__ import annotations

import ast
import importlib.resources
import subprocess
import sys


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
