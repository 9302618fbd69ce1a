"""Runs over three nodes through the job API, with nothing going wrong."""

from collections.abc import Callable
from typing import Any

import pytest
from ray_nodes import RayNodes
from runs import Run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SNAKE = ("snake-6x6", "--env.rows", "4", "--env.columns", "4", "--environments", "8", "--rollout-length", "5")
PONG = ("atari", "--env.game", "Pong", "--environments", "4", "--rollout-length", "5")


@pytest.mark.parametrize(
    ("words", "updates"),
    [(SNAKE, 200), ((*SNAKE, "--schedule", "peek"), 200), (PONG, 12)],
    ids=["snake", "peek", "pong"],
)
def test_a_run_uses_all_nodes(nodes: RayNodes, start: Callable[..., Run], words: tuple[str, ...], updates: int) -> None:
    run = start(*words, "--actors", "4", "--updates", str(updates), "--checkpoint.every", "4", "--learner-threads", "1")
    run.wait_for_updates(4)
    where = set(nodes.workers("RolloutActor").values())
    summary: dict[str, Any] = run.finish()
    assert {"worker-1", "worker-2"} <= where, where
    assert summary["dropped_reasons"] == {} or "peek" in words, summary
    assert summary["actors_restarted"] == 0
