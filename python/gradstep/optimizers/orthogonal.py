"""Rules that move a matrix along its gradients made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._engine import checks as check
from .._engine.plan import GradTransform, Plan, Report, Scalars
from .arguments import Flag, Number, Setting
from .base import CORE_RULES, Optimizer
from .options import (
    Array,
    Arrays,
    LearningRate,
    Options,
    StepOptions,
    StepResult,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Muon"]
#: How far a step goes for a matrix of so many rows and columns, times `lr`.
ADJUSTMENTS: Mapping[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


class Muon(Optimizer):
    r"""Muon: momentum for matrices, whose steps are as long in every direction.

    ```
    m = m + (1 - momentum) (g - m)
    u = g + momentum (m - g)  if nesterov else  m
    X = u / max(|u|, eps)                       |u|: the L2 norm over all elements
    ns_steps times:  G = X X^T,  X = a X + (b G + c G G) X
    w = (1 - lr weight_decay) w - lr s X        s = sqrt(max(1, rows / columns))
    ```

    The iteration, Newton's and Schulz's with other coefficients, brings singular values of `u`
    above `0.002 |u|` to between 0.68 and 1.21. `a, b, c` are the `ns_coefficients`; where there are
    more rows than columns, the products are `G = X^T X` and `X (b G + c G G)`. All is computed in
    the dtype of the parameter, where PyTorch iterates in bfloat16. Vectors, embeddings and the last
    layer are commonly left to another rule, such as `AdamW`, as an optimizer of their own.

    The products are those of NumPy, whose last bits depend on its BLAS: on the build, the processor
    and BLAS's threads. All else has the same bits everywhere. `flush_denormals` does not reach the
    products. NaN or infinity in a gradient spreads over its matrix. Beside the state `m`, which is
    as large as `params`, there is as much again for `u`, and for the largest matrix once more its
    size and twice its shorter side squared; none of that is saved.

    Args:
        params: as in `Optimizer`, each of two dimensions.
        weight_decay: at least 0, default 0.1.
        momentum: in [0, 1), default 0.95.
        nesterov: look ahead. Default True.
        ns_coefficients: the three numbers a, b and c, default (3.4445, -4.775, 2.0315).
        eps: above 0, default 1e-7.
        ns_steps: a whole number from 0 to 99, default 5.
        adjust_lr_fn: "original", which is `s` above, or "match_rms_adamw", for steps as long as
            those of `AdamW`: s = 0.2 sqrt(max(rows, columns)). None (default) for "original".

    Raises:
        ValueError: a parameter that has not two dimensions.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> w = np.zeros((2, 2))
        >>> gs.Muon(w, lr=1.0).step(np.array([[100.0, 0.0], [0.0, -1.0]]))
        >>> w.round(1)
        array([[-0.7,  0. ],
               [ 0. ,  0.7]])

    References:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024; Liu et al.,
        Muon is scalable for LLM training, 2025, section 2.2 ("match_rms_adamw").
    """

    rules = ("muon", "muon_direction")

    momentum = Number()
    nesterov = Flag()
    ns_coefficients = Setting[tuple[float, float, float]]()
    eps = Setting[float]()
    ns_steps = Setting[int]()
    adjust_lr_fn = Setting[str | None]()

    def __init__(
        self,
        params: Arrays,
        lr: LearningRate = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            "muon",
            lr=lr,
            hyper={"momentum": momentum, "nesterov": float(check.flag("nesterov", nesterov))},
            weight_decay=weight_decay,
            settings={
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
            },
            **options,
        )
        # They hold nothing from step to step, and so are no part of the state.
        self._directions = self._states.arrays.pop("o")
        self._scratch = _scratch(self._params)
        self._direction_plan = self._plan_class(
            "muon_direction",
            self._directions,
            [self._states["m"]],
            ["params", "grads", self._state_label("m")],
            self._structure.suffixes,
            **self._flags,
        )

    def step(self, grads: Arrays, **options: Unpack[StepOptions]) -> StepResult | None:
        scalars = self._scalars(self.t, self._next_lr())
        return self._apply(grads, GradTransform.checked(**options), scalars)

    def _run(
        self,
        grads: Sequence[Any],
        transform: GradTransform,
        scalars: Scalars,
        second_grads: Sequence[Array] | None,
        norm: float | None,
    ) -> Report | None:
        # The directions are formed beside parameters and states, which change in one call, the
        # last: whatever raises or interrupts before it has changed nothing.
        with self._alone():
            grads = self._plan.check_grads(grads, transform.zero_grad)
            self._direction_plan.t = scalars.t
            report = self._form(
                self._directions, self._direction_plan, self._scratch, grads, transform, scalars
            )
            if report is not None and report[2]:  # skipped
                return report
            return self._plan.step(grads, transform, scalars, acquired=True)

    def _uses(self, name: str) -> bool:
        return super()._uses(name) or name in CORE_RULES["muon_direction"].hyperparameters

    def directions(self, grads: Sequence[Array], means: Sequence[Array]) -> list[Array]:
        """What a step would move along, as new arrays, if `m` were these arrays.

        For those who keep parameters and states themselves.
        """
        directions = [np.empty_like(mean) for mean in means]
        nouns, suffixes = ["directions", "grads", "means"], [f"[{i}]" for i in range(len(means))]
        plan = self._plan_class("muon_direction", directions, [means], nouns, suffixes)
        scratch = _scratch(directions)
        self._form(
            directions, plan, scratch, grads, GradTransform(), self._scalars(0, self._next_lr())
        )
        return directions

    def _form(
        self,
        directions: Sequence[Array],
        plan: Plan,
        scratch: Sequence[Sequence[Array]],
        grads: Sequence[Any],
        transform: GradTransform,
        scalars: Scalars,
    ) -> Report | None:
        """Fill directions, which a plan makes of gradients, unless the step is skipped."""
        hyper = {**self._hyper, "lr": scalars.hyper[0]}
        values = [hyper[name] for name in CORE_RULES["muon_direction"].hyperparameters]
        report = plan.step(
            grads,
            transform._replace(zero_grad=False),
            scalars._replace(hyper=values, weight_decay=0.0),
        )
        if report is None or not report[2]:
            with np.errstate(all="ignore"):
                for direction, room in zip(directions, scratch, strict=True):
                    self._orthogonalize(direction, *room)
        return report

    def _orthogonalize(self, x: Array, product: Array, gram: Array, square: Array) -> None:
        """In place, and `reference.orthogonalized` to the last bit."""
        if x.size == 0:
            return
        settings, (rows, columns) = self._settings, x.shape
        a, b, c = settings["ns_coefficients"]
        # In float64, because float32 may not hold the norm.
        norm = max(_core.norm(x), settings["eps"])
        np.divide(x, norm, out=x, dtype=np.float64, casting="same_kind")
        for _ in range(settings["ns_steps"]):
            short = x if rows <= columns else x.T
            np.matmul(short, short.T, out=gram)
            np.matmul(gram, gram, out=square)
            gram *= b
            square *= c
            gram += square
            np.matmul(*((gram, x) if rows <= columns else (x, gram)), out=product)
            x *= a
            x += product
        x *= ADJUSTMENTS[settings["adjust_lr_fn"] or "original"](rows, columns)

    def _add_states(self) -> None:
        for label, param in zip(self._labels("params"), self._params, strict=True):
            check_matrix(label, param.shape)
        super()._add_states()

    def _checked_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        coefficients = check.triple("ns_coefficients", settings["ns_coefficients"])
        with np.errstate(all="ignore"):
            for dtype in dict.fromkeys(param.dtype for param in self._params):
                for i, x in enumerate(coefficients):
                    if not np.isfinite(dtype.type(x)):
                        raise ValueError(f"ns_coefficients[{i}] must be finite in {dtype}, got {x}")
        adjust_lr_fn = settings["adjust_lr_fn"]
        if adjust_lr_fn is not None:
            check.choice("adjust_lr_fn", adjust_lr_fn, ADJUSTMENTS)
        return {
            **super()._checked_settings(settings),
            "ns_coefficients": coefficients,
            "eps": check.positive("eps", settings["eps"]),
            "ns_steps": check.integer("ns_steps", settings["ns_steps"], 0, 99),
            "adjust_lr_fn": adjust_lr_fn,
        }


def check_matrix(label: str, shape: tuple[int, ...]) -> None:
    """Raise unless a parameter is a matrix."""
    if len(shape) != 2:
        raise ValueError(
            f"{label} must have two dimensions, got shape {shape}: leave it to another rule, "
            "such as AdamW"
        )


def _scratch(params: Sequence[Array]) -> list[list[Array]]:
    """Beside each matrix, one of its shape and two as large as its shorter side squared.

    They share one piece of memory, because one matrix is made orthogonal after another.
    """
    sides = [min(param.shape) for param in params]
    sizes = [p.size + 2 * side**2 for p, side in zip(params, sides, strict=True)]
    room = np.empty(max(sizes), np.float64 if any(p.itemsize == 8 for p in params) else np.float32)
    scratch = []
    for param, side, size in zip(params, sides, sizes, strict=True):
        parts = np.split(room.view(param.dtype)[:size], [param.size, param.size + side**2])
        shapes = (param.shape, (side, side), (side, side))
        scratch.append([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])
    return scratch
