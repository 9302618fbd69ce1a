"""Runs many agents that learn by one rule η, and differentiates what becomes of each of them through its updates.

N agents that share nothing but η are one batch: everything has a leading axis N, and `torch.func.vmap` is inside each
step. Agent n's carry c = (θ, moments, θ⁻, rule's state) goes through K updates on rollouts of its own,

    targets, state' ← rule(η, state, rollout, outputs of θ and θ⁻)
    g               ← ∇_φ loss(targets, outputs of φ) at φ = θ, targets constant
    θ', moments'    ← optimizer(g, moments, θ);  θ⁻' ← c θ⁻ + (1 - c) θ

and is scored by a further rollout of θ_K, with advantages A (GAE) under a value function of its own that nothing
differentiates through: J = -mean log π(a|s) A + Σ coefficient · mean over the K updates of the rule's regularisers.
`lifetime_gradient` returns ∂J_n/∂η of each agent. Targets are constant in g alone: the meta-gradient follows them to η,
to the state and to the outputs of θ that the rule does not detach, and follows g to θ.

A step is differentiated by itself, given the derivative of J in the carry that it leaves. `retain` keeps each update's
graph until then; `recompute` keeps the carry alone and makes the update again, to the same bits: memory that hardly
grows with K, for one forward pass more.

Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms" (LPG); outer objective and value function as
in Jackson et al. (2023), "Discovering General RL Algorithms with Adversarial Environment Design" (GROOVE).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.func import vmap

from metagrad import autodiff, trees
from metagrad.distributions import log_probabilities
from metagrad.errors import require
from metagrad.losses import masked_mean, normalised
from metagrad.optimizers import Optimizer, OptimizerState
from metagrad.returns import lambda_returns
from metagrad.unroll import Product, require_product
from metagrad.update_rules import AgentNetwork, LifetimeRollout, RuleState, UpdateRule, of_actions

Tree = TypeVar("Tree")


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """Says how an agent learns and how it is scored; one for all agents of a batch."""

    rule: UpdateRule
    network: AgentNetwork
    """Has the heads that the rule asks for."""
    optimizer: Optimizer
    """Moves θ; it is run under `vmap`, where its count of updates is a tensor."""
    value_network: AgentNetwork
    """Has the head "value", the agent's own value function of the outer objective."""
    value_optimizer: Optimizer
    gamma: float = 0.99
    """Discount of the outer objective."""
    lambda_: float = 0.95
    """λ of its advantages (GAE)."""

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("lambda", self.lambda_)):
            require(0 <= value <= 1, name, value, "must lie in [0, 1]", "choose a value inside")


class Agents(NamedTuple):
    """Holds N agents; every tensor has a leading axis N."""

    theta: Float[Tensor, "N P"]
    moments: tuple[Float[Tensor, "N _"], ...]
    target_theta: Float[Tensor, "N _"]  # θ⁻; without columns where the rule has no target network
    rule_state: tuple[Shaped[Tensor, "N ..."], ...]
    updates: Int[Tensor, "N"]  # done in each agent's lifetime
    value_theta: Float[Tensor, "N Q"]
    value_moments: tuple[Float[Tensor, "N _"], ...]
    value_updates: Int[Tensor, "N"]


class _Carry(NamedTuple):
    """Holds what is differentiated from one update to the next."""

    theta: Tensor
    moments: tuple[Tensor, ...]
    target_theta: Tensor
    rule_state: tuple[Tensor, ...]


class _Left(NamedTuple):
    """Holds what an update leaves: the next carry, and [N] of each regulariser and of the inner loss."""

    carry: _Carry
    regularisers: Mapping[str, Tensor]
    loss: Tensor


class LifetimeStep(NamedTuple):
    """Keeps what the adjoint pass needs of one update of all agents; none of it may be written to until then."""

    start: _Carry  # leaves of the graph under `retain`, else plain values
    eta: Tensor  # [N, M]
    updates: Tensor
    rollout: LifetimeRollout
    seen: trees.Fingerprint | None
    left: _Left | None  # with its graph; None: to be computed again


class LifetimeUpdate(NamedTuple):
    """Holds agents after one update, and the step for a later meta-gradient, None where there is to be none."""

    agents: Agents
    step: LifetimeStep | None
    loss: Float[Tensor, "N"]
    regularisers: Mapping[str, Float[Tensor, "N"]]


class LifetimeGradient(NamedTuple):
    """Holds the meta-gradient of each agent, agents whose value function has learnt, and parts of J."""

    eta: Float[Tensor, "N M"]
    agents: Agents
    outer_loss: Float[Tensor, "N"]  # -mean log π A
    regularisers: Mapping[str, Float[Tensor, "N"]]  # means over the K updates, unweighted


