"""Who takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PLAIN = "float32"


@dataclass(frozen=True)
class Contestant:
    """Who takes part: its class in a worker, what must be installed, and its line in the picture.

    `packages` are the modules to import; `ranked` is False for what computes nothing. Who has not
    `any_storage` does a work in float32.
    """

    cls: str
    packages: tuple[str, ...]
    colour: str
    marker: str
    ranked: bool = True
    any_storage: bool = False


CONTESTANTS: Mapping[str, Contestant] = {
    "gradstep": Contestant(
        "gradstep.tools.bench.contestants:Gradstep", ("gradstep",), "#000000", "o", any_storage=True
    ),
    "roofline": Contestant(
        "gradstep.tools.bench.contestants:Roofline",
        ("gradstep",),
        "#909090",
        "",
        ranked=False,
        any_storage=True,
    ),
    PLAIN: Contestant("gradstep.tools.bench.contestants:Gradstep", ("gradstep",), "#000000", ""),
    "smaller": Contestant(
        "gradstep.tools.bench.contestants:Smaller", ("gradstep",), "#000000", "", ranked=False
    ),
    "numpy": Contestant("gradstep.tools.bench.contestants:NumPy", ("numpy",), "#CC79A7", "s"),
    "numba": Contestant("gradstep.tools.bench.numba_loops:Numba", ("numba",), "#E69F00", "D"),
    "torch": Contestant("gradstep.tools.bench.frameworks:Torch", ("torch",), "#56B4E9", "v"),
    "torch-foreach": Contestant(
        "gradstep.tools.bench.frameworks:TorchForeach", ("torch",), "#0072B2", "<"
    ),
    "torch-fused": Contestant(
        "gradstep.tools.bench.frameworks:TorchFused", ("torch",), "#003E7E", "^"
    ),
    "deepspeed": Contestant(
        "gradstep.tools.bench.frameworks:DeepSpeed", ("deepspeed", "torch"), "#009E73", "P"
    ),
    "optax": Contestant("gradstep.tools.bench.frameworks:Optax", ("optax", "jax"), "#D55E00", "X"),
    "thinc": Contestant("gradstep.tools.bench.frameworks:Thinc", ("thinc",), "#8C6D31", "p"),
}
#: In the table of classes.
CLASS_PEERS = ("numpy", "torch", "torch-foreach", "torch-fused")
#: In the table of storages.
STORAGE_PEERS = ("torch-fused",)
ALWAYS = ("gradstep", "roofline")
OURS = (*ALWAYS, PLAIN, "smaller")
PEERS: tuple[str, ...] = tuple(name for name in CONTESTANTS if name not in OURS)
