"""A whole step of a rule: what is done to the gradient, weight decay, then the rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .finite_sums import sag, saga, saga_l1, svrg, window_sag
from .layers import adafactor, lamb, lars, muon, muon_direction
from .rules import (
    adabelief,
    adadelta,
    adagrad,
    adagrad_momentum,
    adam,
    adam_amsgrad,
    adamax,
    ademamix,
    adopt,
    asgd,
    clipped,
    ftrl,
    lion,
    momentum,
    momentum_average,
    nadam,
    nesterov,
    radam,
    rmsprop,
    rmsprop_centered,
    rmsprop_centered_momentum,
    rmsprop_momentum,
    rprop,
    schedule_free_adamw,
    schedule_free_sgd,
    sgd,
    sgd_momentum,
    sgd_nesterov,
    sparse_adam,
    yogi,
)
from .storage import TOP, block_random_bits, from_blocks, random_bits, rounded, to_blocks

Array = NDArray[Any]
#: Each rule's function. Those that decay the parameter, not the gradient, are in DECOUPLED too,
#: those that are given the decay in DECAY_IN_RULE, and those whose last states are gradients, or
#: made of them, in GRADIENTS, with the number of them. What is made of them is taken AS_IT_IS.
RULES: Mapping[str, Callable[..., None]] = {
    "sgd": sgd,
    "sgd_momentum": sgd_momentum,
    "sgd_nesterov": sgd_nesterov,
    "momentum": momentum,
    "momentum_average": momentum_average,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "adagrad_momentum": adagrad_momentum,
    "rmsprop": rmsprop,
    "rmsprop_momentum": rmsprop_momentum,
    "rmsprop_centered": rmsprop_centered,
    "rmsprop_centered_momentum": rmsprop_centered_momentum,
    "adam": adam,
    "adam_amsgrad": adam_amsgrad,
    "adamw": adam,
    "adamw_amsgrad": adam_amsgrad,
    "adamax": adamax,
    "nadam": nadam,
    "nadam_decoupled": nadam,
    "radam": radam,
    "radam_decoupled": radam,
    "adadelta": adadelta,
    "adabelief": adabelief,
    "yogi": yogi,
    "ademamix": ademamix,
    "adopt": adopt,
    "adopt_decoupled": adopt,
    "ftrl": ftrl,
    "lars": lars,
    "lamb": lamb,
    "adafactor": adafactor,
    "muon_direction": muon_direction,
    "muon": muon,
    "rprop": rprop,
    "lion": lion,
    "asgd": asgd,
    "schedule_free_sgd": schedule_free_sgd,
    "schedule_free_adamw": schedule_free_adamw,
    "sparse_adam": sparse_adam,
    "sparse_adagrad": adagrad,
    "window_sag": window_sag,
    "sag": sag,
    "saga": saga,
    "saga_l1": saga_l1,
    "svrg": svrg,
}
DECOUPLED = frozenset(
    {
        "adamw", "adamw_amsgrad", "nadam_decoupled", "radam_decoupled", "adabelief", "ademamix",
        "adopt_decoupled", "muon_direction", "muon", "lion", "sag", "saga", "saga_l1", "svrg",
    }
)  # fmt: skip
DECAY_IN_RULE = frozenset({"lars", "lamb", "adafactor", "schedule_free_adamw"})
GRADIENTS: Mapping[str, int] = {"svrg": 2, "muon_direction": 1, "muon": 1}
AS_IT_IS = frozenset({"muon_direction", "muon"})


def step(
    rule: str,
    w: Array,
    g: Array,
    states: Sequence[Array],
    *,
    t: int,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float = 1.0,
    clip: float = 1.0,
    clip_value: float = math.inf,
    **hyper: float,
) -> None:
    """One step of `rule`, in place: what is done to the gradient, weight decay, then the rule.

    `clip` is the factor that clipping by the norm comes to, `min(1, clip_norm / grad_norm)`.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> w = np.ones(3)
        >>> reference.step("sgd", w, np.array([1.0, 2.0, 3.0]), [], t=1, lr=0.5)
        >>> w
        array([ 0.5,  0. , -0.5])
    """
    # Floats of Python take the array's dtype in NumPy's arithmetic, those of NumPy do not.
    hyper = {name: float(value) for name, value in hyper.items()}
    with np.errstate(all="ignore"):

        def scaled(g: Array) -> Array:
            if maximize:
                g = -g
            if grad_scale != 1:
                g = g.dtype.type(grad_scale) * g
            if clip != 1:
                g = g.dtype.type(clip) * g
            return g

        g = scaled(g)
        own = len(states) - (0 if rule in AS_IT_IS else GRADIENTS.get(rule, 0))
        states = [*states[:own], *map(scaled, states[own:])]
        if clip_value < math.inf:
            g = clipped(g, g.dtype.type(clip_value))
        if rule in DECAY_IN_RULE:
            hyper["weight_decay"] = float(weight_decay)
        elif weight_decay != 0 and rule in DECOUPLED:
            w *= 1 - hyper["lr"] * weight_decay
        elif weight_decay != 0:
            g = g + weight_decay * w
        RULES[rule](w, g, *states, t=t, **hyper)


def stored_step(
    rule: str,
    w: Array,
    g: Array,
    states: Sequence[Array],
    *,
    t: int,
    stochastic: bool = True,
    seed: int = 0,
    array: int = 0,
    first: int = 0,
    **options: Any,
) -> None:
    """`step` where memory may hold arrays in fewer bits: in float32, or float64 if `w` is.

    Example:
        >>> import numpy as np
        >>> from gradstep import reference
        >>> w = np.ones(3, np.float16)
        >>> g = np.array([1.0, 2.0, 3.0], np.float32)
        >>> reference.stored_step("sgd", w, g, [], t=1, lr=0.5)
        >>> w
        array([ 0.5,  0. , -0.5], dtype=float16)
    """
    arithmetic = np.float64 if w.dtype == np.float64 else np.float32
    wide, gradient, *wide_states = (
        from_blocks(a, w.size).reshape(w.shape) if a.dtype.name in TOP else a.astype(arithmetic)
        for a in (w, g, *states)
    )
    step(rule, wide, gradient, wide_states, t=t, **options)
    for buffer, (held, x) in enumerate(zip((w, *states), (wide, *wide_states), strict=True)):
        place = seed, t, array, buffer, x.size, first
        if held.dtype.name in TOP:
            drawn = block_random_bits(*place) if stochastic else None
            held[...] = to_blocks(x, held.dtype, drawn)
        else:
            drawn = random_bits(*place) if stochastic else None
            held[...] = rounded(x, held.dtype, drawn)
