"""Poses the Discounting Chain as a meta-gradient problem: policy, true values, losses, and the batches that they need.

Shapes: N seeds side by side, A = 5 actions (chains), R = 496 rows, P = 15 parameters per seed.

An episode is its first action: everything after it is known. Only 496 observations occur, so a batch of 128 episodes x
100 steps is told by how often each action was taken at each of them. Losses are sums over these counts: the same
numbers as over 12,800 steps one by one, at a hundredth of the cost, for all seeds at once. At t > 0 the actions change
nothing, and where the advantage is 0 for every discount they are not in the loss either: they are not drawn there.

Seeds share nothing: θ [N·P] and η [N] hold them behind one another, and a loss is the sum of theirs, so that gradients,
updates and meta-gradients fall apart into those of each seed (as in `metagrad.monte_carlo.independent`).

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", 4.1, C.1 and Table 1; its
release where the paper is silent.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metagrad import autodiff
from metagrad.actors.envs.discounting_chain import HORIZON, NO_CONTEXT, PAYING_STEPS, chains, observe_state, reward_at
from metagrad.meta_parameters import MetaParameter

BATCH_SIZE = 128  # Table 1; episodes
LEARNING_RATE = 0.5  # Table 1
META_LEARNING_RATE = 0.1  # Table 1, MG and BMG
ENTROPY_COEFFICIENT = 0.005  # Table 1, inner and outer
OUTER_DISCOUNT = 1.0  # Table 1
DISCOUNT = MetaParameter(initial=0.95, low=0.9, high=1.0)  # 4.1
INIT_SCALE = 1e-4  # release: VarianceScaling
MAPPING_SEED = 3  # release
NORMALISER_EPS = 1e-5  # release

A = len(PAYING_STEPS)
P = 3 * A  # per action: weights of the two numbers observed, and a bias
STEPS = BATCH_SIZE * HORIZON  # what losses are means over


class Tables(NamedTuple):
    """Holds what never changes. Row 0 is the start, then come all (chain, t), t = 1…99, the W waiting ones first.

    A row waits where its chain pays not before the step after the next one: t ≤ K - 2. Elsewhere the advantage at t > 0
    is 0 whatever the discounts are, with all its derivatives. D transitions occur: the five of the start, one for each
    chain, then one for each other row.
    """

    inputs: Float[Tensor, "3 R"]  # observation and 1
    waiting: int  # W
    paying_step: Int64[Tensor, "A"]  # K
    chain_reward: Float[Tensor, "A"]  # R
    chain: Int64[Tensor, "D"]  # c of a transition
    reward: Float[Tensor, "D"]
    exponent: Int64[Tensor, "2D"]  # K - t - 1 before a transition, then after it; 0 where nothing is to come
    payment: Float[Tensor, "2 1 D"]  # R there; 0 where nothing is to come, and at the start, whose value the policy has


def tables(dtype: torch.dtype = torch.float64) -> Tables:
    """Return the environment's rules at every state that occurs."""
    table = chains(MAPPING_SEED, dtype)
    all_chains = torch.arange(A).repeat_interleave(HORIZON - 1)
    all_steps = torch.arange(1, HORIZON).repeat(A)
    is_waiting = all_steps <= table.paying_step[all_chains] - 2
    order = (~is_waiting).to(torch.int64).argsort(stable=True)
    start = observe_state(torch.tensor([NO_CONTEXT]), torch.tensor([0]))
    observation = torch.cat([start, observe_state(all_chains[order], all_steps[order])]).to(dtype)
    chain = torch.cat([torch.arange(A), all_chains[order]])
    step = torch.cat([torch.zeros(A, dtype=torch.int64), all_steps[order]])
    left = torch.stack([table.paying_step[chain] - t - 1 for t in (step, step + 1)])
    payment = torch.where(left >= 0, table.reward[chain], 0.0)
    payment[0, :A] = 0.0
    return Tables(
        inputs=torch.cat([observation, torch.ones(len(observation), 1, dtype=dtype)], dim=1).T.contiguous(),
        waiting=int(is_waiting.sum()),
        paying_step=table.paying_step,
        chain_reward=table.reward,
        chain=chain,
        reward=reward_at(table, chain, step + 1),
        exponent=left.clamp(min=0).flatten(),
        payment=payment[:, None],
    )


