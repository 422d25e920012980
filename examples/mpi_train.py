"""Softmax regression on digits by any number of processes, which share the states of Adam.

`mpiexec -n 4 python mpi_train.py` has four of them, `python mpi_train.py` one. Needs the extras
`mpi` and `linear`.
"""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import gradstep as gs
from gradstep.mpi import MPI, Sharded

comm = MPI.COMM_WORLD
x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
train, held_out = (x[:1500], y[:1500]), (x[1500:], y[1500:])


def new_optimizer() -> Sharded:
    params = {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}
    return Sharded(gs.Adam, params, comm=comm, lr=3e-2)


opt = new_optimizer()
loss_and_grad = gs.losses.linear(gs.losses.softmax)
history = gs.train(
    opt,
    loss_and_grad,
    train,
    batch_size=128,
    epochs=10,
    clip_norm=1.0,
    validation=held_out,
    seed=0,
)

with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(comm.bcast(folder)) / "digits.npz"  # where rank 0 made one
    opt.save(checkpoint)
    again = new_optimizer()
    again.load(checkpoint)
    comm.Barrier()

if comm.rank == 0:
    weight, bias = opt.params["weight"], opt.params["bias"]
    accuracy = np.mean((held_out[0] @ weight + bias).argmax(axis=1) == held_out[1])
    print(f"{comm.size} ranks: {history.reason}, held-out accuracy {accuracy:.1%}")
    print("read back with the same bits:", np.array_equal(again.params["weight"], weight))
