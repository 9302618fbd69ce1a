"""Defines experiment `discounting-chain`: a learnt discount on the Discounting Chain, through the actor-learner system.

Nobody learns values here: they are known. The critic of the inner loss is the true value under γ, that of the outer
loss the true value under γ' (`--outer.critic outer`) or under γ as well (`inner`, the biased baseline).

Shapes: T steps of B episodes; rollouts are whole episodes, so that row t holds the steps at time t.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", 4.1, C.1 and Table 1; its
release where the paper is silent. The release's bootstrapped agent matches policies at the start of an episode alone:
`--meta.bootstrap.updates 1 --meta.bootstrap.states first`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metagrad import autodiff
from metagrad.actor_critic import ActorCriticLoss
from metagrad.actors.envs.discounting_chain import HORIZON, Chains, DiscountingChainConfig, chains
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.errors import require
from metagrad.experiments.debiasing.discounting_chain_problem import (
    BATCH_SIZE,
    DISCOUNT,
    ENTROPY_COEFFICIENT,
    LEARNING_RATE,
    META_LEARNING_RATE,
    OUTER_DISCOUNT,
)
from metagrad.experiments.debiasing.discounting_chain_report import UPDATES
from metagrad.learner.config import MetaGradientConfig
from metagrad.losses import Estimates, OuterObjective, Terms, normalised, on_policy_estimates
from metagrad.meta_parameters import Hyperparameters, MetaParameter
from metagrad.networks import Head, LinearPolicy
from metagrad.optimizers import Adam, Sgd
from metagrad.types import Trajectory


def true_values(
    table: Chains,
    chain: Int64[Tensor, "B"],
    start_policy: Float[Tensor, "B A"],
    discount: Float[Tensor, "1"],
    horizon: int,
    is_first_value_exact: bool,
) -> Float[Tensor, "T+1 B"]:
    """Return the values of whole episodes' states.

    Equation: V(c, t) = g^(K-t-1) R for t < K, 0 later, V(start) = Σₐ π(a) g^K R (release) or g^(K-1) R (exact); what
    would be paid after the episode's end is worth nothing.

    Args:
        table: K and R of all chains.
        chain: c of each episode.
        start_policy: π at the start.
        discount: g.
        horizon: T.
        is_first_value_exact: which value the start has.
    """
    reward = torch.where(table.paying_step <= horizon, table.reward, 0.0)
    time = torch.arange(1, horizon + 1, device=chain.device).unsqueeze(-1)
    wait = table.paying_step[chain] - time - 1
    later = torch.where(wait >= 0, discount ** wait.clamp(min=0) * reward[chain], 0.0)
    first = (start_policy * discount ** (table.paying_step - int(is_first_value_exact)) * reward).sum(-1)
    return torch.cat([first.unsqueeze(0), later])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrueValueLoss(ActorCriticLoss):
    """Represents the policy-gradient loss whose critic is the true value function V, inside and outside.

    Inner advantages are A = G - ⊥V, G the λ-return under γ over ⊥V, V under ⊥γ. With λ = 0, A = r + γ ⊥V(s') - ⊥V(s):
    the discount acts through this one factor (release). Outer ones are the same under γ', λ'; their V is under γ' with
    the outer critic, under the present γ with the inner one.
    """

    learns_critics: ClassVar[bool] = False
    needs_discrete_actions: ClassVar[bool] = True

    entropy_coefficient: MetaParameter
    outer_entropy_coefficient: float
    """The entropy coefficient of the outer loss, whatever the inner one's becomes."""
    mapping_seed: int
    """The seed of the chain with the bonus; it must be the environment's, whose values the losses know."""
    is_advantage_normalised: bool = False
    """True: inner advantages have mean 0 and variance 1 over the batch (debiasing paper, Appendix D)."""
    is_first_value_exact: bool = False
    """False: the release's γ^K instead of γ^(K-1) in the value of the start."""

    def __post_init__(self) -> None:
        ActorCriticLoss.__post_init__(self)
        weight = self.outer_entropy_coefficient
        rule, remedy = "must be finite and 0 or more", "the paper has 0.005"
        require(0 <= weight < math.inf, "meta_parameters.outer_entropy_coefficient", weight, rule, remedy)

    def terms(self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters) -> Terms:
        """Return advantages over true values."""
        rates = (hyper["gamma"], hyper["lambda"])
        advantage = self._estimates(outputs["logits"], trajectory, rates, hyper["gamma"]).advantage
        weight = normalised(advantage, trajectory.valid) if self.is_advantage_normalised else advantage
        return Terms(None, advantage, weight)

    def outer_estimates(
        self, outputs: Mapping[Head, Tensor], trajectory: Trajectory, hyper: Hyperparameters, outer: OuterObjective
    ) -> Estimates:
        """Return advantages over true values under γ', λ'."""
        gamma = torch.full_like(hyper["gamma"], outer.gamma)
        value_gamma = gamma if outer.uses_outer_critic else hyper["gamma"]
        return self._estimates(outputs["logits"], trajectory, (gamma, outer.lambda_), value_gamma)

    def outer_objective(self, outer: OuterObjective) -> OuterObjective:
        """Return the objective with this loss's own entropy coefficient."""
        return replace(outer, entropy_coefficient=self.outer_entropy_coefficient)

    def _estimates(
        self,
        logits: Float[Tensor, "T B A"],
        trajectory: Trajectory,
        rates: tuple[Tensor, Tensor | float],
        value_gamma: Tensor,
    ) -> Estimates:
        table = Chains(*(x.to(logits.device, non_blocking=True) for x in chains(self.mapping_seed, logits.dtype)))
        value = true_values(
            table,
            trajectory.action[0],
            torch.log_softmax(logits, -1)[0].exp(),
            autodiff.stop_gradient(value_gamma),
            len(trajectory.reward),
            self.is_first_value_exact,
        )
        return on_policy_estimates(trajectory.reward, value, trajectory, *rates)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscountingChainExperiment(Experiment):
    """Follows policy gradients over true values, with meta-gradients."""

    env: DiscountingChainConfig
    network: LinearPolicy
    meta_parameters: TrueValueLoss

    def __post_init__(self) -> None:
        Experiment.__post_init__(self)
        horizon, bonus = self.env.horizon, self.env.mapping_seed
        rule = f"must be an episode's {horizon} steps (env.horizon): the losses' values are of whole episodes"
        remedy = f"use --rollout-length {horizon}"
        require(self.rollout_length == horizon, "rollout_length", self.rollout_length, rule, remedy)
        known = self.meta_parameters.mapping_seed
        rule = f"the losses know another chain's values than the environment has (env.mapping_seed = {bonus})"
        remedy = f"use --meta-parameters.mapping-seed {bonus}"
        require(known == bonus, "meta_parameters.mapping_seed", known, rule, remedy)
        weight = self.outer.critic_coefficient
        rule = "must be 0: the outer critic is the true value function, which nothing is regressed on"
        require(weight == 0.0, "outer.critic_coefficient", weight, rule, "leave it out")
        weight, remedy = self.outer.entropy_coefficient, "use --meta-parameters.outer-entropy-coefficient"
        require(weight == 0.0, "outer.entropy_coefficient", weight, "is this loss's own", remedy)


def discounting_chain() -> DiscountingChainExperiment:
    """Return the paper's MG agent with the outer value function (Table 1, released code)."""
    env = DiscountingChainConfig()
    return DiscountingChainExperiment(
        name="discounting-chain",
        description="Discounting Chain, policy gradient over true values, learnt discount (the debiasing paper)",
        env=env,
        network=LinearPolicy(),
        optimizer=Sgd(learning_rate=LEARNING_RATE),
        meta=MetaGradientConfig(n=1, surrogate="ad", optimizer=Adam(learning_rate=META_LEARNING_RATE)),
        outer=OuterObjective(gamma=OUTER_DISCOUNT, lambda_=0.0, critic="outer", critic_coefficient=0.0),
        meta_parameters=TrueValueLoss(
            gamma=DISCOUNT,
            lambda_=MetaParameter(initial=0.0, is_learnt=False),
            entropy_coefficient=MetaParameter(initial=ENTROPY_COEFFICIENT, is_learnt=False),
            outer_entropy_coefficient=ENTROPY_COEFFICIENT,
            mapping_seed=env.mapping_seed,
        ),
        environments=BATCH_SIZE,
        rollout_length=HORIZON,
        updates=UPDATES,
    )
