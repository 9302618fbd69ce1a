"""Builds the losses of actor-critic meta-gradients, over one trajectory, and says what the outer objective is.

As in the released codes, value estimates enter targets and advantages as constants, while γ and λ act through the
returns, in the advantage and in the critic's target alike. The kinds of inner losses are in `metagrad.actor_critic`.

What a row with `valid = False` holds enters no loss and no derivative, NaN or not: 0 · NaN is NaN, so such rows are
chosen out before anything is multiplied. The same goes for actions of probability 0 (a logit of -∞).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagrad import autodiff
from metagrad.distributions import Outputs, policy_of
from metagrad.errors import require, require_one_of
from metagrad.meta_parameters import Hyperparameters
from metagrad.networks import Head, Network
from metagrad.recurrence import Memory, is_before_choice, is_zero, memory_of
from metagrad.returns import lambda_returns
from metagrad.shares import present
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory

Critic = Literal["outer", "inner"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterObjective:
    """Says what the meta-parameters are tuned for: an outer loss under γ' and λ', and the critic behind it.

    The outer loss is a policy gradient, plus value, entropy and KL terms if their coefficients are not 0, as in
    Zahavy et al. (2020), "A Self-Tuning Actor-Critic Algorithm" (STACX). Another one is a subclass with a `loss` of
    its own.
    """

    gamma: float
    """Discount γ' of the outer loss."""
    lambda_: float
    """λ' of the outer loss."""
    critic: Critic
    """The critic of the outer advantage: a head trained for γ' (debiased), or the inner critic (biased baseline)."""
    critic_coefficient: float = 0.5
    """Weight of the outer critic's regression inside the inner update."""
    is_advantage_normalised: bool = False
    """True: outer advantages have mean 0 and variance 1 over the batch (debiasing paper, Appendix D)."""
    value_coefficient: float = 0.0
    """Weight of the inner critic's squared distance from the outer target in the outer loss."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus in the outer loss."""
    kl_coefficient: float = 0.0
    """Weight of KL(π_θ || π_θ₀) in the outer loss: how far the look-ahead has moved the policy. The learner adds this
    term, because only it knows θ₀."""

    def __post_init__(self) -> None:
        require_one_of(self.critic, Critic, "outer.critic")
        for name, value in (("gamma", self.gamma), ("lambda", self.lambda_)):
            require(0 <= value <= 1, f"outer.{name}", value, "must lie in [0, 1]", "choose a value inside")
        for name in ("critic_coefficient", "value_coefficient", "entropy_coefficient", "kl_coefficient"):
            weight = getattr(self, name)
            require(0 <= weight < math.inf, f"outer.{name}", weight, "must be finite and 0 or more", "change it")

    @property
    def uses_outer_critic(self) -> bool:
        """True: the outer advantage is over a critic of its own, which the inner update trains."""
        return self.critic == "outer"

    @property
    def critic_head(self) -> Head:
        """Return the head whose values the outer advantage is over."""
        return "outer_value" if self.uses_outer_critic else "value"

    @property
    def heads(self) -> tuple[Head, ...]:
        """Return the heads that the outer loss needs."""
        is_regressed = self.uses_outer_critic and self.value_coefficient > 0
        return ("logits", self.critic_head) + (("value",) if is_regressed else ())

    @property
    def reaches_critics(self) -> bool:
        """True where the outer loss has a derivative in the critics' own parameters, or may have one."""
        return self.value_coefficient > 0 or type(self).loss is not OuterObjective.loss

    def loss(
        self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, estimates: "Estimates"
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the outer loss at the parameters that `outputs` come from, and the mean outer advantage.

        Equation: L' = mean[-⊥A' log π + c'_v (⊥G' - V)² - c'_e H(π)] over valid steps; V is the inner critic, also
        where G' and A' are the outer critic's; A' is `normalised` where the objective says so.

        Source: "One Step at a Time" eq. 4; debiasing paper eq. 3; the value and entropy terms: STACX, whose value loss
        has a factor ½ that is part of c'_v here.
        """
        valid, advantage = trajectory.valid, estimates.advantage
        weight = normalised(advantage, valid) if self.is_advantage_normalised else advantage
        policy = policy_of(outputs)
        objective = weight * torch.where(valid, policy.log_prob(trajectory.action), 0.0)
        if self.entropy_coefficient:
            objective = objective + self.entropy_coefficient * policy.entropy()
        loss = -masked_mean(objective, valid)
        if self.value_coefficient:
            error = torch.where(valid, estimates.target - outputs["value"][:-1], 0.0)
            loss = loss + self.value_coefficient * masked_mean(error.square(), valid)
        return loss, masked_mean(advantage, valid)


class LossMetrics(NamedTuple):
    """Holds the scalars of one inner loss, for the logs."""

    policy_loss: Tensor
    value_loss: Tensor
    outer_value_loss: Tensor
    entropy: Tensor
    advantage: Tensor
    log_prob_gap: Tensor
    effective_sample_size: Tensor | None = None  # share of the valid steps; None: the loss takes no older rollouts


class Estimates(NamedTuple):
    """Holds what a rollout says about its steps under one critic."""

    target: Float[Tensor, "T B"]  # where the critic should be
    advantage: Float[Tensor, "T B"]  # of the actions taken


class Terms(NamedTuple):
    """Holds the numbers that one actor-critic loss differs in from another; constants in θ, functions of η."""

    target: Float[Tensor, "T B"] | None  # of the inner critic; None: no critic learns
    advantage: Float[Tensor, "T B"]  # for the logs
    weight: Float[Tensor, "T B"]  # of the policy term, mostly the advantage
    outer_target: Float[Tensor, "T B"] | None = None  # of the outer critic; None: there is none
    effective_sample_size: Float[Tensor, ""] | None = None  # for the logs (`LossMetrics`)


def masked_mean(x: Float[Tensor, "T B"], valid: Bool[Tensor, "T B"]) -> Float[Tensor, ""]:
    """Return the mean over valid steps, whatever the others hold; 0 where none is valid.

    Of a batch whose columns several processes share (`metagrad.shares`) it is this process's part of that mean.
    """
    rule, remedy = f"is averaged over `valid` of shape {tuple(valid.shape)}", "give one number for each step"
    require(x.shape == valid.shape, "x.shape", tuple(x.shape), rule, remedy)
    return torch.where(valid, x, 0.0).sum() / present().count(valid, x.dtype).clamp(min=1.0)


def whole_mean(x: Float[Tensor, "T B"], valid: Bool[Tensor, "T B"]) -> Float[Tensor, ""]:
    """Return the mean over valid steps of the whole batch, also where this process holds a share of it alone."""
    return present().sum(masked_mean(x, valid))


def without_unused_rows(trajectory: Trajectory) -> Trajectory:
    """Return the trajectory with zeros where no loss should look.

    A row that the policy did not choose has no action and no behaviour policy. If it begins an episode (the reset after
    an end, or the first of the rollout), no return before it has its reward; and if the step before was terminal, none
    has the value of what was seen there. In the middle of an episode (a forced FIRE) reward and value count.
    """
    valid, is_last = trajectory.valid, trajectory.is_terminal | trajectory.is_truncated
    state = trajectory.first_state  # of a network that has seen the first row, where it has begun to remember
    begins = torch.ones_like(valid[0]) if state is None else is_zero(state)
    is_unused = is_before_choice(valid, is_last, begins)
    observation = trajectory.observation
    if observation.is_floating_point():
        starts = torch.cat([torch.ones_like(valid[:1]), trajectory.is_terminal])
        # Rows behind an unused one are reached through it alone: seen by nobody until a step is chosen.
        behind = torch.cat([torch.zeros_like(valid[:1]), is_unused])
        unseen = torch.cat([is_unused, torch.ones_like(valid[:1])]) & (starts | behind)
        observation = torch.where(unseen.view(*unseen.shape, *(1,) * (observation.ndim - 2)), 0.0, observation)
    return trajectory._replace(
        observation=observation,
        action=torch.where(valid.view(*valid.shape, *(1,) * (trajectory.action.ndim - 2)), trajectory.action, 0),
        reward=torch.where(is_unused, 0.0, trajectory.reward),
        behaviour_log_prob=torch.where(valid, trajectory.behaviour_log_prob, 0.0),
    )


def normalised(advantage: Float[Tensor, "T B"], valid: Bool[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Return advantages with mean 0 and variance 1 over the valid steps; mean and scale carry no derivative.

    Equation: (A - ⊥mean A) / √(⊥var A + 1e-5).

    Source: debiasing paper, Appendix D, and its released code.
    """
    mean = whole_mean(autodiff.stop_gradient(advantage), valid)
    variance = whole_mean((autodiff.stop_gradient(advantage) - mean).square(), valid)
    return (advantage - mean) * torch.rsqrt(variance + 1e-5)


