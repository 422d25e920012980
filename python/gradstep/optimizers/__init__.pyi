# Made by scripts/make_stubs.py.
from .adaptive import AdaBelief as AdaBelief
from .adaptive import Adadelta as Adadelta
from .adaptive import Adamax as Adamax
from .adaptive import NAdam as NAdam
from .adaptive import RAdam as RAdam
from .adaptive import Yogi as Yogi
from .averaging import ASGD as ASGD
from .averaging import ScheduleFreeAdamW as ScheduleFreeAdamW
from .averaging import ScheduleFreeSGD as ScheduleFreeSGD
from .base import CLASSES as CLASSES
from .base import Optimizer as Optimizer
from .layerwise import LAMB as LAMB
from .layerwise import LARS as LARS
from .layerwise import Adafactor as Adafactor
from .options import StepResult as StepResult
from .orthogonal import Muon as Muon
from .recent import ADOPT as ADOPT
from .recent import FTRL as FTRL
from .recent import AdEMAMix as AdEMAMix
from .rows import SAG as SAG
from .rows import SAGA as SAGA
from .signs import Lion as Lion
from .signs import Rprop as Rprop
from .sparse import SparseAdagrad as SparseAdagrad
from .sparse import SparseAdam as SparseAdam
from .svrg import SVRG as SVRG
from .tables import WindowSAG as WindowSAG
from .textbook import SGD as SGD
from .textbook import Adagrad as Adagrad
from .textbook import Adam as Adam
from .textbook import AdamW as AdamW
from .textbook import Momentum as Momentum
from .textbook import Nesterov as Nesterov
from .textbook import RMSprop as RMSprop

__all__ = [  # noqa: RUF022 - in the order of the families
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
