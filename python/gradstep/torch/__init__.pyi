# Made by scripts/make_stubs.py.
from typing import Any

import torch

from .backward import BackwardSteps as BackwardSteps
from .backward import step_in_backward as step_in_backward
from .optimizer import Optimizer as Optimizer
from .settings import CLASSES as CLASSES
from .variants import _Adagrad, _Muon, _ScheduleFree

__all__ = [  # noqa: RUF022 - in the order of the rules
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
    "ASGD",
    "ScheduleFreeSGD",
    "ScheduleFreeAdamW",
    "LARS",
    "LAMB",
    "Adafactor",
    "Muon",
    "Rprop",
    "Lion",
    "SparseAdam",
    "SparseAdagrad",
    "BackwardSteps",
    "step_in_backward",
]

class SGD(Optimizer, torch.optim.SGD):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        momentum: float | torch.Tensor = 0,
        dampening: float | torch.Tensor = 0,
        weight_decay: float | torch.Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: Any = None,
        differentiable: Any = False,
        fused: Any = None,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Momentum(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any,
        momentum: float | torch.Tensor = 0.9,
        average: bool = False,
        *,
        weight_decay: float | torch.Tensor = 0.0,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Nesterov(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any,
        momentum: float | torch.Tensor = 0.9,
        *,
        weight_decay: float | torch.Tensor = 0.0,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Adagrad(_Adagrad, torch.optim.Adagrad):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.01,
        lr_decay: float | torch.Tensor = 0,
        weight_decay: float | torch.Tensor = 0,
        initial_accumulator_value: float | torch.Tensor = 0,
        eps: float | torch.Tensor = 1e-10,
        foreach: Any = None,
        *,
        maximize: bool = False,
        differentiable: Any = False,
        fused: Any = None,
        beta: Any = None,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class RMSprop(Optimizer, torch.optim.RMSprop):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.01,
        alpha: float | torch.Tensor = 0.99,
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0,
        momentum: float | torch.Tensor = 0,
        centered: bool = False,
        capturable: Any = False,
        foreach: Any = None,
        maximize: bool = False,
        differentiable: Any = False,
        *,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Adam(Optimizer, torch.optim.Adam):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0,
        amsgrad: bool = False,
        *,
        foreach: Any = None,
        maximize: bool = False,
        capturable: Any = False,
        differentiable: Any = False,
        fused: Any = None,
        decoupled_weight_decay: Any = False,
        bias_correction: bool = True,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class AdamW(Optimizer, torch.optim.AdamW):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: Any = None,
        capturable: Any = False,
        differentiable: Any = False,
        fused: Any = None,
        bias_correction: bool = True,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Adamax(Optimizer, torch.optim.Adamax):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.002,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0,
        foreach: Any = None,
        *,
        maximize: bool = False,
        differentiable: Any = False,
        capturable: Any = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class NAdam(Optimizer, torch.optim.NAdam):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.002,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0,
        momentum_decay: float | torch.Tensor = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        foreach: Any = None,
        maximize: bool = False,
        capturable: Any = False,
        differentiable: Any = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class RAdam(Optimizer, torch.optim.RAdam):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: Any = None,
        maximize: bool = False,
        capturable: Any = False,
        differentiable: Any = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Adadelta(Optimizer, torch.optim.Adadelta):
    def __init__(
        self,
        params: Any,
        lr: Any = 1.0,
        rho: float | torch.Tensor = 0.9,
        eps: float | torch.Tensor = 1e-06,
        weight_decay: float | torch.Tensor = 0,
        foreach: Any = None,
        *,
        capturable: Any = False,
        maximize: bool = False,
        differentiable: Any = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class AdaBelief(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-16,
        weight_decay: float | torch.Tensor = 0.0,
        *,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Yogi(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.01,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 0.001,
        weight_decay: float | torch.Tensor = 0.0,
        initial_accumulator_value: float | torch.Tensor = 1e-06,
        *,
        bias_correction: bool = True,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class AdEMAMix(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.999, 0.9999),
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0.0,
        alpha: float | torch.Tensor = 5.0,
        *,
        alpha_warmup: float | torch.Tensor = 0.0,
        beta3_warmup: float | torch.Tensor = 0.0,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class ADOPT(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.9999),
        eps: float | torch.Tensor = 1e-06,
        weight_decay: float | torch.Tensor = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class FTRL(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.1,
        beta: float | torch.Tensor = 1.0,
        l1: float | torch.Tensor = 0.0,
        l2: float | torch.Tensor = 0.0,
        *,
        weight_decay: float | torch.Tensor = 0.0,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class ASGD(Optimizer, torch.optim.ASGD):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.01,
        lambd: float | torch.Tensor = 0.0001,
        alpha: float | torch.Tensor = 0.75,
        t0: float | torch.Tensor = 1000000.0,
        weight_decay: float | torch.Tensor = 0,
        foreach: Any = None,
        maximize: bool = False,
        differentiable: Any = False,
        capturable: Any = False,
        *,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class ScheduleFreeSGD(_ScheduleFree):
    def __init__(
        self,
        params: Any,
        lr: Any = 1.0,
        momentum: float | torch.Tensor = 0.9,
        weight_decay: float | torch.Tensor = 0.0,
        warmup_steps: int = 0,
        r: float | torch.Tensor = 0.0,
        weight_lr_power: float | torch.Tensor = 2.0,
        *,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class ScheduleFreeAdamW(_ScheduleFree):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.0025,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-08,
        weight_decay: float | torch.Tensor = 0.0,
        warmup_steps: int = 0,
        r: float | torch.Tensor = 0.0,
        weight_lr_power: float | torch.Tensor = 2.0,
        *,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class LARS(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any,
        momentum: float | torch.Tensor = 0.9,
        weight_decay: float | torch.Tensor = 0.0,
        trust_coefficient: float | torch.Tensor = 0.001,
        *,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class LAMB(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-06,
        weight_decay: float | torch.Tensor = 0.0,
        *,
        bias_correction: bool = True,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Adafactor(Optimizer, torch.optim.Adafactor):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.01,
        beta2_decay: float | torch.Tensor = -0.8,
        eps: Any = (None, 0.001),
        d: float | torch.Tensor = 1.0,
        weight_decay: float | torch.Tensor = 0.0,
        *,
        foreach: Any = None,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Muon(_Muon, torch.optim.Muon):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        weight_decay: float | torch.Tensor = 0.1,
        momentum: float | torch.Tensor = 0.95,
        nesterov: bool = True,
        ns_coefficients: Any = (3.4445, -4.775, 2.0315),
        eps: float | torch.Tensor = 1e-07,
        ns_steps: int = 5,
        adjust_lr_fn: Any = None,
        *,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Rprop(Optimizer, torch.optim.Rprop):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.01,
        etas: Any = (0.5, 1.2),
        step_sizes: Any = (1e-06, 50),
        *,
        capturable: Any = False,
        foreach: Any = None,
        maximize: bool = False,
        differentiable: Any = False,
        weight_decay: float | torch.Tensor = 0.0,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class Lion(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.0001,
        betas: Any = (0.9, 0.99),
        weight_decay: float | torch.Tensor = 0.0,
        *,
        maximize: bool = False,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class SparseAdam(Optimizer, torch.optim.SparseAdam):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.001,
        betas: Any = (0.9, 0.999),
        eps: float | torch.Tensor = 1e-08,
        maximize: bool = False,
        *,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...

class SparseAdagrad(_Adagrad, torch.optim.Adagrad):
    def __init__(
        self,
        params: Any,
        lr: Any = 0.01,
        lr_decay: float | torch.Tensor = 0,
        weight_decay: Any = 0,
        initial_accumulator_value: float | torch.Tensor = 0,
        eps: float | torch.Tensor = 1e-10,
        foreach: Any = None,
        *,
        maximize: bool = False,
        differentiable: Any = False,
        fused: Any = None,
        state_dtype: Any = None,
        rounding: str = "stochastic",
        rounding_seed: int = 0,
    ) -> None: ...