def fresh_agents(learning: Learning, generators: Sequence[torch.Generator]) -> Agents:
    """Return one new agent for each generator."""
    rule, remedy = "there is at least one agent", "give a generator for each"
    require(len(generators) > 0, "generators", len(generators), rule, remedy)
    copies = len(generators)
    theta = torch.stack([learning.network.init(generator) for generator in generators])
    value_theta = torch.stack([learning.value_network.init(generator) for generator in generators])
    has_target = learning.rule.target_network_decay is not None
    return Agents(
        theta=theta,
        moments=_copies(learning.optimizer.init(theta[0]).moments, copies),
        target_theta=theta.clone() if has_target else theta.new_zeros(copies, 0),
        rule_state=_copies(learning.rule.initial_state(), copies),
        updates=torch.zeros(copies, dtype=torch.int64),
        value_theta=value_theta,
        value_moments=_copies(learning.value_optimizer.init(value_theta[0]).moments, copies),
        value_updates=torch.zeros(copies, dtype=torch.int64),
    )


def _copies(tree: Tree, copies: int) -> Tree:
    many: Tree = trees.map_tensors(lambda x: x.detach().expand(copies, *x.shape).clone(), tree)
    return many


def replaced(agents: Tree, indices: Sequence[int], fresh: Tree) -> Tree:
    """Return the agents, or what is kept of them, with `fresh` ones in these places, in order; the others stay."""
    at, new = torch.tensor(list(indices), dtype=torch.int64), iter(trees.tensors(fresh))
    mapped: Tree = trees.map_tensors(lambda x: x.index_copy(0, at.to(x.device), next(new)), agents)
    return mapped


def taken(tree: Tree, rows: slice) -> Tree:
    """Return the agents of these rows: of a tree of tensors with a leading axis N, the same tree of views."""
    mapped: Tree = trees.map_tensors(lambda x: x[rows], tree)
    return mapped


