# Made by scripts/make_stubs.py.
from . import functional as functional
from . import losses as losses
from . import reference as reference
from . import schedules as schedules
from ._core import __version__ as __version__
from .arena import Arena as Arena
from .arena import flatten as flatten
from .embedding import get_cmake_dir as get_cmake_dir
from .embedding import get_include as get_include
from .embedding import get_library as get_library
from .optimizers.adaptive import AdaBelief as AdaBelief
from .optimizers.adaptive import Adadelta as Adadelta
from .optimizers.adaptive import Adamax as Adamax
from .optimizers.adaptive import NAdam as NAdam
from .optimizers.adaptive import RAdam as RAdam
from .optimizers.adaptive import Yogi as Yogi
from .optimizers.averaging import ASGD as ASGD
from .optimizers.averaging import ScheduleFreeAdamW as ScheduleFreeAdamW
from .optimizers.averaging import ScheduleFreeSGD as ScheduleFreeSGD
from .optimizers.base import Optimizer as Optimizer
from .optimizers.layerwise import LAMB as LAMB
from .optimizers.layerwise import LARS as LARS
from .optimizers.layerwise import Adafactor as Adafactor
from .optimizers.options import StepResult as StepResult
from .optimizers.orthogonal import Muon as Muon
from .optimizers.recent import ADOPT as ADOPT
from .optimizers.recent import FTRL as FTRL
from .optimizers.recent import AdEMAMix as AdEMAMix
from .optimizers.rows import SAG as SAG
from .optimizers.rows import SAGA as SAGA
from .optimizers.signs import Lion as Lion
from .optimizers.signs import Rprop as Rprop
from .optimizers.sparse import SparseAdagrad as SparseAdagrad
from .optimizers.sparse import SparseAdam as SparseAdam
from .optimizers.svrg import SVRG as SVRG
from .optimizers.tables import WindowSAG as WindowSAG
from .optimizers.textbook import SGD as SGD
from .optimizers.textbook import Adagrad as Adagrad
from .optimizers.textbook import Adam as Adam
from .optimizers.textbook import AdamW as AdamW
from .optimizers.textbook import Momentum as Momentum
from .optimizers.textbook import Nesterov as Nesterov
from .optimizers.textbook import RMSprop as RMSprop
from .runtime import get_num_threads as get_num_threads
from .runtime import info as info
from .runtime import set_num_threads as set_num_threads
from .stability import max_stable_lr as max_stable_lr
from .training.history import History as History
from .training.loop import train as train
from .training.minibatches import batches as batches

__all__ = [  # noqa: RUF022 - in the order of the families
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
    "Optimizer",
    "StepResult",
    "SGD",
    "Momentum",
    "Nesterov",
    "Adagrad",
    "RMSprop",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "Adadelta",
    "AdaBelief",
    "Yogi",
    "AdEMAMix",
    "ADOPT",
    "FTRL",
    "LARS",
    "LAMB",
    "Adafactor",
    "Muon",
    "Rprop",
    "Lion",
    "ASGD",
    "ScheduleFreeSGD",
    "ScheduleFreeAdamW",
    "SparseAdam",
    "SparseAdagrad",
    "WindowSAG",
    "SAG",
    "SAGA",
    "SVRG",
]
