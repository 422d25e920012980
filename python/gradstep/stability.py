"""How large a learning rate may be: the edge beyond which a rule no longer descends a quadratic."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ._engine import checks as check
from .optimizers.base import CLASSES, Optimizer

__all__ = ["max_stable_lr"]
# On f(w) = L w^2 / 2 the gradient is L w, and a rule is a linear recurrence in w. It is stable if
# all roots z of its characteristic polynomial lie inside the unit circle. That is, with q = lr L:
#
#   SGD with momentum m and dampening d    z^2 - (1 + m - (1 - d) q) z + m
#   Nesterov                               z^2 - (1 + m) (1 - q) z + m (1 - q)
#   the mean of the last n gradients       z^n - z^(n-1) + q/n (z^(n-1) + ... + z + 1)
#
# A quadratic's roots are inside where |p(0)| < 1, p(1) > 0 and p(-1) > 0 (Jury's criterion). For
# m < 1, the last one gives way first. The roots of the mean of n reach the circle at z = exp(i t)
# where 2 (1 - cos t) = q/n (1 - z^-n): the left side is real, so z^-n = -1 and t = pi/n, first.

#: By native rule, the largest stable lr times L, from the optimizer that has the options.
BOUNDS: Mapping[str, Callable[[Optimizer], float]] = {
    "sgd": lambda opt: 2,
    "sgd_momentum": lambda opt: 2 * (1 + _momentum(opt)) / _undamped(opt),
    "sgd_nesterov": lambda opt: 2 * (1 + _momentum(opt)) / (1 + 2 * _momentum(opt)),
    "momentum": lambda opt: 2 * (1 + _momentum(opt)),
    "momentum_average": lambda opt: 2 * (1 + _momentum(opt)) / (1 - _momentum(opt)),
    "nesterov": lambda opt: 2 * (1 + _momentum(opt)) / (1 + 2 * _momentum(opt)),
    "window_sag": lambda opt: _window(len(opt.state["y"])),
    "sag": lambda opt: 1,
    "saga": lambda opt: 1 / 3,
    "saga_l1": lambda opt: 1 / 3,
    "svrg": lambda opt: 1 / 4,
}
#: Where practice allows more than what is proven.
PROVEN: Mapping[str, float] = {"sag": 1 / 16}
#: What classes ask for and no bound depends on.
INDIFFERENT: Mapping[str, Any] = {"rows": 1, "full_gradient": lambda params: params}


def max_stable_lr(
    rule: type[Optimizer] | str, curvature: float, *, proven: bool = False, **options: Any
) -> float:
    r"""The learning rate below which a rule is stable on a quadratic, and from which it is not.

    ```
    SGD                                    2 / L
    SGD(momentum, dampening)               2 (1 + momentum) / ((1 - dampening) L)
    SGD(nesterov=True), Nesterov           2 (1 + momentum) / ((1 + 2 momentum) L)
    Momentum                               2 (1 + momentum) / L
    Momentum(average=True)                 2 (1 + momentum) / ((1 - momentum) L)
    WindowSAG                              n (1 - cos(pi / n)) / L
    SAG                                    1 / L, proven: 1 / (16 L)
    SAGA                                   1 / (3 L)
    SVRG                                   1 / (4 L)
    ```

    With the whole gradient the bounds are exact. SAG, SAGA and SVRG take the gradient of a random
    row: there L is the largest curvature of a single row, and the bound a rate that is known to
    converge. For SVRG it needs long enough epochs.

    The weight decay of these rules adds to L. Decoupled decay, `AdamW`'s, would need
    `lr < 2 / weight_decay` by itself.

    Args:
        rule: an optimizer class, or its name in any case, such as "sgd".
        curvature: L, the largest second derivative of the loss, above 0: of half the mean squared
            error it is the largest eigenvalue of `x.T @ x / m`.
        proven: keep to what is proven, which changes SAG only. Default False.
        options: the arguments of the class by name, such as `momentum`, with its defaults.

    Raises:
        TypeError: an argument of the wrong type, or that the class does not have.
        ValueError: an argument out of its range; a momentum of 1 or more or a dampening of 1, with
            which no rate is stable; or a rule without a bound. Adagrad, RMSprop, Adam and AdamW
            have none: they divide by the size of the gradient, and step by about `lr` on any
            curvature.

    Example:
        >>> import gradstep as gs
        >>> gs.max_stable_lr("sgd", 4.0), gs.max_stable_lr(gs.SGD, 4.0, momentum=0.5)
        (0.5, 0.75)

    References:
        Cohen et al., Gradient descent on neural networks typically occurs at the edge of
        stability, 2021, appendix B (momentum and Nesterov); Schmidt, Le Roux and Bach, Minimizing
        finite sums with the stochastic average gradient, 2017, theorem 1 (SAG); Defazio, Bach and
        Lacoste-Julien, SAGA, 2014, section 2; Johnson and Zhang, Accelerating stochastic gradient
        descent using predictive variance reduction, 2013, theorem 1 (SVRG).
    """
    cls = find_class(rule)
    curvature = check.non_negative("curvature", curvature)
    if curvature == 0:
        raise ValueError(f"curvature must be above 0, got {curvature}")
    asked = inspect.signature(cls).parameters
    indifferent = {name: value for name, value in INDIFFERENT.items() if name in asked}
    # The class knows its defaults and ranges. No element, so that a window takes no memory.
    opt = cls(np.zeros((0, 0)), lr=0.0, **{**indifferent, **options})
    if opt.rule not in BOUNDS:
        raise ValueError(
            f"no largest stable learning rate is known for {cls.__name__}: rules that divide by "
            "the size of the gradient step by about lr on any curvature"
        )
    bound = BOUNDS[opt.rule](opt)
    if check.flag("proven", proven):
        bound = PROVEN.get(opt.rule, bound)
    return float(bound / (curvature + opt.hyperparameters["weight_decay"]))


def find_class(rule: type[Optimizer] | str) -> type[Optimizer]:
    """The optimizer class, given itself or its name in any case.

    Raises:
        TypeError: neither a class nor a name.
        ValueError: a name that no class has.

    Example:
        >>> from gradstep.stability import find_class
        >>> find_class("adamw")
        <class 'gradstep.optimizers.textbook.AdamW'>
    """
    if isinstance(rule, type) and issubclass(rule, Optimizer):
        return rule
    if not isinstance(rule, str):
        raise TypeError(f"rule must be an optimizer class or its name, got {rule!r}")
    known = {cls.__name__.lower(): cls for cls in CLASSES}
    if rule.lower() not in known:
        raise ValueError(f"rule must be one of {', '.join(known)}, got {rule!r}")
    return known[rule.lower()]


def has_bound(cls: type[Optimizer]) -> bool:
    """Whether `max_stable_lr` knows the class."""
    return not BOUNDS.keys().isdisjoint(cls.rules)


def batch_curvature(overall: float, worst: float, rows: int, batch_size: int) -> float:
    """The curvature of a mean over rows as batches of them see it.

    ```
    (1 - s) overall + s worst     s = (rows / batch_size - 1) / (rows - 1)
    ```

    All rows see the largest eigenvalue, one row that of the worst row, and batches lie between.

    Args:
        overall: of the mean over all rows.
        worst: the largest of a single row.
        rows, batch_size: how many there are, and how many are drawn.

    Example:
        >>> from gradstep.stability import batch_curvature
        >>> [batch_curvature(1.0, 9.0, rows=9, batch_size=b) for b in (9, 3, 1)]
        [1.0, 3.0, 9.0]

    References:
        Gower et al., SGD: general analysis and improved rates, 2019.
    """
    share = 0.0 if batch_size >= rows else (rows / batch_size - 1) / (rows - 1)
    return (1 - share) * overall + share * worst


def _momentum(opt: Optimizer) -> float:
    momentum: float = opt.hyperparameters["momentum"]
    if momentum >= 1:
        raise ValueError(f"momentum must be below 1 for a rate to be stable, got {momentum}")
    return momentum


def _undamped(opt: Optimizer) -> float:
    dampening: float = opt.hyperparameters["dampening"]
    if dampening == 1:
        raise ValueError(f"dampening must be below 1 for later gradients to count, got {dampening}")
    return 1 - dampening


def _window(n: int) -> float:
    # n (1 - cos(pi / n)), which cancels for large n
    return 2 * n * math.sin(math.pi / (2 * n)) ** 2
