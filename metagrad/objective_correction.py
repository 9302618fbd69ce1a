"""Learns a correction of the actor-critic loss: what a small network adds to the targets of policy and critic.

At the start the network's last layer is 0 and the rule is A2C to the bit; η then says step by step how far the weight
of an action's log-probability and the critic's target are to be from A2C's. A rule that starts where A2C is needs few
lifetimes to be better than it, and has few parameters (226 by default), but can learn nothing about what a value
function does not say.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff
from metagrad.actor_critic import A2cLoss
from metagrad.agent_networks import drawn
from metagrad.distributions import Categorical, Outputs, entropies, log_probabilities
from metagrad.errors import require
from metagrad.flat_module import ParameterLayout
from metagrad.losses import Terms, actor_critic_loss, masked_mean, on_policy_estimates, whole_mean
from metagrad.meta_parameters import Hyperparameters, fixed
from metagrad.network_modules import Head
from metagrad.surrogates import ad
from metagrad.types import Trajectory
from metagrad.update_rules import AgentOutputs, LifetimeRollout, RuleState, Targets, of_actions

_FEATURES = 11
_OUTPUTS = 2  # of the policy's weight and of the critic's target
_FLOOR = 1e-5  # of a variance, as in `metagrad.losses.normalised`
_LOG_RANGE = 5.0  # log-probabilities and ratios beyond it look alike


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveCorrection:
    """Adds σ c¹ to A2C's weights and σ c² to its value targets, c = MLP_η(features of the step).

    Inner loss, over valid steps: mean[-(A + σ c¹) log π(a|s) + c_v (G + σ c² - V)² - c_e H(π)], with A = G - ⊥V and G
    the λ-returns over ⊥V; σ is the deviation of A over the batch, so that the correction has no unit of reward.

    Features, all constants in θ, with x̃ = sign(x) log(1 + |x|): A/σ~, the TD error δ/σ~ (λ = 0) and the bootstrapped
    return's advantage/σ~ (λ = 1); r~, V~; π(a), log π(a), log π(a)/μ(a) as far as ±5; the policy's entropy, as a part
    of log A, and its mean over the batch; d, 1 where the episode ended. c is an MLP 11 → 16 → 2 with tanh.

    Equal to `A2cLoss` to the bit, gradient and update, while the last layer is 0.
    """

    hidden: int = 16
    """Units of the hidden layer."""
    gamma: float = 0.99
    """Discount γ of the inner loss."""
    lambda_: float = 0.95
    """λ of the inner loss's returns."""
    value_coefficient: float = 0.5
    """c_v."""
    entropy_coefficient: float = 0.01
    """c_e."""
    is_advantage_normalised: bool = False
    """True: the weights are A with mean 0 and variance 1 over the batch, plus c¹."""
    policy_entropy_coefficient: float = 0.01
    """Weight of the policy's entropy in the outer objective."""
    correction_coefficient: float = 1e-3
    """Weight of the mean of the squared corrections in the outer loss."""

    def __post_init__(self) -> None:
        require(self.hidden >= 1, "rule.hidden", self.hidden, "must be at least 1", "raise it")
        for name in ("gamma", "lambda_"):
            rate = getattr(self, name)
            require(0 <= rate <= 1, f"rule.{name.rstrip('_')}", rate, "must lie in [0, 1]", "choose a value inside")
        for name in ("value", "entropy", *_REGULARISERS):
            weight = getattr(self, f"{name}_coefficient")
            rule = "must be finite and 0 or more"
            require(0 <= weight < math.inf, f"rule.{name}_coefficient", weight, rule, "change it")

    @property
    def target_network_decay(self) -> float | None:
        """Return None: A2C has no target network."""
        return None

    @property
    def layout(self) -> ParameterLayout:
        """Return weights [inputs, outputs] and biases of both layers."""
        shapes = {
            "hidden.weight": (_FEATURES, self.hidden),
            "hidden.bias": (self.hidden,),
            "last.weight": (self.hidden, _OUTPUTS),
            "last.bias": (_OUTPUTS,),
        }
        return ParameterLayout(tuple(shapes), tuple(shapes.values()))

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Return the weights of `regularisers`."""
        weights = (self.policy_entropy_coefficient, self.correction_coefficient)
        return dict(zip(_REGULARISERS, weights, strict=True))

    @property
    def uncorrected(self) -> A2cLoss:
        """Return the loss that the rule starts at."""
        return A2cLoss(
            gamma=fixed(self.gamma),
            lambda_=fixed(self.lambda_),
            value_coefficient=fixed(self.value_coefficient),
            entropy_coefficient=fixed(self.entropy_coefficient),
            is_advantage_normalised=self.is_advantage_normalised,
        )

    def heads(self, num_actions: int) -> Mapping[str, tuple[int, ...]]:
        """Return policy and critic."""
        return {"logits": (num_actions,), "value": ()}

    def init(self, generator: torch.Generator) -> Float[Tensor, "M"]:
        """Draw the hidden layer; the last one is 0."""
        parts = self.layout.unflatten(drawn(self.layout, generator))
        return self.layout.flatten({**parts, "last.weight": torch.zeros_like(parts["last.weight"])})

    def initial_state(self) -> RuleState:
        """Return nothing: each update is a rollout's own."""
        return ()

    def targets(
        self,
        eta: Float[Tensor, "M"],
        state: RuleState,
        rollout: LifetimeRollout,
        outputs: AgentOutputs,
        target_outputs: AgentOutputs | None,
    ) -> tuple[Targets, RuleState]:
        """Return "weight" and "value", both [T, B], and "correction", c [T, B, 2]."""
        del target_outputs
        heads: tuple[Head, ...] = ("logits", "value")
        constants = {head: autodiff.stop_gradient(outputs[head]) for head in heads}
        behaviour = of_actions(log_probabilities(rollout.behaviour_logits[:-1]), rollout.action[:-1])
        trajectory = _trajectory(rollout, behaviour)
        terms = self.uncorrected.terms(constants, trajectory, self._hyper(constants["value"]))
        spread = whole_mean((terms.advantage - whole_mean(terms.advantage, rollout.valid)).square(), rollout.valid)
        sigma = torch.sqrt(spread + _FLOOR)
        own = self.layout.unflatten(eta)
        features = self._features(terms.advantage, sigma, rollout, trajectory, constants)
        hidden = torch.tanh(features @ own["hidden.weight"] + own["hidden.bias"])
        correction = hidden @ own["last.weight"] + own["last.bias"]
        unit = torch.ones_like(sigma) if self.is_advantage_normalised else sigma
        assert terms.target is not None
        weight = terms.weight + unit * correction[..., 0]
        return {"weight": weight, "value": terms.target + sigma * correction[..., 1], "correction": correction}, state

    def _hyper(self, like: Tensor) -> Hyperparameters:
        names = ("gamma", "lambda", "value_coefficient", "entropy_coefficient")
        values = (self.gamma, self.lambda_, self.value_coefficient, self.entropy_coefficient)
        return {name: like.new_full((1,), value) for name, value in zip(names, values, strict=True)}

    def _features(
        self,
        advantage: Tensor,
        sigma: Tensor,
        rollout: LifetimeRollout,
        trajectory: Trajectory,
        outputs: Mapping[Head, Tensor],
    ) -> Float[Tensor, "T B features"]:
        value, log_probs = outputs["value"], log_probabilities(outputs["logits"][:-1])
        following = torch.where(rollout.is_terminal, 0.0, value[1:])
        error = rollout.reward.to(value.dtype) + self.gamma * following - value[:-1]
        whole = on_policy_estimates(rollout.reward, value, trajectory, self.gamma, 1.0).advantage
        entropy = entropies(log_probs) / math.log(max(2, log_probs.shape[-1]))
        log_prob = of_actions(log_probs, rollout.action[:-1])
        features = (
            *(_squashed(x / sigma) for x in (advantage, error, whole)),
            _squashed(rollout.reward.to(value.dtype)),
            _squashed(value[:-1]),
            log_prob.exp(),
            log_prob.clamp(min=-_LOG_RANGE),
            (log_prob - trajectory.behaviour_log_prob).clamp(-_LOG_RANGE, _LOG_RANGE),
            entropy,
            whole_mean(entropy, rollout.valid).expand(entropy.shape),
            rollout.is_terminal.to(value.dtype),
        )
        return torch.stack(features, -1)

    def loss(self, targets: Targets, outputs: AgentOutputs, rollout: LifetimeRollout) -> Float[Tensor, ""]:
        """Return A2C's loss with these weights and value targets."""
        seen = Outputs({"logits": outputs["logits"][:-1], "value": outputs["value"]}, Categorical)
        terms = Terms(targets["value"], targets["weight"], targets["weight"])
        unused = torch.zeros_like(rollout.reward)  # for the logs alone
        return actor_critic_loss(seen, _trajectory(rollout, unused), self._hyper(outputs["value"]), ad, terms, 0.0)[0]

    def regularisers(
        self, targets: Targets, outputs: AgentOutputs, rollout: LifetimeRollout
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Return -H(π) and mean Σ c²."""
        each = (-entropies(log_probabilities(outputs["logits"][:-1])), targets["correction"].square().sum(-1))
        return {name: masked_mean(x, rollout.valid) for name, x in zip(_REGULARISERS, each, strict=True)}


_REGULARISERS = ("policy_entropy", "correction")


def _squashed(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(x.abs())


def _trajectory(rollout: LifetimeRollout, behaviour_log_prob: Float[Tensor, "T B"]) -> Trajectory:
    """Return the T steps as losses of `metagrad.losses` take them."""
    return Trajectory(
        observation=rollout.observation,
        action=rollout.action[:-1],
        reward=rollout.reward,
        is_terminal=rollout.is_terminal,
        is_truncated=torch.zeros_like(rollout.is_terminal),
        valid=rollout.valid,
        behaviour_log_prob=behaviour_log_prob,
        policy_version=0,
    )
