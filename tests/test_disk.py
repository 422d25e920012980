"""States on disk: the bits of memory, window by window, with little of it resident."""

from __future__ import annotations

import mmap
import os
import re
import signal
import sys
import threading

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core, reference
from gradstep._engine import windows
from gradstep.optimizers.base import CLASSES, check_elementwise
from oracle import DTYPES, assert_same_bits, hostile, mild, needed, python

#: Larger than a window, smaller, a matrix, and nothing.
SHAPES = {"a": (30_000,), "b": (7,), "c": (130, 100), "d": (0,)}


def is_elementwise(cls) -> bool:
    try:
        check_elementwise(cls, "be")
    except TypeError:
        return False
    return True


ELEMENTWISE = [cls for cls in CLASSES if is_elementwise(cls)]


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 2 * 4096)


def arrays(dtype: type, seed: int, numbers=mild) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {k: numbers(rng, int(np.prod(s)), dtype).reshape(s) for k, s in SHAPES.items()}


def mapped(tmp_path, name: str, array: np.ndarray) -> np.ndarray:
    """The same numbers in a file."""
    path = tmp_path / f"{name}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode="r+") if array.size else array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", ELEMENTWISE)
def test_the_bits_of_memory(cls, dtype, tmp_path):
    (tmp_path / "states").mkdir()
    memory = arrays(dtype, 0)
    disk = {name: mapped(tmp_path, name, array) for name, array in memory.items()}
    arguments = {**needed(cls), "lr": 0.01}
    plain = cls(memory, **arguments)
    opt = cls(disk, state_dir=tmp_path / "states", **arguments)
    for t, treatment in enumerate(
        [{}, {}, {"clip_norm": 5.0, "zero_grad": True}, {"clip_value": 0.5, "grad_scale": 3.0}]
    ):
        grads = arrays(dtype, 1 + t)
        theirs = {name: mapped(tmp_path, f"grad{t}{name}", g) for name, g in grads.items()}
        assert opt.step(theirs, **treatment) == plain.step(grads, **treatment)
        assert opt.t == plain.t
        for name in SHAPES:
            assert_same_bits(np.asarray(theirs[name]), grads[name])
    for ours, expected in zip(opt._arrays(), plain._arrays(), strict=True):
        assert_same_bits(np.asarray(ours), expected)
    assert all(isinstance(a, np.memmap) for v in opt.state.values() for a in list(v.values())[:3])
    if hasattr(cls, "eval"):
        for each in (opt, plain):
            each.eval()
        assert_same_bits(np.asarray(disk["c"]), memory["c"])
        for each in (opt, plain):
            each.train()
    opt.save(tmp_path / "saved")
    (tmp_path / "others").mkdir()
    resumed = cls(arrays(dtype, 5), state_dir=tmp_path / "others", **arguments)
    resumed.load(tmp_path / "saved")
    grads = arrays(dtype, 9, hostile)
    resumed.step(grads)
    plain.step(grads)
    for ours, expected in zip(resumed._arrays(), plain._arrays(), strict=True):
        assert_same_bits(np.asarray(ours), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("state_dtype", ["float16", "int8"])
def test_the_bits_of_memory_where_they_are_rounded(dtype, state_dtype, tmp_path):
    """Each element by the random bits that it has in the whole array; blocks may end in part."""
    (tmp_path / "states").mkdir()
    memory = arrays(dtype, 0)
    disk = {name: mapped(tmp_path, name, array) for name, array in memory.items()}
    arguments = {"lr": 0.01, "state_dtype": state_dtype, "rounding_seed": 3}
    plain = gs.Adam(memory, **arguments)
    opt = gs.Adam(disk, state_dir=tmp_path / "states", **arguments)
    for t in range(3):
        grads = arrays(dtype, 1 + t)
        plain.step(grads, clip_norm=3.0)
        opt.step(grads, clip_norm=3.0)
    for name in SHAPES:
        assert_same_bits(np.asarray(disk[name]), memory[name])
        for state, of in plain.state.items():
            assert_same_bits(np.asarray(opt.state[state][name]), of[name])


def test_a_norm_over_float32_and_float64(tmp_path):
    """Squares of float64 beyond its range do not count as infinite because of float32 beside it."""
    results = []
    for options in ({}, {"state_dir": tmp_path}):
        params = [np.ones(9000, np.float32), np.ones(9000)]
        grads = [np.ones(9000, np.float32), np.full(9000, 1e200)]
        result = gs.SGD(params, lr=1.0, momentum=0.9, **options).step(grads, clip_norm=1.0)
        results.append((result, *[w.tobytes() for w in params]))
    assert results[0] == results[1]
    assert results[0][0].grad_norm > 1e201


def test_the_oracle_goes_by_windows_too(tmp_path):
    ours, expected = arrays(np.float64, 0), arrays(np.float64, 0)
    (tmp_path / "a").mkdir()
    opt = reference.in_numpy(gs.Adam)(ours, lr=0.1, state_dir=tmp_path / "a")
    plain = gs.Adam(expected, lr=0.1)
    grads = arrays(np.float64, 1)
    assert opt.step(grads, clip_norm=1.0) == plain.step(grads, clip_norm=1.0)
    assert_same_bits(ours["a"], expected["a"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_that_are_not_finite(tmp_path, dtype):
    for skip in (False, True):
        directory = tmp_path / str(skip)
        directory.mkdir()
        opt = gs.Adam(arrays(dtype, 0), skip_nonfinite=skip, state_dir=directory)
        plain = gs.Adam(arrays(dtype, 0), skip_nonfinite=skip)
        grads = arrays(dtype, 1)
        grads["c"][77, 3] = np.nan
        if skip:
            assert opt.step(grads).skipped
        else:
            with pytest.raises(ValueError, match="clip_norm cannot apply") as ours:
                opt.step(grads, clip_norm=1.0)
            with pytest.raises(ValueError, match="clip_norm cannot apply") as theirs:
                plain.step(grads, clip_norm=1.0)
            assert str(ours.value) == str(theirs.value)
        assert opt.t == 0
        for array, kept in zip(opt._arrays(), plain._arrays(), strict=True):
            assert_same_bits(np.asarray(array), kept)


def test_a_private_map_keeps_what_is_written(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(30_000))
    w = np.load(tmp_path / "w.npy", mmap_mode="c")
    gs.SGD(w, lr=0.5, state_dir=tmp_path).step(np.ones(30_000))
    assert (w == 0.5).all()


def test_ctrl_c_waits_for_the_last_window(ctrl_c_interrupts, tmp_path, monkeypatch):
    w, expected = np.ones(50_000), np.ones(50_000)
    opt, plain = gs.Adam(w, state_dir=tmp_path), gs.Adam(expected)
    sweep = windows.WindowedPlan._sweep

    def interrupted(self, grads, with_states):
        for number, window in enumerate(sweep(self, grads, with_states)):
            if number == 2:
                signal.raise_signal(signal.SIGINT)
            yield window

    monkeypatch.setattr(windows.WindowedPlan, "_sweep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.step(np.ones(50_000))
    plain.step(np.ones(50_000))
    assert opt.t == 1
    assert_same_bits(w, expected)
    monkeypatch.undo()
    opt.step(np.ones(50_000))
    plain.step(np.ones(50_000))
    assert_same_bits(w, expected)


def test_each_window_is_read_once_and_before_its_step(tmp_path, monkeypatch):
    w = mapped(tmp_path, "w", np.ones(5 * windows.WINDOW - 7))
    opt = gs.Adam(w, state_dir=tmp_path)
    reads, threads = [], threading.enumerate()
    read, sweep = windows._read, windows.WindowedPlan._sweep

    def noted(part):
        assert (threading.current_thread() in threads) == (len(reads) < 3)  # the first window
        read(part)
        reads.append(part)

    def watched(self, grads, with_states):
        for number, window in enumerate(sweep(self, grads, with_states)):
            assert 3 * (number + 1) <= len(reads) <= 3 * (number + 2)
            yield window

    monkeypatch.setattr(windows, "_read", noted)
    monkeypatch.setattr(windows.WindowedPlan, "_sweep", watched)
    opt.step(np.ones(w.size))
    for i, array in enumerate((w, *opt.state.values())):
        np.testing.assert_array_equal(np.concatenate(reads[i::3]), array)
        assert all(np.shares_memory(part, array) for part in reads[i::3])
    assert threading.enumerate() == threads


def test_a_step_does_not_need_the_thread_that_reads(tmp_path, monkeypatch):
    """Which only helps: a step that has begun is finished."""
    w = mapped(tmp_path, "w", np.ones(3 * windows.WINDOW))
    opt, expected = gs.Adam(w, state_dir=tmp_path), np.ones(w.size)
    read = windows._read

    def fails(part):
        if threading.current_thread() is not threading.main_thread():
            raise OSError("the disk is gone")
        read(part)

    monkeypatch.setattr(windows, "_read", fails)
    opt.step(np.ones(w.size))
    gs.Adam(expected).step(np.ones(w.size))
    assert_same_bits(np.asarray(w), expected)


def test_errors_before_the_first_window_are_raised(tmp_path, monkeypatch):
    w = mapped(tmp_path, "w", np.ones(30_000))
    opt, expected = gs.Adam(w, state_dir=tmp_path), np.ones(30_000)
    threads = threading.enumerate()

    def fails(part):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(windows, "_read", fails)
        with pytest.raises(OSError, match="the disk is gone"):
            opt.step(np.ones(30_000))
    assert threading.enumerate() == threads
    assert opt.t == 0
    assert_same_bits(np.asarray(w), expected)
    opt.step(np.ones(30_000))
    gs.Adam(expected).step(np.ones(30_000))
    assert_same_bits(np.asarray(w), expected)


def test_no_thread_is_left_where_a_step_ends_early(tmp_path, monkeypatch):
    w = mapped(tmp_path, "w", np.ones(30_000))
    grads = mapped(tmp_path, "g", np.ones(30_000))
    opt = gs.Adam(w, state_dir=tmp_path)
    threads = threading.enumerate()
    monkeypatch.setattr(_core, "norm_from", lambda total, single: total("no number"))
    with pytest.raises(TypeError) as raised:
        opt.step(grads, clip_norm=1.0)
    assert raised.traceback  # and what it holds
    assert threading.enumerate() == threads


@pytest.mark.parametrize("missing", ["madvise", "posix_fadvise"])
def test_systems_that_cannot_be_told(missing, tmp_path, monkeypatch):
    if missing == "madvise":
        monkeypatch.delattr(mmap, "MADV_DONTNEED", raising=False)
    else:
        monkeypatch.delattr(os, missing, raising=False)
    w, expected = mapped(tmp_path, "w", np.ones(30_000)), np.ones(30_000)
    gs.Adam(w, state_dir=tmp_path).step(np.ones(30_000))
    gs.Adam(expected).step(np.ones(30_000))
    assert_same_bits(np.asarray(w), expected)


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (gs.LAMB, "its steps depend on norms of whole arrays"),
        (gs.Muon, "its steps are of whole matrices"),
        (gs.WindowSAG, "it keeps a table of gradients"),
        (gs.SparseAdam, "its step needs the indices of the rows that a gradient has"),
    ],
)
def test_rules_that_are_not_elementwise(cls, why, tmp_path):
    message = f"{cls.__name__} cannot have a state_dir, because {why}"
    with pytest.raises(TypeError, match=re.escape(message)):
        cls(np.ones((2, 2)), state_dir=tmp_path, **needed(cls))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (gs.Adam, {"state_dtype": "float64"}),
        (gs.Adam, {"copy_to": np.ones(2, np.float16)}),
        (gs.Adam, {"copy_to": [np.ones(3, np.float16)]}),
        (gs.Adagrad, {"initial_accumulator_value": 1e39}),
        (gs.ScheduleFreeSGD, {"momentum": 0.0}),
    ],
)
def test_no_file_is_left_of_what_was_refused(cls, options, tmp_path):
    with pytest.raises((TypeError, ValueError)):
        cls(np.ones(3, np.float32), state_dir=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_step_is_whole_where_the_main_thread_ends(tmp_path):
    code = """
import threading, time
import numpy as np, gradstep as gs
from gradstep._engine import windows

windows.WINDOW = 4096
w = np.lib.format.open_memmap(f"{HERE}/w.npy", "w+", np.float32, (200_000,))
opt = gs.Adam(w, lr=1.0, state_dir=HERE)
inside = threading.Event()
read = windows._read

def slowly(part):
    inside.set()
    time.sleep(0.01)
    read(part)

windows._read = slowly

def step():
    opt.step(np.ones(200_000, np.float32))
    print(opt.t, np.unique(w).size)

threading.Thread(target=step).start()
inside.wait()
"""
    assert python(code.replace("HERE", repr(str(tmp_path)))).split() == ["1", "1"]


def test_directories_that_will_not_do(tmp_path):
    opt = gs.Adam(np.ones(3), state_dir=tmp_path)
    assert f"state_dir={str(tmp_path)!r})" in repr(opt)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m_0.npy", "v_0.npy"]
    (tmp_path / "m_0.npy").unlink()
    with pytest.raises(FileExistsError, match=r"state_dir holds v_0\.npy already"):
        gs.Adam(np.ones(3), state_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["v_0.npy"]
    with pytest.raises(NotADirectoryError, match="state_dir must be a directory, got"):
        gs.Adam(np.ones(3), state_dir=tmp_path / "nowhere")
    with pytest.raises(TypeError, match="state_dir must be a path, got 3"):
        gs.Adam(np.ones(3), state_dir=3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_little_is_resident(tmp_path):
    """Of 512 MB, at two threads and with a norm: less than four windows."""
    code = """
import re
import numpy as np, gradstep as gs

def peak():
    status = open("/proc/self/status").read()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

size, here = 32_000_000, HERE
w, g = (np.lib.format.open_memmap(f"{here}/{x}.npy", "w+", np.float32, (size,)) for x in "wg")
small = np.zeros(40_000, np.float32)
gs.Adam(small).step(small.copy(), clip_norm=1.0)
before = peak()
opt = gs.Adam(w, lr=0.1, state_dir=here)
for _ in range(2):
    opt.step(g, clip_norm=1.0)
print(peak() - before)
"""
    done = python(code.replace("HERE", repr(str(tmp_path))))
    assert float(done) < 128
