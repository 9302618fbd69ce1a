"""Losses over counts against the same losses step by step through the environment; batches against the policy."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metagrad import autodiff
from metagrad.actors.envs.discounting_chain import PAYING_STEPS, DiscountingChain, DiscountingChainConfig
from metagrad.experiments.debiasing import discounting_chain_agents as agents
from metagrad.experiments.debiasing import discounting_chain_problem as chain
from metagrad.meta_parameters import hyperparameters, init_eta

F64 = torch.float64
TABLE = chain.tables()
OBJECTIVES = [chain.Objective(n, e) for n in (False, True) for e in (False, True)]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=str)


@dataclass
class Steps:
    """100 steps of 128 episodes, as the environment gave them; [100, 128, …]."""

    observation: Tensor
    action: Tensor
    reward: Tensor
    is_terminal: Tensor
    next_observation: Tensor


def a_policy(seed: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(chain.P, generator=torch.Generator().manual_seed(seed), dtype=F64)


def plain_logits(theta: Tensor, observation: Tensor) -> Tensor:
    weight, bias = theta.view(5, 3)[:, :2], theta.view(5, 3)[:, 2]
    return torch.nn.functional.linear(observation, weight, bias)


def play(theta: Tensor, seed: int) -> Steps:
    """Whole episodes of the policy in the environment."""
    environment = DiscountingChain(DiscountingChainConfig(), 128)
    generator = torch.Generator().manual_seed(seed)
    observation = environment.reset()
    rows = []
    for _ in range(100):
        probabilities = plain_logits(theta.detach(), observation.to(F64)).softmax(-1)
        action = torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
        step = environment.step(action)
        # What the paying chain gives is 1.1 in float64 as well.
        reward = (step.reward.to(F64) * 10).round() / 10
        rows.append((observation.to(F64), action, reward, step.is_terminal, step.observation.to(F64)))
        observation = step.observation
    return Steps(*(torch.stack(column) for column in zip(*rows, strict=True)))


def tally(steps: Steps, rows: int) -> chain.Counts:
    """Counts of one seed's steps, one step after another."""
    index = {
        (round(context.item()), round(100 * time.item())): row for row, (context, time, _) in enumerate(TABLE.inputs.T)
    }
    taken = [[0] * 5 for _ in range(496)]
    for (context, time), action in zip(
        steps.observation.flatten(0, 1).tolist(), steps.action.flatten().tolist(), strict=True
    ):
        taken[index[round(context), round(100 * time)]][action] += 1
    counts = torch.tensor(taken, dtype=F64)
    return chain.Counts(counts[None, 0], counts[1 : 1 + rows].T[None])


def plain_value(theta: Tensor, observation: Tensor, g: Tensor, is_exact: bool) -> Tensor:
    """V of one observation, by its definition."""
    context, t = round(observation[0].item()), round(100 * observation[1].item())
    rewards = [1.0, 1.0, 1.0, 1.1, 1.0]
    if context == -1:
        pi = plain_logits(theta, observation).softmax(-1)
        return torch.stack([pi[a] * g ** (PAYING_STEPS[a] - int(is_exact)) * rewards[a] for a in range(5)]).sum()
    wait = PAYING_STEPS[context] - t - 1
    return g**wait * rewards[context] if wait >= 0 else torch.zeros((), dtype=F64)


