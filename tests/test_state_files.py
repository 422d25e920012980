"""State files: whole or absent, refused when they do not fit, never half loaded."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import gradstep as gs
from gradstep import checkpoint
from gradstep._engine import files as state_files
from oracle import NO_ARRAY

needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs signals and modes of POSIX")


def optimizer(cls=gs.Adam, shape=(3, 2), dtype=np.float64, **options):
    opt = cls({"w": np.ones(shape, dtype), 7: np.ones(2, dtype)}, **options)
    opt.step({"w": np.full(shape, 0.5, dtype), 7: np.ones(2, dtype)})
    return opt


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "state.npz"
    optimizer().save(path)
    return path


def refuses(opt, path, message):
    before = [array.copy() for array in opt._arrays()]
    t, hyper = opt.t, opt.hyperparameters
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        opt.load(path)
    assert str(path) in str(caught.value)
    assert (opt.t, opt.hyperparameters) == (t, hyper)
    for array, kept in zip(opt._arrays(), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_whole_round_trip_in_place(saved):
    opt = optimizer()
    w = opt.params["w"]
    for array in opt._arrays():
        array.fill(9)
    opt.step({"w": np.ones((3, 2)), 7: np.ones(2)})
    opt.load(saved)
    for array, kept in zip(opt._arrays(), optimizer()._arrays(), strict=True):
        np.testing.assert_array_equal(array, kept)
    assert opt.t == 1
    assert opt.params["w"] is w


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: optimizer(gs.SGD), "the state is of the rule 'adam', this optimizer's is 'sgd'"),
        (lambda: optimizer(amsgrad=True), "this optimizer's is 'adam_amsgrad'"),
        (lambda: optimizer(gs.AdamW), "this optimizer's is 'adamw'"),
        (lambda: optimizer(shape=(2, 3)), "params['w'] is float64 of shape (3, 2), not float64"),
        (
            lambda: optimizer(dtype=np.float32),
            "params['w'] is float64 of shape (3, 2), not float32",
        ),
        (lambda: gs.Adam(np.ones(3)), "its params are a dict, here they are an array"),
        (lambda: optimizer(lr=lambda step: 0.1), "lr is 0.001 in the state (None: a schedule)"),
    ],
)
def test_file_of_another_optimizer(saved, other, message):
    refuses(other(), saved, message)


def test_file_of_a_schedule_into_a_number(tmp_path):
    optimizer(lr=gs.schedules.constant(0.1)).save(tmp_path / "state.npz")
    refuses(optimizer(), tmp_path / "state.npz", "lr is None in the state (None: a schedule)")
    again = optimizer(lr=gs.schedules.constant(0.1))
    again.load(tmp_path / "state.npz")
    assert again.t == 1


def test_file_of_another_kind_of_structure(tmp_path):
    gs.Adam([np.ones(2), np.ones(2)]).save(tmp_path / "state.npz")
    by_number = gs.Adam({0: np.ones(2), 1: np.ones(2)})
    refuses(by_number, tmp_path / "state.npz", "its params are a sequence, here they are a dict")
    gs.Adam((np.ones(2), np.ones(2))).load(tmp_path / "state.npz")


def test_keys_of_any_text(tmp_path):
    keys = ["a\0b", "a\0c", "x" * 70_000, "../up", "meta", "\udcff", "ä", 1, (2, 3), np.str_("n")]
    params = {key: np.full(2, float(i)) for i, key in enumerate(keys)}
    gs.Adam(params).save(tmp_path / "state.npz")
    again = gs.Adam({key: np.zeros(2) for key in [*keys[:-1], "n"]})
    again.load(tmp_path / "state.npz")
    for key, array in params.items():
        np.testing.assert_array_equal(again.params[key], array)
    with pytest.raises(ValueError, match="grads"):
        again.step({key: np.zeros(3) for key in [*keys[:-1], "n"]})


def test_table_of_another_size(tmp_path):
    opt = gs.SAG(np.ones(2), lr=0.1, rows=3)
    opt.save(tmp_path / "state.npz")
    message = "state y is float64 of shape (3, 2), not float64 of shape (4, 2)"
    refuses(gs.SAG(np.ones(2), lr=0.1, rows=4), tmp_path / "state.npz", message)


@pytest.mark.parametrize("keep", [0, 1, 10, 0.3, 0.9, -1])
def test_truncated_file(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
    refuses(optimizer(), saved, "is not a gradstep state file, or is damaged")


def test_every_flipped_byte_is_found_or_harmless(saved):
    """A flipped byte raises, or loads what was saved (dates of the archive, say)."""
    data = bytearray(saved.read_bytes())
    wanted = optimizer()
    found = 0
    for position in range(0, len(data), 7):
        data[position] ^= 0xFF
        saved.write_bytes(data)
        data[position] ^= 0xFF
        opt = optimizer()
        for array in opt._arrays():
            array.fill(9)
        try:
            opt.load(saved)
        except ValueError:
            found += 1
            wanted_now = [np.full_like(array, 9) for array in wanted._arrays()]
        else:
            wanted_now = wanted._arrays()
        for array, kept in zip(opt._arrays(), wanted_now, strict=True):
            np.testing.assert_array_equal(array, kept)
    assert found > len(data) // 7 // 2


def shared(path, opt, spans, shapes=None, dtypes=None):
    """What two processes saved, with this header: of one array and Adam."""
    token = "0123456789abcdef"
    vectors = {"params": opt.params, **{f"state {n}": a for n, a in opt.state.items()}}
    for number, own in enumerate([[(0, 3)], [(3, opt.params.size)]]):
        parts = {k: {a: v[a:b] for a, b in own} for k, v in vectors.items()}
        state_files.write_shard(path, token, number, parts)
    known = {k: str(v.dtype) for k, v in vectors.items()}
    shards = state_files.Shards(token, spans, shapes or {"": opt.params.shape}, dtypes or known)
    state_files.write(path, {**checkpoint.meta_of(opt), "params": "an array", **shards.meta()}, {})


def test_headers_of_several_processes_that_do_not_fit(tmp_path):
    path = tmp_path / "state"
    opt = gs.Adam(np.arange(5.0))
    opt.step(np.ones(5))
    spans, names = [[(0, 3)], [(3, 5)]], ("params", "state m", "state v")
    shared(path, opt, spans)
    again = gs.Adam(np.zeros(5))
    again.load(path)
    assert again.params.tobytes() == opt.params.tobytes()
    for changes, message in (
        ({"spans": [[], []]}, "spans with gaps"),
        ({"spans": [[(0, 3)], [(4, 5)]]}, "spans with gaps"),
        ({"spans": [[(0, 3)], [(2, 5)]]}, "spans with gaps"),
        ({"spans": [[(0, 3)], [(3, 6)]]}, "spans with gaps"),
        ({"spans": [[(0, 3)], [(3, 3), (3, 5)]]}, "an empty span"),
        ({"spans": [[(0, 3)], [("3", 5)]]}, "damaged: spans"),
        ({"spans": 7}, "damaged: spans"),
        ({"shapes": {"": 5}}, "damaged: shapes"),
        ({"shapes": {"": (-5,)}}, "damaged: shapes"),
        ({"spans": [[(0, 3)], [(3, 2**53)]], "shapes": {"": (2**53,)}}, "bytes, not the "),
        ({"dtypes": dict.fromkeys(names, "object")}, "the dtype of params"),
        ({"dtypes": {"params": "float64"}}, "is not the part of"),
        ({"dtypes": dict.fromkeys((*names, "state x"), "float64")}, "is not the part of"),
        ({"dtypes": dict.fromkeys(names, "float32")}, "is not the part of"),
    ):
        shared(path, opt, **{"spans": spans, **changes})
        with pytest.raises(ValueError, match=re.escape(message)):
            again.load(path)
        assert again.params.tobytes() == opt.params.tobytes()


def test_loading_does_not_ask_numpy_what_is_an_error(tmp_path):
    """A conversion that underflows, and a signalling NaN, with warnings as errors: loaded whole."""
    wide = gs.Adam([np.full(3, 1e-300), np.full(3, 1e300)])
    wide.step([np.full(3, 1e-300), np.ones(3)])
    wide.state["m"][1][0] = np.array([0x7FF4000000000001], np.uint64).view(np.float64)[0]
    wide.save(tmp_path / "state")
    for how in ("file", "dict"):
        narrow = gs.Adam([np.ones(3, np.float32), np.ones(3, np.float32)], state_dtype="float16")
        copies = gs.SGD(np.full(3, 1e-30, np.float32))
        with np.errstate(all="raise"):
            if how == "file":
                narrow.load(tmp_path / "state", convert=True)
                assert narrow.params[0].tolist() == [0, 0, 0]
            else:
                narrow.load_state_dict(wide.state_dict(), convert=True)
            copies = gs.SGD(copies.params, copy_to=np.ones(3, np.float16))
            copies.load_state_dict(copies.state_dict())
        assert narrow.t == 1
        assert narrow.state["m"][0].tolist() == [0, 0, 0]
        assert np.isnan(narrow.state["m"][1][0])


def test_moving_the_parameters_does_not_ask_numpy_what_is_an_error():
    small = np.linspace(1e-39, 3e-37, 99, dtype=np.float32)
    for make, act in ((gs.ScheduleFreeSGD, "eval"), (gs.Nesterov, "settle")):
        opt, plain = (make([small.copy(), small.copy()], 0.5) for _ in "ab")
        for one in (opt, plain, opt, plain, opt, plain):
            one.step([small, small])
        with np.errstate(all="raise"):
            getattr(opt, act)()
        getattr(plain, act)()
        for a, b in zip(opt._arrays(), plain._arrays(), strict=True):
            assert a.tobytes() == b.tobytes()


def test_state_dict_is_copied():
    first, *others = (gs.Adam(np.ones(3)) for _ in range(3))
    first.step(np.ones(3))
    state = first.state_dict()
    for other in others:
        other.load_state_dict(state)
        other.step(np.ones(3))
    for other in others:
        assert other.state["m"].tobytes() == others[0].state["m"].tobytes()
        assert other.state["m"][0] != first.state["m"][0] == state["state"]["m"][0]


def test_a_table_of_rows_neither_seen_nor_not():
    opt = gs.SAG(np.ones(2), lr=0.1, rows=3)
    state = opt.state_dict()
    state["counters"]["seen"].view(np.uint8)[:] = 2
    with pytest.raises(ValueError, match="counter seen must be True or False everywhere"):
        opt.load_state_dict(state)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "other.npz"
    path.write_text("hello")
    refuses(optimizer(), path, "is not a gradstep state file")
    np.savez(path, w=np.ones(3))
    refuses(optimizer(), path, "is not a gradstep state file")
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    refuses(optimizer(), path, "is not a gradstep state file")
    np.savez(path, meta=np.array([{"format": "gradstep state 1"}], object), allow_pickle=True)
    refuses(optimizer(), path, "is not a gradstep state file")
    np.savez(path, meta=np.frombuffer(b'{"format": "gradstep state 99"}', np.uint8))
    refuses(optimizer(), path, "has the format 'gradstep state 99', not 'gradstep state 1'")
    np.savez(path, meta=np.frombuffer(b'{"format": "gradstep state 1"}', np.uint8))
    refuses(optimizer(), path, "is not a gradstep state file, or is damaged: KeyError")
    with pytest.raises(FileNotFoundError):
        optimizer().load(tmp_path / "absent.npz")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rule": "sgd"}, ValueError, "the state is of the rule 'sgd'"),
        ({"t": -1}, ValueError, "t must be at least 0, got -1"),
        ({"t": 2**64}, ValueError, "t must be at most 2**53, got 18446744073709551616"),
        ({"state": None}, TypeError, "state must be a dict, got None"),
        ({"hyperparameters": [1]}, TypeError, "hyperparameters must be a dict, got [1]"),
        ({"counters": None}, TypeError, "counters must be a dict, got None"),
        ({"t": 1.5}, TypeError, "t must be a whole number, got 1.5"),
        ({"state": {}}, ValueError, "state does not fit: missing ['m', 'v'], unknown []"),
        (
            {"hyperparameters": {"lr": 1}},
            ValueError,
            "hyperparameters does not fit: missing ['beta1'",
        ),
        (
            {"state": {"m": np.ones(3), "v": [1.0] * 3}},
            TypeError,
            f"state v {NO_ARRAY}list",
        ),
        ({"state": {"m": np.ones(4), "v": np.ones(3)}}, ValueError, "state m is float64 of shape"),
        (
            {"counters": {"seen": np.ones(3)}},
            ValueError,
            "counters does not fit: missing [], unknown ['seen']",
        ),
    ],
)
def test_bad_state_dict(change, error, message):
    opt = gs.Adam(np.ones(3))
    opt.step(np.ones(3))
    before = opt.state_dict()
    with pytest.raises(error, match=re.escape(message)):
        opt.load_state_dict({**before, **change})
    assert opt.t == 1
    np.testing.assert_array_equal(opt.state["m"], before["state"]["m"])


def test_state_dict_that_lacks_a_part():
    with pytest.raises(
        ValueError, match=re.escape("state_dict does not fit: missing ['rule', 'hyper")
    ):
        gs.Adam(np.ones(3)).load_state_dict({"t": 1, "state": {}, "counters": {}})


def test_state_dict_of_live_arrays():
    """Copying one state over another would lose the other."""
    opt = gs.Adam(np.ones(3))
    opt.step(np.ones(3))
    live = {**opt.state_dict(), "state": {"m": opt.state["v"], "v": opt.state["m"]}}
    with pytest.raises(ValueError, match="state m shares memory with state v"):
        opt.load_state_dict(live)


def test_out_of_range_hyperparameters_in_a_file(tmp_path, monkeypatch):
    opt = optimizer()
    opt._hyper["beta1"] = 1.5
    opt.save(tmp_path / "state.npz")
    refuses(optimizer(), tmp_path / "state.npz", "beta1 must be in [0, 1), got 1.5")


def test_saving_into_nothing_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        optimizer().save(tmp_path / "no" / "state.npz")
    assert list(tmp_path.iterdir()) == []


def test_saving_that_fails_half_way_leaves_the_old_file(saved, monkeypatch):
    def half_a_file(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    before = saved.read_bytes()
    monkeypatch.setattr(np, "savez", half_a_file)
    with pytest.raises(OSError, match="no space left"):
        optimizer().save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@needs_posix
def test_a_file_has_its_name_once_all_of_it_is_on_disk(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(path, target):
        done.append("name")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    optimizer().save(tmp_path / "state.npz")
    assert done == ["file", "name", "directory"]


def with_member(path, name, data):
    """A state file in which a member of the archive holds other bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, before in members.items():
            archive.writestr(member, data if member == name else before)


