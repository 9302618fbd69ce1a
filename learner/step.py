"""One meta-update: real inner update, virtual updates, outer losses, adjoint pass, new η. State in, state out.

Where trajectories come from is the caller's: `sample(snapshot, j)` returns T steps of all environments under exactly
that snapshot, j = 0 for a real rollout and j = 1…n for those at looked-ahead parameters.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from learner.agent import Agent
from learner.state import LearnerState
from metagrad.losses import LossMetrics
from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.meta_parameters import hyperparameters, learnt_names
from metagrad.optimizers import OptimizerState
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.unroll import InnerUpdate, TapeStep, inner_update

Sample = Callable[[WeightSnapshot, int], Trajectory]


class NonFinite(FloatingPointError):
    """A loss, a parameter or a meta-parameter became NaN or infinite: the run ends, its last checkpoint stands."""


class UpdateMetrics(NamedTuple):
    """Scalars of one meta-update, by name ("area/quantity_unit")."""

    scalars: dict[str, float]
    meta_gradient: tuple[float, ...]  # components of ∂J/∂η, before clipping; empty where nothing is learnt


class _Clock:
    """Seconds spent in each phase of an update."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._since
        self._since = now


class _Unroll(NamedTuple):
    """What n inner updates leave behind."""

    updates: list[InnerUpdate]
    outer_gradients: list[Float[Tensor, "P"] | None]
    outer_loss: Tensor
    outer_advantage: Tensor
    last_batch: Trajectory  # sampled at θₙ


def meta_update(agent: Agent, state: LearnerState, sample: Sample) -> tuple[LearnerState, UpdateMetrics]:
    """n inner updates, one meta-gradient; which inner updates are kept is the strategy's.

    discard: θ ← θ₁, the other n-1 updates existed only to look ahead ("One Step at a Time", Figure 1).
    sequential: θ ← θₙ, and the outer batch is the next window's first inner batch (released Atari code of the
    gradient-bias paper, §G.3.2); all its frames are real.

    Raises:
        NonFinite: names the quantity and the update.
    """
    clock = _Clock()
    is_sequential = agent.meta.strategy == "sequential"
    if agent.meta.n == 0:
        batch = sample(state.snapshot(), 0)
        clock.lap("sample")
        first = inner_update(agent.problem, state.theta, state.optimizer, state.eta, batch, keep_graph=False)
        clock.lap("inner")
        new = _next_state(state, first, state.eta, state.meta_optimizer)
        return new, _metrics(agent, new, [first], None, None, clock)

    unroll = _unroll(agent, state, sample, clock)
    tape: list[TapeStep] = [update.step for update in unroll.updates]
    kept = unroll.updates[-1 if is_sequential else 0]
    eta, meta_optimizer, gradient = state.eta, state.meta_optimizer, None
    if eta.numel():
        meta = agent.meta
        gradient = meta_gradient(agent.problem, tape, unroll.outer_gradients, meta.product, trace=meta.mu).eta
        with torch.no_grad():
            eta, meta_optimizer = agent.meta_optimizer.update(gradient, meta_optimizer, eta, eta)
    clock.lap("meta")
    new = _next_state(state, kept, eta, meta_optimizer)
    # Versions state.version … + n are out; under `sequential` the last of them is the next window's first.
    new = new._replace(version=state.version + agent.meta.n + (0 if is_sequential else 1))
    if is_sequential:
        new = new._replace(carry=unroll.last_batch)
    return new, _metrics(agent, new, unroll.updates, unroll, gradient, clock)


def _unroll(agent: Agent, state: LearnerState, sample: Sample, clock: _Clock) -> _Unroll:
    """θ₀ → … → θₙ with outer gradients where a weight asks for them."""
    is_sequential = agent.meta.strategy == "sequential"
    keep_graph = agent.meta.product == "retain" and state.eta.numel() > 0
    theta, optimizer = state.theta, state.optimizer
    batch = state.carry if state.carry is not None else sample(state.snapshot(), 0)
    clock.lap("sample")
    updates: list[InnerUpdate] = []
    outer_gradients: list[Tensor | None] = []
    outer_loss = outer_advantage = theta.new_zeros(())
    for j, weight in enumerate(agent.weights, start=1):
        update = inner_update(agent.problem, theta, optimizer, state.eta, batch, keep_graph)
        theta, optimizer = update.theta, update.state
        updates.append(update)
        clock.lap("inner")
        batch = sample(WeightSnapshot(state.version + j, theta, state.eta), 0 if is_sequential else j)
        clock.lap("sample")
        if not weight:
            outer_gradients.append(None)
            continue
        outer = outer_gradient(agent.outer_loss, theta, batch)
        outer_gradients.append(weight * outer.gradient)
        outer_loss = outer_loss + weight * outer.loss
        outer_advantage = outer_advantage + weight * outer.metrics
        clock.lap("outer")
    return _Unroll(updates, outer_gradients, outer_loss, outer_advantage, batch)


def _next_state(state: LearnerState, kept: InnerUpdate, eta: Tensor, meta_optimizer: OptimizerState) -> LearnerState:
    """The state after `kept`, the last inner update that stays."""
    return LearnerState(
        update=kept.state.count,
        version=state.version + 1,
        theta=kept.theta,
        optimizer=kept.state,
        eta=eta,
        meta_optimizer=meta_optimizer,
        carry=None,
    )


def _metrics(
    agent: Agent,
    state: LearnerState,
    updates: list[InnerUpdate],
    unroll: _Unroll | None,
    gradient: Tensor | None,
    clock: _Clock,
) -> UpdateMetrics:
    """All scalars of the update in one transfer from the device, checked for NaN and infinity."""
    first = updates[0]
    inner: LossMetrics = first.metrics
    tensors: dict[str, Tensor] = {
        "loss/inner": first.loss,
        "loss/policy": inner.policy_loss,
        "loss/value": inner.value_loss,
        "loss/outer_value": inner.outer_value_loss,
        "policy/entropy_nats": inner.entropy,
        "advantage/inner_mean": inner.advantage,
        "norm/gradient": first.step.gradient.detach().norm(),
        "norm/theta": state.theta.norm(),
    }
    if unroll is not None:
        tensors |= {"loss/outer": unroll.outer_loss, "advantage/outer_mean": unroll.outer_advantage}
    # Last, so that a NaN is named where it began and not where it ended up.
    values = hyperparameters(agent.declaration, state.eta)
    tensors |= {f"eta/{name}": x for name, x in values.items()}
    names = [f"meta_gradient/{name}" for name in learnt_names(agent.declaration)] if gradient is not None else []
    flat = torch.cat([x.reshape(1) for x in tensors.values()] + ([gradient] if gradient is not None else []))
    scalars = dict(zip([*tensors, *names], flat.tolist(), strict=True))
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise NonFinite(f"{name} became {value} at update {state.update}")
    components = tuple(scalars[name] for name in names)
    if components:
        scalars["norm/meta_gradient"] = math.hypot(*components)
    clock.lap("metrics")
    scalars |= {f"time/{phase}_seconds": seconds for phase, seconds in clock.phases.items()}
    return UpdateMetrics(scalars, components)
