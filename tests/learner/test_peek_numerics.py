"""Whole updates of the peek schedule in float64, against the papers' equations written out slowly."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.learner.actor_critic import ActorCritic, LearnerState, build_actor_critic
from metagrad.learner.batch import minibatches
from metagrad.learner.config import LearnerConfig
from metagrad.learner.schedule import Lockstep, Peek
from metagrad.networks import Mlp, Network, build_network
from metagrad.optimizers import Sgd
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")
RATE = 0.5  # of SGD
MakeConfig = Callable[..., LearnerConfig]
Derivative = Callable[[Callable[[Tensor], Tensor], Tensor, float], Tensor]
MakeTrajectory = Callable[[int], Trajectory]


def build(config: LearnerConfig) -> ActorCritic:
    return build_actor_critic(config, build_network(Mlp(hidden=6), (5,), 3, True), (5,), 3)


def float64_state(algorithm: ActorCritic) -> LearnerState:
    state = algorithm.init(0, CPU)
    theta, eta = state.theta.double(), state.eta.double()
    optimizer = algorithm.problem.optimizer.init(theta)
    return state._replace(theta=theta, eta=eta, optimizer=optimizer, meta_optimizer=algorithm.meta_optimizer.init(eta))


def log_policy(network: Network, theta: Tensor, trajectory: Trajectory) -> Tensor:
    observation = trajectory.observation[:-1].flatten(0, 1)
    logits = network.apply(theta, observation, ("logits",))["logits"].unflatten(0, trajectory.action.shape)
    return torch.log_softmax(logits, -1)


def chosen(log_pi: Tensor, trajectory: Trajectory) -> Tensor:
    return log_pi.gather(-1, trajectory.action.unsqueeze(-1)).squeeze(-1)


def acted_by(network: Network, theta: Tensor, trajectory: Trajectory) -> Trajectory:
    """These steps as if the policy of θ had chosen them, in float64, some of them resets and one truncated."""
    fields = (x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in trajectory)
    own = Trajectory(*fields)
    is_truncated = torch.zeros_like(own.is_truncated)
    is_truncated[1, 0] = True
    own = own._replace(is_truncated=is_truncated, is_terminal=own.is_terminal & ~is_truncated)
    return own._replace(behaviour_log_prob=chosen(log_policy(network, theta, own), own).detach())


class Slow:
    """A2C's losses with V-trace; what a stop-gradient holds is computed at parameters of its own."""

    def __init__(self, algorithm: ActorCritic, ratio_clip: float | None):
        self.network, self.is_centred = algorithm.network, ratio_clip is None
        self.ratio_clip = math.inf if ratio_clip is None else ratio_clip
        self.is_lvc = algorithm.meta.surrogate == "lvc"

    def values(self, theta: Tensor, frozen: Tensor, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """V and V', [T+1, B]; the features of V' are those of `frozen`."""
        own, held = self.network.layout.unflatten(theta), self.network.layout.unflatten(frozen)
        outer = {name: own[name] if name.startswith("outer_value") else x for name, x in held.items()}
        places = ((theta, "value"), (self.network.layout.flatten(outer), "outer_value"))
        observation = trajectory.observation.flatten(0, 1)
        heads: list[tuple[Tensor, Any]] = list(places)
        first, second = (
            self.network.apply(x, observation, (head,))[head].unflatten(0, trajectory.observation.shape[:2])
            for x, head in heads
        )
        return first, second

    def vtrace(
        self, theta: Tensor, value: Tensor, trajectory: Trajectory, gamma: Any, lambda_: float, clip: float
    ) -> tuple[Tensor, Tensor]:
        """vₛ = V(xₛ) + Σₜ γᵗ⁻ˢ (Π cᵢ) δₜ and ρₛ (rₛ + γ v̄ₛ₊₁ - V(xₛ)), one environment and one step at a time."""
        ratio = torch.exp(
            chosen(log_policy(self.network, theta, trajectory), trajectory) - trajectory.behaviour_log_prob
        )
        steps, batch = trajectory.action.shape
        targets, advantages = [], []
        for b in range(batch):
            pi_mu = [ratio[t, b] if trajectory.valid[t, b] else torch.tensor(1.0).double() for t in range(steps)]
            clipped = [torch.clamp(x, max=clip) for x in pi_mu]
            goes_on = [0.0 if trajectory.is_terminal[t, b] else 1.0 for t in range(steps)]
            ends = [bool(trajectory.is_terminal[t, b] or trajectory.is_truncated[t, b]) for t in range(steps)]
            delta = [
                clipped[t] * (trajectory.reward[t, b] + gamma * goes_on[t] * value[t + 1, b] - value[t, b])
                for t in range(steps)
            ]
            v = []
            for s in range(steps):
                total, weight = value[s, b], 1.0
                for t in range(s, steps):
                    total = total + weight * delta[t]
                    if ends[t]:
                        break
                    weight = weight * gamma * lambda_ * clipped[t]
                v.append(total)
            targets.append(torch.stack(v))
            row = []
            for s in range(steps):
                beyond = value[s + 1, b]
                if s + 1 < steps and not ends[s]:
                    beyond = (1 - lambda_) * beyond + lambda_ * v[s + 1]
                row.append(clipped[s] * (trajectory.reward[s, b] + gamma * goes_on[s] * beyond - value[s, b]))
            advantages.append(torch.stack(row))
        return torch.stack(targets, 1), torch.stack(advantages, 1)

    def inner_gradient(self, theta: Tensor, frozen: Tensor, eta: Tensor, trajectory: Trajectory) -> Tensor:
        """∇θ mean[-A s(log π) + ½ (v - V)² - c H(π) + ½ (v' - V')²], c_v = ½ as configured."""
        gamma, entropy_coefficient = torch.sigmoid(eta)
        x = theta.detach().requires_grad_()
        held, outer_held = (y.detach() for y in self.values(frozen, frozen, trajectory))
        target, advantage = self.vtrace(frozen, held, trajectory, gamma, 0.9, self.ratio_clip)
        outer_target, _ = self.vtrace(frozen, outer_held, trajectory, 0.99, 0.95, 1.0)
        if self.is_centred:
            log_ratio = chosen(log_policy(self.network, frozen, trajectory), trajectory) - trajectory.behaviour_log_prob
            ratio, valid = log_ratio.exp(), trajectory.valid
            advantage = advantage - ratio * advantage[valid].sum() / ratio[valid].sum()
        value, outer_value = self.values(x, frozen, trajectory)
        log_pi = log_policy(self.network, x, trajectory)
        factor = chosen(log_pi, trajectory)
        if self.is_lvc:
            factor = (factor - chosen(log_policy(self.network, frozen, trajectory), trajectory).detach()).exp()
        rows = -advantage.detach() * factor + 0.5 * (target.detach() - value[:-1]) ** 2
        rows = rows + entropy_coefficient * (log_pi.exp() * log_pi).sum(-1)
        rows = rows + 0.5 * (outer_target.detach() - outer_value[:-1]) ** 2
        return torch.autograd.grad(rows[trajectory.valid].mean(), x)[0]

    def outer_loss(self, theta: Tensor, frozen: Tensor, trajectory: Trajectory) -> Tensor:
        """-mean[A' log π], A' by the outer critic under γ' = .99, λ' = .95."""
        _, outer_held = self.values(frozen, frozen, trajectory)
        _, advantage = self.vtrace(frozen, outer_held, trajectory, 0.99, 0.95, 1.0)
        return -(advantage * chosen(log_policy(self.network, theta, trajectory), trajectory))[trajectory.valid].mean()


@pytest.mark.parametrize(
    ("n", "estimator", "surrogate", "product", "ratio_clip", "reuse", "parts"),
    [
        (1, "n-step", "ad", "recompute", 1.0, 1, 1),
        (2, "n-step", "lvc", "retain", None, 1, 1),
        (3, "mix", "lvc", "retain", 1.2, 1, 2),
        (2, "n-step", "lvc", "recompute", 1.2, 3, 1),
    ],
)
def test_an_update_on_stale_batches_is_vtraces(
    config: MakeConfig,
    trajectory: MakeTrajectory,
    derivative: Derivative,
    fake_actors: Any,
    n: int,
    estimator: str,
    surrogate: str,
    product: str,
    ratio_clip: float | None,
    reuse: int,
    parts: int,
) -> None:
    """Batch k is of a policy of its own. The third update uses batches 2 … 2 + n, whatever the first two did.

    A batch of which K updates are made has moved θ by K - 1 plain ones before the look-ahead begins, whose updates see
    a minibatch each.
    """
    learner = config(n=n, estimator=estimator, surrogate=surrogate, product=product)
    losses = learner.meta_parameters.streamed(ratio_clip)
    learner = replace(
        learner, optimizer=Sgd(learning_rate=RATE), meta_parameters=losses, reuse=reuse, minibatches=parts
    )
    algorithm = build(learner)
    state = float64_state(algorithm)
    batches = [
        acted_by(
            algorithm.network,
            3.0 * algorithm.network.init(torch.Generator().manual_seed(100 + k)).double(),
            trajectory(k),
        )
        for k in range(3 + n)
    ]
    stream = iter(batches)
    actors = fake_actors(lambda published, _: [next(stream)._replace(policy_version=published.version)])
    peek = Peek(actors, CPU, n + 1, max_lag=n + 1, version=0)
    for _ in range(2):
        state, _ = algorithm.update(state, peek.sample)
    new, metrics = algorithm.update(state, peek.sample)

    slow, window = Slow(algorithm, ratio_clip), batches[2:]
    start = state.theta
    *plain, last = minibatches(window[0], reuse, parts, state.update)
    for part in plain:
        start = start - RATE * slow.inner_gradient(start, start, state.eta, part)
    ahead = [next(minibatches(window[j - 1], 1, parts, state.update + j)) for j in range(2, n + 1)]
    inner = [last, *ahead]
    ratios = torch.cat(
        [
            (chosen(log_policy(algorithm.network, start, x), x) - x.behaviour_log_prob).exp()[x.valid]
            for x in [*inner, window[n]]
        ]
    )
    assert ratios.min() < 0.85
    assert ratios.max() > 1.2, "ratios on both sides of the clips"
    first = ratios[: int(inner[0].valid.sum())]
    share = (first.sum() ** 2 / (len(first) * (first**2).sum())).item()
    assert metrics.scalars["policy/effective_sample_size"] == pytest.approx(share, rel=1e-9)
    assert share < 0.995

    def unrolled(eta: Tensor, bases: list[Tensor]) -> list[Tensor]:
        """θ₀…θₙ under η, constants as at `bases` or, beyond them, as at θ itself."""
        thetas = [start]
        for i in range(n):
            gradient = slow.inner_gradient(thetas[i], bases[i] if bases else thetas[i], eta, inner[i])
            thetas.append(thetas[i] - RATE * gradient)
        return thetas

    path = unrolled(state.eta, [])
    kappa = 1 - 1 / n
    weights = [kappa ** (i - 1) * (1 - kappa) / (1 - kappa**n) for i in range(1, n + 1)]
    weights = weights if estimator == "mix" else [0.0] * (n - 1) + [1.0]
    assert math.isclose(sum(weights), 1.0)

    def objective(eta: Tensor) -> Tensor:
        thetas = unrolled(eta, path)
        losses = [slow.outer_loss(thetas[i], path[i], window[i]) for i in range(1, n + 1)]
        return sum((w * loss for w, loss in zip(weights, losses, strict=True)), torch.zeros(()).double())

    torch.testing.assert_close(new.theta, path[1], rtol=1e-11, atol=1e-13)
    assert (new.update, new.version) == (3 * reuse * parts, 3 * (n + 1))
    expected = derivative(objective, state.eta, 1e-3)
    assert expected.abs().min() > 1e-7
    found = torch.tensor(metrics.meta_gradient, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0.0)
    assert metrics.scalars["loss/outer"] == pytest.approx(objective(state.eta).item(), rel=1e-10)
    assert peek.lag == (min(2, n),), (
        "a batch of the first window is of version 0, the later ones are as old as it is long"
    )


@pytest.mark.parametrize(("uses", "parts"), [(3, 1), (2, 2), (1, 3)])
def test_in_lockstep_a_batch_that_is_used_again_is_corrected_for(
    config: MakeConfig, trajectory: MakeTrajectory, fake_actors: Any, uses: int, parts: int
) -> None:
    """Two batches of the policy's own, several updates each, of all columns or minibatches, without a look-ahead."""
    learner, clip, each = config(n=0), 1.2, uses * parts
    losses = learner.meta_parameters.streamed(clip)
    learner = replace(learner, optimizer=Sgd(learning_rate=RATE), meta_parameters=losses)
    algorithm = build(replace(learner, reuse=uses, minibatches=parts))
    state, asked = float64_state(algorithm), []

    def own(published: WeightSnapshot, step: int) -> list[Trajectory]:
        asked.append((published.version, step))
        batch = acted_by(algorithm.network, published.theta, trajectory(published.version))
        return [batch._replace(policy_version=published.version)]

    slow, expected, gaps = Slow(algorithm, clip), state.theta, []
    for k in range(2):
        batch = acted_by(algorithm.network, expected, trajectory(k))
        for part in minibatches(batch, uses, parts, k * each):
            gap = (chosen(log_policy(algorithm.network, expected, part), part) - part.behaviour_log_prob).abs()
            gaps.append(gap[part.valid].mean().item())
            expected = expected - RATE * slow.inner_gradient(expected, expected, state.eta, part)
    schedule = Lockstep(fake_actors(own), CPU)
    for _ in range(2):
        state, metrics = algorithm.update(state, schedule.sample)
    torch.testing.assert_close(state.theta, expected, rtol=1e-11, atol=1e-13)
    assert asked == [(0, 0), (1, 0)], "one rollout for all updates"
    assert (state.update, state.version) == (2 * each, 2)
    gap = metrics.scalars["policy/log_prob_gap_nats"]
    assert gap == pytest.approx(gaps[-1], rel=1e-9), "shown are the last update's"
    assert gap > 1e-3


@pytest.mark.parametrize("critic", ["outer", "inner"])
@pytest.mark.parametrize("surrogate", ["ad", "lvc"])
def test_on_policy_the_losses_and_the_meta_gradient_are_a2cs(
    config: MakeConfig, trajectory: MakeTrajectory, surrogate: str, critic: Any
) -> None:
    learner = config(n=2, surrogate=surrogate)
    learner = replace(learner, outer=replace(learner.outer, critic=critic, is_advantage_normalised=critic == "inner"))
    network = build_network(Mlp(hidden=6), (5,), 3, critic == "outer")
    plain, streaming = (
        build_actor_critic(x, network, (5,), 3)
        for x in (learner, replace(learner, meta_parameters=learner.meta_parameters.streamed(1.0)))
    )
    state = float64_state(plain)

    def fresh(snapshot: WeightSnapshot, step: int) -> Trajectory:
        """A policy's own steps, looked ahead or not."""
        return acted_by(network, snapshot.theta, trajectory(step))

    def exact(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    own = fresh(state.snapshot(), 0)
    exact(streaming.problem.loss(state.theta, state.eta, own)[0], plain.problem.loss(state.theta, state.eta, own)[0])
    for x, y in zip(
        *(algorithm.outer_loss(state.theta, state.eta, own) for algorithm in (streaming, plain)), strict=True
    ):
        exact(x, y)
    expected = plain.estimate_meta_gradient(state, fresh)
    assert expected.abs().min() > 1e-8
    torch.testing.assert_close(streaming.estimate_meta_gradient(state, fresh), expected, rtol=1e-10, atol=0.0)
