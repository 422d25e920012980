"""Rules with a step of its own for each parameter, from running means: Adam's relatives."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from .. import _core
from .._engine import checks as check
from .arguments import Fixed, Flag, Number, Numbers
from .base import Optimizer
from .options import Array, Arrays, LearningRate, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adamax", "NAdam", "RAdam", "Adadelta", "AdaBelief", "Yogi"]  # noqa: RUF022 - in the order of this file


class Adamax(Optimizer):
    r"""Adamax: Adam with a running maximum instead of the root.

    ```
    m = beta1 m + (1 - beta1) g
    u = max(beta2 u, |g| + eps)
    w = w - lr / (1 - beta1^t) m / u
    ```

    `eps` joins the gradient, as in PyTorch; the paper has none.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-8.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.Adamax(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(6)
        array([0.9, 0.9])

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 2.
    """

    rules = ("adamax",)

    betas = Numbers("beta1", "beta2")
    eps = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            "adamax",
            lr=lr,
            hyper={"beta1": beta1, "beta2": beta2, "eps": eps},
            weight_decay=weight_decay,
            **options,
        )


class NAdam(Optimizer):
    r"""NAdam: Adam whose step looks ahead, as Nesterov's does, with a momentum that rises.

    ```
    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2),   P_t = mu_1 ... mu_t
    m, v as Adam
    n = (1 - mu_t) / (1 - P_t) g + mu_(t+1) / (1 - P_(t+1)) m
    w = w - lr n / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    ```

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-8.
        momentum_decay: how fast the momentum rises to beta1, at least 0, default 0.004.
        decoupled_weight_decay: weight decay shrinks the parameter, as in `AdamW`. Default False.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.NAdam(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(4)
        array([0.8944, 0.8944])

    References:
        Dozat, Incorporating Nesterov momentum into Adam, 2016, algorithm 8.
    """

    rules = ("nadam", "nadam_decoupled")
    progress = MappingProxyType({"mu_product": 1.0})

    betas = Numbers("beta1", "beta2")
    eps = Number()
    momentum_decay = Number()
    decoupled_weight_decay = Fixed[bool]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            _decoupled("nadam", decoupled_weight_decay),
            lr=lr,
            hyper={
                "beta1": beta1,
                "beta2": beta2,
                "eps": eps,
                "momentum_decay": momentum_decay,
            },
            weight_decay=weight_decay,
            fixed={"decoupled_weight_decay": bool(decoupled_weight_decay)},
            **options,
        )

    def _advance(
        self, t: int, lr: float, progress: list[float]
    ) -> tuple[Mapping[str, float], list[float]]:
        (product,) = progress
        mu = nadam_momentum(self._hyper["beta1"], self._hyper["momentum_decay"], t + 1)
        return {"mu_product": product}, [product * mu]

    def _counters(self) -> dict[str, Array]:
        return {"mu_product": self._progress}

    def _check_counters(self, counters: Mapping[str, Array]) -> None:
        product = float(counters["mu_product"][0])
        if not 0 <= product <= 1:
            raise ValueError(f"counter mu_product must be in [0, 1], got {product}")


class RAdam(Optimizer):
    r"""RAdam: Adam that begins as momentum, until enough is known of the square of the gradient.

    ```
    m, v as Adam
    r_inf = 2 / (1 - beta2) - 1,   r = r_inf - 2 t beta2^t / (1 - beta2^t)
    r > 5:  R = sqrt((r - 4) (r - 2) r_inf / ((r_inf - 4) (r_inf - 2) r))
            w = w - lr / (1 - beta1^t) R m sqrt(1 - beta2^t) / (sqrt(v) + eps)
    else:   w = w - lr / (1 - beta1^t) m
    ```

    `eps` joins the root of the uncorrected `v`, as in PyTorch. With the default beta2, the first
    five steps are those of momentum.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-8.
        decoupled_weight_decay: weight decay shrinks the parameter, as in `AdamW`. Default False.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.RAdam(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(6)
        array([0.99, 0.  ])

    References:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020, algorithm 2.
    """

    rules = ("radam", "radam_decoupled")

    betas = Numbers("beta1", "beta2")
    eps = Number()
    decoupled_weight_decay = Fixed[bool]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            _decoupled("radam", decoupled_weight_decay),
            lr=lr,
            hyper={"beta1": beta1, "beta2": beta2, "eps": eps},
            weight_decay=weight_decay,
            fixed={"decoupled_weight_decay": bool(decoupled_weight_decay)},
            **options,
        )


class Adadelta(Optimizer):
    r"""Adadelta: steps in the units of the parameter, from the steps before.

    ```
    v = rho v + (1 - rho) g g
    delta = sqrt(a + eps) / sqrt(v + eps) g
    a = rho a + (1 - rho) delta delta
    w = w - lr delta
    ```

    Args:
        rho: in [0, 1), default 0.9.
        eps: above 0, default 1e-6. It sets the size of the first steps.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.Adadelta(w).step(np.array([0.1, 10.0]))
        >>> w.round(5)
        array([0.99684, 0.99684])

    References:
        Zeiler, Adadelta: an adaptive learning rate method, 2012, algorithm 1.
    """

    rules = ("adadelta",)

    rho = Number()
    eps = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "adadelta",
            lr=lr,
            hyper={"rho": rho, "eps": eps},
            weight_decay=weight_decay,
            **options,
        )


class AdaBelief(Optimizer):
    r"""AdaBelief: long steps where the gradient is as foreseen, short ones where it surprises.

    ```
    m = beta1 m + (1 - beta1) g
    s = beta2 s + (1 - beta2) (g - m)^2 + eps
    w = w - lr / (1 - beta1^t) m / (sqrt(s) / sqrt(1 - beta2^t) + eps)
    ```

    Weight decay shrinks the parameter, as in the authors' code.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-16. It enters twice.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.AdaBelief(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(4)
        array([0.8889, 0.8889])

    References:
        Zhuang et al., AdaBelief optimizer: adapting stepsizes by the belief in observed gradients,
        2020, algorithm 2.
    """

    rules = ("adabelief",)

    betas = Numbers("beta1", "beta2")
    eps = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            "adabelief",
            lr=lr,
            hyper={"beta1": beta1, "beta2": beta2, "eps": eps},
            weight_decay=weight_decay,
            **options,
        )


class Yogi(Optimizer):
    r"""Yogi: Adam whose `v` forgets large gradients slowly.

    ```
    m = beta1 m + (1 - beta1) g
    v = v - (1 - beta2) sign(v - g g) g g
    w = w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    ```

    The paper has no correction by `1 - beta^t`, which is `bias_correction=False`.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-3.
        initial_accumulator_value: what `v` starts from, at least 0, default 1e-6.
        bias_correction: divide by `1 - beta^t`. Default True.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.Yogi(w, lr=0.1, initial_accumulator_value=0.0).step(np.array([0.1, 10.0]))
        >>> w.round(4)
        array([0.901, 0.9  ])

    References:
        Zaheer et al., Adaptive methods for nonconvex optimization, 2018, algorithm 2.
    """

    rules = ("yogi",)

    betas = Numbers("beta1", "beta2")
    eps = Number()
    initial_accumulator_value = Fixed[float]()
    bias_correction = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 1e-6,
        *,
        bias_correction: bool = True,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        start = check.non_negative("initial_accumulator_value", initial_accumulator_value)
        super().__init__(
            params,
            "yogi",
            lr=lr,
            hyper={
                "beta1": beta1,
                "beta2": beta2,
                "eps": eps,
                "bias_correction": float(check.flag("bias_correction", bias_correction)),
            },
            weight_decay=weight_decay,
            fixed={"initial_accumulator_value": start},
            **options,
        )
        self._states.fill("v", start, "initial_accumulator_value")


def _decoupled(rule: str, decoupled_weight_decay: bool) -> str:
    """The rule, or its form whose weight decay shrinks the parameter."""
    decoupled = check.flag("decoupled_weight_decay", decoupled_weight_decay)
    return f"{rule}_decoupled" if decoupled else rule


def nadam_momentum(beta1: float, momentum_decay: float, t: int) -> float:
    """The momentum of a step, counted from 1."""
    return beta1 * (1 - 0.5 * float(_core.power(0.96, t * momentum_decay)))
