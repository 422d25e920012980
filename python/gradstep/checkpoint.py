"""Checkpoints: everything is checked and converted first, and then everything is copied."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ._engine import checks as check
from ._engine import files
from ._engine.formats import (
    EXTRA_STATES,
    IN_BLOCKS,
    blocks_shape,
    decoded,
    is_float,
    is_in_blocks,
    to_blocks,
)
from ._engine.masters import Masters
from ._engine.plan import Plan
from ._engine.states import States
from ._engine.structure import Structure

Array = NDArray[Any]

#: The settings of those optimizers only that round.
ROUNDING = frozenset({"rounding", "rounding_seed"})


class Loaded(NamedTuple):
    """A checkpoint that fits an optimizer, ready to be copied."""

    t: int
    hyper: dict[str, Any]
    settings: dict[str, Any]
    #: Each array of the optimizer, and one of its dtype and shape.
    pairs: list[tuple[Array, Array]]


class Saved(Protocol):
    """What a checkpoint needs of an optimizer."""

    _structure: Structure
    _params: list[Array]
    _states: States
    _masters: Masters
    _plan: Plan
    _hyper: dict[str, Any]
    _settings: dict[str, Any]

    @property
    def rule(self) -> str: ...
    @property
    def t(self) -> int: ...
    @property
    def lr(self) -> Any: ...
    @property
    def hyperparameters(self) -> dict[str, Any]: ...

    def _checked(self, hyper: Mapping[str, Any]) -> dict[str, Any]: ...
    def _checked_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]: ...
    def _labels(self, noun: str) -> list[str]: ...
    def _named_arrays(self, with_params: bool) -> dict[str, Array]: ...
    def _counters(self) -> dict[str, Array]: ...
    def _check_counters(self, counters: Mapping[str, Array]) -> None: ...
    def _alone(self) -> Any: ...
    def _take_over(self, loaded: Loaded) -> None: ...


def meta_of(opt: Saved) -> dict[str, Any]:
    """What is not an array."""
    return {"rule": opt.rule, "t": opt.t, "hyperparameters": opt.hyperparameters}


def state_dict(opt: Saved) -> dict[str, Any]:
    """See `Optimizer.state_dict`."""
    with opt._alone():
        return {
            **meta_of(opt),
            "state": {
                name: opt._structure.build([array.copy() for array in arrays])
                for name, arrays in opt._states.arrays.items()
            },
            "counters": {name: array.copy() for name, array in opt._counters().items()},
        }


def load_state_dict(opt: Saved, given: Mapping[str, Any], convert: bool) -> None:
    """See `Optimizer.load_state_dict`."""
    check_keys("state_dict", given, [*meta_of(opt), "state", "counters"])
    state, counters = given["state"], given["counters"]
    check_keys("state", state, opt._states.arrays, free=EXTRA_STATES if convert else ())
    check_keys("counters", counters, opt._counters())
    sources: dict[str, Array] = {}
    for name, tree in state.items():
        arrays = opt._structure.arrays(tree, f"state {name}")
        sources |= zip(opt._labels(f"state {name}"), arrays, strict=True)
    for label, array in sources.items():
        opt._plan.check_apart(array, label)
    sources |= {f"counter {name}": array for name, array in counters.items()}
    put(opt, checked(opt, given, sources, with_params=False, convert=convert))


def save(opt: Saved, path: files.PathLike) -> None:
    """See `Optimizer.save`."""
    with opt._alone():
        meta = {**meta_of(opt), "params": opt._structure.kind}
        files.write(path, meta, opt._named_arrays(with_params=True))


def load(opt: Saved, path: files.PathLike, convert: bool) -> None:
    """See `Optimizer.load`."""
    meta, arrays = files.read(path)
    try:
        check_header(opt, meta, opt._structure)
        loaded = checked(opt, meta, arrays, with_params=True, convert=convert)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error
    put(opt, loaded)


def check_header(opt: Saved, meta: Mapping[str, Any], structure: Structure) -> None:
    """Raise unless the header of a file is that of such an optimizer."""
    check_keys("the header", meta, ["format", *meta_of(opt), "params"])
    if meta["params"] != structure.kind:
        raise ValueError(f"its params are {meta['params']}, here they are {structure.kind}")
    check_rule(opt, meta)


def check_rule(opt: Saved, meta: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint is of the rule of an optimizer."""
    if not isinstance(meta["rule"], str) or meta["rule"] != opt.rule:
        raise ValueError(
            f"the state is of the rule {meta['rule']!r}, this optimizer's is {opt.rule!r}"
        )


