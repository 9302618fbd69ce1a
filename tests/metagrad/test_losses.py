from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad.actor_critic import A2cLoss
from metagrad.distributions import Categorical
from metagrad.losses import (
    OuterObjective,
    forward,
    masked_mean,
    normalised,
    on_policy_estimates,
)
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, SnakeCnn, build_network
from metagrad.surrogates import SURROGATES

HYPER = {"gamma": 0.8, "lambda": 0.7, "value_coefficient": 0.5, "entropy_coefficient": 0.01}
STEPS, BATCH, ACTIONS = 5, 4, 3
HALF = MetaParameter(initial=0.5)
A2C_LOSS = A2cLoss(gamma=HALF, lambda_=HALF, value_coefficient=HALF, entropy_coefficient=HALF)


def inner_loss(*arguments, is_normalised=False):
    return replace(A2C_LOSS, is_advantage_normalised=is_normalised).inner_loss(*arguments)


def outer_loss(network, theta, trajectory, outer):
    return A2C_LOSS.outer_loss(network, theta, {}, trajectory, outer)


def tensors(values):
    return {name: torch.tensor([x], dtype=torch.float64) for name, x in values.items()}


@pytest.fixture(scope="module")
def make_problem(make_trajectory):
    """seed -> (network, θ, trajectory); a shared torso, weights away from zero."""

    def make(seed=0, spec=None, shape=(3,)):
        generator = torch.Generator().manual_seed(seed)
        network = build_network(spec or Mlp(hidden=5), shape, ACTIONS, True)
        theta = network.init(generator).double()
        theta += 0.3 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        return network, theta, make_trajectory(generator, STEPS, BATCH, shape, ACTIONS)

    return make


def sample(network, theta, trajectory, t, b, head):
    """One head on one observation."""
    return network.apply(theta, trajectory.observation[t, b].unsqueeze(0), (head,))[head][0]


def slow_return(trajectory, value, t, b, gamma, lambda_):
    """G(s_t) by recursion to the episode's or rollout's end, `value(t, b)` a constant."""
    reward = trajectory.reward[t, b]
    if trajectory.is_terminal[t, b]:
        return reward + 0.0 * gamma
    successor = value(t + 1, b)
    if trajectory.is_truncated[t, b] or t + 1 == STEPS:
        return reward + gamma * successor
    following = slow_return(trajectory, value, t + 1, b, gamma, lambda_)
    return reward + gamma * ((1 - lambda_) * successor + lambda_ * following)


def slow_surrogate(network, theta, trajectory, surrogate, t, b):
    """log π, π/⊥π, or the product of π/⊥π from the episode's first row in the rollout to t less the one before t."""

    def log_pi(k):
        return torch.log_softmax(sample(network, theta, trajectory, k, b, "logits"), -1)[trajectory.action[k, b]]

    def ratio(k):
        return log_pi(k).exp() / log_pi(k).exp().detach()

    if surrogate == "ad":
        return log_pi(t)
    past, k = torch.ones((), dtype=torch.float64), t - 1
    while surrogate == "loaded-dice" and k >= 0 and not (trajectory.is_terminal | trajectory.is_truncated)[k, b]:
        past, k = past * (ratio(k) if trajectory.valid[k, b] else 1.0), k - 1
    return past * ratio(t) - (past if surrogate == "loaded-dice" else 0.0)


def slow_whitening(advantages):
    """x -> (x - mean) / √(variance + 1e-5), both of these advantages and both constants."""
    values = [x.item() for x in advantages]
    mean = sum(values) / len(values)
    variance = sum((x - mean) ** 2 for x in values) / len(values)
    return lambda x: (x - mean) / (variance + 1e-5) ** 0.5


