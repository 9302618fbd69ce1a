import math
import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from metagrad.actors.envs.tabular_mdp import (
    TabularMdp,
    TabularMdpConfig,
    advance,
    cumulative_transition,
    random_mdp,
    reward_of,
)
from metagrad.errors import ConfigurationError

LARGEST = 1 - 2**-53  # the largest float64 below 1, and what torch.rand can return at most


def mixed(seed=0, states=6, actions=3):
    """An MDP with many successors of sizeable probability."""
    return random_mdp(states, actions, 0.5, seed)


def generator(seed):
    return torch.Generator().manual_seed(seed)


# Tables


@pytest.mark.parametrize(("concentration", "states"), [(1e-3, 20), (0.1, 5), (1.0, 20), (30.0, 4)])
def test_rows_have_the_moments_of_a_dirichlet(concentration, states):
    rows = torch.cat([random_mdp(states, 1000, concentration, seed).transition.flatten(0, 1) for seed in range(3)])
    count, mean = len(rows), 1 / states
    variance = mean * (1 - mean) / (states * concentration + 1)
    for entries in rows.T:
        assert abs(entries.mean() - mean) < 5 * math.sqrt(variance / count)
        squares = (entries - mean) ** 2
        assert abs(squares.mean() - variance) < 5 * squares.std() / math.sqrt(count)
    products = (rows[:, 0] - mean) * (rows[:, 1] - mean)
    covariance = -(mean**2) / (states * concentration + 1)
    assert abs(products.mean() - covariance) < 5 * products.std() / math.sqrt(count)


@pytest.mark.parametrize("concentration", [0.1, 2.0])
def test_first_entries_are_as_numpy_draws_them(concentration):
    ours = random_mdp(5, 4000, concentration, 1).transition.flatten(0, 1)[:, 0].sort().values
    theirs = torch.from_numpy(np.random.default_rng(0).dirichlet([concentration] * 5, len(ours))[:, 0]).sort().values
    points = torch.cat([ours, theirs]).sort().values
    distance = (torch.searchsorted(ours, points, right=True) - torch.searchsorted(theirs, points, right=True)).abs()
    assert distance.max() / len(ours) < 2.3 * math.sqrt(2 / len(ours))  # Kolmogorov-Smirnov: 1 in 20,000


@pytest.mark.parametrize("concentration", [1e-9, 1e-6, 1e-3, 1.0, 1e9])
def test_rows_are_probabilities_at_every_concentration(concentration):
    tables = random_mdp(20, 5, concentration, 0)
    assert (tables.transition >= 0).all()
    torch.testing.assert_close(tables.transition.sum(-1), torch.ones(20, 5, dtype=torch.float64), rtol=0, atol=1e-14)
    if concentration == 1e-3:  # nearly deterministic, and every state is somebody's successor
        assert tables.transition.amax(-1).median() > 0.999
    if concentration == 1e9:
        torch.testing.assert_close(tables.transition, torch.full_like(tables.transition, 0.05), rtol=0, atol=1e-4)


def test_likely_successors_are_spread_over_all_states():
    likely = torch.cat([random_mdp(20, 500, 1e-3, seed).transition.argmax(-1).flatten() for seed in range(2)])
    counts, expected = likely.bincount(minlength=20), len(likely) / 20
    assert ((counts - expected).abs() < 5 * math.sqrt(expected * 0.95)).all()