@np.errstate(all="ignore")  # a conversion may underflow, and a signalling NaN is a number too
def checked(
    opt: Saved,
    meta: Mapping[str, Any],
    sources: Mapping[str, Array],
    with_params: bool,
    convert: bool,
) -> Loaded:
    """Check and convert everything. Nothing changes, and nothing can fail afterwards."""
    check_rule(opt, meta)
    check.flag("convert", convert)
    hyper = check.mapping("hyperparameters", meta["hyperparameters"])
    if convert:  # one of the two may round and the other not
        rounding = {name: opt._settings[name] for name in ROUNDING & opt._settings.keys()}
        hyper = {name: hyper[name] for name in hyper if name not in ROUNDING} | rounding
    check_keys("hyperparameters", hyper, opt.hyperparameters)
    if (hyper["lr"] is None) != callable(opt.lr):
        raise ValueError(
            f"lr is {hyper['lr']!r} in the state (None: a schedule) and {opt.lr!r} here; make "
            "the optimizer with the same kind, and set opt.lr after loading to change it"
        )
    lr = opt.lr if hyper["lr"] is None else check.number("lr", hyper["lr"])
    numbers = {name: value for name, value in hyper.items() if name in opt._hyper}
    checked_hyper = opt._checked({**numbers, "lr": lr})
    settings = opt._checked_settings({name: hyper[name] for name in opt._settings})
    t = check.integer("t", meta["t"], 0)
    targets = opt._named_arrays(with_params)
    for label, source in sources.items():
        check.array(label, source)
    if convert:
        sources = opt._masters.converted(sources, targets, opt._structure.suffixes)
        sources = _in_and_out_of_blocks(opt, sources, targets)
    check_keys("the state", sources, targets)
    pairs = []
    for label, target in targets.items():
        source = sources[label]
        check.array_like(label, source, target, convert)
        pairs.append((target, source.astype(target.dtype, copy=False)))
    opt._check_counters({name: sources[f"counter {name}"] for name in opt._counters()})
    return Loaded(t, checked_hyper, settings, pairs)


def put(opt: Saved, loaded: Loaded) -> None:
    """Copy everything."""
    with opt._alone():
        put_alone(opt, loaded)


@np.errstate(all="ignore")
def put_alone(opt: Saved, loaded: Loaded) -> None:
    """The same, for callers that keep other threads out."""
    for target, source in loaded.pairs:
        np.copyto(target, source)
    opt._take_over(loaded)


def _in_and_out_of_blocks(
    opt: Saved, sources: Mapping[str, Array], targets: Mapping[str, Array]
) -> dict[str, Array]:
    """The sources, in 8 bits where their targets are, and not where they are not."""
    converted = dict(sources)
    for name in opt._states.arrays:
        for label, param in zip(opt._labels(f"state {name}"), opt._params, strict=True):
            source, target = sources.get(label, param), targets[label]
            if is_in_blocks(target):
                if is_float(source.dtype) and source.shape == param.shape:
                    if target.dtype == np.uint8 and (source < 0).any():
                        raise ValueError(f"{label} holds negative numbers")
                    converted[label] = to_blocks(source.astype(np.float32), target.dtype)
            elif (
                source.dtype.name in IN_BLOCKS
                and source.shape == blocks_shape(param.size)
                and target.shape == param.shape
            ):
                converted[label] = decoded(source, param)
    return converted


def check_keys(noun: str, given: Any, wanted: Iterable[str], free: Container[str] = ()) -> None:
    """Raise unless a mapping has these keys and no others, except those that are optional."""
    check.mapping(noun, given)
    missing = [key for key in wanted if key not in given and key not in free]
    unknown = [key for key in given if key not in set(wanted) and key not in free]
    if missing or unknown:
        raise ValueError(f"{noun} does not fit: missing {missing}, unknown {unknown}")
