"""PyTorch, DeepSpeed, optax and thinc."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .contestants import Contestant
from .works import CLIP_NORM, Work

Array = NDArray[Any]


class Torch(Contestant):
    """`torch.optim` on tensors of PyTorch's own memory, one tensor after the other."""

    variant: ClassVar[str] = "for-loop"

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        torch: Any = import_module("torch")
        self.params = [torch.from_numpy(param).clone().requires_grad_() for param in params]
        for param in self.params:
            param.grad = torch.zeros_like(param)
        self.grads = [param.grad.numpy() for param in self.params]
        opt = self._optimizer(work)

        def clipped_step() -> None:
            torch.nn.utils.clip_grad_norm_(self.params, CLIP_NORM)
            opt.step()
            opt.zero_grad(set_to_none=False)

        self.step = clipped_step if work.clip else opt.step

    def _optimizer(self, work: Work) -> Any:
        return _in_torch(work)(self.params, **work.options, **self._ways(work)[self.variant])

    def param(self, i: int) -> Array:
        return np.asarray(self.params[i].detach())

    @classmethod
    def can(cls, work: Work) -> bool:
        return _in_torch(work) is not None and cls.variant in cls._ways(work)

    @staticmethod
    def _ways(work: Work) -> dict[str, dict[str, bool]]:
        """By name, the ways in which PyTorch can do the work, and how one asks for each."""
        asked = inspect.signature(_in_torch(work)).parameters
        ways = {"for-loop": {"foreach": False} if "foreach" in asked else {}}
        return ways | {name: {name: True} for name in ("foreach", "fused") if name in asked}


def _in_torch(work: Work) -> Any:
    """PyTorch's class for the rule, or None."""
    return getattr(import_module("torch.optim"), work.optimizer.__name__, None)


class TorchForeach(Torch):
    """One call per operation over all tensors."""

    variant = "foreach"


class TorchFused(Torch):
    """One kernel for the whole step, of the rules that have one."""

    variant = "fused"


class DeepSpeed(Torch):
    """DeepSpeed's optimizers for the CPU. They are compiled when they are first used."""

    def _optimizer(self, work: Work) -> Any:
        if work.rule == "adagrad":
            return import_module("deepspeed.ops.adagrad").DeepSpeedCPUAdagrad(
                self.params, **work.options
            )
        return import_module("deepspeed.ops.adam").DeepSpeedCPUAdam(
            self.params, **work.options, adamw_mode=work.rule == "adamw"
        )

    @classmethod
    def can(cls, work: Work) -> bool:
        return work.rule in ("adam", "adamw", "adagrad")


class Optax(Contestant):
    """A step compiled by JAX, which may reuse the memory of what it replaces."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        jax: Any = import_module("jax")
        optax: Any = import_module("optax")
        transform = self._transform(optax, work)
        if work.clip:
            transform = optax.chain(optax.clip_by_global_norm(CLIP_NORM), transform)

        def update(params: Any, state: Any, grads: Any) -> Any:
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def clipped_update(params: Any, state: Any, grads: Any) -> Any:
            return *update(params, state, grads), jax.tree.map(jax.numpy.zeros_like, grads)

        plain = jax.jit(update, donate_argnums=(0, 1))
        clipped = jax.jit(clipped_update, donate_argnums=(0, 1, 2))
        self._jax = jax
        self.params = [jax.numpy.array(param) for param in params]
        state = transform.init(self.params)

        def step() -> None:
            nonlocal state
            self.params, state = plain(self.params, state, self.grads)
            jax.block_until_ready(self.params)

        def clipped_step() -> None:
            nonlocal state
            self.params, state, self.grads = clipped(self.params, state, self.grads)
            jax.block_until_ready(self.params)

        self.step = clipped_step if work.clip else step

    def fill(self, grads: Sequence[Array]) -> None:
        self.grads = self._jax.block_until_ready([self._jax.numpy.array(grad) for grad in grads])

    @classmethod
    def can(cls, work: Work) -> bool:
        return work.rule != "amsgrad"  # it takes the largest v after the correction

    @staticmethod
    def _transform(optax: Any, work: Work) -> Any:
        """The rule in its words. Of Adagrad the eps is inside the root."""
        options = dict(work.options)
        lr = options.pop("lr")
        if "betas" in options:
            options["b1"], options["b2"] = options.pop("betas")
        if work.optimizer.__name__ == "RMSprop":
            options["decay"] = options.pop("alpha")
            options["eps_in_sqrt"] = False
        if work.optimizer.__name__ == "Adagrad":
            options["eps"] **= 2
            options["initial_accumulator_value"] = 0.0
        return getattr(optax, work.optimizer.__name__.lower())(lr, **options)


class Thinc(Contestant):
    """Thinc's Adam without averages, which leaves the gradient zeroed at every step."""

    spoils_gradient = True

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, params)
        (beta1, beta2), options = work.options["betas"], work.options
        opt = import_module("thinc.api").Adam(
            options["lr"],
            L2=options.get("weight_decay", 0.0),
            beta1=beta1,
            beta2=beta2,
            eps=options["eps"],
            grad_clip=0.0,
            use_averages=False,
        )
        keys = [(i, "w") for i in range(work.arrays)]
        arrays = list(zip(keys, self.params, self.grads, strict=True))

        def step() -> None:
            for key, param, grad in arrays:
                opt(key, param, grad)

        self.step = step

    @classmethod
    def can(cls, work: Work) -> bool:
        """Its eps comes before the correction, which shows where clipped gradients are small."""
        return work.rule in ("adam", "adamw") and not work.clip