def per_agent(x: Shaped[Tensor, "T NB ..."], copies: int) -> Shaped[Tensor, "N T B ..."]:
    """Return what N agents have of columns that lie one agent after another: column n·B + b is environment b of n."""
    return x.unflatten(1, (copies, x.shape[1] // copies)).movedim(1, 0)


def agent_outputs(network: AgentNetwork, theta: Float[Tensor, "P"], observation: Shaped[Tensor, "rows B ..."]) -> Any:
    """Return every head on all T + 1 rows, [T+1, B, …].

    The last row, which only bootstraps, is evaluated by itself: the gradient of a loss that does not look at it is then
    to the bit that of the T steps alone.
    """
    steps, batch = observation.shape[0] - 1, observation.shape[1]
    acted_on = network.apply(theta, observation[:-1].flatten(0, 1))
    last = network.apply(theta, observation[-1])
    return {head: torch.cat([acted_on[head].unflatten(0, (steps, batch)), last[head].unsqueeze(0)]) for head in last}


def agent_logits(
    learning: Learning, theta: Float[Tensor, "N P"], observation: Shaped[Tensor, "N B ..."]
) -> Float[Tensor, "N B A"]:
    """Return the policies of N agents, to act by."""
    with torch.no_grad():
        logits: Tensor = vmap(lambda theta, x: learning.network.apply(theta, x)["logits"])(theta, observation)
    return logits


def lifetime_update(
    learning: Learning,
    eta: Float[Tensor, "M"],
    agents: Agents,
    rollout: LifetimeRollout,
    product: Product | None = "recompute",
) -> LifetimeUpdate:
    """Make one update of N agents on rollouts of their own, each tensor with a leading axis N.

    Args:
        learning: rule, network and optimizers.
        eta: the rule's weights.
        agents: as they are.
        rollout: by the policies of `agents`.
        product: how the meta-gradient is to be taken. None: nobody differentiates this update, and the value function,
            which is there to score, does not learn.
    """
    if product is not None:
        require_product(product)
    keeps_graph = product == "retain"
    wide = eta.expand(len(agents.theta), -1)
    start = _Carry(agents.theta, agents.moments, agents.target_theta, agents.rule_state)
    wide, start = (_leaves if keeps_graph else _values)((wide, start))
    left = _updated(learning, wide, start, agents.updates, rollout, keeps_graph)
    carry, regularisers, loss = _values(left)
    new = agents._replace(**carry._asdict(), updates=agents.updates + 1)
    if product is None:
        return LifetimeUpdate(new, None, loss, regularisers)
    kept, seen = (left, None) if keeps_graph else (None, trees.Fingerprint(rollout))
    step = LifetimeStep(start, wide, agents.updates, rollout, seen, kept)
    return LifetimeUpdate(_value_learnt(learning, new, rollout), step, loss, regularisers)


def _updated(
    learning: Learning, eta: Tensor, start: _Carry, updates: Tensor, rollout: LifetimeRollout, keeps_graph: bool
) -> _Left:
    """Return what an update leaves, with its graph where it is to be kept."""
    rule, network = learning.rule, learning.network
    decay = rule.target_network_decay

    def aims(eta: Tensor, theta: Tensor, target: Tensor, state: RuleState, rollout: LifetimeRollout) -> Any:
        outputs = agent_outputs(network, theta, rollout.observation)
        target_outputs = None if decay is None else agent_outputs(network, target, rollout.observation)
        targets, new_state = rule.targets(eta, state, rollout, outputs, target_outputs)
        return targets, new_state, rule.regularisers(targets, outputs, rollout)

    def loss_of(theta: Tensor, targets: Any, rollout: LifetimeRollout) -> Tensor:
        return rule.loss(targets, agent_outputs(network, theta, rollout.observation), rollout)

    theta = start.theta
    with torch.set_grad_enabled(keeps_graph):
        targets, state, regularisers = vmap(aims)(eta, theta, start.target_theta, start.rule_state, rollout)
    with torch.enable_grad():
        own = theta.clone() if keeps_graph else theta.detach().requires_grad_()
        loss = vmap(loss_of)(own, targets, rollout)
        (gradient,) = torch.autograd.grad(loss.sum(), own, create_graph=keeps_graph)
    with torch.set_grad_enabled(keeps_graph):
        new, moments = _moved(learning.optimizer, gradient, start.moments, theta, updates)
        target = start.target_theta if decay is None else decay * start.target_theta + (1.0 - decay) * theta
    return _Left(_Carry(new, moments, target, state), regularisers, loss)


def lifetime_gradient(
    learning: Learning,
    steps: Sequence[LifetimeStep],
    agents: Agents,
    rollout: LifetimeRollout,
) -> LifetimeGradient:
    """Return ∂J/∂η of each agent; graphs of `retain` are freed on the way.

    Args:
        learning: as in the updates.
        steps: those of the K ≥ 1 updates, in order.
        agents: after them.
        rollout: by the policies of `agents`; no update of θ is made with it.

    Raises:
        ConfigurationError: no steps, or a rollout that was written to since its update.
    """
    require(len(steps) >= 1, "steps", len(steps), "there is at least one update", "make one with a product")
    outer_loss, in_theta = _outer_gradient(learning, agents, rollout)
    constants = (agents.moments, agents.target_theta, agents.rule_state)
    adjoints = [in_theta, *(torch.zeros_like(x) for x in trees.tensors(constants))]
    gradient, means = torch.zeros_like(steps[0].eta), dict.fromkeys(learning.rule.coefficients, outer_loss * 0.0)
    for i in reversed(range(len(steps))):
        start, eta, left = _graph(learning, steps[i], i)
        outputs = [*trees.tensors(left.carry), *left.regularisers.values()]
        for name, x in left.regularisers.items():
            adjoints.append(torch.full_like(x, learning.rule.coefficients[name] / len(steps)))
            means[name] = means[name] + x.detach() / len(steps)
        differentiable = [(x, adjoint) for x, adjoint in zip(outputs, adjoints, strict=True) if x.requires_grad]
        ends, adjoints = [x for x, _ in differentiable], [adjoint for _, adjoint in differentiable]
        leaves = [eta, *trees.tensors(start)]
        own, *adjoints = torch.autograd.grad(ends, leaves, adjoints, allow_unused=True, materialize_grads=True)
        gradient = gradient + own
        del start, eta, left, outputs, differentiable, ends, leaves  # the graph goes before the next one is made
    return LifetimeGradient(gradient, _value_learnt(learning, agents, rollout), outer_loss, means)


def _graph(learning: Learning, step: LifetimeStep, i: int) -> tuple[_Carry, Tensor, _Left]:
    """Return the leaves of a step's graph and what it left, from the update itself or made again."""
    if step.left is not None:
        return step.start, step.eta, step.left
    rule = "has been written to since the update, which the meta-gradient goes through again"
    remedy = "give each update a rollout of its own, .clone() of a buffer"
    require(step.seen is not None and step.seen.is_kept(), "steps", f"rollout of update {i}", rule, remedy)
    start: _Carry = _leaves(step.start)
    eta: Tensor = _leaves(step.eta)
    return start, eta, _updated(learning, eta, start, step.updates, step.rollout, keeps_graph=True)


def reference_lifetime_gradient(
    learning: Learning,
    eta: Float[Tensor, "M"],
    agents: Agents,
    rollouts: Sequence[LifetimeRollout],
    outer_rollout: LifetimeRollout,
) -> Float[Tensor, "N M"]:
    """Compute the same derivative by one reverse pass through all updates, for tests and benchmarks.

    The value function learns on the rollouts before the outer one, as there.
    """
    wide: Tensor = _leaves(eta.expand(len(agents.theta), -1))
    carry = _leaves(_Carry(agents.theta, agents.moments, agents.target_theta, agents.rule_state))
    objective = torch.zeros_like(agents.theta[:, 0])
    for i, rollout in enumerate(rollouts):
        left = _updated(learning, wide, carry, agents.updates + i, rollout, keeps_graph=True)
        carry = left.carry
        for name, x in left.regularisers.items():
            objective = objective + learning.rule.coefficients[name] / len(rollouts) * x
        agents = _value_learnt(learning, agents, rollout)
    objective = objective + vmap(partial(_outer_loss, learning))(carry.theta, agents.value_theta, outer_rollout)
    (gradient,) = torch.autograd.grad(objective.sum(), wide)
    return gradient


def _leaves(tree: Tree) -> Tree:
    leaves: Tree = trees.map_tensors(lambda x: x.detach().requires_grad_(), tree)
    return leaves


def _values(tree: Tree) -> Tree:
    values: Tree = trees.map_tensors(lambda x: x.detach(), tree)
    return values


def _outer_gradient(learning: Learning, agents: Agents, rollout: LifetimeRollout) -> tuple[Tensor, Tensor]:
    """Return the outer loss [N] and its gradient in θ [N, P]."""
    theta = agents.theta.detach().requires_grad_()
    with torch.enable_grad():
        loss = vmap(partial(_outer_loss, learning))(theta, agents.value_theta, rollout)
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
    return loss.detach(), gradient


def _outer_loss(
    learning: Learning, theta: Float[Tensor, "P"], value_theta: Float[Tensor, "Q"], rollout: LifetimeRollout
) -> Float[Tensor, ""]:
    """Return -mean log π(a|s) A of one agent, A normalised over its batch."""
    target, value = _value_targets(learning, value_theta, rollout)
    advantage = normalised(autodiff.stop_gradient(target - value), rollout.valid)
    logits = agent_outputs(learning.network, theta, rollout.observation)["logits"][:-1]
    log_prob = of_actions(log_probabilities(logits), rollout.action[:-1])
    return -masked_mean(advantage * log_prob, rollout.valid)


def _value_targets(learning: Learning, value_theta: Tensor, rollout: LifetimeRollout) -> tuple[Tensor, Tensor]:
    """Return λ-returns, constants, and the values of the T steps."""
    value = agent_outputs(learning.value_network, value_theta, rollout.observation)["value"]
    never = torch.zeros_like(rollout.is_terminal)
    reward, constant = rollout.reward.to(value.dtype), autodiff.stop_gradient(value)
    target = lambda_returns(reward, constant, rollout.is_terminal, never, learning.gamma, learning.lambda_)
    return target, value[:-1]


def _value_learnt(learning: Learning, agents: Agents, rollout: LifetimeRollout) -> Agents:
    """Return the agents after one update of their value functions, by mean (G - V)²."""

    def loss_of(theta: Tensor, rollout: LifetimeRollout) -> Tensor:
        target, value = _value_targets(learning, theta, rollout)
        return masked_mean((target - value).square(), rollout.valid)

    theta = agents.value_theta.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(vmap(loss_of)(theta, rollout).sum(), theta)
    new, moments = _moved(
        learning.value_optimizer, gradient, agents.value_moments, theta.detach(), agents.value_updates
    )
    return agents._replace(value_theta=new, value_moments=moments, value_updates=agents.value_updates + 1)


def _moved(
    optimizer: Optimizer, gradient: Tensor, moments: tuple[Tensor, ...], theta: Tensor, updates: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return each agent's (θ', moments') = A(θ, moments, g), by its own count of updates."""

    def one(gradient: Tensor, moments: tuple[Tensor, ...], theta: Tensor, updates: Tensor) -> Any:
        new, after = optimizer.update(gradient, OptimizerState(updates, moments), theta, theta.new_zeros(0))
        return new, after.moments

    new, after = vmap(one)(gradient, moments, theta, updates)
    return new, after
