"""What a run measures, and why it stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Stop = Literal["callback", "tolerance", "patience", "epochs", "max_steps", "non-finite"]
#: Why to stop, and the words for it.
Verdict = tuple[Stop, str]


@dataclass(frozen=True)
class Epoch:
    """What callbacks are given: the row of the `History`, where it was measured, and the optimizer.

    Args:
        epoch: its number in this run, from 1.
        steps: steps taken in this run.
        loss: mean over the epoch's rows.
        val_loss: loss of the validation data after the epoch, None without such data.
        lr: learning rate of the last step.
        grad_norm: mean over the epoch's steps of the L2 norm over all gradients.
        seconds: since the run began.
        opt: the optimizer, with the live parameters.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> def good_enough(epoch):
        ...     return epoch.loss < 0.2
        >>> f = gs.losses.linear(gs.losses.least_squares)
        >>> opt = gs.SGD(np.zeros(1), lr=0.5)
        >>> data = np.ones((1, 1)), np.ones(1)
        >>> gs.train(opt, f, data, epochs=9, callbacks=[good_enough]).reason
        'callback: good_enough asked to stop after epoch 2'
    """

    epoch: int
    steps: int
    loss: float
    val_loss: float | None
    lr: float
    grad_norm: float
    seconds: float
    opt: Any


class History(dict[str, list[float]]):
    """What a run measured: a list per quantity, with an item per epoch.

    The keys are "loss", "val_loss" (where there was validation data), "lr", "grad_norm" and
    "seconds", as in `Epoch`. An epoch cut short by `max_steps` has its items too; one that met a
    non-finite number has none.

    Attributes:
        stop: what ended the run: "callback", "tolerance", "patience", "epochs", "max_steps" or
            "non-finite".
        reason: the same in words and numbers.
        steps: steps that were taken and not undone.

    Example:
        >>> import numpy as np, gradstep as gs
        >>> f = gs.losses.linear(gs.losses.least_squares)
        >>> opt = gs.SGD(np.zeros(1), lr=0.5)
        >>> history = gs.train(opt, f, (np.ones((1, 1)), np.ones(1)), epochs=3, seed=0)
        >>> history
        <History of 3 epochs, 3 steps; epochs: 3 done>
        >>> history["loss"]
        [0.5, 0.125, 0.03125]
    """

    def __init__(self, validated: bool = False) -> None:
        names = ["loss", "val_loss", "lr", "grad_norm", "seconds"]
        super().__init__({name: [] for name in names if validated or name != "val_loss"})
        self.stop: Stop | None = None
        self.reason = ""
        self.steps = 0

    @property
    def epochs(self) -> int:
        """The number of items in each list."""
        return len(self["loss"])

    def __repr__(self) -> str:
        return f"<History of {self.epochs} epochs, {self.steps} steps; {self.reason}>"

    def _append(self, epoch: Epoch) -> None:
        for name, values in self.items():
            values.append(getattr(epoch, name))
