"""One meta-update: real inner update, look-ahead, adjoint pass, new η. State in, state out."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.learner.agent import Agent
from metagrad.learner.lookahead import Clock, Sample, eta_gradient, look_ahead
from metagrad.learner.state import LearnerState
from metagrad.losses import LossMetrics
from metagrad.meta_parameters import MetaVector, learnt_slices, shown
from metagrad.unroll import InnerUpdate, inner_update

__all__ = ["NonFinite", "Sample", "UpdateMetrics", "meta_update"]


class NonFinite(FloatingPointError):
    """A loss, a parameter or a meta-parameter became NaN or infinite: the run ends, its last checkpoint stands."""


class UpdateMetrics(NamedTuple):
    """Scalars of one meta-update, by name ("area/quantity_unit")."""

    scalars: dict[str, float]
    meta_gradient: tuple[float, ...]  # of the learnt scalars, before clipping; empty where there are none


def meta_update(agent: Agent, state: LearnerState, sample: Sample) -> tuple[LearnerState, UpdateMetrics]:
    """n inner updates, one meta-gradient; which inner updates are kept is the strategy's.

    discard: θ ← θ₁, the other n-1 updates existed only to look ahead ("One Step at a Time", Figure 1).
    sequential: θ ← θₙ, and the batch at θₙ is the next window's first inner batch (released Atari code of the
    gradient-bias paper, §G.3.2); all frames up to it are real.

    Raises:
        NonFinite: names the quantity and the update.
    """
    clock = Clock()
    is_sequential = agent.meta.strategy == "sequential"
    if agent.meta.n == 0:
        batch = sample(state.snapshot(), 0)
        clock.lap("sample")
        first = inner_update(agent.problem, state.theta, state.optimizer, state.eta, batch, keep_graph=False)
        clock.lap("inner")
        new = _kept(state, first)._replace(version=state.version + 1)
        return new, _metrics(agent, new, first, {}, None, clock)

    ahead = look_ahead(agent, state, sample, clock)
    new = _kept(state, ahead.last if is_sequential else ahead.first)._replace(
        # Under `sequential` θₙ has been published and its batch sampled: it goes by the last version that is out.
        version=ahead.version + (0 if is_sequential else 1),
        carry=ahead.last_batch if is_sequential else None,
        target_optimizer=ahead.target_optimizer,
    )
    gradient = None
    if state.eta.numel():
        gradient = eta_gradient(agent, ahead)
        with torch.no_grad():
            eta, meta_optimizer = agent.meta_optimizer.update(gradient, state.meta_optimizer, state.eta, state.eta)
        new = new._replace(eta=eta, meta_optimizer=meta_optimizer)
    clock.lap("meta")
    return new, _metrics(agent, new, ahead.first, ahead.metrics, gradient, clock)


def _kept(state: LearnerState, update: InnerUpdate) -> LearnerState:
    """The state with θ and its optimizer after `update`, the last inner update that stays."""
    return state._replace(update=update.state.count, theta=update.theta, optimizer=update.state)


def _metrics(
    agent: Agent,
    state: LearnerState,
    first: InnerUpdate,
    outer: dict[str, Tensor],
    gradient: Tensor | None,
    clock: Clock,
) -> UpdateMetrics:
    """All scalars of the update in one transfer from the device, checked for NaN and infinity."""
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
    tensors |= outer
    components: dict[str, Tensor] = {}
    if gradient is not None:
        components = _components(agent, gradient)
        tensors |= {f"meta_gradient/{name}": x for name, x in components.items()}
        tensors["norm/meta_gradient"] = gradient.norm()
    # Last, so that a NaN is named where it began and not where it ended up.
    tensors |= {f"eta/{name}": x for name, x in shown(agent.declaration, state.eta).items()}
    flat = torch.cat([x.reshape(1) for x in tensors.values()])
    scalars = dict(zip(tensors, flat.tolist(), strict=True))
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise NonFinite(f"{name} became {value} at update {state.update}")
    clock.lap("metrics")
    scalars |= {f"time/{phase}_seconds": seconds for phase, seconds in clock.phases.items()}
    return UpdateMetrics(scalars, tuple(scalars[f"meta_gradient/{name}"] for name in components))


def _components(agent: Agent, gradient: Float[Tensor, "M"]) -> dict[str, Tensor]:
    """Of each learnt scalar; a vector counts in the norm alone."""
    slices = learnt_slices(agent.declaration)
    return {name: gradient[at] for name, at in slices.items() if not isinstance(agent.declaration[name], MetaVector)}
