"""Pong as it is trained: what its options make of it, and a few updates of both agents."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from metagrad.actor_critic import VtraceLoss
from metagrad.cluster.launch.launch import run
from metagrad.experiments.tasks.pong import pong
from metagrad.meta_parameters import learnt_names


def test_a_run_ends_when_its_step_size_does_and_within_5_million_decisions() -> None:
    experiment = pong()
    assert experiment.updates == experiment.optimizer.annealing_updates
    decisions = experiment.updates // experiment.updates_per_batch * experiment.steps_per_rollout
    assert 2_400_000 < decisions <= 5_000_000


def test_the_loss_of_a_batch_that_is_used_again_is_the_experiments_own() -> None:
    losses = pong().learner.meta_parameters
    assert losses == pong().meta_parameters
    assert isinstance(losses, VtraceLoss)
    assert losses.policy_clip is not None
    declared = losses.declaration((4, 84, 84), 6)
    assert learnt_names(declared) == ("gamma", "lambda", "value_coefficient", "entropy_coefficient")


@pytest.mark.parametrize("n", [0, 1])
def test_it_trains(tmp_path: Path, n: int) -> None:
    """Two batches of four games; with a look-ahead the meta-parameters move once for each."""
    base = pong()
    experiment = replace(
        base,
        environments=4,
        rollout_length=6,
        updates=2 * base.updates_per_batch,
        meta=replace(base.meta, n=n),
        learner_threads=1,
    )
    run(experiment, tmp_path, False, Console(file=StringIO()))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["updates"] == 2 * base.updates_per_batch
    assert summary["sampled"] == summary["consumed"] == 2 * (1 + n) * 24
    assert (summary["eta"]["gamma"] != pytest.approx(0.99, abs=1e-7)) == (n > 0)