def forward(network: Network, theta: Float[Tensor, "P"], trajectory: Trajectory, heads: tuple[Head, ...]) -> Outputs:
    """Return heads on the T acted-on observations, [T, B, …], and values with the bootstrap row, [T+1, B].

    The bootstrap row is constant in every loss, so it is computed outside the graph, critics only.
    """
    observation = trajectory.observation
    steps, batch = trajectory.valid.shape
    critics: tuple[Head, ...] = tuple(head for head in heads if head != "logits")
    acted_on, memory = observation[:-1].flatten(0, 1), memory_of(trajectory)
    last: tuple[Memory, ...] = ()
    if memory is None:
        outputs = network.apply(theta, acted_on, heads)
    else:
        outputs = network.apply(theta, acted_on, (*heads, "state"), memory.until(steps))
        last = (memory.after(outputs.pop("state")),)
    shaped = Outputs({head: x.unflatten(0, (steps, batch)) for head, x in outputs.items()}, network.distribution)
    if "logits" in shaped:  # all -∞ where a mask leaves no action, as in the last state of an episode
        shaped["logits"] = torch.where(trajectory.valid.unsqueeze(-1), shaped["logits"], 0.0)
    bootstrap = network.apply(autodiff.stop_gradient(theta), observation[-1], critics, *last)
    for head in critics:
        shaped[head] = torch.cat([shaped[head], bootstrap[head].unsqueeze(0)])
    return shaped


