"""The gradient step on CPUs: update rules as fused native kernels, in place on NumPy arrays."""

from . import functional, losses, reference, schedules
from ._core import __version__
from .optimizers import (
    SAG,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
    RMSprop,
    WindowSAG,
)
from .runtime import get_num_threads, info, set_num_threads
from .training import History, batches, train

__all__ = [
    "SAG",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "History",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "RMSprop",
    "WindowSAG",
    "__version__",
    "batches",
    "functional",
    "get_num_threads",
    "info",
    "losses",
    "reference",
    "schedules",
    "set_num_threads",
    "train",
]
