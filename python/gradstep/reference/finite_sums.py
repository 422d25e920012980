"""The rules that keep gradients."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from .rules import clipped

Array = NDArray[Any]


def window_sag(w: Array, g: Array, d: Array, y: Array, *, t: int, lr: float, seen: float) -> None:
    d += g - y
    y[...] = g
    w -= lr / seen * d


def sag(
    w: Array, g: Array, d: Array, y: Array, *,
    t: int, lr: float, row_weight: float, weight_seen: float,
) -> None:  # fmt: skip
    d += row_weight * (g - y)
    y[...] = g
    w -= lr / weight_seen * d


def saga(
    w: Array, g: Array, d: Array, y: Array, *,
    t: int, lr: float, row_weight: float, weight_seen: float, rows_seen: float,
) -> None:  # fmt: skip
    delta = g - y
    d += row_weight * delta
    y[...] = g
    jump, step = lr * ((rows_seen - 1) * row_weight / weight_seen), lr / weight_seen
    w -= jump * delta + step * d


def saga_l1(
    w: Array, g: Array, d: Array, y: Array, *, t: int, lr: float, l1: float, **seen: float
) -> None:
    saga(w, g, d, y, t=t, lr=lr, **seen)
    threshold = w.dtype.type(lr * l1)
    w -= clipped(w, threshold)


def svrg(w: Array, g: Array, snapshot_grad: Array, mu: Array, *, t: int, lr: float) -> None:
    w -= lr * (g - snapshot_grad + mu)
