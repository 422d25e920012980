"""What the options of a parameter group come to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from .. import _core, optimizers
from .._engine import checks as check
from ..optimizers import averaging, base, sparse
from ..optimizers.averaging import asgd_rate
from .tensors import _state_dtype

#: The classes that need no more than gradients, dense or sparse, and do not keep them.
CLASSES = {
    cls.__name__: cls
    for cls in base.CLASSES
    if (not cls.step_needs or issubclass(cls, sparse.RowSparse))
    and all(base.CORE_RULES[rule].row_state is None for rule in cls.rules)
}
#: The rules by which a row rests where its gradient is 0, so that a sparse one is as good.
RESTING = ("sgd", "adagrad")
#: What PyTorch calls the states of the classes that it has too.
STATE_NAMES: Mapping[str, Mapping[str, str]] = {
    "SGD": {"b": "momentum_buffer"},
    "Adagrad": {"m": "exp_avg", "s": "sum"},
    "RMSprop": {"v": "square_avg", "q": "grad_avg", "b": "momentum_buffer"},
    "Adam": {"m": "exp_avg", "v": "exp_avg_sq", "u": "max_exp_avg_sq"},
    "Adamax": {"m": "exp_avg", "u": "exp_inf"},
    "NAdam": {"m": "exp_avg", "v": "exp_avg_sq"},
    "RAdam": {"m": "exp_avg", "v": "exp_avg_sq"},
    "Adadelta": {"v": "square_avg", "a": "acc_delta"},
    "Muon": {"m": "momentum_buffer"},
    "SparseAdagrad": {"s": "sum"},
}
STATE_NAMES = {**STATE_NAMES, "AdamW": STATE_NAMES["Adam"], "SparseAdam": STATE_NAMES["Adam"]}
#: What PyTorch calls a class, where the names differ.
CLASS_NAMES = {"SparseAdagrad": "Adagrad"}
#: The classes that do not count steps in PyTorch. The first of SGD is the one without a buffer.
UNCOUNTED = ("SGD", "Muon")
#: PyTorch's SparseAdam counts in numbers of Python, and forms their powers in double.
COUNTED_IN_DOUBLE = ("SparseAdam",)
#: What says how numbers are held, of which a checkpoint of PyTorch's does not speak.
HELD = ("state_dtype", "rounding", "rounding_seed")
#: What PyTorch's classes can be asked for and these cannot, and why.
REFUSED = {
    "foreach": "a step is one pass over all tensors as it is",
    "capturable": "CUDA graphs do not capture steps on the CPU",
    "differentiable": "autograd does not see what a step does",
}
#: PyTorch's AdamW is an Adam with `decoupled_weight_decay`.
DECOUPLED: Mapping[Any, type[optimizers.Optimizer]] = {optimizers.Adam: optimizers.AdamW}


class _ASGD(averaging.ASGD):
    """As PyTorch's, each step forms what the next one uses: a new `lr` counts one step later."""

    progress = MappingProxyType({"eta": 0.0, "mu": 1.0})

    def _advance(
        self, t: int, lr: float, progress: list[float]
    ) -> tuple[Mapping[str, float], list[float]]:
        eta, _ = progress if t > 0 else (lr, 1.0)
        hyper, after = self._hyper, t + 1
        next_eta = asgd_rate(lr, hyper["lambd"], hyper["alpha"], after + 1)
        # The decay of the rate is in eta: with alpha = 0, the rule adds none.
        return {"lr": eta, "alpha": 0.0}, [next_eta, 1 / max(1.0, after - hyper["t0"])]


#: What stands for a class of `gradstep` where PyTorch's goes another way.
AS_IN_TORCH: Mapping[Any, type[optimizers.Optimizer]] = {averaging.ASGD: _ASGD}


def _value(option: Any) -> Any:
    """A number, or a tuple of some, where PyTorch also takes tensors, arrays and lists of them."""
    if type(option) in (float, bool, int, str):  # nearly always
        return option
    if isinstance(option, (torch.Tensor, np.ndarray, np.generic)):
        option = option.item() if math.prod(option.shape) == 1 else option.tolist()
    return tuple(map(_value, option)) if isinstance(option, (tuple, list)) else option


def _is_constant(option: Any) -> bool:
    """Whether an option is the same as long as it is the same object."""
    if type(option) is tuple:
        return all(map(_is_constant, option))
    return option is None or type(option) in (float, bool, int, str, torch.dtype)


def _given(option: Any) -> Any:
    """An option as parameter groups keep it: arrays as tuples, so that checkpoints hold numbers."""
    several = isinstance(option, (torch.Tensor, np.ndarray)) and math.prod(option.shape) != 1
    return _value(option) if several else option


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, int)) and not isinstance(value, bool)


def _check_numbers(name: str, value: Any, default: Any) -> None:
    """Raise unless an option is of numbers where its default is."""
    if isinstance(default, tuple):
        numbers = check.several(name, value, len(default))
        for i, (x, usual) in enumerate(zip(numbers, default, strict=True)):
            if x is not usual:
                check.number(f"{name}[{i}]", x)
    elif name == "lr" or _is_number(default):
        check.number(name, value)


