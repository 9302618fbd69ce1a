"""Makes an agent learn by a fixed, learnt update rule, from its newest rollouts or from some of the last ones.

The rule's weights η are constants of the run: they come from a file once, and then from checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from metagrad.distributions import Categorical
from metagrad.errors import require
from metagrad.learner.algorithm import Clock, Sample, UpdateMetrics, finite_scalars
from metagrad.learner.plain_data import is_finite, is_like
from metagrad.losses import masked_mean
from metagrad.networks import Head, Network
from metagrad.optimizers import FirstOrderOptimizer, OptimizerState
from metagrad.rule_network import RuleAgent
from metagrad.trees import map_tensors
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.update_rules import AgentOutputs, LifetimeRollout, UpdateRule

_POLICY: tuple[Head, ...] = ("logits",)
_REPLAY, _LAST_ACTION = 0x5265706C, 0x4C617374  # streams of random numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """Configures learning from earlier rollouts too; without it each update uses the newest rollouts, once."""

    capacity: int = 0
    """Rollouts of single environments that are kept, whole batches of them; 0: none."""
    batch: int = 0
    """Rollouts that an update draws from those that are kept, uniformly and with replacement. The first update waits
    until so many are there."""

    def __post_init__(self) -> None:
        capacity, batch = self.capacity, self.batch
        require(capacity >= 0, "replay.capacity", capacity, "must be 0 (none) or more", "raise it")
        rule, remedy = "draws from what replay.capacity keeps, which is nothing", "leave it out or set replay.capacity"
        require(capacity > 0 or batch == 0, "replay.batch", batch, rule, remedy)
        rule = f"must lie in [1, {capacity}], the rollouts that are kept"
        require(capacity == 0 or 1 <= batch <= capacity, "replay.batch", batch, rule, "change it")


class RuledState(NamedTuple):
    """Holds all that an agent under a rule is made of."""

    update: int
    version: int  # of the next snapshot
    theta: Float[Tensor, "P"]
    target_theta: Float[Tensor, "_"]  # θ⁻; empty where the rule has no target network
    optimizer: OptimizerState
    rule_state: tuple[Tensor, ...]
    eta: Float[Tensor, "M"]
    replay: tuple[LifetimeRollout, ...]  # oldest first, each of all environments

    @property
    def held_batches(self) -> int:
        """Return 0: a batch counts as used once it is kept."""
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruled:
    """Descends the loss that a rule sets for an agent; everything that an update needs, and no state."""

    network: Network
    agent: RuleAgent
    rule: UpdateRule
    load_eta: Callable[[], Float[Tensor, "M"]]
    optimizer: FirstOrderOptimizer
    replay: ReplayConfig
    seed: int
    example: LifetimeRollout
    """A batch of rollouts of this run, of whatever numbers, without memory."""

    def init(self, seed: int, device: torch.device) -> RuledState:
        """Return a fresh state; θ is drawn on the CPU, so it does not depend on the device."""
        return self._state(self.network.init(torch.Generator().manual_seed(seed)), self.load_eta(), device)

    def _state(self, theta: Tensor, eta: Tensor, device: torch.device) -> RuledState:
        theta = theta.to(device)
        has_target = self.rule.target_network_decay is not None
        return RuledState(
            update=0,
            version=0,
            theta=theta,
            target_theta=theta.clone() if has_target else theta[:0].clone(),
            optimizer=self.optimizer.init(theta),
            rule_state=tuple(x.to(device) for x in self.rule.initial_state()),
            eta=eta.to(device),
            replay=(),
        )

    def update(self, state: RuledState, sample: Sample) -> tuple[RuledState, UpdateMetrics]:
        """Sample, keep, draw and make one update.

        Raises:
            NonFinite: names the quantity and the update.
        """
        clock = Clock()
        trajectory, newest = self._sampled(state, sample)
        kept = (*state.replay, newest)
        while self.replay.capacity and _columns(kept) < self.replay.batch:
            trajectory, newest = self._sampled(state, sample)
            kept = (*kept, newest)
        clock.lap("sample")
        batch = newest
        if self.replay.capacity:
            while _columns(kept) > self.replay.capacity:
                kept = kept[1:]
            batch = _drawn(kept, self._random(_REPLAY, state.update).integers(_columns(kept), size=self.replay.batch))
        theta = state.theta.detach().requires_grad_()
        outputs = self._outputs(theta, batch)
        targets, rule_state = self._targets(state, batch, outputs)
        loss = self.rule.loss(targets, outputs, batch)
        (gradient,) = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            new_theta, optimizer = self.optimizer.update(gradient, state.optimizer, state.theta, state.eta)
            target_theta, decay = state.target_theta, self.rule.target_network_decay
            if decay is not None:
                target_theta = decay * target_theta + (1.0 - decay) * state.theta
        clock.lap("inner")
        new = RuledState(
            update=state.update + 1,
            version=state.version + 1,
            theta=new_theta,
            target_theta=target_theta,
            optimizer=optimizer,
            rule_state=rule_state,
            eta=state.eta,
            replay=kept if self.replay.capacity else (),
        )
        tensors = {"loss/inner": loss.detach(), **_policy_metrics(outputs, batch, newest, trajectory)}
        tensors |= {"norm/gradient": gradient.norm(), "norm/theta": new_theta.norm()}
        scalars = finite_scalars(tensors, new.update)
        clock.lap("metrics")
        return new, UpdateMetrics(scalars | clock.scalars(), ())

    def _sampled(self, state: RuledState, sample: Sample) -> tuple[Trajectory, LifetimeRollout]:
        """Roll θ out; its own logits are those that acted, and the last action, which nobody took, is drawn of them."""
        trajectory = sample(WeightSnapshot(state.version, state.theta, state.eta[:0]), 0)
        steps, batch = trajectory.reward.shape
        with torch.no_grad():
            seen = trajectory.observation.flatten(0, 1)
            logits = self.network.apply(state.theta, seen, _POLICY)["logits"].unflatten(0, (steps + 1, batch))
            noise = self._random(_LAST_ACTION, state.version).gumbel(size=logits[-1].shape)
            last = (logits[-1] + torch.from_numpy(noise).to(logits)).argmax(-1)
        rollout = LifetimeRollout(
            observation=trajectory.observation,
            action=torch.cat([trajectory.action, last.unsqueeze(0).to(trajectory.action.dtype)]),
            reward=trajectory.reward,
            is_terminal=trajectory.is_terminal | trajectory.is_truncated,
            valid=trajectory.valid,
            behaviour_logits=logits,
        )
        return trajectory, rollout

    def _random(self, purpose: int, count: int) -> np.random.Generator:
        """Return random numbers that depend on the run's seed and on a count alone, so that no state is kept."""
        return np.random.default_rng(np.random.SeedSequence((self.seed, purpose, count)))

    def _outputs(self, theta: Tensor, batch: LifetimeRollout) -> AgentOutputs:
        """Return all heads, [T+1, B, …]."""
        outputs = self.agent.apply(theta, batch.observation.flatten(0, 1))
        return {head: x.unflatten(0, batch.action.shape) for head, x in outputs.items()}

    @torch.no_grad()
    def _targets(
        self, state: RuledState, batch: LifetimeRollout, outputs: AgentOutputs
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Return what the rule wants; constants."""
        own = {head: x.detach() for head, x in outputs.items()}
        has_target = self.rule.target_network_decay is not None
        target_outputs = self._outputs(state.target_theta, batch) if has_target else None
        targets, rule_state = self.rule.targets(state.eta, state.rule_state, batch, own, target_outputs)
        return targets, tuple(rule_state)

    def shown(self, state: RuledState) -> dict[str, float]:
        """Return nothing: the run has no hyper-parameters that it tunes."""
        return {}

    def learnt(self, state: RuledState) -> dict[str, float]:
        """Return nothing."""
        return {}

    def to_tree(self, state: RuledState) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and tensors, which a checkpoint may hold."""
        return state._asdict() | {
            "optimizer": {"count": state.optimizer.updates, "moments": list(state.optimizer.moments)},
            "rule_state": list(state.rule_state),
            "replay": [rollout._asdict() for rollout in state.replay],
        }

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> RuledState:
        """Invert `to_tree`, on `device`."""
        tree = map_tensors(lambda x: x.to(device), tree)
        optimizer = OptimizerState(tree["optimizer"]["count"], tuple(tree["optimizer"]["moments"]))
        replay = tuple(LifetimeRollout(**rollout) for rollout in tree["replay"])
        own = {"optimizer": optimizer, "rule_state": tuple(tree["rule_state"]), "replay": replay}
        return RuledState(**(tree | own))

    def misfit(self, tree: Any) -> str | None:
        """Return the name of the first entry of a tree that is not as `to_tree` gives it here; None: the tree fits."""
        theta, eta = (torch.zeros(layout.size) for layout in (self.network.layout, self.rule.layout))
        expected = self.to_tree(self._state(theta, eta, torch.device("cpu")))
        for name, entry in expected.items():
            if not isinstance(tree, dict) or name not in tree:
                return name
            found = tree[name]
            fits = self._is_replay(found) if name == "replay" else is_like(found, entry)
            if not fits or (name in ("theta", "target_theta", "eta") and not is_finite(found)):
                return name
        return None

    def _is_replay(self, found: Any) -> bool:
        batches = self.replay.capacity // self.example.reward.shape[1]
        example = self.example._asdict()
        return isinstance(found, list) and len(found) <= batches and all(is_like(each, example) for each in found)


def _columns(kept: tuple[LifetimeRollout, ...]) -> int:
    return sum(rollout.reward.shape[1] for rollout in kept)


def _drawn(kept: tuple[LifetimeRollout, ...], columns: Int[np.ndarray, "N"]) -> LifetimeRollout:
    """Put rollouts of single environments side by side, by their places among all that are kept."""
    size = kept[0].reward.shape[1]

    def gathered(field: int) -> Shaped[Tensor, "..."]:
        return torch.stack([kept[column // size][field][:, column % size] for column in columns.tolist()], 1)

    return LifetimeRollout(*(gathered(field) for field in range(len(LifetimeRollout._fields))))


def _policy_metrics(
    outputs: AgentOutputs, batch: LifetimeRollout, newest: LifetimeRollout, trajectory: Trajectory
) -> dict[str, Tensor]:
    """Return the entropy of the policy in the batch, and how far the newest rollout's actors were from its logits."""
    with torch.no_grad():
        entropy = Categorical(outputs["logits"][:-1]).entropy()
        log_prob = Categorical(newest.behaviour_logits[:-1]).log_prob(trajectory.action)
        gap = (log_prob - trajectory.behaviour_log_prob).abs()
        return {
            "policy/entropy_nats": masked_mean(entropy, batch.valid),
            "policy/log_prob_gap_nats": masked_mean(gap, newest.valid),
        }
