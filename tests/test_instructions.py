"""Instructions per element, counted by Valgrind: seconds drift on a shared machine, these do not.

Valgrind knows no AVX-512, so the level that counts is x86-64-v3, eight float32 at a time. A kernel
that is no longer vectorised needs about eight times as many instructions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

import gradstep as gs
from oracle import RULES, SHARING

pytestmark = [pytest.mark.valgrind, pytest.mark.slow, pytest.mark.timeout(600)]

SIZE = 8192
#: Of GCC 12, and a little room. What is not named here has the last.
BUDGETS = {
    "SGD": 1.5,
    "Momentum": 1.9,
    "RMSprop": 2.6,
    "Adam": 3.4,
    "Yogi": 4.5,
    "measure LAMB": 5.8,
    "measure Adafactor": 4.7,
    "SparseAdam": 3.2,
    "squares": 1.2,
}
BUDGET_OF_ALL = 4.3
#: One draw of a logistic model along dense float32 rows, by the number of features.
ROW_BUDGETS = {64: 8.6, 784: 5.3}
DRAWS = 1000
#: What a row that a gradient has costs beside its elements: it is sorted in, and becomes a job.
TOUCHED_ROW_BUDGET = 155
ROWS = 4096
#: Adam beside states in 8 bits: the rule's loop, the chances, and two states put back.
BUDGET_IN_8_BITS = 10.8

STEPS = f"""
import numpy as np
from gradstep import _core
assert _core.get_isa() == "x86-64-v3", _core.get_isa()
for rule in _core.rules():
    if rule.name in {SHARING}:
        continue
    w, g = np.zeros({SIZE}, np.float32), np.zeros({SIZE}, np.float32)
    states = [np.zeros(rule.state_shape(name, w.shape), np.float32) for name in rule.states]
    nouns = ["params", "grads", *rule.states]
    plan = _core.Plan(rule.name, [w], [[state] for state in states], nouns, [""])
    flags = "bias_correction", "nesterov", "seen"
    others = {{"beta2_decay": -0.5, **dict.fromkeys(flags, 1.0)}}
    hyper = [others.get(name, 0.5) for name in rule.hyperparameters]
    plan.step([g], None, (0, hyper, 0.0, False, 0))
plan.step([g], (1.0, 1.0, None, False))
w, m, v = (np.zeros(({ROWS}, 64)) for _ in range(3))  # kernels of float32 are counted above
names = ["params", "grads", "m", "v"]
plan = _core.Plan("sparse_adam", [w], [[m], [v]], names, [""], by_rows=True)
indices = np.random.default_rng(0).permutation({ROWS})
plan.step([(indices, w.copy())], None, (0, [0.5, 0.5, 0.5, 0.5], 0.0, False, 0))
w, g = np.zeros({SIZE}, np.float32), np.ones({SIZE}, np.float32)
m, v = (np.zeros(({SIZE} // 256, 257), dtype) for dtype in (np.int8, np.uint8))
plan = _core.Plan("adam", [w], [[m], [v]], names, [""])
plan.set_rounding(True, 0)
plan.step([g], None, (0, [0.5, 0.5, 0.5, 0.5, 1.0], 0.0, False, 0))
for features in {tuple(ROW_BUDGETS)}:
    rows, labels = np.ones((99, features), np.float32), np.ones(99)
    total = _core.FiniteSum(rows, labels, None, "logistic", 1, 1.0, False)
    total.descend("saga", 0.1, 0.1, 0.0, True, {DRAWS}, 0, 0)
"""


def executed(path) -> Counter[str]:
    """Instructions by function, its callees apart, from a file of callgrind's."""
    counts, function, inclusive = Counter(), "", False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("fn="):
            function = line[3:]
        elif line.startswith("calls="):
            inclusive = True  # the next line has what the called function executed
        elif line[:1].isdigit():
            counts[function] += 0 if inclusive else int(line.split()[1])
            inclusive = False
    return counts


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """Instructions by function."""
    if shutil.which("valgrind") is None:
        pytest.skip("Valgrind is not installed")
    if "x86-64-v3" not in gs.info()["isa_available"]:
        pytest.skip("this processor does not run x86-64-v3")
    out = tmp_path_factory.mktemp("callgrind") / "out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    command += ["--compress-strings=no", "--compress-pos=no", sys.executable, "-c", STEPS]
    settings = {"GRADSTEP_ISA": "x86-64-v3", "GRADSTEP_NUM_THREADS": "1"}
    settings |= {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return executed(out)


def slack() -> float:
    return 1.0 if gs.info()["compiler"].startswith("GCC") else 1.5


def test_instructions_per_element(counts):
    per_element: Counter[str] = Counter()
    for function, count in counts.items():
        if found := re.search(
            r"::(plain|measure)_loop<.*?::(\w+)<float>, float>|::(squares)_loop<true, float>",
            function,
        ):
            which, struct, squares = found.groups()
            name = squares or (struct if which == "plain" else f"{which} {struct}")
            per_element[name] += count / SIZE
    passes = len(RULES.keys() - SHARING) + sum(rule.has_trust for rule in RULES.values())
    assert len(per_element) == passes + 1, "every rule, and the sum of squares"
    over = {
        kernel: count
        for kernel, count in per_element.items()
        if not 0.5 <= count <= slack() * BUDGETS.get(kernel, BUDGET_OF_ALL)
    }
    assert not over
    assert per_element.keys() >= BUDGETS.keys()


def test_instructions_per_element_in_8_bits(counts):
    parts = "block_loop", "store_numbers", "::draw("
    found = {name: count for name, count in counts.items() if any(part in name for part in parts)}
    assert len(found) == 1 + 2 + 1, found
    assert 1.0 <= sum(found.values()) / SIZE <= slack() * BUDGET_IN_8_BITS


@pytest.mark.parametrize("features", ROW_BUDGETS)
def test_instructions_per_feature_of_a_draw(counts, features):
    """Rows of 64 features are copied when they come into view, those of 784 are read in place."""
    copies = "true" if features == 64 else "false"
    kernel = f"descend_dense_rows<true, {copies}, false, float>"
    count = sum(count for function, count in counts.items() if kernel in function)
    assert 1.0 <= count / (DRAWS * features) <= slack() * ROW_BUDGETS[features]


def test_instructions_per_touched_row(counts):
    found = {name: count / ROWS for name, count in counts.items() if "RowJobs" in name}
    assert found
    assert 1.0 <= sum(found.values()) <= slack() * TOUCHED_ROW_BUDGET, found
