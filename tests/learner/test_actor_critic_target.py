"""Bootstrapped targets against the papers' equations written out slowly in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metagrad.learner import actor_critic
from metagrad.learner.actor_critic import ActorCritic, LearnerState
from metagrad.learner.algorithm import NonFinite
from metagrad.learner.checkpoint import load, save
from metagrad.learner.config import BootstrapConfig
from metagrad.meta_gradient import MetaGradient, meta_gradient
from metagrad.types import Trajectory, WeightSnapshot

MakeAlgorithm = Callable[..., ActorCritic]
Derivative = Callable[[Callable[[Tensor], Tensor], Tensor, float], Tensor]
CPU = torch.device("cpu")


class Moments(NamedTuple):
    """State of the slow Adam."""

    count: int
    first: Tensor
    second: Tensor


def adam(theta: Tensor, gradient: Tensor, state: Moments) -> tuple[Tensor, Moments]:
    """Kingma & Ba, Algorithm 1, with the step size and the clip of the tests' configuration."""
    gradient = gradient * (0.5 / (gradient.norm() + 1e-6)).clamp(max=1.0)
    count, first = state.count + 1, 0.9 * state.first + 0.1 * gradient
    second = 0.999 * state.second + 0.001 * gradient**2
    corrected = first / (1 - 0.9**count), second / (1 - 0.999**count)
    return theta - 0.01 * corrected[0] / (corrected[1].sqrt() + 1e-8), Moments(count, first, second)


class Heads(NamedTuple):
    """Outputs on all T + 1 observations."""

    log_pi: Tensor
    value: Tensor
    outer_value: Tensor


