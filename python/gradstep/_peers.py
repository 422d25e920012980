"""What `gradstep bench` runs in each of its worker processes: one optimizer of one package.

A contestant has its parameters where its users have them, in arrays of its package, and is called
as they call it. Packages are imported by name when a worker asks for them: none is needed here.
"""

from __future__ import annotations

import functools
import gc
import inspect
import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module, metadata
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import _core, reference
from .bench import CLIP_NORM, PLAIN, SMALLER, Work, draw, gradients

Array = NDArray[Any]

#: What a round of timing takes, and the calls in it.
ROUND_NS, MOST_CALLS = 20_000_000, 200
WARM_UP_NS, MOST_WARM_UPS = 2_000_000, 20
#: Where threads begin to pay for numba's loops.
NUMBA_PARALLEL = 32_768


class Contestant:
    """An optimizer on its arrays.

    `step` takes one step of the work, and is all that is timed.

    Args:
        work: what to do.
        params: the start, one array each; the contestant may keep them.
    """

    step: Callable[[], Any]
    #: Whether a step leaves another gradient than it found, whatever the work.
    spoils_gradient: ClassVar[bool] = False

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        self.params: list[Any] = list(params)
        self.grads: list[Any] = [np.empty_like(param) for param in params]

    @classmethod
    def can(cls, work: Work) -> bool:
        """Whether the package has the rule."""
        return True

    def fill(self, grads: Sequence[Array]) -> None:
        """Copy the gradients of the next step to where it reads them."""
        for mine, grad in zip(self.grads, grads, strict=True):
            np.copyto(mine, grad)

    def param(self, i: int) -> Array:
        """An array of parameters, as NumPy sees it."""
        return np.asarray(self.params[i])


class Gradstep(Contestant):
    """The optimizer class, on one array or a list of them."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, params)
        one = work.arrays == 1
        opt: Any = work.optimizer(self.params[0] if one else self.params, **work.own_options)
        clip = {"clip_norm": CLIP_NORM, "zero_grad": True} if work.clip else {}
        self.step = functools.partial(opt.step, self.grads[0] if one else self.grads, **clip)


class Smaller(Gradstep):
    """The same on `bench.SMALLER` elements."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(replace(work, size=SMALLER), [params[0][:SMALLER].copy()])

    def fill(self, grads: Sequence[Array]) -> None:
        super().fill([grads[0][:SMALLER]])

    @classmethod
    def can(cls, work: Work) -> bool:
        return work.arrays == 1 and work.size >= SMALLER


