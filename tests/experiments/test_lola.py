"""LOLA on the iterated prisoner's dilemma: exact gradients against finite differences, sampled against exact ones."""

import math

import pytest
import torch

from metagrad.errors import ConfigurationError
from metagrad.experiments.gradient_bias.ipd_games import Games, Ring, exact_value, fresh_games, joint_log_prob
from metagrad.experiments.gradient_bias.lola import (
    RING_SIZE,
    Data,
    Estimation,
    Learners,
    data_sampler,
    dice_objective,
    inner_problem,
    outer_loss,
    streams,
)
from metagrad.opponent_shaping import shaping_gradients

EXACT = Estimation(value="exact", outer="exact")


def pair(seed=0):
    return torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learners(theta, copies=1, values=None, players=None):
    own, other = theta.repeat(copies, 1), theta.flip(0).repeat(copies, 1)
    mine = None if values is None else values.repeat(copies, 1)
    theirs = None if values is None else values.flip(0).repeat(copies, 1)
    return Learners(players or [0, 1] * copies, own, mine, theirs), other


def gradients(estimation, theta, steps=1, copies=1, values=None, ring=None, seed=0):
    who, other = learners(theta, copies, values)
    sampler = data_sampler(estimation, who, steps, streams(seed), ring)
    return shaping_gradients(inner_problem(estimation), outer_loss(estimation), sampler, other, who.own, steps)


def looked_ahead_value(own, inner_own, other, steps, gamma=0.96):
    """J₁(θ₁, θ₂ + α ∇θ₂ J₂(θ₁, θ₂) + …)."""
    other = other.clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(exact_value(other, inner_own, gamma), other, create_graph=True)
        other = other + 0.3 * gradient
    return exact_value(own, other, gamma).item()


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_exact_gradient_is_a_finite_difference(steps):
    theta = pair()
    found = gradients(EXACT, theta, steps)
    for player in (0, 1):
        own, other = theta[player], theta[1 - player]
        for s, unit in enumerate(1e-5 * torch.eye(5, dtype=torch.float64)):
            ahead, behind = (looked_ahead_value(x, x, other, steps) for x in (own + unit, own - unit))
            assert -found.total[player, s].item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6, abs=1e-7)


