"""The optimizer classes, one file per family of rules, as in `cpp/src/rules/`.

`base` has what all share. A class names its native rules (variants of one equation, each a struct
in C++), picks one, and hands over the hyper-parameters by name.
"""

# ruff: noqa: F403, I001 - families in this order, each with its own list of names

from .base import CLASSES as CLASSES
from .base import Optimizer
from .options import StepResult
from . import textbook
from .textbook import *
from . import adaptive
from .adaptive import *
from . import recent
from .recent import *
from . import averaging
from .averaging import *
from . import tables
from .tables import *
from . import rows
from .rows import *
from . import svrg
from .svrg import *
from . import layerwise
from .layerwise import *
from . import orthogonal
from .orthogonal import *
from . import signs
from .signs import *
from . import sparse
from .sparse import *

__all__ = ["Optimizer", "StepResult"]
for family in (
    textbook, adaptive, recent, layerwise, orthogonal, signs, averaging, sparse, tables, rows, svrg
):  # fmt: skip
    __all__ += family.__all__
