"""A training loop that stops for a reason and says which."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .._engine import checks as check
from ..optimizers.base import LastStep
from ..optimizers.options import Arrays, StepOptions
from .history import Epoch, History, Verdict
from .minibatches import Seed, _common_length, batches, part_of
from .progress import _bar
from .ranks import Alone, Comm, caught, check_alike, common_seed, raise_for_all, shown, together
from .stopping import _asked, _limit, _Patience, _tolerated

if TYPE_CHECKING:
    from typing_extensions import Unpack

Array = NDArray[Any]
#: `loss_and_grad(params, *batch)` gives the mean loss of the batch and its gradients by `params`.
LossAndGrad = Callable[..., tuple[float, Arrays]]


@runtime_checkable
class Trainable(Protocol):
    """What a run needs of an optimizer. One that has ranks has a communicator, `comm`, too."""

    step_needs: ClassVar[str]
    _params: list[Array]
    _last: LastStep

    @property
    def params(self) -> Arrays: ...
    @property
    def t(self) -> int: ...
    @property
    def hyperparameters(self) -> dict[str, Any]: ...

    def _step_or_norm(self, grads: Arrays, weight: int, **clip: Unpack[StepOptions]) -> float: ...
    def _arrays(self) -> list[Array]: ...
    def _set_t(self, t: int) -> None: ...


def train(
    opt: Trainable,
    loss_and_grad: LossAndGrad,
    data: Sequence[Array],
    *,
    batch_size: int | Literal["full"] = 32,
    epochs: int | None = None,
    max_steps: int | None = None,
    tol: float | None = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    validation: Sequence[Array] | None = None,
    callbacks: Iterable[Callable[[Epoch], object]] = (),
    progress: bool = True,
    shuffle: bool = True,
    seed: Seed = None,
) -> History:
    """Step through the data, batch by batch and epoch by epoch, until there is a reason to stop.

    After each epoch the reasons are tried in this order: a callback, `tol`, `patience`, `epochs`,
    `max_steps`. A non-finite loss or gradient stops the run at once, before its step. Parameters,
    states and `t` then go back to the last good point: where the first finite loss of an epoch was
    measured. So they do if the last step left parameters that are not finite. An exception, or
    Ctrl-C, passes through and leaves the steps taken so far.

    Args:
        opt: the optimizer; any whose step needs nothing but gradients: not `SAG`, `SAGA`, `SVRG`.
            With a `gradstep.mpi.Sharded`, all ranks call this with the same arguments, and data
            with the same rows, of which each reads its part of each batch and of the validation
            data: `batch_size` and the losses are those of all ranks together. The seed is that of
            rank 0, and so is the bar. All ranks have the same history, except for the seconds.
            Callbacks are called on all ranks; if one of them asks to stop, all stop.
        loss_and_grad: `loss_and_grad(params, *batch)` gives the mean loss of the batch and its
            gradients, in the structure of the parameters. See `gradstep.losses.linear`.
        data: arrays with the same number of rows, such as `(x, y)`.
        batch_size, shuffle, seed: see `batches`. To go on with a run that ended with an epoch as if
            it had not stopped, give the same `np.random.Generator` as `seed` again.
        epochs: at most so many passes over the data. This, `max_steps` or both must be given.
        max_steps: at most so many steps.
        tol: stop when the `grad_norm` of an epoch is at most this, in units of loss per parameter.
            With batches that is a mean of noisy norms, which need not go to 0.
        patience: stop after so many epochs without a new best `val_loss` (`loss` without
            validation): the lowest, or the highest where the optimizer climbs. The parameters stay
            as they are.
        clip_norm, clip_value: limits for the gradient of each step, see `Optimizer.step`. The
            `grad_norm` of the history is that before clipping.
        validation: arrays for `loss_and_grad`, all at once, after each epoch.
        callbacks: functions that are given an `Epoch` after each one. A true result stops the run.
        progress: show a bar on a terminal, if tqdm is installed. Default True.

    Returns:
        The `History`.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: neither `epochs` nor `max_steps`, a number out of its range, data that is empty
            or of different lengths. The run has not begun then. With several ranks, also an
            argument that differs from that of rank 0.
        RuntimeError: the function or a callback has raised an error on another rank.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> x = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> y = np.array([1.0, 3.0, 5.0])                           # 1 + 2 x
        >>> w = np.zeros(2)
        >>> f = gs.losses.linear(gs.losses.least_squares)
        >>> opt = gs.SGD(w, lr=0.5)
        >>> history = gs.train(opt, f, (x, y), batch_size="full", epochs=500, tol=1e-6)
        >>> history.reason
        'tolerance: gradient norm 9.36e-07 <= tol 1e-06 after epoch 78'
        >>> w.round(4)
        array([1., 2.])

    References:
        Prechelt, Early stopping - but when?, 1998 (patience).
    """
    if not isinstance(opt, Trainable):
        raise TypeError(f"opt must be a gradstep optimizer, got {type(opt).__name__}")
    comm: Comm = getattr(opt, "comm", Alone())
    settings = {
        "batch_size": batch_size, "epochs": epochs, "max_steps": max_steps, "tol": tol,
        "patience": patience, "clip_norm": clip_norm, "clip_value": clip_value,
        "shuffle": shuffle, "seed": seed, "data": data, "validation": validation,
    }  # fmt: skip
    check_alike(comm, {name: shown(value) for name, value in settings.items()})
    if opt.step_needs:
        raise TypeError(f"opt must not be {type(opt).__name__}, whose step needs {opt.step_needs}")
    _check_sequence("data", data)
    seed = common_seed(comm, seed)
    feed = batches(*data, batch_size=batch_size, shuffle=shuffle, seed=seed)
    feed = feed._part_of(comm.rank, comm.size)
    limit, spent = _limit(epochs, max_steps, len(feed))
    tol = None if tol is None else check.non_negative("tol", tol)
    best = _Patience(patience, climbs=opt.hyperparameters["maximize"])
    if callable(callbacks):
        raise TypeError(f"callbacks must be a list of functions, got {callbacks!r}")
    callbacks = list(callbacks)
    for i, callback in enumerate(callbacks):
        _check_callable(f"callbacks[{i}]", callback)
    clip: StepOptions = {
        # An infinite limit only measures.
        "clip_norm": math.inf if clip_norm is None else check.number("clip_norm", clip_norm),
        "clip_value": None if clip_value is None else check.number("clip_value", clip_value),
    }
    run = _Run(opt, comm, loss_and_grad, validation, clip)
    history = History(validated=validation is not None)

    verdict: Verdict | None = None
    shows = check.flag("progress", progress) and comm.rank == 0
    with _bar(limit, shows) as bar:
        while verdict is None and run.steps < limit:
            try:
                epoch = run.epoch(islice(feed, limit - run.steps), bar.update)
            except _NonFiniteError as found:
                verdict = "non-finite", f"non-finite {found}: {run.restore()}"
            else:
                history._append(epoch)
                bar.set_postfix_str(f"loss {epoch.loss:.4g}")
                verdict = (
                    run.asked(callbacks, epoch) or _tolerated(tol, epoch) or best.verdict(epoch)
                )
    if run.overflowed():
        verdict = "non-finite", f"non-finite parameters after step {run.steps}: {run.restore()}"
    history.stop, history.reason = verdict or spent
    history.steps = run.steps
    return history


class _NonFiniteError(ArithmeticError):
    """A loss or gradient that must not reach the parameters."""


class _Run:
    """The steps of a run, and the last good point to go back to."""

    def __init__(
        self,
        opt: Trainable,
        comm: Comm,
        loss_and_grad: LossAndGrad,
        validation: Sequence[Array] | None,
        clip: StepOptions,
    ) -> None:
        _check_callable("loss_and_grad", loss_and_grad)
        if validation is not None:
            _check_sequence("validation", validation)
            _common_length(validation, "validation")
        self._opt, self._comm = opt, comm
        self._loss_and_grad = loss_and_grad
        self._validation = validation
        self._clip = clip
        self._start = time.perf_counter()
        self._epochs = 0
        self.steps = 0
        self._lr = 0.0
        self._saved: list[Array] = []
        self._saved_at = (0, 0, math.nan)

    def epoch(self, feed: Iterable[tuple[Array, ...]], tick: Callable[[], object]) -> Epoch:
        """Step through the batches of `feed`."""
        loss = norm = 0.0
        rows = 0
        for count, batch in enumerate(feed, 1):
            batch_loss, batch_norm, batch_rows = self._step(batch, saves=count == 1)
            self.steps += 1
            rows += batch_rows
            # Running means: huge losses cannot overflow a sum, and one batch gives its very loss.
            loss += (batch_loss - loss) * (batch_rows / rows)
            norm += (batch_norm - norm) / count
            tick()
        self._epochs += 1
        return Epoch(
            epoch=self._epochs,
            steps=self.steps,
            loss=loss,
            val_loss=self._val_loss(),
            lr=self._lr,
            grad_norm=norm,
            seconds=time.perf_counter() - self._start,
            opt=self._opt,
        )

    def _step(self, batch: tuple[Array, ...], saves: bool) -> tuple[float, float, int]:
        """Step at a batch, after a good point is saved where that is asked for.

        Returns:
            The loss, the norm of the gradients, and the number of rows.
        """
        loss, rows, grads = self._loss_of_all(batch)
        self._check_finite("loss", loss)
        if saves:
            self._save(loss)
        norm = self._opt._step_or_norm(grads, len(batch[0]), **self._clip)
        self._check_finite("gradient norm", norm)
        self._lr = self._opt._last.lr
        return loss, norm, rows

    def _loss_of_all(self, batch: Sequence[Array]) -> tuple[float, int, Arrays]:
        """The mean loss over the parts of all ranks, their rows, and the gradients of this part."""
        rows = len(batch[0])
        loss, grads = 0.0, None

        def look() -> None:
            nonlocal loss, grads
            if rows:
                loss, grads = _result(self._loss_and_grad(self._opt.params, *batch))

        error = caught(look)
        every = np.empty((self._comm.size, 3))
        self._comm.Allgather(np.array([error is None, loss, rows]), every)
        if not every[:, 0].all():
            raise_for_all(self._comm, error)
        total = int(every[:, 2].sum())
        return sum(x * (n / total) for _, x, n in every.tolist() if n), total, grads

    def asked(self, callbacks: Sequence[Callable[[Epoch], object]], epoch: Epoch) -> Verdict | None:
        """Whether a callback asks to stop, on any rank."""
        verdicts = self._comm.allgather(together(self._comm, lambda: _asked(callbacks, epoch)))
        return next((verdict for verdict in verdicts if verdict), None)

    def _val_loss(self) -> float | None:
        if self._validation is None:
            return None
        own = part_of(0, len(self._validation[0]), self._comm.rank, self._comm.size)
        return self._loss_of_all([array[own] for array in self._validation])[0]

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            where = f"in epoch {self._epochs + 1}, step {self.steps + 1}"
            raise _NonFiniteError(f"{name} {value} {where}")

    def overflowed(self) -> bool:
        """Whether the last step left the range of the dtype, which no further loss will show."""
        params = self._opt._params
        return bool(self._saved) and not all(np.isfinite(array).all() for array in params)

    def _save(self, loss: float) -> None:
        live = self._opt._arrays()
        # New memory for each epoch would cost more than the copy.
        self._saved = self._saved or [np.empty_like(array) for array in live]
        for copy, array in zip(self._saved, live, strict=True):
            np.copyto(copy, array)
        self._saved_at = self._opt.t, self.steps, loss

    def restore(self) -> str:
        """Go back to the last good point. Returns what was done, in words."""
        if not self._saved:
            return "nothing was written"
        for copy, array in zip(self._saved, self._opt._arrays(), strict=True):
            np.copyto(array, copy)
        t, self.steps, loss = self._saved_at
        self._opt._set_t(t)
        return f"parameters restored to those after step {self.steps}, of loss {loss:.6g}"


def _result(result: Any) -> tuple[float, Arrays]:
    """What the user's function gave: the loss as a float, and the gradients."""
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise TypeError(f"loss_and_grad must return a loss and gradients, got {result!r}")
    loss, grads = result
    # A loss may be an array of one number, as sums over NumPy arrays with kept axes are.
    if type(loss) is np.ndarray and loss.size == 1:
        loss = loss.item()
    return check.number("the loss that loss_and_grad returns", loss), grads


def _check_sequence(name: str, value: object) -> None:
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{name} must be a tuple of arrays, got {type(value).__name__}: "
            "write (x,) for one array"
        )


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {value!r}")
