"""The gradient step on CPUs: update rules as fused native kernels, in place on NumPy arrays."""

from . import functional, losses, optimizers, reference, schedules
from ._core import __version__
from .arena import Arena, flatten
from .embedding import get_cmake_dir, get_include, get_library
from .optimizers import *  # noqa: F403 - the classes, which each family lists
from .runtime import get_num_threads, info, set_num_threads
from .stability import max_stable_lr
from .training import History, batches, train

__all__ = [
    "Arena",
    "History",
    "__version__",
    "batches",
    "flatten",
    "functional",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "info",
    "losses",
    "max_stable_lr",
    "reference",
    "schedules",
    "set_num_threads",
    "train",
]
__all__ += optimizers.__all__
