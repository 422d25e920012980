"""Steps shared out among processes, each of which keeps a part of the states: ZeRO, stage 1.

Every process, or rank, has all parameters and computes a gradient of its own. A step sums the
gradients such that each rank gets its part of the sum, updates that part of the parameters, and
collects the parts of the others. So the states and the work of the update shrink with the ranks.

Ranks agree before they act: what one of them refuses, all refuse, and nothing has changed on any.
An exception that nobody catches ends the processes of all ranks, once a `Sharded` has been made:
the others would wait for ever. Only `sys.exit` on one rank alone is not seen: call it on all.

Example:
    >>> import numpy as np, gradstep as gs
    >>> from gradstep.mpi import MPI, Sharded
    >>> opt = Sharded(gs.Adam, {"w": np.ones(3)}, comm=MPI.COMM_SELF, lr=0.1)
    >>> opt.grads["w"][...] = opt.params["w"]
    >>> opt.step(opt.grads)
    >>> opt.params["w"].round(3)
    array([0.9, 0.9, 0.9])

Where the processes are started by `mpiexec -n 4 python train.py`, `MPI.COMM_WORLD` is all of them.

References:
    Rajbhandari et al., ZeRO: memory optimizations toward training trillion parameter models, 2020,
    section 5.1.
"""

from .launch import MPI
from .sharded import Sharded

__all__ = ["MPI", "Sharded"]
