"""Bootstrapped meta-gradients: the outer term is a distance between the looked-ahead parameters and a better target.

The target θ̃ continues from θₙ for L further updates, the last of them on the outer loss, and is constant from there on:

    θₙ = θ̃₀ → … → θ̃_L = θ̃ ,    (θ̃ⱼ₊₁, s̃ⱼ₊₁) = A(θ̃ⱼ, s̃ⱼ, ∇θ L(θ̃ⱼ, η; τ̃ⱼ), η) for j < L-1, with s̃₀ = sₙ
                                 (θ̃, s'') = A'(θ̃_L-1, s', ∇θ L'(θ̃_L-1; τ̃_L-1), η)
    J = m(⊥θ̃, θₙ; τ')

The first L-1 updates continue with the look-ahead's optimizer. The last one has an optimizer A' whose state s' persists
from one target to the next; or it continues as well, with A' = A and s' = s̃_L-1.

So the meta-gradient is the ordinary one with θ ↦ m(⊥θ̃, θ; τ') in the place of the outer loss: a closure over θ̃ (or over
a batch that holds it) is the `OuterLoss` that `outer_gradient` takes, and the adjoint pass is the same. θ̃ is never kept
as the learner's parameters.

Source: Flennerhag et al. (2021), "Bootstrapped Meta-Learning", §3; "Debiasing Meta-Gradient RL by Learning the Outer
Value Function", §2 and Figure 1b, and its released code, whose optimizers these are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff
from metagrad.distributions import Categorical
from metagrad.errors import require, require_one_of
from metagrad.losses import masked_mean, without_unused_rows
from metagrad.meta_gradient import OuterLoss
from metagrad.networks import Head, Network
from metagrad.optimizers import Optimizer, OptimizerState
from metagrad.recurrence import Memory, memory_of
from metagrad.types import Trajectory
from metagrad.unroll import InnerProblem, Loss, inner_update

Direction = Literal["target||online", "online||target"]
"""Which KL is the policy's distance: KL(π_θ̃ || π_θ), the papers', or KL(π_θ || π_θ̃)."""

States = Literal["all", "first"]
"""Where the distance is taken: at all T acted-on states, or at the first of each rollout, which is the start of an
episode where rollouts are whole episodes."""

TargetSampler = Callable[[Float[Tensor, "P"], int], Any]
"""(θ̃ⱼ, j) to the batch of update j = 0…L-1 of the target, fresh at each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matching:
    """Measures how far θ is from the target: a KL of the policies, and the critics' distance unless its weight is 0."""

    direction: Direction = "target||online"
    """Direction of the KL divergence between the policies; the papers use target||online."""
    value_coefficient: float = 0.0
    """Weight of the squared distance between the inner critics; the debiasing paper's release uses 0."""
    states: States = "all"
    """States on which to match: all of a rollout, or only its first. The debiasing paper's release uses all on Snake
    and the first, where an episode starts, on the Discounting Chain."""

    field: ClassVar[str] = "matching"
    """The name under which it is configured."""

    def __post_init__(self) -> None:
        require_one_of(self.direction, Direction, f"{self.field}.direction")
        require_one_of(self.states, States, f"{self.field}.states")
        rule, remedy = "must be finite and 0 or more: it weighs a distance", "use 0 for none"
        is_weight = 0.0 <= self.value_coefficient < math.inf
        require(is_weight, f"{self.field}.value_coefficient", self.value_coefficient, rule, remedy)


class LastUpdate(NamedTuple):
    """Makes the target's last update: an optimizer with a state of its own."""

    optimizer: Optimizer
    state: OptimizerState


class BootstrapTarget(NamedTuple):
    """Holds θ̃ without a graph, the state of the last update's optimizer, and the outer loss that it descended."""

    theta: Float[Tensor, "P"]
    state: OptimizerState
    outer_loss: Float[Tensor, ""]
    metrics: Any  # the outer loss's own


class MatchingMetrics(NamedTuple):
    """Holds the two distances for the logs, before the coefficient."""

    kl_divergence: Float[Tensor, ""]  # nats
    value_distance: Float[Tensor, ""]  # squared returns; 0 where values are not matched


