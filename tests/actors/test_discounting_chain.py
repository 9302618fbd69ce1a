import typing

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from metagrad.actors.envs.discounting_chain import (
    PAYING_STEPS,
    DiscountingChain,
    DiscountingChainConfig,
    chains,
    observe_state,
    reward_at,
)
from metagrad.errors import ConfigurationError


def written_out(actions, bonus_chain, horizon):
    """One episode as bsuite describes it, a step at a time: (observation, reward, is_terminal) after each action."""
    context, t, seen = -1, 0, []
    for action in actions:
        if t == 0:
            context = action
        t += 1
        pays = t == (1, 3, 10, 30, 100)[context]
        reward = (1.1 if context == bonus_chain else 1.0) if pays else 0.0
        observation = np.array([context, t / horizon], dtype=np.float32)
        is_terminal = t == horizon
        if is_terminal:  # the next episode's first observation
            context, t, observation = -1, 0, np.array([-1, 0], dtype=np.float32)
        seen.append((observation, reward, is_terminal))
    return seen


@pytest.mark.parametrize(("bonus_chain", "horizon"), [(3, 100), (0, 100), (3, 10), (1, 1)])
def test_episodes_are_as_described(bonus_chain, horizon):
    environment = DiscountingChain(DiscountingChainConfig(mapping_seed=bonus_chain, horizon=horizon), 5)
    torch.testing.assert_close(environment.reset(), torch.tensor([[-1.0, 0.0]] * 5), rtol=0, atol=0)
    actions = torch.randint(5, (210, 5), generator=torch.Generator().manual_seed(1))
    actions[0] = torch.arange(5)
    expected = [written_out(column, bonus_chain, horizon) for column in actions.T.tolist()]
    for t, action in enumerate(actions):
        step = environment.step(action)
        for b in range(5):
            observation, reward, is_terminal = expected[b][t]
            assert np.array_equal(step.observation[b].numpy(), observation)
            assert step.reward[b].item() == np.float32(reward)
            assert step.is_terminal[b].item() == step.is_episode_end[b].item() == is_terminal
        assert torch.equal(step.reward, step.raw_reward)
        assert step.valid.all()
        assert not step.is_truncated.any()


def test_every_chain_pays_once_also_the_one_as_long_as_the_episode():
    environment = DiscountingChain(DiscountingChainConfig(), 5)
    environment.reset()
    steps = [environment.step(torch.arange(5)) for _ in range(100)]
    reward = torch.stack([step.reward for step in steps])
    assert torch.equal(reward.sum(0), torch.tensor([1.0, 1.0, 1.0, 1.1, 1.0]))
    assert tuple((reward.argmax(0) + 1).tolist()) == PAYING_STEPS
    assert steps[-1].is_terminal.all()


def test_a_chain_longer_than_the_episode_never_pays():
    environment = DiscountingChain(DiscountingChainConfig(horizon=10), 5)
    environment.reset()
    total = sum(environment.step(torch.arange(5)).reward for _ in range(10))
    assert torch.equal(total, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))  # type: ignore[arg-type]


def test_only_the_first_action_counts():
    environments = [DiscountingChain(DiscountingChainConfig(), 5) for _ in range(2)]
    for environment in environments:
        environment.reset()
    for t in range(100):
        first, second = (
            environment.step(torch.arange(5) if t == 0 else torch.full((5,), later))
            for environment, later in zip(environments, (0, 4), strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(environments[0].state.context, torch.arange(5) if t < 99 else torch.full((5,), -1))


def test_state_is_a_copy():
    environment = DiscountingChain(DiscountingChainConfig(), 2)
    environment.reset()
    environment.state.context.fill_(3)
    assert torch.equal(environment.observe(), torch.tensor([[-1.0, 0.0]] * 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_keep_their_type(dtype):
    context, step_count = torch.tensor([[3, 3], [0, 4]]), torch.tensor([[30, 29], [1, 1]])
    paid = reward_at(chains(3, dtype), context, step_count)
    assert paid.dtype == dtype
    assert torch.equal(paid, torch.tensor([[1.1, 0.0], [1.0, 0.0]], dtype=dtype))


def test_rules_need_nothing_from_the_device():
    # Fake tensors have no values: whatever reads one on the host, or has a shape that depends on one, raises.
    with FakeTensorMode():
        context, count = torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2, dtype=torch.int32)
        assert observe_state(context, count).shape == (4, 2, 2)


def test_first_action_that_does_not_exist_is_an_error():
    environment = DiscountingChain(DiscountingChainConfig(), 1)
    environment.reset()
    with pytest.raises(IndexError):
        environment.step(torch.tensor([5]))


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"mapping_seed": -1}, "env.mapping_seed"),
        ({"mapping_seed": 5}, "env.mapping_seed"),
        ({"mapping_seed": True}, "env.mapping_seed"),
        ({"horizon": 0}, "env.horizon"),
        ({"horizon": 2**24 + 1}, "env.horizon"),
    ],
)
def test_wrong_configuration_is_refused(wrong: dict[str, typing.Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        DiscountingChainConfig(**wrong)
