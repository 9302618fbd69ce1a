"""Checks which batch is used for what, how old it may be, and that a window survives a checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from metagrad.distributions import Categorical
from metagrad.errors import ConfigurationError
from metagrad.frame_stacks import packed, unpacked
from metagrad.intrinsic_reward import IntrinsicRewardLoss
from metagrad.learner.actor_critic import build_actor_critic
from metagrad.learner.config import BootstrapConfig, LearnerConfig
from metagrad.learner.plain_data import is_trajectory
from metagrad.learner.schedule import Lockstep, Peek
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, build_network
from metagrad.types import Episodes, PackedTrajectory, Trajectory, WeightSnapshot

CPU = torch.device("cpu")
MakeTrajectory = Callable[[int], Trajectory]


class Stream:
    """Batch k of the stream carries k in its rewards; all of it is as old as `age` says, or as is allowed."""

    def __init__(self, trajectory: MakeTrajectory, age: int, fake_actors: Any):
        self.trajectory, self.age = trajectory, age
        self.calls: list[tuple[int, int]] = []
        self.actors = fake_actors(self.take)

    def take(self, snapshot: WeightSnapshot, oldest: int) -> list[Trajectory]:
        number = len(self.calls)
        self.calls.append((snapshot.version, oldest))
        version = max(0, oldest, snapshot.version - self.age)
        trajectory = self.trajectory(version)
        return [trajectory._replace(reward=torch.full_like(trajectory.reward, number))] * 2


def snapshot(version: int = 0) -> WeightSnapshot:
    return WeightSnapshot(version, torch.zeros(2), torch.zeros(1))


def number(trajectory: Trajectory) -> int:
    return int(trajectory.reward[0, 0])


@hypothesis.given(st.integers(0, 4), st.integers(0, 5), st.integers(1, 12))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_update_k_uses_batches_k_to_k_plus_n(
    trajectory: MakeTrajectory, fake_actors: Any, n: int, age: int, updates: int
) -> None:
    stream = Stream(trajectory, age, fake_actors)
    peek = Peek(stream.actors, CPU, n + 1, max_lag=n + 2, version=0)
    for k in range(updates):
        assert [number(peek.sample(snapshot(), j)) for j in range(n + 1)] == list(range(k, k + n + 1))
        assert len(stream.calls) == k + n + 1, "one new batch for each update, and n to begin with"
        assert peek.held_batches == n
        assert max(peek.lag) <= n + 2


def test_published_versions_count_real_updates(trajectory: MakeTrajectory, fake_actors: Any) -> None:
    stream = Stream(trajectory, 0, fake_actors)
    peek = Peek(stream.actors, CPU, 3, max_lag=4, version=7)
    for _ in range(3):
        peek.sample(snapshot(version=99), 0)
        peek.sample(snapshot(version=100), 1)
    assert stream.calls == [(7, 5), (7, 5), (7, 5), (8, 6), (9, 7)], "a batch waits for two more updates"
    assert peek.lag == (2, 2), "the third batch of the stream, of version 7"


def test_a_window_continues_from_a_checkpoint(trajectory: MakeTrajectory, fake_actors: Any) -> None:
    whole, first = (
        Peek(Stream(trajectory, 1, fake_actors).actors, CPU, 3, 4, 0),
        Peek(Stream(trajectory, 1, fake_actors).actors, CPU, 3, 4, 0),
    )
    for _ in range(4):
        whole.sample(snapshot(), 0)
        first.sample(snapshot(), 0)
    stream = Stream(trajectory, 1, fake_actors)
    stream.calls = [(0, 0)] * 6  # what the first one has taken from its stream
    resumed = Peek(stream.actors, CPU, 3, 4, version=4)
    resumed.load_tree(first.to_tree())
    assert resumed.held_batches == first.held_batches == 2
    for _ in range(3):
        expected = [whole.sample(snapshot(), j) for j in range(3)]
        found = [resumed.sample(snapshot(), j) for j in range(3)]
        for one, other in zip(expected, found, strict=True):
            assert number(one) == number(other)
            assert one.policy_version == other.policy_version
        assert whole.lag == resumed.lag


def test_lockstep_asks_for_exactly_what_it_is_asked_for(trajectory: MakeTrajectory, fake_actors: Any) -> None:
    asked: list[tuple[int, int]] = []

    def ask(published: WeightSnapshot, step: int) -> list[Trajectory]:
        asked.append((published.version, step))
        return [trajectory(published.version)] * 3

    lockstep = Lockstep(fake_actors(ask), CPU)
    assert lockstep.sample(snapshot(5), 2).policy_version == 5
    assert asked == [(5, 2)]
    assert lockstep.lag == (0, 0, 0)
    assert (lockstep.to_tree(), lockstep.held_batches) == ([], 0)


def test_what_came_in_is_handed_over_once(trajectory: MakeTrajectory, fake_actors: Any) -> None:
    lockstep = Lockstep(fake_actors(lambda published, _: [trajectory(published.version)] * 2), CPU)
    for version, step in ((5, 0), (6, 1)):
        lockstep.sample(snapshot(version), step)
    real, ahead = lockstep.take_received()
    assert (real.is_lookahead, ahead.is_lookahead) == (False, True)
    assert [int(each.frames) for each in (real, ahead)] == [2 * int(trajectory(v).valid.sum()) for v in (5, 6)]
    assert [len(each.returns) for each in real.episodes] == [int(trajectory(5).is_terminal.sum())] * 2
    assert lockstep.take_received() == []
    peek = Peek(Stream(trajectory, 0, fake_actors).actors, CPU, 3, 4, 0)
    peek.sample(snapshot(), 0)
    peek.sample(snapshot(), 2)
    assert [each.is_lookahead for each in peek.take_received()] == [False] * 3, "a look-ahead costs no frames"
    peek.sample(snapshot(), 0)
    assert len(peek.take_received()) == 1


def test_a_window_of_stacks_holds_frames_and_is_rebuilt_for_use(pictures: MakeTrajectory, fake_actors: Any) -> None:
    stream = Stream(lambda version: packed(pictures(version)), 0, fake_actors)
    peek = Peek(stream.actors, CPU, 3, 4, 0)
    two = torch.cat([pictures(0).observation] * 2, dim=1)
    assert all(torch.equal(peek.sample(snapshot(), j).observation, two) for j in range(3))
    tree = peek.to_tree()
    assert all(is_trajectory(entry["trajectory"]) for entry in tree)
    assert tree[0]["trajectory"]["frames"].untyped_storage().nbytes() < two.numel()
    whole = [{**entry, "trajectory": unpacked(PackedTrajectory(**entry["trajectory"]))._asdict()} for entry in tree]
    for held in (tree, whole):  # checkpoints used to hold stacks whole
        resumed = Peek(stream.actors, CPU, 3, 4, version=1)
        resumed.load_tree(held)
        assert all(torch.equal(resumed.sample(snapshot(), j).observation, two) for j in range(2))


def test_a_batch_beyond_the_window_is_an_error(trajectory: MakeTrajectory, fake_actors: Any) -> None:
    peek = Peek(Stream(trajectory, 0, fake_actors).actors, CPU, 2, 3, 0)
    peek.sample(snapshot(), 0)
    with pytest.raises(IndexError):
        peek.sample(snapshot(), 2)


def test_trees_are_plain_data(trajectory: MakeTrajectory, fake_actors: Any) -> None:
    peek = Peek(Stream(trajectory, 0, fake_actors).actors, CPU, 2, 3, 0)
    peek.sample(snapshot(), 0)
    (entry,) = peek.to_tree()
    kinds: set[Any] = {type(x) for x in entry["trajectory"].values()}
    assert kinds == {torch.Tensor, int}
    assert entry["versions"] == [0, 0]


@pytest.mark.parametrize(
    "meta",
    [{"n": 0}, {"n": 1}, {"n": 3}, {"n": 2, "estimator": "mix"}, {"n": 2, "bootstrap": BootstrapConfig(updates=1)}],
    ids=str,
)
def test_a_window_of_fresh_batches_makes_the_update_of_lockstep(
    config: Callable[..., LearnerConfig], trajectory: MakeTrajectory, fake_actors: Any, meta: dict[str, Any]
) -> None:
    """V-trace's losses are those of A2C, but for centring, where batch j was sampled by θⱼ itself: every ratio is 1."""
    lockstep_config = config(**meta)
    network = build_network(Mlp(hidden=4), (5,), 3, has_outer_critic=True)
    algorithm = build_actor_critic(lockstep_config, network, (5,), 3)
    state = algorithm.init(0, CPU)
    batches: list[Trajectory] = []

    def on_policy(published: WeightSnapshot, step: int) -> list[Trajectory]:
        fresh = trajectory(step)
        logits = network.apply(published.theta, fresh.observation[:-1].flatten(0, 1), ("logits",))["logits"]
        log_prob = Categorical(logits.unflatten(0, fresh.action.shape)).log_prob(fresh.action).detach()
        batches.append(fresh._replace(behaviour_log_prob=log_prob, policy_version=0))
        return [batches[-1]._replace(policy_version=published.version)]

    expected, _ = algorithm.update(state, Lockstep(fake_actors(on_policy), CPU).sample)
    streaming = replace(lockstep_config, meta_parameters=lockstep_config.meta_parameters.streamed(1.0))
    stream = iter(batches)
    peek = Peek(fake_actors(lambda *_: [next(stream)]), CPU, len(batches), max_lag=len(batches), version=0)
    found, _ = build_actor_critic(streaming, network, (5,), 3).update(state, peek.sample)
    torch.testing.assert_close(found.theta, expected.theta, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.eta, expected.eta, rtol=1e-5, atol=1e-7)
    assert meta["n"] == 0 or not torch.equal(expected.eta, state.eta)
    assert not torch.equal(expected.theta, state.theta)