def slow_inner_loss(network, theta, hyper, trajectory, surrogate, outer, is_normalised=False):
    """1.0 (-A log π) + c_v mean (G - V)² - c_e H + c_o mean (G' - V')², sample by sample, in the papers' notation."""

    def constant(head):
        return lambda t, b: sample(network, theta, trajectory, t, b, head).detach()

    rows = [(t, b) for t in range(STEPS) for b in range(BATCH) if trajectory.valid[t, b]]
    values = constant("value")
    returns = [slow_return(trajectory, values, t, b, hyper["gamma"], hyper["lambda"]) for t, b in rows]
    advantages = [g - values(t, b) for g, (t, b) in zip(returns, rows, strict=True)]
    weigh = slow_whitening(advantages) if is_normalised else lambda advantage: advantage
    total = 0.0
    for g, advantage, (t, b) in zip(returns, advantages, rows, strict=True):
        log_pi = torch.log_softmax(sample(network, theta, trajectory, t, b, "logits"), -1)
        pi = log_pi.exp()
        value = sample(network, theta, trajectory, t, b, "value")
        total = total - weigh(advantage) * slow_surrogate(network, theta, trajectory, surrogate, t, b)
        total = total + hyper["value_coefficient"] * (g - value) ** 2
        total = total - hyper["entropy_coefficient"] * -sum(pi[a] * log_pi[a] for a in range(ACTIONS))
        if outer.uses_outer_critic:
            outer_value = sample(network, theta, trajectory, t, b, "outer_value")
            outer_g = slow_return(trajectory, constant("outer_value"), t, b, outer.gamma, outer.lambda_)
            total = total + outer.critic_coefficient * (outer_g - outer_value) ** 2
    return total.sum() / len(rows)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("uses_outer_critic", [True, False])
@pytest.mark.parametrize(("seed", "is_normalised"), [(0, False), (1, False), (1, True)])
@pytest.mark.thinned(3)
def test_inner_loss_sample_by_sample(make_problem, surrogate, uses_outer_critic, seed, is_normalised):
    network, theta, trajectory = make_problem(seed)
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer" if uses_outer_critic else "inner")
    probe = torch.randn(theta.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def derivatives(loss):
        """∇θ, and all that a meta-gradient takes of it: ∂(∇θ · probe) in θ and in every hyper-parameter."""
        x = theta.clone().requires_grad_()
        hyper = {name: value.requires_grad_() for name, value in tensors(HYPER).items()}
        (gradient,) = torch.autograd.grad(loss(x, hyper), x, create_graph=True)
        return gradient.detach(), *torch.autograd.grad(gradient @ probe, (x, *hyper.values()))

    ours = derivatives(
        lambda x, h: inner_loss(network, x, h, trajectory, SURROGATES[surrogate], outer, is_normalised=is_normalised)[0]
    )
    slow = derivatives(lambda x, h: slow_inner_loss(network, x, h, trajectory, surrogate, outer, is_normalised))
    torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-11)
    assert all(x.abs().max() > 1e-6 for x in ours)


