"""Rules that look at the sign of the gradient, or of a mean of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._engine import checks as check
from .arguments import Numbers
from .base import Optimizer
from .options import Arrays, LearningRate, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [  # noqa: RUF022 - in the order of this file
    "Rprop",
    "Lion",
]


class Rprop(Optimizer):
    r"""Rprop: a step size for each parameter, which the sign of its gradient alone steers.

    ```
    s = g prev
    step = clip(step (etaplus where s > 0, etaminus where s < 0, else 1), step_sizes)
    g = 0 where s < 0
    w = w - sign(g) step
    prev = g
    ```

    For gradients over all data: the sign of a mini-batch's gradient says too little.

    Args:
        lr: the first step size of every parameter, at least 0, default 0.01. A schedule counts in
            the first step only.
        etas: the pair (etaminus, etaplus), etaminus in [0, 1), etaplus above 1, default (0.5, 1.2).
        step_sizes: the least and the largest step size, default (1e-6, 50).

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> opt = gs.Rprop(w, lr=0.1)
        >>> for _ in range(2):
        ...     opt.step(np.array([0.1, -10.0]))
        >>> w
        array([0.78, 1.22])

    References:
        Riedmiller and Braun, A direct adaptive method for faster backpropagation learning: the
        RPROP algorithm, 1993.
    """

    rules = ("rprop",)

    etas = Numbers("etaminus", "etaplus")
    step_sizes = Numbers("step_min", "step_max")

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        etaminus, etaplus = check.pair("etas", etas)
        step_min, step_max = check.pair("step_sizes", step_sizes)
        super().__init__(
            params,
            "rprop",
            lr=lr,
            hyper={
                "etaminus": etaminus,
                "etaplus": etaplus,
                "step_min": step_min,
                "step_max": step_max,
            },
            weight_decay=weight_decay,
            **options,
        )

    def _checked(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        checked = super()._checked(hyper)
        if "etaplus" in checked:
            etaplus, sizes = checked["etaplus"], (checked["step_min"], checked["step_max"])
            if not etaplus > 1:
                raise ValueError(f"etas[1] must be above 1, got {etaplus}")
            if not sizes[0] <= sizes[1]:
                raise ValueError(f"step_sizes must be the least and the largest, got {sizes}")
        return checked


class Lion(Optimizer):
    r"""Lion: every parameter moves by `lr` against the sign of a mean of its gradients.

    ```
    w = w - lr sign(beta1 m + (1 - beta1) g)
    m = beta2 m + (1 - beta2) g
    ```

    Weight decay shrinks the parameter. Rates are 3 to 10 times smaller than Adam's, and decay as
    much larger.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.99).

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0, 1.0])
        >>> gs.Lion(w, lr=0.5).step(np.array([0.1, -10.0, 0.0]))
        >>> w
        array([0.5, 1.5, 1. ])

    References:
        Chen et al., Symbolic discovery of optimization algorithms, 2023, algorithm 2.
    """

    rules = ("lion",)

    betas = Numbers("beta1", "beta2")

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            "lion",
            lr=lr,
            hyper={"beta1": beta1, "beta2": beta2},
            weight_decay=weight_decay,
            **options,
        )
