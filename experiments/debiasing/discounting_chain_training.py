"""Experiment `discounting-chain`: a learnt discount on the Discounting Chain, through the actor-learner system.

Nobody learns values here: they are known. The critic of the inner loss is the true value under γ, that of the outer
loss the true value under γ' (`--outer.critic outer`) or under γ as well (`inner`, the biased baseline).

Shapes: T steps of B episodes; rollouts are whole episodes, so that row t holds the steps at time t.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", 4.1, C.1 and Table 1; its
release where the paper is silent. The release's bootstrapped agent matches policies at the start of an episode alone:
`--meta.bootstrap.updates 1 --meta.bootstrap.states first`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from metagrad import autodiff
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
from metagrad.learner.config import MetaGradientConfig, OuterConfig
from metagrad.learner.meta_parameters import MetaParametersConfig, check_rates
from metagrad.learner.optimizer_config import AdamConfig, SgdConfig
from metagrad.losses import LossMetrics, OuterObjective, forward, masked_mean, normalised
from metagrad.meta_parameters import Hyperparameters, MetaParameter
from metagrad.networks import LinearPolicy, Network
from metagrad.returns import lambda_returns
from metagrad.surrogates import Surrogate
from metagrad.types import Trajectory


def true_values(
    table: Chains,
    chain: Int64[Tensor, "B"],
    start_policy: Float[Tensor, "B A"],
    discount: Float[Tensor, "1"],
    horizon: int,
    is_first_value_exact: bool,
) -> Float[Tensor, "T+1 B"]:
    """Values of whole episodes' states.

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


class _Terms(NamedTuple):
    """What both losses are made of."""

    log_prob: Float[Tensor, "T B"]
    entropy: Float[Tensor, "T B"]
    advantage: Float[Tensor, "T B"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainParameters(MetaParametersConfig):
    """Hyper-parameters of the policy-gradient loss whose critic is the true value function."""

    gamma: MetaParameter
    lambda_: MetaParameter
    entropy_coefficient: MetaParameter
    outer_entropy_coefficient: float
    """Of the outer loss, whatever the inner one's becomes."""
    mapping_seed: int
    """Chain with the bonus: the environment's own, whose values the losses know."""
    is_advantage_normalised: bool = False
    """True: inner advantages have mean 0 and variance 1 over the batch (debiasing paper, Appendix D)."""
    is_first_value_exact: bool = False
    """False: the release's γ^K instead of γ^(K-1) in the value of the start."""

    def __post_init__(self) -> None:
        check_rates(gamma=self.gamma, lambda_=self.lambda_)
        weight = self.outer_entropy_coefficient
        rule, remedy = "must be finite and 0 or more", "the paper has 0.005"
        require(0 <= weight < math.inf, "meta_parameters.outer_entropy_coefficient", weight, rule, remedy)

    def inner_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        surrogate: Surrogate,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], LossMetrics]:
        """Equation: L = mean[-A s(log π) - c_e H(π)], A = G - ⊥V, G the λ-return under γ over ⊥V, V under ⊥γ.

        With λ = 0, A = r + γ ⊥V(s') - ⊥V(s): the discount acts through this one factor (release).
        """
        terms = self._terms(network, theta, trajectory, (hyper["gamma"], hyper["lambda"]), hyper["gamma"])
        valid = trajectory.valid
        weight = normalised(terms.advantage, valid) if self.is_advantage_normalised else terms.advantage
        chosen = torch.where(valid, terms.log_prob, 0.0)
        is_last = trajectory.is_terminal | trajectory.is_truncated
        policy_loss = -masked_mean(weight * surrogate(chosen, is_last), valid)
        loss = policy_loss - masked_mean(hyper["entropy_coefficient"] * terms.entropy, valid)
        nothing = loss.new_zeros(())  # no critic learns
        entropy, advantage = (masked_mean(x.detach(), valid) for x in (terms.entropy, terms.advantage))
        return loss, LossMetrics(policy_loss.detach(), nothing, nothing, entropy, advantage)

    def outer_loss(
        self,
        network: Network,
        theta: Float[Tensor, "P"],
        hyper: Hyperparameters,
        trajectory: Trajectory,
        outer: OuterObjective,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Equation: L' = mean[-A' log π - c' H(π)], A' = G' - V, G' the λ'-return under γ' over V.

        V under γ' with the outer critic, under the present γ with the inner one.
        """
        gamma = torch.full_like(hyper["gamma"], outer.gamma)
        value_gamma = gamma if outer.uses_outer_critic else hyper["gamma"]
        terms = self._terms(network, theta, trajectory, (gamma, outer.lambda_), value_gamma)
        valid = trajectory.valid
        weight = normalised(terms.advantage, valid) if outer.is_advantage_normalised else terms.advantage
        loss = -masked_mean(weight * terms.log_prob + self.outer_entropy_coefficient * terms.entropy, valid)
        return loss, masked_mean(terms.advantage, valid)

    def _terms(
        self,
        network: Network,
        theta: Tensor,
        trajectory: Trajectory,
        rates: tuple[Tensor, Tensor | float],
        value_gamma: Tensor,
    ) -> _Terms:
        log_probs = torch.log_softmax(forward(network, theta, trajectory, ("logits",))["logits"], -1)
        table = Chains(*(x.to(theta.device) for x in chains(self.mapping_seed, theta.dtype)))
        start_policy = autodiff.stop_gradient(log_probs[0]).exp()
        value = true_values(
            table,
            trajectory.action[0],
            start_policy,
            autodiff.stop_gradient(value_gamma),
            len(trajectory.reward),
            self.is_first_value_exact,
        )
        reward = trajectory.reward.to(value.dtype)
        target = lambda_returns(reward, value, trajectory.is_terminal, trajectory.is_truncated, *rates)
        return _Terms(
            log_prob=log_probs.gather(-1, trajectory.action.unsqueeze(-1)).squeeze(-1),
            entropy=-(log_probs.exp() * log_probs).sum(-1),
            advantage=target - value[:-1],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscountingChainExperiment(Experiment):
    """Policy gradients over true values, with meta-gradients."""

    env: DiscountingChainConfig
    network: LinearPolicy
    meta_parameters: ChainParameters

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


def discounting_chain() -> DiscountingChainExperiment:
    """The paper's MG agent with the outer value function (Table 1, released code)."""
    env = DiscountingChainConfig()
    return DiscountingChainExperiment(
        name="discounting-chain",
        description="Discounting Chain, policy gradient over true values, learnt discount (the debiasing paper)",
        env=env,
        network=LinearPolicy(),
        optimizer=SgdConfig(learning_rate=LEARNING_RATE),
        meta=MetaGradientConfig(n=1, surrogate="ad", optimizer=AdamConfig(learning_rate=META_LEARNING_RATE)),
        outer=OuterConfig(gamma=OUTER_DISCOUNT, lambda_=0.0, critic="outer", critic_coefficient=0.0),
        meta_parameters=ChainParameters(
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
