"""Weights travel once per node and version: more actors on a node do not make more bytes."""

from pathlib import Path

import pytest
from ray_nodes import RayNodes
from runs import train

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

# Weights of 2.4 MB, rollouts of a few kilobytes; the same number of updates, so of versions.
WORDS = (
    *("snake-6x6", "--env.rows", "4", "--env.columns", "4", "--environments", "8", "--rollout-length", "2"),
    *("--network.policy-hidden", "512", "--network.value-hidden", "512", "--updates", "60", "--learner-threads", "1"),
    *("--checkpoint.every", "20", "--log-every", "1"),
)


def test_twice_the_actors_get_the_same_bytes(nodes: RayNodes, tmp_path: Path) -> None:
    per_version: dict[int, float] = {}
    for actors in (4, 8):
        before = {name: nodes.network.hosts[name].bytes_received() for name in ("worker-1", "worker-2")}
        folder = tmp_path / str(actors)
        folder.mkdir()
        run = train(nodes, folder, (*WORDS, "--actors", str(actors)))
        run.wait_for_updates(20)
        learner = set(nodes.workers("Learner").values())
        received, versions = min(before.keys() - learner), 2 * run.finish()["updates"]
        per_version[actors] = (nodes.network.hosts[received].bytes_received() - before[received]) / versions
    print(f"\nWEIGHTS bytes to a node per version, by the number of actors of the run: {per_version}")
    assert per_version[8] < 1.3 * per_version[4]
