"""Actors carry a recurrent state from rollout to rollout, into forks and separate pools, and into checkpoints."""

from dataclasses import replace

import pytest
import torch

from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig
from metagrad.actors.evaluate import Player, evaluate
from metagrad.actors.rollout import Actor, ActorSetup, probe
from metagrad.frame_stacks import unpacked
from metagrad.losses import forward
from metagrad.networks import AutoNetwork, Mlp, build_network
from metagrad.types import WeightSnapshot

SNAKE = SnakeConfig(rows=3, columns=3, time_limit=6)
CART = EnvPoolConfig(task="CartPole-v1", max_episode_steps=12)
SETUP = ActorSetup(
    index=0,
    environment=SNAKE,
    network=Mlp(hidden=8, gru=5),
    has_outer_critic=True,
    batch_size=6,
    rollout_length=7,
    lookahead="continue",
    seed=(0, 0, 0),
)
SETUPS = {
    "snake": SETUP,  # ends show the next episode
    "cart": replace(SETUP, environment=CART, network=AutoNetwork(hidden=8, gru=5)),  # ends are followed by a reset
}


def prepared(setup, seed=0):
    """(actor, network, wide θ)."""
    spec = probe(setup.environment)
    network = build_network(setup.network, spec.observation_shape, spec.actions, setup.has_outer_critic)
    theta = network.init(torch.Generator().manual_seed(seed))
    return Actor(setup), network, theta + 0.3 * torch.randn(len(theta), generator=torch.Generator().manual_seed(1))


def rolled(actor, theta, step=0):
    return unpacked(actor.rollout(WeightSnapshot(0, theta, torch.zeros(1)), step).trajectory)


@pytest.mark.parametrize("name", SETUPS)
def test_the_learner_has_the_actors_log_probabilities(name):
    actor, network, theta = prepared(SETUPS[name])
    remembered = 0
    for _ in range(6):
        trajectory = rolled(actor, theta)
        assert gap(network, theta, trajectory).abs().max() <= 1e-6
        without = gap(network, theta, trajectory._replace(first_state=torch.zeros_like(trajectory.first_state)))
        remembered += int((without[0].abs() > 1e-4).sum())
    assert remembered > 10  # games in which it matters
    actor.close()


def gap(network, theta, trajectory):
    log_prob = forward(network, theta, trajectory, ("logits",)).policy.log_prob(trajectory.action)
    return torch.where(trajectory.valid, log_prob - trajectory.behaviour_log_prob, 0.0)


def test_the_first_state_is_that_after_the_rollout_before():
    actor, network, theta = prepared(SETUP)
    first = rolled(actor, theta)
    assert (first.first_state == 0.0).all()
    second = rolled(actor, theta)
    together = first._replace(
        **{x: torch.cat([getattr(first, x), getattr(second, x)]) for x in first._fields[1:7]},
        observation=torch.cat([first.observation[:-1], second.observation]),
    )
    logits = forward(network, theta, together, ("logits",))["logits"]
    torch.testing.assert_close(logits[7:], forward(network, theta, second, ("logits",))["logits"], rtol=0, atol=1e-6)
    is_end = first.is_terminal[-1] | first.is_truncated[-1]
    assert torch.equal((second.first_state == 0.0).all(-1), is_end)


@pytest.mark.parametrize("lookahead", ["continue", "fork", "separate"])
def test_pools_of_look_ahead_remember_as_their_games_do(lookahead):
    actor, _, theta = prepared(replace(SETUP, lookahead=lookahead))
    rolled(actor, theta)
    before = actor._real.recurrent_state
    ahead = rolled(actor, theta, 1)
    assert torch.equal(ahead.first_state, before) == (lookahead != "separate")
    assert (ahead.first_state == 0.0).all() == (lookahead == "separate")
    assert torch.equal(rolled(actor, theta).first_state, before) == (lookahead != "continue")


@pytest.mark.parametrize("lookahead", ["fork", "separate"])
def test_an_actor_continues_with_what_it_remembered(lookahead):
    mdp = TabularMdpConfig(states=6, actions=3, concentration=0.5, horizon=10)
    setup = replace(SETUP, environment=mdp, lookahead=lookahead, return_discount=0.9)
    whole, _, theta = prepared(setup)
    for step in (0, 1, 0):
        rolled(whole, theta, step)
    resumed = Actor(setup)
    resumed.load_state(whole.state())
    for step in (0, 1):
        first, second = (rolled(actor, theta, step) for actor in (whole, resumed))
        assert (first.first_state != 0.0).any()
        assert (first.first_return != 0.0).any()
        for name in (x for x in first._fields if x != "policy_version"):
            assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_evaluation_remembers_and_forgets(monkeypatch):
    """Episodes of a batch are those of each game by itself, played without anything to remember from before."""
    spec = probe(SNAKE)
    network = build_network(Mlp(hidden=8, gru=5), spec.observation_shape, spec.actions, False)
    theta = network.init(torch.Generator().manual_seed(0)) * 3.0
    seen = []

    class Watched(Player):
        def act(self, observation):
            action = super().act(observation)
            seen.append((observation.clone(), self._state.clone()))
            return action

        def see(self, step):
            super().see(step)
            ended = step.is_terminal | step.is_truncated
            assert torch.equal((self._state == 0.0).all(-1), ended)
            seen[-1] += (ended,)

    monkeypatch.setattr("metagrad.actors.evaluate.Player", Watched)
    result = evaluate(network, theta, SNAKE, 8, 0, True, torch.device("cpu"), 1, environments=4)
    assert len(result.returns) == 8
    assert any(ended.any() for _, _, ended in seen)
    assert any((state != 0.0).any() for _, state, _ in seen)
