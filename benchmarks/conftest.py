"""The table at the end of a benchmark run."""

from __future__ import annotations

import gradstep as gs


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info for b in session.benchmarks if b.extra_info] if session else []
    if not rows:
        return
    info = gs.info()
    terminalreporter.write_sep(
        "-", f"gradstep against NumPy, {info['isa']}, {info['threads']} threads, {info['compiler']}"
    )
    header = f"{'step':36} {'elements':>10} {'gradstep':>11} {'NumPy':>11} {'ratio':>7} {'GB/s':>6}"
    terminalreporter.write_line(header)
    for row in sorted(rows, key=lambda row: row["size"]):
        terminalreporter.write_line(
            f"{row['name']:36} {row['size']:>10} {row['seconds'] * 1e6:>8.1f} us "
            f"{row['numpy_seconds'] * 1e6:>8.1f} us {row['ratio']:>6.1f}x "
            f"{row['bytes_per_second'] / 1e9:>6.1f}"
        )
