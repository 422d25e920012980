"""A training loop compiled by Numba, which calls gradstep's C API with no Python on the way.

Needs Numba: pip install "gradstep[examples]".
"""

import ctypes

import numba
import numpy as np

import gradstep as gs

# gradstep_array and gradstep_scalars of gradstep.h. A pointer is a whole number here.
ARRAY = np.dtype(
    [
        ("param", "u8"),
        ("grad", "u8"),
        ("states", "u8", 4),
        ("size", "i8"),
        ("dtype", "i4"),
        ("held", "i4"),
    ]
)
SCALARS = np.dtype(
    [
        ("scalars_size", "u8"),
        ("array_size", "u8"),
        ("t", "i8"),
        ("hyper", "u8"),
        ("hyper_count", "i8"),
    ]
    + [("weight_decay", "f8"), ("grad_scale", "f8"), ("clip_norm", "u8"), ("clip_value", "u8")]
    + [(flag, "i4") for flag in ("maximize", "zero_grad", "skip_nonfinite", "flush_denormals")]
)
FLOAT64 = 2

library = ctypes.CDLL(gs.get_library())
library.gradstep_find_rule.restype = ctypes.c_void_p
library.gradstep_last_error.restype = ctypes.c_char_p
gradstep_step = library.gradstep_step
POINTER = ctypes.c_size_t
gradstep_step.argtypes = [POINTER, POINTER, ctypes.c_int64, POINTER, POINTER]


@numba.njit
def train(rule, arrays_at, scalars, scalars_at, x, y, w, grad, steps):
    """Least squares, a row at a time. Returns a status of the C API, 0 if all went well."""
    for step in range(steps):
        row = step % len(x)
        error = -y[row]
        for k in range(w.size):
            error += w[k] * x[row, k]
        for k in range(w.size):
            grad[k] = error * x[row, k]
        scalars[0].t = step + 1
        status = gradstep_step(rule, arrays_at, 1, scalars_at, 0)
        if status != 0:
            return status
    return 0


rng = np.random.default_rng(0)
x = np.column_stack([np.ones(500), rng.uniform(-1, 1, 500)])
y = x @ [4.0, 3.5]
w, grad, m, v = np.zeros((4, 2))
hyper = np.array([0.02, 0.9, 0.999, 1e-8, 1.0])  # lr, beta1, beta2, eps, bias_correction

arrays = np.zeros(1, ARRAY)
arrays["param"], arrays["grad"] = w.ctypes.data, grad.ctypes.data
arrays["states"][0, :2] = m.ctypes.data, v.ctypes.data
arrays["size"], arrays["dtype"] = w.size, FLOAT64
scalars = np.zeros(1, SCALARS)
scalars["scalars_size"], scalars["array_size"] = SCALARS.itemsize, ARRAY.itemsize
scalars["hyper"], scalars["hyper_count"] = hyper.ctypes.data, hyper.size
scalars["grad_scale"] = 1.0

adam = library.gradstep_find_rule(b"adam")
places = arrays.ctypes.data, scalars, scalars.ctypes.data
status = train(adam, *places, x, y, w, grad, 5000)
if status != 0:
    raise SystemExit(library.gradstep_last_error().decode())
print(f"y = {w[1]:.4f} x + {w[0]:.4f}")

# The same by Python's class has the same bits.
expected = np.zeros(2)
opt = gs.Adam(expected, lr=0.02)
for step in range(5000):
    row = x[step % len(x)]
    error = -y[step % len(x)] + expected[0] * row[0] + expected[1] * row[1]
    opt.step(error * row)
print(f"the same bits: {np.array_equal(w, expected)}")