def assert_mean(samples, expected):
    """Within 4 standard errors, every component."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert (error > 0).all()
    assert ((samples.mean(0) - expected).abs() < 4 * error).all()


@pytest.mark.parametrize("has_values", [True, False])
def test_sampled_gradients_have_the_exact_mean(has_values):
    """Where the value of the update is exact: elsewhere the outer gradient is taken at another, sampled opponent."""
    theta, values = pair(1), pair(2) if has_values else None
    short = {"gamma": 0.5, "steps": 30, "value": "exact"}  # 0.5³⁰: as good as rounds without end
    exact = gradients(Estimation(outer="exact", **short), theta)
    copies = 2000
    found = gradients(Estimation(derivative=4, outer=4, **short), theta, copies=copies, values=values)
    for player in (0, 1):
        assert_mean(found.total[player::2], exact.total[player])
        assert_mean(found.shaping[player::2], exact.shaping[player])
        assert_mean(found.direct[player::2], exact.direct[player])


def test_the_derivative_alone_can_be_sampled():
    theta, short = pair(1), {"gamma": 0.5, "steps": 30, "value": "exact", "outer": "exact"}
    exact = gradients(Estimation(**short), theta)
    found = gradients(Estimation(derivative=4, **short), theta, copies=1000, values=pair(2))
    for player in (0, 1):
        assert_mean(found.shaping[player::2], exact.shaping[player])
        torch.testing.assert_close(found.direct[player::2], exact.direct[player].expand(1000, 5))
        torch.testing.assert_close(found.opponent[player::2], exact.opponent[player].expand(1000, 5))


def test_more_games_bring_a_wholly_sampled_gradient_to_the_exact_one():
    theta = pair(1)
    short = {"gamma": 0.5, "steps": 30}
    exact = gradients(Estimation(value="exact", outer="exact", **short), theta).total
    distances = [
        (gradients(Estimation(value=count, outer=count, **short), theta).total - exact).norm() / exact.norm()
        for count in (100, 20_000)
    ]
    assert distances[1] < 0.1
    assert distances[1] < distances[0]


@pytest.mark.parametrize("of_other", [True, False])
@pytest.mark.parametrize("has_values", [True, False])
def test_games_of_other_policies_give_the_exact_gradient_and_mixed_derivatives(of_other, has_values):
    own, other = pair(1)
    drawn = pair(1) + 0.2 * pair(3)
    values = pair(4)[0] if has_values else None
    chunks, each, steps, gamma = 300, 10, 12, 0.3
    code = fresh_games(drawn[:1], drawn[1:], steps, chunks * each, streams(0)["value"])[0]
    games = Games(code, joint_log_prob(*drawn)[code])
    flat = torch.cat([own, other])

    def estimate(x, code, log_prob):
        return dice_objective(x[:5], x[5:], Games(code, log_prob), values, gamma, of_other)

    def exact(x):
        return exact_value(x[5:], x[:5], gamma) if of_other else exact_value(x[:5], x[5:], gamma)

    split = [field.view(steps, chunks, each).transpose(0, 1) for field in games]
    for derivative in (lambda f: f, torch.func.grad, torch.func.hessian):
        samples = torch.func.vmap(derivative(estimate), in_dims=(None, 0, 0))(flat, *split).reshape(chunks, -1)
        expected = derivative(exact)(flat).flatten()
        varies = samples.std(0) > 1e-12
        assert_mean(samples[:, varies], expected[varies])
        torch.testing.assert_close(samples.mean(0)[~varies], expected[~varies], atol=1e-9, rtol=0)


def test_places_look_at_what_was_asked_for():
    theta, values = pair(), pair(1)
    small = {"steps": 3}
    ring = Ring(RING_SIZE, 3, torch.Generator().manual_seed(0))

    def sizes(estimation, j):
        who, other = learners(theta, 1, values)
        data = data_sampler(estimation, who, 1, streams(0), ring)(other, j)
        games = {name: getattr(data, name) for name in ("value", "derivative", "outer")}
        return {name: of.code.shape[-1] for name, of in games.items() if of is not None}, data

    assert sizes(Estimation(value=7, outer=3, **small), 0)[0] == {"value": 7}
    assert sizes(Estimation(value=7, outer=3, **small), 1)[0] == {"outer": 3}
    assert sizes(Estimation(value=7, derivative=2, **small), 0)[0] == {"value": 7, "derivative": 2}
    assert sizes(Estimation(value=7, derivative="exact", outer="exact", **small), 0)[0] == {"value": 7}
    assert sizes(Estimation(value="ring", derivative=2, **small), 0)[0] == {"value": RING_SIZE, "derivative": 2}
    assert sizes(Estimation(value=2, derivative="ring", **small), 0)[0] == {"value": 2, "derivative": RING_SIZE}
    data = sizes(Estimation(value=7, **small), 0)[1]
    assert torch.equal(data.other_values, values.flip(0))
    assert sizes(Estimation(value=7, has_inner_baseline=False, **small), 0)[1].other_values is None
    assert torch.equal(sizes(Estimation(**small), 1)[1].own_values, values)


def test_a_ring_of_nothing_but_fresh_games_is_on_policy():
    theta = pair()
    games = {"steps": 6, "gamma": 0.9}
    ring = Ring(128, 6, torch.Generator().manual_seed(0))
    who, other = learners(theta)
    data = data_sampler(Estimation(value="ring", **games), who, 1, streams(0), ring)(other, 0)
    for player in (0, 1):
        code, log_prob = data.value.code[player], data.value.behaviour_log_prob[player]
        torch.testing.assert_close(log_prob, joint_log_prob(theta[player], theta[1 - player])[code])
    problem = inner_problem(Estimation(value="ring", **games))
    one = Data(Games(*(field[0] for field in data.value)), None, None, None, None)
    on_policy = one._replace(value=one.value._replace(behaviour_log_prob=None))
    ours, plain = (problem.loss(other[0], theta[0], each)[0] for each in (one, on_policy))
    torch.testing.assert_close(ours, plain)


def test_wrong_estimations_are_refused():
    wrong = [{"value": 0}, {"value": "same"}, {"derivative": "fresh"}, {"outer": "ring"}, {"gamma": 1.0}]
    for options in (*wrong, {"value": "ring", "derivative": "ring"}):
        with pytest.raises(ConfigurationError):
            Estimation(**options)
    assert Estimation(value="ring").uses_ring
    assert Estimation(derivative="ring").uses_ring
    assert not Estimation().uses_ring
    assert EXACT.is_exact
    assert not Estimation(value="exact", derivative=2, outer="exact").is_exact