class Command:
    """What a pickle runs."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_pickle_in_a_file_does_not_run(saved, tmp_path, monkeypatch):
    """Even one as large as the numbers would be that the header of its array speaks of."""
    monkeypatch.chdir(tmp_path)
    code = pickle.dumps(Command())
    code += bytes(-len(code) % 8)
    header = {"descr": "|O", "fortran_order": False, "shape": (len(code) // 8,)}
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, header)
    with_member(saved, "array_0.npy", member.getvalue() + code)
    refuses(optimizer(), saved, "Object arrays cannot be loaded when allow_pickle=False")
    assert list(tmp_path.iterdir()) == [saved]


def test_an_array_with_more_bytes_than_its_shape_has(saved):
    with zipfile.ZipFile(saved) as archive:
        member = archive.read("array_0.npy")
    with_member(saved, "array_0.npy", member + bytes(8))
    refuses(optimizer(), saved, "array_0 is not as large as its shape")


def test_a_file_that_would_not_fit_into_memory(saved):
    """A small archive can hold much, if it is compressed or names the same bytes many times."""
    with zipfile.ZipFile(saved) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    refuses(optimizer(), saved, "it is compressed")
    with zipfile.ZipFile(saved, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        for i in range(99):
            archive.filelist.append(copy.copy(archive.filelist[-1]))
            archive.filelist[-1].filename = f"again_{i}.npy"
    refuses(optimizer(), saved, "it is shorter than its members")


def test_two_arrays_of_one_name(saved):
    with zipfile.ZipFile(saved) as archive:
        header = json.loads(np.load(io.BytesIO(archive.read("meta.npy"))).tobytes())
    header["arrays"][1] = header["arrays"][0]
    member = io.BytesIO()
    np.save(member, np.frombuffer(json.dumps(header).encode(), np.uint8))
    with_member(saved, "meta.npy", member.getvalue())
    refuses(optimizer(), saved, f"the name {header['arrays'][0]!r} of an array")


@needs_posix
def test_saving_over_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(OSError, match="it is not a regular file"):
            optimizer().save(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@needs_posix
def test_saving_keeps_mode_and_links(saved):
    saved.chmod(0o640)
    link = saved.with_name("link")
    link.symlink_to(saved)
    optimizer().save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640


@needs_posix
def test_saved_file_has_ordinary_permissions(saved):
    plain = saved.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["plain", "state.npz"]


SAVE_FOREVER = """
import sys, numpy as np, gradstep as gs
w = np.zeros(200_000)
opt = gs.Adam(w)
while True:
    opt.step(np.ones(200_000))
    opt.params.fill(opt.t)
    opt.save(sys.argv[1])
    print(opt.t, flush=True)
"""


@needs_posix
def test_killed_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "state.npz"
    for attempt in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, path], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        opt = gs.Adam(np.zeros(200_000))
        opt.load(path)
        assert opt.t > 0
        np.testing.assert_array_equal(opt.params, np.full(200_000, float(opt.t)))
