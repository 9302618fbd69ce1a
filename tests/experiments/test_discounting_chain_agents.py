"""Agents on the Discounting Chain; the algorithm itself is held against the environment in the problem's tests."""

import pytest
import torch
from torch import Tensor

from metagrad.experiments.debiasing import discounting_chain_problem as chain
from metagrad.experiments.debiasing.discounting_chain_agents import (
    AgentState,
    ChainAgent,
    Logged,
    Meta,
    advance,
    inner_problem,
    outer_loss_of,
    start,
)
from metagrad.meta_gradient import reference_meta_gradient

F64 = torch.float64
TABLE = chain.tables()
ARMS = [ChainAgent("mg"), ChainAgent("mg", True), ChainAgent("bmg"), ChainAgent("bmg", True)]


def train(
    agent: ChainAgent, seeds: list[int], updates: int, dtype: torch.dtype = F64
) -> tuple[list[AgentState], list[Logged]]:
    table, generators = chain.tables(dtype), [torch.Generator().manual_seed(seed) for seed in seeds]
    states, logs = [start(agent, table, generators, dtype)], []
    rows = 495 if agent.objective.is_normalised else table.waiting
    for _ in range(updates):
        state, logged = advance(
            agent, table, states[-1], lambda theta: chain.sample_counts(table, theta, rows, generators)
        )
        states.append(state)
        logs.append(logged)
    return states, logs


def test_a2c_is_the_inner_update_alone() -> None:
    agent = ChainAgent("none")
    states, logs = train(agent, [0, 1], 3)
    theta, gamma = states[0].theta, torch.full((2,), 0.95, dtype=F64)
    for state, logged in zip(states[1:], logs, strict=True):
        theta = theta.detach().requires_grad_()
        loss, _ = chain.chain_loss(TABLE, agent.objective, theta, gamma, gamma, logged.counts)
        theta = theta - 0.5 * torch.autograd.grad(loss, theta)[0]
        torch.testing.assert_close(state.theta, theta.detach(), rtol=1e-14, atol=0)
        assert torch.equal(chain.discounts(state.eta), gamma)
        assert logged.outer is None


@pytest.mark.parametrize("agent", ARMS, ids=str)
def test_seeds_are_independent(agent: ChainAgent) -> None:
    together, _ = train(agent, [3, 4, 5], 4)
    alone, _ = train(agent, [4], 4)
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many.theta.view(3, -1)[1], one.theta, rtol=1e-9, atol=1e-15)
        torch.testing.assert_close(many.eta[1:2], one.eta, rtol=1e-6, atol=0)


@pytest.mark.parametrize("uses_outer_value", [False, True])
def test_first_meta_step_is_against_the_meta_gradient(uses_outer_value: bool) -> None:
    agent = ChainAgent("mg", uses_outer_value)
    batches = []

    def sample(theta: Tensor) -> chain.Counts:
        batches.append(chain.sample_counts(TABLE, theta, TABLE.waiting, [torch.Generator().manual_seed(len(batches))]))
        return batches[-1]

    before = start(agent, TABLE, [torch.Generator().manual_seed(0)])
    after, _ = advance(agent, TABLE, before, sample)
    problem = inner_problem(agent, TABLE)
    expected = reference_meta_gradient(
        problem,
        outer_loss_of(agent, TABLE, before.eta),
        before.theta,
        before.optimizer,
        before.eta,
        batches[:1],
        [(1.0, batches[1])],
    ).eta
    # Adam's first step is 0.1 g / (|g| + 1e-8): the gradients here are no larger than its eps.
    assert expected.abs().item() < 1e-5
    torch.testing.assert_close(after.eta, -0.1 * expected / (expected.abs() + 1e-8), rtol=1e-9, atol=0)


@pytest.mark.parametrize("meta", ["mg", "bmg"])
def test_the_critic_decides_what_the_outer_advantage_is_centred_on(meta: Meta) -> None:
    # A uniform policy: with true values under γ' the mean advantage is 0 at every step; with those under γ it is not.
    def mean_advantage(agent: ChainAgent) -> float:
        _, logs = train(agent, list(range(20)), 2)
        assert logs[0].outer is not None
        return float(logs[0].outer.advantage.mean())

    assert abs(mean_advantage(ChainAgent(meta, True))) < 1e-4
    assert mean_advantage(ChainAgent(meta, False)) > 1e-3


def test_single_precision_starts_on_the_same_path() -> None:
    for agent in ARMS:
        double, _ = train(agent, [0], 3)
        single, _ = train(agent, [0], 3, torch.float32)
        torch.testing.assert_close(single[-1].theta.to(F64), double[-1].theta, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(single[-1].eta.to(F64), double[-1].eta, rtol=0.02, atol=0)
