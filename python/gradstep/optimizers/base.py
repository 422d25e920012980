"""The base class of all optimizers. It knows no rule."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

from .. import _core, checkpoint
from .._engine import checks as check
from .._engine import files, formats, state_files
from .._engine.masters import Masters, check_params, checked_master
from .._engine.plan import UNCHANGED, GradTransform, MakePlan, Plan, Report, Scalars
from .._engine.states import States
from .._engine.structure import Structure
from .._engine.windows import WindowedPlan
from .arguments import HINTS, Fixed, Hint, Setting, hint_for, shown
from .options import Array, Arrays, LearningRate, StepOptions, StepResult, spell_out_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

CORE_RULES: Mapping[str, _core.Rule] = {rule.name: rule for rule in _core.rules()}
#: Every optimizer class of the package, in the order of definition: each adds itself.
CLASSES: list[type[Optimizer]] = []


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
        flush_denormals: treat numbers below 1.2e-38 (float32) or 2.2e-308 (float64) as 0 inside the
            step, where they are slow on some processors. Results stay bit-identical for any threads
            and instruction set, but no longer match NumPy. Default False.
        state_dtype: how states are stored: "float32", "bfloat16" (with ml_dtypes installed),
            "float16", or "int8": blocks of 256 numbers in 8 bits, see `reference.to_blocks`, but
            float32 for parameters of fewer than 4,096 elements. None (default) for the dtype of
            each parameter. A parameter of float64 takes float32 at the least. Not for rules with
            norms, factors, tables or rows. `docs/storage.md` has the cost in accuracy and time.
        rounding: how updated numbers are rounded to 16 or 8 bits: "stochastic" (default), which is
            unbiased, or "nearest", with which small updates are lost.
        rounding_seed: the seed of the random bits, from 0 on, default 0. They depend only on it, on
            `t` and on the index of an element.
        state_dir: a directory for states that are larger than memory: each is a new file of NumPy's
            format there. Parameters and gradients may be in files too, `np.memmap`. Steps then go
            window by window, and give the memory back; results are bit-identical. For element-wise
            rules. `load` and `load_state_dict` need memory for what they read, `eval`, `settle` and
            the like for what they decode. Default None: in memory.
        copy_to: arrays of bfloat16 or float16 in the structure and shapes of `params`, which are
            float32: copies of the parameters, refreshed (round-to-nearest) at construction and in
            every step. For element-wise rules. Default None.
        master: keep float32 master weights, so that 16-bit parameters are their rounded copy: True
            keeps them as a state "master"; "split", for bfloat16, keeps only the bits that the
            parameter lacks, a state "low_bits", for as exact steps with less memory. States are
            float32 then, unless `state_dtype` says otherwise. For element-wise rules. Default
            False.

    Raises:
        TypeError: an argument of the wrong type, an array of the wrong dtype.
        ValueError: a hyper-parameter out of its range, an array that cannot be updated in place.
        OSError: `state_dir` is no directory, holds such states already, or has no room for them.
    """

    #: The native rules that this class chooses from.
    rules: ClassVar[tuple[str, ...]] = ()
    #: What `step` needs in addition to the gradients, for callers that have only gradients.
    step_needs: ClassVar[str] = ""
    #: Numbers besides the states and `t` that each step updates, with their initial values.
    progress: ClassVar[Mapping[str, float]] = MappingProxyType({})
    #: Hyper-parameters that cannot be set, and why.
    _pinned: ClassVar[Mapping[str, str]] = MappingProxyType({})
    #: What carries the steps out; `reference.in_numpy` exchanges it.
    _plan_class: ClassVar[MakePlan] = _core.Plan

    maximize = Setting[bool]()
    skip_nonfinite = Fixed[bool]()
    flush_denormals = Fixed[bool]()
    state_dtype = Fixed[str | None]()
    rounding = Setting[str]()
    rounding_seed = Setting[int]()
    state_dir = Fixed[str | None]()
    master = Fixed[bool | str]()

    def __init_subclass__(cls) -> None:
        # Classes of users may mean something else by **options.
        if cls.__module__.startswith(f"{__package__}."):
            for name in {"__init__", "step"} & vars(cls).keys():
                spell_out_options(vars(cls)[name], like=getattr(Optimizer, name))
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
        fixed: Mapping[str, Any] = MappingProxyType({}),
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
        """What a class of a rule hands over.

        Args:
            rule: the native rule.
            hyper: its numbers by name, without `lr` and `weight_decay`.
            settings: other arguments that may be set between steps.
            fixed: arguments that show in the rule, in the shapes of states, or in nothing.
        """
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
        dtype = self._checked_state_dtype(state_dtype)
        kind = self._checked_master(master, copy_to)
        stored = [] if kind else [param.dtype for param in self._params]
        stored += [dtype] if dtype else []
        rounds = any(dtype.itemsize < 4 for dtype in stored)
        how = check_rounding(rounding, rounding_seed)
        self._settings = self._checked_settings(
            {"maximize": maximize, **(how if rounds else {}), **settings}
        )
        flags = {
            "skip_nonfinite": check.flag("skip_nonfinite", skip_nonfinite),
            "flush_denormals": check.flag("flush_denormals", flush_denormals),
        }
        self._flags = flags
        self._hyper = self._checked({"lr": lr, **hyper, "weight_decay": weight_decay})
        self._scalars_kept = False  # whether those of the last step are good for the next one
        self._last = LastStep()
        self._progress = np.array([*self.progress.values()])
        self._first_element = 0
        make_plan, directory = self._plan_class, None
        if state_dir is not None:
            check_elementwise(type(self), "have a state_dir")
            directory = state_files.checked_directory(state_dir)
            make_plan = partial(WindowedPlan, make_plan)
        self._fixed = {
            **fixed,
            **flags,
            "state_dtype": dtype and dtype.name,
            "state_dir": directory and os.fspath(directory),
            "master": kind,
        }
        copies = [] if copy_to is None else self._structure.views(copy_to, "copy_to")
        default = formats.EXTRA_STATES[formats.MASTER] if kind else None
        self._states = States(self._rule, self._params, dtype, default, directory)
        self._add_states()
        with self._states.removed_on_error():
            kinds = list(dict.fromkeys([*self._rule.states, *self._states.arrays]))
            nouns = ["params", "grads", *map(self._state_label, kinds)]
            arrays = [self._states.arrays.get(kind, []) for kind in kinds]
            self._masters = Masters(kind, self._params, copies, self._states)
            if self._masters.copies:
                nouns.append("params" if kind else "copy_to")
            self._plan: Plan = make_plan(
                rule,
                self._masters.updated,
                arrays,
                nouns,
                self._structure.suffixes,
                **flags,
                **self._plan_options(),
                **self._masters.plan_options(),
            )
        self._masters.write_copies()
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
            try:
                report = self._plan.step(arrays)
            except TypeError as error:
                raise self._advised(error, arrays) from None
            return None if report is None else StepResult(*report)
        if plain and type(grad_scale) is float and grad_scale == 1.0:
            return self._step(grads, UNCHANGED)
        transform = GradTransform.checked(grad_scale, clip_norm, clip_value, zero_grad)
        return self._step(grads, transform)

    def _step(
        self,
        grads: Arrays,
        transform: GradTransform,
        *,
        lr: float | None = None,
        norm: float | None = None,
    ) -> StepResult | None:
        """A step, of which `gradstep.mpi` knows the learning rate and the norm already."""
        keep = not (callable(self.lr) or self.progress)
        # Before the schedule runs: one that sets `lr` takes it back.
        if keep != self._scalars_kept:
            self._scalars_kept = keep
        try:
            t = self.t
            if lr is None:
                lr = self.current_lr
            self._last.lr = lr
            late: Mapping[str, float] = {}
            if self.progress:
                late, progress = self._advance(t, lr, self._progress.tolist())
            result = self._apply(grads, transform, self._scalars(t, lr, 0, late), None, norm)
        except BaseException:
            self._scalars_kept = False
            raise
        if self.progress and (result is None or not result.skipped):
            self._progress[:] = progress
        return result

    def _apply(
        self,
        grads: Arrays,
        transform: GradTransform,
        scalars: Scalars,
        second_grads: Sequence[Array] | None = None,
        norm: float | None = None,
    ) -> StepResult | None:
        arrays = self._structure.arrays(grads, "grads")
        try:
            report = self._run(arrays, transform, scalars, second_grads, norm)
        except TypeError as error:
            raise self._advised(error, arrays) from None
        return None if report is None else StepResult(*report)

    def _advised(self, error: TypeError, grads: Sequence[Any]) -> TypeError:
        """The error of a step, and what to do about gradients of NumPy's default dtype."""
        pairs = zip(grads, self._params, strict=True)
        wide = any(getattr(g, "dtype", None) == np.float64 != param.dtype for g, param in pairs)
        return TypeError(f"{error}: convert it, g.astype(np.float32)") if wide else error

    def _run(
        self,
        grads: Sequence[Any],
        transform: GradTransform,
        scalars: Scalars,
        second_grads: Sequence[Array] | None,
        norm: float | None,
    ) -> Report | None:
        """Carry a step out, or raise and change nothing."""
        # As plain tuples: named ones take the binding a quarter of a microsecond longer, each.
        treatment = None if transform is UNCHANGED else transform[:]
        return self._plan.step(grads, treatment, scalars[:], second_grads, norm=norm)

    def _advance(
        self, t: int, lr: float, progress: list[float]
    ) -> tuple[Mapping[str, float], list[float]]:
        """How a step changes `progress`; only where there is some.

        Args:
            t: the steps so far.
            lr: the learning rate of the step.
            progress: the numbers of that name, before the step.

        Returns:
            The hyper-parameters that are known only now, and the numbers after the step.
        """
        raise NotImplementedError

    def _next_lr(self) -> float:
        """The learning rate of the step that begins: a schedule is called once per step."""
        self._last.lr = lr = self.current_lr
        return lr

    def _scalars(
        self, t: int, lr: float, row: int = 0, late: Mapping[str, float] = MappingProxyType({})
    ) -> Scalars:
        """The numbers of a step.

        Args:
            t: the steps so far.
            lr: the learning rate.
            row: the row to update, where a state has rows.
            late: hyper-parameters that are known only now.
        """
        hyper = {**self._hyper, "lr": lr, **late}
        values = [hyper[name] for name in self._hyper_names]
        return Scalars(t, values, hyper["weight_decay"], self._settings["maximize"], row)

    def _step_or_norm(self, grads: Arrays, weight: int, **clip: Unpack[StepOptions]) -> float:
        """Step, unless a gradient is not finite. Returns the norm of the gradients.

        Args:
            weight: what the gradients count among those of several ranks. Here is only one.
            clip: how they are clipped; `clip_norm` is given.
        """
        try:
            found = self.step(grads, **clip)
        except ValueError:
            norm = self._norm(grads)
            if math.isfinite(norm):  # something else is wrong
                raise
            return norm
        assert found is not None  # because `clip_norm` is given
        return found.grad_norm

    def _norm(self, grads: Arrays) -> float:
        """The norm that a step would clip."""
        arrays = self._plan.check_grads(self._structure.arrays(grads, "grads"))
        single = all(param.dtype != np.float64 for param in self._params)

        def total(unit: float) -> float:
            return _core.sum_of_blocks(self._plan.block_sums(arrays, 1.0, unit))

        return _core.norm_from(total, single)[0]

    def _set_t(self, t: int) -> None:
        self._plan.t = t

    def _step_as_part(self, first: int) -> None:
        """Round as for a part of a vector that begins at this element; for `gradstep.mpi`."""
        self._first_element = first
        self._tell_rounding()

    @property
    def params(self) -> Arrays:
        """The parameters, in the structure in which they were given."""
        return self._structure.build(self._given)

    @property
    def state(self) -> dict[str, Arrays]:
        """The live states by name, each in the structure of `params`."""
        return {name: self._structure.build(arrays) for name, arrays in self._states.arrays.items()}

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
        self._change_hyper("lr", {"lr": lr})

    @property
    def weight_decay(self) -> float:
        """The weight decay. It may be set between steps."""
        if "weight_decay" not in self._hyper:
            raise AttributeError(f"{type(self).__name__} has no weight decay")
        return self._hyper["weight_decay"]  # type: ignore[no-any-return]

    @weight_decay.setter
    def weight_decay(self, weight_decay: float) -> None:
        if "weight_decay" not in self._hyper:
            raise AttributeError(f"{type(self).__name__} has no weight decay")
        self._change_hyper("weight_decay", {"weight_decay": weight_decay})

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

    def _change_hyper(self, argument: str, changed: Mapping[str, Any]) -> None:
        """Set numbers of the rule, from the next step on."""
        if argument in self._pinned:
            raise AttributeError(
                f"{argument} of {type(self).__name__} cannot change: {self._pinned[argument]}"
            )
        checked = self._checked({**self._hyper, **changed})
        for name in changed:
            before = self._hyper.get(name)
            if checked[name] != before and not self._uses(name):
                raise ValueError(
                    f"{argument} cannot change from {before!r} to {checked[name]!r}, "
                    f"because the rule {self.rule} does without it: make another optimizer"
                )
        self._hyper, self._scalars_kept = checked, False

    def _uses(self, name: str) -> bool:
        """Whether a number makes a difference to the steps."""
        return name in self._hyper_names or name == "weight_decay"

    def _change_setting(self, name: str, value: Any) -> None:
        """Set what is no number of the rule, from the next step on."""
        if name not in self._settings:
            raise AttributeError(f"{name} has no effect, because no array has 16 or 8 bits")
        self._settings = self._checked_settings({**self._settings, name: value})
        self._scalars_kept = False
        self._tell_rounding()

    if not TYPE_CHECKING:  # type checkers find misspelt names themselves
        # With a __getattr__, every attribute that a step reads would take longer.
        vars().update({name: Hint() for name in HINTS})

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and not hasattr(type(self), name):
                raise AttributeError(hint_for(type(self), name))
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        size = sum(param.size for param in self._params)
        return f"{shown(self)}  # {size} elements, t={self.t}"

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
        return checkpoint.state_dict(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], *, convert: bool = False) -> None:
        """Go on where `state_dict()` was taken. Everything in it is copied, hyper-parameters too.

        With `master=True` the parameters then follow their masters; with "split" they must be those
        of that moment.

        Args:
            state_dict: what `state_dict()` returned.
            convert: take states of another dtype too, rounded to the nearest. Default False.

        Raises:
            TypeError, ValueError: not such a dict, or one of another rule, shape or dtype; a
                schedule instead of a number, or the reverse. Nothing has changed then.
        """
        checkpoint.load_state_dict(self, state_dict, convert)

    def save(self, path: files.PathLike) -> None:
        """Write parameters, states, step count and hyper-parameters to one file, without pickle.

        The file is replaced in one move: a process killed while saving leaves the old one whole.

        Args:
            path: the file. Its format is NumPy's `.npz`, with an array per parameter and state.

        Raises:
            OSError: the file cannot be written.
        """
        checkpoint.save(self, path)

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
        checkpoint.load(self, path, convert)

    def _take_over(self, loaded: checkpoint.Loaded) -> None:
        """Go on from a checkpoint whose arrays have been copied."""
        self._hyper, self._settings, self._scalars_kept = loaded.hyper, loaded.settings, False
        self._tell_rounding()
        self._plan.t = loaded.t
        self._masters.write_copies()
        self._restored()

    def _labels(self, noun: str) -> list[str]:
        return [noun + suffix for suffix in self._structure.suffixes]

    def _named_arrays(self, with_params: bool) -> dict[str, Array]:
        """Every array by the name that messages and files have for it."""
        named = dict(zip(self._labels("params"), self._params, strict=True)) if with_params else {}
        for name, arrays in self._states.arrays.items():
            named |= zip(self._labels(f"state {name}"), arrays, strict=True)
        return named | {f"counter {name}": array for name, array in self._counters().items()}

    def _arrays(self) -> list[Array]:
        """Every array that a step may write to."""
        copies = self._masters.copies
        others = [] if copies is self._params else copies
        return [*self._named_arrays(with_params=True).values(), *others]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep steps of other threads out, after a check that every array can be written."""
        self._plan.acquire()
        try:
            self._plan.check()
            yield
        finally:
            self._plan.release()

    def _add_states(self) -> None:
        """Make the states of the rule, and what else is saved with them."""
        self._states.add(self._rule.states)

    def _state_label(self, state: str) -> str:
        """What messages call a state."""
        return f"state {state}"

    def _plan_options(self) -> dict[str, Any]:
        """What the plan needs to know in addition to arrays."""
        return {}

    def _counters(self) -> dict[str, Array]:
        """Arrays that belong to the state but are not one per parameter."""
        return {}

    def _check_counters(self, counters: Mapping[str, Array]) -> None:
        """Raise unless these can replace `_counters()`, whose dtypes and shapes fit."""

    def _restored(self) -> None:
        """Called when a checkpoint has been loaded, for what follows from it."""

    def _checked_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The hyper-parameters that are no numbers of the rule."""
        how = {name: settings[name] for name in settings if name in checkpoint.ROUNDING}
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
        kind = checked_master(master)
        if kind:
            check_elementwise(type(self), "have masters")
            labels = self._labels("params")
            check_params(kind, labels, self._params, with_copies=copy_to is not None)
        return kind

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


class LastStep:
    """What is known of the last step. Apart from the optimizer, whose attributes are checked."""

    __slots__ = ("lr",)

    def __init__(self) -> None:
        self.lr = 0.0


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
