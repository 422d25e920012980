"""Rules for gradients that have some rows of a parameter, such as those of an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .._engine import checks as check
from .._engine.plan import Scalars
from .arguments import Fixed, Number, Numbers
from .base import Optimizer
from .options import Arrays, LearningRate, Options, StepOptions, StepResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [  # noqa: RUF022 - in the order of this file
    "SparseAdam",
    "SparseAdagrad",
]


class RowSparse(Optimizer):
    """What the rules share that step at the rows which the gradients have, and at no others."""

    step_needs = "the indices of the rows that a gradient has"

    def __init__(
        self,
        params: Arrays,
        rule: str,
        *,
        lr: LearningRate,
        hyper: Mapping[str, float],
        **options: Any,
    ) -> None:
        if "weight_decay" in options:
            raise TypeError(
                f"{type(self).__name__}() has no argument 'weight_decay', which would move all rows"
            )
        super().__init__(params, rule, lr=lr, hyper=hyper, weight_decay=0.0, **options)
        del self._hyper["weight_decay"]

    def step(self, grads: Arrays, **options: Unpack[StepOptions]) -> StepResult | None:
        """Update the rows that the gradients have, and their states, once, in place.

        All other rows keep their bits, and so do their states. `t` counts the steps for all rows.

        Args:
            grads: a pair `(indices, rows)`, or such pairs in the structure of `params`. `indices`
                has one axis, int32 or int64, and says which row of the parameter, along its first
                axis, each of the `rows` belongs to, in any order. `rows` has the shape
                `(len(indices), *param.shape[1:])` and the parameter's dtype. Rows of the same index
                are summed first, in the order in which they stand and in their dtype.
            grad_scale, clip_norm, clip_value, zero_grad: see `Optimizer.step`. They apply to the
                sums. The norm is that over all of them, each an array of its own, in ascending
                order. `zero_grad` fills `rows` with 0.

        Raises:
            TypeError, ValueError: an argument or array that does not fit, by name; an index that
                names no row; with `clip_norm` and without `skip_nonfinite`, a gradient that holds
                NaN or infinity, or has a norm beyond float64. Nothing has changed then.

        Example:
            >>> import numpy as np, gradstep as gs
            >>> w = np.zeros((4, 2))
            >>> opt = gs.SparseAdagrad(w, lr=0.5)
            >>> opt.step((np.array([2, 0, 2]), np.array([[1.0, 1.0], [3.0, 3.0], [1.0, -1.0]])))
            >>> w
            array([[-0.5, -0.5],
                   [ 0. ,  0. ],
                   [-0.5,  0. ],
                   [ 0. ,  0. ]])
        """
        return super().step(grads, **options)

    def _scalars(
        self, t: int, lr: float, row: int = 0, late: Mapping[str, float] = MappingProxyType({})
    ) -> Scalars:
        return super()._scalars(t, lr, row, {"weight_decay": 0.0, **late})

    def _plan_options(self) -> dict[str, Any]:
        return {"by_rows": True}


class SparseAdam(RowSparse):
    r"""Adam along rows: only the rows that a gradient has move, and only their means.

    ```
    m = m + (1 - beta1) (g - m)
    v = v + (1 - beta2) (g g - v)
    w = w - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
    ```

    Gradients are pairs of indices and rows, see `step`. The means of a row rest while it has no
    gradient, where those of `Adam` decay and go on moving it. `eps` joins the root before it is
    corrected, as in PyTorch. There is no weight decay. `gs.functional.sparse_adam` is the rule
    alone: it takes the rows that move, and their states, as arrays.

    Args:
        params: as in `Optimizer`; each has one axis at least, and its rows are along the first.
        betas: the pair (beta1, beta2), each in [0, 1), default (0.9, 0.999).
        eps: above 0, default 1e-8.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> embedding = np.ones((3, 2))
        >>> opt = gs.SparseAdam(embedding, lr=0.1)
        >>> opt.step((np.array([2]), np.array([[0.1, 10.0]])))
        >>> embedding.round(6)
        array([[1. , 1. ],
               [1. , 1. ],
               [0.9, 0.9]])

    References:
        Kingma and Ba, Adam: a method for stochastic optimization, 2015; `torch.optim.SparseAdam`.
    """

    rules = ("sparse_adam",)

    betas = Numbers("beta1", "beta2")
    eps = Number()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        beta1, beta2 = check.pair("betas", betas)
        super().__init__(
            params,
            "sparse_adam",
            lr=lr,
            hyper={"beta1": beta1, "beta2": beta2, "eps": eps},
            **options,
        )


class SparseAdagrad(RowSparse):
    r"""Adagrad along rows: only the rows that a gradient has move.

    ```
    s = s + g g
    w = w - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)
    ```

    Gradients are pairs of indices and rows, see `step`. A row whose gradient is 0 rests with
    `Adagrad` too, so the results are the same. There is no weight decay.

    Args:
        params: as in `Optimizer`; each has one axis at least, and its rows are along the first.
        lr_decay: at least 0, default 0.
        initial_accumulator_value: what `s` starts from, at least 0, default 0.
        eps: above 0, default 1e-10.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.ones(4)
        >>> gs.SparseAdagrad(w, lr=0.5).step((np.array([3, 0]), np.array([0.1, 10.0])))
        >>> w
        array([0.5, 1. , 1. , 0.5])

    References:
        Duchi, Hazan and Singer, Adaptive subgradient methods for online learning and stochastic
        optimization, 2011; `torch.optim.Adagrad` with sparse gradients.
    """

    rules = ("sparse_adagrad",)

    lr_decay = Number()
    eps = Number()
    initial_accumulator_value = Fixed[float]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-2,
        lr_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **options: Unpack[Options],
    ) -> None:
        start = check.non_negative("initial_accumulator_value", initial_accumulator_value)
        super().__init__(
            params,
            "sparse_adagrad",
            lr=lr,
            hyper={"lr_decay": lr_decay, "eps": eps},
            fixed={"initial_accumulator_value": start},
            **options,
        )
        self._states.fill("s", start, "initial_accumulator_value")
