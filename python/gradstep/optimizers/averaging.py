"""Rules whose result is a mean of the points on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import _core
from .._engine import checks as check
from .._engine.windows import windows
from .arguments import AT_A_POINT, Fixed, Number, Numbers
from .base import Optimizer
from .options import Array, Arrays, LearningRate, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [  # noqa: RUF022 - in the order of this file
    "ASGD",
    "ScheduleFreeSGD",
    "ScheduleFreeAdamW",
]


class ASGD(Optimizer):
    r"""ASGD: SGD whose rate decays, and the mean of its points from some step on.

    ```
    eta = lr / (1 + lambd lr (t - 1))^alpha
    w = (1 - lambd eta) w - eta g
    ax = ax + (w - ax) / max(1, t - 1 - t0)       (until t0: ax = w)
    ```

    `average()` gives `ax`, which is what to use after the training.

    Args:
        lambd: decay of the parameters and the rate, at least 0, default 1e-4.
        alpha: the power of the decay of the rate, at least 0, default 0.75.
        t0: the step from which on points are averaged, at least 0, default 1e6.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0])
        >>> opt = gs.ASGD(w, lr=0.5, lambd=0.0, t0=0)
        >>> for _ in range(3):
        ...     opt.step(w.copy())
        >>> w, opt.average()
        (array([0.125]), array([0.1875]))

    References:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992.
    """

    rules = ("asgd",)

    lambd = Number()
    alpha = Number()
    t0 = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "asgd",
            lr=lr,
            hyper={"lambd": lambd, "alpha": alpha, "t0": t0},
            weight_decay=weight_decay,
            **options,
        )

    def average(self) -> Arrays:
        """The mean of the points, in new arrays."""
        return self._structure.build([ax.copy() for ax in self._states.numbers("ax")])


def check_training(training: bool) -> None:
    """Raise between `eval()` and `train()`."""
    if not training:
        raise RuntimeError("the parameters are at the mean: call train() before the next step")


class ScheduleFree(Optimizer):
    """What the schedule-free rules share: two points, and what each step counts in their mean."""

    #: The sum of the weights of all steps, and the largest rate so far.
    progress = MappingProxyType({"weight_sum": 0.0, "lr_max": 0.0})
    #: The hyper-parameter that says how near the parameters are to the mean.
    _nearness: ClassVar[str]

    warmup_steps = Fixed[int]()
    r = Fixed[float]()
    weight_lr_power = Fixed[float]()

    def __init__(
        self,
        params: Arrays,
        rule: str,
        *,
        lr: LearningRate,
        hyper: Mapping[str, float],
        warmup_steps: int,
        r: float,
        weight_lr_power: float,
        weight_decay: float,
        **options: Any,
    ) -> None:
        fixed = {
            "warmup_steps": check.integer("warmup_steps", warmup_steps, 0),
            "r": check.non_negative("r", r),
            "weight_lr_power": check.non_negative("weight_lr_power", weight_lr_power),
        }
        if check.number(self._nearness, hyper[self._nearness]) == 0:
            raise ValueError(
                f"{self._nearness} must be above 0, because eval() divides by it, got 0"
            )
        super().__init__(
            params, rule, lr=lr, hyper=hyper, weight_decay=weight_decay, fixed=fixed, **options
        )
        #: The progress, and whether the parameters are where gradients are taken.
        self._counter = np.array([*self._progress, 1.0])
        self._progress = self._counter[:-1]

    def _advance(
        self, t: int, lr: float, progress: list[float]
    ) -> tuple[Mapping[str, float], list[float]]:
        check_training(bool(self._counter[-1]))
        total, largest = progress
        lr *= min(1.0, (t + 1) / max(1, self.warmup_steps))
        largest = max(largest, lr)
        weight = float(_core.power(t + 1.0, self.r) * _core.power(largest, self.weight_lr_power))
        total += weight
        share = weight / total if total > 0 else 0.0
        return {"lr": lr, "share": share}, [total, largest]

    def eval(self) -> None:
        """Move the parameters to the mean of the points, which is what to use."""
        self._move(to_mean=True)

    def train(self) -> None:
        """Move the parameters back to where gradients are taken."""
        self._move(to_mean=False)

    def _move(self, to_mean: bool) -> None:
        with self._alone():
            if self._counter[-1] == to_mean:
                if self.t > 0:
                    with self._masters.points() as points:
                        pairs = zip(points, self._states["z"], strict=True)
                        parts = (part for pair in pairs for part in windows(*pair))
                        self._move_points(parts, to_mean)
                self._counter[-1] = not to_mean

    def _move_points(self, points: Iterable[tuple[Array, Array]], to_mean: bool) -> None:
        """Move parameters, each with its `z`, to the mean or back: in the arithmetic of steps."""
        nearness = self._hyper[self._nearness]
        share = 1 - 1 / nearness if to_mean else 1 - nearness
        for w, z in points:
            wide = w.astype(np.result_type(w, np.float32), copy=False)
            w[...] = wide + share * (z - wide)

    def _counters(self) -> dict[str, Array]:
        return {"progress": self._counter}

    def _check_counters(self, counters: Mapping[str, Array]) -> None:
        total, largest, training = counters["progress"].tolist()
        if not (0 <= total < np.inf and 0 <= largest < np.inf and training in (0, 1)):
            raise ValueError(f"counter progress is damaged: {counters['progress']}")


class ScheduleFreeSGD(ScheduleFree):
    r"""Schedule-free SGD: the mean of the points does what a schedule would.

    ```
    y = (1 - momentum) z + momentum x       where the gradient g is taken
    z = z - lr g
    x = (1 - c) x + c z                     c = weight / sum of all weights
    weight = t^r (largest lr so far)^weight_lr_power
    ```

    During training the parameters hold `y`. `eval()` moves them to `x`, which is what to use, and
    `train()` back again; a step between the two is a RuntimeError. Only `z` is stored.

    Args:
        lr: the learning rate, at least 0, default 1.0; it stays, but for the warm-up.
        momentum: in (0, 1), default 0.9.
        warmup_steps: so many steps the rate rises in proportion to them. Default 0.
        r, weight_lr_power: see above, each at least 0, default 0 and 2.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0])
        >>> opt = gs.ScheduleFreeSGD(w, lr=0.5)
        >>> for _ in range(50):
        ...     opt.step(w.copy())
        >>> opt.eval()
        >>> w.round(2)
        array([0.01])

    References:
        Defazio et al., The road less scheduled, 2024, equations 3 to 5.
    """

    rules = ("schedule_free_sgd",)
    _nearness = "momentum"

    _pinned = MappingProxyType({"momentum": AT_A_POINT})

    momentum = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "schedule_free_sgd",
            lr=lr,
            hyper={"momentum": momentum},
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            weight_decay=weight_decay,
            **options,
        )


class ScheduleFreeAdamW(ScheduleFree):
    r"""Schedule-free AdamW: the mean of Adam's points does what a schedule would.

    ```
    y = (1 - beta1) z + beta1 x             where the gradient g is taken
    v = beta2 v + (1 - beta2) g g
    z = z - lr (g / (sqrt(v) / sqrt(1 - beta2^t) + eps) + weight_decay y)
    x = (1 - c) x + c z                     c as in ScheduleFreeSGD
    ```

    During training the parameters hold `y`. `eval()` moves them to `x`, which is what to use, and
    `train()` back again; a step between the two is a RuntimeError. `z` and `v` are stored, as much
    as Adam does.

    Args:
        betas: the pair (beta1, beta2), beta1 in (0, 1), beta2 in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-8.
        weight_decay: at least 0, default 0.
        warmup_steps, r, weight_lr_power: see `ScheduleFreeSGD`.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.array([1.0, 1.0])
        >>> opt = gs.ScheduleFreeAdamW(w, lr=0.1)
        >>> opt.step(np.array([0.1, 10.0]))
        >>> opt.eval()
        >>> w.round(6)
        array([0.9, 0.9])

    References:
        Defazio et al., The road less scheduled, 2024, algorithm 1.
    """

    rules = ("schedule_free_adamw",)
    _nearness = "beta1"

    _pinned = MappingProxyType({"betas": AT_A_POINT})

    betas = Numbers("beta1", "beta2")
    eps = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            "schedule_free_adamw",
            lr=lr,
            hyper={"beta1": beta1, "beta2": beta2, "eps": eps},
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            weight_decay=weight_decay,
            **options,
        )


def asgd_rate(lr: float, lambd: float, alpha: float, t: int) -> float:
    """The learning rate of a step of ASGD, counted from 1."""
    return lr / float(_core.power(1 + lambd * lr * (t - 1), alpha))
