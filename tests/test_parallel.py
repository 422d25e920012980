"""No hang: threads of Python, children of fork, and multiprocessing. Each under a time limit."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest

import gradstep as gs
from oracle import SPAN, python

SIZE = 4 * SPAN + 5
STEPS = 20

pytestmark = pytest.mark.timeout(60)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(autouse=True)
def _two_threads():
    before = gs.get_num_threads()
    gs.set_num_threads(2)
    yield
    gs.set_num_threads(before)


def train(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(SIZE).astype(np.float32)
    opt = gs.Adam(w, lr=0.01)
    for _ in range(STEPS):
        opt.step(rng.standard_normal(SIZE).astype(np.float32))
    return w


def in_child(work) -> int:
    """Runs `work` in a forked child and returns its exit code; a child that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        # The default action, which ends a child that hangs outside Python too.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_python_threads_step_optimizers_at_once():
    seeds = range(4)
    alone = [train(seed) for seed in seeds]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(train, seeds))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@needs_fork
def test_other_threads_of_python_run_during_a_long_step():
    """One of them finds the optimizer in use, which only a step that lets go of the GIL shows."""
    opt, g = gs.SGD(np.zeros(SIZE, np.float32), lr=0.1), np.ones(SIZE, np.float32)
    is_found = threading.Event()

    def train():
        while not is_found.is_set():
            with contextlib.suppress(RuntimeError):  # the other one was faster
                opt.step(g)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        deadline = time.monotonic() + 30
        while not is_found.is_set() and time.monotonic() < deadline:
            try:
                opt._plan.acquire()
                opt._plan.release()
            except RuntimeError:
                is_found.set()
        seen = is_found.is_set()
        is_found.set()
        training.result()
    assert seen


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_step_in_a_child_of_a_parent_that_has_used_threads():
    expected = train(0)

    def work():
        assert gs.get_num_threads() == 2
        np.testing.assert_array_equal(train(0), expected)
        assert in_child(lambda: np.testing.assert_array_equal(train(0), expected)) == 0

    assert in_child(work) == 0
    np.testing.assert_array_equal(train(0), expected)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_step_in_a_child_forked_beside_running_threads():
    expected = train(0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(train, seed) for seed in range(6)]
        codes = [
            in_child(lambda: np.testing.assert_array_equal(train(0), expected)) for _ in range(5)
        ]
        concurrent.futures.wait(busy)
    assert codes == [0] * 5


#: Replaces pthread_create(): after `left` more calls it fails.
NO_THREADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
int left = 1 << 30;
int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg) {
  if (--left < 0) return EAGAIN;
  int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  *(void **)&create = dlsym(RTLD_NEXT, "pthread_create");
  return create(thread, attr, run, arg);
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="preloads a library")
def test_a_step_in_a_child_that_gets_no_thread_has_the_same_bits(tmp_path):
    """Whichever pass is the first that gets none, of a rule with several, or of sparse rows."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    source, library = tmp_path / "none.c", tmp_path / "none.so"
    source.write_text(NO_THREADS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    code = f"""
import ctypes, os, numpy as np, gradstep as gs
left = ctypes.c_int.in_dll(ctypes.CDLL({str(library)!r}), "left")
gs.set_num_threads(3)
size = 3 * {16 * SPAN}
def stepped(make, threads):
    left.value = 1 << 30
    w, g = np.linspace(-1, 1, size).reshape(-1, 4), np.linspace(2, 3, size).reshape(-1, 4)
    opt = make(w)
    if isinstance(opt, gs.SparseAdagrad):
        g = np.arange(len(w)) // 2, g
    for _ in range(2):
        left.value = threads
        opt.step(g, **({{"row": 0}} if isinstance(opt, gs.SAG) else {{}}))
        asked = threads - left.value
    return asked, opt.t, b"".join(a.tobytes() for a in [w, *opt.state_dict()["state"].values()])
makers = [gs.SGD, gs.Adam, gs.LAMB, gs.Adafactor, gs.SparseAdagrad]
makers += [lambda w: gs.WindowSAG(w, 0.1, 2), lambda w: gs.SAG(w, 0.1, 2)]
expected = [stepped(make, 1 << 30)[1:] for make in makers]
pid = os.fork()
if pid == 0:
    os.environ.clear()
    code = 1
    try:
        for make, wanted in zip(makers, expected):
            asked, *found = stepped(make, 1 << 30)
            assert asked > 0 and tuple(found) == wanted, (make, asked)
            for threads in range(asked + 1):
                assert stepped(make, threads)[1:] == wanted, (make, threads)
        code = 0
    finally:
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert python(code, LD_PRELOAD=str(library)) == "0\n"


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_hold_of_another_thread_ends_with_fork():
    opt = gs.SGD(np.ones(3))
    opt._plan.acquire()  # as a step of another thread does, which does not exist in the child
    assert in_child(lambda: opt.step(np.ones(3))) == 0
    opt._plan.release()


@pytest.mark.skipif(sys.platform != "linux", reason="calls GNU's OpenMP by its name on Linux")
def test_first_step_in_a_child_of_a_parent_in_which_another_library_used_openmp():
    """The threads that do not exist in the child are those of the runtime, not ours alone."""
    code = f"""
import ctypes, os, signal, numpy as np, gradstep as gs
libc, openmp = ctypes.CDLL(None), ctypes.CDLL("libgomp.so.1")
nothing = ctypes.cast(libc.free, ctypes.c_void_p)  # free(NULL)
openmp.GOMP_parallel(nothing, None, 2, 0)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    gs.set_num_threads(2)
    gs.SGD(np.ones({SIZE})).step(np.ones({SIZE}))
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert python(code) == "0\n"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(method):
    expected = [train(seed) for seed in range(3)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map_async(train, range(3)).get(timeout=50)
    for a, b in zip(results, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads by /proc")
def test_a_small_step_wakes_nobody():
    code = f"""
import os, numpy as np, gradstep as gs
gs.set_num_threads(2)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
gs.Adam(np.ones({2 * SPAN - 1})).step(np.ones({2 * SPAN - 1}))
small = count() - before
gs.Adam(np.ones({2 * SPAN})).step(np.ones({2 * SPAN}))
print(small, count() - before)
"""
    assert python(code) == "0 1\n"