def plain_loss(
    objective: chain.Objective, theta: Tensor, discount: Tensor, value_discount: Tensor, steps: Steps
) -> tuple[Tensor, Tensor]:
    """The loss over 12,800 steps one by one, and the advantages [100, 128]."""
    known: dict[tuple[float, ...], float] = {}

    def values(observations: Tensor) -> Tensor:
        for key in {tuple(x) for x in observations.flatten(0, 1).tolist()} - set(known):
            observation = torch.tensor(key, dtype=F64)
            known[key] = plain_value(theta, observation, value_discount, objective.is_first_value_exact).item()
        listed = [known[tuple(x)] for x in observations.flatten(0, 1).tolist()]
        return torch.tensor(listed, dtype=F64).view(observations.shape[:2])

    goes_on = (~steps.is_terminal).to(F64)
    advantage = steps.reward + discount * goes_on * values(steps.next_observation) - values(steps.observation)
    if objective.is_normalised:
        mean, variance = advantage.detach().mean(), advantage.detach().var(correction=0)
        advantage = (advantage - mean) / (variance + 1e-5).sqrt()
    log_probs = plain_logits(theta, steps.observation).log_softmax(-1)
    log_prob = log_probs.gather(-1, steps.action[..., None]).squeeze(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return (-log_prob * advantage - 0.005 * entropy).mean(), advantage.detach()


@pytest.fixture(scope="module")
def episodes() -> list[tuple[Tensor, Steps]]:
    """Two seeds; of mild policies, so that every chain is chosen."""
    return [(theta, play(theta, seed)) for seed in range(2) for theta in [a_policy(seed, 0.5)]]


@every_objective
@pytest.mark.parametrize("value_discount", [None, 0.93, 1.0])
@pytest.mark.thinned(3)
def test_loss_and_all_its_derivatives_are_those_of_the_steps_one_by_one(
    objective: chain.Objective, value_discount: float | None, episodes: list[tuple[Tensor, Steps]]
) -> None:
    rows = 495 if objective.is_normalised else TABLE.waiting
    for theta, steps in episodes:
        theta = theta.requires_grad_()
        discount = torch.tensor([0.97], dtype=F64, requires_grad=True)
        g = discount if value_discount is None else torch.tensor([value_discount], dtype=F64)
        ours, metrics = chain.chain_loss(TABLE, objective, theta, discount, g, tally(steps, rows))
        plain, advantage = plain_loss(objective, theta, discount[0], g[0], steps)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(metrics.first_advantage[0], advantage[0].mean(), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(metrics.advantage[0], advantage.mean(), rtol=1e-10, atol=1e-14)
        gradients = [torch.autograd.grad(loss, (theta, discount), create_graph=True) for loss in (ours, plain)]
        scale = gradients[1][0].abs().max().item()
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13 * scale)
        # What a meta-gradient is made of: how the gradient depends on γ.
        mixed = [torch.autograd.grad(gradient[0] @ a_policy(9), discount)[0] for gradient in gradients]
        torch.testing.assert_close(*mixed, rtol=1e-9, atol=1e-16)
        assert mixed[0] != 0


def test_seeds_side_by_side_are_each_seed_alone(episodes: list[tuple[Tensor, Steps]]) -> None:
    thetas = [theta.detach() for theta, _ in episodes]
    counts = [tally(steps, TABLE.waiting) for _, steps in episodes]
    both = chain.Counts(*(torch.cat(each) for each in zip(*counts, strict=True)))
    gamma = torch.tensor([0.93, 0.98], dtype=F64)

    def gradients(theta: Tensor, gamma: Tensor, counts: chain.Counts) -> list[Tensor]:
        leaves = (theta.clone().requires_grad_(), gamma.clone().requires_grad_())
        loss, metrics = chain.chain_loss(TABLE, OBJECTIVES[0], *leaves, leaves[1], counts)
        return [*torch.autograd.grad(loss, leaves), *metrics]

    together = gradients(torch.cat(thetas), gamma, both)
    alone = [gradients(theta, gamma[k : k + 1], counts[k]) for k, theta in enumerate(thetas)]
    for got, *expected in zip(together, *alone, strict=True):
        torch.testing.assert_close(got, torch.cat(expected))


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_only_waiting_rows_have_an_advantage(discount: float) -> None:
    # The counts of the other rows would change nothing: their advantage is 0, and so is its derivative.
    theta, g = a_policy(1).requires_grad_(), torch.tensor([0.95], dtype=F64, requires_grad=True)
    gamma = torch.full((1,), discount, dtype=F64, requires_grad=True)
    counts = chain.sample_counts(TABLE, theta, 495, [torch.Generator().manual_seed(3)])
    assert counts.later[:, :, TABLE.waiting :].sum() > 0
    losses = []
    for rows in (495, TABLE.waiting):
        part = counts._replace(later=counts.later[:, :, :rows])
        loss, _ = chain.chain_loss(TABLE, OBJECTIVES[0], theta, gamma, g, part)
        losses.append((loss, *torch.autograd.grad(loss, (theta, gamma))))
    for all_rows, waiting_rows in zip(*losses, strict=True):
        torch.testing.assert_close(all_rows, waiting_rows, rtol=1e-12, atol=1e-16)
    waiting = {(int(c), round(100 * t)) for c, t, _ in TABLE.inputs.T[1 : 1 + TABLE.waiting].tolist()}
    assert waiting == {(c, t) for c, steps in enumerate(PAYING_STEPS) for t in range(1, steps - 1)}


def test_every_stop_gradient_is_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    # γ acts through one factor: were the values not constant, the derivative would be another one.
    frozen = []
    real = autodiff.stop_gradient
    monkeypatch.setattr(autodiff, "stop_gradient", lambda x: frozen.append(tuple(x.shape)) or real(x))
    gamma = torch.full((2,), 0.95, dtype=F64)
    theta = torch.cat([a_policy(0), a_policy(1)])
    counts = chain.sample_counts(TABLE, theta, 495, [torch.Generator().manual_seed(k) for k in range(2)])
    chain.chain_loss(TABLE, chain.Objective(is_normalised=True), theta, gamma, gamma, counts)
    assert frozen == [(2,), (2, 5), (2, 500)]


def descended(loss: Tensor, theta: Tensor) -> Tensor:
    return theta - 0.5 * torch.autograd.grad(loss, theta, create_graph=True)[0]


@pytest.mark.parametrize(
    ("meta", "uses_outer_value", "is_normalised"),
    [("mg", False, False), ("mg", True, False), ("bmg", False, False), ("bmg", True, False), ("mg", False, True)],
)
@pytest.mark.thinned(3)
def test_training_is_the_algorithm_written_out_through_the_environment(
    meta: agents.Meta, uses_outer_value: bool, is_normalised: bool
) -> None:
    objective = chain.Objective(is_normalised)
    agent = agents.ChainAgent(meta, uses_outer_value, objective)
    state = agents.start(agent, TABLE, [torch.Generator().manual_seed(0)])
    theta, eta = state.theta, torch.zeros(1, dtype=F64, requires_grad=True)
    adam = torch.optim.Adam([eta], lr=0.1)
    for update in range(2):
        played: list[Steps] = []

        def sample(theta: Tensor, played: list[Steps] = played, update: int = update) -> chain.Counts:
            played.append(play(theta, 10 * update + len(played)))
            return tally(played[-1], 495 if is_normalised else TABLE.waiting)

        state, logged = agents.advance(agent, TABLE, state, sample)
        assert len(played) == 2
        theta = theta.detach().requires_grad_()
        gamma = 0.9 + 0.1 * torch.sigmoid(eta)[0]
        updated = descended(plain_loss(objective, theta, gamma, gamma, played[0])[0], theta)
        one = torch.ones((), dtype=F64)
        outer, advantage = plain_loss(objective, updated, one, one if uses_outer_value else gamma, played[1])
        if meta == "bmg":
            start = torch.tensor([-1.0, 0.0], dtype=F64)
            aim = plain_logits(descended(outer, updated).detach(), start).log_softmax(-1)
            outer = (aim.exp() * (aim - plain_logits(updated, start).log_softmax(-1))).sum()
        (eta.grad,) = torch.autograd.grad(outer, eta)
        adam.step()
        theta = updated
        assert eta.item() != 0
        torch.testing.assert_close(state.theta, theta.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state.eta, eta.detach(), rtol=1e-8, atol=0)
        assert logged.outer is not None
        torch.testing.assert_close(logged.outer.first_advantage[0], advantage[0].mean(), rtol=1e-10, atol=1e-14)


# Batches


def test_counts_are_whole_episodes_of_the_policy() -> None:
    theta = torch.cat([a_policy(seed, 0.7) for seed in range(2)])
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    draws = [chain.sample_counts(TABLE, theta, 495, generators) for _ in range(200)]
    first = torch.stack([draw.first for draw in draws])
    later = torch.stack([draw.later for draw in draws])
    assert (first.sum(-1) == 128).all()
    assert torch.equal(later.sum(-2), first[:, :, TABLE.chain[5:]])  # an episode stays in its chain
    probability = chain.logits(TABLE, theta).softmax(1)
    for taken, visits, p in (
        (first, torch.full_like(first, 128.0), probability[:, :, 0]),
        (later, later.sum(-2, keepdim=True).expand_as(later), probability[:, :, 1:]),
    ):
        trials, variance = visits.sum(0), visits.sum(0) * p * (1 - p)
        z = (taken.sum(0) - trials * p) / variance.clamp(min=1e-12).sqrt()
        enough = variance > 25
        assert enough.sum() > 5
        # Standard normal: spread 1, and none of the 4,960 beyond 5.
        assert z[enough].abs().max() < 5
        if enough.sum() > 100:
            assert abs(z[enough].square().mean() - 1) < 5 * math.sqrt(2 / int(enough.sum()))
            # Within one batch the counts of a row vary as a multinomial's: not more, not less.
            q = ((taken - visits * p).square().sum(0) / variance.clamp(min=1e-12))[enough]
            assert abs(q.mean() - 1) < 5 * math.sqrt(2 / 200 / int(enough.sum())) + 0.01


def test_counts_are_of_single_draws() -> None:
    """Draw the same uniform numbers, one step after another."""
    theta, rows = torch.cat([a_policy(4), a_policy(5)]), TABLE.waiting
    counts = chain.sample_counts(TABLE, theta, rows, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    probability = chain.logits(TABLE, theta).softmax(1)
    for k, seed in enumerate((1, 2)):
        generator = torch.Generator().manual_seed(seed)
        first, later = torch.zeros(5, dtype=F64), torch.zeros(5, rows, dtype=F64)

        def drawn(row: int, uniform: float, k: int = k) -> int:
            return int((probability[k, :, row].cumsum(0)[:-1] <= uniform).sum())

        for uniform in torch.rand(128, generator=generator, dtype=F64).tolist():
            first[drawn(0, uniform)] += 1
        for row in range(rows):
            visits = int(first[TABLE.chain[5 + row]])
            for uniform in torch.rand(visits, generator=generator, dtype=F64).tolist():
                later[drawn(1 + row, uniform), row] += 1
        assert torch.equal(counts.first[k], first)
        assert torch.equal(counts.later[k], later)


def test_a_seed_draws_the_same_whoever_is_beside_it() -> None:
    policies = [a_policy(seed) for seed in range(3)]
    alone = chain.sample_counts(TABLE, policies[1], 135, [torch.Generator().manual_seed(1)])
    beside = chain.sample_counts(
        TABLE, torch.cat(policies), 135, [torch.Generator().manual_seed(seed) for seed in range(3)]
    )
    assert torch.equal(alone.first[0], beside.first[1])
    assert torch.equal(alone.later[0], beside.later[1])


def test_return_is_the_mean_over_episodes(episodes: list[tuple[Tensor, Steps]]) -> None:
    for _, steps in episodes:
        torch.testing.assert_close(
            chain.mean_return(TABLE, tally(steps, 0))[0], steps.reward.sum(0).mean(), rtol=1e-12, atol=0
        )


# Policy and map


def test_initial_weights_are_haikus() -> None:
    theta = torch.stack([chain.init_policy(torch.Generator().manual_seed(seed)) for seed in range(4000)])
    weights, bias = theta.view(-1, 5, 3)[..., :2].flatten(), theta.view(-1, 5, 3)[..., 2]
    assert not bias.any()
    std = math.sqrt(1e-4 / 2)
    assert weights.abs().max() <= 2 * std / 0.8796
    assert abs(weights.mean()) < 5 * std / math.sqrt(len(weights))
    assert weights.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * len(weights)))


