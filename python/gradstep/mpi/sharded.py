"""The optimizer whose states and updates are shared out among ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import __version__, _core
from .._engine import checks as check
from .._engine import files
from .._engine.formats import NORM_BLOCK as BLOCK
from .._engine.memory import STAGGER
from .._engine.plan import GradTransform
from .._engine.structure import Structure
from ..arena import Arena, arena_of
from ..optimizers.base import LastStep, Optimizer, check_elementwise
from ..optimizers.options import Arrays, LearningRate, StepOptions, StepResult
from ..schedules.schedule import Schedule
from ..training.ranks import Result, caught, check_alike, raise_for_all, together
from . import checkpoint
from .launch import MPI, NonFiniteSumError, _checked_comm, _end_all_with_one

if TYPE_CHECKING:
    from typing_extensions import Unpack

Array = NDArray[Any]
#: With `overlap`, elements of a rank that are on the way together.
BUCKET = 64 * BLOCK
#: The options that `Sharded` does not take, and why.
UNSHARED = {
    "state_dir": "each rank's states are in memory",
    "copy_to": "each rank steps a part of the parameters",
    "master": "parameters are float32 or float64",
}


class Sharded:
    """An optimizer whose states and updates are shared out among the ranks of a communicator.

    The parameters are updated in place, as those of a plain optimizer are. They may be changed by
    hand between steps, on all ranks alike. All ranks begin with the numbers of rank 0, which are
    written to the arrays of the others. Every method that is not a property is called by all ranks
    together, with the same arguments but for `grads` and `weight`.

    Each rank updates a part of the same size of one vector. One array, such as the `flat` of
    `gradstep.flatten`, is that vector itself. Several arrays are not next to each other in memory:
    then the vector is a second copy of the parameters, and each step copies its rank's part of the
    arrays there, and the updated vector back to the arrays.

    One rank has the bits of the plain optimizer on `gradstep.flatten(params).flat`. Any number of
    ranks has those of one rank that is given the sum of the gradients and `grad_scale` over the
    number of ranks, clipping included. In which order MPI adds the gradients, and so the last bits
    of the sum of three or more, is up to MPI.

    Args:
        optimizer: the class of a rule that works element by element. Those with trust ratios,
            factors or matrices, tables of gradients or sparse gradients are refused.
        params: an array, or a flat list, tuple or dict of arrays of one dtype.
        comm: the communicator, default `MPI.COMM_WORLD`.
        overlap: send the gradients in buckets, so that one is updated while others are on the way.
            The bits of a sum that MPI adds in the same order are the same. Default False.
        arguments: those of the class, by name, but for `state_dir`.

    Raises:
        TypeError, ValueError: an argument that does not fit; a class, a shape, a dtype or a
            hyper-parameter that is another one than on rank 0.
        RuntimeError: what another rank has raised, with its number.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> from gradstep.mpi import MPI, Sharded
        >>> opt = Sharded(gs.SGD, np.zeros(2), comm=MPI.COMM_SELF, lr=1.0)
        >>> opt.step(np.array([3.0, 4.0]), clip_norm=1.0)
        StepResult(grad_norm=5.0, clipped=True, skipped=False)
        >>> opt.params
        array([-0.6, -0.8])

    References:
        Rajbhandari et al., ZeRO: memory optimizations toward training trillion parameter models,
        2020; Li et al., PyTorch distributed: experiences on accelerating data parallel training,
        2020, section 3.2.2 (buckets).
    """

    #: A step needs nothing beside the gradients.
    step_needs: ClassVar[str] = ""

    def __init__(
        self,
        optimizer: type[Optimizer],
        params: Arrays,
        *,
        comm: MPI.Intracomm | None = None,
        overlap: bool = False,
        **arguments: Any,
    ) -> None:
        self._last = LastStep()
        self._comm = MPI.COMM_WORLD if comm is None else _checked_comm(comm)
        if self._comm.size > 1:
            _end_all_with_one()
        self._together(lambda: self._build(optimizer, params, overlap, arguments))
        check_alike(self._comm, self._description(overlap))
        self._comm.Bcast(self._vector)
        self._copy_back()

    def _build(
        self,
        optimizer: type[Optimizer],
        params: Arrays,
        overlap: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """What a rank does for itself."""
        check_sharded(optimizer)
        for name, why in UNSHARED.items():
            if name in arguments:
                raise TypeError(f"Sharded() has no argument {name!r}: {why}")
        held = arguments.get("state_dtype")
        if held is not None and check.state_dtype("state_dtype", held) == np.int8:
            raise TypeError(
                "Sharded() takes no states in 8 bits (int8): their blocks go over the edges of "
                "arrays, which a state file keeps apart"
            )
        ranks, rank = self._comm.size, self._comm.rank
        self._structure = Structure(params, "params")
        self._given = list(self._structure.arrays(params, "params"))
        self._params = self._structure.views(params, "params")
        _core.check_params(self._params, "params", self._structure.suffixes)
        if len(self._params) == 1:
            self._vector = self._params[0].reshape(-1)  # contiguous, so it is the same memory
            parts = [self._vector]
        else:
            arena = arena_of(params, "params")
            self._vector, parts = arena.flat, [part.reshape(-1) for part in arena._arrays]
        size, dtype = self._vector.size, self._vector.dtype
        if dtype.itemsize < 4:  # MPI has no sum of such numbers
            raise TypeError(f"params must have dtype float32 or float64, got {dtype}")
        #: MPI sums parts of one size, so the vector of the gradients is longer than their number.
        self._grad_arena = Arena(
            self._structure,
            [param.shape for param in self._params],
            dtype,
            self._vector.ctypes.data + STAGGER // 2,
            BLOCK * ranks if ranks > 1 else 1,
        )
        grads = self._grad_arena._padded
        widest = BUCKET if check.flag("overlap", overlap) and ranks > 1 else grads.size
        #: Each rank has a piece of each bucket, all of one size, rank after rank.
        self._buckets = [
            slice(begin, min(begin + widest * ranks, grads.size))
            for begin in range(0, max(grads.size, 1), max(widest * ranks, 1))
        ]
        sizes = [(bucket.stop - bucket.start) // ranks for bucket in self._buckets]
        #: Where the pieces of all ranks begin and end in the vector, which is not padded.
        self._all_pieces = [
            [
                slice(min(bucket.start + r * each, size), min(bucket.start + (r + 1) * each, size))
                for r in range(ranks)
            ]
            for bucket, each in zip(self._buckets, sizes, strict=True)
        ]
        self._pieces = [pieces[rank] for pieces in self._all_pieces]
        #: Parts of the vector and the arrays that they are copies of: all, and those of this rank.
        self._copies: list[tuple[Array, Array]] = []
        self._own_copies: list[tuple[Array, Array]] = []
        begins = np.cumsum([0, *(part.size for part in parts)]).tolist()
        for begin, part, param in zip(begins, parts, self._params, strict=False):
            if part is self._vector:
                continue
            array = param.reshape(-1)
            self._copies.append((part, array))
            for piece in self._pieces:
                a, b = max(piece.start - begin, 0), min(piece.stop - begin, part.size)
                if a < b:
                    self._own_copies.append((part[a:b], array[a:b]))
        self._shards = [optimizer(self._vector[piece], **arguments) for piece in self._pieces]
        for shard, piece in zip(self._shards, self._pieces, strict=True):
            if piece.start < piece.stop:
                shard._step_as_part(piece.start)
        #: This rank's pieces of the sum. One rank has it already.
        room = grads if ranks == 1 else np.empty(sum(sizes), dtype)
        self._sums = np.split(room, np.cumsum(sizes)[:-1])
        self._weighted: Array | None = None

    def step(
        self,
        grads: Arrays,
        *,
        weight: float = 1.0,
        grad_scale: float = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        zero_grad: bool = False,
    ) -> StepResult | None:
        """Update the parameters of all ranks by the mean of their gradients.

        Args:
            grads: the gradients of this rank, in the structure, shapes and dtypes of `params`. They
                are copied, unless they are those of the property `grads`.
            weight: what they count in the mean, such as the number of their rows; at least 0 and
                not 0 on all ranks. Default 1.
            grad_scale, clip_norm, clip_value, zero_grad: see `Optimizer.step`. They apply to the
                mean; `zero_grad` to the gradients given.

        Returns:
            As `Optimizer.step`, the same on all ranks.

        Raises:
            TypeError, ValueError: an argument or array that does not fit, by name; an argument that
                is another one than on rank 0; with `clip_norm` and without `skip_nonfinite`, a
                gradient that holds NaN or infinity. Nothing has changed then, on any rank.
            RuntimeError: what another rank has raised, with its number.

        Example:
            >>> import numpy as np, gradstep as gs
            >>> from gradstep.mpi import MPI, Sharded
            >>> opt = Sharded(gs.SGD, [np.zeros(2)], comm=MPI.COMM_SELF, lr=1.0)
            >>> opt.step([np.array([0.5, 1.5])], weight=32)
            >>> opt.params
            [array([-0.5, -1.5])]
        """
        ranks = self._comm.size
        arguments: dict[str, Any] = {
            "grad_scale": grad_scale,
            "clip_norm": clip_norm,
            "clip_value": clip_value,
        }
        given, weights = self._agreed(grads, weight, arguments, zero_grad)
        alike = (weights == weights[0]).all()  # where a quotient may be off 1
        factor = 1.0 if alike else weights[self._comm.rank] * ranks / weights.sum()
        vector = self._laid_out(given, factor)
        mean_scale = float(grad_scale) / ranks
        asked = clip_norm is not None or self._shards[0]._flags["skip_nonfinite"]
        norm, result = None, None
        self._copy_in()
        arrived, returned = [], []
        try:
            if ranks > 1:
                arrived = [
                    self._comm.Ireduce_scatter_block(vector[bucket], part)
                    for bucket, part in zip(self._buckets, self._sums, strict=True)
                ]
            if asked:
                MPI.Request.Waitall(arrived)
                norm, finite = self._norm(mean_scale)
                result = self._result(given, norm, finite, clip_norm)
                if result.skipped:
                    return result
            transform = GradTransform.checked(mean_scale, clip_norm, clip_value)
            for i, (shard, part) in enumerate(zip(self._shards, self._sums, strict=True)):
                if ranks > 1:
                    arrived[i].Wait()
                part = part[: shard._params[0].size]
                shard._step(part, transform, lr=self._last.lr, norm=norm)
                if ranks > 1:
                    returned.append(self._collect(i))
        finally:
            MPI.Request.Waitall(arrived + returned)
        self._copy_back()
        if zero_grad:
            for array in given:
                array.fill(0)
        return result

    def _step_or_norm(self, grads: Arrays, weight: int, **clip: Unpack[StepOptions]) -> float:
        """As `Optimizer._step_or_norm`; the gradients are None where the weight is 0."""
        try:
            found = self.step(self.grads if grads is None else grads, weight=weight, **clip)
        except NonFiniteSumError as error:
            return error.norm
        assert found is not None
        return found.grad_norm

    def _set_t(self, t: int) -> None:
        for shard in self._shards:
            shard._set_t(t)
        self._collect_all()

    def _agreed(
        self, grads: Arrays, weight: float, arguments: Mapping[str, Any], zero_grad: bool
    ) -> tuple[Sequence[Array], Array]:
        """The gradients as NumPy arrays, and the weights of all ranks, after all checks."""
        given: Sequence[Array] = ()
        names = ["t", "lr", *arguments, "zero_grad"]
        mine = np.full(2 + len(names), np.nan)

        def look() -> None:
            nonlocal given
            numbers = {name: _number(name, value) for name, value in arguments.items()}
            flag = check.flag("zero_grad", zero_grad)
            scale, clip_norm, clip_value = numbers.values()
            assert scale is not None
            first = self._shards[0]
            first._plan.check_treatment(GradTransform(scale, clip_norm, clip_value, flag))
            given = self._checked_grads(grads, flag)
            lr = self._last.lr = first.current_lr
            first._checked({"lr": lr})
            mine[1] = check.non_negative("weight", weight)
            mine[2:] = [first.t, lr, *numbers.values(), flag]  # None becomes NaN

        if self._comm.size == 1:
            look()
            terms = mine[None]
        else:
            error = caught(look)
            mine[0] = error is None
            terms = np.empty((self._comm.size, mine.size))
            self._comm.Allgather(mine, terms)
            if not (terms[:, 0] == 1).all():
                raise_for_all(self._comm, error)
            for name, column in zip(names, terms.T[2:], strict=True):
                other = np.flatnonzero(column.view(np.int64) != column[:1].view(np.int64))
                if other.size:
                    here, there = (
                        None if math.isnan(x) else x for x in (column[0], column[other[0]])
                    )
                    raise ValueError(f"{name} is {there} on rank {other[0]}, {here} on rank 0")
        if not terms[:, 1].any():
            raise ValueError("weight must not be 0 on all ranks")
        return given, terms[:, 1]

    def _checked_grads(self, grads: Arrays, zero_grad: bool) -> Sequence[Array]:
        own = self._grad_arena._arrays
        given = self._structure.arrays(grads, "grads")
        if all(map(_is, given, own)):
            return own
        views = []
        for suffix, leaf, target in zip(self._structure.suffixes, given, own, strict=True):
            noun = f"grads{suffix}"
            # Arithmetic on 0-d arrays gives NumPy scalars, which are read by value.
            scalar = isinstance(leaf, np.generic) and not zero_grad
            views.append(np.asarray(leaf) if scalar else _core.view(leaf, noun))
            check.array_like(noun, views[-1], target)
        if zero_grad:
            _core.check_params(views, "grads", self._structure.suffixes)
        return views

    def _laid_out(self, given: Sequence[Array], factor: float) -> Array:
        """The gradients times a factor, in one vector. Those given stay as they are."""
        arena = self._grad_arena
        vector, own = arena._padded, arena._arrays
        if given is not own:
            for target, array in zip(own, given, strict=True):
                np.copyto(target, array)
        if factor == 1:
            return vector
        if given is own:  # the user's to read again
            if self._weighted is None:
                self._weighted = np.empty_like(vector)
            np.copyto(self._weighted, vector)
            vector = self._weighted
        if factor == 0:  # also of what is not finite
            vector.fill(0)
        else:
            with np.errstate(all="ignore"):
                vector *= vector.dtype.type(factor)
        return vector

    def _norm(self, scale: float) -> tuple[float, bool]:
        """The norm of the sum of all ranks, and whether it is finite: the bits of one process.

        Pieces begin and end with blocks of the norm, so that what each rank sums is what one would.
        """
        blocks = np.cumsum([0, *(-(-part.size // BLOCK) for part in self._sums)])
        own = np.zeros(blocks[-1])
        every = np.empty((self._comm.size, own.size))

        def total(unit: float) -> float:
            for first, shard, part in zip(blocks[:-1], self._shards, self._sums, strict=True):
                sums = shard._plan.block_sums([part[: shard._params[0].size]], scale, unit)
                own[first : first + sums.size] = sums
            self._comm.Allgather(own, every)
            in_order = [every[:, a:b].ravel() for a, b in pairwise(blocks.tolist())]
            return _core.sum_of_blocks(np.concatenate(in_order))

        return _core.norm_from(total, self._sums[0].dtype == np.float32)

    def _result(
        self, given: Sequence[Array], norm: float, finite: bool, clip_norm: float | None
    ) -> StepResult:
        """What the norm says, or an error where it cannot be clipped."""
        usable = finite if clip_norm is None else math.isfinite(norm)
        if usable:
            return StepResult(norm, clip_norm is not None and norm > clip_norm, False)
        if self._shards[0]._flags["skip_nonfinite"]:
            return StepResult(norm, False, True)
        suffixes = zip(self._structure.suffixes, given, strict=True)
        culprits = self._comm.allgather(
            next((suffix for suffix, array in suffixes if not np.isfinite(array).all()), None)
        )
        what = next(
            (
                f"grads{suffix} of rank {rank} holds NaN or infinity"
                for rank, suffix in enumerate(culprits)
                if suffix is not None
            ),
            "the sum of the gradients of all ranks has no finite norm",
        )
        raise NonFiniteSumError(
            f"{what}, so clip_norm cannot apply; skip_nonfinite=True skips such steps", norm
        )

    def _collect(self, i: int) -> MPI.Request:
        """Begin to bring all ranks' pieces of a bucket of the parameters together."""
        pieces = self._all_pieces[i]
        bucket = self._vector[pieces[0].start : pieces[-1].stop]
        counts = [piece.stop - piece.start for piece in pieces]
        return self._comm.Iallgatherv(MPI.IN_PLACE, [bucket, counts])

    def _collect_all(self) -> None:
        if self._comm.size > 1:
            MPI.Request.Waitall([self._collect(i) for i in range(len(self._buckets))])
        self._copy_back()

    def _copy_in(self) -> None:
        """Take this rank's part of the parameters as it is, which may have been changed by hand."""
        for part, array in self._own_copies:
            np.copyto(part, array)

    def _copy_back(self) -> None:
        for part, array in self._copies:
            np.copyto(array, part)

    @property
    def params(self) -> Arrays:
        """The parameters, in the structure in which they were given: all of them on each rank."""
        return self._structure.build(self._given)

    @property
    def grads(self) -> Arrays:
        """Memory for the gradients, in that structure; what is written there need not be copied."""
        return self._grad_arena.views

    @property
    def state(self) -> dict[str, list[Array]]:
        """The live states of this rank's part by name: a vector per bucket."""
        return {
            name: [array for shard in self._shards for array in shard._states[name]]
            for name in self._shards[0]._states.arrays
        }

    @property
    def comm(self) -> MPI.Intracomm:
        """The communicator."""
        return self._comm

    @property
    def rule(self) -> str:
        """The name of the native rule."""
        return self._shards[0].rule

    @property
    def t(self) -> int:
        """The number of steps taken."""
        return self._shards[0].t

    @property
    def lr(self) -> LearningRate:
        """The learning rate or schedule. It may be set between steps, on all ranks alike."""
        return self._shards[0].lr

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        for shard in self._shards:
            shard.lr = lr

    @property
    def current_lr(self) -> float:
        """The learning rate that the next step uses."""
        return self._shards[0].current_lr

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyper-parameters by name; `lr` is None where it is a schedule."""
        return self._shards[0].hyperparameters

    def __repr__(self) -> str:
        size, comm = self._vector.size, self._comm
        return (
            f"<Sharded {type(self._shards[0]).__name__} ({self.rule}) of {size} at t={self.t}, "
            f"rank {comm.rank} of {comm.size}>"
        )

    def train(self) -> None:
        """Move the parameters to where gradients are taken; of schedule-free rules alone."""
        self._switch("train")

    def eval(self) -> None:
        """Move the parameters to the mean of the points; of schedule-free rules alone."""
        self._switch("eval")

    def _switch(self, name: str) -> None:
        self._copy_in()
        for shard in self._shards:
            if not hasattr(shard, name):
                raise TypeError(f"{type(shard).__name__} has no {name}()")
            getattr(shard, name)()
        self._collect_all()

    def save(self, path: files.PathLike) -> None:
        """Write parameters, states, step count and hyper-parameters, each rank its part.

        The parts are files beside `path`, of the same name and an ending of their own. `path` is
        written last, in one move: if any rank is killed while saving, the state saved before is
        whole. `load` of the same class reads it, here by any number of ranks and in any plain
        optimizer.

        Args:
            path: the file, where all ranks can write, the same for all.

        Raises:
            OSError: a file cannot be written. What was saved before is as it was.
            RuntimeError: another rank has raised, with its number.
        """
        checkpoint.save(self, path)

    def load(self, path: files.PathLike) -> None:
        """Read what `save()` wrote, with any number of ranks, or `Optimizer.save()`.

        Raises:
            OSError: a file cannot be read.
            ValueError: not a gradstep file, a damaged one, or one of another rule, structure, shape
                or dtype. Nothing has changed then, on any rank.
            RuntimeError: another rank has raised, with its number.
        """
        checkpoint.load(self, path)

    def _arrays(self) -> list[Array]:
        """Every array of this rank's part that a step may write to."""
        self._copy_in()
        return [array for shard in self._shards for array in shard._arrays()]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            suffix: array.shape
            for suffix, array in zip(self._structure.suffixes, self._params, strict=True)
        }

    def _description(self, overlap: bool) -> dict[str, str]:
        """What must be the same on all ranks, by name."""
        first = self._shards[0]
        shown = {**first.hyperparameters, **first._fixed}
        lr = "a function" if callable(self.lr) and not isinstance(self.lr, Schedule) else self.lr
        return {
            "gradstep": __version__,
            "optimizer": type(first).__name__,
            "rule": self.rule,
            "params": self._structure.kind,
            **{
                f"params{suffix}": f"{self._vector.dtype} of shape {shape}"
                for suffix, shape in self._shapes().items()
            },
            **{name: repr(value) for name, value in shown.items()},
            "lr": repr(lr),
            "overlap": repr(overlap),
        }

    def _together(self, act: Callable[[], Result], only: int | None = None) -> Result:
        return together(self._comm, act, only)


def check_sharded(optimizer: Any) -> None:
    """Raise unless it is a class that `Sharded` takes."""
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise TypeError(f"optimizer must be a class of gradstep, such as Adam, got {optimizer!r}")
    check_elementwise(optimizer, "be sharded")


def _number(name: str, value: Any) -> float | None:
    return None if value is None and name != "grad_scale" else check.number(name, value)


def _is(a: object, b: object) -> bool:
    return a is b
