"""The rules as optimizers of PyTorch, for tensors in the memory of the CPU.

Each class is a `torch.optim.Optimizer` that takes the place of PyTorch's own: the same arguments,
defaults, parameter groups, hooks and `state_dict()`, so that a checkpoint of one goes on in the
other. A step is one native call for all tensors of all groups, however many, and has the bits of
the class of the same name in `gradstep`. The rules that PyTorch does not have are there too.

A step either fits as a whole or changes nothing: a tensor that cannot be updated is refused by name
before any other has moved. Parameters may have their axes in any order in memory. A gradient in
another order is copied into that of its parameter first; states follow when that order changes.

`SparseAdam` and `SparseAdagrad` take sparse gradients, such as those of an embedding, and move the
rows that these have; so do `SGD` and `Adagrad`, where they keep no running mean and shrink nothing.
A parameter with a sparse gradient is contiguous, and so is a matrix of `Adafactor` or `Muon`.
`Muon` iterates in the dtype of the parameter, PyTorch's in bfloat16.

Tensors are of float32 or float64. Rules without norms, factors or rows also take bfloat16 and
float16, computed in float32: parameters, gradients, and states, whose dtype is that of the
parameter unless `state_dtype` (a dtype of PyTorch or its name) is another one. `"int8"` stands for
8 bits: blocks in the order of the parameter's memory, as `gradstep.reference.to_blocks` has them,
of torch.uint8 where a state is never negative; beside fewer than 4,096 elements, states are
float32. Updated numbers are rounded stochastically (`rounding`, `rounding_seed`), so that small
steps are not lost; the random bits depend on the index of a parameter among all of the optimizer.

Example:
    >>> import torch, gradstep.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> opt = gradstep.torch.Adam(model.parameters(), lr=0.1)
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> opt.step()
    >>> opt.state[model.bias]["step"]
    tensor(1.)
"""

from . import (
    _host,  # noqa: F401 - the first one
    classes,
)
from .backward import BackwardSteps, step_in_backward
from .optimizer import Optimizer
from .settings import CLASSES

__all__ = [*CLASSES, "BackwardSteps", "step_in_backward"]


def __getattr__(name: str) -> type[Optimizer]:
    if name not in CLASSES:
        raise AttributeError(f"gradstep.torch has no {name!r}; it has {__all__}")
    made = globals()[name] = classes._optimizer(name)
    return made


def __dir__() -> list[str]:
    return __all__
