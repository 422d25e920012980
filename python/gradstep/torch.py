"""The rules as optimizers of PyTorch, for tensors in the memory of the CPU.

Each class is a `torch.optim.Optimizer` that takes the place of PyTorch's own: the same arguments,
defaults, parameter groups, hooks and `state_dict()`, so that a checkpoint of one goes on in the
other. A step is one native call for all tensors of all groups, however many, and has the bits of
the class of the same name in `gradstep`. The rules that PyTorch does not have are there too.

A step either fits as a whole or changes nothing: a tensor that cannot be updated is refused by name
before any other has moved. Parameters may have their axes in any order in memory. A gradient in
another order is copied into that of its parameter first; states follow when that order changes.

`SparseAdam` and `SparseAdagrad` take sparse gradients, such as those of an embedding, and move the
rows that these have; so do `SGD` and `Adagrad`, where they keep no running mean and shrink nothing.
A parameter with a sparse gradient is contiguous, and so is a matrix of `Adafactor` or `Muon`.
`Muon` iterates in the dtype of the parameter, PyTorch's in bfloat16.

Tensors are of float32 or float64. Rules without norms, factors or rows also take bfloat16 and
float16, computed in float32: parameters, gradients, and states, whose dtype is that of the
parameter unless `state_dtype` (a dtype of PyTorch or its name) is another one. `"int8"` stands for
8 bits: blocks in the order of the parameter's memory, as `gradstep.reference.to_blocks` has them,
of torch.uint8 where a state is never negative; beside fewer than 4,096 elements, states are
float32. What is updated is rounded by chance (`rounding`, `rounding_seed`), so that small steps are
not lost; the chances depend on the place of a parameter among all of the optimizer.

Example:
    >>> import torch, gradstep.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> opt = gradstep.torch.Adam(model.parameters(), lr=0.1)
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> opt.step()
    >>> opt.state[model.bias]["step"]
    tensor(1.)
"""

from __future__ import annotations

import copy
import gc
import inspect
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, product, repeat, zip_longest
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from . import _checks as check
from . import _core, averaging, optimizers, orthogonal, sparse
from ._memory import zeros_beside
from .optimizers import CORE_RULES
from .reference import asgd_rate, blocks_shape, fill_blocks, from_blocks, to_blocks

try:
    import torch
except ImportError as error:
    raise ImportError('gradstep.torch needs PyTorch: pip install "gradstep[torch]"') from error
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(
        "gradstep.torch needs a PyTorch whose tensors have the exchange API of DLPack 1.3; "
        f"PyTorch {torch.__version__} does not: pip install -U torch"
    )

#: The classes that need no more than gradients, dense or sparse, and do not keep them.
CLASSES = {
    cls.__name__: cls
    for cls in optimizers.CLASSES
    if (not cls.step_needs or issubclass(cls, sparse.RowSparse))
    and all(CORE_RULES[rule].row_state is None for rule in cls.rules)
}

#: The rules by which a row rests where its gradient is 0, so that a sparse one is as good.
RESTING = ("sgd", "adagrad")

__all__ = [*CLASSES, "BackwardSteps", "step_in_backward"]

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

#: What steps take, by name.
DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in check.FLOATS}
#: What states may be held in; int8 stands for both of the next two.
STATE_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in check.STATES}
#: 8 bits are whole numbers in blocks: with a sign, and for states that are never negative.
IN_8_BITS = (torch.int8, torch.uint8)
#: Those that are rounded to by chance. Steps are counted there by every rule: chances differ.
NARROW = frozenset({torch.bfloat16, torch.float16, *IN_8_BITS})

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

    def _advance(self, t: int, progress: list[float]) -> tuple[Mapping[str, float], list[float]]:
        eta, _ = progress if t > 0 else (self.current_lr, 1.0)
        hyper, after = self._hyper, t + 1
        next_eta = asgd_rate(self.current_lr, hyper["lambd"], hyper["alpha"], after + 1)
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


def _relaid(param: torch.Tensor, other: torch.Tensor, axes: Any = None) -> torch.Tensor:
    """A copy of a tensor, laid out in memory as a parameter is. `axes`: those beside 8 bits."""
    if axes is not None:
        return _to_blocks(_from_blocks(other, param, axes), param, other.dtype)
    return torch.empty_like(param.detach(), dtype=other.dtype).copy_(other.detach())


def _in_numpy(tensor: torch.Tensor) -> Any:
    """Its memory. NumPy may not know of bfloat16, and is shown whole numbers."""
    tensor = tensor.detach()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """That of the arrays in which such numbers are held."""
    held: np.dtype[Any] = _in_numpy(torch.empty(0, dtype=dtype)).dtype
    return held


