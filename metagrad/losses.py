"""Inner and outer losses of actor-critic meta-gradients, over one trajectory.

What carries a derivative, and what does not (SPECS of the released codes): value estimates enter targets and advantages
as constants; γ and λ act through the returns, in the advantage and in the critic's target alike.

What a row with `valid = False` holds enters no loss and no derivative, NaN or not: 0 · NaN is NaN, so such rows are
chosen out before anything is multiplied. The same goes for actions of probability 0 (a logit of -∞).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagrad import autodiff
from metagrad.errors import require
from metagrad.meta_parameters import Hyperparameters
from metagrad.networks import Head, Network
from metagrad.returns import lambda_returns
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory


class OuterObjective(NamedTuple):
    """What the meta-parameters are tuned for: discount γ' and λ', and who estimates the values under them."""

    gamma: float
    lambda_: float
    uses_outer_critic: bool  # False: the inner critic, whose discount is another one (the biased baseline)
    outer_critic_coefficient: float  # weight of the outer critic's own loss inside the inner update
    is_advantage_normalised: bool = False  # True: outer advantages are `normalised`


class LossMetrics(NamedTuple):
    """Scalars of one inner loss, for the logs."""

    policy_loss: Tensor
    value_loss: Tensor
    outer_value_loss: Tensor
    entropy: Tensor
    advantage: Tensor


class Estimates(NamedTuple):
    """What a rollout says of its steps under one critic."""

    target: Float[Tensor, "T B"]  # where the critic should be
    advantage: Float[Tensor, "T B"]  # of the actions taken


def masked_mean(x: Float[Tensor, "T B"], valid: Bool[Tensor, "T B"]) -> Float[Tensor, ""]:
    """Mean over valid steps, whatever the others hold; 0 where none is valid."""
    rule, remedy = f"is averaged over `valid` of shape {tuple(valid.shape)}", "give one number for each step"
    require(x.shape == valid.shape, "x.shape", tuple(x.shape), rule, remedy)
    return torch.where(valid, x, 0.0).sum() / valid.to(x.dtype).sum().clamp(min=1.0)


def without_unused_rows(trajectory: Trajectory) -> Trajectory:
    """The trajectory with zeros where no loss should look.

    A row that the policy did not choose has no action and no behaviour policy. If it begins an episode (the reset after
    an end, or the first of the rollout), no return before it has its reward; and if the step before was terminal, none
    has the value of what was seen there. In the middle of an episode (a forced FIRE) reward and value count.
    """
    valid, is_last = trajectory.valid, trajectory.is_terminal | trajectory.is_truncated
    chosen = valid.long().cumsum(0)
    before = torch.where(is_last, chosen, 0).cummax(0).values  # chosen steps of all episodes that ended up to here
    before = torch.cat([torch.zeros_like(before[:1]), before[:-1]])
    is_unused = chosen == before  # no step of this episode has been chosen yet
    observation = trajectory.observation
    if observation.is_floating_point():
        begins = torch.cat([torch.ones_like(valid[:1]), trajectory.is_terminal])
        # Rows behind an unused one are reached through it alone: seen by nobody until a step is chosen.
        behind = torch.cat([torch.zeros_like(valid[:1]), is_unused])
        unseen = torch.cat([is_unused, torch.ones_like(valid[:1])]) & (begins | behind)
        observation = torch.where(unseen.view(*unseen.shape, *(1,) * (observation.ndim - 2)), 0.0, observation)
    return trajectory._replace(
        observation=observation,
        action=torch.where(valid, trajectory.action, 0),
        reward=torch.where(is_unused, 0.0, trajectory.reward),
        behaviour_log_prob=torch.where(valid, trajectory.behaviour_log_prob, 0.0),
    )


def normalised(advantage: Float[Tensor, "T B"], valid: Bool[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """Advantages with mean 0 and variance 1 over the valid steps; mean and scale carry no derivative.

    Equation: (A - ⊥mean A) / √(⊥var A + 1e-5).

    Source: debiasing paper, Appendix D, and its released code.
    """
    mean = masked_mean(autodiff.stop_gradient(advantage), valid)
    variance = masked_mean((autodiff.stop_gradient(advantage) - mean).square(), valid)
    return (advantage - mean) * torch.rsqrt(variance + 1e-5)


def forward(
    network: Network, theta: Float[Tensor, "P"], trajectory: Trajectory, heads: tuple[Head, ...]
) -> dict[Head, Tensor]:
    """Heads on the T acted-on observations, [T, B, …], and values with the bootstrap row, [T+1, B].

    The bootstrap row is constant in every loss, so it is computed outside the graph, critics only.
    """
    observation = trajectory.observation
    steps, batch = trajectory.action.shape
    outputs = network.apply(theta, observation[:-1].flatten(0, 1), heads)
    shaped: dict[Head, Tensor] = {head: x.unflatten(0, (steps, batch)) for head, x in outputs.items()}
    if "logits" in shaped:  # all -∞ where a mask leaves no action, as in the last state of an episode
        shaped["logits"] = torch.where(trajectory.valid.unsqueeze(-1), shaped["logits"], 0.0)
    critics: tuple[Head, ...] = tuple(head for head in heads if head != "logits")
    bootstrap = network.apply(autodiff.stop_gradient(theta), observation[-1], critics)
    for head in critics:
        shaped[head] = torch.cat([shaped[head], bootstrap[head].unsqueeze(0)])
    return shaped


def action_log_prob(logits: Float[Tensor, "T B A"], trajectory: Trajectory) -> Float[Tensor, "T B"]:
    """log π(a_t | s_t) of the taken actions."""
    rule, remedy = f"there is one for each row of logits, {tuple(logits.shape[:-1])}", "make them agree"
    require(trajectory.action.shape == logits.shape[:-1], "action.shape", tuple(trajectory.action.shape), rule, remedy)
    return torch.log_softmax(logits, -1).gather(-1, trajectory.action.unsqueeze(-1)).squeeze(-1)


def entropy_of(log_probs: Float[Tensor, "*rows A"]) -> Float[Tensor, "*rows"]:
    """-Σₐ π(a) log π(a) in nats; an action of probability 0 adds 0 and has derivative 0.

    >>> entropy_of(torch.log_softmax(torch.tensor([0.0, 0.0, -torch.inf]), -1))
    tensor(0.6931)
    """
    probs = log_probs.exp()
    # Chosen before the product: 0 · -∞ is no number, in the value and in the derivative alike.
    return -(probs * torch.where(probs > 0.0, log_probs, 0.0)).sum(-1)


def inner_heads(outer: OuterObjective) -> tuple[Head, ...]:
    """Heads that an inner loss needs: policy, inner critic and, where there is one, the outer critic."""
    return ("logits", "value") + (("outer_value",) if outer.uses_outer_critic else ())


def on_policy_estimates(
    reward: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    trajectory: Trajectory,
    gamma: Float[Tensor, "1"] | float,
    lambda_: Float[Tensor, "1"] | float,
) -> Estimates:
    """λ-returns G over ⊥V and the advantages G - ⊥V; differentiable in rewards, γ and λ.

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
    estimates: Estimates,
    weight: Float[Tensor, "T B"],
) -> tuple[Float[Tensor, ""], LossMetrics]:
    """What inner losses share: policy gradient, value regression and entropy bonus.

    Equation: mean[-w s(log π) + c_v (G - V)² - c_e H(π)] over valid steps.

    Args:
        outputs: "logits" [T, B, A] and "value" [T+1, B], as `forward` gives them.
        trajectory: T steps.
        hyper: c_v and c_e, "value_coefficient" and "entropy_coefficient".
        surrogate: s.
        estimates: G, and the advantages that the metrics show.
        weight: w, mostly the advantage.
    """
    valid = trajectory.valid
    log_probs = torch.log_softmax(outputs["logits"], -1)
    log_prob = log_probs.gather(-1, trajectory.action.unsqueeze(-1)).squeeze(-1)
    entropy = entropy_of(log_probs)
    # A step that the policy did not choose is no factor of a surrogate's product over the episode.
    chosen_log_prob = torch.where(valid, log_prob, 0.0)
    is_last = trajectory.is_terminal | trajectory.is_truncated
    policy_loss = -masked_mean(torch.where(valid, weight, 0.0) * surrogate(chosen_log_prob, is_last), valid)
    error = torch.where(valid, estimates.target - outputs["value"][:-1], 0.0)
    value_loss = masked_mean(hyper["value_coefficient"] * error.square(), valid)
    entropy_loss = -masked_mean(hyper["entropy_coefficient"] * entropy, valid)
    loss = policy_loss + value_loss + entropy_loss
    return loss, LossMetrics(
        policy_loss.detach(),
        value_loss.detach(),
        loss.new_zeros(()),
        masked_mean(entropy.detach(), valid),
        masked_mean(estimates.advantage.detach(), valid),
    )


