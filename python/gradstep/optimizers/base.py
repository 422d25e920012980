"""The base class of all optimizers. It knows no rule."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import _core
from .._engine import checks as check
from .._engine import files, windows
from .._engine.memory import zeros_beside
from .._engine.structure import Structure
from ..reference.storage import (
    TOP,
    blocks_shape,
    fill_blocks,
    from_blocks,
    joined,
    split,
    to_blocks,
)
from .options import (
    Arrays,
    LearningRate,
    Report,
    Scalars,
    StepResult,
    Treatment,
    _spell_out_options,
)

Array = NDArray[Any]
CORE_RULES: Mapping[str, _core.Rule] = {rule.name: rule for rule in _core.rules()}
#: Every optimizer class of the package, in the order of definition: each adds itself.
CLASSES: list[type[Optimizer]] = []
#: States that are no rule's: the parameters in float32, and what these lack in bfloat16.
MASTER, LOW_BITS = "master", "low_bits"
BESIDE_STATES: Mapping[str, np.dtype[Any]] = {
    MASTER: np.dtype(np.float32),
    LOW_BITS: np.dtype(np.uint16),
}
#: The settings of those optimizers alone that round.
_ROUNDING = frozenset({"rounding", "rounding_seed"})


class Loaded(NamedTuple):
    """A state that fits an optimizer, for it to copy."""

    t: int
    hyper: dict[str, Any]
    settings: dict[str, Any]
    #: Each array of the optimizer, and one of its dtype and shape.
    pairs: list[tuple[Array, Array]]


class Optimizer:
    """The base class: what all rules have in common.

    Every rule takes these arguments beside its own:

    Args:
        params: the array to update in place, or a flat list, tuple or dict of arrays. Each is
            float32 or float64, or for most rules bfloat16 or float16 (with arithmetic in float32),
            C-contiguous and writeable, and none overlaps another. An array is
            one of NumPy, or whatever else shows memory of the CPU by DLPack or as a buffer, such as
            a tensor of PyTorch or an `array.array`; it is held as long as the optimizer lives.
        lr: the learning rate, at least 0; or a schedule, which is a function of the step (from 0).
        weight_decay: at least 0, default 0. Joins the gradient as `g + weight_decay * w`, unless
            the class says that it shrinks the parameter, or that there is none.
        maximize: climb instead of descending. Default False.
        skip_nonfinite: take no step where a gradient, times `grad_scale`, holds NaN or infinity:
            nothing changes then, not even `t`, and the `StepResult` says so. Costs a pass over the
            gradients. Default False.
        flush_denormals: count numbers below 1.2e-38 (float32) or 2.2e-308 (float64) as 0 inside the
            step, where they are slow on some processors. The bits are still the same for any
            threads and level, but those of NumPy no more. Default False.
        state_dtype: how the states are held: "float32", "bfloat16" (with ml_dtypes installed),
            "float16", or "int8": blocks of 256 numbers in 8 bits, see `reference.to_blocks`, but
            float32 for parameters of fewer than 4,096 elements. None (default) for the dtype of
            each parameter. A parameter of float64 takes float32 at the least. Not for rules with
            norms, factors, tables or rows. What it costs in accuracy and time is in
            `docs/storage.md`.
        rounding: how what is updated becomes 16 or 8 bits: "stochastic" (default), one of the two
            neighbours by a chance that makes the mean right, or "nearest", with which small steps
            are lost.
        rounding_seed: what the chances begin with, from 0 on, default 0. They depend on it, on
            `t` and on the place of an element alone.
        state_dir: a directory for the states, where they are larger than memory: each is a new file
            of NumPy's format there. Parameters and gradients may be in files too, `np.memmap`.
            Steps then go window by window, and the memory of what is done is given back; the bits
            are the same. For rules that work element by element. `load` and `load_state_dict` need
            memory for what they read, `eval`, `settle` and the like for what they decode. Default
            None: in memory.
        copy_to: arrays of bfloat16 or float16 in the structure and shapes of `params`, which are
            float32: a model to compute with, written at once and in every step, to the nearest.
            For rules that work element by element. Default None.
        master: parameters in 16 bits stay the nearest numbers to masters in float32, to which
            the steps are added: True keeps these as a state "master"; "split", of bfloat16, keeps
            what is missing to them, a state "low_bits" of 16 bits, for as exact steps with less
            memory. States are float32 then, if `state_dtype` does not say otherwise. For rules that
            work element by element. Default False.

    Raises:
        TypeError: an argument of the wrong type, an array of the wrong dtype.
        ValueError: a hyper-parameter out of its range, an array that cannot be updated in place.
        OSError: `state_dir` is no directory, holds such states already, or has no room for them.
    """

    #: The native rules that this class chooses from.
    rules: ClassVar[tuple[str, ...]] = ()
    #: What `step` needs beside the gradients, for those who know no more than gradients.
    step_needs: ClassVar[str] = ""
    #: Numbers beside the states and `t` that each step moves on, with what they begin with.
    progress: ClassVar[Mapping[str, float]] = MappingProxyType({})
    #: The norm of all gradients, where a step has a part of them; `gradstep.mpi` sets it.
    _grad_norm: float | None = None
    #: The learning rate of the next step, where it is known already; `gradstep.mpi` sets it.
    _told_lr: float | None = None
    #: The learning rate of the last step.
    _last_lr: float = 0.0
    #: Where the only parameter is a part of a vector, its place there; `gradstep.mpi` sets it.
    _first_element: int = 0
    #: What carries the steps out; `reference.in_numpy` exchanges it.
    _plan_class: ClassVar[Callable[..., _core.Plan]] = _core.Plan

    def __init_subclass__(cls) -> None:
        # Classes of users may mean something else by **options.
        if cls.__module__.startswith(f"{__package__}."):
            for name in {"__init__", "step"} & vars(cls).keys():
                _spell_out_options(vars(cls)[name], like=getattr(Optimizer, name))
            if "rules" in vars(cls):
                CLASSES.append(cls)

    def __init__(
        self,
        params: Arrays,
        rule: str,
        *,
        lr: LearningRate,
        weight_decay: float,
        hyper: Mapping[str, float] = MappingProxyType({}),
        settings: Mapping[str, Any] = MappingProxyType({}),
        maximize: bool = False,
        skip_nonfinite: bool = False,
        flush_denormals: bool = False,
        state_dtype: DTypeLike | None = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
        state_dir: files.PathLike | None = None,
        copy_to: Arrays | None = None,
        master: bool | str = False,
        **unknown: Any,
    ) -> None:
        if not self.rules:
            raise TypeError(
                "Optimizer is the base class of the rules: use one of them, such as SGD"
            )
        if unknown:
            raise TypeError(f"{type(self).__name__}() has no argument {next(iter(unknown))!r}")
        self._structure = Structure(params, "params")
        self._given = list(self._structure.arrays(params, "params"))
        self._is_single = params is self._given[0]
        self._params = self._structure.views(params, "params")
        _core.check_params(self._params, "params", self._structure.suffixes)
        self._rule = CORE_RULES[rule]
        self._hyper_names = self._rule.hyperparameters  # which the binding makes anew at each call
        self._state_dtype = self._checked_state_dtype(state_dtype)
        self._master = self._checked_master(master, copy_to)
        held = [] if self._master else [param.dtype for param in self._params]
        held += [self._state_dtype] if self._state_dtype else []
        rounded = any(dtype.itemsize < 4 for dtype in held)
        how = check_rounding(rounding, rounding_seed)
        self._settings = self._checked_settings(
            {"maximize": maximize, **(how if rounded else {}), **settings}
        )
        self._habits = {
            "skip_nonfinite": check.flag("skip_nonfinite", skip_nonfinite),
            "flush_denormals": check.flag("flush_denormals", flush_denormals),
        }
        self._hyper = self._checked({"lr": lr, **hyper, "weight_decay": weight_decay})
        self._scalars_kept = False  # whether those of the last step are good for the next one
        self._progress = np.array([*self.progress.values()])
        self._state_dir: Path | None = None
        make_plan = self._plan_class
        if state_dir is not None:
            check_elementwise(type(self), "have a state_dir")
            self._state_dir = windows.checked_directory(state_dir)
            make_plan = partial(windows.WindowedPlan, self._plan_class)  # type: ignore[assignment]
        #: What steps update, if it is in one place, and what they copy it to.
        self._updated, self._copies = self._params, []
        if copy_to is not None:
            self._copies = self._structure.views(copy_to, "copy_to")
        self._states = self._new_states()
        with self._no_file_left():
            kinds = list(dict.fromkeys([*self._rule.states, *self._states]))
            nouns = ["params", "grads", *map(self._noun, kinds)]
            beside: dict[str, Any] = {}
            if self._master == "split":
                self._states |= self._zeros([LOW_BITS])
                beside["low_bits"] = self._states[LOW_BITS]
            elif self._master:
                self._states |= self._zeros([MASTER])
                self._updated, self._copies = self._states[MASTER], self._params
                for whole, param in zip(self._updated, self._params, strict=True):
                    np.copyto(whole, param)
            if self._copies:
                nouns.append("params" if self._master else "copy_to")
                beside["copies"] = self._copies
            self._plan = make_plan(
                rule,
                self._updated,
                [self._states.get(kind, []) for kind in kinds],
                nouns,
                self._structure.suffixes,
                **self._habits,
                **self._plan_options(),
                **beside,
            )
        self._write_copies()
        self._tell_rounding()

    def step(
        self,
        grads: Arrays,
        *,
        grad_scale: float = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
    ) -> StepResult | None:
        """Update the parameters and states once, in place.

        The gradients are scaled, clipped, used and cleared in the same pass over memory; only
        their norm takes a pass before it.

        ```
        g = grad_scale g
        g = g min(1, clip_norm / norm)      norm: the L2 norm over all gradients together
        g = min(max(g, -clip_value), clip_value)
        ```

        The norm is summed in an order that depends on the sizes of the arrays alone, in float64,
        so that clipping has the same bits for any number of threads and any instruction set.

        Args:
            grads: the gradients, in the structure and shapes of `params`, of any library, and of
                any dtype that is not wider than the arithmetic. They are only read, unless
                `zero_grad`, and so may be read-only.
            grad_scale: above 0, default 1: undoes the scale of a loss, or makes a sum a mean.
            clip_norm: the largest norm, above 0; None (default) does not clip, infinity only
                measures.
            clip_value: the largest magnitude of an element, above 0; None (default) for any.
            zero_grad: fill the gradients with 0 afterwards. A skipped step leaves them as they are.
                Default False.

        Returns:
            What was found out about the gradients where `clip_norm` or `skip_nonfinite` had them
            looked at, otherwise None.

        Raises:
            TypeError, ValueError: an argument or array that does not fit, by name; with
                `clip_norm` and without `skip_nonfinite`, a gradient that holds NaN or infinity, or
                has a norm beyond float64. Nothing has changed then.

        Example:
            >>> import numpy as np, gradstep as gs
            >>> w, g = np.zeros(2), np.array([6.0, 8.0])
            >>> gs.SGD(w, lr=1.0).step(g, grad_scale=0.5, clip_norm=1.0, zero_grad=True)
            StepResult(grad_norm=5.0, clipped=True, skipped=False)
            >>> w, g
            (array([-0.6, -0.8]), array([0., 0.]))

        References:
            Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks,
            2013, algorithm 1 (clipping by the norm).
        """
        plain = clip_norm is None and clip_value is None and zero_grad is False
        if plain and self._scalars_kept and type(grad_scale) is float and grad_scale == 1.0:
            # Nearly every step. It costs a third less than the way below.
            arrays = (grads,) if self._is_single else self._structure.arrays(grads, "grads")
            report = self._plan.step(arrays)
            return None if report is None else StepResult(*report)
        # Before the schedule runs: one that sets `lr` takes it back.
        self._scalars_kept = not (callable(self.lr) or self.progress)
        try:
            t = self.t
            late: Mapping[str, float] = {}
            if self.progress:
                late, progress = self._advance(t, self._progress.tolist())
            result = self._step(
                grads,
                self._scalars(t, 0, **late),
                grad_scale=grad_scale,
                clip_norm=clip_norm,
                clip_value=clip_value,
                zero_grad=zero_grad,
            )
        except BaseException:
            self._scalars_kept = False
            raise
        if self.progress and (result is None or not result.skipped):
            self._progress[:] = progress
        return result

    def _step(
        self,
        grads: Arrays,
        scalars: Scalars,
        second_grads: Sequence[Array] | None = None,
        *,
        grad_scale: float = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
    ) -> StepResult | None:
        treatment = (
            check.number("grad_scale", grad_scale),
            None if clip_norm is None else check.number("clip_norm", clip_norm),
            None if clip_value is None else check.number("clip_value", clip_value),
            check.flag("zero_grad", zero_grad),
        )
        arrays = self._structure.arrays(grads, "grads")
        report = self._run(arrays, treatment, scalars, second_grads)
        return None if report is None else StepResult(*report)

    def _advance(self, t: int, progress: list[float]) -> tuple[Mapping[str, float], list[float]]:
        """What `progress` comes to; only where there is some.

        Args:
            t: the steps so far.
            progress: the numbers of that name, before the next step.

        Returns:
            The hyper-parameters that are known only now, and the numbers after the step.
        """
        raise NotImplementedError

    def _next_lr(self) -> float:
        """The learning rate of the step that has begun: a schedule is asked once per step."""
        self._last_lr = self.current_lr if self._told_lr is None else self._told_lr
        return self._last_lr

    def _run(
        self,
        grads: Sequence[Any],
        treatment: Treatment,
        scalars: Scalars,
        second_grads: Sequence[Array] | None,
    ) -> Report | None:
        """Carry a step out, or raise and change nothing."""
        return self._plan.step(grads, treatment, scalars, second_grads, norm=self._grad_norm)

    def _scalars(self, t: int, row: int = 0, **late: float) -> Scalars:
        """What the native step takes beside arrays.

        Args:
            t: the steps so far. The native step refuses if another thread has taken one since.
            row: the row to update, where a state has rows.
            late: hyper-parameters that are known only now.
        """
        hyper = {**self._hyper, **late}
        if "lr" not in late:
            hyper["lr"] = self._next_lr()
        values = [hyper[name] for name in self._hyper_names]
        return t, values, hyper["weight_decay"], self._settings["maximize"], row

    @property
    def params(self) -> Arrays:
        """The parameters, in the structure in which they were given."""
        return self._structure.build(self._given)

    @property
    def state(self) -> dict[str, Arrays]:
        """The live states by name, each in the structure of `params`."""
        return {name: self._structure.build(arrays) for name, arrays in self._states.items()}

    @property
    def rule(self) -> str:
        """The name of the native rule, as `gradstep.functional` and `gradstep info` use it."""
        return self._rule.name

    @property
    def t(self) -> int:
        """The number of steps taken."""
        return self._plan.t

    @property
    def lr(self) -> LearningRate:
        """The learning rate or schedule. It may be set between steps."""
        return self._hyper["lr"]  # type: ignore[no-any-return]

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        hyper = {**self._hyper, **self._checked({"lr": lr})}
        self._hyper, self._scalars_kept = hyper, False

    @property
    def current_lr(self) -> float:
        """The learning rate that the next step uses."""
        lr = self.lr
        return check.number("lr", lr(self.t)) if callable(lr) else lr

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyper-parameters by name; `lr` is None where it is a schedule."""
        lr = None if callable(self.lr) else self.lr
        return {**self._hyper, "lr": lr, **self._settings}

    def __repr__(self) -> str:
        habits: dict[str, Any] = {name: True for name, on in self._habits.items() if on}
        if self._state_dtype:
            habits["state_dtype"] = self._state_dtype.name
        if self._master:
            habits["master"] = self._master
        if self._state_dir is not None:
            habits["state_dir"] = os.fspath(self._state_dir)
        shown = {**self.hyperparameters, "lr": self.lr, **habits, **self._sizes()}
        arguments = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        size = sum(param.size for param in self._params)
        return f"<{type(self).__name__} ({self.rule}) of {size} at t={self.t}: {arguments}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled, because its parameters are yours: "
            "make another one and give it state_dict(), or use save() and load()"
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that a resumed run needs, except the parameters and a schedule.

        How steps are taken, `skip_nonfinite` and `flush_denormals`, is not part of it either.

        Returns:
            A dict of `rule`, `t`, `hyperparameters`, `state` (by name, in the structure of
            `params`) and `counters` (what has a shape of its own).
        """
        with self._alone():
            return {
                **self._meta(),
                "state": {
                    name: self._structure.build([array.copy() for array in arrays])
                    for name, arrays in self._states.items()
                },
                "counters": {name: array.copy() for name, array in self._counters().items()},
            }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, convert: bool = False) -> None:
        """Go on where `state_dict()` was taken. Everything in it is copied, hyper-parameters too.

        With `master=True` the parameters then follow their masters; with "split" they must be those
        of that moment.

        Args:
            state_dict: what `state_dict()` returned.
            convert: take states of another dtype too, rounded to the nearest. Default False.

        Raises:
            TypeError, ValueError: not such a dict, or one of another rule, shape or dtype; a
                schedule in the place of a number, or the reverse. Nothing has changed then.
        """
        _check_keys("state_dict", state_dict, [*self._meta(), "state", "counters"])
        state, counters = state_dict["state"], state_dict["counters"]
        _check_keys("state", state, self._states, free=BESIDE_STATES if convert else ())
        _check_keys("counters", counters, self._counters())
        sources: dict[str, Array] = {}
        for name, tree in state.items():
            arrays = self._structure.arrays(tree, f"state {name}")
            sources |= zip(self._labels(f"state {name}"), arrays, strict=True)
        for label, array in sources.items():
            self._plan.check_apart(array, label)
        sources |= {f"counter {name}": array for name, array in counters.items()}
        loaded = self._checked_load(state_dict, sources, with_params=False, convert=convert)
        with self._alone():
            self._put(loaded)

    def save(self, path: files.PathLike) -> None:
        """Write parameters, states, step count and hyper-parameters to one file, without pickle.

        The file is replaced in one move: a process killed while saving leaves the old one whole.

        Args:
            path: the file. Its format is NumPy's `.npz`, with an array per parameter and state.

        Raises:
            OSError: the file cannot be written.
        """
        with self._alone():
            meta = {**self._meta(), "params": self._structure.kind}
            files.write(path, meta, self._named_arrays(with_params=True))

    def load(self, path: files.PathLike, *, convert: bool = False) -> None:
        """Read what `save()` wrote. Parameters and states are overwritten in place.

        Args:
            path: the file.
            convert: take arrays of another dtype too, rounded to the nearest. Default False.

        Raises:
            OSError: the file cannot be read.
            ValueError: not a gradstep file, a damaged one, or one of another rule, structure, shape
                or dtype. Nothing has changed then.
        """
        meta, arrays = files.read(path)
        try:
            _check_keys("the header", meta, ["format", *self._meta(), "params"])
            if meta["params"] != self._structure.kind:
                raise ValueError(
                    f"its params are {meta['params']}, here they are {self._structure.kind}"
                )
            loaded = self._checked_load(meta, arrays, with_params=True, convert=convert)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not fit: {error}") from error
        with self._alone():
            self._put(loaded)

    def _meta(self) -> dict[str, Any]:
        """What is not an array."""
        return {"rule": self.rule, "t": self.t, "hyperparameters": self.hyperparameters}

    @np.errstate(all="ignore")  # a conversion may underflow, and a signalling NaN is a number too
    def _checked_load(
        self,
        meta: Mapping[str, Any],
        sources: Mapping[str, Array],
        with_params: bool,
        convert: bool,
    ) -> Loaded:
        """Check and convert everything. Nothing changes, and nothing can fail afterwards."""
        self._check_rule(meta)
        check.flag("convert", convert)
        hyper = check.mapping("hyperparameters", meta["hyperparameters"])
        if convert:  # what is rounded here may not have been so there, and the reverse
            rounding = {name: self._settings[name] for name in _ROUNDING & self._settings.keys()}
            hyper = {name: hyper[name] for name in hyper if name not in _ROUNDING} | rounding
        _check_keys("hyperparameters", hyper, self.hyperparameters)
        if (hyper["lr"] is None) != callable(self.lr):
            raise ValueError(
                f"lr is {hyper['lr']!r} in the state (None: a schedule) and {self.lr!r} here; make "
                "the optimizer with the same kind, and set opt.lr after loading to change it"
            )
        lr = self.lr if hyper["lr"] is None else check.number("lr", hyper["lr"])
        numbers = {name: value for name, value in hyper.items() if name in self._hyper}
        checked = self._checked({**numbers, "lr": lr})
        settings = self._checked_settings({name: hyper[name] for name in self._settings})
        t = check.integer("t", meta["t"], 0)
        targets = self._named_arrays(with_params)
        for label, source in sources.items():
            check.array(label, source)
        if convert:
            sources = self._converted(self._with_masters(sources, targets), targets)
        _check_keys("the state", sources, targets)
        pairs = []
        for label, target in targets.items():
            source = sources[label]
            check.array_like(label, source, target, convert)
            pairs.append((target, source.astype(target.dtype, copy=False)))
        self._check_counters({name: sources[f"counter {name}"] for name in self._counters()})
        return Loaded(t, checked, settings, pairs)

    def _check_rule(self, meta: Mapping[str, Any]) -> None:
        if not isinstance(meta["rule"], str) or meta["rule"] != self.rule:
            raise ValueError(
                f"the state is of the rule {meta['rule']!r}, this optimizer's is {self.rule!r}"
            )

    @np.errstate(all="ignore")
    def _put(self, loaded: Loaded) -> None:
        """Copy everything, inside of `_alone()`."""
        for target, source in loaded.pairs:
            np.copyto(target, source)
        self._hyper, self._settings, self._scalars_kept = loaded.hyper, loaded.settings, False
        self._tell_rounding()
        self._plan.t = loaded.t
        self._write_copies()
        self._restored()

    def _converted(
        self, sources: Mapping[str, Array], targets: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The sources, in 8 bits where their targets are, and not where they are not."""
        converted = dict(sources)
        for name in self._states:
            labels = self._labels(f"state {name}")
            for label, param in zip(labels, self._params, strict=True):
                source, target = sources.get(label, param), targets[label]
                held = source.dtype.name in TOP and source.shape == blocks_shape(param.size)
                if target.dtype.name in TOP:
                    if check.is_float(source.dtype) and source.shape == param.shape:
                        if target.dtype == np.uint8 and (source < 0).any():
                            raise ValueError(f"{label} holds negative numbers")
                        converted[label] = to_blocks(source.astype(np.float32), target.dtype)
                elif held and target.shape == param.shape:
                    converted[label] = from_blocks(source, param.size).reshape(target.shape)
        return converted

    def _with_masters(
        self, sources: Mapping[str, Array], targets: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The sources, with masters or without, whole or split, as their targets are."""
        converted = dict(sources)
        for suffix, param in zip(self._structure.suffixes, self._params, strict=True):
            own = f"params{suffix}"
            master, low = (f"state {name}{suffix}" for name in (MASTER, LOW_BITS))
            given = sources.get(own, param)
            exact = converted.pop(master, given)
            bits = converted.pop(low, None)
            for label, x in ((own, given), (master, exact)):
                check.array_like(label, x, param, convert=True)
            if bits is not None and given.dtype.name == "bfloat16":
                check.array_like(low, bits, np.empty(param.shape, BESIDE_STATES[LOW_BITS]))
                exact = joined(given, bits)
            single = exact.astype(np.float32)
            if master in targets:
                converted[master] = single
            elif low in targets:
                high, converted[low] = split(single)
                given = high.view(param.dtype)
            elif param.dtype.itemsize >= 4:
                given = exact
            if own in sources:
                converted[own] = given
        return converted

    def _labels(self, noun: str) -> list[str]:
        return [noun + suffix for suffix in self._structure.suffixes]

    def _named_arrays(self, with_params: bool) -> dict[str, Array]:
        """Every array by the name that messages and files have for it."""
        named = dict(zip(self._labels("params"), self._params, strict=True)) if with_params else {}
        for name, arrays in self._states.items():
            named |= zip(self._labels(f"state {name}"), arrays, strict=True)
        return named | {f"counter {name}": array for name, array in self._counters().items()}

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep steps of other threads out, after a check that every array can be written."""
        self._plan.acquire()
        try:
            self._plan.check()
            yield
        finally:
            self._plan.release()

    def _new_states(self) -> dict[str, list[Array]]:
        """The states by name: those of the rule, and what else is saved with them."""
        return self._zeros(self._rule.states)

    def _zeros(self, names: Sequence[str], rows: int | None = None) -> dict[str, list[Array]]:
        """States of zeros; the one that has rows, if the rule has such a one, with so many."""
        leading = {self._rule.row_state: () if rows is None else (rows,)}

        default: np.dtype[Any] | None = BESIDE_STATES[MASTER] if self._master else None

        def form(name: str, param: Array) -> tuple[tuple[int, ...], np.dtype[Any]]:
            if name not in self._rule.states:
                return param.shape, BESIDE_STATES.get(name, param.dtype)
            shape = (*leading.get(name, ()), *self._rule.state_shape(name, param.shape))
            dtype = self._state_dtype or default or param.dtype
            if dtype != np.int8:
                return shape, dtype
            if param.size < check.LEAST_IN_8_BITS:
                return shape, np.dtype(np.float32)
            never_negative = name in self._rule.never_negative
            return blocks_shape(param.size), np.dtype(np.uint8 if never_negative else np.int8)

        forms = [[form(name, param) for param in self._params] for name in names]
        shapes = [[shape for shape, _ in kind] for kind in forms]
        dtypes = [[dtype for _, dtype in kind] for kind in forms]
        if self._state_dir is None:
            arrays = zeros_beside(self._params, shapes, dtypes)
        else:
            arrays = windows.zeros(self._state_dir, names, shapes, dtypes)
        return dict(zip(names, arrays, strict=True))

    @contextlib.contextmanager
    def _no_file_left(self) -> Iterator[None]:
        """Where the optimizer is refused after all, remove the files of its states."""
        try:
            yield
        except BaseException:
            if self._state_dir is not None:
                windows.remove(self._states)
            raise

    def _begin_with(self, state: str, start: float, argument: str) -> None:
        """Fill a state with what an argument says."""
        with self._no_file_left():
            self._fill(state, start, argument)

    def _fill(self, state: str, start: float, argument: str) -> None:
        for array, param in zip(self._states[state], self._params, strict=True):
            in_blocks = array.dtype.name in TOP
            with np.errstate(all="ignore"):
                number = np.array([start]).astype(np.float32 if in_blocks else array.dtype)
            if in_blocks:
                number = from_blocks(to_blocks(number, array.dtype), 1)
            if float(number[0]) == np.inf:
                raise ValueError(f"{argument} is {start}, which {array.dtype} cannot hold")
            if start == 0:  # zeros are not touched before the first step
                continue
            if in_blocks:
                fill_blocks(array, start, param.size)
            else:
                array.fill(start)

    def _numbers(self, state: str) -> Iterator[Array]:
        """Those of a state beside each parameter: itself, or what 8 bits hold."""
        for array, param in zip(self._states[state], self._params, strict=True):
            held = array.dtype.name in TOP
            yield from_blocks(array, param.size).reshape(param.shape) if held else array

    def _noun(self, state: str) -> str:
        """What messages call a state."""
        return f"state {state}"

    def _plan_options(self) -> dict[str, Any]:
        """What the plan needs to know beside arrays."""
        return {}

    def _counters(self) -> dict[str, Array]:
        """Arrays that belong to the state but are not one per parameter."""
        return {}

    def _check_counters(self, counters: Mapping[str, Array]) -> None:
        """Raise unless these can take the place of `_counters()`, whose dtypes and shapes fit."""

    def _restored(self) -> None:
        """Called when a state has been loaded, for what follows from it."""

    def _sizes(self) -> dict[str, int | None]:
        """Arguments that show in the shapes of the states, or in nothing."""
        return {}

    def _arrays(self) -> list[Array]:
        """Every array that a step may write to."""
        copies = [] if self._copies is self._params else self._copies
        return [*self._named_arrays(with_params=True).values(), *copies]

    def _checked_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters that are no numbers of the rule."""
        how = {name: settings[name] for name in settings if name in _ROUNDING}
        maximize = check.flag("maximize", settings["maximize"])
        return {"maximize": maximize, **(check_rounding(**how) if how else {})}

    def _checked_state_dtype(self, given: DTypeLike | None) -> np.dtype[Any] | None:
        if given is None:
            return None
        check_elementwise(type(self), "have a state_dtype")
        dtype = check.state_dtype("state_dtype", given)
        if dtype == np.int8:
            for label, param in zip(self._labels("params"), self._params, strict=True):
                if param.dtype == np.float64:
                    raise TypeError(f"{label} is float64, which takes no states in 8 bits (int8)")
        return dtype

    def _checked_master(self, master: Any, copy_to: Arrays | None) -> bool | str:
        if copy_to is not None:
            check_elementwise(type(self), "have a copy_to")
        if not isinstance(master, (bool, np.bool_)) and not (
            isinstance(master, str) and master == "split"
        ):
            raise ValueError(f"master must be True, False or 'split', got {master!r}")
        if not master:
            return False
        check_elementwise(type(self), "have masters")
        if copy_to is not None:
            raise ValueError(f"copy_to must be None with master={master!r}: params are the copy")
        known = ("bfloat16",) if master == "split" else ("bfloat16", "float16")
        for label, param in zip(self._labels("params"), self._params, strict=True):
            if param.dtype.name not in known:
                raise TypeError(
                    f"{label} must have dtype {' or '.join(known)} with master={master!r}, "
                    f"got {param.dtype}"
                )
        return master if isinstance(master, str) else True

    def _write_copies(self) -> None:
        for copy, updated in zip(self._copies, self._updated, strict=bool(self._copies)):
            with np.errstate(all="ignore"):
                np.copyto(copy, updated, casting="unsafe")

    def _whole(self) -> Sequence[Array]:
        """The parameters as steps update them."""
        if self._master != "split":
            return self._updated
        halves = zip(self._params, self._states[LOW_BITS], strict=True)
        return [joined(high, low) for high, low in halves]

    @contextlib.contextmanager
    def _points(self) -> Iterator[Sequence[Array]]:
        """The same, to be moved under no error state; then all that holds them follows."""
        whole = self._whole()
        with np.errstate(all="ignore"):
            yield whole
        if self._master == "split":
            for x, param, low in zip(whole, self._params, self._states[LOW_BITS], strict=True):
                param.view(np.uint16)[...], low[...] = split(x)
        self._write_copies()

    def _tell_rounding(self) -> None:
        if "rounding" in self._settings:
            stochastic = self._settings["rounding"] == "stochastic"
            seed, first = self._settings["rounding_seed"], self._first_element
            self._plan.set_rounding(stochastic, seed, first=first)

    def _checked(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters as numbers in their ranges. A schedule is checked at each step."""
        single = any(param.dtype != np.float64 for param in self._params)
        checked = dict(hyper)
        for name, value in hyper.items():
            if not (name == "lr" and callable(value)):
                checked[name] = check.number(name, value)
                _owner(self.rules, name).check_hyper(name, checked[name], single)
        return checked


def check_rounding(rounding: Any, rounding_seed: Any) -> dict[str, Any]:
    """How what is updated becomes bfloat16 or float16."""
    return {
        "rounding": check.choice("rounding", rounding, check.ROUNDINGS),
        "rounding_seed": check.integer("rounding_seed", rounding_seed, 0),
    }


def check_elementwise(cls: type[Optimizer], what: str) -> None:
    """Raise unless an element of a parameter moves by what its own gradient and states are.

    Args:
        cls: the class.
        what: what it cannot otherwise.
    """
    rules = [CORE_RULES[name] for name in cls.rules]
    if any(rule.has_trust for rule in rules):
        why = "its steps depend on norms of whole arrays"
    elif any(rule.row_state for rule in rules):
        why = "it keeps a table of gradients"
    elif cls.step_needs:
        why = f"its step needs {cls.step_needs}"
    elif any(rule.factors or rule.gradients for rule in rules):
        why = "its steps are of whole matrices"
    else:
        return
    raise TypeError(f"{cls.__name__} cannot {what}, because {why}")


def _owner(rules: Sequence[str], hyper: str) -> _core.Rule:
    """The first of a class's rules that has this hyper-parameter, for its range."""
    named = (CORE_RULES[rule] for rule in rules)
    return next(rule for rule in named if hyper in (*rule.hyperparameters, "weight_decay"))


def _check_keys(noun: str, given: Any, wanted: Iterable[str], free: Container[str] = ()) -> None:
    """A mapping with these keys and no others, but for those that may be there or not."""
    check.mapping(noun, given)
    missing = [key for key in wanted if key not in given and key not in free]
    unknown = [key for key in given if key not in set(wanted) and key not in free]
    if missing or unknown:
        raise ValueError(f"{noun} does not fit: missing {missing}, unknown {unknown}")
