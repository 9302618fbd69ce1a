"""Represents inner losses as values: each declares its hyper-parameters and says what they do to the loss.

An actor-critic says where its targets and weights come from (`terms`), and inherits the rest. A loss of another kind
is an `InnerLoss` with an `inner_loss` of its own (docs/extending.md).

V-trace takes rollouts of any policy: its ratios π/μ come from the trajectory's `behaviour_log_prob` and are constants
in θ, as its targets and advantages are; γ, λ, both clips and the coefficients carry derivatives. On the policy's own
rollouts, with clips of at least 1 and a policy coefficient of 1, it is A2C.

What a clip of 1 costs under look-ahead. E_μ[π/μ ∇log π | s] = 0, so an offset that all advantages of a state share has
no effect on the mean policy gradient, and raising γ is such an offset in the first place. E_μ[min(ρ̄, π/μ) ∇log π | s]
= -Σₐ (π - ρ̄ μ)₊ ∇log π is not 0 but a pull towards the policy that acted, of first order in its distance if ρ̄ = 1, and
the meta-gradient takes it for an effect of γ. So `A2cLoss.streamed` leaves the ratios whole (`WHOLE`) unless told
otherwise, and takes the mean advantage off (`VtraceLoss.is_advantage_centred`): with few large ratios the offset's mean
effect is 0 and its noise is most of the meta-gradient's. The outer loss keeps clips of 1: its advantages have no offset
that η moves, and their mean is about 0.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from metagrad import autodiff
from metagrad.diagnostics import effective_sample_size
from metagrad.distributions import Distribution, Outputs, policy_of
from metagrad.errors import require
from metagrad.losses import (
    Estimates,
    LossMetrics,
    OuterObjective,
    Terms,
    actor_critic_loss,
    forward,
    normalised,
    on_policy_estimates,
    whole_mean,
    without_unused_rows,
)
from metagrad.meta_parameters import Declaration, Hyperparameters, MetaParameter, fixed
from metagrad.networks import Head, Network
from metagrad.returns import vtrace
from metagrad.shares import present
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory

OUTER_CLIP = 1.0  # ρ̄ and c̄ of the outer objective, which nothing tunes: as IMPALA
WHOLE = 1e6
"""ρ̄ and c̄ that leave a ratio as it is, and finite: one so large says that π and μ have nothing in common."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InnerLoss(ABC):
    """Represents a loss: it holds its hyper-parameters, each learnt or fixed, and states what it can do."""

    corrects_off_policy: ClassVar[bool] = False
    """True: it takes rollouts of other policies than the one that is trained (`behaviour_log_prob`)."""
    learns_critics: ClassVar[bool] = True
    """True: the network must have critics."""
    needs_discrete_actions: ClassVar[bool] = False
    """True: it does something with each action by itself, of which there must be finitely many."""
    is_policy_apart: ClassVar[bool] = False
    """True: inner policy term and outer loss take critics for constants, so that second-order products may leave the
    critics' own parameters out. A subclass does not inherit it but states it again: what it overrides may be
    anything."""

    def __init_subclass__(cls, **options: Any) -> None:
        super(InnerLoss, cls).__init_subclass__(**options)
        cls.is_policy_apart = vars(cls).get("is_policy_apart", False)

    def declaration(self, observation_shape: tuple[int, ...], num_actions: int) -> Declaration:
        """Map names to declarations, in the order of η: all fields that are one, `lambda_` as "lambda"."""
        del observation_shape, num_actions  # only networks among the meta-parameters need them
        values = {f.name.rstrip("_"): getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, MetaParameter)}

    def streamed(self, ratio_clip: float | None = None) -> "InnerLoss":
        """Return the loss to use on rollouts of older policies: itself where it corrects for them.

        Args:
            ratio_clip: bound on its importance ratios; None, or a loss with clips of its own: as it has them.

        Raises:
            ConfigurationError: it does not correct, and there is no other; or the bound is not for this loss.
        """
        name = type(self).__name__
        rule = "has no losses that correct for rollouts of older policies, which --schedule peek and --reuse need"
        remedy = "use --reuse 1 and --schedule lockstep"
        require(self.corrects_off_policy, "meta_parameters", name, rule, remedy)
        rule, remedy = f"is for losses without clips, and {name} has its own", "set those of meta_parameters"
        require(ratio_clip is None, "ratio_clip", ratio_clip, rule, remedy)
        return self

    @abstractmethod
    def inner_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], LossMetrics]:
        """Return L(θ, η; τ), differentiable in θ and in `hyper`, twice where both meet."""

    def outer_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return L'(θ; τ') and the mean outer advantage; `hyper` are constants here.

        By the inner critic (the biased baseline) the mean advantage is away from 0, which is the bias that the
        debiasing paper removes.
        """
        outer, trajectory = self.outer_objective(outer), without_unused_rows(trajectory)
        outputs = forward(network, theta, trajectory, outer.heads if self.learns_critics else ("logits",))
        return outer.loss(outputs, trajectory, self.outer_estimates(_constant(outputs), trajectory, hyper, outer))

    def outer_objective(self, outer: OuterObjective) -> OuterObjective:
        """Return the outer objective as this loss has it: the one that is configured."""
        return outer

    def outer_estimates(
        self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters, outer: OuterObjective
    ) -> Estimates:
        """Return targets of the outer critic and outer advantages, under γ' and λ'; `outputs` are constants."""
        del hyper
        value = outputs[outer.critic_head]
        return on_policy_estimates(trajectory.reward, value, trajectory, outer.gamma, outer.lambda_)


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorCriticLoss(InnerLoss):
    """Represents an actor-critic loss; `terms` is all that one of them differs in from another."""

    gamma: MetaParameter
    lambda_: MetaParameter

    def __post_init__(self) -> None:
        """Check discounts and decays, that of a subclass too.

        Raises:
            ConfigurationError: names the meta-parameter.
        """
        for name, rate in (("gamma", self.gamma), ("lambda", self.lambda_)):
            bounds = (rate.low, rate.high)
            rule = "its low and high must lie in [0, 1], outside of which returns grow without bound"
            is_inside = rate.low >= 0 and rate.high <= 1
            require(is_inside, f"meta_parameters.{name}", bounds, rule, "move them inside")

    @abstractmethod
    def terms(self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters) -> Terms:
        """Return targets, advantages and weights of a rollout, as functions of `hyper`.

        Args:
            outputs: the network's heads on the rollout (`metagrad.losses.forward`), constants in θ.
            trajectory: T steps.
            hyper: the hyper-parameters by name.
        """

    def inner_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], LossMetrics]:
        """Return `metagrad.losses.actor_critic_loss` of this loss's terms."""
        trajectory = without_unused_rows(trajectory)
        has_outer_critic = self.learns_critics and outer.uses_outer_critic
        heads: tuple[Head, ...] = ("logits", "value") if self.learns_critics else ("logits",)
        outputs = forward(network, theta, trajectory, heads + (("outer_value",) if has_outer_critic else ()))
        constants = _constant(outputs)
        terms = self.terms(constants, trajectory, hyper)
        if has_outer_critic:
            target = self.outer_estimates(constants, trajectory, hyper, outer).target
            terms = terms._replace(outer_target=target)
        return actor_critic_loss(outputs, trajectory, hyper, surrogate, terms, outer.critic_coefficient)


