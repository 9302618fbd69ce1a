"""Trains an update rule: its weights move along the mean of the meta-gradients of a population of agents.

θ is here what is trained, the rule's weights (η to the agents that learn under it). The meta-gradients come from
populations of agents, in place of rollouts.

Equation: g = Σ over populations and their agents of ∇_θ L'ₐ(θ) / number of agents; θ ← A(θ, g), A clipped Adam say.
Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms", Algorithm 1; Oh et al. (2025), "Discovering
state-of-the-art reinforcement learning algorithms", Methods, where each agent's own Adam normalises its meta-gradient
before the mean, which is the population's work.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.learner.algorithm import Clock, Sample, UpdateMetrics, fetched, finite_scalars
from metagrad.learner.plain_data import is_finite, is_like
from metagrad.optimizers import FirstOrderOptimizer, OptimizerState
from metagrad.trees import map_tensors
from metagrad.types import MetaGradients, WeightSnapshot
from metagrad.update_rules import UpdateRule


class RuleLearnerState(NamedTuple):
    """Holds the weights of the rule, what their optimizer remembers, and what was used so far."""

    update: int
    theta: Float[Tensor, "M"]  # the rule's weights
    optimizer: OptimizerState
    lifetimes: int  # of agents, that ended

    @property
    def held_batches(self) -> int:
        """Return 0: nothing waits for the next update."""
        return 0


@dataclass(frozen=True, slots=True)
class RuleLearner:
    """Makes meta-updates of a rule's weights."""

    rule: UpdateRule
    optimizer: FirstOrderOptimizer
    weights: Float[Tensor, "M"] | None = None
    """To begin with; None: the rule draws them."""
    network: None = None
    """No policy comes of it."""

    def init(self, seed: int, device: torch.device) -> RuleLearnerState:
        theta = self.rule.init(torch.Generator().manual_seed(seed)) if self.weights is None else self.weights.clone()
        theta = theta.to(device)
        return RuleLearnerState(0, theta, self.optimizer.init(theta), 0)

    def update(self, state: RuleLearnerState, sample: Sample) -> tuple[RuleLearnerState, UpdateMetrics]:
        """Ask all populations for meta-gradients at the present weights, and move along their mean.

        Raises:
            NonFinite: names the quantity and the update.
        """
        clock, nothing = Clock(), state.theta.new_zeros(0)
        brought = cast(MetaGradients, sample(WeightSnapshot(state.update, state.theta, nothing), 0))
        clock.lap("sample")
        gradient = brought.gradient.sum(0) / brought.agents.sum()
        theta, optimizer = self.optimizer.update(gradient, state.optimizer, state.theta, nothing)
        tensors = {"norm/meta_gradient": gradient.norm(), "norm/theta": theta.norm()}
        tensors |= {"lifetimes/ended": brought.lifetimes.sum(), "lifetimes/agents": brought.agents.sum()}
        scalars = finite_scalars(tensors, state.update + 1)
        lifetimes = state.lifetimes + int(scalars["lifetimes/ended"])
        new = RuleLearnerState(state.update + 1, theta, optimizer, lifetimes)
        means = {name: amount / count for name, (amount, count) in brought.facts.items() if count}
        clock.lap("update")
        return new, UpdateMetrics(scalars | {"lifetimes/ended": float(lifetimes)} | means | clock.scalars(), ())

    def shown(self, state: RuleLearnerState) -> dict[str, float]:
        """Return the norm of the weights, and how many lifetimes they have seen end."""
        return fetched({"weights_norm": state.theta.norm()}) | {"lifetimes_ended": float(state.lifetimes)}

    def learnt(self, state: RuleLearnerState) -> dict[str, float]:
        """Return the same."""
        return self.shown(state)

    def to_tree(self, state: RuleLearnerState) -> dict[str, Any]:
        return {
            "update": state.update,
            "theta": state.theta,
            "moments": list(state.optimizer.moments),
            "lifetimes": state.lifetimes,
        }

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> RuleLearnerState:
        moved = map_tensors(lambda x: x.to(device), tree)
        optimizer = OptimizerState(moved["update"], tuple(moved["moments"]))
        return RuleLearnerState(moved["update"], moved["theta"], optimizer, moved["lifetimes"])

    def misfit(self, tree: Any) -> str | None:
        for name, expected in self.to_tree(self.init(0, torch.device("cpu"))).items():
            found: Any = tree.get(name) if isinstance(tree, dict) else None
            if not is_like(found, expected) or (name == "theta" and not is_finite(found)):
                return name
        return None
