"""Rules whose result is a mean of the points on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .optimizers import Arrays, LearningRate, Optimizer, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ASGD",
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
        return self._structure.build([ax.copy() for ax in self._states["ax"]])
