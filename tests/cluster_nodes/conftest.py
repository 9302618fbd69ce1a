"""Three Ray nodes on three computers that are namespaces of this one; skipped, with a reason, where they cannot be."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # netns, ray_nodes, runs: helpers of these tests alone

from netns import Network, network, why_not
from ray_nodes import RayNodes
from runs import Run, train

TOKEN = "of-these-tests-alone-" + "0" * 32
CPUS = {"head": 1, "worker-1": 4, "worker-2": 4}


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for networks, if there can be any."""
    folder = tmp_path_factory.mktemp("network")
    if reason := why_not(folder / "probe"):
        pytest.skip(reason)
    return folder


@pytest.fixture
def net(space: Path, tmp_path: Path) -> Iterator[Network]:
    """A network without computers."""
    with network(tmp_path / "net") as there:
        yield there


@pytest.fixture(scope="session")
def _standing(space: Path) -> Iterator[RayNodes]:
    with network(space / "nodes") as there:
        nodes = RayNodes(there, TOKEN)
        yield nodes
        nodes.close()


@pytest.fixture
def nodes(_standing: RayNodes) -> Iterator[RayNodes]:
    """The cluster: head, worker-1, worker-2, all connected; whatever the test before did to it is undone."""
    _standing.restore(CPUS)
    yield _standing
    _standing.stop_jobs()


@pytest.fixture
def start(nodes: RayNodes, tmp_path: Path) -> Callable[..., Run]:
    """start(words of `metagrad train`) -> a run on the cluster, through the job API."""
    return lambda *words: train(nodes, tmp_path, words)
