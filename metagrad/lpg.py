"""Learns the policy's update and what to predict by a backward recurrent network over the rollout (LPG).

An agent has a policy π and a prediction y, a categorical distribution without any meaning but the one that the rule
gives it. The rule sees rewards, ends of episodes, the probabilities of the actions taken, and y, and says for each step
how far the action's probability is to move and where y is to go.

Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms", arXiv 2007.08794; sizes and settings of
Jackson et al. (2023), "Discovering General RL Algorithms with Adversarial Environment Design" (GROOVE), arXiv
2310.02782.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad import autodiff
from metagrad.agent_networks import drawn
from metagrad.backward_gru import backward_gru
from metagrad.distributions import entropies, log_probabilities
from metagrad.errors import require
from metagrad.flat_module import ParameterLayout
from metagrad.losses import masked_mean
from metagrad.update_rules import AgentOutputs, LifetimeRollout, RuleState, Targets, of_actions

_INPUTS = 5  # reward, end, π(a), φ(y), φ(y')


@dataclass(frozen=True, kw_only=True, slots=True)
class Lpg:
    """Computes π̂ and ŷ of each step by a GRU that runs backwards over the rollout.

    At step t it sees r_t, d_t, π(a_t|s_t), φ(y(s_t)) and φ(y(s_{t+1})), the last one 0 where d_t = 1, all constants in
    θ. φ is an MLP m → 16 → 1 with ReLU. The GRU begins with a zero state, and with one again before it sees a step
    with d_t = 1. π̂ = w · ReLU(h) + b and ŷ = softmax(W ReLU(h) + b).

    Inner loss: mean_t [π̂_t log π(a_t|s_t) + α_y KL(y(s_t) ‖ ŷ_t)]; the sign of π̂ is the rule's to learn.
    """

    predictions: int = 8
    """m: number of categories of y; GROOVE has 8, LPG 30."""
    units: int = 256
    """Units of the GRU."""
    embedding: int = 16
    """Hidden units of φ."""
    prediction_coefficient: float = 0.5
    """α_y."""
    policy_entropy_coefficient: float = 0.05
    """β₀: weight of the policy's entropy in the outer objective."""
    prediction_entropy_coefficient: float = 0.001
    """β₁: weight of the prediction's entropy in the outer objective."""
    policy_target_coefficient: float = 0.005
    """β₂: weight of the mean of π̂² in the outer loss."""
    prediction_target_coefficient: float = 0.001
    """β₃: weight of the mean of Σ ŷ² in the outer loss."""

    def __post_init__(self) -> None:
        for name, least in (("predictions", 2), ("units", 1), ("embedding", 1)):
            size = getattr(self, name)
            require(size >= least, f"rule.{name}", size, f"must be at least {least}", "raise it")
        for name in ("prediction_coefficient", *(f"{name}_coefficient" for name in _REGULARISERS)):
            weight = getattr(self, name)
            require(0 <= weight < math.inf, f"rule.{name}", weight, "must be finite and 0 or more", "change it")

    @property
    def target_network_decay(self) -> float | None:
        """Return None: LPG has no target network."""
        return None

    @property
    def layout(self) -> ParameterLayout:
        """Return weights [inputs, outputs] and biases; the GRU's gates are reset, update, candidate."""
        m, units, hidden = self.predictions, self.units, self.embedding
        shapes = {
            "embedding.hidden.weight": (m, hidden),
            "embedding.hidden.bias": (hidden,),
            "embedding.last.weight": (hidden, 1),
            "embedding.last.bias": (1,),
            "gru.input.weight": (_INPUTS, 3 * units),
            "gru.input.bias": (3 * units,),
            "gru.state.weight": (units, 3 * units),
            "gru.state.bias": (3 * units,),
            "policy.weight": (units, 1),
            "policy.bias": (1,),
            "prediction.weight": (units, m),
            "prediction.bias": (m,),
        }
        return ParameterLayout(tuple(shapes), tuple(shapes.values()))

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Return β₀ to β₃ by the names of `regularisers`."""
        weights = (
            self.policy_entropy_coefficient,
            self.prediction_entropy_coefficient,
            self.policy_target_coefficient,
            self.prediction_target_coefficient,
        )
        return dict(zip(_REGULARISERS, weights, strict=True))

    def heads(self, num_actions: int) -> Mapping[str, tuple[int, ...]]:
        """Return policy and prediction, logits both."""
        return {"logits": (num_actions,), "prediction": (self.predictions,)}

    def init(self, generator: torch.Generator) -> Float[Tensor, "M"]:
        """Draw η: LeCun's normal for matrices, each gate of the state's an orthogonal one, zero biases."""
        parts = self.layout.unflatten(drawn(self.layout, generator))
        for gate in parts["gru.state.weight"].chunk(3, dim=1):
            gate.copy_(torch.nn.init.orthogonal_(torch.empty(gate.shape), generator=generator))
        return self.layout.flatten(parts)

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
        """Return "policy", π̂ [T, B], and "prediction", log ŷ [T, B, m]."""
        del target_outputs
        own = self.layout.unflatten(eta)
        probability = log_probabilities(autodiff.stop_gradient(outputs["logits"][:-1])).exp()
        prediction = log_probabilities(autodiff.stop_gradient(outputs["prediction"])).exp()
        hidden = torch.relu(prediction @ own["embedding.hidden.weight"] + own["embedding.hidden.bias"])
        embedded = (hidden @ own["embedding.last.weight"] + own["embedding.last.bias"]).squeeze(-1)
        is_end, dtype = rollout.is_terminal, embedded.dtype
        following = torch.where(is_end, 0.0, embedded[1:])
        taken = of_actions(probability, rollout.action[:-1])
        seen = (rollout.reward.to(dtype), is_end.to(dtype), taken, embedded[:-1], following)
        of_inputs = torch.stack(seen, -1) @ own["gru.input.weight"] + own["gru.input.bias"]
        features = torch.relu(backward_gru(of_inputs, is_end, own["gru.state.weight"], own["gru.state.bias"]))
        pi_hat = (features @ own["policy.weight"] + own["policy.bias"]).squeeze(-1)
        y_hat = log_probabilities(features @ own["prediction.weight"] + own["prediction.bias"])
        return {"policy": pi_hat, "prediction": y_hat}, state

    def loss(self, targets: Targets, outputs: AgentOutputs, rollout: LifetimeRollout) -> Float[Tensor, ""]:
        """Return mean_t [π̂_t log π(a_t|s_t) + α_y KL(y(s_t) ‖ ŷ_t)] over valid steps."""
        log_prob = of_actions(log_probabilities(outputs["logits"][:-1]), rollout.action[:-1])
        log_y = log_probabilities(outputs["prediction"][:-1])
        divergence = (log_y.exp() * (log_y - targets["prediction"])).sum(-1)
        return masked_mean(targets["policy"] * log_prob + self.prediction_coefficient * divergence, rollout.valid)

    def regularisers(
        self, targets: Targets, outputs: AgentOutputs, rollout: LifetimeRollout
    ) -> Mapping[str, Float[Tensor, ""]]:
        """Return -H(π), -H(y), mean π̂² and mean Σ ŷ²."""
        each = (
            -entropies(log_probabilities(outputs["logits"][:-1])),
            -entropies(log_probabilities(outputs["prediction"][:-1])),
            targets["policy"].square(),
            (2.0 * targets["prediction"]).exp().sum(-1),
        )
        return {name: masked_mean(x, rollout.valid) for name, x in zip(_REGULARISERS, each, strict=True)}


_REGULARISERS = ("policy_entropy", "prediction_entropy", "policy_target", "prediction_target")