def test_a_step_that_nobody_chose_in_the_middle_of_an_episode_is_no_factor(make_problem):
    # A forced FIRE, as actors put it: an invalid row that does not follow an end.
    network, theta, trajectory = make_problem()
    forced = torch.zeros_like(trajectory.valid)
    forced[2] = True
    never = torch.zeros_like(forced)
    trajectory = trajectory._replace(valid=~forced, is_terminal=never, is_truncated=never)
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="inner")

    def curvature(action):
        chosen = trajectory._replace(action=torch.where(forced, action, trajectory.action))
        return torch.func.hessian(
            lambda x: inner_loss(network, x, tensors(HYPER), chosen, SURROGATES["loaded-dice"], outer)[0]
        )(theta)

    assert torch.equal(curvature(0), curvature(1))
    slow = torch.func.hessian(lambda x: slow_inner_loss(network, x, tensors(HYPER), trajectory, "loaded-dice", outer))
    torch.testing.assert_close(curvature(0), slow(theta), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_inner_loss_value_and_metrics(make_problem, surrogate):
    network, theta, trajectory = make_problem()
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
    loss, metrics = inner_loss(network, theta, tensors(HYPER), trajectory, SURROGATES[surrogate], outer)
    expected = slow_inner_loss(network, theta, tensors(HYPER), trajectory, surrogate, outer)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
    assert loss.shape == ()
    parts = metrics.policy_loss + metrics.value_loss - 0.01 * metrics.entropy + 0.5 * metrics.outer_value_loss
    torch.testing.assert_close(parts, loss, rtol=1e-12, atol=0.0)
    outputs = forward(network, theta, trajectory, ("logits", "value"))
    entropy = torch.distributions.Categorical(logits=outputs["logits"]).entropy()[trajectory.valid].mean()
    torch.testing.assert_close(metrics.entropy, entropy)
    if surrogate != "ad":
        torch.testing.assert_close(metrics.policy_loss, -metrics.advantage if surrogate == "lvc" else 0.0 * loss)
    assert not any(metric.requires_grad for metric in metrics if metric is not None)
    assert metrics.effective_sample_size is None  # the loss takes no older rollouts


@pytest.mark.parametrize("uses_outer_critic", [True, False])
@pytest.mark.parametrize("is_normalised", [True, False])
@pytest.mark.parametrize(("value_coefficient", "entropy_coefficient"), [(0.0, 0.0), (0.5, 0.3)])
def test_outer_loss_sample_by_sample(
    make_problem, uses_outer_critic, is_normalised, value_coefficient, entropy_coefficient
):
    network, theta, trajectory = make_problem(2)
    critic = "outer" if uses_outer_critic else "inner"
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic=critic, is_advantage_normalised=is_normalised)
    outer = replace(outer, value_coefficient=value_coefficient, entropy_coefficient=entropy_coefficient)
    head = "outer_value" if uses_outer_critic else "value"

    def slow(x):
        def value(t, b):
            return sample(network, x, trajectory, t, b, head).detach()

        rows = [(t, b) for t in range(STEPS) for b in range(BATCH) if trajectory.valid[t, b]]
        advantages = [slow_return(trajectory, value, t, b, outer.gamma, outer.lambda_) - value(t, b) for t, b in rows]
        log_probs = [
            torch.log_softmax(sample(network, x, trajectory, t, b, "logits"), -1)[trajectory.action[t, b]]
            for t, b in rows
        ]
        weigh = slow_whitening(advantages) if is_normalised else lambda advantage: advantage
        loss = -sum(weigh(a) * p for a, p in zip(advantages, log_probs, strict=True)) / len(rows)
        for t, b in rows:
            target = slow_return(trajectory, value, t, b, outer.gamma, outer.lambda_)
            error = target - sample(network, x, trajectory, t, b, "value")
            pi = torch.softmax(sample(network, x, trajectory, t, b, "logits"), -1)
            loss = loss + value_coefficient * error**2 / len(rows)
            loss = loss - entropy_coefficient * sum(-p * p.log() for p in pi) / len(rows)
        return loss, sum(advantages) / len(rows)

    results = []
    for function in (lambda x: outer_loss(network, x, trajectory, outer), slow):
        x = theta.clone().requires_grad_()
        loss, advantage = function(x)
        results.append((loss.detach(), advantage.detach(), torch.autograd.grad(loss, x)[0]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_outer_critic_loss_trains_the_outer_critic_alone(make_problem):
    network, theta, trajectory = make_problem()

    def gradient(coefficient):
        outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer", critic_coefficient=coefficient)
        return torch.func.grad(
            lambda x: inner_loss(network, x, tensors(HYPER), trajectory, SURROGATES["ad"], outer)[0]
        )(theta)

    changed = network.layout.unflatten(gradient(0.0) - gradient(1.0))
    assert {name for name, x in changed.items() if x.abs().max() > 1e-14} == {"outer_value.weight", "outer_value.bias"}


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]))
def test_masked_mean(steps, batch, seed, rate):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, batch, generator=generator, dtype=torch.float64)
    valid = torch.rand(steps, batch, generator=generator) < rate
    expected = x[valid].mean() if valid.any() else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(masked_mean(x, valid), expected)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([1e-4, 1.0, 1e4]))
