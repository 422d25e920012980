"""What the compiler made of the kernels: packed arithmetic in each, and no level outside its place.

Both tests read the installed library, whose symbols are kept for this (pyproject.toml).
"""

from __future__ import annotations

import collections
import functools
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import gradstep as gs
from gradstep import _core
from oracle import RULES, SHARING

pytestmark = [
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 code"),
]

ROOT = Path(__file__).parent.parent
BUILT = [level.replace("-", "_") for level in _core.isa_levels()]
#: The widest registers of each level, as objdump names them.
REGISTER = {"baseline": "xmm", "x86_64_v3": "ymm", "x86_64_v4": "zmm"}
#: Each loop has a function of its own, with template arguments that tell it from others of a rule.
KERNEL = re.compile(
    r"gradstep::(\w+)::\(anonymous namespace\)::"
    r"((?:plain|matrix|measure)_loop<(?:Before\d, |true, |false, )*|(?:sum_tile|take_factors)<)"
    r".*::(\w+)<(?:float|double)>, (\w+)>\([^()]*\)$"
)
#: Template arguments that are the names of what happens before the rule's equation.
BEFORE = re.compile(r"\(gradstep::\w+::\(anonymous namespace\)::Before\)(?=\d)")
#: The sum of squares, with and without a scale.
SQUARES = re.compile(
    r"gradstep::(\w+)::\(anonymous namespace\)::squares_loop<(\w+), (\w+)>\([^()]*\)$"
)
#: The kernels where memory holds all, or the states, as bfloat16.
IN_PLACE = re.compile(
    r"gradstep::(\w+)::\(anonymous namespace\)::"
    r"(bfloat16(?:_states)?_loop)<.*::\w+<float> ?>\([^()]*\)$"
)
#: The kernels where memory holds the states in 8 bits, and what brings those to float32 and back.
BLOCKS = re.compile(
    r"gradstep::(\w+)::(?:\(anonymous namespace\)::)?"
    r"(block_loop|load_blocks|store_numbers)<.*>\([^()]*\)(?: \[clone .*\])?$"
)
#: What puts a block back, once for all rules of a level.
STORING = [
    f"store_numbers<{has_sign}>(float const*, unsigned char*, unsigned int, "
    "unsigned short const*, int)"
    for has_sign in ("false", "true")
]
#: The kernels of dense rows, with their template arguments.
ROWS = re.compile(
    r"gradstep::(\w+)::\(anonymous namespace\)::"
    r"(descend_dense_rows|add_dense_gradient|largest_dense_norm)<(.*?)>\([^()]*\)$"
)
#: Packed arithmetic on floats or doubles, with or without the prefix of the AVX encoding.
PACKED = re.compile(r"^v?(add|sub|mul|div|sqrt)p[sd]$")
FUSED = re.compile(r"^vfn?m(add|sub)")


@functools.cache
def functions() -> dict[str, list[tuple[str, str]]]:
    """Each function's instructions, as (name, operands)."""
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", "-w", gs.get_library()],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    name = ""
    for line in listing.splitlines():
        if line.endswith(">:"):
            name = BEFORE.sub("Before", line.partition("<")[2][:-2])
        elif "\t" in line:
            mnemonic, _, operands = line.rpartition("\t")[2].partition(" ")
            found[name].append((mnemonic, operands.strip()))
    return found


def kernels() -> dict[tuple[str, str, str, str], list[tuple[str, str]]]:
    """The loops of each (level, pass, rule's struct, element type)."""
    matches = ((KERNEL.search(name), code) for name, code in functions().items())
    found = [(match.groups(), code) for match, code in matches if match]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_each_kernel_is_there():
    count = collections.Counter((level, name, dtype) for level, name, _, dtype in kernels())
    measured = [rule for rule in RULES.values() if rule.has_trust]
    factored = [rule for rule in RULES.values() if rule.factors]
    with_rows = [rule for rule in RULES.values() if rule.row_state]
    expected = {
        (level, name, dtype): len(rules)
        for level in BUILT
        for name, rules in (
            # What comes before the equation, zero_grad, a row that is new.
            ("plain_loop<Before0, false, false, ", RULES.keys() - SHARING),
            ("plain_loop<Before1, false, false, ", RULES.keys() - SHARING),
            ("plain_loop<Before2, false, false, ", RULES.keys() - SHARING),
            ("plain_loop<Before1, true, false, ", RULES.keys() - SHARING),
            ("plain_loop<Before2, true, false, ", RULES.keys() - SHARING),
            ("plain_loop<Before3, false, true, ", with_rows),
            ("plain_loop<Before3, true, true, ", with_rows),
            ("matrix_loop<true, ", factored),
            ("matrix_loop<false, ", factored),
            ("measure_loop<true, ", factored),
            ("measure_loop<false, ", measured),
            ("sum_tile<", factored),
            ("take_factors<", factored),
        )
        for dtype in ("float", "double")
    }
    assert dict(count) == expected


@pytest.mark.parametrize("level", REGISTER)
def test_each_kernel_is_vectorised(level):
    for (where, name, struct, dtype), code in kernels().items():
        if where != level or name == "take_factors<":  # once per row and column, not per element
            continue
        wide = {
            mnemonic
            for mnemonic, operands in code
            if PACKED.match(mnemonic) and REGISTER[level] in operands
        }
        # Squares are summed in double, and what is beside them in a loop has as many lanes.
        suffix = "ps" if dtype == "float" and name != "sum_tile<" else "pd"
        assert any(m.endswith("mul" + suffix) for m in wide), (
            f"{name}{struct}<{dtype}>> is not vectorised"
        )
    squares = [(SQUARES.search(name), code) for name, code in functions().items()]
    squares = [(match[0], code) for match, code in squares if match and match[1] == level]
    assert len(squares) == 2 * 2
    for name, code in squares:
        products = [operands for m, operands in code if m.removeprefix("v") == "mulpd"]
        assert any(REGISTER[level] in operands for operands in products), name


