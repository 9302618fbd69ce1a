"""The learner's state: all that changes while a run goes on, and all that a checkpoint of it holds."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.learner.agent import Agent
from metagrad.learner.plain_data import is_finite, is_like, is_trajectory
from metagrad.meta_parameters import init_eta
from metagrad.optimizers import OptimizerState
from metagrad.types import Trajectory, WeightSnapshot


class LearnerState(NamedTuple):
    """State in, state out: nothing here is changed in place."""

    update: int  # real inner updates done
    version: int  # version of the next published snapshot
    theta: Float[Tensor, "P"]
    optimizer: OptimizerState
    eta: Float[Tensor, "M"]
    meta_optimizer: OptimizerState
    target_optimizer: OptimizerState  # of the last update of a bootstrapped target: it goes on from target to target
    carry: Trajectory | None  # sequential: the outer batch, which is the next window's first inner batch

    def snapshot(self) -> WeightSnapshot:
        """What the actors are told."""
        return WeightSnapshot(self.version, self.theta, self.eta)


def init_state(agent: Agent, seed: int, device: torch.device) -> LearnerState:
    """Fresh state; θ and η are drawn on the CPU, so they do not depend on the device."""
    generator = torch.Generator().manual_seed(seed)
    theta = agent.network.init(generator).to(device)
    eta = init_eta(agent.declaration, generator=generator).to(device)
    return LearnerState(
        update=0,
        version=0,
        theta=theta,
        optimizer=agent.problem.optimizer.init(theta),
        eta=eta,
        meta_optimizer=agent.meta_optimizer.init(eta),
        target_optimizer=agent.problem.optimizer.init(theta[: theta.numel() if agent.meta.bootstrap.updates else 0]),
        carry=None,
    )


def to_tree(state: LearnerState) -> dict[str, Any]:
    """Plain dictionaries, lists, numbers and tensors: what a checkpoint may hold."""
    tree: dict[str, Any] = state._asdict()
    for name in ("optimizer", "meta_optimizer", "target_optimizer"):
        tree[name] = {"count": tree[name].count, "moments": list(tree[name].moments)}
    tree["carry"] = None if state.carry is None else state.carry._asdict()
    return tree


def misfit(tree: Any, agent: Agent) -> str | None:
    """Name of the first entry of a tree that is not as `to_tree` gives it for this agent; None: fits."""
    expected = to_tree(init_state(agent, 0, torch.device("cpu")))
    for name, entry in expected.items():
        if not isinstance(tree, dict) or name not in tree:
            return name
        found = tree[name]
        fits = (found is None or is_trajectory(found)) if name == "carry" else is_like(found, entry)
        if not fits or (name in ("theta", "eta") and not is_finite(found)):
            return name
    return None


def from_tree(tree: dict[str, Any], device: torch.device) -> LearnerState:
    """Inverse of `to_tree`, on `device`."""

    def move(x: Any) -> Any:
        return x.to(device) if isinstance(x, Tensor) else x

    def optimizer(x: dict[str, Any]) -> OptimizerState:
        return OptimizerState(x["count"], tuple(move(m) for m in x["moments"]))

    carry = tree["carry"]
    return LearnerState(
        update=tree["update"],
        version=tree["version"],
        theta=move(tree["theta"]),
        optimizer=optimizer(tree["optimizer"]),
        eta=move(tree["eta"]),
        meta_optimizer=optimizer(tree["meta_optimizer"]),
        target_optimizer=optimizer(tree["target_optimizer"]),
        carry=None if carry is None else Trajectory(**{name: move(x) for name, x in carry.items()}),
    )
