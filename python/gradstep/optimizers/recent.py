"""Adaptive rules after Adam's time, in the order of `cpp/src/rules/adaptive.hpp`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._engine import checks as check
from .adaptive import _decoupled
from .arguments import Fixed, Number, Numbers
from .base import Optimizer
from .options import Arrays, LearningRate, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AdEMAMix", "ADOPT", "FTRL"]  # noqa: RUF022 - in the order of this file


class AdEMAMix(Optimizer):
    r"""AdEMAMix: Adam with a second, slow mean, which remembers thousands of gradients.

    ```
    m = beta1 m + (1 - beta1) g,   v as Adam
    n = n + (1 - beta3) (g - n)
    w = w - lr (m / (1 - beta1^t) + alpha n) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    ```

    Weight decay shrinks the parameter.

    Args:
        betas: the numbers (beta1, beta2, beta3), each in [0, 1), default (0.9, 0.999, 0.9999).
        eps: above 0, default 1e-8.
        alpha: what the slow mean counts, at least 0, default 5.
        alpha_warmup: over so many steps `alpha` rises from 0; at least 0, default 0.
        beta3_warmup: over so many steps the memory of `n` grows from that of `m`, its half-life in
            proportion to the steps; at least 0, default 0. The paper takes the length of the
            training for both.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.AdEMAMix(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(5)
        array([0.89995, 0.89995])

    References:
        Pagliardini, Ablin and Grangier, The AdEMAMix optimizer: better, faster, older, 2024,
        algorithm 1.
    """

    rules = ("ademamix",)

    betas = Numbers("beta1", "beta2", "beta3")
    eps = Number()
    alpha = Number()
    alpha_warmup = Number()
    beta3_warmup = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        alpha: float = 5.0,
        *,
        alpha_warmup: float = 0.0,
        beta3_warmup: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2, beta3 = check.triple("betas", betas)
        super().__init__(
            params,
            "ademamix",
            lr=lr,
            hyper={
                "beta1": beta1,
                "beta2": beta2,
                "beta3": beta3,
                "eps": eps,
                "alpha": alpha,
                "alpha_warmup": alpha_warmup,
                "beta3_warmup": beta3_warmup,
            },
            weight_decay=weight_decay,
            **options,
        )


class ADOPT(Optimizer):
    r"""ADOPT: Adam that divides by what was known before the gradient came, for any beta2.

    ```
    n = clip(g / max(sqrt(v), eps), (t - 1)^(1/4))
    m = beta1 m + (1 - beta1) n
    w = w - lr m
    v = beta2 v + (1 - beta2) g g
    ```

    The first step makes `v = g g`, and moves nothing but what decoupled weight decay does.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.9999).
        eps: above 0, default 1e-6.
        decoupled_weight_decay: weight decay shrinks the parameter, as in `AdamW`. Default False.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> opt = gs.ADOPT(w, lr=0.1)
        >>> for _ in range(2):
        ...     opt.step(np.array([0.1, 10.0]))
        >>> w
        array([0.99, 0.99])

    References:
        Taniguchi et al., ADOPT: modified Adam can converge with any beta2 with the optimal rate,
        2024, algorithm 2.
    """

    rules = ("adopt", "adopt_decoupled")

    betas = Numbers("beta1", "beta2")
    eps = Number()
    decoupled_weight_decay = Fixed[bool]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            _decoupled("adopt", decoupled_weight_decay),
            lr=lr,
            hyper={"beta1": beta1, "beta2": beta2, "eps": eps},
            weight_decay=weight_decay,
            fixed={"decoupled_weight_decay": bool(decoupled_weight_decay)},
            **options,
        )


class FTRL(Optimizer):
    r"""FTRL-Proximal: Adagrad's rates, and weights that are exactly 0 where little speaks for them.

    ```
    sigma = (sqrt(n + g g) - sqrt(n)) / lr
    z = z + g - sigma w
    n = n + g g
    w = 0  where |z| <= l1,  else  -(z - sign(z) l1) / ((beta + sqrt(n)) / lr + l2)
    ```

    The weights follow from `z` and `n` alone: what they were before the first step counts for
    nothing but `sigma w`. A step at `lr = 0`, where a warm-up begins, changes neither weights nor
    states.

    Args:
        lr: default 0.1; the paper's alpha.
        beta: at least 0, default 1.
        l1: at least 0, default 0.
        l2: at least 0, default 0.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.zeros(3)
        >>> gs.FTRL(w, l1=0.5).step(np.array([0.1, 1.0, -3.0]))
        >>> w
        array([ 0.    , -0.025 ,  0.0625])

    References:
        McMahan et al., Ad click prediction: a view from the trenches, 2013, algorithm 1.
    """

    rules = ("ftrl",)

    beta = Number()
    l1 = Number()
    l2 = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "ftrl",
            lr=lr,
            hyper={"beta": beta, "l1": l1, "l2": l2},
            weight_decay=weight_decay,
            **options,
        )
