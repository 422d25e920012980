"""Writes docs/rules.md from the docstrings of the rules: `python docs/make_rules.py`."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from gradstep.functional import CORE_RULES
from gradstep.optimizers.base import CLASSES, Optimizer
from gradstep.optimizers.options import Options

PAGE = Path(__file__).with_name("rules.md")
#: Where else the rule is found, in libraries that are widely used.
ELSEWHERE = {
    "SGD": "PyTorch, optax",
    "Momentum": "Keras (`SGD(momentum=)`)",
    "Nesterov": "Keras (`SGD(nesterov=True)`)",
    "Adagrad": "PyTorch, Keras, optax",
    "RMSprop": "PyTorch, Keras, optax",
    "Adam": "PyTorch, Keras, optax",
    "AdamW": "PyTorch, Keras, optax",
    "Adamax": "PyTorch, Keras, optax",
    "NAdam": "PyTorch, Keras, optax",
    "RAdam": "PyTorch, optax",
    "Adadelta": "PyTorch, Keras, optax",
    "AdaBelief": "optax",
    "Yogi": "optax",
    "AdEMAMix": "optax, bitsandbytes",
    "FTRL": "Keras",
    "LARS": "optax",
    "LAMB": "Keras, optax, bitsandbytes",
    "Adafactor": "PyTorch, Keras, optax",
    "Muon": "PyTorch, Keras, optax",
    "Rprop": "PyTorch, optax",
    "Lion": "Keras, optax, bitsandbytes",
    "ASGD": "PyTorch",
    "ScheduleFreeSGD": "schedulefree, optax",
    "ScheduleFreeAdamW": "schedulefree, optax",
    "SparseAdam": "PyTorch",
    "SparseAdagrad": "PyTorch (`Adagrad`)",
    "SAG": "scikit-learn, for linear models",
    "SAGA": "scikit-learn, for linear models",
}
INTRODUCTION = """\
# The rules

Made from the docstrings by `docs/make_rules.py`. In every formula `w` is the parameter, `g` the
gradient, `t` the step from 1. All rules take `lr` and `maximize`, float32 and float64, and all but
the sparse ones `weight_decay`. Those without norms, factors, tables, rows or second gradients take
bfloat16 and float16 too. Where a class has several forms, the bytes are those of each: what a
step reads and writes, which is what limits it beyond the caches. Those of `Muon` are its two
passes, before and after the matrix products.

| rule | in a word | bytes per element | elsewhere |
| --- | --- | --- | --- |
"""
#: In the order of the native rules.
ORDER = sorted(CLASSES, key=lambda cls: list(CORE_RULES).index(cls.rules[0]))
#: Arguments that every class takes.
COMMON = {"params", "lr", "weight_decay", *Options.__annotations__}


def traffic_of(cls: type[Optimizer]) -> str:
    """Bytes per float32 element."""
    return ", ".join(
        str(n) for n in dict.fromkeys(4 * CORE_RULES[rule].streams for rule in cls.rules)
    )


def section(doc: str, title: str) -> str:
    """The text under a title of a docstring, on one line."""
    found = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def entry(cls: type[Optimizer]) -> list[str]:
    doc = inspect.getdoc(cls) or ""
    formula = re.search(r"```\n(.*?)```", doc, re.DOTALL)
    options = [
        f"{p.name}={p.default!r}" if p.default is not p.empty else p.name
        for p in inspect.signature(cls).parameters.values()
        if p.name not in COMMON
    ]
    return [
        f"## {cls.__name__}",
        "",
        doc.partition("\n")[0],
        "",
        *(["```text", *(formula[1].rstrip().split("\n")), "```", ""] if formula else []),
        f"- Options: {', '.join(f'`{option}`' for option in options) or 'none of its own'}",
        f"- Bytes moved per float32 element: {traffic_of(cls)}",
        f"- Reference: {section(doc, 'References')}",
        f"- Elsewhere: {ELSEWHERE.get(cls.__name__, 'no widely used library that we know of')}",
        "",
    ]


def page() -> str:
    lines = INTRODUCTION.splitlines()
    for cls in ORDER:
        name = cls.__name__
        first = (inspect.getdoc(cls) or "").partition("\n")[0].removesuffix(".")
        word = first.partition(": ")[2] or first
        cells = [f"[`{name}`](#{name.lower()})", word, traffic_of(cls), ELSEWHERE.get(name, "")]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for cls in ORDER:
        lines += entry(cls)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
