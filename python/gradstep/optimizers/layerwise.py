"""Rules that take for each array a step in proportion to its norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._engine import checks as check
from .arguments import Argument, Flag, Number, Numbers
from .base import Optimizer
from .options import Arrays, LearningRate, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [  # noqa: RUF022 - in the order of this file
    "LARS",
    "LAMB",
    "Adafactor",
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

    momentum = Number()
    trust_coefficient = Number()

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

    betas = Numbers("beta1", "beta2")
    eps = Number()
    bias_correction = Flag()

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


def _epsilons(eps: Any) -> tuple[float, Any]:
    """The pair as the rule has it: 0 for the machine epsilon."""
    if not isinstance(eps, (tuple, list)) or len(eps) != 2:
        raise TypeError(f"eps must be a pair of numbers, or of None and a number, got {eps!r}")
    eps1 = 0.0 if eps[0] is None else check.number("eps[0]", eps[0])
    if eps[0] is not None and not eps1 > 0:
        raise ValueError(f"eps[0] must be above 0, or None, got {eps1}")
    return eps1, eps[1]


class Epsilons(Argument[tuple[float | None, float]]):
    """The pair of which the first is None for the machine epsilon."""

    def of(self, opt: Optimizer) -> tuple[float | None, float]:
        return opt._hyper["eps1"] or None, opt._hyper["eps2"]

    def change(self, opt: Optimizer, value: tuple[float | None, float]) -> None:
        opt._change_hyper(self.name, dict(zip(("eps1", "eps2"), _epsilons(value), strict=True)))


class Adafactor(Optimizer):
    r"""Adafactor: a second moment in two factors, which for a matrix are a column and a row.

    ```
    b = t^beta2_decay
    r = r + b (mean of g g along each row - r)
    c = c + b (mean of g g down each column - c)
    V = r c / max(mean of r, eps1)
    d = g / sqrt(max(V, eps1^2))
    w = (1 - lr weight_decay) w
      - max(eps2, rms(w)) min(lr, 1 / sqrt(t)) / max(1, rms(d) / clip) d
    ```

    `rms` is the root mean square over one array of `params`, `clip` the argument `d`. An array of
    more than two axes is matrices along its last two. One of fewer has `V = v` in full,
    `v = v + b (g g - v)`. A `rms` that is not finite counts as if it were 0. NaN in a gradient
    stays in the factors of its matrix; `skip_nonfinite=True` skips such steps.

    Three passes, and as much memory for states as one row and one column.

    Args:
        lr: the largest relative step, at least 0, default 0.01.
        beta2_decay: at most 0, default -0.8.
        eps: the pair (eps1, eps2), default (None, 0.001): the first is above 0, or None for the
            machine epsilon of the dtype, the second at least 0.
        d: the root mean square beyond which a direction is clipped, above 0, default 1.
        weight_decay: at least 0, default 0; it shrinks the parameter.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.ones((2, 3))
        >>> opt = gs.Adafactor(w, lr=0.1)
        >>> opt.step(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
        >>> w
        array([[0.9, 0.9, 0.9],
               [0.9, 0.9, 0.9]])
        >>> {name: array.shape for name, array in opt.state.items()}
        {'variance': (0,), 'row_var': (2, 1), 'col_var': (1, 3)}

    References:
        Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory cost, 2018,
        algorithms 4 and 5, with means instead of sums and `eps1` where PyTorch has it.
    """

    rules = ("adafactor",)

    beta2_decay = Number()
    eps = Epsilons()
    d = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        eps1, eps2 = _epsilons(eps)
        super().__init__(
            params,
            "adafactor",
            lr=lr,
            hyper={"beta2_decay": beta2_decay, "eps1": eps1, "eps2": eps2, "d": d},
            weight_decay=weight_decay,
            **options,
        )