class _Settings:
    """What the options of a parameter group come to. The classes of `gradstep` know."""

    #: What the group had when these were formed or looked at last, if nothing of it can change.
    given: Sequence[Any]
    #: Of it, what only PyTorch's classes take.
    others: Sequence[Any]

    def __init__(
        self,
        cls: type[optimizers.Optimizer],
        options: Mapping[str, Any],
        names: Mapping[str, str],
        counts: bool,
    ) -> None:
        self.key = {name: value for name, value in options.items() if name != "lr"}
        # NumPy may not know of bfloat16.
        options = {name: value for name, value in options.items() if name != "state_dtype"}
        # One element of each type, so that every option is checked in both.
        both = [np.zeros((1, 1), np.float32), np.zeros((1, 1))]
        self._opt: Any = AS_IN_TORCH.get(cls, cls)(both, **options)
        self._rule = base.CORE_RULES[self._opt.rule]
        kept = {state: array for state, (_, array) in self._opt.state.items()}
        #: The states by their names here, with what they start from.
        self.starts = {
            names.get(state, state): float(array.flat[0]) if array.size else 0.0
            for state, array in kept.items()
        }
        self._states = dict(zip(self.starts, kept, strict=True))
        self.progress = self._opt.progress
        self.counts = counts and "step" not in self.starts
        by_rows = isinstance(self._opt, sparse.RowSparse)
        self._native_rule = _core.TensorRule(
            self._opt.rule,
            list(self.starts),
            self.counts,
            list(self.progress),
            dense=not by_rows,
            sparse=by_rows or self._opt.rule in RESTING,
        )
        #: The dtype of states; None: that of their parameter.
        self.state_dtype = _state_dtype(self.key["state_dtype"])
        if self.state_dtype:
            base.check_elementwise(cls, "have a state_dtype")
        self._rounding = self.key["rounding"] == "stochastic", self.key["rounding_seed"]
        self._form = self._formed if self._rule.gradients else None
        self.lr = None

    def follow(self, options: Mapping[str, Any]) -> bool:
        """Take over numbers that have changed. False where more may depend on them."""
        changed = [name for name, before in self.key.items() if options[name] != before]
        if not changed:
            return True
        hyper: dict[str, Any] = {}
        for name in changed:
            before, value = self.key[name], options[name]
            names, befores, values = [name], (before,), (value,)
            if name == "betas" and isinstance(value, tuple) and len(value) == len(before):
                names = [f"beta{i}" for i, _ in enumerate(value, 1)]
                befores, values = before, value
            # 0 may stand for another rule.
            usual = all(_is_number(x) and x for x in (*befores, *values))
            if not (usual and self._opt._hyper.keys() >= set(names)):
                return False
            hyper |= zip(names, values, strict=True)
        self._opt._hyper = self._opt._checked({**self._opt._hyper, **hyper})
        self.key = {name: options[name] for name in self.key}
        self.lr = None
        return True

    def native(self, params: list[torch.Tensor], lr: Any, place: int) -> tuple[Any, ...]:
        """The group as the native step takes it. `place` is that of its first parameter."""
        if self.lr != lr or self.lr is None:
            self._opt.lr = self.lr = lr
            self._scalars = None if self.progress else self._scalars_at(0, {})
        rounding = (*self._rounding, place)
        return (params, self._native_rule, self._scalars or self._advance, self._form, rounding)

    def _scalars_at(self, t: int, late: Mapping[str, float]) -> tuple[list[float], float, bool]:
        _, hyper, weight_decay, maximize, _ = self._opt._scalars(t, self._opt.current_lr, late=late)
        return hyper, weight_decay, maximize

    def _advance(self, t: int, progress: list[float]) -> tuple[Any, list[float]]:
        """The scalars of the next step of a parameter, and its progress then."""
        late, after = self._opt._advance(t, self._opt.current_lr, progress)
        return self._scalars_at(t, self._opt._checked(late)), after

    def shapes(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Those of the states that there are beside a parameter of this shape."""
        return {
            name: self._rule.state_shape(state, shape)
            for name, state in self._states.items()
            if self._rule.has_state(state, len(shape))
        }

    def _formed(
        self, grads: list[torch.Tensor], states: list[Mapping[str, Any]]
    ) -> list[torch.Tensor]:
        """What parameters move along, where that is not formed by the native step."""
        (mean,) = self._states
        arrays = [grad.detach().numpy() for grad in grads]
        directions = self._opt.directions(arrays, [state[mean].numpy() for state in states])
        return [torch.from_numpy(direction) for direction in directions]

    def move_points(self, points: list[tuple[Any, Any]], to_mean: bool) -> None:
        """As the schedule-free rules do."""
        self._opt._move_points(points, to_mean)


def _in_torch(name: str) -> type[torch.optim.Optimizer] | None:
    """PyTorch's class for a class of `gradstep`, where it has one."""
    return getattr(torch.optim, CLASS_NAMES.get(name, name), None)
