"""What the documentation says is true: every example runs, every command is run by .ci/run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep.optimizers.base import CLASSES

ROOT = Path(__file__).parent.parent
MODULES = [
    name for _, name, _ in pkgutil.walk_packages(gs.__path__, "gradstep.") if "_core" not in name
]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


def those_of_torch(values):
    """Parameters, with the marker of those that need PyTorch."""
    return [
        pytest.param(value, marks=[pytest.mark.torch] if "torch" in Path(value).name else [])
        for value in values
    ]


@pytest.mark.parametrize("name", those_of_torch(MODULES))
def test_docstrings(name):
    if name.startswith("gradstep.torch"):
        pytest.importorskip("torch", reason="needs PyTorch")
    if name.startswith("gradstep.mpi"):
        pytest.skip("test_mpi.py has it, in a process of its own")
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_pages(page):
    """All blocks of a page are one session."""
    text = page.read_text(encoding="utf-8")
    session = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    test = doctest.DocTestParser().get_doctest(session, {}, page.name, str(page), 0)
    result = doctest.DocTestRunner().run(test)
    assert result.failed == 0
    assert result.attempted > 0 or page != ROOT / "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


#: Those that need more than gradstep are tested in test_examples.py and test_mpi.py.
NEEDY = ("numba_loop.py", "mpi_train.py")
EXAMPLES = [path for path in sorted(ROOT.glob("examples/*.py")) if path.name not in NEEDY]


@pytest.mark.parametrize("path", those_of_torch(EXAMPLES), ids=lambda path: path.name)
def test_examples(path):
    if path.name.startswith("torch_"):
        pytest.importorskip("torch", reason="needs PyTorch")
    done = subprocess.run(
        [sys.executable, path], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not done.stderr
    if path.name == "train_and_resume.py":
        assert done.stdout.endswith("the same bits: True\n")
        accuracy = re.search(r"accuracy ([\d.]+)%", done.stdout)
        assert accuracy
        assert float(accuracy[1]) > 88


def test_the_readme_names_every_class():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for cls in CLASSES:
        assert f"`{cls.__name__}`" in readme


def test_the_page_of_the_rules_is_that_of_the_docstrings():
    made = runpy.run_path(str(ROOT / "docs" / "make_rules.py"))["page"]()
    assert made == (ROOT / "docs" / "rules.md").read_text(encoding="utf-8"), "docs/make_rules.py"


def test_the_table_of_scale_is_that_of_the_model():
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    model = runpy.run_path(str(ROOT / "docs" / "make_scale.py"))
    assert model["page"](text) == text, "docs/make_scale.py"
    assert model["held"](10**9, 1) == 16e9
    assert model["held"](10**9, 4) == 11e9
    assert model["sent"](10**9, 4) == 6e9
    assert model["seconds"](10**9, 2) == {"network": 0.16, "memory": 14e9 / 300e9}


@pytest.fixture(scope="module")
def quality():
    """docs/storage_quality.py."""
    spec = importlib.util.spec_from_file_location("quality", ROOT / "docs" / "storage_quality.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("embedding", [0, 3])
def test_gradients_of_the_storage_page(quality, embedding):
    """Against differences of the loss in float64."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (12, 4)) if embedding else rng.standard_normal((12, 4))
    data = quality.Data(x, rng.integers(0, 5, 12), np.arange(9), np.arange(9, 12), 5)
    network = quality.Network(data, 6, embedding)
    w = network.start(rng).astype(float)
    _, grad = network.loss_and_grad(w, data.x, data.y)
    for i in range(w.size):
        there, back = (
            network.loss_and_grad(w + side * 1e-6 * (np.arange(w.size) == i), data.x, data.y)[0]
            for side in (1, -1)
        )
        assert (there - back) / 2e-6 == pytest.approx(grad[i], rel=1e-5, abs=1e-8)


def test_the_storage_page_has_what_its_script_trains(quality):
    page = (ROOT / "docs" / "storage.md").read_text(encoding="utf-8")
    made = page.partition(quality.BEGIN)[2].partition(quality.END)[0].strip().splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in made[2:]] == [*quality.SETTINGS]
    assert made[:2] == [line.rstrip() for line in quality.table({})]
    short = replace(quality.TASKS[0], steps=3)
    losses = {name: quality.train(held, short, 0) for name, held in quality.SETTINGS.items()}
    assert np.isfinite(list(losses.values())).all()
    assert len(set(losses.values())) > len(losses) // 2


def test_the_version_is_in_the_changelog():
    assert f"## {gs.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_nothing_is_imported_but_numpy():
    code = (
        "import sys, numpy.random; before = set(sys.modules); import gradstep; "
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded - sys.stdlib_module_names == {"gradstep", "numpy"}


def test_public_names_exist():
    assert all(hasattr(gs, name) for name in gs.__all__)
