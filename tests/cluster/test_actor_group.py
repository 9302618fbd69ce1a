"""An actor of two processes, without Ray: what it brings, and how it ends."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.actors.envs.snake import Snake, SnakeConfig
from metagrad.actors.rollout import Actor, ActorSetup
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.actor_group import ActorGroup, MemberLost, setups_of
from metagrad.cluster.run.learning import actor_setups
from metagrad.networks import build_network
from metagrad.types import Rollout, Trajectory, WeightSnapshot

Tiny = Callable[..., Experiment]


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultySnakeConfig(SnakeConfig):
    """A Snake that fails when it is made or stepped, as the file says."""

    file: str

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> Snake:
        made = super(FaultySnakeConfig, self).make(
            batch_size=batch_size, seed=seed, device=device, threads=threads, is_training=is_training
        )
        fault = Path(self.file).read_text()
        if fault == "import":
            raise ModuleNotFoundError("no game here")

        def faulty(action: torch.Tensor) -> Any:
            raise ValueError("the game is broken")

        made.step = faulty  # type: ignore[method-assign]
        return made


@pytest.fixture(scope="module")
def setup(tiny: Tiny) -> ActorSetup:
    experiment = tiny(topology="ray", actors=1, actor_processes=2, lookahead="separate")
    return actor_setups(experiment, torch.device("cpu"), 0)[0]


@pytest.fixture(scope="module")
def snapshots(setup: ActorSetup) -> list[WeightSnapshot]:
    network = build_network(setup.network, (3, 3, 5), 4, setup.has_outer_critic)
    thetas = [network.init(torch.Generator().manual_seed(i)) for i in range(3)]
    return [WeightSnapshot(version, theta, torch.zeros(1)) for version, theta in enumerate(thetas)]


@pytest.fixture(scope="module")
def group(setup: ActorSetup) -> Iterator[ActorGroup]:
    made = ActorGroup(setup, Actor)
    yield made
    made.close()


def expected(actors: list[Actor], snapshot: WeightSnapshot, step: int) -> Trajectory:
    with torch.no_grad():
        parts = [actor.rollout(snapshot, step).trajectory for actor in actors]
    names = [name for name, x in parts[0]._asdict().items() if isinstance(x, torch.Tensor)]
    fields = {name: torch.cat([getattr(part, name) for part in parts], 1) for name in names}
    return Trajectory(**fields, policy_version=snapshot.version)


def assert_same(found: Rollout, trajectory: Trajectory) -> None:
    for name, x, y in zip(Trajectory._fields, found.trajectory, trajectory, strict=True):
        assert torch.equal(x, y) if isinstance(y, torch.Tensor) else x == y, name


def test_it_brings_what_actors_of_one_process_would_side_by_side(
    group: ActorGroup, setup: ActorSetup, snapshots: list[WeightSnapshot]
) -> None:
    alone = [Actor(own) for own in setups_of(setup)]
    assert [actor.setup.batch_size for actor in alone] == [2, 2]
    kept = group.rollout(snapshots[0], 0)
    first = expected(alone, snapshots[0], 0)
    for snapshot, step in ((snapshots[0], 0), (snapshots[1], 1), (snapshots[2], 0)):
        assert_same(group.rollout(snapshot, step), expected(alone, snapshot, step))
    assert_same(kept, first)  # later rollouts leave it alone
    assert not torch.equal(first.action[:, :2], first.action[:, 2:]), "each has random streams of its own"

    state = group.state()
    ahead = expected(alone, snapshots[1], 0)
    group.rollout(snapshots[1], 0)
    group.load_state(state)
    again = group.rollout(snapshots[1], 0)
    assert_same(again, ahead)
    assert (again.actor, again.is_lookahead) == (0, False)
    assert group.rollout(snapshots[1], 1).is_lookahead


def test_episodes_of_all_processes_are_there(group: ActorGroup, snapshots: list[WeightSnapshot]) -> None:
    episodes = [group.rollout(snapshots[0], 0) for _ in range(20)]
    ends = sum(int((x.trajectory.is_terminal | x.trajectory.is_truncated).sum()) for x in episodes)
    assert sum(len(x.episodes.lengths) for x in episodes) == ends > 5


@pytest.mark.parametrize("fault", ["raise", "import"])
def test_what_is_raised_in_a_process_is_raised_with_its_traceback(
    setup: ActorSetup, snapshots: list[WeightSnapshot], tmp_path: Path, fault: str
) -> None:
    (tmp_path / "fault").write_text(fault)
    env = FaultySnakeConfig(rows=3, columns=3, file=str(tmp_path / "fault"))
    raised = pytest.raises(ValueError if fault == "raise" else ModuleNotFoundError, match="game")
    with raised as caught:
        ActorGroup(replace(setup, environment=env), Actor).rollout(snapshots[0], 0)
    (note,) = caught.value.__notes__
    assert "Traceback" in note
    assert "test_actor_group.py" in note


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_one_that_dies_takes_the_others_with_it(setup: ActorSetup, snapshots: list[WeightSnapshot]) -> None:
    group = ActorGroup(setup, Actor)
    pids = [member._pid() for member in group._members]
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(MemberLost, match=rf"process 2 of actor 0 \({pids[1]}\) has died, exit code -9"):
        group.rollout(snapshots[0], 0)
    assert all(map(is_gone, pids))
    with pytest.raises(MemberLost):
        group.rollout(snapshots[0], 0)
