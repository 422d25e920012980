"""PyTorch as the second opinion, wherever it has the rule: 50 steps in float64, 1e-12 relative."""

from __future__ import annotations

import numpy as np
import pytest

import gradstep as gs
from gradstep import _core
from oracle import gradient

torch = pytest.importorskip("torch", reason="no PyTorch, no second opinion")
pytestmark = pytest.mark.torch

CASES = [
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.4}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr": 0.05}),
    ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-4}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.9, "centered": True, "eps": 1e-3}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.8, "centered": True, "eps": 1e-2}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "amsgrad": True}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.2, "amsgrad": True}),
    ("Adamax", {"lr": 0.02}),
    ("Adamax", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}),
    ("NAdam", {"lr": 0.02}),
    ("NAdam", {"lr": 0.02, "momentum_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.02}),
    ("RAdam", {"lr": 0.02, "betas": (0.8, 0.99), "decoupled_weight_decay": True}),
    ("Adadelta", {"lr": 2.0}),
    ("Adadelta", {"lr": 0.5, "rho": 0.7, "eps": 1e-3}),
    ("Adafactor", {"lr": 0.05}),
    ("Adafactor", {"lr": 0.02, "beta2_decay": -0.5, "eps": (1e-3, 0.1), "d": 1.5}),
    ("ASGD", {"lr": 0.05}),
    ("ASGD", {"lr": 0.05, "lambd": 0.01, "alpha": 0.6, "t0": 10}),
    ("Rprop", {"lr": 0.01}),
    ("Rprop", {"lr": 0.01, "etas": (0.3, 1.5), "step_sizes": (1e-3, 0.02)}),
]
COMMON = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"weight_decay": 0.1, "maximize": True}]


@pytest.fixture
def _scalars_in_double():
    """NAdam's and ASGD's scalars are tensors there, of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_scalars_in_double")
@pytest.mark.parametrize("common", COMMON, ids=lambda c: "-".join(c) or "plain")
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_fifty_steps(name, options, common):
    if name == "Rprop" and "weight_decay" in common:
        pytest.skip("it has none")
    start = np.random.default_rng(0).standard_normal(37)
    ours, theirs = start.copy(), torch.tensor(start, requires_grad=True)
    opt = getattr(gs, name)(ours, **{**options, **common})
    their_opt = getattr(torch.optim, name)([theirs], **{**options, **common})
    for t in range(50):
        opt.step(gradient(ours, t))
        theirs.grad = torch.tensor(gradient(theirs.detach().numpy(), t))
        their_opt.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12)
    assert abs(ours - start).max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (70, 1100), (2, 3, 5, 4)])
def test_adafactor_of_matrices(shape):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape)
    ours, theirs = start.copy(), torch.tensor(start, requires_grad=True)
    opt = gs.Adafactor(ours, lr=0.05, weight_decay=0.1)
    their_opt = torch.optim.Adafactor([theirs], lr=0.05, weight_decay=0.1)
    for _ in range(20):
        g = rng.standard_normal(shape) * rng.standard_normal(shape[-1])
        opt.step(g)
        theirs.grad = torch.tensor(g)
        their_opt.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
    for name in ("row_var", "col_var"):
        np.testing.assert_allclose(opt.state[name], their_opt.state[theirs][name], rtol=1e-12)
    assert abs(ours - start).max() > 1e-3


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES} | {"Muon"}))
def test_defaults_are_the_same(name):
    ours = getattr(gs, name)(np.ones((3, 1))).hyperparameters
    theirs = getattr(torch.optim, name)([torch.ones((3, 1))]).defaults
    for i, beta in enumerate(theirs.pop("betas", ()), 1):
        theirs[f"beta{i}"] = beta
    shared = ours.keys() & theirs.keys()
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    assert {"lr", "weight_decay"} <= shared or name == "Rprop"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.0},
        {"nesterov": False, "momentum": 0.5, "weight_decay": 0.3},
        {"adjust_lr_fn": "match_rms_adamw"},
        {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 12, "eps": 1e-3},
        {"ns_steps": 0},
    ],
    ids=str,
)
def test_muon_within_what_bfloat16_allows(shape, dtype, options):
    """PyTorch iterates in bfloat16, whose numbers are 2^-8 apart, relatively."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape).astype(dtype)
    ours, theirs = start.copy(), torch.tensor(start, requires_grad=True)
    opt = gs.Muon(ours, lr=0.01, **options)
    their_opt = torch.optim.Muon([theirs], lr=0.01, **options)
    for _ in range(20):
        g = rng.standard_normal(shape).astype(dtype)
        opt.step(g)
        theirs.grad = torch.tensor(g)
        their_opt.step()
    moved = np.linalg.norm(ours - start)
    off = np.linalg.norm(ours - theirs.detach().numpy())
    assert off < 2**-7 * moved


@pytest.mark.parametrize("threads", [1, 2])
def test_another_library_flushes_denormals(threads):
    """Its setting holds for some threads only; a step must not depend on it, nor change it."""
    before = gs.get_num_threads()
    gs.set_num_threads(threads)
    w = np.full(200_000, 1e-310)
    try:
        assert torch.set_flush_denormal(True)
        gs.SGD(w).step(np.zeros(200_000))
        assert torch.tensor(1e-310).double().mul(1).item() == 0.0
    finally:
        torch.set_flush_denormal(False)
        gs.set_num_threads(before)
    assert np.count_nonzero(w) == 200_000


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_finite_sums_where_another_library_flushes_denormals(layout):
    """Also what is formed between the kernels: sums over blocks, means, pulls of columns."""
    rows = np.full((200, 1), 1e-310)
    if layout == "csr":
        rows = rows[:, 0], np.zeros(200, np.int32), np.arange(201, dtype=np.int32), 1
    ends = []
    for flush in (False, True):
        try:
            assert torch.set_flush_denormal(flush)
            total = _core.FiniteSum(rows, np.ones(200), None, "least_squares", 1, 1.0, False)
            loss = total.snapshot()
            total.descend("saga", 0.5, 1e-310, 1e-312, False, 300, 0, 0)
            found = [total.means, total.sum, total.coef, total.table, *total.gradient()[1:], [loss]]
            ends.append(np.concatenate([np.ravel(x) for x in found]))
        finally:
            torch.set_flush_denormal(False)
    assert ends[0][0] == 1e-310
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_five_steps_in_float32(name, options):
    start = np.random.default_rng(0).uniform(1, 2, 1000).astype(np.float32)
    ours, theirs = start.copy(), torch.tensor(start, requires_grad=True)
    opt = getattr(gs, name)(ours, **options)
    their_opt = getattr(torch.optim, name)([theirs], **options)
    for t in range(5):
        g = np.random.default_rng(t).standard_normal(1000, np.float32)
        opt.step(g)
        theirs.grad = torch.tensor(g)
        their_opt.step()
    np.testing.assert_array_max_ulp(ours, theirs.detach().numpy(), 8)


def test_beside_torch_in_one_process():
    """Both have an OpenMP runtime; a step between two of torch's gives the same bits."""
    w = np.ones(200_000, np.float32)
    opt = gs.Adam(w, lr=0.1)
    other = torch.ones(200_000, requires_grad=True)
    adam = torch.optim.Adam([other], lr=0.1, fused=True)
    for _ in range(5):
        opt.step(np.ones(200_000, np.float32))
        other.grad = torch.ones(200_000)
        adam.step()
    np.testing.assert_allclose(w, other.detach().numpy(), rtol=1e-5)