def _state_dtype(value: Any) -> torch.dtype | None:
    """The option of that name, as a dtype of PyTorch."""
    dtype = value if isinstance(value, torch.dtype) else STATE_DTYPES.get(str(value))
    if value is not None and dtype not in STATE_DTYPES.values():
        raise TypeError(
            f"state_dtype must be one of {', '.join(STATE_DTYPES)}, or None, got {value!r}"
        )
    return dtype


def _axes(param: torch.Tensor) -> tuple[tuple[int, int], ...]:
    """The axes of more than one element, with their sizes, from the outermost in memory on.

    It stands beside states in 8 bits, which do not show for which elements their numbers are.
    """
    axes = [axis for axis, size in enumerate(param.shape) if size > 1]
    axes.sort(key=param.stride, reverse=True)
    return tuple((axis, param.shape[axis]) for axis in axes)


def _as_axes(saved: Any) -> tuple[tuple[int, int], ...]:
    """Those of a checkpoint: a table, or tuples or lists of pairs. None where it is neither."""
    try:
        pairs = saved.tolist() if isinstance(saved, torch.Tensor) else saved
        return tuple((int(axis), int(size)) for axis, size in pairs)
    except (TypeError, ValueError):
        return ()


def _is_in_blocks(value: Any, param: torch.Tensor, axes: Any) -> bool:
    """Whether it has a number for each element of a parameter, in 8 bits."""
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in IN_8_BITS
        and value.shape == blocks_shape(param.numel())
        and sorted(axes) == sorted(_axes(param))
    )


