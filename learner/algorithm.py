"""What a training loop sees of an algorithm, and the actor-critic with meta-gradients as one of them."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.learner.agent import Agent
from metagrad.learner.lookahead import Sample
from metagrad.learner.state import LearnerState, from_tree, init_state, misfit, to_tree
from metagrad.learner.step import UpdateMetrics, meta_update
from metagrad.meta_parameters import learnt_names, shown
from metagrad.networks import Network
from metagrad.types import Trajectory


@runtime_checkable
class State(Protocol):
    """What the loop reads of a state; all else is the algorithm's."""

    @property
    def update(self) -> int: ...  # real updates done
    @property
    def theta(self) -> Float[Tensor, "P"]: ...  # what is evaluated
    @property
    def carry(self) -> Trajectory | None: ...  # a batch that was sampled and waits to be used


S = TypeVar("S", bound=State)


@runtime_checkable
class Algorithm(Protocol[S]):
    """One update after another, state in, state out; where rollouts come from is the loop's."""

    @property
    def network(self) -> Network:
        """What actors act with, under the θ of the snapshots that `update` asks rollouts for."""
        ...

    def init(self, seed: int, device: torch.device) -> S:
        """A fresh state."""
        ...

    def update(self, state: S, sample: Sample) -> tuple[S, UpdateMetrics]:
        """The next state and the scalars of this update."""
        ...

    def shown(self, state: S) -> dict[str, float]:
        """Present values that belong into the summary."""
        ...

    def learnt(self, state: S) -> dict[str, float]:
        """Those of them that move, for the progress line."""
        ...

    def to_tree(self, state: S) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        ...

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> S:
        """Inverse of `to_tree`."""
        ...

    def misfit(self, tree: Any) -> str | None:
        """Name of the first entry of a tree that is not as `to_tree` gives it; None: fits."""
        ...


@dataclass(frozen=True, slots=True)
class MetaGradientActorCritic:
    """Actor-critic whose hyper-parameters are tuned by meta-gradients."""

    agent: Agent

    @property
    def network(self) -> Network:
        return self.agent.network

    def init(self, seed: int, device: torch.device) -> LearnerState:
        return init_state(self.agent, seed, device)

    def update(self, state: LearnerState, sample: Sample) -> tuple[LearnerState, UpdateMetrics]:
        return meta_update(self.agent, state, sample)

    def shown(self, state: LearnerState) -> dict[str, float]:
        return {name: x.item() for name, x in shown(self.agent.declaration, state.eta).items()}

    def learnt(self, state: LearnerState) -> dict[str, float]:
        values, learnt = self.shown(state), learnt_names(self.agent.declaration)
        return {name: value for name, value in values.items() if name in learnt}

    def to_tree(self, state: LearnerState) -> dict[str, Any]:
        return to_tree(state)

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> LearnerState:
        return from_tree(tree, device)

    def misfit(self, tree: Any) -> str | None:
        return misfit(tree, self.agent)
