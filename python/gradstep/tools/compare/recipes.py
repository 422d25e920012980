"""How each rule is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...optimizers.base import CLASSES, Optimizer
from ...optimizers.rows import SAG, SAGA
from ...optimizers.tables import WindowSAG
from ...optimizers.textbook import SGD, Adagrad, Adam, AdamW, Momentum, Nesterov, RMSprop
from ...stability import has_bound, max_stable_lr
from ..datasets import UsageError
from .problem import Batches, Problem

WINDOW = 10
#: The race to the optimum: SAG needs many batches to show what it is for.
FINITE_SUM_BATCHES, FINITE_SUM_PASSES = 150, 40
LearningRate = Callable[[Problem, int], float]


def over_curvature(factor: float) -> LearningRate:
    """lr = factor / L, for rules whose step is a multiple of the gradient."""
    return lambda problem, batch_size: factor / problem.curvature(batch_size)


def half_the_bound(cls: type[Optimizer], **options: Any) -> LearningRate:
    """Half of the largest stable lr."""
    return lambda problem, batch_size: (
        0.5 * max_stable_lr(cls, problem.curvature(batch_size), **options)
    )


def of_weights(factor: float) -> LearningRate:
    """lr = factor x the size of the weights, for rules whose step is about lr in each weight."""
    return lambda problem, _: factor * problem.weight_size


def as_it_is(lr: float) -> LearningRate:
    """The same lr for any data, for rules whose steps are a share of the weights."""
    return lambda *_: lr


@dataclass(frozen=True)
class Recipe:
    """How to build a rule for a problem, and its line in the picture.

    Without a colour the line has one by its place among the others. `full_batch` is for rules that
    are not for mini-batches: they take one step per epoch, with all rows.
    """

    cls: type[Optimizer]
    lr: LearningRate
    colour: str = ""
    dash: str = "-"
    options: Mapping[str, Any] = field(default_factory=dict)
    full_batch: bool = False

    def learning_rate(self, batches: Batches) -> float:
        return _three_digits(self.lr(batches.problem, batches.size))


def _three_digits(value: float) -> float:
    """The value rounded, so that the table shows all of it."""
    return float(f"{value:.3g}")


# Momentum of 0.9 sums ten gradients up, so lr = 0.1 / L would go at the pace of SGD. The adaptive
# rules have textbook defaults for networks: 0.01 for Adagrad and RMSprop, 0.001 for Adam.
# WindowSAG keeps to half its bound. All factors are round numbers that suit both line and diabetes,
# whose noise punishes larger ones; on digits nearly every rule would take ten times as much.
# Colours: Okabe and Ito; one family, one colour.

# A run that diverges shall go on to a loss that is infinite, where these would refuse to step.
_CAREFUL = {"skip_nonfinite": True}
#: What is compared if nothing is said.
RULES: Mapping[str, Recipe] = {
    "SGD": Recipe(SGD, over_curvature(1), "#000000"),
    "Momentum": Recipe(Momentum, over_curvature(0.2), "#E69F00"),
    "Nesterov": Recipe(Nesterov, over_curvature(0.2), "#D55E00", "--"),
    "Adagrad": Recipe(Adagrad, of_weights(0.2), "#009E73"),
    "RMSprop": Recipe(RMSprop, of_weights(0.003), "#56B4E9"),
    "Adam": Recipe(Adam, of_weights(0.01), "#0072B2"),
    "AMSGrad": Recipe(Adam, of_weights(0.01), "#0072B2", "--", {"amsgrad": True}),
    "AdamW": Recipe(AdamW, of_weights(0.01), "#0072B2", ":"),
    "SAG": Recipe(SAG, over_curvature(1), "#CC79A7", options=_CAREFUL),
    "SAGA": Recipe(SAGA, over_curvature(1 / 3), "#CC79A7", ":", _CAREFUL),
    "WindowSAG": Recipe(
        WindowSAG,
        half_the_bound(WindowSAG, window=WINDOW),
        "#CC79A7",
        "--",
        {"window": WINDOW, **_CAREFUL},
    ),
}
# FTRL's rates are Adagrad's, and Adadelta's lr is a factor of what it finds by itself. Rprop cannot
# bear noise in its signs. Lion's sign is larger than Adam's mean. A mean of points allows longer
# steps; ASGD's would otherwise begin after a million of them. LARS takes a thousandth of its lr,
# and Adafactor a thousandth of the weights where they are 0.
_OWN_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "Adadelta": {"lr": of_weights(1)},
    "FTRL": {"lr": of_weights(0.2)},
    "ASGD": {"lr": over_curvature(1), "options": {"t0": 0}},
    "ScheduleFreeSGD": {"lr": over_curvature(2)},
    "ScheduleFreeAdamW": {"lr": of_weights(0.02)},
    "Rprop": {"lr": of_weights(0.01), "full_batch": True},
    "Lion": {"lr": of_weights(0.002)},
    "LARS": {"lr": as_it_is(1)},
    "LAMB": {"lr": as_it_is(0.005)},
    "Adafactor": {"lr": as_it_is(0.1)},
}


def recipe_for(cls: type[Optimizer]) -> Recipe:
    """For a class that is not in `RULES`: its own, or half its largest stable lr, or Adam's lr.

    Adam's is for rules that step by about lr in each weight, and those have no largest stable lr.
    """
    lr = half_the_bound(cls) if has_bound(cls) else RULES["Adam"].lr
    return Recipe(cls, **{"lr": lr, **_OWN_RECIPES.get(cls.__name__, {})})


#: `RULES`, and by its name every other class that needs no more than gradients.
ALL_RULES: Mapping[str, Recipe] = {
    **RULES,
    **{
        cls.__name__: recipe_for(cls)
        for cls in CLASSES
        if cls.__name__ not in RULES and not cls.step_needs
    },
}
#: The rules with a gradient for each batch, whose steps name it.
ROW_METHODS = (SAG, SAGA)
#: Those that race to the optimum, and how many gradients they keep.
FINITE_SUM_RULES: Mapping[str, str] = {
    "SGD": "none",
    "WindowSAG": f"the last {WINDOW}",
    "SAG": "one per batch",
    "SAGA": "one per batch",
}


def find_rules(names: str) -> list[str]:
    """The rules in a list such as "adam,sgd", in the spelling of `ALL_RULES`; "all" means each.

    Raises:
        UsageError: no such rule, or one that needs more than gradients.

    Example:
        >>> from gradstep.tools.compare import find_rules
        >>> find_rules("adam, SGD")
        ['Adam', 'SGD']
    """
    known = {name.lower(): [name] for name in ALL_RULES} | {"all": list(ALL_RULES)}
    needs = {cls.__name__.lower(): cls.step_needs for cls in CLASSES}
    wanted = [name.strip().lower() for name in names.split(",")]
    for name in (name for name in wanted if name not in known):
        if name in needs:
            raise UsageError(f"rule {name!r} is not compared: its step needs {needs[name]}")
        raise UsageError(f"unknown rule {name!r}; the rules are {', '.join(known)}")
    return list(dict.fromkeys(found for name in wanted for found in known[name]))
