"""The gradient step on CPUs: update rules as fused native kernels, in place on NumPy arrays."""

from . import (
    adaptive,
    averaging,
    finite_sums,
    functional,
    layerwise,
    losses,
    optimizers,
    orthogonal,
    reference,
    schedules,
    signs,
    sparse,
)
from ._core import __version__
from ._memory import Arena, flatten
from .adaptive import *  # noqa: F403 - the classes, as below
from .averaging import *  # noqa: F403
from .embedding import get_cmake_dir, get_include, get_library
from .finite_sums import *  # noqa: F403
from .layerwise import *  # noqa: F403
from .optimizers import *  # noqa: F403 - the classes, which one list names
from .orthogonal import *  # noqa: F403
from .runtime import get_num_threads, info, set_num_threads
from .signs import *  # noqa: F403
from .sparse import *  # noqa: F403
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
for family in (optimizers, adaptive, layerwise, orthogonal, signs, averaging, sparse, finite_sums):
    __all__ += family.__all__