class NumPy(Contestant):
    """The expressions of `gradstep.reference`; clipped as one writes it, by BLAS's dot product."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, params)
        opt = reference.in_numpy(work.optimizer)(self.params, **work.options)

        def clipped_step() -> None:
            scale = np.float32(_clip_factor(self.grads))
            for grad in self.grads:
                grad *= scale
            opt.step(self.grads)
            for grad in self.grads:
                grad.fill(0)

        self.step = clipped_step if work.clip else functools.partial(opt.step, self.grads)


def _clip_factor(grads: Sequence[Array]) -> float:
    norm = math.sqrt(sum(float(np.dot(grad, grad)) for grad in grads))
    return min(1.0, CLIP_NORM / norm)


class Roofline(Contestant):
    """The streams of the work without its arithmetic, in one piece, where gradstep has its arrays.

    What a step writes it reads, too. Clipping reads the gradient once more and zeroing writes it:
    one more stream of each kind.
    """

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, [])
        param, read = np.concatenate(params), np.concatenate(params)
        states = [
            state.reshape(-1)[: param.size]  # of one with rows the first
            for state in work.optimizer(param, **work.options).state.values()
            if state.size >= param.size
        ]
        zeroed = [np.zeros_like(param)] * work.clip
        written = [param.reshape(-1), *states, *zeroed]
        self.step = functools.partial(_core.streams, written, read.reshape(-1))

    def fill(self, grads: Sequence[Array]) -> None:
        """Nothing: it reads numbers of its own."""

    @classmethod
    def can(cls, work: Work) -> bool:
        return work.storage == PLAIN


class Numba(Contestant):
    """A fused loop per rule, compiled by numba: with threads from 32,768 elements on."""

    def __init__(self, work: Work, params: Sequence[Array]) -> None:
        super().__init__(work, params)
        numba: Any = import_module("numba")
        kernel = _numba_kernels(numba)[_kernel_name(work)]
        parallel = work.threads > 1 and work.size >= NUMBA_PARALLEL
        # As NumPy does, a division by 0 gives infinity: a check would keep the loop from SIMD.
        update = numba.njit(parallel=parallel, error_model="numpy")(kernel)
        states = [[np.zeros_like(p) for p in params] for _ in work.states]
        arrays = list(zip(self.params, self.grads, *states, strict=True))
        hyper = _hyper(work)
        t = 0

        def step() -> None:
            nonlocal t
            t += 1
            for each in arrays:
                update(*each, t, *hyper)

        def clipped_step() -> None:
            nonlocal t
            t += 1
            factor = _clip_factor(self.grads)
            for each in arrays:
                update(*each, t, *hyper, factor)

        self.step = clipped_step if work.clip else step

    @classmethod
    def can(cls, work: Work) -> bool:
        return not work.clip or work.rule == "adam"


def _kernel_name(work: Work) -> str:
    return f"{work.rule}_clipped" if work.clip else work.rule


def _hyper(work: Work) -> list[float]:
    """The numbers among the options, in their order, with the betas taken apart."""
    values: list[float] = []
    for value in work.options.values():
        values += value if isinstance(value, tuple) else [] if isinstance(value, bool) else [value]
    return values


def _numba_kernels(numba: Any) -> Mapping[str, Callable[..., None]]:
    """The loops, in single precision throughout, to be compiled."""
    prange, sqrt, f4 = numba.prange, math.sqrt, np.float32

    def sgd(w: Array, g: Array, t: int, lr: float) -> None:
        lr4 = f4(lr)
        for i in prange(w.size):
            w[i] -= lr4 * g[i]

    def momentum(w: Array, g: Array, b: Array, t: int, lr: float, momentum: float) -> None:
        lr4, momentum4 = f4(lr), f4(momentum)
        for i in prange(w.size):
            b[i] = momentum4 * b[i] + g[i]
            w[i] -= lr4 * b[i]

    def nesterov(w: Array, g: Array, b: Array, t: int, lr: float, momentum: float) -> None:
        lr4, momentum4 = f4(lr), f4(momentum)
        for i in prange(w.size):
            b[i] = momentum4 * b[i] + g[i]
            w[i] -= lr4 * (g[i] + momentum4 * b[i])

    def adagrad(w: Array, g: Array, s: Array, t: int, lr: float, eps: float) -> None:
        lr4, eps4 = f4(lr), f4(eps)
        for i in prange(w.size):
            s[i] += g[i] * g[i]
            w[i] -= lr4 * (g[i] / (sqrt(s[i]) + eps4))

    def rmsprop(w: Array, g: Array, v: Array, t: int, lr: float, alpha: float, eps: float) -> None:
        lr4, alpha4, rest, eps4 = f4(lr), f4(alpha), f4(1 - alpha), f4(eps)
        for i in prange(w.size):
            v[i] = alpha4 * v[i] + rest * g[i] * g[i]
            w[i] -= lr4 * (g[i] / (sqrt(v[i]) + eps4))

    def rmsprop_centered(
        w: Array, g: Array, v: Array, q: Array, t: int, lr: float, alpha: float, eps: float
    ) -> None:
        lr4, alpha4, rest, eps4 = f4(lr), f4(alpha), f4(1 - alpha), f4(eps)
        for i in prange(w.size):
            v[i] = alpha4 * v[i] + rest * g[i] * g[i]
            q[i] += rest * (g[i] - q[i])
            w[i] -= lr4 * (g[i] / (sqrt(max(v[i] - q[i] * q[i], f4(0))) + eps4))

    def rmsprop_centered_momentum(
        w: Array, g: Array, v: Array, q: Array, b: Array,
        t: int, lr: float, alpha: float, eps: float, momentum: float,
    ) -> None:  # fmt: skip
        lr4, alpha4, rest, eps4, momentum4 = f4(lr), f4(alpha), f4(1 - alpha), f4(eps), f4(momentum)
        for i in prange(w.size):
            v[i] = alpha4 * v[i] + rest * g[i] * g[i]
            q[i] += rest * (g[i] - q[i])
            b[i] = momentum4 * b[i] + g[i] / (sqrt(max(v[i] - q[i] * q[i], f4(0))) + eps4)
            w[i] -= lr4 * b[i]

    def adam(
        w: Array, g: Array, m: Array, v: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t))
        for i in prange(w.size):
            m[i] = b1 * m[i] + rest1 * g[i]
            v[i] = b2 * v[i] + rest2 * g[i] * g[i]
            w[i] -= step * (m[i] / (sqrt(v[i]) * scale + eps4))

    def amsgrad(
        w: Array, g: Array, m: Array, v: Array, u: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t))
        for i in prange(w.size):
            m[i] = b1 * m[i] + rest1 * g[i]
            v[i] = b2 * v[i] + rest2 * g[i] * g[i]
            u[i] = max(u[i], v[i])
            w[i] -= step * (m[i] / (sqrt(u[i]) * scale + eps4))

    def adamw(
        w: Array, g: Array, m: Array, v: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t))
        keep = f4(1 - lr * weight_decay)
        for i in prange(w.size):
            m[i] = b1 * m[i] + rest1 * g[i]
            v[i] = b2 * v[i] + rest2 * g[i] * g[i]
            w[i] = keep * w[i] - step * (m[i] / (sqrt(v[i]) * scale + eps4))

    def adam_clipped(
        w: Array, g: Array, m: Array, v: Array,
        t: int, lr: float, beta1: float, beta2: float, eps: float, clip: float,
    ) -> None:  # fmt: skip
        b1, rest1, b2, rest2, eps4 = f4(beta1), f4(1 - beta1), f4(beta2), f4(1 - beta2), f4(eps)
        step, scale, clip4 = f4(lr / (1 - beta1**t)), f4(1 / sqrt(1 - beta2**t)), f4(clip)
        for i in prange(w.size):
            d = clip4 * g[i]
            m[i] = b1 * m[i] + rest1 * d
            v[i] = b2 * v[i] + rest2 * d * d
            w[i] -= step * (m[i] / (sqrt(v[i]) * scale + eps4))
            g[i] = f4(0)

    return {
        "sgd": sgd,
        "momentum": momentum,
        "nesterov": nesterov,
        "adagrad": adagrad,
        "rmsprop": rmsprop,
        "rmsprop_centered": rmsprop_centered,
        "rmsprop_centered_momentum": rmsprop_centered_momentum,
        "adam": adam,
        "adam_clipped": adam_clipped,
        "amsgrad": amsgrad,
        "adamw": adamw,
    }


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


class Session:
    """A contestant from its first work to its last, as the worker is told."""

    def __init__(self) -> None:
        self._class: type[Contestant] = Contestant
        self._now: Contestant | None = None
        self._refill: list[Array] = []

    def load(self, contestant: str, packages: Sequence[str], cpus: Sequence[int]) -> str:
        """Stay on these processors, if any are given, and import the packages.

        Returns:
            Their names and versions.
        """
        if cpus:
            os.sched_setaffinity(0, cpus)
        for package in packages:
            import_module(package)
        module, _, name = contestant.partition(":")
        self._class = getattr(import_module(module), name)
        return ", ".join(f"{package} {metadata.version(package)}" for package in packages)

    def start(self, work: Work) -> bool:
        """Take the steps that are checked, unless the contestant cannot do such work."""
        if not self._class.can(work):
            return False
        self._now = self._class(work, draw(work, 0))
        for grads in gradients(work):
            self._now.fill(grads)
            self._now.step()
            self._refill = grads if work.clip or self._class.spoils_gradient else []
        return True

    def param(self, i: int, begin: int, end: int) -> Array:
        """A piece of an array of parameters."""
        assert self._now is not None
        return self._now.param(i).reshape(-1)[begin:end]

    def round(self) -> float:
        """The median of some calls, in seconds."""
        assert self._now is not None
        step, fill, refill = self._now.step, self._now.fill, self._refill

        def calls(budget_ns: int, most: int) -> list[int]:
            times: list[int] = []
            while len(times) < most and sum(times) < budget_ns:
                if refill:
                    fill(refill)
                start = time.perf_counter_ns()
                step()
                times.append(time.perf_counter_ns() - start)
            return times

        gc.disable()
        calls(WARM_UP_NS, MOST_WARM_UPS)
        times = calls(ROUND_NS, MOST_CALLS)
        gc.enable()
        return float(np.median(times)) / 1e9

    def end(self) -> None:
        """Let the arrays go."""
        self._now, self._refill = None, []
        gc.collect()


def serve() -> None:
    """Answer the commands on stdin until it is closed. What packages print goes nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    session = Session()
    while True:
        try:
            command, arguments = pickle.load(commands)
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            answer = True, getattr(session, command)(*arguments)
        except ModuleNotFoundError as error:
            answer = False, f"{error.name} is not installed"
        except Exception as error:
            answer = False, " ".join(f"{type(error).__name__}: {error}".split())
        pickle.dump(answer, answers, protocol=5)
        answers.flush()
