"""Rules that take for each array a step in proportion to its norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _checks as check
from .optimizers import Arrays, LearningRate, Optimizer, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [  # noqa: RUF022 - in the order of this file
    "LARS",
    "LAMB",
]


class LARS(Optimizer):
    r"""LARS: momentum whose rate, for each array, follows from the norms of array and gradient.

    ```
    trust = trust_coefficient |w| / (|g| + weight_decay |w|)
    v = momentum v + lr trust (g + weight_decay w)
    w = w - v
    ```

    `|w|` is the L2 norm over one array of `params`. Where a norm is 0 or not finite, `trust` is 1.
    Biases and scales are commonly left to another rule, such as `Momentum`, as an optimizer of
    their own.

    Args:
        momentum: in [0, 1), default 0.9.
        trust_coefficient: above 0, default 0.001.
        weight_decay: at least 0, default 0, as above.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = [np.array([3.0, 4.0]), np.array([0.3, 0.4])]
        >>> gs.LARS(w, lr=1.0, trust_coefficient=0.1).step([np.array([0.0, 7.0])] * 2)
        >>> w
        [array([3. , 3.5]), array([0.3 , 0.35])]

    References:
        You, Gitman and Ginsburg, Large batch training of convolutional networks, 2017, algorithm 1.
    """

    rules = ("lars",)

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "lars",
            lr=lr,
            hyper={"momentum": momentum, "trust_coefficient": trust_coefficient},
            weight_decay=weight_decay,
            **options,
        )


class LAMB(Optimizer):
    r"""LAMB: Adam's direction, as long for each array as the array itself, times `lr`.

    ```
    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) g g
    d = m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay w
    w = w - lr |w| / |d| d
    ```

    `|w|` is the L2 norm over one array of `params`. Where a norm is 0 or not finite, the ratio is
    1. Biases and scales are commonly left to another rule, such as `AdamW`, as an optimizer of
    their own.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-6.
        weight_decay: at least 0, default 0, as above.
        bias_correction: divide by `1 - beta^t`. Default True.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = [np.array([3.0, 4.0]), np.array([0.3, 0.4])]
        >>> gs.LAMB(w, lr=0.2 ** 0.5).step([np.array([0.0, 7.0])] * 2)
        >>> [one.round(3) for one in w]
        [array([3.   , 1.764]), array([0.3  , 0.176])]

    References:
        You et al., Large batch optimization for deep learning: training BERT in 76 minutes, 2020,
        algorithm 2.
    """

    rules = ("lamb",)

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = True,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            "lamb",
            lr=lr,
            hyper={
                "beta1": beta1,
                "beta2": beta2,
                "eps": eps,
                "bias_correction": float(check.flag("bias_correction", bias_correction)),
            },
            weight_decay=weight_decay,
            **options,
        )