def with_outer_critic(
    loss: Float[Tensor, ""],
    metrics: LossMetrics,
    target: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    valid: Bool[Tensor, "T B"],
    outer: OuterObjective,
) -> tuple[Float[Tensor, ""], LossMetrics]:
    """An inner loss plus the outer critic's regression, c_o mean[(G' - V')²]."""
    outer_value_loss = masked_mean((target - value[:-1]).square(), valid)
    loss = loss + outer.outer_critic_coefficient * outer_value_loss
    return loss, metrics._replace(outer_value_loss=outer_value_loss.detach())


def inner_loss(
    network: Network,
    theta: Float[Tensor, "P"],
    hyper: Hyperparameters,
    trajectory: Trajectory,
    surrogate: Surrogate,
    outer: OuterObjective,
    is_advantage_normalised: bool = False,
) -> tuple[Float[Tensor, ""], LossMetrics]:
    """A2C loss whose hyper-parameters are tensors, plus the outer critic's own regression.

    Equation: L(θ, η) = mean[-A s(log π) + c_v (G - V)² - c_e H(π) + c_o (G' - V')²], A = G - ⊥V, G the λ-return under
    γ(η), λ(η) over ⊥V, G' the λ'-return under γ' over ⊥V'. Means are over valid steps. With `is_advantage_normalised`
    the policy term has `normalised` advantages.

    Source: "One Step at a Time" eq. 3; c_v without the factor ½ and the outer critic's c_o = ½ from the released code
    of the debiasing paper (Appendix B, Table 1); surrogates s from the gradient-bias paper (§4.4, §5.3).
    """
    trajectory = without_unused_rows(trajectory)
    outputs = forward(network, theta, trajectory, inner_heads(outer))
    estimates = on_policy_estimates(trajectory.reward, outputs["value"], trajectory, hyper["gamma"], hyper["lambda"])
    advantage = estimates.advantage
    weight = normalised(advantage, trajectory.valid) if is_advantage_normalised else advantage
    loss, metrics = actor_critic_loss(outputs, trajectory, hyper, surrogate, estimates, weight)
    if not outer.uses_outer_critic:
        return loss, metrics
    outer_value = outputs["outer_value"]
    target = on_policy_estimates(trajectory.reward, outer_value, trajectory, outer.gamma, outer.lambda_).target
    return with_outer_critic(loss, metrics, target, outer_value, trajectory.valid, outer)


