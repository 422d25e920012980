"""The examples that take arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_torch_train(tmp_path):
    """Both optimizers go the same way, and the picture is one."""
    pytest.importorskip("torch", reason="needs PyTorch")
    picture = tmp_path / "picture.png"
    command = [sys.executable, EXAMPLES / "torch_train.py", "--epochs", "2", "--output", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert "gradstep.torch.Adam" in done.stdout
    difference = float(done.stdout.split("largest difference of the losses: ")[1].split()[0])
    assert 0 <= difference < 1e-4
    assert picture.read_bytes().startswith(b"\x89PNG")
