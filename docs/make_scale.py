"""Makes the tables of `docs/scale.md`: `python docs/make_scale.py`."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).with_name("scale.md")
#: A node: bytes per second of its memory, network (each way) and disk, and bytes of memory.
MEMORY, NETWORK, DISK, ROOM = 300e9, 25e9, 5e9, 512e9
#: Bytes per parameter, in float32: itself, its gradient, Adam's states, and what a step moves.
PARAM, GRADIENT, STATES, MOVED = 4, 4, 8, 28
PARAMETERS = (10**9, 10**10, 10**11, 10**12)
NODES = (1, 10, 100, 1_000, 10_000)


def held(parameters: int, nodes: int) -> float:
    """Bytes in the memory of each node, which has its part of the sum and of the states."""
    its_part = STATES + (GRADIENT if nodes > 1 else 0)
    return parameters * (PARAM + GRADIENT + its_part / nodes)


def sent(parameters: int, nodes: int) -> float:
    """Bytes that each node sends, and receives, in a step: reduce-scatter and allgather."""
    return parameters * (GRADIENT + PARAM) * (nodes - 1) / nodes


def seconds(parameters: int, nodes: int) -> dict[str, float]:
    """Of a step, one after the other."""
    return {
        "network": sent(parameters, nodes) / NETWORK,
        "memory": parameters * MOVED / nodes / MEMORY,
    }


def on_disk(parameters: int, nodes: int) -> float:
    """Seconds of a step where parameters, gradients and states are on disk."""
    return sent(parameters, nodes) / NETWORK + parameters * MOVED / nodes / DISK


def rounded(x: float) -> str:
    """Two digits."""
    digits = float(f"{x:.2g}")
    return f"{digits:,.0f}" if digits >= 10 else f"{digits:g}"


def size(count: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB")):
        if count >= unit:
            return f"{rounded(count / unit)} {name}"
    return f"{rounded(count / 1e6)} MB"


def duration(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{rounded(seconds / unit)} {name}"
    return f"{rounded(seconds / 1e-6)} us" if seconds else "0"


def what_binds(parameters: int, nodes: int) -> str:
    if held(parameters, nodes) > ROOM:
        return f"it does not fit; on disk a step takes {duration(on_disk(parameters, nodes))}"
    times = seconds(parameters, nodes)
    return max(times, key=lambda name: times[name])


def table() -> str:
    lines = [
        "| parameters | nodes | each holds | each sends | network | update | what binds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for parameters in PARAMETERS:
        for nodes in NODES:
            times = seconds(parameters, nodes)
            cells = [
                f"1e{len(str(parameters)) - 1}" if nodes == NODES[0] else "",
                f"{nodes:,}",
                size(held(parameters, nodes)),
                size(sent(parameters, nodes)) if nodes > 1 else "0",
                duration(times["network"]),
                duration(times["memory"]),
                what_binds(parameters, nodes),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its table made anew."""
    marks = r"(<!-- made by make_scale.py -->\n).*?(<!-- to here -->)"
    return re.sub(marks, lambda m: f"{m[1]}\n{table()}\n\n{m[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