class Slow:
    """Losses of the tests' learner from the papers; what a stop-gradient holds is computed at parameters of its own."""

    def __init__(self, algorithm: ActorCritic):
        self.network = algorithm.network
        self.is_lvc = algorithm.meta.surrogate == "lvc"

    def heads(self, theta: Tensor, frozen: Tensor, trajectory: Trajectory) -> Heads:
        """The outer critic's features are those of `frozen`, since no derivative of its loss goes through them."""
        own, of_frozen = self.network.layout.unflatten(theta), self.network.layout.unflatten(frozen)
        outer = {name: own[name] if name.startswith("outer_value") else x for name, x in of_frozen.items()}

        def apply(parameters: Tensor, head: Any) -> Tensor:
            outputs = self.network.apply(parameters, trajectory.observation.flatten(0, 1), (head,))
            return outputs[head].unflatten(0, trajectory.observation.shape[:2])

        log_pi = torch.log_softmax(apply(theta, "logits"), -1)
        return Heads(log_pi, apply(theta, "value"), apply(self.network.layout.flatten(outer), "outer_value"))

    def returns(self, trajectory: Trajectory, value: Tensor, gamma: Any, lambda_: float) -> Tensor:
        """Gₜ = rₜ + γ ((1 - λ) Vₜ₊₁ + λ Gₜ₊₁), nothing beyond an end."""
        following, rows = value[-1], []
        for t in reversed(range(len(trajectory.reward))):
            beyond = (1 - lambda_) * value[t + 1] + lambda_ * following
            following = trajectory.reward[t] + gamma * torch.where(trajectory.is_terminal[t], 0.0, beyond)
            rows.append(following)
        return torch.stack(rows[::-1])

    def chosen(self, heads: Heads, trajectory: Trajectory) -> Tensor:
        return heads.log_pi[:-1].gather(-1, trajectory.action.unsqueeze(-1)).squeeze(-1)

    def inner_gradient(self, theta: Tensor, frozen: Tensor, eta: Tensor, trajectory: Trajectory) -> Tensor:
        """∇θ of the A2C loss, with its graph where η has one; its constants come from the parameters `frozen`."""
        x = theta if theta.requires_grad else theta.detach().requires_grad_()
        gamma, entropy_coefficient = torch.sigmoid(eta)
        heads, constant = self.heads(x, frozen, trajectory), self.heads(frozen, frozen, trajectory)
        target = self.returns(trajectory, constant.value, gamma, 0.9)
        outer_target = self.returns(trajectory, constant.outer_value, 0.99, 0.95)
        log_pi = self.chosen(heads, trajectory)
        factor = (log_pi - self.chosen(constant, trajectory)).exp() if self.is_lvc else log_pi
        entropy = -(heads.log_pi.exp() * heads.log_pi).sum(-1)[:-1]
        rows = -(target - constant.value[:-1]) * factor + 0.5 * (target - heads.value[:-1]) ** 2
        rows = rows - entropy_coefficient * entropy + 0.5 * (outer_target - heads.outer_value[:-1]) ** 2
        return torch.autograd.grad(rows[trajectory.valid].mean(), x, create_graph=eta.requires_grad)[0]

    def outer(self, theta: Tensor, trajectory: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """∇θ L', L' and the mean outer advantage."""
        x = theta.detach().requires_grad_()
        value = self.heads(theta, theta, trajectory).outer_value
        advantage = self.returns(trajectory, value, 0.99, 0.95) - value[:-1]
        log_pi = self.chosen(self.heads(x, theta, trajectory), trajectory)
        loss = -(advantage * log_pi)[trajectory.valid].mean()
        return torch.autograd.grad(loss, x)[0], loss.detach(), advantage[trajectory.valid].mean()

    def distance(self, theta: Tensor, target: Tensor, trajectory: Trajectory, config: BootstrapConfig) -> Tensor:
        """KL of the policies, Σ p (log p - log q), and the squared distance of the values, over the rows that count."""
        online, aim = (self.heads(x, x, trajectory) for x in (theta, target))
        p, q = (aim, online) if config.direction == "target||online" else (online, aim)
        kl = (p.log_pi.exp() * (p.log_pi - q.log_pi)).sum(-1)[:-1]
        values = (aim.value - online.value)[:-1] ** 2
        counts = trajectory.valid.clone()
        if config.states == "first":
            counts[1:] = False
        return (kl + config.value_coefficient * values)[counts].mean()


def in_float64(trajectory: Trajectory) -> Trajectory:
    return Trajectory(*(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in trajectory))


def float64_state(algorithm: ActorCritic) -> LearnerState:
    state = algorithm.init(0, CPU)
    theta, eta = state.theta.double(), state.eta.double()
    optimizer = algorithm.problem.optimizer.init(theta)
    return state._replace(
        theta=theta,
        eta=eta,
        optimizer=optimizer,
        meta_optimizer=algorithm.meta_optimizer.init(eta),
        target_optimizer=optimizer if algorithm.meta.bootstrap.updates else state.target_optimizer,
    )


@pytest.mark.parametrize(
    ("n", "updates", "strategy", "matching", "surrogate", "product"),
    [
        (1, 1, "discard", ("target||online", 0.0, "all"), "ad", "retain"),
        (1, 1, "sequential", ("online||target", 0.5, "first"), "lvc", "recompute"),
        (1, 2, "discard", ("online||target", 0.0, "first"), "lvc", "retain"),
        (1, 3, "sequential", ("target||online", 0.5, "all"), "ad", "recompute"),
        (2, 1, "discard", ("target||online", 0.5, "all"), "lvc", "recompute"),
        (2, 1, "sequential", ("online||target", 0.0, "all"), "ad", "retain"),
        (2, 2, "discard", ("online||target", 0.5, "all"), "ad", "retain"),
        (2, 2, "sequential", ("target||online", 0.0, "first"), "lvc", "recompute"),
    ],
)
@pytest.mark.thinned(3)
def test_a_bootstrapped_update_is_the_papers(
    derivative: Derivative,
    make_algorithm: MakeAlgorithm,
    sampler: Any,
    trajectory: Any,
    n: int,
    updates: int,
    strategy: str,
    matching: tuple[Any, float, Any],
    surrogate: str,
    product: str,
) -> None:
    """Debiasing paper, §2 and Figure 1b: θₙ should have come where L more updates lead, the last one on L'.

    The first L - 1 go on with the moments at θₙ, the last one has moments of its own (its released code).
    """
    direction, coefficient, states = matching
    bootstrap = BootstrapConfig(updates=updates, direction=direction, value_coefficient=coefficient, states=states)
    algorithm = make_algorithm(n=n, strategy=strategy, surrogate=surrogate, product=product, bootstrap=bootstrap)
    slow = Slow(algorithm)

    def sample(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        return in_float64(sampler(snapshot, lookahead_step))

    state = float64_state(algorithm)
    for _ in range(2):  # moments away from 0, where Adam's step would hardly depend on the gradient
        state, _ = algorithm.update(state, sample)
    new, metrics = algorithm.update(state, sample)

    # The sampler gives a trajectory by version; under `sequential` the first one is carried over.
    after = state.version + n
    batches = [in_float64(trajectory(version)) for version in range(state.version, after + updates + 1)]
    real = [batches[0] if state.carry is None else state.carry, *batches[1:n]]

    def unrolled(eta: Tensor, bases: list[Tensor]) -> tuple[list[Tensor], Moments]:
        """θ₀…θₙ under η, constants as at `bases` or, beyond them, as at θ itself; the moments at θₙ."""
        theta, moments = state.theta, Moments(state.optimizer.updates, *state.optimizer.moments)
        thetas = [theta]
        for i, batch in enumerate(real):
            gradient = slow.inner_gradient(theta, bases[i] if bases else theta, eta, batch)
            theta, moments = adam(theta, gradient, moments)
            thetas.append(theta)
        return thetas, moments

    path, moments = unrolled(state.eta, [])
    target = path[n]
    for batch in batches[n : n + updates - 1]:
        target, moments = adam(target, slow.inner_gradient(target, target, state.eta, batch), moments)
    gradient, outer_loss, advantage = slow.outer(target, batches[n + updates - 1])
    own = Moments(state.target_optimizer.updates, *state.target_optimizer.moments)
    target, target_moments = adam(target, gradient, own)

    def objective(eta: Tensor) -> Tensor:
        return slow.distance(unrolled(eta, path)[0][n], target, batches[n + updates], bootstrap)

    torch.testing.assert_close(sampler.thetas[-1], target, rtol=1e-9, atol=1e-12)
    expected = derivative(objective, state.eta, 1e-2)
    assert expected.abs().min() > 1e-9
    torch.testing.assert_close(torch.tensor(metrics.meta_gradient, dtype=torch.float64), expected, rtol=1e-5, atol=0.0)
    eta = state.eta.clone().requires_grad_()
    (whole_graph,) = torch.autograd.grad(objective(eta), eta)
    actual = algorithm.estimate_meta_gradient(state, sample)
    torch.testing.assert_close(actual, whole_graph, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(new.theta, path[1 if strategy == "discard" else n], rtol=1e-9, atol=1e-12)
    assert new.target_optimizer.updates == target_moments.count == 3
    torch.testing.assert_close(new.target_optimizer.moments, target_moments[1:], rtol=1e-8, atol=1e-14)
    for name, value in (
        ("loss/matching", objective(state.eta)),
        ("loss/outer", outer_loss),
        ("advantage/outer_mean", advantage),
    ):
        assert metrics.scalars[name] == pytest.approx(value.item(), rel=1e-8, abs=1e-14), name


def bootstrapped(make_algorithm: MakeAlgorithm, updates: int = 1, **meta: Any) -> ActorCritic:
    return make_algorithm(**meta, bootstrap=BootstrapConfig(updates=updates))


@pytest.mark.parametrize(("n", "updates"), [(1, 1), (1, 2), (2, 1), (2, 3)])
def test_a_target_asks_for_each_version_once_in_order(
    make_algorithm: MakeAlgorithm, sampler: Any, n: int, updates: int
) -> None:
    algorithm = bootstrapped(make_algorithm, updates, n=n)
    state = algorithm.init(0, CPU)
    for _ in range(3):
        state, _ = algorithm.update(state, sampler)
    versions, steps = zip(*sampler.calls, strict=True)
    assert versions == tuple(range(3 * (n + updates + 1)))
    assert steps == tuple(range(n + updates + 1)) * 3
    assert (state.update, state.version, state.carry) == (3, 3 * (n + updates + 1), None)
    assert torch.equal(sampler.thetas[n + updates + 1], sampler.thetas[1]), "the next real rollout is under θ₁"


@pytest.mark.parametrize(("n", "updates"), [(1, 1), (2, 2)])
def test_a_target_beyond_real_updates_is_looked_ahead_to_and_the_batch_before_it_carried(
    make_algorithm: MakeAlgorithm, sampler: Any, n: int, updates: int
) -> None:
    algorithm = bootstrapped(make_algorithm, updates, n=n, strategy="sequential")
    state = algorithm.init(0, CPU)
    for window in range(1, 4):
        state, _ = algorithm.update(state, sampler)
        at_last = sampler.calls[-1 - updates]
        assert state.carry is not None
        assert state.carry.policy_version == at_last[0]
        assert torch.equal(sampler.thetas[-1 - updates], state.theta), "sampled under the parameters that are kept"
        assert state.update == n * window
    versions, steps = zip(*sampler.calls, strict=True)
    assert versions == tuple(range(1 + 3 * (n + updates)))
    assert steps == (0, *((0,) * n + tuple(range(n + 1, n + updates + 1))) * 3)


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_the_targets_optimizer_goes_on_from_update_to_update_and_through_a_checkpoint(
    make_algorithm: MakeAlgorithm, sampler: Any, tmp_path: Path, strategy: str
) -> None:
    algorithm = bootstrapped(make_algorithm, 2, n=2, strategy=strategy)
    state = algorithm.init(0, CPU)
    assert state.target_optimizer.updates == 0
    for update in range(1, 3):
        before = state.target_optimizer
        state, _ = algorithm.update(state, sampler)
        assert state.target_optimizer.updates == update, "one update of each target is its own"
        assert not any(map(torch.equal, before.moments, state.target_optimizer.moments))
        assert not any(map(torch.equal, state.optimizer.moments, state.target_optimizer.moments))
    restored = algorithm.from_tree(load(save(tmp_path, 1, algorithm.to_tree(state), keep=1)), CPU)
    states = []
    for each in (state, restored):
        new, metrics = algorithm.update(each, sampler)
        states.append((new.target_optimizer, metrics.meta_gradient, metrics.scalars["loss/matching"]))
    (left, *scalars), (right, *others) = states
    assert (left.updates, scalars) == (right.updates, others)
    assert all(map(torch.equal, left.moments, right.moments))
    assert not any(x.requires_grad for x in left.moments)


def test_the_targets_moments_count(make_algorithm: MakeAlgorithm, sampler: Any) -> None:
    """A target from a fresh optimizer is another one: the state is used, not merely kept."""
    algorithm = bootstrapped(make_algorithm, 1, n=1)
    state, _ = algorithm.update(algorithm.init(0, CPU), sampler)
    fresh = state._replace(target_optimizer=algorithm.problem.optimizer.init(state.theta))
    gradients = [algorithm.update(each, sampler)[1].meta_gradient for each in (state, fresh)]
    assert gradients[0] != gradients[1]


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_without_a_target_its_optimizer_is_empty_and_there_is_no_distance(
    make_algorithm: MakeAlgorithm, sampler: Any, strategy: str
) -> None:
    algorithm = make_algorithm(n=2, strategy=strategy)
    state, metrics = algorithm.update(algorithm.init(0, CPU), sampler)
    assert state.target_optimizer.updates == 0
    assert [x.numel() for x in state.target_optimizer.moments] == [0, 0]
    assert "loss/matching" not in metrics.scalars


def test_with_nothing_learnt_a_target_changes_nothing(make_algorithm: MakeAlgorithm, sampler: Any) -> None:
    plain, target = make_algorithm(is_learnt=False, n=1), bootstrapped(make_algorithm, 1, n=1, is_learnt=False)
    states = [algorithm.update(algorithm.init(0, CPU), sampler)[0] for algorithm in (plain, target)]
    assert torch.equal(states[0].theta, states[1].theta)
    assert all(map(torch.equal, states[0].optimizer.moments, states[1].optimizer.moments))


def test_a_trace_decays_on_its_way_from_the_target(make_algorithm: MakeAlgorithm, sampler: Any) -> None:
    def components(n: int, **estimator: Any) -> Tensor:
        algorithm = bootstrapped(make_algorithm, 1, n=n, **estimator)
        return algorithm.estimate_meta_gradient(algorithm.init(0, CPU), sampler)

    torch.testing.assert_close(components(1, estimator="trace", mu=0.1), components(1), rtol=1e-5, atol=0.0)
    fast, slow = (components(3, estimator="trace", mu=mu) for mu in (0.1, 0.9))
    assert (fast - slow).norm() > 1e-3 * slow.norm()


@pytest.mark.parametrize(("step", "field", "name"), [(2, "reward", "loss/outer"), (3, "observation", "loss/matching")])
def test_what_is_not_finite_beyond_the_look_ahead_is_named(
    make_algorithm: MakeAlgorithm, sampler: Any, step: int, field: str, name: str
) -> None:
    algorithm = bootstrapped(make_algorithm, 1, n=2)

    def broken(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        batch: Trajectory = sampler(snapshot, lookahead_step)
        is_broken = lookahead_step == step
        return batch._replace(**{field: torch.full_like(getattr(batch, field), torch.nan)}) if is_broken else batch

    with pytest.raises(NonFinite, match=rf"^{name} became nan at update 1$"):
        algorithm.update(algorithm.init(0, CPU), broken)


@pytest.mark.parametrize("updates", [0, 1])
def test_an_estimate_is_the_gradient_of_an_update_and_updates_nothing(
    make_algorithm: MakeAlgorithm, sampler: Any, updates: int
) -> None:
    algorithm = bootstrapped(make_algorithm, updates, n=2)
    state, _ = algorithm.update(algorithm.init(0, CPU), sampler)
    copies = [x.clone() for x in (state.theta, state.eta, *state.optimizer.moments, *state.target_optimizer.moments)]
    estimate = algorithm.estimate_meta_gradient(state, sampler)
    after = (state.theta, state.eta, *state.optimizer.moments, *state.target_optimizer.moments)
    assert all(map(torch.equal, copies, after))
    assert tuple(estimate.tolist()) == algorithm.update(state, sampler)[1].meta_gradient
    calls = sampler.calls[-2 * (3 + updates) :]
    assert calls[: 3 + updates] == calls[3 + updates :], "the versions that were asked for are free again"


def test_outer_gradients_are_those_that_have_a_weight(
    make_algorithm: MakeAlgorithm, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, list[bool]]] = []

    def recorded(problem: Any, tape: Any, outer_gradients: Any, *options: Any, **named: Any) -> MetaGradient:
        given.append((len(tape), [gradient is not None for gradient in outer_gradients]))
        return meta_gradient(problem, tape, outer_gradients, *options, **named)

    monkeypatch.setattr(actor_critic, "meta_gradient", recorded)

    def has_gradient(**meta: Any) -> list[bool]:
        algorithm = make_algorithm(n=3, **meta)
        new, _ = algorithm.update(algorithm.init(0, CPU), sampler)
        length, which = given.pop()
        updates = algorithm.meta.bootstrap.updates
        assert (length, new.version, sampler.calls[-1 - updates]) == (3, 3 + updates + 1, (3, 3))
        return which

    assert has_gradient() == [False, False, True]
    assert has_gradient(estimator="mix") == [True, True, True]
    assert has_gradient(bootstrap=BootstrapConfig(updates=2)) == [False, False, True]
