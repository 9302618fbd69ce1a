"""Running statistics, and what observations and rewards are divided by."""

import numpy as np
import pytest
import torch

from metagrad.losses import forward
from metagrad.networks import AutoNetwork, Mlp, build_network
from metagrad.normalisation import (
    CLIP,
    discounted_returns,
    next_return,
    no_statistics,
    normalised_observation,
    with_rows,
    with_scaled_reward,
)
from metagrad.observations import MixedShape
from metagrad.shares import Whole


def test_statistics_are_numpys_over_all_valid_rows():
    generator = torch.Generator().manual_seed(0)
    statistics, kept = no_statistics(3), []
    assert torch.equal(statistics.inverse_deviation(), torch.ones(3, dtype=torch.float64))
    for rows in (7, 1, 0, 40):
        x = 1e4 + torch.tensor([1.0, 20.0, 0.0]) * torch.randn(rows, 3, generator=generator)
        valid = torch.rand(rows, generator=generator) < 0.7
        statistics = with_rows(statistics, torch.where(valid[:, None], x, torch.nan), valid)
        kept.append(x[valid].double().numpy())
    stream = np.concatenate(kept)
    assert statistics.rows == len(stream)
    np.testing.assert_allclose(statistics.mean, stream.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.m2 / len(stream), stream.var(0), rtol=1e-9)
    np.testing.assert_allclose(statistics.inverse_deviation(), 1.0 / np.sqrt(stream.var(0) + 1e-8), rtol=1e-9)


def test_statistics_of_shares_are_those_of_the_whole():
    class Recorder(Whole):
        """Keeps what a process would send."""

        def total(self, *parts):
            self.sent = parts
            return parts

    class Two(Whole):
        """Adds what the other process has sent."""

        def __init__(self, sent):
            self.sent = sent

        def total(self, *parts):
            return tuple(own + other for own, other in zip(parts, self.sent, strict=True))

    x, valid = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)), torch.ones(10, dtype=torch.bool)
    before = with_rows(no_statistics(2), x + 3.0, valid)
    whole = with_rows(before, x, valid)
    other = Recorder()
    with_rows(before, x[4:], valid[4:], other)
    shared = with_rows(before, x[:4], valid[:4], Two(other.sent))
    for found, expected in zip(shared, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", [Mlp(hidden=4), AutoNetwork(hidden=4), Mlp(hidden=4, gru=2)], ids=str)
def test_theta_holds_what_observations_are_normalised_by(make_trajectory, spec):
    plain, network = (build_network(spec, (3,), 3, True, is_observation_normalised=x) for x in (False, True))
    assert (plain.normalises, network.normalises) == (False, True)
    assert network.layout.size == plain.layout.size + 6
    assert plain.no_statistics() is None
    generator = torch.Generator().manual_seed(0)
    theta = network.init(generator).double()
    trajectory = make_trajectory(generator)
    if network.state_size:
        trajectory = trajectory._replace(first_state=torch.zeros(4, network.state_size))
    heads = ("logits", "value", "outer_value")
    before = forward(network, theta, trajectory, heads)
    moved = trajectory._replace(observation=5.0 + 3.0 * trajectory.observation)
    statistics = network.no_statistics()._replace(
        rows=torch.tensor(4.0).double(), mean=torch.full((3,), 5.0).double(), m2=torch.full((3,), 36.0).double()
    )
    after = forward(network, network.with_statistics(theta, statistics), moved, heads)
    own = forward(plain, theta[: plain.layout.size], trajectory, heads)
    for head in heads:
        torch.testing.assert_close(after[head], before[head], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(before[head], own[head])
    x = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sum(y.square().sum() for y in forward(network, x, trajectory, heads).values()), x)
    assert (gradient[-6:] == 0.0).all()
    assert (gradient[:-6] != 0.0).any()


def test_pictures_beside_numbers_stay_as_they_are():
    spec, shape = AutoNetwork(hidden=4, picture_hidden=4), MixedShape(((1, 5, 4),), 3)
    plain, network = (build_network(spec, shape, 3, False, is_observation_normalised=x) for x in (False, True))
    assert network.layout.size == plain.layout.size + 6
    generator = torch.Generator().manual_seed(0)
    theta = network.init(generator)
    pixels = torch.randint(0, 256, (6, 20), generator=generator).float()
    numbers = torch.randn(6, 3, generator=generator)
    statistics = with_rows(network.no_statistics(), 5.0 + 3.0 * numbers, torch.ones(6, dtype=torch.bool))
    shown = (numbers - numbers.mean(0)) / numbers.std(0, correction=0)
    found = network.apply(
        network.with_statistics(theta, statistics), torch.cat([pixels, 5.0 + 3.0 * numbers], 1), ("logits",)
    )
    expected = plain.apply(theta[: plain.layout.size], torch.cat([pixels, shown], 1), ("logits",))
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-4, atol=1e-6)


def test_what_is_far_is_clipped_and_integers_are_numbers():
    x = torch.tensor([[1e9], [-1e9], [2.0]])
    found = normalised_observation(x, torch.ones(1), torch.ones(1))
    assert torch.equal(found, torch.tensor([[CLIP], [-CLIP], [1.0]]))


def test_statistics_stay_in_single_precision_where_layers_do_not():
    network = build_network(Mlp(hidden=4), (3,), 3, False, "bf16-mixed", is_observation_normalised=True)
    theta = network.init(torch.Generator().manual_seed(0))
    statistics = with_rows(network.no_statistics(), 1e4 + torch.eye(3), torch.ones(3, dtype=torch.bool))
    theta = network.with_statistics(theta, statistics)
    logits = network.apply(theta, 1e4 + torch.eye(3), ("logits",))["logits"]
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # 8 bits would not tell 10000 from 10001


def test_discounted_returns_go_on_from_rollout_to_rollout(make_trajectory):
    """Against one environment and step at a time; the actor's recursion ends where the next rollout begins."""
    trajectory = make_trajectory(torch.Generator().manual_seed(2))
    first = torch.tensor([1.0, 0.0, -2.0, 3.0]).double()
    found = discounted_returns(trajectory._replace(first_return=first), 0.9)
    carried = first
    for t in range(5):
        is_end = trajectory.is_terminal[t] | trajectory.is_truncated[t]
        carried = next_return(carried, trajectory.reward[t], is_end, 0.9)
    for b in range(4):
        total = first[b].item()
        for t in range(5):
            total = 0.9 * total + trajectory.reward[t, b].item()
            assert found[t, b].item() == pytest.approx(total)
            if trajectory.is_terminal[t, b] or trajectory.is_truncated[t, b]:
                total = 0.0
        assert carried[b].item() == pytest.approx(total)


def test_rewards_are_scaled_and_not_moved(make_trajectory):
    trajectory = make_trajectory(torch.Generator().manual_seed(2))
    rows = 5.0 + 4.0 * torch.tensor([[-1.0], [1.0]])
    returns = with_rows(no_statistics(1), rows, torch.ones(2, dtype=torch.bool))
    scaled = with_scaled_reward(trajectory, returns)
    torch.testing.assert_close(scaled.reward, trajectory.reward / 4.0)
    far = with_scaled_reward(trajectory._replace(reward=1e3 * trajectory.reward), returns)
    assert far.reward.abs().max() == CLIP
    assert torch.equal(with_scaled_reward(trajectory, no_statistics(1)).reward, trajectory.reward)
