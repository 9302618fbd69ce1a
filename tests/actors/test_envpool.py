"""EnvPool's tasks behind our protocol; what all environments share is in test_environments.py."""

import warnings

import envpool
import numpy as np
import pytest
import torch

from metagrad.actors.envs.envpool import EnvPoolConfig, distinct_seeds
from metagrad.errors import ConfigurationError

CPU = torch.device("cpu")


def make(batch_size=4, seed=0, **values):
    return EnvPoolConfig(**values).make(batch_size=batch_size, seed=seed, device=CPU, threads=1, is_training=True)


def test_it_plays_what_envpool_plays():
    """Observations, rewards and ends of EnvPool itself, under the same seeds and actions."""
    environment = make(task="CartPole-v1", max_episode_steps=20)
    seeds = distinct_seeds(0, 4).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the digits of bounds
        own = envpool.make_gymnasium("CartPole-v1", num_envs=4, num_threads=1, seed=seeds, max_episode_steps=20)
        assert torch.equal(environment.reset(), torch.from_numpy(own.reset()[0]))
    assert len(set(seeds)) == 4
    ended, kinds = np.zeros(4, np.bool_), set()
    for action in torch.randint(2, (100, 4), generator=torch.Generator().manual_seed(0)):
        observation, reward, is_terminal, is_truncated, _ = own.step(action.numpy())
        step = environment.step(action)
        assert torch.equal(step.observation, torch.from_numpy(observation))
        assert step.valid.tolist() == (~ended).tolist()
        assert step.is_terminal.tolist() == is_terminal.tolist()
        assert step.is_truncated.tolist() == (is_truncated & ~is_terminal).tolist()
        assert step.raw_reward[step.valid].tolist() == reward[~ended].tolist()
        assert (step.raw_reward[~step.valid] == 0).all()
        kinds |= set(zip(is_terminal.tolist(), is_truncated.tolist(), strict=True))
        ended = is_terminal | is_truncated
    assert {(True, False), (False, True)} <= kinds, "episodes that fall, and episodes that are cut"


def test_the_observation_at_a_time_limit_is_the_true_successor():
    environment = make(task="CartPole-v1", max_episode_steps=3, batch_size=1)
    observation = environment.reset()
    for _ in range(3):
        before, step = observation, environment.step(torch.zeros(1, dtype=torch.int64))
        observation = step.observation
    assert step.is_truncated.item()
    assert (observation - before).abs().max() > 0.1, "velocity grows on, it is no fresh episode"
    fresh = environment.step(torch.zeros(1, dtype=torch.int64))
    assert not fresh.valid.item()
    assert fresh.observation.abs().max() < 0.06, "episodes begin within 0.05"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "CartPol-v1"}, r"^env\.task = 'CartPol-v1': none of EnvPool's \d+ tasks; did you mean CartPole-v"),
        ({"task": "KuhnPoker-v1"}, r"^env\.task = 'KuhnPoker-v1': has 2 agents, and one is taken"),
        ({"task": "VizdoomCustom-v1"}, r"^env\.task = 'VizdoomCustom-v1': EnvPool cannot make it here: "),
        ({"max_episode_steps": 0}, r"^env\.max_episode_steps = 0"),
        ({"max_episode_steps": True}, r"^env\.max_episode_steps = True"),
    ],
)
def test_what_is_not_taken_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigurationError, match=message) as refusal:
        make(**values)
    assert "\n" not in str(refusal.value)
