"""Learners on two GPUs, joined by NCCL, make the update of one; with gloo the same on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "on_several.py"


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("gloo", marks=[pytest.mark.slow, pytest.mark.timeout(400)]),
        pytest.param("nccl", marks=[pytest.mark.gpu, pytest.mark.timeout(480)]),
    ],
)
def test_two_learners_make_the_update_of_one(tmp_path: Path, backend: str) -> None:
    if backend == "nccl" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    environment = os.environ | ({"GLOO_SOCKET_IFNAME": "lo"} if backend == "gloo" else {})
    for size in (1, 2):
        words = [[sys.executable, str(SCRIPT), str(i), str(size), str(tmp_path), backend] for i in range(size)]
        learners = [subprocess.Popen(each, env=environment) for each in words]
        assert [learner.wait(300) for learner in learners] == [0] * size
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert torch.equal(first, second)
    assert torch.allclose(one, first, rtol=0, atol=1e-5)