def test_normalised_advantages_have_mean_0_and_variance_1_over_valid_steps(steps, batch, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    x = scale * (3.0 + torch.randn(steps, batch, generator=generator, dtype=torch.float64))
    valid = torch.rand(steps, batch, generator=generator) < 0.7
    whitened = normalised(x, valid)
    slope = torch.func.jacrev(lambda x: normalised(x, valid))(x).flatten(2).flatten(0, 1)
    changed = normalised(torch.where(valid, x, 1e9), valid)
    assert torch.equal(whitened[valid], changed[valid]), "invalid steps do not count"
    variance = x[valid].var(unbiased=False).item() if valid.any() else 0.0
    torch.testing.assert_close(slope, torch.eye(x.numel(), dtype=x.dtype) / (variance + 1e-5) ** 0.5)
    if valid.any():
        assert whitened[valid].mean().item() == pytest.approx(0.0, abs=1e-10)
        assert whitened[valid].var(unbiased=False).item() == pytest.approx(variance / (variance + 1e-5), abs=1e-10)


@pytest.mark.parametrize("is_normalised", [True, False])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_derivatives_are_those_of_the_map_with_its_constants_frozen(
    make_problem, freeze, finite_differences, surrogate, is_normalised
):
    """In θ and in every hyper-parameter; mean and scale of the advantages are constants of it."""
    network, theta, trajectory = make_problem(3)
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
    point = torch.cat([theta, *tensors(HYPER).values()])

    def loss(x):
        hyper = dict(zip(HYPER, x[len(theta) :].split(1), strict=True))
        return inner_loss(
            network, x[: len(theta)], hyper, trajectory, SURROGATES[surrogate], outer, is_normalised=is_normalised
        )[0]

    directions = torch.eye(len(point), dtype=torch.float64)[-len(HYPER) :]
    random = torch.randn(3, len(point), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    directions = torch.cat([directions, random / random.norm(dim=-1, keepdim=True)])
    expected = finite_differences(freeze(loss, point), point, directions)
    found = directions @ torch.func.grad(loss)(point)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert expected.abs().min() > 1e-6


def test_no_valid_step_gives_loss_and_gradient_zero(make_problem):
    network, theta, trajectory = make_problem()
    trajectory = trajectory._replace(valid=torch.zeros_like(trajectory.valid))
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer")
    gradient, loss = torch.func.grad_and_value(
        lambda x: inner_loss(network, x, tensors(HYPER), trajectory, SURROGATES["lvc"], outer)[0]
    )(theta)
    assert loss == 0.0
    assert (gradient == 0.0).all()


def all_losses(network, theta, trajectory):
    """Values and θ-gradients of every loss, one tensor."""
    results = []
    for uses_outer_critic in (True, False):
        outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="outer" if uses_outer_critic else "inner")
        for surrogate in SURROGATES.values():
            gradient, loss = torch.func.grad_and_value(
                lambda x, s=surrogate, o=outer: inner_loss(network, x, tensors(HYPER), trajectory, s, o)[0]
            )(theta)
            results += [loss.reshape(1), gradient]
        gradient, loss = torch.func.grad_and_value(lambda x, o=outer: outer_loss(network, x, trajectory, o)[0])(theta)
        results += [loss.reshape(1), gradient]
    return torch.cat(results)


@settings(max_examples=20)
@given(st.integers(0, 20), st.floats(-1e6, 1e6), st.integers(0, ACTIONS - 1), st.booleans(), st.booleans())
def test_invalid_rows_enter_no_loss(make_problem, seed, reward, action, is_terminal, is_truncated):
    network, theta, trajectory = make_problem(seed)
    before = all_losses(network, theta, trajectory)
    invalid = ~trajectory.valid
    observation = trajectory.observation.clone()
    # What an invalid row shows is the true successor of a truncated step; after a terminal step it is nobody's.
    after_terminal = invalid.clone()
    after_terminal[1:] &= trajectory.is_terminal[:-1]
    assert after_terminal.any()
    observation[:-1][after_terminal] = 123.0
    changed = trajectory._replace(
        observation=observation,
        reward=torch.where(invalid, reward, trajectory.reward),
        action=torch.where(invalid, action, trajectory.action),
        is_terminal=torch.where(invalid, is_terminal, trajectory.is_terminal),
        is_truncated=torch.where(invalid, is_truncated, trajectory.is_truncated),
        behaviour_log_prob=torch.where(invalid, reward, trajectory.behaviour_log_prob),
    )
    torch.testing.assert_close(all_losses(network, theta, changed), before, rtol=1e-12, atol=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 20), st.sampled_from(["terminal", "truncated"]), st.integers(0, STEPS - 2))
