import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metagrad.returns import lambda_returns

NEAR = {"rtol": 1e-10, "atol": 1e-10}
UNIT = st.floats(0.0, 1.0)


@st.composite
def rollouts(draw):
    """Reward [T, B], value [T+1, B], is_terminal and is_truncated [T, B] (a step may be marked as both)."""
    steps, batch = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rate = draw(st.sampled_from([0.0, 0.2, 0.6]))
    reward = torch.randn(steps, batch, generator=generator, dtype=torch.float64)
    value = torch.randn(steps + 1, batch, generator=generator, dtype=torch.float64)
    is_terminal = torch.rand(steps, batch, generator=generator) < rate
    is_truncated = torch.rand(steps, batch, generator=generator) < rate
    return reward, value, is_terminal, is_truncated


def slow_lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_):
    """Sum over n-step returns: G_t = Σₖ (1-λ)λᵏ G⁽ᵏ⁺¹⁾ + λᴺ⁻¹ G⁽ᴺ⁾, N steps to the episode's or the rollout's end."""
    steps, batch = reward.shape
    result = torch.zeros(steps, batch, dtype=torch.float64)
    for b in range(batch):
        for t in range(steps):
            ends = [i for i in range(t, steps) if is_terminal[i, b] or is_truncated[i, b]]
            horizon = (ends[0] if ends else steps - 1) - t + 1  # N

            def n_step(n, t=t, b=b):
                total = sum(gamma**i * reward[t + i, b].item() for i in range(n))
                if not is_terminal[t + n - 1, b]:
                    total += gamma**n * value[t + n, b].item()
                return total

            weights = [(1.0 - lambda_) * lambda_**k for k in range(horizon - 1)] + [lambda_ ** (horizon - 1)]
            assert sum(weights) == pytest.approx(1.0)
            result[t, b] = sum(weight * n_step(k + 1) for k, weight in enumerate(weights))
    return result


@given(rollouts(), UNIT, UNIT)
def test_equals_the_sum_over_n_step_returns(rollout, gamma, lambda_):
    torch.testing.assert_close(
        lambda_returns(*rollout, gamma, lambda_), slow_lambda_returns(*rollout, gamma, lambda_), **NEAR
    )


@given(rollouts(), UNIT)
def test_lambda_zero_is_one_step_td(rollout, gamma):
    reward, value, is_terminal, _ = rollout
    expected = reward + gamma * torch.where(is_terminal, 0.0, value[1:])
    torch.testing.assert_close(lambda_returns(*rollout, gamma, 0.0), expected, **NEAR)


@given(rollouts(), UNIT)
def test_lambda_one_is_the_bootstrapped_return(rollout, gamma):
    reward, value, is_terminal, is_truncated = rollout
    future, expected = value[-1], []
    for t in reversed(range(len(reward))):
        future = torch.where(is_truncated[t], value[t + 1], future)
        future = torch.where(is_terminal[t], 0.0, future)
        future = reward[t] + gamma * future
        expected.insert(0, future)
    torch.testing.assert_close(lambda_returns(*rollout, gamma, 1.0), torch.stack(expected), **NEAR)


@given(rollouts(), UNIT)
def test_values_that_solve_the_bellman_equation_are_their_own_return(rollout, gamma):
    _, value, is_terminal, is_truncated = rollout
    reward = value[:-1] - gamma * torch.where(is_terminal, 0.0, value[1:])
    for lambda_ in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_), value[:-1], **NEAR
        )


@given(rollouts(), UNIT, UNIT, st.data())
def test_nothing_crosses_an_episode_end(rollout, gamma, lambda_, data):
    reward, value, is_terminal, is_truncated = rollout
    end = data.draw(st.integers(0, len(reward) - 1))
    is_terminal, is_truncated = is_terminal.clone(), is_truncated.clone()
    kind = data.draw(st.sampled_from(["terminal", "truncated"]))
    (is_terminal if kind == "terminal" else is_truncated)[end] = True
    before = lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_)
    reward, value = reward.clone(), value.clone()
    reward[end + 1 :] += 100.0
    # value[end+1] belongs to the true successor where the end is a truncation, and to nobody at a terminal step.
    value[end + 1 if kind == "terminal" else end + 2 :] -= 100.0
    after = lambda_returns(reward, value, is_terminal, is_truncated, gamma, lambda_)
    assert torch.equal(before[: end + 1], after[: end + 1])


def test_truncation_bootstraps_and_termination_does_not():
    reward, value = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[0.0], [8.0]], dtype=torch.float64)
    yes, no = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    assert lambda_returns(reward, value, no, yes, 0.5, 0.9).item() == 4.0
    assert lambda_returns(reward, value, yes, no, 0.5, 0.9).item() == 0.0
    assert lambda_returns(reward, value, yes, yes, 0.5, 0.9).item() == 0.0


@given(rollouts(), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_derivatives_in_gamma_and_lambda(rollout, gamma, lambda_):
    point = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (gamma, lambda_)]
    assert torch.autograd.gradcheck(lambda gamma, lambda_: lambda_returns(*rollout, gamma, lambda_), point)
    assert torch.autograd.gradgradcheck(lambda gamma, lambda_: lambda_returns(*rollout, gamma, lambda_), point)


def test_derivatives_in_reward_and_value():
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    value = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 0]], dtype=torch.bool)
    assert torch.autograd.gradcheck(
        lambda reward, value: lambda_returns(reward, value, ends, ends.flip(1), 0.9, 0.7), (reward, value)
    )
