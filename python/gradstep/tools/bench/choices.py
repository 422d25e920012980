"""What the arguments of the command name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..datasets import UsageError
from ..report import check_picture
from .entrants import PEERS
from .works import CLASS_RULES, LEFT_OUT, RULES


def find_classes(names: str) -> list[str]:
    """The rules of the classes in a list such as "adam,lion"; "all" means every class.

    Raises:
        UsageError: no such class, or one that cannot be timed.

    Example:
        >>> from gradstep.tools.bench import find_classes
        >>> find_classes("lion,Adam")
        ['Lion', 'adam', 'amsgrad']
    """
    known: dict[str, list[str]] = {"all": list(CLASS_RULES)}
    for name, rule in CLASS_RULES.items():
        known.setdefault(rule.cls.__name__.lower(), []).append(name)
    wanted = {name.strip().lower() for name in names.split(",")}
    for name, why in LEFT_OUT.items():
        if name.lower() in wanted:
            raise UsageError(f"class {name!r} is not timed: {why}")
    return _find("class", names, known)


def find_rules(names: str) -> list[str]:
    """The rules in a list such as "adam,sgd".

    Raises:
        UsageError: no such rule.
    """
    return _find("rule", names, {name: [name] for name in RULES})


def find_peers(names: str) -> list[str]:
    """The peers in a list such as "numpy,torch"; "torch" means all that PyTorch has.

    Raises:
        UsageError: no such peer.

    Example:
        >>> from gradstep.tools.bench import find_peers
        >>> find_peers("torch,numpy")
        ['torch', 'torch-foreach', 'torch-fused', 'numpy']
    """
    return _find("peer", names, {name: _family(name) for name in PEERS})


def find_pythons(choices: Sequence[str]) -> dict[str, str]:
    """The interpreters in a list such as ["deepspeed=/opt/env/bin/python"].

    Raises:
        UsageError: no such peer, or no such file.
    """
    pythons = {}
    for choice in choices:
        names, _, python = choice.partition("=")
        if not Path(python).is_file():
            raise UsageError(f"--python {choice} must be PEER=PATH, the path of an interpreter")
        pythons.update(dict.fromkeys(find_peers(names), python))
    return pythons


def find_picture(path: Path | None) -> Path | None:
    """Where to draw: bench.png where nothing is said, or None if Matplotlib is missing then.

    Raises:
        UsageError: the file cannot be written, or not be drawn.
    """
    if path is None and find_spec("matplotlib") is None:
        return None
    path = path or Path("bench.png")
    check_picture(path)
    return path


def _family(name: str) -> list[str]:
    return [peer for peer in PEERS if peer == name or peer.startswith(f"{name}-")]


def _find(noun: str, names: str, known: Mapping[str, list[str]]) -> list[str]:
    wanted = [name.strip().lower() for name in names.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        plural = noun + ("es" if noun.endswith("s") else "s")
        raise UsageError(f"unknown {noun} {unknown[0]!r}; the {plural} are {', '.join(known)}")
    return list(dict.fromkeys(found for name in wanted for found in known[name]))