def on_policy_estimates(
    reward: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    trajectory: Trajectory,
    gamma: Float[Tensor, "1"] | float,
    lambda_: Float[Tensor, "1"] | float,
) -> Estimates:
    """Return λ-returns G over ⊥V and the advantages G - ⊥V, differentiable in rewards, γ and λ.

    `reward` is the trajectory's own or one in its place; of the trajectory only the episodes' ends are looked at.
    """
    value = autodiff.stop_gradient(value)
    is_terminal, is_truncated = trajectory.is_terminal, trajectory.is_truncated
    target = lambda_returns(reward.to(value.dtype), value, is_terminal, is_truncated, gamma, lambda_)
    return Estimates(target, target - value[:-1])


def actor_critic_loss(
    outputs: Mapping[Head, Tensor],
    trajectory: Trajectory,
    hyper: Hyperparameters,
    surrogate: Surrogate,
    terms: Terms,
    outer_critic_coefficient: float,
) -> tuple[Float[Tensor, ""], LossMetrics]:
    """Return the loss that all actor-critics share: policy gradient, value regression, entropy bonus, outer critic.

    Equation: mean[-w s(log π) + c_v (G - V)² - c_e H(π) + c_o (G' - V')²] over valid steps.

    Args:
        outputs: "logits" [T, B, …] of the policy, and "value" and "outer_value" [T+1, B] for the critics that learn, as
            `forward` gives them.
        trajectory: T steps.
        hyper: c_v and c_e, "value_coefficient" and "entropy_coefficient".
        surrogate: s.
        terms: w, G, G', and the advantages that the metrics show.
        outer_critic_coefficient: c_o.

    Source: "One Step at a Time" eq. 3; c_v without the factor ½ and the outer critic's c_o = ½ from the released code
    of the debiasing paper (Appendix B, Table 1); surrogates s from the gradient-bias paper (§4.4, §5.3).
    """
    valid = trajectory.valid
    policy = policy_of(outputs)
    log_prob, entropy = policy.log_prob(trajectory.action), policy.entropy()
    # A step that the policy did not choose is no factor of a surrogate's product over the episode.
    chosen_log_prob = torch.where(valid, log_prob, 0.0)
    is_last = trajectory.is_terminal | trajectory.is_truncated
    loss = policy_loss = -masked_mean(
        torch.where(valid, terms.weight, 0.0) * surrogate(chosen_log_prob, is_last), valid
    )
    value_loss = outer_value_loss = loss.new_zeros(())
    if terms.target is not None:
        error = torch.where(valid, terms.target - outputs["value"][:-1], 0.0)
        value_loss = masked_mean(hyper["value_coefficient"] * error.square(), valid)
        loss = loss + value_loss
    loss = loss - masked_mean(hyper["entropy_coefficient"] * entropy, valid)
    if terms.outer_target is not None:
        outer_value_loss = masked_mean((terms.outer_target - outputs["outer_value"][:-1]).square(), valid)
        loss = loss + outer_critic_coefficient * outer_value_loss
    return loss, LossMetrics(
        policy_loss.detach(),
        value_loss.detach(),
        outer_value_loss.detach(),
        masked_mean(entropy.detach(), valid),
        masked_mean(terms.advantage.detach(), valid),
        masked_mean((log_prob.detach() - trajectory.behaviour_log_prob).abs(), valid),
        terms.effective_sample_size,
    )