@pytest.mark.parametrize("level", REGISTER)
def test_each_kernel_for_fewer_bits_is_vectorised(level):
    """The most basic of several levels has none of its own: all goes through float32."""
    held = [rule for name, rule in RULES.items() if rule.any_storage and name not in SHARING]
    if level == "baseline" and len(BUILT) > 1:
        held = []
    expected = {
        "bfloat16_loop": 2 * len(held),
        "bfloat16_states_loop": 2 * len([rule for rule in held if rule.states]),
        "block_loop": 2 * 2 * len([rule for rule in held if rule.states]),
        "load_blocks": 2,
        "store_numbers": 2,
    }
    found = set()
    for name, code in functions().items():
        in_place, of_blocks = IN_PLACE.search(name), BLOCKS.search(name)
        match = in_place or of_blocks
        if match is None or match[1] != level:
            continue
        fused = [operands for m, operands in code if FUSED.match(m)]
        products = [operands for m, operands in code if m.removeprefix("v") == "mulps"]
        if of_blocks:  # what is fused there is exact, and a block is put back by a function
            products += fused
        else:
            assert not fused, name
        assert any(REGISTER[level] in operands for operands in products), name
        called = [operands for m, operands in code if m.startswith("call")]
        assert all(of_blocks and "store_numbers" in operands for operands in called), name
        found.add((match[2], name.partition(" [clone")[0]))
    counts = collections.Counter(kernel for kernel, _ in found)
    assert counts == {kernel: count for kernel, count in expected.items() if count}


@pytest.mark.parametrize("level", REGISTER)
def test_each_kernel_of_dense_rows_is_vectorised(level):
    """Of one output or several, rows copied or in place, with or without thresholds."""
    found = collections.Counter()
    for name, code in functions().items():
        match = ROWS.search(name)
        if match is None or match[1] != level:
            continue
        _, kernel, arguments = match.groups()
        copies = kernel == "descend_dense_rows" and arguments.split(", ")[1] == "true"
        # GCC gives float32 and float64 in one loop vectors of one size: of eight float32, 256 bits.
        mixed = not copies and arguments.endswith("float")
        wide = {"zmm", "ymm"} if mixed and level == "x86_64_v4" else {REGISTER[level]}
        products = [operands for m, operands in code if m.removeprefix("v") == "mulpd"]
        assert any(re.search("|".join(wide), operands) for operands in products), name
        found[kernel] += 1
    assert found == {
        "descend_dense_rows": 2 * 2 * 3,
        "add_dense_gradient": 2,
        "largest_dense_norm": 2,
    }


def test_nothing_of_a_level_fuses():
    """The rows' kernels and what they call, too: the mathematics, losses, norms."""
    of_levels = {name: code for name, code in functions().items() if "gradstep::x86_64_v" in name}
    assert len(of_levels) > 100
    for name, code in of_levels.items():
        # What is fused there is exact (storage.hpp).
        assert BLOCKS.search(name) or not [m for m, _ in code if FUSED.match(m)], name


def test_no_kernel_calls_a_function_or_fuses():
    """A call would be the C library's; a fused multiply-add rounds once, NumPy twice."""
    for key, code in kernels().items():
        bad = [m for m, _ in code if m.startswith("call") or FUSED.match(m)]
        assert not bad, f"{key}: {bad}"


def test_no_level_has_code_outside_its_namespace():
    """Code that two objects emit under one name is merged by the linker.

    If it came from the object of a higher level, an older processor would die of it.
    """
    for name, code in functions().items():
        if re.search(r"gradstep::x86_64_v\d", name):
            continue
        wide = [m for m, operands in code if re.search(r"%[yz]mm", operands) or m[0] == "v"]
        wide = [m for m in wide if m not in ("verr", "verw")]
        assert not wide, f"{name} holds {sorted(set(wide))}"


def test_no_level_calls_code_outside_its_namespace():
    """Such code would be shared between levels, whichever of them the linker took it from."""
    for name, code in functions().items():
        level = re.search(r"gradstep::(x86_64_v\d|baseline)::", name)
        if level is None:
            continue
        leaps = [operands for mnemonic, operands in code if re.match("call|j", mnemonic)]
        targets = [re.search(r"<(.*?)(?:\+0x[0-9a-f]+)?>$", operands) for operands in leaps]
        outside = {t[1] for t in targets if t and level[0] not in t[1]}
        assert not outside, f"{name} refers to {outside}"


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_objects_of_a_level_share_its_tables_alone():
    """Everything else of them is in an anonymous namespace, which the linker cannot merge."""
    listing = subprocess.run(
        ["nm", "-C", gs.get_library()], check=True, capture_output=True, text=True
    ).stdout
    names = re.findall(r"^[0-9a-f]* +\w (.*)$", listing, re.MULTILINE)
    of_levels = [name for name in names if re.search(r"gradstep::(x86_64|baseline)", name)]
    assert len(of_levels) > 100
    shared = {
        name.removeprefix("void ") for name in of_levels if "(anonymous namespace)" not in name
    }
    families = {path.stem for path in (ROOT / "cpp" / "src" / "rules").glob("*.hpp")} - {"rule"}
    assert shared == {
        f"gradstep::{level}::{name}"
        for level in REGISTER
        for name in families | {"table()", "float32_rows", "float64_rows", *STORING}
    }
