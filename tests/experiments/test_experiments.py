"""Every experiment that `metagrad list` shows runs."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cluster.launch import run
from experiments import EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_tiny_updates(name: str, tmp_path: Path) -> None:
    experiment = replace(
        EXPERIMENTS[name](),
        environments=2,
        rollout_length=2,
        updates=2,
        topology="colocated",
        learner_threads=1,
    )
    summary = run(experiment, tmp_path, False, Console(file=StringIO()))
    assert (summary["experiment"], summary["updates"]) == (name, 2)
    assert summary["frames_real"] == 8
    assert summary["frames_lookahead"] == experiment.meta.n * 8
