"""The examples that need tools: each builds, runs and does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from oracle import python

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
#: Commands find the `python` of the tests.
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool, path=ENVIRONMENT["PATH"]) is None:
            pytest.skip(f"{tool} is not installed")


def block(language: str) -> str:
    """The code of docs/embedding.md in a language."""
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_embed_c(tmp_path):
    """By the commands of docs/embedding.md."""
    needs("cmake", "cc", "bash")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    out = run("bash", "-euo", "pipefail", "-c", block("sh"), cwd=tmp_path)
    losses = [float(loss) for loss in re.findall(r"^step +\d+  loss (.+)$", out, re.MULTILINE)]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.2


def test_embed_cpp(tmp_path):
    """A package of another project, installed beside gradstep, trains as Python does."""
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("pybind11")
    needs("cmake", "c++")
    shutil.copytree(ROOT / "examples" / "embed_cpp", tmp_path / "source")
    command = ["-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target"]
    run(sys.executable, *command, tmp_path / "there", tmp_path / "source", cwd=tmp_path)
    code = """
import tiny_trainer, numpy as np
x = np.linspace(-1, 1, 60).reshape(30, 2) ** 3
weights, losses = tiny_trainer.fit(x, x @ [2.0, -1.0] + 0.5, epochs=300)
print(*weights, *losses[::100], losses[-1])
"""
    told = [float(x) for x in python(code, PYTHONPATH=str(tmp_path / "there")).split()]
    x = np.linspace(-1, 1, 60).reshape(30, 2) ** 3
    target = x @ [2.0, -1.0] + 0.5
    w = np.zeros(3)
    opt = gs.Adam(w, lr=0.05)
    for _ in range(300):
        error = w[2] - target + w[0] * x[:, 0] + w[1] * x[:, 1]
        products = np.column_stack([error * x[:, 0], error * x[:, 1], error])
        gradient = np.cumsum(products, axis=0)[-1]  # added in the order of the loop
        opt.step(gradient, grad_scale=1 / 30, clip_norm=10.0)
    np.testing.assert_array_equal(told[:3], w)
    assert told[3:] == sorted(told[3:], reverse=True)


def test_numba_loop(tmp_path):
    pytest.importorskip("numba")
    out = run(sys.executable, ROOT / "examples" / "numba_loop.py", cwd=tmp_path)
    assert out == "y = 3.5000 x + 4.0000\nthe same bits: True\n"


def test_cython(tmp_path):
    """The module of docs/embedding.md, which does not link to gradstep, has Python's bits."""
    pytest.importorskip("Cython")
    needs("cc")
    (tmp_path / "snippet.pyx").write_text("# cython: language_level=3\n" + block("cython"))
    run(sys.executable, "-m", "cython", "snippet.pyx", cwd=tmp_path)
    flags = ["-shared", "-fPIC", "-O1", f"-I{gs.get_include()}"]
    flags += [f"-I{sysconfig.get_path('include')}"]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    module = tmp_path / f"snippet{sysconfig.get_config_var('EXT_SUFFIX')}"
    run("cc", *flags, "snippet.c", "-o", module, cwd=tmp_path)
    code = """
import gradstep as gs, numpy as np, snippet
w, expected, target = np.zeros(9), np.zeros(9), np.linspace(-1, 1, 9)
snippet.descend(w, target, 0.1, 20)
opt = gs.SGD(expected, lr=0.1)
for _ in range(20):
    opt.step(expected - target)
print(np.array_equal(w, expected))
try:
    snippet.descend(w, target, -0.1, 20)
except ValueError as error:
    print(error)
"""
    out = python(code, PYTHONPATH=str(tmp_path))
    assert out == "True\nlr must be at least 0 and finite, got -0.1\n"


@pytest.mark.torch
def test_torch_train(tmp_path):
    """Both optimizers go the same way, and the picture is one."""
    pytest.importorskip("torch", reason="needs PyTorch")
    picture = tmp_path / "picture.png"
    script = ROOT / "examples" / "torch_train.py"
    out = run(sys.executable, script, "--epochs", "2", "--output", picture, cwd=tmp_path)
    assert "gradstep.torch.Adam" in out
    difference = float(out.split("largest difference of the losses: ")[1].split()[0])
    assert 0 <= difference < 1e-4
    assert picture.read_bytes().startswith(b"\x89PNG")