def test_of_other_losses_only_those_that_correct_are_taken(config: Callable[..., LearnerConfig]) -> None:
    losses = config(n=1).meta_parameters
    corrected = losses.streamed()
    assert corrected.streamed() is corrected
    scalars = {name: getattr(losses, name) for name in ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")}
    one = MetaParameter(initial=1.0, high=2.0, is_learnt=False)
    reward = {"extrinsic_coefficient": one, "intrinsic_coefficient": one, "reward_network": Mlp()}
    with pytest.raises(ConfigurationError, match=r"^meta_parameters = 'IntrinsicRewardLoss': has no losses that"):
        IntrinsicRewardLoss(**scalars, **reward).streamed()


def test_what_is_noted_of_a_batch_holds_no_memory_of_its_rollouts(trajectory: MakeTrajectory, fake_actors: Any) -> None:
    """They lie in Ray's object store, which keeps each as long as an array of it is there."""
    returns = np.arange(3.0, dtype=np.float32)
    actors = fake_actors(lambda published, _: [trajectory(published.version)])
    stream = actors.stream

    def as_ray_brings_them(snapshot: WeightSnapshot, oldest: int) -> list[Any]:
        return [x._replace(episodes=Episodes(returns[:2], returns[1:])) for x in stream(snapshot, oldest)]

    actors.stream = as_ray_brings_them
    peek = Peek(actors, CPU, 1, max_lag=1, version=0)
    peek.sample(snapshot(), 0)
    (received,) = peek.take_received()
    assert received.episodes[0].returns.tolist() == [0.0, 1.0]
    assert not any(np.shares_memory(x, returns) for x in received.episodes[0])
