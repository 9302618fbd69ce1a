import math
import typing

import pytest
import torch

from metagrad.actors.envs.markov_reward_process import (
    MarkovRewardProcess,
    MarkovRewardProcessConfig,
    observe_state,
    sample_rewards,
)
from metagrad.errors import ConfigurationError

ACTION = torch.zeros(3, dtype=torch.int64)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def check_normal(rewards):
    """Mean, variance and independence of columns of standard normal numbers [count, columns], within 5 sigma."""
    count = len(rewards)
    assert (rewards.mean(0).abs() < 5 / math.sqrt(count)).all()
    assert ((rewards.square().mean(0) - 1).abs() < 5 * math.sqrt(2 / count)).all()
    products = (rewards.T @ rewards / count).fill_diagonal_(0)
    assert (products.abs() < 5 / math.sqrt(count)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("states", [1, 2, 9, 10])
def test_even_rewards_are_a_tenth_and_odd_ones_standard_normal(dtype, states):
    rewards = sample_rewards((40, 500), generator(0), dtype, states)
    assert rewards.shape == (states, 40, 500)
    assert rewards.dtype == dtype
    assert (rewards[::2] == torch.tensor(0.1, dtype=dtype)).all()
    check_normal(rewards[1::2].flatten(1).T.double())


def test_same_seed_same_rewards():
    first, again, other = (sample_rewards((4,), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sample_rewards((), generator(1)).shape == (10,)


def test_observation_is_the_state_by_the_number_of_states():
    seen = observe_state(torch.arange(10).view(5, 2))
    assert seen.shape == (5, 2, 1)
    assert torch.equal(seen.flatten(), torch.arange(10, dtype=torch.float32) / 10)


def test_episodes_go_from_left_to_right_and_end_after_the_last_state():
    environment = MarkovRewardProcess(MarkovRewardProcessConfig(), 3, 0)
    assert environment.reset().tolist() == [[0.0]] * 3
    for t in range(25):
        state, after = t % 10, (t + 1) % 10
        assert environment.state.tolist() == [state] * 3
        step = environment.step(ACTION)
        assert torch.equal(step.observation, torch.full((3, 1), after / 10))
        assert step.is_terminal.tolist() == step.is_episode_end.tolist() == [state == 9] * 3
        assert step.valid.all()
        assert not step.is_truncated.any()
        assert (step.reward == 0.1).all() == (state % 2 == 0)
        assert step.reward.unique().numel() == (1 if state % 2 == 0 else 3)
        assert torch.equal(step.raw_reward, step.reward)


def test_environment_rewards_have_the_moments_of_the_sampled_ones():
    environment = MarkovRewardProcess(MarkovRewardProcessConfig(), 20_000, 3)
    environment.reset()
    rewards = torch.stack([environment.step(ACTION[:1].expand(20_000)).reward for _ in range(10)], dim=1)
    assert (rewards[:, ::2] == 0.1).all()
    check_normal(rewards[:, 1::2].double())


def test_length_of_the_chain_is_a_value():
    environment = MarkovRewardProcess(MarkovRewardProcessConfig(states=3), 3, 0)
    environment.reset()
    assert [environment.step(ACTION).is_terminal.all().item() for _ in range(6)] == [False, False, True] * 2


@pytest.mark.parametrize("states", [0, -1, True, 2**20 + 1])
def test_wrong_configuration_is_refused(states: typing.Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^env.states = "):
        MarkovRewardProcessConfig(states=states)
