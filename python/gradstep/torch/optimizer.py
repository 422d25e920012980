"""What the classes for PyTorch have in common."""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, product, repeat, zip_longest
from typing import Any, ClassVar

import torch

from .. import _core, optimizers
from .._engine.formats import blocks_shape, fill_blocks, state_format
from .._engine.memory import zeros_beside
from .settings import (
    COUNTED_IN_DOUBLE,
    DECOUPLED,
    HELD,
    REFUSED,
    STATE_NAMES,
    UNCOUNTED,
    _check_numbers,
    _given,
    _in_torch,
    _is_constant,
    _is_number,
    _Settings,
    _value,
)
from .tensors import (
    IN_8_BITS,
    NARROW,
    _as_axes,
    _axes,
    _from_blocks,
    _in_numpy,
    _is_dense,
    _is_in_blocks,
    _numpy_dtype,
    _relaid,
    _state_dtype,
    _to_blocks,
)


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
        names = [str(dtype).removeprefix("torch.") for dtype in (state_dtype, param.dtype) if dtype]
        option = names[0] if state_dtype else None
        unsigned = state in self._never_negative
        name = state_format(option, names[-1], param.numel(), unsigned)
        return getattr(torch, name)

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