def test_discounts_are_the_declared_map() -> None:
    eta = torch.linspace(-5, 5, 11, dtype=F64)
    expected = [hyperparameters({"gamma": chain.DISCOUNT}, x[None])["gamma"] for x in eta]
    torch.testing.assert_close(chain.discounts(eta), torch.cat(expected), rtol=1e-15, atol=0)
    assert init_eta({"gamma": chain.DISCOUNT}, F64).item() == pytest.approx(0.0, abs=1e-14)


def test_rows_are_all_states_of_the_environment() -> None:
    assert TABLE.inputs.shape == (3, 496)
    assert len({tuple(column) for column in TABLE.inputs.T.tolist()}) == 496
    environment = DiscountingChain(DiscountingChainConfig(), 5)
    seen = {tuple(x) for x in environment.reset().tolist()}
    for _ in range(99):
        seen |= {tuple(x) for x in environment.step(torch.arange(5)).observation.tolist()}
    assert {tuple(column[:2]) for column in TABLE.inputs.float().T.tolist()} == seen


@pytest.mark.parametrize("gamma", [0.9, 0.97, 1.0])
def test_values_are_discounted_returns(gamma: float) -> None:
    # TD errors of true values are 0: under one discount, and with the exact value of the start, so is the mean
    # advantage of every step; with the release's, the start is off by a factor of γ.
    discount = torch.tensor([gamma], dtype=F64)
    theta = a_policy(2)
    pi = chain.logits(TABLE, theta, rows=1)[0, :, 0].softmax(0)
    expected_first = chain.Counts(128 * pi[None], torch.zeros(1, 5, TABLE.waiting, dtype=F64))
    exact = torch.stack([gamma ** (steps - 1) * TABLE.chain_reward[a] for a, steps in enumerate(PAYING_STEPS)]) @ pi
    for is_exact, off in ((True, 0.0), (False, (1 - gamma) * exact.item())):
        objective = chain.Objective(is_first_value_exact=is_exact)
        _, metrics = chain.chain_loss(TABLE, objective, theta, discount, discount, expected_first)
        assert metrics.first_advantage.item() == pytest.approx(off, abs=1e-14)
        assert metrics.advantage.item() == pytest.approx(off / 100, abs=1e-14)
