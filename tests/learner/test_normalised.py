"""A run's statistics: what counts, what actors act under, and what a checkpoint continues with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig
from metagrad.actors.rollout import probe
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import actor_setups
from metagrad.cluster.run.trained import trained_run
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.checkpoint import restore_newest
from metagrad.learner.normalised import Feed, RunStatistics, from_tree
from metagrad.learner.schedule import Lockstep
from metagrad.networks import Mlp, NatureCnn
from metagrad.normalisation import no_statistics
from metagrad.shares import WHOLE
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")
MDP = TabularMdpConfig(states=6, actions=3, concentration=0.5, horizon=4)
CART = EnvPoolConfig(task="CartPole-v1", max_episode_steps=12)


def normalised(**changes: Any) -> Any:
    base = EXPERIMENTS["snake-6x6"]()
    fields: dict[str, Any] = {
        "env": CART,
        "network": Mlp(hidden=8),
        "is_observation_normalised": True,
        "is_reward_normalised": True,
        "environments": 4,
        "rollout_length": 5,
        "updates": 6,
        "topology": "colocated",
        "learner_threads": 1,
        "log_every": 2,
        "checkpoint": CheckpointConfig(every=1_000, keep=2),
    }
    return replace(base, **(fields | changes))


def test_statistics_of_mixed_observations_are_of_the_numbers_behind_the_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(4, 2, 5, generator=generator)
    valid = torch.tensor([[True, True], [False, True], [True, False]])
    nothing = torch.zeros(3, 2)
    batch = Trajectory(observation, nothing.long(), nothing, ~valid, ~valid, valid, nothing, 0)
    found = RunStatistics(observations=no_statistics(2)).with_batches([batch], 0.9, WHOLE).observations
    assert found is not None
    seen = observation[:-1][valid][:, 3:].double().numpy()
    assert found.rows == 4
    np.testing.assert_allclose(found.mean, seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.m2 / 4, seen.var(0), rtol=1e-12)


@pytest.mark.parametrize("lookahead", ["continue", "separate"])
def test_statistics_are_of_the_whole_real_stream(lookahead: str) -> None:
    experiment = normalised(lookahead=lookahead)
    algorithm = experiment.algorithm(probe(experiment.env))
    actors = ColocatedActors(actor_setups(experiment, CPU, 0), None, 2)
    schedule = Lockstep(actors, CPU)
    state, real, played = algorithm.init(0, CPU), [], []

    def sample(snapshot: Any, step: int) -> Any:
        batch = schedule.sample(snapshot, step)
        played.append((step, batch))
        real.extend([batch] * (step == 0))
        return batch

    for _ in range(8):
        acted_under = state.theta
        state, metrics = algorithm.update(state, sample)
        assert metrics.scalars["policy/log_prob_gap_nats"] < 1e-6  # actors and learner see by the same statistics
        assert not torch.equal(acted_under[-4:], state.theta[-4:])
    seen = np.concatenate([batch.observation[:-1][batch.valid].double().numpy() for batch in real])
    found = state.statistics.observations
    assert found.rows == len(seen) < 8 * 20  # rows that only reset do not count
    np.testing.assert_allclose(found.mean, seen.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.m2 / len(seen), seen.var(0), rtol=1e-9)
    parts = algorithm.network.layout.unflatten(state.theta)
    np.testing.assert_allclose(parts["normaliser.mean"], seen.mean(0), rtol=1e-5)
    np.testing.assert_allclose(parts["normaliser.scale"], 1.0 / seen.std(0), rtol=1e-3)
    # Returns go through whatever the real environments played, looked ahead or not.
    total, returns = np.zeros(4), []
    for step, batch in played:
        if step and lookahead == "separate":
            continue
        for t in range(5):
            total = experiment.outer.gamma * total + batch.reward[t].double().numpy()
            returns += [x for x, counts in zip(total, batch.valid[t] & (step == 0), strict=True) if counts]
            total[(batch.is_terminal[t] | batch.is_truncated[t]).numpy()] = 0.0
    np.testing.assert_allclose(state.statistics.returns.mean, np.mean(returns), rtol=1e-5)
    np.testing.assert_allclose(state.statistics.returns.m2 / len(returns), np.var(returns), rtol=1e-4)
    actors.close()


@pytest.mark.parametrize(
    ("schedule", "lookahead"), [("lockstep", "fork"), ("peek", "continue"), ("lockstep", "separate")]
)
@pytest.mark.thinned(3)
def test_a_run_resumes_bitwise(tmp_path: Path, schedule: str, lookahead: str) -> None:
    changes = {"env": MDP, "schedule": schedule, "lookahead": lookahead}
    for name, updates, is_resumed in (("whole", 5, False), ("parts", 3, False), ("parts", 5, True)):
        run(normalised(**changes, updates=updates), tmp_path / name, is_resumed, Console(quiet=True))
    whole, parts = (restore_newest(tmp_path / name / "checkpoints").tree for name in ("whole", "parts"))
    for tree in (whole, parts):
        assert tree["learner"]["statistics"]["observations"]["rows"] == 100.0
        assert "real/discounted_return" in tree["actors"][0]
    for first, second in zip(*(torch.utils._pytree.tree_leaves(x["learner"]) for x in (whole, parts)), strict=True):
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_a_trained_policy_brings_its_statistics(tmp_path: Path) -> None:
    run(normalised(updates=3), tmp_path / "run", False, Console(quiet=True))
    trained = trained_run(tmp_path / "run", None, print)
    parts = trained.network.layout.unflatten(trained.theta)
    assert (parts["normaliser.mean"] != 0.0).all()
    x = torch.tensor([[0.1, -0.2, 0.03, 0.4]])
    by_hand = ((x - parts["normaliser.mean"]) * parts["normaliser.scale"]).clamp(-10.0, 10.0)
    fresh = parts | {"normaliser.mean": torch.zeros(4), "normaliser.scale": torch.ones(4)}
    expected = trained.network.apply(trained.network.layout.flatten(fresh), by_hand, ("logits",))["logits"]
    torch.testing.assert_close(trained.policy(x), expected.log_softmax(-1), rtol=1e-5, atol=1e-6)
    signed = torch.export.export(trained.policy, (x,)).module()
    torch.testing.assert_close(signed(x), trained.policy(x))


def test_losses_see_scaled_rewards_and_statistics_raw_ones(make_algorithm: Callable[..., Any], trajectory: Any) -> None:
    assert make_algorithm().init(0, CPU).statistics == RunStatistics()
    assert RunStatistics().to_tree() == {}
    raw, snapshot = trajectory(0), WeightSnapshot(0, torch.zeros(1), torch.zeros(1))
    raw = raw._replace(reward=torch.ones_like(raw.reward))
    returns = no_statistics(1)._replace(rows=torch.tensor(1.0).double(), m2=torch.tensor([4.0]).double())
    for statistics, expected in ((None, 1.0), (returns, 0.5)):
        feed = Feed(lambda snapshot, step: raw, statistics)
        for step in (0, 1):
            assert feed(snapshot, step).reward.unique().item() == pytest.approx(expected)
        assert [batch is raw for batch in feed.real] == [True]


def test_statistics_come_back_from_a_checkpoint() -> None:
    algorithm = normalised().algorithm(probe(CART))
    state = algorithm.init(0, CPU)
    tree = algorithm.to_tree(state)
    assert set(tree["statistics"]) == {"observations", "returns"}
    assert algorithm.misfit(tree) is None
    assert algorithm.misfit({name: x for name, x in tree.items() if name != "statistics"}) == "statistics"
    assert torch.equal(from_tree(tree["statistics"]).observations.mean, torch.zeros(4, dtype=torch.float64))


def test_what_makes_no_sense_is_refused_in_one_line() -> None:
    base = normalised()
    with pytest.raises(
        ConfigurationError, match=r"^is_observation_normalised = True: does not go with --meta.strategy"
    ):
        replace(base, meta=replace(base.meta, strategy="sequential"))
    with pytest.raises(ConfigurationError, match=r"^is_reward_normalised = True: is for losses that learn values"):
        replace(EXPERIMENTS["discounting-chain"](), is_reward_normalised=True)


def test_pictures_are_not_normalised() -> None:
    atari = replace(EXPERIMENTS["atari"](), is_observation_normalised=True, network=NatureCnn())
    with pytest.raises(ConfigurationError, match=r"^is_observation_normalised = True: .* the environment gives uint8;"):
        atari.algorithm(probe(atari.env))