def outer_critic_head(outer: OuterObjective) -> Head:
    """The head whose values the outer advantage is over."""
    return "outer_value" if outer.uses_outer_critic else "value"


def policy_gradient_loss(
    logits: Float[Tensor, "T B A"], trajectory: Trajectory, advantage: Float[Tensor, "T B"], outer: OuterObjective
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """-mean[A' log π] and mean[A'] over valid steps, A' `normalised` in the first where the objective says so."""
    log_prob = action_log_prob(logits, trajectory)
    weight = normalised(advantage, trajectory.valid) if outer.is_advantage_normalised else advantage
    chosen_log_prob = torch.where(trajectory.valid, log_prob, 0.0)
    loss = -masked_mean(weight * chosen_log_prob, trajectory.valid)
    return loss, masked_mean(advantage, trajectory.valid)


def outer_loss(
    network: Network, theta: Float[Tensor, "P"], trajectory: Trajectory, outer: OuterObjective
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Policy-gradient loss under γ', λ' at looked-ahead parameters, and the mean outer advantage.

    Equation: L'(θ) = -mean[⊥A' log π_θ], A' = G' - V', values by the outer critic, or by the inner one (the biased
    baseline: its mean advantage is then away from 0, which is the bias the debiasing paper removes).

    Source: "One Step at a Time" eq. 4; debiasing paper eq. 3.
    """
    critic = outer_critic_head(outer)
    trajectory = without_unused_rows(trajectory)
    outputs = forward(network, theta, trajectory, ("logits", critic))
    estimates = on_policy_estimates(trajectory.reward, outputs[critic], trajectory, outer.gamma, outer.lambda_)
    return policy_gradient_loss(outputs["logits"], trajectory, estimates.advantage, outer)
