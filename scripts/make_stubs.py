"""Writes the stubs of modules whose functions or classes are made at run time.

Editors and type checkers read these: `python scripts/make_stubs.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gradstep
from gradstep import functional

PACKAGE = Path(__file__).parent.parent / "python" / "gradstep"
NOTE = "# Made by scripts/make_stubs.py.\n"


def package_stub(package: ModuleType, *others: str) -> str:
    """That of `gradstep` or `gradstep.optimizers`, which have the names that families list.

    Args:
        others: names that are not in the list.
    """
    text = NOTE
    for name in [*package.__all__, *others]:
        found = getattr(package, name)
        if isinstance(found, ModuleType):
            module = "."
        else:
            whole = getattr(found, "__module__", "gradstep.optimizers.base")
            whole = "gradstep._core" if name == "__version__" else whole
            module = whole.removeprefix(package.__name__)
        text += f"from {module} import {name} as {name}\n"
    names = "".join(f'    "{name}",\n' for name in package.__all__)
    return f"{text}\n__all__ = [  # noqa: RUF022 - in the order of the families\n{names}]\n"


def functional_stub() -> str:
    """That of `gradstep.functional`."""
    text = (
        NOTE + "from typing import Any\n\n__all__ = [  # noqa: RUF022 - in the order of the rules\n"
    )
    text += "".join(f'    "{name}",\n' for name in functional.__all__) + "]\n\n"
    return text + "".join(map(_function, functional.__all__))


def _function(name: str) -> str:
    positional, keywords = [], []
    for p in inspect.signature(getattr(functional, name)).parameters.values():
        if p.kind is p.POSITIONAL_ONLY:
            positional.append(f"{p.name}: Any")
            continue
        types = {bool: "bool", str: "str"}
        other = "int" if p.name in ("t", "rounding_seed") else "float"
        kind = types.get(type(p.default), other)
        default = "" if p.default is p.empty else f" = {p.default!r}"
        keywords.append(f"{p.name}: {kind}{default}")
    return f"def {name}({', '.join([*positional, '/', '*', *keywords])}) -> None: ...\n"


def torch_stub() -> str:
    """That of `gradstep.torch`."""
    import gradstep.torch as gt
    from gradstep.torch.settings import _in_torch

    text = NOTE + (
        "from typing import Any\n\nimport torch\n\n"
        "from .backward import BackwardSteps as BackwardSteps\n"
        "from .backward import step_in_backward as step_in_backward\n"
        "from .optimizer import Optimizer as Optimizer\n"
        "from .settings import CLASSES as CLASSES\n"
        "from .variants import _Adagrad, _Muon, _ScheduleFree\n\n"
        "__all__ = [  # noqa: RUF022 - in the order of the rules\n"
    )
    text += "".join(f'    "{name}",\n' for name in gt.__all__) + "]\n\n"
    for name, cls in gt.CLASSES.items():
        made = getattr(gt, name)
        theirs = _in_torch(name)
        bases = [made.__bases__[0].__name__]
        bases += [f"torch.optim.{theirs.__name__}"] if theirs else []
        annotations = _annotations(cls)
        parameters = ["self"]
        star = False
        for p in inspect.signature(made).parameters.values():
            if p.kind is p.KEYWORD_ONLY and not star:
                parameters.append("*")
                star = True
            default = "" if p.default is p.empty else f" = {p.default!r}"
            parameters.append(f"{p.name}: {annotations.get(p.name, 'Any')}{default}")
        text += f"class {name}({', '.join(bases)}):\n"
        text += f"    def __init__({', '.join(parameters)}) -> None: ...\n\n"
    return text


def _annotations(cls: type) -> dict[str, str]:
    """The types of the arguments that are simple ones. A tensor may stand for a number."""
    known = {"float": "float | torch.Tensor", "int": "int", "bool": "bool", "str": "str"}
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: known.get(str(p.annotation), "Any") for p in parameters}


#: What makes each of them.
STUBS: dict[str, Callable[[], str]] = {
    "__init__.pyi": lambda: package_stub(gradstep),
    "optimizers/__init__.pyi": lambda: package_stub(gradstep.optimizers, "CLASSES"),
    "functional.pyi": functional_stub,
    "torch/__init__.pyi": torch_stub,
}

if __name__ == "__main__":
    for path, made in STUBS.items():
        (PACKAGE / path).write_text(made(), encoding="utf-8")
