"""`gradstep compare`: every rule on one data set, in a table and a picture."""

from .comparison import (
    MAX_SINGLE_EPOCHS,
    MAX_SINGLE_ROWS,
    PATH_BATCH,
    PATH_START,
    PATH_STEPS,
    Comparison,
    compare,
)
from .picture import BEST_COLOURS, OTHERS, draw, save_picture
from .problem import Batches, Problem
from .recipes import (
    ALL_RULES,
    FINITE_SUM_BATCHES,
    FINITE_SUM_PASSES,
    FINITE_SUM_RULES,
    ROW_METHODS,
    RULES,
    WINDOW,
    LearningRate,
    Recipe,
    as_it_is,
    find_rules,
    half_the_bound,
    of_weights,
    over_curvature,
    recipe_for,
)
from .runs import FiniteSum, Race, Run, Training, judged_by
from .tables import table

__all__ = [
    "ALL_RULES",
    "BEST_COLOURS",
    "FINITE_SUM_BATCHES",
    "FINITE_SUM_PASSES",
    "FINITE_SUM_RULES",
    "MAX_SINGLE_EPOCHS",
    "MAX_SINGLE_ROWS",
    "OTHERS",
    "PATH_BATCH",
    "PATH_START",
    "PATH_STEPS",
    "ROW_METHODS",
    "RULES",
    "WINDOW",
    "Batches",
    "Comparison",
    "FiniteSum",
    "LearningRate",
    "Problem",
    "Race",
    "Recipe",
    "Run",
    "Training",
    "as_it_is",
    "compare",
    "draw",
    "find_rules",
    "half_the_bound",
    "judged_by",
    "of_weights",
    "over_curvature",
    "recipe_for",
    "save_picture",
    "table",
]