class Counts(NamedTuple):
    """Counts how often actions were taken in the batches of N seeds."""

    first: Float[Tensor, "N A"]  # in row 0
    later: Float[Tensor, "N A W"]  # in the first W of the later rows


class Objective(NamedTuple):
    """Says how one loss sees the chain; the same loss serves inside and outside, under other discounts."""

    is_normalised: bool = False  # advantages standardised over the batch (D.2)
    is_first_value_exact: bool = False  # False: the release's γ^K instead of γ^(K-1) in the value of the start


class ChainMetrics(NamedTuple):
    """Holds the advantages of one batch as they enter the loss, for the logs."""

    first_advantage: Float[Tensor, "N"]  # mean over the steps at t = 0
    advantage: Float[Tensor, "N"]  # mean over all steps


def init_policy(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Float[Tensor, "P"]:
    """Draw θ of one seed: for each action its weights of the chain's number and of the time, and its bias.

    Haiku's VarianceScaling(1e-4): normal, truncated at two standard deviations, of standard deviation √(1e-4 / fan-in)
    after truncation; zero bias.
    """
    std = math.sqrt(INIT_SCALE / 2) / 0.87962566103423978  # of a standard normal truncated at 2
    weights = torch.empty(A, 2, dtype=torch.float64)
    torch.nn.init.trunc_normal_(weights, std=std, a=-2 * std, b=2 * std, generator=generator)
    return torch.cat([weights, torch.zeros(A, 1)], dim=1).flatten().to(dtype)


def discounts(eta: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Return γ = 0.9 + 0.1 σ(η) of every seed."""
    return DISCOUNT.low + (DISCOUNT.high - DISCOUNT.low) * torch.sigmoid(eta)


def logits(table: Tables, theta: Float[Tensor, "NP"], rows: int = -1) -> Float[Tensor, "N A rows"]:
    """Evaluate the first rows, or all; rows come last, where softmax over actions is fastest."""
    inputs = table.inputs[:, :rows] if rows >= 0 else table.inputs
    return (theta.view(-1, 3) @ inputs).view(-1, A, inputs.shape[1])


def sample_counts(
    table: Tables, theta: Float[Tensor, "NP"], rows: int, generators: Sequence[torch.Generator]
) -> Counts:
    """Sample a fresh batch of 128 episodes for each seed, from its own random stream.

    Every action is drawn by the inverse of the policy's distribution function, first actions and then those in the
    first `rows` later rows.
    """
    n = len(generators)
    # An action is the number of these that a uniform number has reached.
    below = torch.softmax(logits(table, theta.detach(), 1 + rows), 1).cumsum(1)[:, :-1]
    uniform = torch.stack([torch.rand(BATCH_SIZE, generator=g, dtype=torch.float64) for g in generators])
    action = (uniform[:, None] >= below[:, :, :1]).sum(1)
    first = torch.zeros(n, A, dtype=torch.int64).scatter_add_(1, action, torch.ones_like(action))
    visits = first.index_select(1, table.chain[A : A + rows])
    sizes = visits.sum(1).tolist()
    uniform = torch.cat(
        [torch.rand(size, generator=g, dtype=torch.float64) for size, g in zip(sizes, generators, strict=True)]
    )
    reached = _reached(below[:, :, 1:].transpose(0, 1).reshape(A - 1, n * rows), visits.flatten(), uniform)
    later = torch.cat([visits.view(1, -1), reached, torch.zeros(1, n * rows, dtype=torch.int64)]).diff(dim=0).neg()
    return Counts(first.to(theta.dtype), later.view(A, n, rows).transpose(0, 1).to(theta.dtype))


def _reached(
    thresholds: Float[Tensor, "K rows"], visits: Int64[Tensor, "rows"], uniform: Float[Tensor, "steps"]
) -> Int64[Tensor, "K rows"]:
    """Count how many of a row's uniform numbers reach each of its thresholds.

    The numbers come row after row, as many as the row has visits.
    """
    row = torch.repeat_interleave(visits)
    so_far = (uniform >= thresholds.index_select(1, row)).cumsum(1, dtype=torch.int64)
    up_to_row = torch.nn.functional.pad(so_far, (1, 0)).index_select(1, visits.cumsum(0))
    return up_to_row.diff(dim=1, prepend=torch.zeros(len(thresholds), 1, dtype=torch.int64))


def chain_loss(
    table: Tables,
    objective: Objective,
    theta: Float[Tensor, "NP"],
    discount: Float[Tensor, "N"],
    value_discount: Float[Tensor, "N"],
    counts: Counts,
) -> tuple[Float[Tensor, ""], ChainMetrics]:
    """Return the policy-gradient loss with the true value as baseline, summed over seeds.

    Equation: L = mean[-A log π(a|s) - 0.005 H(π(.|s))], A = r + γ ⊥V(s') - ⊥V(s), V the true value under the discount
    g = `value_discount`: V(c, t) = g^(K-t-1) R before the reward, 0 after it, V(start) = Σₐ π(a) g^K R (release) or
    g^(K-1) R (exact). The mean is over 128 x 100 steps. γ acts through the factor alone; V is constant.

    Args:
        table: from `tables`.
        objective: normalisation, and which value the start has.
        theta: θ.
        discount: γ, [N].
        value_discount: g, [N]; no derivative with respect to it.
        counts: the batch; at all later rows where advantages are normalised.

    Source: debiasing paper C.1; its release (what is constant, the entropy over all steps, the value of the start).
    """
    log_probs = torch.log_softmax(logits(table, theta), dim=1)
    value_discount = autodiff.stop_gradient(value_discount)
    powers = value_discount[:, None] ** torch.arange(HORIZON + 1, dtype=theta.dtype)
    values = table.payment * powers.index_select(1, table.exponent).unflatten(1, (2, -1)).transpose(0, 1)
    start_policy = autodiff.stop_gradient(log_probs[:, :, 0]).exp()
    start_powers = powers.index_select(1, table.paying_step - int(objective.is_first_value_exact))
    values[0, :, :A] = (start_policy * table.chain_reward * start_powers).sum(-1, keepdim=True)
    advantage = table.reward + discount[:, None] * values[1] - values[0]

    visits = counts.first.index_select(1, table.chain)
    if objective.is_normalised:
        assert counts.later.shape[-1] == advantage.shape[1] - A, "all rows count where advantages are normalised"
        advantage = _normalised(advantage, visits)
    with torch.no_grad():
        sums = visits * advantage
        metrics = ChainMetrics(sums[:, :A].sum(-1) / BATCH_SIZE, sums.sum(-1) / STEPS)
    rows = counts.later.shape[-1]
    taken = [counts.first * log_probs[:, :, 0], (counts.later * log_probs[:, :, 1 : 1 + rows]).sum(1)]
    policy = (torch.cat(taken, dim=1) * advantage[:, : A + rows]).sum()
    entropy = -(log_probs.exp() * log_probs).sum(1)
    entropy_sum = BATCH_SIZE * entropy[:, 0].sum() + (visits[:, A:] * entropy[:, 1:]).sum()
    return -(policy + ENTROPY_COEFFICIENT * entropy_sum) / STEPS, metrics


def _normalised(advantage: Float[Tensor, "N D"], visits: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Return (A - ⊥mean) ⊥rsqrt(variance + 1e-5) over the steps of each seed's batch."""
    value = autodiff.stop_gradient(advantage)
    mean = (visits * value).sum(-1, keepdim=True) / STEPS
    variance = (visits * (value - mean).square()).sum(-1, keepdim=True) / STEPS
    return (advantage - mean) * (variance + NORMALISER_EPS).rsqrt()


def mean_return(table: Tables, counts: Counts) -> Float[Tensor, "N"]:
    """Return the episodes' mean return: every chain is at most as long as an episode, so each pays."""
    return counts.first @ table.chain_reward / BATCH_SIZE