def test_rewards_are_uniform():
    reward = random_mdp(50, 400, 1.0, 3).reward.flatten()
    count = len(reward)
    assert ((reward >= 0) & (reward < 1)).all()
    assert abs(reward.mean() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    assert abs((reward - 0.5).square().mean() - 1 / 12) < 5 * math.sqrt(1 / 180 / count)


def test_same_seed_same_mdp_in_every_type():
    first, again, other = (random_mdp(20, 5, 1e-3, seed) for seed in (7, 7, 8))
    assert torch.equal(first.transition, again.transition)
    assert torch.equal(first.reward, again.reward)
    assert not torch.equal(first.reward, other.reward)
    single = random_mdp(20, 5, 1e-3, 7, torch.float32)
    assert {table.dtype for table in single} == {torch.float32}
    assert torch.equal(single.transition, first.transition.float())
    assert torch.equal(random_mdp(20, 5, 3.0, 7).reward, first.reward)


def test_tables_share_no_draws_with_a_generator_of_the_same_seed():
    reward = random_mdp(1, 1000, 1.0, 5).reward.flatten()
    drawn = torch.rand(5000, generator=generator(5), dtype=torch.float64)
    assert not torch.isin(reward, drawn).any()


@pytest.mark.parametrize("concentration", [0.0, -1.0, 1e-10, 1e10, math.nan, math.inf])
def test_concentration_out_of_range_is_refused(concentration):
    with pytest.raises(ConfigurationError, match=r"^concentration = "):
        random_mdp(2, 2, concentration, 0)


# Transitions


def rows_of(*probabilities):
    """Tables of one action whose every state has this distribution of successors."""
    row = torch.tensor(probabilities, dtype=torch.float64)
    return cumulative_transition(row.expand(len(row), 1, len(row)).clone())


def successor(cumulative, uniform):
    zero = torch.zeros(1, dtype=torch.int64)
    return advance(cumulative, zero, zero, torch.tensor([uniform], dtype=torch.float64)).item()


@pytest.mark.parametrize(
    ("probabilities", "uniform", "expected"),
    [
        ((0.25, 0.25, 0.5), 0.0, 0),
        ((0.25, 0.25, 0.5), 0.25, 1),  # exactly on a cumulative value: the next state's half-open interval
        ((0.25, 0.25, 0.5), math.nextafter(0.25, 0), 0),
        ((0.25, 0.25, 0.5), 0.5, 2),
        ((0.25, 0.25, 0.5), LARGEST, 2),
        ((0.0, 1.0, 0.0), 0.0, 1),  # impossible states are never entered, first, last or between
        ((0.0, 1.0, 0.0), LARGEST, 1),
        ((0.5, 0.0, 0.5), 0.5, 2),
        ((0.5, 0.0, 0.5), math.nextafter(0.5, 0), 0),
        ((0.5, 0.5 - 1e-9, 0.0), LARGEST, 1),  # a row that sums to less than 1
        ((0.6, 0.4 + 1e-9, 0.0), LARGEST, 1),  # and one that sums to more
        ((1.0,), LARGEST, 0),
    ],
)
def test_inverse_of_the_cumulative_distribution(probabilities, uniform, expected):
    assert successor(rows_of(*probabilities), uniform) == expected


@given(
    st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 1 / 3, 1.0]), min_size=1, max_size=12).filter(any),
    st.sampled_from([0.0, 5e-324, 0.1, 1 / 3, 0.5, 1 - 2**-24, LARGEST]) | st.floats(0, LARGEST),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_every_number_below_one_leads_to_a_possible_state(weights, uniform, dtype):
    row = torch.tensor(weights, dtype=torch.float64)
    row = (row / row.sum()).to(dtype)
    cumulative = cumulative_transition(row.expand(len(row), 1, len(row)).clone())
    assert row[successor(cumulative, uniform)] > 0
    assert (cumulative[..., -1] == 1).all()
    assert (cumulative.diff(dim=-1) >= 0).all()


def test_a_row_that_passes_one_before_its_end_stays_a_distribution_function():
    cumulative = rows_of(0.5, 0.5 + 2**-50, 2**-50)
    assert cumulative[0, 0].tolist() == [0.5, 1, 1]


def test_frequencies_are_the_transition_probabilities():
    tables, count = mixed(), 20_000
    state, action = torch.meshgrid(torch.arange(6), torch.arange(3), indexing="ij")
    uniform = torch.rand((count, 6, 3), generator=generator(1), dtype=torch.float64)
    cumulative = cumulative_transition(tables.transition)
    after = advance(cumulative, state.expand(count, 6, 3), action.expand(count, 6, 3), uniform)
    frequency = torch.nn.functional.one_hot(after, 6).double().mean(0)
    probability = tables.transition
    assert ((frequency - probability).abs() <= 5 * (probability * (1 - probability) / count).sqrt() + 5 / count).all()


@pytest.mark.parametrize(("mdps", "batch"), [((), ()), ((), (4, 3)), ((4,), (4,)), ((4,), (4, 3)), ((4, 2), (4, 2, 3))])
def test_batched_tables_are_one_mdp_per_row(mdps, batch):
    single = [mixed(seed) for seed in range(max(1, math.prod(mdps)))]
    transition = torch.stack([t.transition for t in single]).view(*mdps, 6, 3, 6)
    reward = torch.stack([t.reward for t in single]).view(*mdps, 6, 3)
    state = torch.randint(6, batch, generator=generator(1))
    action = torch.randint(3, batch, generator=generator(2))
    uniform = torch.rand(batch, generator=generator(3), dtype=torch.float64)
    after = advance(cumulative_transition(transition), state, action, uniform)
    paid = reward_of(reward, state, action)
    for index in np.ndindex(*batch):
        number = int(np.ravel_multi_index(index[: len(mdps)], mdps)) if mdps else 0
        s, a = state[index], action[index]
        total, expected = 0.0, -1  # the definition, one term at a time
        while total <= uniform[index]:
            expected += 1
            total += single[number].transition[s, a, expected].item()
        assert after[index] == expected
        assert paid[index] == single[number].reward[s, a]