def _constant(outputs: Outputs) -> Outputs:
    return Outputs({head: autodiff.stop_gradient(x) for head, x in outputs.items()}, outputs.distribution)


@dataclass(frozen=True, kw_only=True, slots=True)
class A2cLoss(ActorCriticLoss):
    """Weighs the policy gradient with the advantages A = G - ⊥V, G the λ-return under γ(η), λ(η) over ⊥V."""

    is_policy_apart: ClassVar[bool] = True

    value_coefficient: MetaParameter
    entropy_coefficient: MetaParameter
    is_advantage_normalised: bool = False
    """True: inner advantages have mean 0 and variance 1 over the batch (debiasing paper, Appendix D)."""

    def terms(self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters) -> Terms:
        """Return on-policy estimates over the inner critic."""
        value, rates = outputs["value"], (hyper["gamma"], hyper["lambda"])
        target, advantage = on_policy_estimates(trajectory.reward, value, trajectory, *rates)
        weight = normalised(advantage, trajectory.valid) if self.is_advantage_normalised else advantage
        return Terms(target, advantage, weight)

    def streamed(self, ratio_clip: float | None = None) -> InnerLoss:
        """Return V-trace's loss; not of a subclass.

        `ratio_clip` is both clips, IMPALA's with 1: on the policy's own rollouts the loss is then this one. None: the
        ratios are `WHOLE` and advantages centred, which on own rollouts has the same expected gradient.
        """
        if type(self) is not A2cLoss:
            return ActorCriticLoss.streamed(self, ratio_clip)
        rule, remedy = f"must lie in [1, {WHOLE:,.0f}]: less would scale fresh rollouts", "use 1, as IMPALA, or more"
        require(ratio_clip is None or 1 <= ratio_clip <= WHOLE, "ratio_clip", ratio_clip, rule, remedy)
        clip = fixed(WHOLE if ratio_clip is None else ratio_clip)
        return VtraceLoss(
            gamma=self.gamma,
            lambda_=self.lambda_,
            policy_coefficient=fixed(1.0),
            value_coefficient=self.value_coefficient,
            entropy_coefficient=self.entropy_coefficient,
            rho_clip=clip,
            c_clip=clip,
            is_advantage_centred=ratio_clip is None,
            is_advantage_normalised=self.is_advantage_normalised,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VtraceLoss(ActorCriticLoss):
    """Represents IMPALA's loss, which also learns from rollouts of older policies; all of it may be learnt.

    On rollouts of the present policy every ratio is 1: a clip above 1 changes nothing there and has no derivative, one
    below 1 scales what it clips (ρ̄ like a policy coefficient, c̄ like λ).

    Source: Espeholt et al. (2018), "IMPALA", §4.2; which hyper-parameters are learnt: Zahavy et al. (2020), "A
    Self-Tuning Actor-Critic Algorithm". Deviations: means over steps instead of sums; (v - V)² without the factor ½;
    the clips themselves are learnt (`metagrad.returns.vtrace`); the outer critic is the debiasing paper's.
    """

    corrects_off_policy: ClassVar[bool] = True
    is_policy_apart: ClassVar[bool] = True

    policy_coefficient: MetaParameter
    value_coefficient: MetaParameter
    entropy_coefficient: MetaParameter
    rho_clip: MetaParameter
    """ρ̄: the bound on the importance ratio of a TD error and of the policy's gradient."""
    c_clip: MetaParameter
    """c̄: the bound on the importance ratio within a trace; the paper keeps it at or below ρ̄."""
    is_advantage_centred: bool = False
    """True: the policy's gradient is over advantages less their mean over the batch, weighted by min(ρ̄, π/μ): a
    baseline, which leaves the expected gradient (up to 1/N) but not its noise, nor what η does to all advantages."""
    is_advantage_normalised: bool = False
    """True: they are centred and divided by their root mean square, so that the policy's steps do not depend on the
    size of rewards; on own rollouts they then have mean 0 and variance 1, as `A2cLoss`'s."""
    policy_clip: float | None = None
    """ε of PPO's clip: a step whose ratio has gone beyond 1 ± ε, to where its advantage drives it, drives no further;
    for batches that are used several times. None: no step is left out."""

    def __post_init__(self) -> None:
        ActorCriticLoss.__post_init__(self)
        epsilon, rule = self.policy_clip, "must lie in (0, 1)"
        is_inside = epsilon is None or 0 < epsilon < 1
        require(is_inside, "meta_parameters.policy_clip", epsilon, rule, "PPO has 0.1 to 0.2; None: no clip")
        for name, clip in (("rho_clip", self.rho_clip), ("c_clip", self.c_clip)):
            rule, remedy = "must be 0 or more: it bounds a ratio of probabilities", "raise it"
            require(clip.low >= 0, f"meta_parameters.{name}.low", clip.low, rule, remedy)

    def terms(self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters) -> Terms:
        """Return V-trace's targets v and weights c_p A, A with its factor ρ = min(ρ̄, π_⊥θ/μ).

        Centred, the weights are c_p (A - ρ ΣA/Σρ), with sums over valid steps, whose quotient is a function of η as A
        is. Normalised, they are divided by √(mean of their squares + 1e-5), a constant. Where the ratio is below ρ̄, A s
        of the surrogate `lvc` is the unclipped π_θ/μ times the advantage.

        Under `policy_clip` the weight w of a step is 0 where w > 0 and π/μ > 1 + ε, or w < 0 and π/μ < 1 - ε: what is
        left is the gradient of min(x A, clip(x, 1 - ε, 1 + ε) A), x = π/μ ≤ ρ̄ and A the advantage without its ratio
        (Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7).
        """
        rates = (hyper["gamma"], hyper["lambda"], hyper["rho_clip"], hyper["c_clip"])
        valid, log_ratio = trajectory.valid, _log_ratio(policy_of(outputs), trajectory)
        target, advantage = vtrace_estimates(log_ratio, outputs["value"], trajectory, *rates)
        share = effective_sample_share(log_ratio, valid)
        weight = self._weight(advantage, log_ratio, valid, hyper["rho_clip"])
        return Terms(target, advantage, hyper["policy_coefficient"] * weight, effective_sample_size=share)

    def _weight(
        self,
        advantage: Float[Tensor, "T B"],
        log_ratio: Float[Tensor, "T B"],
        valid: Bool[Tensor, "T B"],
        rho_clip: Float[Tensor, "1"],
    ) -> Float[Tensor, "T B"]:
        """Return the weight of each step in the policy's gradient, but for its coefficient: see `terms`."""
        is_centred = self.is_advantage_centred or self.is_advantage_normalised
        if not is_centred and self.policy_clip is None:
            return advantage
        weight, ratio = advantage, torch.exp(torch.where(valid, log_ratio, 0.0))
        if is_centred:
            clipped = torch.minimum(ratio, rho_clip)
            mean_ratio = whole_mean(clipped, valid).clamp(min=torch.finfo(ratio.dtype).tiny)  # 0 where ρ̄ is
            weight = advantage - clipped * whole_mean(advantage, valid) / mean_ratio
        if self.is_advantage_normalised:
            weight = weight * torch.rsqrt(whole_mean(autodiff.stop_gradient(weight).square(), valid) + 1e-5)
        if self.policy_clip is not None:
            is_beyond = torch.where(weight > 0, ratio > 1.0 + self.policy_clip, ratio < 1.0 - self.policy_clip)
            weight = torch.where(is_beyond, 0.0, weight)
        return weight

    def outer_estimates(
        self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters, outer: OuterObjective
    ) -> Estimates:
        """Return V-trace's targets v' and advantages under γ', λ' and clips of `OUTER_CLIP`."""
        del hyper
        value, clips = outputs[outer.critic_head], (OUTER_CLIP, OUTER_CLIP)
        log_ratio = _log_ratio(policy_of(outputs), trajectory)
        return vtrace_estimates(log_ratio, value, trajectory, outer.gamma, outer.lambda_, *clips)


def vtrace_estimates(
    log_ratio: Float[Tensor, "T B"],
    value: Float[Tensor, "T+1 B"],
    trajectory: Trajectory,
    gamma: Float[Tensor, "1"] | float,
    lambda_: Float[Tensor, "1"] | float,
    rho_clip: Float[Tensor, "1"] | float,
    c_clip: Float[Tensor, "1"] | float,
) -> Estimates:
    """Return `metagrad.returns.vtrace` over ⊥V under log ⊥π/μ; the advantage has the clipped ratio as a factor."""
    estimates = vtrace(
        log_ratio,
        trajectory.reward.to(value.dtype),
        autodiff.stop_gradient(value),
        trajectory.is_terminal,
        trajectory.is_truncated,
        trajectory.valid,
        gamma,
        lambda_,
        rho_clip,
        c_clip,
    )
    return Estimates(estimates.target, estimates.policy_advantage)


def effective_sample_share(log_ratio: Float[Tensor, "T B"], valid: Bool[Tensor, "T B"]) -> Float[Tensor, ""]:
    """Return the effective sample size of the steps' ratios as a share of the valid steps, from 1/N to 1.

    Equation: (Σ w)²/(N Σ w²) over the N valid steps, w = ⊥π(a_t|s_t)/μ(a_t|s_t) before any clip; 1 if N = 0.
    The variance of a mean over steps is about its inverse times that of fresh rollouts, for quantities that do not
    depend on the ratio.

    Source: Kong (1992), as `metagrad.diagnostics.effective_sample_size`; here of steps, not of whole trajectories.
    """
    log_weights = torch.where(valid, log_ratio, -torch.inf).flatten()
    shares = present()
    count = shares.count(valid, log_ratio.dtype)
    share = effective_sample_size(log_weights, shares.logsumexp) / count
    return torch.where(count > 0, share, 1.0)


def _log_ratio(policy: Distribution, trajectory: Trajectory) -> Tensor:
    """Return log π(a_t|s_t) - log μ(a_t|s_t), a constant."""
    return autodiff.stop_gradient(policy.log_prob(trajectory.action)) - trajectory.behaviour_log_prob