def test_losses_before_an_episode_end_do_not_see_what_follows(make_problem, seed, kind, end):
    network, theta, trajectory = make_problem(seed)
    is_end = torch.zeros_like(trajectory.is_terminal)
    is_end[end] = True
    counted = trajectory.valid.clone()
    counted[end + 1 :] = False  # only the losses of the steps up to the end are looked at
    trajectory = trajectory._replace(
        is_terminal=trajectory.is_terminal | is_end if kind == "terminal" else trajectory.is_terminal & ~is_end,
        is_truncated=trajectory.is_truncated | is_end if kind == "truncated" else trajectory.is_truncated & ~is_end,
        valid=counted,
    )
    reward, observation = trajectory.reward.clone(), trajectory.observation.clone()
    reward[end + 1 :] = 50.0
    observation[end + 2 :] = -3.0
    torch.testing.assert_close(
        all_losses(network, theta, trajectory._replace(reward=reward, observation=observation)),
        all_losses(network, theta, trajectory),
        rtol=1e-12,
        atol=1e-12,
    )


def test_forward_shapes_and_bootstrap_row(make_problem):
    network, theta, trajectory = make_problem(
        spec=SnakeCnn(channels=2, policy_hidden=4, value_hidden=4), shape=(4, 3, 5)
    )
    outputs = forward(network, theta, trajectory, ("logits", "value", "outer_value"))
    assert outputs["logits"].shape == (STEPS, BATCH, ACTIONS)
    assert outputs["value"].shape == outputs["outer_value"].shape == (STEPS + 1, BATCH)
    for t, b in ((0, 0), (3, 2), (STEPS, 1)):
        torch.testing.assert_close(outputs["value"][t, b], sample(network, theta, trajectory, t, b, "value"))
    jacobian = torch.func.jacrev(lambda x: forward(network, x, trajectory, ("value",))["value"])(theta)
    assert (jacobian[-1] == 0.0).all(), "the bootstrap row is a constant"
    assert (jacobian[:-1].abs().amax(-1) > 0.0).all()


def test_action_log_prob(make_problem):
    network, theta, trajectory = make_problem()
    logits = forward(network, theta, trajectory, ("logits",))["logits"]
    expected = torch.distributions.Categorical(logits=logits).log_prob(trajectory.action)
    torch.testing.assert_close(Categorical(logits).log_prob(trajectory.action), expected)


def test_gamma_acts_in_advantage_and_critic_target_alike(make_problem):
    # ∂L/∂γ by hand: -mean(∂G/∂γ · 1) + 2 c_v mean((G - V) ∂G/∂γ), LVC's surrogate having the value 1.
    network, theta, trajectory = make_problem()
    outer = OuterObjective(gamma=0.95, lambda_=0.9, critic="inner")
    hyper = {name: value.requires_grad_() for name, value in tensors(HYPER).items()}
    loss, _ = inner_loss(network, theta, hyper, trajectory, SURROGATES["lvc"], outer)
    (d_gamma,) = torch.autograd.grad(loss, hyper["gamma"])
    value = forward(network, theta, trajectory, ("value",))["value"]

    def returns(gamma):
        return on_policy_estimates(trajectory.reward, value, trajectory, gamma, 0.7).target

    gamma = torch.tensor([0.8], dtype=torch.float64)
    target, slope = torch.func.jvp(returns, (gamma,), (torch.ones_like(gamma),))
    by_hand = masked_mean(-slope + 2 * 0.5 * (target - value[:-1]) * slope, trajectory.valid)
    torch.testing.assert_close(d_gamma.squeeze(), by_hand)