def test_tables_that_do_not_fit_the_batch_are_refused():
    stacked = cumulative_transition(torch.stack([mixed(seed).transition for seed in range(3)]))
    state = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ConfigurationError, match=r"^state = 'shape \(4,\)': must begin with the MDPs' \(3,\)"):
        advance(stacked, state, state, torch.zeros(4, dtype=torch.float64))


# Environment


def play(environment, steps, seed=0):
    draw = generator(seed)
    shape = (environment.spec.batch_size,)
    return [environment.step(torch.randint(environment.spec.num_actions, shape, generator=draw)) for _ in range(steps)]


def test_episodes_follow_the_tables_and_end_at_the_horizon():
    environment = TabularMdp(TabularMdpConfig(states=7, actions=3, concentration=1.0, horizon=4), 5, 0)
    environment.reset()
    draw, actions = generator(2), generator(3)
    environment.restore(environment.snapshot() | {"generator": draw.get_state()})
    cumulative, state = cumulative_transition(environment.tables.transition), torch.zeros(5, dtype=torch.int64)
    for t in range(1, 13):
        action = torch.randint(3, (5,), generator=actions)
        step = environment.step(action)
        uniform = torch.rand(5, generator=draw, dtype=torch.float64)
        assert torch.equal(step.reward, environment.tables.reward[state, action].float())
        state = advance(cumulative, state, action, uniform)
        is_end = t % 4 == 0
        state = torch.zeros_like(state) if is_end else state
        assert torch.equal(environment.state, state)
        assert torch.equal(step.observation, torch.nn.functional.one_hot(state, 7).float())
        assert step.is_terminal.tolist() == step.is_episode_end.tolist() == [is_end] * 5
        assert step.valid.all()
        assert not step.is_truncated.any()
        assert torch.equal(step.raw_reward, step.reward)


def test_which_mdp_is_the_configurations_and_which_episodes_the_seeds():
    def first_steps(mdp_seed, seed):
        environment = TabularMdp(TabularMdpConfig(concentration=1.0, mdp_seed=mdp_seed), 16, seed)
        environment.reset()
        return environment.tables, [environment.state for _ in play(environment, 10)]

    (tables, states), (same, others), (different, _) = first_steps(0, 1), first_steps(0, 2), first_steps(1, 1)
    assert torch.equal(tables.transition, same.transition)
    assert not torch.equal(tables.transition, different.transition)
    assert not torch.equal(torch.stack(states), torch.stack(others))
    assert torch.equal(tables.reward, random_mdp(20, 5, 1.0, 0).reward)


@pytest.mark.parametrize("action", [5, 99])
def test_action_that_does_not_exist_is_an_error(action):
    environment = TabularMdp(TabularMdpConfig(), 1, 0)
    environment.reset()
    with pytest.raises(IndexError):
        environment.step(torch.tensor([action]))


def test_rules_need_nothing_from_the_device():
    # Fake tensors have no values: whatever reads one on the host, or has a shape that depends on one, raises.
    with FakeTensorMode():
        cumulative = cumulative_transition(torch.ones(4, 6, 3, 6, dtype=torch.float64))
        state = torch.zeros(4, 2, dtype=torch.int64)
        assert advance(cumulative, state, state, torch.zeros(4, 2)).shape == (4, 2)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"states": 0}, "env.states"),
        ({"actions": -1}, "env.actions"),
        ({"horizon": 0}, "env.horizon"),
        ({"horizon": 2**31}, "env.horizon"),
        ({"states": True}, "env.states"),
        ({"states": 4096}, r"env.states\^2 x env.actions"),
        ({"concentration": 0.0}, "env.concentration"),
        ({"concentration": math.nan}, "env.concentration"),
        ({"mdp_seed": -1}, "env.mdp_seed"),
        ({"mdp_seed": 2**63}, "env.mdp_seed"),
    ],
)
def test_wrong_configuration_is_refused(wrong: dict[str, typing.Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        TabularMdpConfig(**wrong)