def bootstrap_target(  # noqa: PLR0913 (an inner update's arguments and what makes a target of it)
    problem: InnerProblem,
    outer_loss: OuterLoss,
    theta: Float[Tensor, "P"],
    state: OptimizerState,
    eta: Float[Tensor, "M"],
    updates: int,
    sampler: TargetSampler,
    last: LastUpdate | None = None,
) -> BootstrapTarget:
    """Make L further updates from θₙ: the first L-1 on the inner loss, the last on the outer loss.

    Nothing here carries a derivative: neither θₙ, nor η, which the first L-1 losses and a learnt learning rate read.

    Args:
        problem: inner loss and optimizer of the first L-1 updates, those of the look-ahead. `problem.derivative` is not
            looked at.
        outer_loss: of the last update.
        theta: θₙ, unchanged.
        state: of the look-ahead's optimizer at θₙ.
        eta: η.
        updates: L ≥ 1.
        sampler: fresh data for each update.
        last: optimizer of the last update, with a state that persists: give back the target's for the next one (the
            debiasing paper's release on Snake, an RMSProp). None: the last update continues like those before it.

    Raises:
        ConfigurationError: L < 1.

    Source: debiasing paper §2, Figure 1b: "with respect to the inner loss for all but the last step".
    """
    require(updates >= 1, "bootstrap.updates", updates, "a target is at least one update away", "choose 1 or more")
    inner = InnerProblem(problem.loss, problem.optimizer, shares=problem.shares)
    for j in range(updates - 1):
        update = inner_update(inner, theta, state, eta, sampler(theta, j), keep_graph=False)
        theta, state = update.theta, update.state
    optimizer, state = last or LastUpdate(problem.optimizer, state)
    outer = InnerProblem(_without_eta(outer_loss), optimizer, shares=problem.shares)
    update = inner_update(outer, theta, state, eta, sampler(theta, updates - 1), keep_graph=False)
    return BootstrapTarget(update.theta, update.state, update.loss, update.metrics)


def _without_eta(outer_loss: OuterLoss) -> Loss:
    return lambda theta, _eta, batch: outer_loss(theta, batch)


def kl_divergence(logits_p: Float[Tensor, "*rows A"], logits_q: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows"]:
    """Return KL(p || q) = Σₐ p(a) (log p(a) - log q(a)) of two categorical distributions, in nats.

    It is differentiable in both.

    An action of p(a) = 0 (a logit of -∞, or one that underflows) adds 0 and has derivative 0, whatever q(a) is.

    >>> kl_divergence(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    return Categorical(logits_p).kl_divergence(Categorical(logits_q))


def matching_loss(
    network: Network,
    theta: Float[Tensor, "P"],
    target: Float[Tensor, "P"],
    trajectory: Trajectory,
    matching: Matching,
) -> tuple[Float[Tensor, ""], MatchingMetrics]:
    """Return the distance of θ from the target on the trajectory's observations.

    Its gradient at θₙ starts the adjoint pass.

    Equation: m(⊥θ̃, θ) = mean[KL(π_⊥θ̃ || π_θ)] + c mean[(V_⊥θ̃ - V_θ)²], or KL(π_θ || π_⊥θ̃); V the inner critic.

    θ carries the derivative, θ̃ none. Means are over valid steps of the T acted-on observations, or of the first ones
    (`states="first"`), and only these are looked at: actions and rewards are not used. To match on other rows alone,
    give `trajectory._replace(valid=rows)` with rows [T, B].

    Source: debiasing paper §2 (matching loss) and its release: KL(π_θ̃ || π_θ), over the whole third batch on Snake,
    over initial states alone on the Discounting Chain; value matching 0 in both.
    """
    rule, remedy = f"has the shape of θ, {tuple(theta.shape)}", "give parameters of the same network"
    require(target.shape == theta.shape, "target.shape", tuple(target.shape), rule, remedy)
    target = autodiff.stop_gradient(target)
    matches_values = matching.value_coefficient != 0.0
    heads: tuple[Head, ...] = ("logits", "value") if matches_values else ("logits",)
    valid = trajectory.valid if matching.states == "all" else trajectory.valid[:1]
    whole = memory_of(trajectory)
    memory: tuple[Memory, ...] = ()
    if whole is not None:
        memory, trajectory = (whole.until(len(valid)),), without_unused_rows(trajectory)
    observation = trajectory.observation[: len(valid)]
    if observation.is_floating_point() and whole is None:  # a NaN in a row left out would enter as 0 · NaN
        observation = torch.where(valid.view(*valid.shape, *(1,) * (observation.ndim - 2)), observation, 0.0)
    observation = observation.flatten(0, 1)
    online = network.apply(theta, observation, heads, *memory)
    aim = network.apply(target, observation, heads, *memory)

    for outputs in (online, aim):
        outputs["logits"] = torch.where(valid.flatten().unsqueeze(-1), outputs["logits"], 0.0)

    def mean(x: Tensor) -> Tensor:
        return masked_mean(x.unflatten(0, valid.shape), valid)

    match matching.direction:
        case "target||online":
            kl = mean(aim.policy.kl_divergence(online.policy))
        case "online||target":
            kl = mean(online.policy.kl_divergence(aim.policy))
        case _:
            assert_never(matching.direction)
    if not matches_values:
        return kl, MatchingMetrics(kl.detach(), kl.new_zeros(()))
    distance = mean((aim["value"] - online["value"]).square())
    return kl + matching.value_coefficient * distance, MatchingMetrics(kl.detach(), distance.detach())
