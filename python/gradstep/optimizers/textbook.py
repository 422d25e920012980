"""One short class per rule of the textbooks, in the order of `cpp/src/rules/textbook.hpp`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._engine import checks as check
from .arguments import AT_A_POINT, Fixed, Flag, Number, Numbers
from .base import Optimizer
from .options import Arrays, LearningRate, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SGD", "Momentum", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW"]  # noqa: RUF022 - in the order of this file


class SGD(Optimizer):
    r"""Stochastic gradient descent, with momentum as PyTorch defines it.

    ```
    b = momentum b + (1 - dampening) g      (first step: b = g)
    u = g + momentum b  if nesterov else  b
    w = w - lr u
    ```

    Without momentum `u` is `g`, and no state is kept. `lr` is applied after the buffer; `Momentum`
    and Keras apply it before, which differs when `lr` changes.

    Args:
        momentum: at least 0, default 0.
        dampening: in [0, 1], default 0.
        nesterov: look ahead. Needs momentum above 0 and dampening 0.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 2.0])
        >>> opt = gs.SGD(w, lr=0.5, momentum=0.9)
        >>> for _ in range(2):
        ...     opt.step(np.ones(2))
        >>> w
        array([-0.45,  0.55])

    References:
        Robbins and Monro 1951; Sutskever et al., On the importance of initialization and momentum
        in deep learning, 2013.
    """

    rules = ("sgd", "sgd_momentum", "sgd_nesterov")

    momentum = Number()
    dampening = Number()
    nesterov = Fixed[bool]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        momentum, dampening = (
            check.number("momentum", momentum),
            check.number("dampening", dampening),
        )
        if check.flag("nesterov", nesterov):
            _check_nesterov(momentum, dampening)
        super().__init__(
            params,
            "sgd_nesterov" if nesterov else "sgd_momentum" if momentum != 0 else "sgd",
            lr=lr,
            hyper={"momentum": momentum, "dampening": dampening},
            weight_decay=weight_decay,
            fixed={"nesterov": bool(nesterov)},
            **options,
        )

    def _checked(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        checked = super()._checked(hyper)
        if self.rule == "sgd_nesterov" and "momentum" in checked:
            _check_nesterov(checked["momentum"], checked["dampening"])
        return checked


def _check_nesterov(momentum: float, dampening: float) -> None:
    if not (momentum > 0 and dampening == 0):
        raise ValueError(
            f"nesterov needs momentum above 0 and dampening 0, "
            f"got momentum={momentum}, dampening={dampening}"
        )


class Momentum(Optimizer):
    r"""Momentum in the two conventions of textbooks.

    ```
    velocity (default)           average=True
    v = momentum v - lr g        v = momentum v + (1 - momentum) g
    w = w + v                    w = w - lr v
    ```

    Keras uses the first. PyTorch's convention is `SGD(momentum=...)`.

    Args:
        momentum: in [0, 1), default 0.9.
        average: keep a running mean of the gradients instead of a velocity.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0])
        >>> opt = gs.Momentum(w, lr=0.5)
        >>> for _ in range(2):
        ...     opt.step(np.ones(1))
        >>> w
        array([-0.45])

    References:
        Polyak, Some methods of speeding up the convergence of iteration methods, 1964.
    """

    rules = ("momentum", "momentum_average")

    momentum = Number()
    average = Fixed[bool]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate,
        momentum: float = 0.9,
        average: bool = False,
        *,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "momentum_average" if check.flag("average", average) else "momentum",
            lr=lr,
            hyper={"momentum": momentum},
            weight_decay=weight_decay,
            fixed={"average": bool(average)},
            **options,
        )


class Nesterov(Optimizer):
    r"""Nesterov's accelerated gradient, the textbook's two points.

    ```
    v' = momentum v - lr g(x + momentum v)
    x' = x + v'
    ```

    During training the parameters hold the look-ahead point `a = x + momentum v`, so that the
    gradient is taken where the rule wants it: `a' = a + (1 + momentum) v' - momentum v`.
    `position()` gives `x`. PyTorch's rearranged form is `SGD(nesterov=True)`.

    Args:
        momentum: in [0, 1), default 0.9.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0])
        >>> opt = gs.Nesterov(w, lr=0.5)
        >>> opt.step(np.ones(1))
        >>> w, opt.position()
        (array([0.05]), array([0.5]))

    References:
        Nesterov, A method of solving a convex programming problem with convergence rate O(1/k^2),
        1983.
    """

    rules = ("nesterov",)

    _pinned = MappingProxyType({"momentum": AT_A_POINT})

    momentum = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate,
        momentum: float = 0.9,
        *,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "nesterov",
            lr=lr,
            hyper={"momentum": momentum},
            weight_decay=weight_decay,
            **options,
        )

    def position(self) -> Arrays:
        """The point `x = a - momentum v`, in new arrays."""
        momentum = self._hyper["momentum"]
        pairs = zip(self._masters.whole(), self._states.numbers("v"), strict=True)
        return self._structure.build([np.asarray(a - momentum * v) for a, v in pairs])

    def settle(self) -> None:
        """Move the parameters to `position()` and stop the velocity: the end of a training.

        Further steps start anew from there.
        """
        with self._alone(), self._masters.points() as points:
            for a, v in zip(points, self._states.numbers("v"), strict=True):
                a[...] = a - self._hyper["momentum"] * v
            for v in self._states["v"]:
                v.fill(0)


class Adagrad(Optimizer):
    r"""Adagrad: each parameter has a step of its own, which shrinks as its gradients add up.

    ```
    s = s + g g
    w = w - lr / (1 + (t - 1) lr_decay) n / (sqrt(s) + eps)
    ```

    The numerator `n` is `g`, or with `beta` a running mean, `n = beta n + (1 - beta) g`, as some
    textbooks write it.

    Args:
        lr_decay: at least 0, default 0.
        initial_accumulator_value: what `s` starts from, at least 0, default 0.
        eps: above 0, default 1e-10.
        beta: in [0, 1), or None (default) for the plain numerator.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.Adagrad(w, lr=0.5).step(np.array([0.1, 10.0]))
        >>> w
        array([0.5, 0.5])

    References:
        Duchi, Hazan and Singer, Adaptive subgradient methods for online learning and stochastic
        optimization, 2011.
    """

    rules = ("adagrad", "adagrad_momentum")

    lr_decay = Number()
    eps = Number()
    initial_accumulator_value = Fixed[float]()
    beta = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        beta: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        start = check.non_negative("initial_accumulator_value", initial_accumulator_value)
        super().__init__(
            params,
            "adagrad" if beta is None else "adagrad_momentum",
            lr=lr,
            hyper={"lr_decay": lr_decay, "eps": eps} | ({} if beta is None else {"beta": beta}),
            weight_decay=weight_decay,
            fixed={"initial_accumulator_value": start},
            **options,
        )
        self._states.fill("s", start, "initial_accumulator_value")


class RMSprop(Optimizer):
    r"""RMSprop: the gradient over the root of its running mean square.

    ```
    v = alpha v + (1 - alpha) g g
    D = sqrt(v) + eps
    w = w - lr g / D
    ```

    `centered` subtracts the square of the running mean, `q = q + (1 - alpha) (g - q)`,
    `D = sqrt(v - q q) + eps`. Where rounding makes `v - q q` negative it counts as 0 (PyTorch gives
    NaN there). `momentum` adds a buffer, `b = momentum b + g / D`, `w = w - lr b`. `eps` is outside
    the root; TensorFlow has it inside.

    Args:
        alpha: in [0, 1), default 0.99.
        eps: above 0, default 1e-8.
        momentum: at least 0, default 0.
        centered: default False.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.RMSprop(w, lr=0.01).step(np.array([0.1, 10.0]))
        >>> w.round(6)
        array([0.9, 0.9])

    References:
        Tieleman and Hinton, Lecture 6e of Neural Networks for Machine Learning, 2012; Graves,
        Generating sequences with recurrent neural networks, 2013 (centered).
    """

    rules = ("rmsprop", "rmsprop_momentum", "rmsprop_centered", "rmsprop_centered_momentum")

    alpha = Number()
    eps = Number()
    momentum = Number()
    centered = Fixed[bool]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **options: Unpack[Options],
    ) -> None:
        rule = "rmsprop_centered" if check.flag("centered", centered) else "rmsprop"
        super().__init__(
            params,
            rule if check.number("momentum", momentum) == 0 else f"{rule}_momentum",
            lr=lr,
            hyper={"alpha": alpha, "eps": eps, "momentum": momentum},
            weight_decay=weight_decay,
            fixed={"centered": bool(centered)},
            **options,
        )


class Adam(Optimizer):
    r"""Adam: running means of the gradient and its square, corrected for their start at 0.

    ```
    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) g g
    w = w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    ```

    `eps` is outside the root, after the correction; Keras and TensorFlow fold the correction into
    `lr`, which makes another `eps`.

    Args:
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-8.
        amsgrad: take the largest `v` so far instead of `v`. Default False.
        bias_correction: divide by `1 - beta^t`. Default True.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> gs.Adam(w, lr=0.1).step(np.array([0.1, 10.0]))
        >>> w.round(6)
        array([0.9, 0.9])

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015, algorithm 1; Reddi, Kale
        and Kumar, On the convergence of Adam and beyond, 2018 (amsgrad).
    """

    rules: ClassVar[tuple[str, ...]] = ("adam", "adam_amsgrad")

    betas = Numbers("beta1", "beta2")
    eps = Number()
    amsgrad = Fixed[bool]()
    bias_correction = Flag()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        plain, with_maximum = self.rules
        super().__init__(
            params,
            with_maximum if check.flag("amsgrad", amsgrad) else plain,
            lr=lr,
            hyper={
                "beta1": beta1,
                "beta2": beta2,
                "eps": eps,
                "bias_correction": float(check.flag("bias_correction", bias_correction)),
            },
            weight_decay=weight_decay,
            fixed={"amsgrad": bool(amsgrad)},
            **options,
        )


class AdamW(Adam):
    r"""Adam with decoupled weight decay, which shrinks the parameter and stays out of the gradient.

    ```
    w = (1 - lr weight_decay) w
    then Adam
    ```

    Args:
        weight_decay: at least 0, default 0.01.
        betas, eps, amsgrad, bias_correction: see `Adam`.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0])
        >>> gs.AdamW(w, lr=0.1, weight_decay=0.5).step(np.zeros(1))
        >>> w
        array([0.95])

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, algorithm 2.
    """

    rules = ("adamw", "adamw_amsgrad")

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            bias_correction=bias_correction,
            **options,
        )
