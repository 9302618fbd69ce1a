"""The look-ahead of one meta-update: n inner updates, the outer loss or a bootstrapped target, one adjoint pass.

Where trajectories come from is the caller's: `sample(snapshot, j)` returns T steps of all environments under exactly
that snapshot, j = 0 for a real rollout and j ≥ 1 for those at looked-ahead parameters.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from metagrad.bootstrap import BootstrapTarget, LastUpdate, bootstrap_target, matching_loss
from metagrad.learner.agent import Agent
from metagrad.learner.state import LearnerState
from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.optimizers import OptimizerState
from metagrad.tape import Tape, recorded
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.unroll import InnerUpdate, inner_update

Sample = Callable[[WeightSnapshot, int], Trajectory]


class Clock:
    """Seconds spent in each phase of an update."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        """What has passed since the last call belongs to this phase."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._since
        self._since = now


class LookAhead(NamedTuple):
    """What n inner updates and their outer losses leave behind."""

    first: InnerUpdate
    last: InnerUpdate
    tape: Tape
    outer_gradients: list[Float[Tensor, "P"] | None]  # wᵢ ∇L'(θᵢ), or of the matching loss
    metrics: dict[str, Tensor]  # scalars by name
    last_batch: Trajectory  # sampled at θₙ
    version: int  # of the last snapshot that was published
    target_optimizer: OptimizerState  # of the last update of a bootstrapped target


def look_ahead(agent: Agent, state: LearnerState, sample: Sample, clock: Clock) -> LookAhead:
    """θ₀ → … → θₙ with outer gradients where a weight asks for them."""
    is_sequential = agent.meta.strategy == "sequential"
    keep_graph = agent.meta.product == "retain" and state.eta.numel() > 0
    theta, optimizer = state.theta, state.optimizer
    batch = state.carry if state.carry is not None else sample(state.snapshot(), 0)
    clock.lap("sample")
    first: InnerUpdate | None = None
    tape: Tape = ()
    outer_gradients: list[Tensor | None] = []
    outer_loss = outer_advantage = theta.new_zeros(())
    for j, weight in enumerate(agent.weights, start=1):
        update = inner_update(agent.problem, theta, optimizer, state.eta, batch, keep_graph)
        theta, optimizer = update.theta, update.state
        first, tape = first or update, recorded(tape, update.step)
        clock.lap("inner")
        batch = sample(WeightSnapshot(state.version + j, theta, state.eta), 0 if is_sequential else j)
        clock.lap("sample")
        if not weight or agent.meta.bootstrap.updates:
            outer_gradients.append(None)
            continue
        outer = outer_gradient(lambda x, trajectory: agent.outer_loss(x, state.eta, trajectory), theta, batch)
        outer_gradients.append(weight * outer.gradient)
        outer_loss = outer_loss + weight * outer.loss
        outer_advantage = outer_advantage + weight * outer.metrics
        clock.lap("outer")
    metrics = {"loss/outer": outer_loss, "advantage/outer_mean": outer_advantage}
    assert first is not None, "n is at least 1"
    version = state.version + len(tape)
    ahead = LookAhead(first, update, tape, outer_gradients, metrics, batch, version, state.target_optimizer)
    return _bootstrapped(agent, state, ahead, sample, clock) if agent.meta.bootstrap.updates else ahead


def _bootstrapped(agent: Agent, state: LearnerState, ahead: LookAhead, sample: Sample, clock: Clock) -> LookAhead:
    """The same with the matching loss for an outer loss: a target from θₙ on, and a batch sampled by its policy."""
    bootstrap, n = agent.meta.bootstrap, len(ahead.tape)
    theta = ahead.last.theta

    def sampled(x: Tensor, j: int) -> Trajectory:
        if j == 0:
            return ahead.last_batch
        clock.lap("outer")
        batch = sample(WeightSnapshot(ahead.version + j, x, state.eta), n + j)
        clock.lap("sample")
        return batch

    target: BootstrapTarget = bootstrap_target(
        agent.problem,
        lambda x, trajectory: agent.outer_loss(x, state.eta, trajectory),
        theta,
        ahead.last.state,
        state.eta,
        bootstrap.updates,
        sampled,
        LastUpdate(agent.problem.optimizer, state.target_optimizer),
    )
    batch = sampled(target.theta, bootstrap.updates)
    network = agent.inner_network(state.eta)
    matched = outer_gradient(
        lambda x, trajectory: matching_loss(network, x, target.theta, trajectory, bootstrap.matching),
        theta,
        batch,
    )
    clock.lap("outer")
    return ahead._replace(
        outer_gradients=[*ahead.outer_gradients[:-1], matched.gradient],
        metrics={
            "loss/outer": target.outer_loss,
            "advantage/outer_mean": target.metrics,
            "loss/matching": matched.loss,
        },
        version=ahead.version + bootstrap.updates,
        target_optimizer=target.state,
    )


def eta_gradient(agent: Agent, ahead: LookAhead) -> Float[Tensor, "M"]:
    """∂J/∂η by one adjoint pass over the look-ahead, whose retained graphs it uses up."""
    meta = agent.meta
    constant_state = 1 if meta.is_kept_state_constant else None
    return meta_gradient(
        agent.problem,
        ahead.tape,
        ahead.outer_gradients,
        meta.product,
        trace=meta.mu,
        constant_state=constant_state,
    ).eta


def estimate_meta_gradient(agent: Agent, state: LearnerState, sample: Sample) -> Float[Tensor, "M"]:
    """One sample of ∂J/∂η at a state, before clipping; nothing is updated."""
    return eta_gradient(agent, look_ahead(agent, state, sample, Clock()))
