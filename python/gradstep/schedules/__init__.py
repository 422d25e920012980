"""Learning-rate schedules: pure functions of the step, counted from 0.

A schedule keeps nothing between calls, so that a run resumes at any step with the same values. They
are made of IEEE + - * /, sqrt and the core's own functions: the C library's have other last bits on
other processors.

The vocabulary is one: `lr` is where the descent begins, `min_lr` (at most `lr`) where it ends and
stays, `warmup_steps` the climb from 0, `decay_steps` the descent, `total_steps` the whole. Lengths
and boundaries are whole numbers of optimizer steps. `t` is the step in the formulas.
"""

from .combine import join, piecewise, warmup
from .cycles import cosine_restarts, one_cycle, warmup_stable_decay
from .decays import cosine, exponential, inverse_sqrt, inverse_time, polynomial, step_decay
from .schedule import Schedule, constant

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "join",
    "one_cycle",
    "piecewise",
    "polynomial",
    "step_decay",
    "warmup",
    "warmup_stable_decay",
]

for _name in __all__:  # a pickle holds the public name, which stays
    globals()[_name].__module__ = __name__
