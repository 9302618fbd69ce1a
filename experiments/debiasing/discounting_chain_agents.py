"""Trains A2C, meta-gradients and bootstrapped ones on the Discounting Chain, many seeds side by side.

Arithmetic is in float64, the release's in float32. On the same batches float32 changes a meta-gradient by 1e-7 to 1e-4
of itself (MG), by up to 3e-3 (BMG, whose target is a difference of nearly equal policies): little beside the noise of a
batch. But gradients of 1e-14 are far below the eps of Adam and move η by 1e-7 to 3e-7 a time, where two float32 numbers
are 5e-7 apart (|η| = 6): η would jump or stand still there.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", 4.1, C.1 and Figure 1.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.bootstrap import bootstrap_target, kl_divergence
from metagrad.experiments.debiasing.discounting_chain_problem import (
    LEARNING_RATE,
    META_LEARNING_RATE,
    OUTER_DISCOUNT,
    ChainMetrics,
    Counts,
    Objective,
    Tables,
    chain_loss,
    discounts,
    init_policy,
    logits,
)
from metagrad.meta_gradient import OuterLoss, meta_gradient, outer_gradient
from metagrad.optimizers import Adam, OptimizerState, Sgd, constant
from metagrad.unroll import InnerProblem, inner_update

Meta = Literal["none", "mg", "bmg"]
Sampler = Callable[[Float[Tensor, "NP"]], Counts]
"""θ of all seeds to one fresh batch for each."""

META_OPTIMIZER = Adam(learning_rate=constant(META_LEARNING_RATE))  # eps 1e-8 outside the root alone, as in the release


class ChainAgent(NamedTuple):
    """Says how γ is tuned and what the advantage of the outer loss is made of."""

    meta: Meta  # "none": A2C, γ stays at 0.95
    uses_outer_value: bool = False  # False: the inner value, under the current γ (the biased baseline)
    objective: Objective = Objective()


class AgentState(NamedTuple):
    """Holds the state of N seeds."""

    theta: Float[Tensor, "NP"]
    optimizer: OptimizerState
    eta: Float[Tensor, "N"]
    meta_optimizer: OptimizerState


class Logged(NamedTuple):
    """Holds what one update logs."""

    counts: Counts  # the inner batch, drawn with the θ that the update began with
    outer: ChainMetrics | None  # of the outer loss's batch; None without meta-gradients


def inner_problem(agent: ChainAgent, table: Tables) -> InnerProblem:
    """Return the inner loss under γ(η), with SGD."""

    def loss(theta: Tensor, eta: Tensor, counts: Counts) -> tuple[Tensor, ChainMetrics]:
        gamma = discounts(eta)
        return chain_loss(table, agent.objective, theta, gamma, gamma, counts)

    return InnerProblem(loss, Sgd(learning_rate=constant(LEARNING_RATE)))


def outer_loss_of(agent: ChainAgent, table: Tables, eta: Float[Tensor, "N"]) -> OuterLoss:
    """Return the same loss under γ' = 1; values are under γ' with the outer value function, else under γ."""
    gamma = discounts(eta)
    outer_gamma = torch.full_like(gamma, OUTER_DISCOUNT)
    value_gamma = outer_gamma if agent.uses_outer_value else gamma

    def loss(theta: Tensor, counts: Counts) -> tuple[Tensor, ChainMetrics]:
        return chain_loss(table, agent.objective, theta, outer_gamma, value_gamma, counts)

    return loss


def start(
    agent: ChainAgent, table: Tables, generators: Sequence[torch.Generator], dtype: torch.dtype = torch.float64
) -> AgentState:
    """Return the state before the first update; γ = 0.95."""
    theta = torch.cat([init_policy(generator, dtype) for generator in generators])
    eta = torch.zeros(len(generators), dtype=dtype)
    optimizer = inner_problem(agent, table).optimizer
    return AgentState(theta, optimizer.init(theta), eta, META_OPTIMIZER.init(eta))


def advance(agent: ChainAgent, table: Tables, state: AgentState, sample: Sampler) -> tuple[AgentState, Logged]:
    """Update θ and then η: a batch from θ, and one from the updated θ₁ for the outer loss.

    MG descends the outer loss at θ₁. BMG descends KL(π_θ̃ || π_θ₁) at the initial state, θ̃ one SGD step on the outer
    loss beyond θ₁. Either way it is θ₁ that is kept.
    """
    problem = inner_problem(agent, table)
    theta, optimizer, eta, meta_optimizer = state
    counts = sample(theta)
    inner = inner_update(problem, theta, optimizer, eta, counts, keep_graph=agent.meta != "none")
    if agent.meta == "none":
        return state._replace(theta=inner.theta, optimizer=inner.state), Logged(counts, None)
    outer_loss = outer_loss_of(agent, table, eta)
    outer_counts = sample(inner.theta)
    if agent.meta == "mg":
        outer = outer_gradient(outer_loss, inner.theta, outer_counts)
        metrics = outer.metrics
    else:
        target = bootstrap_target(
            problem, outer_loss, inner.theta, inner.state, eta, 1, lambda _theta, _j: outer_counts
        )
        aim = logits(table, target.theta, rows=1)[:, :, 0]

        def matching(theta: Tensor, _batch: None) -> tuple[Tensor, None]:
            return kl_divergence(aim, logits(table, theta, rows=1)[:, :, 0]).sum(), None

        outer = outer_gradient(matching, inner.theta, None)
        metrics = target.metrics
    gradient = meta_gradient(problem, [inner.step], [outer.gradient], "retain").eta
    with torch.no_grad():
        eta, meta_optimizer = META_OPTIMIZER.update(gradient, meta_optimizer, eta, eta)
    return AgentState(inner.theta, inner.state, eta, meta_optimizer), Logged(counts, metrics)