def _to_blocks(value: torch.Tensor, param: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A state beside a parameter in 8 bits: the nearest, in the order of the parameter's memory."""
    in_order = _relaid(param, value.to(torch.float32)).as_strided((param.numel(),), (1,))
    return torch.from_numpy(to_blocks(in_order.numpy(), _numpy_dtype(dtype)))


def _from_blocks(held: torch.Tensor, param: torch.Tensor, axes: Any) -> torch.Tensor:
    """The float32 numbers of a state in 8 bits."""
    in_order = from_blocks(held.numpy(), param.numel()).reshape([size for _, size in axes])
    numbers = in_order.transpose(np.argsort([axis for axis, _ in axes]))
    return torch.from_numpy(numbers.reshape(param.shape))


def _is_dense(param: torch.Tensor) -> bool:
    """Whether the elements fill a range of memory, so that others can be laid out as they are."""
    return (
        (param.device.type, param.layout) == ("cpu", torch.strided)
        and param.dtype in DTYPES.values()
        and not _core.lacks_memory(param)
        and torch.empty_like(param, device="meta").stride() == param.stride()
    )


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
        self._rule = CORE_RULES[self._opt.rule]
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
            optimizers.check_elementwise(cls, "have a state_dtype")
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
        self._opt._hyper |= self._opt._checked(hyper)
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
        _, hyper, weight_decay, maximize, _ = self._opt._scalars(t, 0, **late)
        return hyper, weight_decay, maximize

    def _advance(self, t: int, progress: list[float]) -> tuple[Any, list[float]]:
        """The scalars of the next step of a parameter, and its progress then."""
        late, after = self._opt._advance(t, progress)
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


class Optimizer(torch.optim.Optimizer):
    """What the classes here have in common. Make one of them, such as `Adam`."""

    _class: ClassVar[type[optimizers.Optimizer]]
    #: The options that the class of `gradstep` takes, those among them that PyTorch's does not
    #: take, and those that only PyTorch's takes, with their defaults.
    _options: ClassVar[tuple[str, ...]]
    #: The names of all but `lr`: those of `_options` first.
    _watched: ClassVar[tuple[str, ...]]
    _progress: ClassVar[tuple[str, ...]]
    _own: ClassVar[tuple[str, ...]]
    _others: ClassVar[Mapping[str, Any]]
    _never_negative: ClassVar[frozenset[str]]
    #: What PyTorch's class has among its defaults beside its arguments.
    _fixed: ClassVar[Mapping[str, Any]]
    _signature: ClassVar[inspect.Signature]

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        others = {k: v for k, v in kwargs.items() if self._fixed.get(k) is not v}
        bound = self._signature.bind(params, *args, **others)
        bound.apply_defaults()
        _, *given = bound.arguments.items()
        options = {name: value if name == "lr" else _given(value) for name, value in given}
        for name, value in options.items():
            if name == "lr" and isinstance(value, torch.Tensor):
                continue  # PyTorch says how many elements it may have
            _check_numbers(name, _value(value), self._signature.parameters[name].default)
        # Defaults are for the groups alone: hosts make PyTorch's class of what stands here.
        self._own_defaults = {
            name: options[name]
            for name in self._own
            if _value(options[name]) != self._signature.parameters[name].default
        }
        if _in_torch(self._class.__name__) is None:
            super().__init__(params, options)
        else:
            shared = {name: value for name, value in options.items() if name not in self._own}
            super().__init__(params, **shared)
        # With fused=True, PyTorch's classes have it undone in the step; a scaler does it otherwise.
        self.__dict__.pop("_step_supports_amp_scaling", None)
        self.state.clear()  # PyTorch's Adagrad makes its states at once; here a step does

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.defaults.update(self.__dict__.pop("_own_defaults", {}))
        if isinstance(param_group, dict):  # of the caller, whom PyTorch's additions do not concern
            given = {name: _given(param_group[name]) for name in param_group.keys() - {"params"}}
            param_group = {**param_group, **given}
        super().add_param_group(param_group)
        for name in self._own:
            self.param_groups[-1].setdefault(name, self._signature.parameters[name].default)
        index = len(self.param_groups) - 1
        try:
            self._native_group(index)
            self._check_starts(index)
        except BaseException:
            del self.param_groups[-1]
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, or raise and change nothing.

        Args:
            closure: evaluates the model again and returns the loss. Default None.

        Returns:
            What the closure returns.

        Raises:
            ValueError: a hyper-parameter out of its range; a parameter, gradient or state that is
                no dense tensor in the memory of the CPU of a dtype that the rule takes, by name,
                unless it is a sparse gradient, with one sparse dimension, of a rule for rows.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._steps().step(self, [self._native_group(*its) for its in enumerate(self._places())])
        return loss

    def _places(self) -> list[int]:
        """Where the parameters of each group begin among all."""
        sizes = [len(group["params"]) for group in self.param_groups]
        return list(accumulate(sizes, initial=0))[:-1]

    def _step_one(self, group: int, place: int, param: torch.Tensor) -> None:
        self._opt_called = True  # PyTorch's schedulers ask for it
        _, *settings = self._native_group(group, place)
        self._steps().step(self, [([param], *settings)])

    def _steps(self) -> _core.TensorSteps:
        """What carries the steps out. It is no part of a copy or a pickle."""
        steps: _core.TensorSteps | None = self.__dict__.get("_native_steps")
        if steps is None:
            increment_version = torch.autograd.graph.increment_version
            steps = self._native_steps = _core.TensorSteps(_relaid, _as_axes, increment_version)
        return steps

    def _settings(self, index: int) -> _Settings:
        group = self.param_groups[index]
        given = [group.get(name) for name in self._watched]
        known: dict[int, _Settings] = self.__dict__.setdefault("_known_settings", {})
        found = known.get(index)
        if found is not None and all(map(operator.is_, given, found.given)):
            return found
        options = {name: _value(group[name]) for name in self._options}
        others = given[len(self._options) - 1 :]
        if found is None or found.others != others or not found.follow(options):
            cls = self._class
            if group.get("decoupled_weight_decay"):
                cls = DECOUPLED.get(cls, cls)
            for name, default in self._others.items():
                if group.get(name) not in (None, False, default):
                    reason = REFUSED.get(name, f"gradstep.{cls.__name__} has no such option")
                    raise ValueError(f"{name} must be {default!r}, got {group[name]!r}: {reason}")
            names = STATE_NAMES.get(cls.__name__, {})
            self._check_fits_8_bits(group["params"], options["state_dtype"])
            found = known[index] = _Settings(cls, options, names, cls.__name__ not in UNCOUNTED)
            found.others = others
        found.given = given if all(map(_is_constant, given)) else [object() for _ in given]
        return found

    def _check_fits_8_bits(self, params: Iterable[torch.Tensor], state_dtype: Any) -> None:
        if _state_dtype(state_dtype) != torch.int8:
            return
        for param in params:
            if param.dtype == torch.float64:
                raise TypeError(
                    f"state_dtype is int8, which {self._name(param)} of float64 does not take"
                )

    def _check_starts(self, index: int) -> None:
        settings = self._settings(index)
        starts = {name: start for name, start in settings.starts.items() if start}
        for name, param in product(starts, self.param_groups[index]["params"]):
            dtype = self._dtype_of(name, param, settings.state_dtype)
            if dtype.is_floating_point and starts[name] > torch.finfo(dtype).max:
                raise ValueError(f"{name} begins with {starts[name]}, which {dtype} cannot hold")

    def _native_group(self, index: int, place: int = 0) -> tuple[Any, ...]:
        group = self.param_groups[index]
        return self._settings(index).native(group["params"], _value(group["lr"]), place)

    def _all_states(self) -> dict[torch.Tensor, dict[str, Any]]:
        """New states of all parameters that can have some; a step refuses the others."""
        pairs = [
            (g, param)
            for g, group in enumerate(self.param_groups)
            for param in group["params"]
            if _is_dense(param)
        ]
        params = [param for _, param in pairs]
        return dict(zip(params, self._made([g for g, _ in pairs], params), strict=True))

    def _prepare(self) -> None:
        """Make all states now, for parameters that come one by one.

        They lie in one piece then. Made one by one, small ones would take room that large gradients
        have left, and the next gradient would not fit there.
        """
        self._prepared = self._all_states()

    def _new_states(
        self, indices: Sequence[int], params: Sequence[torch.Tensor]
    ) -> list[dict[str, Any]]:
        """The states of parameters that have none, whose groups have these indices."""
        prepared = self.__dict__.get("_prepared", {})
        found = [prepared.pop(param, {}) for param in params]
        fits = [
            state and state.keys() >= self._settings(index).shapes(param.shape).keys()
            for state, index, param in zip(found, indices, params, strict=True)
        ]
        return found if all(fits) else self._made(indices, params)

    def _made(self, indices: Sequence[int], params: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """New states, which lie beside one another, as those of the classes of `gradstep` do."""
        settings = [self._settings(index) for index in indices]
        forms = [self._forms(one, param) for one, param in zip(settings, params, strict=True)]
        none = (0,), torch.float32
        kinds = list(zip_longest(*[its.values() for its in forms], fillvalue=none))
        shapes = [[shape for shape, _ in kind] for kind in kinds]
        dtypes = [[_numpy_dtype(dtype) for _, dtype in kind] for kind in kinds]
        rooms = zeros_beside([_in_numpy(p) for p in params], shapes, dtypes)
        states = []
        for one, param, its, *arrays in zip(settings, params, forms, *rooms, strict=True):
            narrow = NARROW.intersection([param.dtype, *(dtype for _, dtype in its.values())])
            state: dict[str, Any] = {"step": self._count(0.0)} if one.counts or narrow else {}
            if not narrow.isdisjoint(IN_8_BITS):
                state["axes"] = _axes(param)
            state |= one.progress
            for (name, (shape, dtype)), array in zip(its.items(), arrays, strict=False):
                tensor = torch.from_numpy(array).view(dtype)
                start = one.starts[name]
                if start and dtype in IN_8_BITS:
                    fill_blocks(array, start, param.numel())
                elif start:
                    tensor.fill_(start)
                is_like = shape == param.shape
                state[name] = tensor.as_strided(param.shape, param.stride()) if is_like else tensor
            states.append(state)
        return states

    def _forms(
        self, settings: _Settings, param: torch.Tensor
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shape and the dtype of each state that there is beside a parameter."""
        forms = {}
        for name, shape in settings.shapes(param.shape).items():
            dtype = self._dtype_of(name, param, settings.state_dtype)
            forms[name] = blocks_shape(param.numel()) if dtype in IN_8_BITS else shape, dtype
        return forms

    def _dtype_of(
        self, state: str, param: torch.Tensor, state_dtype: torch.dtype | None
    ) -> torch.dtype:
        """What a state beside a parameter has, where the option is `state_dtype`."""
        if state_dtype != torch.int8:
            return state_dtype or param.dtype
        if param.numel() < check.LEAST_IN_8_BITS:
            return torch.float32
        return torch.uint8 if state in self._never_negative else torch.int8

    @classmethod
    def _count(cls, value: float) -> torch.Tensor:
        """A number of steps, as PyTorch keeps it."""
        in_double = torch.get_default_dtype() == torch.float64
        in_double |= cls._class.__name__ in COUNTED_IN_DOUBLE
        return torch.tensor(value, dtype=torch.float64 if in_double else torch.float32)

    def _name(self, param: torch.Tensor, among_all: int | None = None) -> str:
        """What messages call a parameter, the one at a place among all if it is there twice."""
        for g, (group, first) in enumerate(zip(self.param_groups, self._places(), strict=True)):
            for i, other in enumerate(group["params"]):
                if other is param and among_all in (None, first + i):
                    place = "" if len(self.param_groups) == 1 else f"param_groups[{g}] "
                    names = group.get("param_names")
                    name = f"{names[i]!r}, " if names else ""
                    return f"{place}params[{i}] ({name}shape {tuple(param.shape)})"
        return f"a tensor of shape {tuple(param.shape)}"

    def state_dict(self) -> dict[str, Any]:
        """As PyTorch's, of tensors, numbers and strings, which distributed checkpoints take."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            if isinstance(group["state_dtype"], torch.dtype):
                group["state_dtype"] = str(group["state_dtype"]).removeprefix("torch.")
        for key, state in saved["state"].items():
            if "axes" in state:
                table = torch.tensor(state["axes"], dtype=torch.int64).reshape(-1, 2)
                saved["state"][key] = {**state, "axes": table}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where `state_dict()` was taken, of this class or of PyTorch's, or change nothing.

        The options of the groups come with it; where it is of PyTorch's, `state_dtype`, `rounding`
        and `rounding_seed` stay. States are copied, and become of that dtype, or of their
        parameter's. Those in 8 bits stay what they are, unless the axes of their parameter lie in
        another order. Where the optimizer and the checkpoint have names of the parameters
        (`named_parameters()`), these tell which state is whose.

        Raises:
            TypeError, ValueError: options, names, states, shapes or counts are not those of this
                class and these parameters, or states would be in 8 bits beside a parameter of
                float64, or lose a sign.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = pre_hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        groups: Any = state_dict.get("param_groups")
        states: Any = state_dict.get("state")
        is_whole = isinstance(states, Mapping) and isinstance(groups, (list, tuple))
        if not (is_whole and all(isinstance(g, Mapping) and "params" in g for g in groups)):
            raise ValueError(
                "the state dict must have a dict 'state' and a list 'param_groups' of dicts with "
                f"'params', got {list(state_dict)}"
            )
        # All is made and checked in a twin, and taken over when nothing can be wrong any more.
        twin = object.__new__(type(self))
        twin.__dict__ |= self.__dict__ | {"state": defaultdict(dict), "_known_settings": {}}
        ids = self._ids(groups)
        twin.param_groups = [self._loaded(g, new) for g, new in enumerate(groups)]
        twin._load_states(ids, states)
        self.__setstate__({"state": twin.state, "param_groups": twin.param_groups})
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _ids(self, groups: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """What stands for each parameter here in the groups of a checkpoint."""
        sizes = [[len(its["params"]) for its in these] for these in (self.param_groups, groups)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                "the state dict must have as many parameters in each group as the optimizer, "
                f"{sizes[0]}, got {sizes[1]}"
            )
        ids = [list(group["params"]) for group in groups]
        ours = [(group.get("param_names") or ()) for group in self.param_groups]
        # PyTorch's distributed checkpoints have names for ids, and the order of the optimizer.
        theirs = [
            its if all(isinstance(one, str) for one in its) else (group.get("param_names") or ())
            for its, group in zip(ids, groups, strict=True)
        ]
        if set(chain(*ours)).isdisjoint(chain(*theirs)):
            return ids
        for g, (wanted, found) in enumerate(zip(ours, theirs, strict=True)):
            if sorted(wanted) != sorted(found):
                raise ValueError(
                    f"param_groups[{g}] of the state dict must have the parameters {wanted}, "
                    f"got {found}: load them in groups of the same names, or without names"
                )
            ids[g] = [ids[g][found.index(name)] for name in wanted]
        return ids

    def _loaded(self, g: int, saved: Mapping[str, Any]) -> dict[str, Any]:
        """A group of a checkpoint, with the parameters of the group here."""
        missing = [
            name
            for name, parameter in self._signature.parameters.items()
            if name not in {*saved, *self._own, *HELD, *REFUSED}
            and not (parameter.default is None or parameter.default is False)
        ]
        if missing:
            raise ValueError(
                f"the state dict is not of {type(self).__name__}: its param_groups[{g}] has no "
                f"{missing[0]!r}, only {list(saved)}"
            )
        here = self.param_groups[g]
        group = copy.deepcopy({name: saved[name] for name in saved if name != "params"})
        group |= {name: here[name] for name in ("params", "param_names") if name in here}
        self._complete(group, here)
        return group

    def _complete(self, group: dict[str, Any], before: Mapping[str, Any]) -> None:
        """Give a group the options that checkpoints of PyTorch's, and old ones, do not have."""
        for name, parameter in self._signature.parameters.items():
            if name in HELD:
                group.setdefault(name, before.get(name, parameter.default))
            elif name in self._own or parameter.default is None or parameter.default is False:
                group.setdefault(name, parameter.default)
            if name in REFUSED:  # how PyTorch's class stepped is no part of where it was
                group[name] = parameter.default
        group |= self._fixed

    def _load_states(self, ids: Sequence[Sequence[Any]], saved: Mapping[Any, Any]) -> None:
        """Take copies of the states of a checkpoint that have these ids, which must fit."""
        places, params, found = [], [], []
        for g, group in enumerate(self.param_groups):
            Optimizer._native_group(self, g)  # checks the options
            for param, key in zip(group["params"], ids[g], strict=True):
                its = saved.get(key, {})
                if not isinstance(its, Mapping):
                    raise ValueError(f"the state of {self._name(param)} must be a dict: {its!r}")
                state = {name: value for name, value in its.items() if value is not None}
                if not state:
                    continue
                if not _is_dense(param):
                    raise ValueError(
                        f"{self._name(param)} must be a dense floating-point tensor in the memory "
                        "of the CPU to have the states of the state dict"
                    )
                places.append(g)
                params.append(param)
                found.append(state)
        for g, param, state in zip(places, params, found, strict=True):
            settings = self._settings(g)
            wanted = [*settings.shapes(param.shape), *settings.progress]
            for name in [*wanted, "step"] if settings.counts else wanted:
                if name not in state:
                    raise ValueError(
                        f"the state dict is not of {type(self).__name__}: the state of "
                        f"{self._name(param)} has no {name!r}, only {list(state)}"
                    )
        made = self._made(places, params)
        for g, param, state, new in zip(places, params, found, made, strict=True):
            self._fill(g, param, state, new)
            self.state[param] = new
        of_params = set(chain(*ids))
        self.state |= copy.deepcopy({k: v for k, v in saved.items() if k not in of_params})

    def _fill(
        self, g: int, param: torch.Tensor, saved: Mapping[str, Any], new: dict[str, Any]
    ) -> None:
        """Copy a state of a checkpoint into a new one."""
        shapes = self._settings(g).shapes(param.shape)
        axes = _as_axes(saved.get("axes"))
        for name, value in saved.items():
            of = f"the state {name!r} of {self._name(param)} in the state dict"
            if name in shapes:
                self._copy_state(name, of, param, value, axes, shapes[name], new[name])
            elif name in self._progress:
                number = _value(value)  # PyTorch has tensors of one
                if not (_is_number(number) and 0 <= number < math.inf):
                    raise ValueError(f"{of} must be a number, finite and at least 0, got {value!r}")
                new[name] = float(number)
            elif name == "step":
                new[name] = self._count_of(of, value)
            elif name != "axes":  # of options that are off now
                is_tensor = isinstance(value, torch.Tensor)
                new[name] = value.detach().clone() if is_tensor else copy.deepcopy(value)
        if "step" in new and "step" not in saved and self._class.__name__ in UNCOUNTED:
            new["step"] = self._count(1.0)  # any but the first

    def _copy_state(
        self,
        name: str,
        of: str,
        param: torch.Tensor,
        value: Any,
        axes: Any,
        shape: tuple[int, ...],
        new: torch.Tensor,
    ) -> None:
        """Copy a tensor of a checkpoint, whose axes are those beside 8 bits, into a new state."""
        unsigned = name in self._never_negative
        is_tensor = isinstance(value, torch.Tensor) and value.layout == torch.strided
        is_tensor = is_tensor and value.device.type != "meta" and not _core.lacks_memory(value)
        value = value.detach().cpu() if is_tensor else value
        if is_tensor and value.dtype == IN_8_BITS[unsigned] and _is_in_blocks(value, param, axes):
            if new.dtype == value.dtype and axes == _axes(param):
                new.copy_(value)
                return
            value = _from_blocks(value.contiguous(), param, axes)
        elif not (is_tensor and value.is_floating_point() and value.shape == shape):
            if isinstance(value, torch.Tensor):  # which may have no numbers to show
                got = f"{value.dtype} of {tuple(value.shape)}, {value.layout}, on {value.device}"
            else:
                got = repr(value)
            raise ValueError(
                f"{of} must be a dense tensor of floating-point numbers and the shape {shape}, or "
                f"torch.{'uint8' if unsigned else 'int8'} blocks of them, got {got}"
            )
        if new.dtype in IN_8_BITS:
            if unsigned and bool((value < 0).any()):
                raise ValueError(f"{of} holds negative numbers, which its 8 bits cannot")
            value = _to_blocks(value, param, new.dtype)
        new.copy_(value)

    def _count_of(self, of: str, value: Any) -> torch.Tensor:
        """A number of steps of a checkpoint, of any type that holds it."""
        is_one = isinstance(value, (int, float)) or (
            isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
        )
        count = float(value) if is_one else -1.0
        if not (0 <= count < 2**53 and count == int(count)):
            raise ValueError(f"{of} must be one whole number, at least 0, got {value!r}")
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.float64):
            return value.detach().cpu().clone()
        exact = self._count(count)
        return exact if exact == count else exact.to(torch.float64).fill_(count)

    def __setstate__(self, state: dict[str, Any]) -> None:
        groups_before = self.__dict__.get("param_groups", [])
        # Not that of PyTorch's class, which makes tensors of numbers, in float32.
        torch.optim.Optimizer.__setstate__(self, state)
        self.__dict__.pop("_known_settings", None)
        if "differentiable" not in self._signature.parameters:
            self.defaults.pop("differentiable", None)
        for group, before in zip(self.param_groups, chain(groups_before, repeat({}))):  # noqa: B905
            self._complete(group, before)
            for its in (self.state.get(param, {}) for param in group["params"]):
                if isinstance(its.get("step"), (int, float)):
                    its["step"] = self._count(its["step"])


class _ScheduleFree(Optimizer):
    """What the schedule-free rules have beside: the mean of the points.

    Like its step count, the mean of a parameter is its own: steps in which it has no gradient do
    not count in it.
    """

    def eval(self) -> None:
        """Move the parameters to the mean of the points, which is what to use."""
        self._move(to_mean=True)

    def train(self) -> None:
        """Move the parameters back to where gradients are taken."""
        self._move(to_mean=False)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        # From the start: distributed checkpoints keep the options that they find.
        self.param_groups[-1].setdefault("train_mode", True)

    def _native_group(self, index: int, place: int = 0) -> tuple[Any, ...]:
        averaging.check_training(self.param_groups[index].get("train_mode", True))
        return super()._native_group(index, place)

    def _move(self, to_mean: bool) -> None:
        moves = []
        for index, group in enumerate(self.param_groups):
            if group.get("train_mode", True) == to_mean:
                params = [p for p in group["params"] if self.state.get(p, {}).get("step", 0) > 0]
                moves.append((group, index, params, [self._points(p) for p in params]))
        for group, index, params, points in moves:
            torch.autograd.graph.increment_version(params)
            self._settings(index).move_points([(w.numpy(), z.numpy()) for w, z in points], to_mean)
            for param, (w, _) in zip(params, points, strict=True):
                if param.dtype in NARROW:
                    param.detach().copy_(w)
            group["train_mode"] = not to_mean

    def _points(self, param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A parameter and its `z` as the arithmetic has them: in place, unless they are narrow."""
        state = self.state[param]
        z, axes = state.get("z"), _as_axes(state.get("axes", ()))
        if _is_dense(param) and _is_in_blocks(z, param, axes):
            z = _from_blocks(z, param, axes)
        both = [x for x in (param, z) if isinstance(x, torch.Tensor)]
        if len(both) < 2 or param.shape != z.shape or not all(map(_is_dense, both)):
            kinds = [(x.dtype, x.device, x.shape) for x in both]
            raise ValueError(
                f"{self._name(param)} and its state 'z' must be dense floating-point tensors of "
                f"one shape with memory of the CPU, got {kinds}"
            )
        arithmetic = torch.promote_types(param.dtype, torch.float32)
        return param.detach().to(arithmetic), z.to(arithmetic)


class _Adagrad(Optimizer):
    """What Adagrad has beside."""

    def share_memory(self) -> None:
        """Share the states with other processes, as `torch.optim.Adagrad` can."""
        made = self._all_states()
        self.state.update({param: made[param] for param in made if not self.state.get(param)})
        parent: Any = super()
        parent.share_memory()


class _Muon(Optimizer):
    """What Muon has beside: no parameters but matrices."""

    def _native_group(self, index: int, place: int = 0) -> tuple[Any, ...]:
        for param in self.param_groups[index]["params"]:
            if param.ndim != 2:
                orthogonal.check_matrix(self._name(param), tuple(param.shape))
        return super()._native_group(index, place)


def _in_torch(name: str) -> type[torch.optim.Optimizer] | None:
    """PyTorch's class for a class of `gradstep`, where it has one."""
    return getattr(torch.optim, CLASS_NAMES.get(name, name), None)


def _optimizer(name: str) -> type[Optimizer]:
    """The class for PyTorch of a class of `gradstep`, with the arguments of both."""
    cls, theirs = CLASSES[name], _in_torch(name)
    own = {
        p.name: p
        for p in inspect.signature(cls).parameters.values()
        if p.name not in optimizers.Options.__annotations__.keys() - {"maximize", *HELD}
    }
    shared = dict(inspect.signature(theirs or cls).parameters)
    beside = [p for p in own if p not in shared] if theirs else []
    parameters = own
    if theirs:
        extra = {p: own[p].replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in beside}
        parameters = {**shared, **extra}
    like = f"`torch.optim.{theirs.__name__}`" if theirs else "those of `torch.optim`"
    options = tuple(p for p in own if p != "params")
    others = [p for p in shared if p not in {*own, "fused"}]
    names = STATE_NAMES.get(name, {})
    taken = {(one, "decoupled_weight_decay") for pair in DECOUPLED.items() for one in pair}
    bases = {averaging.ScheduleFree: _ScheduleFree, orthogonal.Muon: _Muon}
    bases |= {optimizers.Adagrad: _Adagrad, sparse.SparseAdagrad: _Adagrad}
    base = next((bases[one] for one in cls.__mro__ if one in bases), Optimizer)
    return type(
        name,
        (base,) if theirs is None else (base, theirs),
        {
            "__module__": __name__,
            "__doc__": f"`gradstep.{name}` for PyTorch, used like {like}. "
            f"See there, and `gradstep.{name}` for the formula.",
            "__signature__": inspect.Signature(list(parameters.values())),
            "_signature": inspect.Signature(list(parameters.values())),
            "_class": cls,
            "_options": options,
            "_watched": (*(p for p in options if p != "lr"), *others),
            "_progress": tuple(AS_IN_TORCH.get(cls, cls).progress),
            "_own": tuple(beside),
            "_fixed": {"decoupled_weight_decay": True} if cls in DECOUPLED.values() else {},
            "_never_negative": frozenset(
                names.get(state, state)
                for rule in cls.rules
                for state in CORE_RULES[rule].never_negative
            ),
            "_others": {
                name: p.default
                for name, p in shared.items()
                if name in others and (cls, name) not in taken
            },
        },
    )


def __getattr__(name: str) -> type[Optimizer]:
    if name not in CLASSES:
        raise AttributeError(f"gradstep.torch has no {name!r}; it has {__all__}")
    made = globals()[name] = _optimizer(name)
    return made


def __dir__() -> list[str]:
    return __all__


def _check_not_averaged(optimizer: Optimizer) -> bool:
    """Raise where DDP or FSDP own a parameter. False where there can be none yet.

    A parameter does not show to whom it belongs, so the owners are looked for.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    owners = (torch.nn.parallel.DistributedDataParallel, FullyShardedDataParallel, FSDPModule)
    params = {id(param) for group in optimizer.param_groups for param in group["params"]}
    for owner in gc.get_objects():
        if issubclass(type(owner), owners) and any(id(p) in params for p in owner.parameters()):
            raise ValueError(
                f"step_in_backward would step before {type(owner).__name__} has averaged the "
                "gradients, and the ranks would part: call step() of an optimizer after backward()"
            )
    return True


class BackwardSteps:
    """What `step_in_backward` has set up: an optimizer that steps while gradients are formed."""

    def __init__(self, optimizer: Optimizer) -> None:
        #: The optimizer: its `param_groups` are there for schedulers, its state for checkpoints.
        self.optimizer = optimizer
        _check_not_averaged(optimizer)
        self._is_checked = False
        optimizer._prepare()
        self._handles = [
            param.register_post_accumulate_grad_hook(self._hook(g, place))
            for g, first in enumerate(optimizer._places())
            for place, param in enumerate(optimizer.param_groups[g]["params"], first)
            if param.requires_grad
        ]

    def _hook(self, group: int, place: int) -> Callable[[torch.Tensor], None]:
        optimizer = self.optimizer

        def step_and_free(param: torch.Tensor) -> None:
            if not self._is_checked:  # a module may have been wrapped since
                self._is_checked = _check_not_averaged(optimizer)
            optimizer._step_one(group, place, param)
            param.grad = None

        return step_and_free

    def remove(self) -> None:
        """Take the hooks off: gradients stay, and `optimizer.step()` uses them again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def step_in_backward(
    model: torch.nn.Module | Iterable[Any],
    optimizer_class: Callable[..., Optimizer],
    **options: Any,
) -> BackwardSteps:
    """Update each parameter as soon as its gradient is complete, and free the gradient.

    The parameter and its gradient are still in the cache then, and no more than a few gradients
    are in memory at once. `backward()` does it all; do not call `step()`. What needs all gradients
    at once is not possible: clipping by the norm, `torch.amp.GradScaler`, and gradients accumulated
    over several calls of `backward()`. Hooks of the optimizer's `step()` do not run.

    Not for parameters of `DistributedDataParallel` or FSDP, which average gradients after this step
    would have been taken: these raise, here or in the first `backward()`.

    Args:
        model: a `torch.nn.Module`, or parameters or groups of them, as optimizers take.
        optimizer_class: a class of this module.
        options: its arguments beside the parameters.

    Returns:
        A handle: `optimizer`, for schedulers and checkpoints, and `remove()`.

    Raises:
        ValueError: DDP or FSDP own a parameter; in `backward()`, what `step()` would raise, where
            parameters whose turn came before have moved.

    Example:
        >>> import torch, gradstep.torch
        >>> model = torch.nn.Linear(3, 1)
        >>> handle = gradstep.torch.step_in_backward(model, gradstep.torch.SGD, lr=0.1)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> model.weight.grad is None
        True
        >>> handle.remove()
    """
    params: Any = model.parameters() if isinstance(model, torch.nn.Module) else model
    optimizer = optimizer_class(params, **options)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer_class must be one of gradstep.torch, got {type(optimizer).__name__}"
        )
    return BackwardSteps(optimizer)
