"""Least squares, trained in C++ by gradstep's kernels."""

import gradstep  # noqa: F401 - its library is then loaded, and the module below finds it

from ._core import fit

__all__ = ["fit"]
