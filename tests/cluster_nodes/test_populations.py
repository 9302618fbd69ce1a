"""Trains an update rule on a cluster that loses a node with its populations, and then the driver."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_nodes import RayNodes, wait_until
from runs import Run, train

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

RULE = ("--rule.units", "4", "--rule.predictions", "3", "--rule.embedding", "3")
SIZES = ("--agents", "8", "--actors", "4", "--environments", "16", "--rollout-length", "5", "--inner-updates", "2")
WORDS = ("lifetimes", *RULE, *SIZES, "--lifetime", "20", "--checkpoint.every", "5")


def test_meta_training_outlives_a_node_and_goes_on_after_its_driver(
    nodes: RayNodes, start: Callable[..., Run], tmp_path: Path
) -> None:
    run = start(*WORDS, "--updates", "1000000")
    run.wait_for_updates(20)
    populations = nodes.workers("RolloutActor")
    assert len(populations) == 4
    learners = set(nodes.workers("Learner").values())
    lost = min(set(populations.values()) - learners - {"head"})
    nodes.kill_raylet(lost)
    gone = {pid for pid, name in populations.items() if name == lost}
    wait_until(lambda: len(nodes.workers("RolloutActor").keys() - gone) == 4, 240, lambda: run.job.output)
    run.wait_for_updates(run.updates + 20)
    assert lost not in nodes.workers("RolloutActor").values()
    (driver,) = [
        pid for pid, words in nodes.head.processes().items() if "train lifetimes" in words and "python" in words
    ]
    os.kill(driver, signal.SIGKILL)
    assert run.job.wait(120) == "FAILED"
    killed_at = run.updates
    again = train(nodes, tmp_path, (*WORDS, "--updates", str(killed_at + 20), "--resume"))
    summary = again.finish()
    assert f"at update {killed_at}" in again.job.output
    assert summary["updates"] == killed_at + 20
    assert summary["actors_restarted"] >= len(gone)
    assert "started again with new random streams" in run.job.output
    steps = 16 * 5 * 3  # of a meta-update: environments, steps of a rollout, K updates and the one that scores
    assert summary["consumed"] == summary["updates"] * steps
