from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from metagrad.learner.actor_critic import ActorCritic, LearnerState, build_actor_critic
from metagrad.learner.algorithm import NonFinite
from metagrad.learner.config import LearnerConfig
from metagrad.meta_gradient import MetaGradient, meta_gradient, outer_weights, reference_meta_gradient
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, build_network
from metagrad.optimizers import OptimizerState
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.unroll import inner_update

MakeAlgorithm = Callable[..., ActorCritic]
CPU = torch.device("cpu")


def plain_updates(
    algorithm: ActorCritic, state: LearnerState, batches: list[Trajectory]
) -> tuple[torch.Tensor, OptimizerState]:
    """θ and s after ordinary inner updates, nothing looked ahead."""
    theta, optimizer = state.theta, state.optimizer
    for batch in batches:
        update = inner_update(algorithm.problem, theta, optimizer, state.eta, batch, keep_graph=False)
        theta, optimizer = update.theta, update.state
    return theta, optimizer


def assert_same_optimizer(left: OptimizerState, right: OptimizerState) -> None:
    assert left.updates == right.updates
    assert len(left.moments) == len(right.moments) > 0
    assert all(map(torch.equal, left.moments, right.moments))


def test_without_lookahead_eta_stays_and_theta_moves(
    make_algorithm: MakeAlgorithm, sampler: Any, trajectory: Any
) -> None:
    algorithm = make_algorithm(n=0)
    state = algorithm.init(0, CPU)
    new, metrics = algorithm.update(state, sampler)
    assert torch.equal(new.eta, state.eta)
    assert_same_optimizer(new.meta_optimizer, state.meta_optimizer)
    theta, optimizer = plain_updates(algorithm, state, [trajectory(0)])
    assert torch.equal(new.theta, theta)
    assert not torch.equal(new.theta, state.theta)
    assert_same_optimizer(new.optimizer, optimizer)
    assert sampler.calls == [(0, 0)]
    assert (new.update, new.version) == (1, 1)
    assert metrics.meta_gradient == ()
    assert "loss/outer" not in metrics.scalars
    assert "norm/meta_gradient" not in metrics.scalars


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("estimator", ["n-step", "mix"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_discard_keeps_exactly_the_first_inner_update(
    make_algorithm: MakeAlgorithm, sampler: Any, trajectory: Any, n: int, estimator: str, product: str
) -> None:
    algorithm = make_algorithm(n=n, estimator=estimator, product=product)
    state = algorithm.init(0, CPU)
    new, _ = algorithm.update(state, sampler)
    theta, optimizer = plain_updates(algorithm, state, [trajectory(0)])
    assert torch.equal(new.theta, theta)
    assert_same_optimizer(new.optimizer, optimizer)
    assert not torch.equal(new.eta, state.eta)
    assert new.update == 1
    assert new.carry is None


@pytest.mark.parametrize("n", [0, 1, 3])
def test_discard_asks_for_each_version_once_in_order(make_algorithm: MakeAlgorithm, sampler: Any, n: int) -> None:
    algorithm = make_algorithm(n=n)
    state = algorithm.init(0, CPU)
    for _ in range(3):
        state, _ = algorithm.update(state, sampler)
    versions, steps = zip(*sampler.calls, strict=True)
    assert versions == tuple(range(3 * (n + 1)))
    assert steps == tuple(range(n + 1)) * 3
    if n:
        assert torch.equal(sampler.thetas[n + 1], sampler.thetas[1]), "the next real rollout is under θ₁"
        assert not torch.equal(sampler.thetas[n + 1], sampler.thetas[n]) or n == 1


def test_lookahead_rollouts_run_under_the_virtual_parameters(
    make_algorithm: MakeAlgorithm, sampler: Any, trajectory: Any
) -> None:
    algorithm = make_algorithm(n=3)
    state = algorithm.init(0, CPU)
    algorithm.update(state, sampler)
    for j in range(4):
        assert torch.equal(sampler.thetas[j], plain_updates(algorithm, state, [trajectory(i) for i in range(j)])[0])


def test_sequential_keeps_every_update_and_carries_the_outer_batch(
    make_algorithm: MakeAlgorithm, sampler: Any, trajectory: Any
) -> None:
    algorithm = make_algorithm(n=3, strategy="sequential")
    first = algorithm.init(0, CPU)
    second, _ = algorithm.update(first, sampler)
    theta, optimizer = plain_updates(algorithm, first, [trajectory(i) for i in range(3)])
    assert torch.equal(second.theta, theta)
    assert_same_optimizer(second.optimizer, optimizer)
    assert (second.update, second.version) == (3, 3)
    assert second.carry is not None
    assert second.carry.policy_version == 3
    assert torch.equal(sampler.thetas[3], second.theta), "the carried batch was sampled under the parameters kept"

    third, _ = algorithm.update(second, sampler)
    assert torch.equal(third.theta, plain_updates(algorithm, second, [trajectory(i) for i in range(3, 6)])[0])
    assert [version for version, _ in sampler.calls] == list(range(7)), "the carried batch is not sampled again"
    assert {step for _, step in sampler.calls} == {0}, "all frames are real"


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
@pytest.mark.parametrize(("estimator", "kappa"), [("n-step", None), ("mix", None), ("mix", 0.3), ("mix", 1.0)])
def test_eta_moves_by_the_meta_optimizer_on_the_reference_gradient(
    make_algorithm: MakeAlgorithm, sampler: Any, trajectory: Any, strategy: str, estimator: str, kappa: float | None
) -> None:
    n = 3
    algorithm = make_algorithm(n=n, strategy=strategy, estimator=estimator, kappa=kappa)
    state = algorithm.init(0, CPU)
    new, metrics = algorithm.update(state, sampler)
    reference = reference_meta_gradient(
        algorithm.problem,
        lambda theta, batch: algorithm.outer_loss(theta, state.eta, batch),
        state.theta,
        state.optimizer,
        state.eta,
        [trajectory(i) for i in range(n)],
        [(weight, trajectory(i)) for i, weight in enumerate(outer_weights(estimator, n, kappa), start=1)],
    ).eta
    assert reference.abs().min() > 0
    torch.testing.assert_close(torch.tensor(metrics.meta_gradient), reference, rtol=2e-3, atol=0)
    eta, meta_optimizer = algorithm.meta_optimizer.update(
        torch.tensor(metrics.meta_gradient), state.meta_optimizer, state.eta, state.eta
    )
    assert torch.equal(new.eta, eta)
    assert_same_optimizer(new.meta_optimizer, meta_optimizer)


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_the_accumulative_trace_has_its_own_decay(make_algorithm: MakeAlgorithm, sampler: Any, product: str) -> None:
    def components(**options: Any) -> torch.Tensor:
        algorithm = make_algorithm(product=product, **options)
        return torch.tensor(algorithm.update(algorithm.init(0, CPU), sampler)[1].meta_gradient)

    fast, slow = (components(n=3, estimator="trace", mu=mu) for mu in (0.1, 0.9))
    assert (fast - slow).norm() > 1e-3 * slow.norm()
    assert (components(n=3) - slow).norm() > 1e-6 * slow.norm(), "the exact estimator is another one"
    torch.testing.assert_close(components(n=1, estimator="trace", mu=0.1), components(n=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_the_meta_optimizer_goes_on_from_its_own_state(
    make_algorithm: MakeAlgorithm, sampler: Any, strategy: str
) -> None:
    algorithm = make_algorithm(n=2, strategy=strategy)
    state = algorithm.init(0, CPU)
    eta, meta_optimizer = state.eta, state.meta_optimizer
    for updates in range(1, 4):
        state, metrics = algorithm.update(state, sampler)
        gradient = torch.tensor(metrics.meta_gradient)
        eta, meta_optimizer = algorithm.meta_optimizer.update(gradient, meta_optimizer, eta, eta)
        assert torch.equal(state.eta, eta)
        assert_same_optimizer(state.meta_optimizer, meta_optimizer)
        assert state.meta_optimizer.updates == updates


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        ({"product": "retain"}, True),
        ({"product": "recompute"}, False),
        ({"is_learnt": False}, False),
        ({"n": 0}, False),
    ],
)
def test_graphs_are_kept_only_where_a_product_needs_them(
    make_algorithm: MakeAlgorithm, sampler: Any, monkeypatch: pytest.MonkeyPatch, changes: Any, keeps: bool
) -> None:
    gradients = []

    def recorded(*arguments: Any, **named: Any) -> Any:
        update = inner_update(*arguments, **named)
        gradients.append(update.step.gradient)
        return update

    monkeypatch.setattr("metagrad.learner.actor_critic.inner_update", recorded)
    algorithm = make_algorithm(**{"n": 3} | changes)
    algorithm.update(algorithm.init(0, CPU), sampler)
    assert [gradient.requires_grad for gradient in gradients] == [keeps] * max(1, algorithm.meta.n)


def test_with_nothing_learnt_there_is_no_meta_gradient(make_algorithm: MakeAlgorithm, sampler: Any) -> None:
    algorithm = make_algorithm(is_learnt=False, n=2)
    state = algorithm.init(0, CPU)
    new, metrics = algorithm.update(state, sampler)
    assert new.eta.numel() == 0
    assert new.meta_optimizer.updates == 0
    assert metrics.meta_gradient == ()
    assert metrics.scalars["eta/gamma"] == pytest.approx(0.8)


def test_metrics_are_those_of_the_real_update_and_of_the_weighted_outer_losses(
    make_algorithm: MakeAlgorithm, sampler: Any, trajectory: Any
) -> None:
    algorithm = make_algorithm(n=2, estimator="mix")
    state = algorithm.init(0, CPU)
    new, metrics = algorithm.update(state, sampler)
    loss, inner = algorithm.problem.loss(state.theta, state.eta, trajectory(0))
    outer, advantage = 0.0, 0.0
    for weight, theta, batch in zip(algorithm.weights, sampler.thetas[1:], [trajectory(1), trajectory(2)], strict=True):
        value, mean = algorithm.outer_loss(theta, state.eta, batch)
        outer, advantage = outer + weight * value.item(), advantage + weight * mean.item()
    theta = state.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(algorithm.problem.loss(theta, state.eta, trajectory(0))[0], theta)
    expected = {
        "norm/gradient": gradient.norm().item(),
        "loss/inner": loss.item(),
        "loss/policy": inner.policy_loss.item(),
        "loss/value": inner.value_loss.item(),
        "loss/outer_value": inner.outer_value_loss.item(),
        "loss/outer": outer,
        "policy/entropy_nats": inner.entropy.item(),
        "advantage/inner_mean": inner.advantage.item(),
        "advantage/outer_mean": advantage,
        "norm/theta": new.theta.norm().item(),
        "norm/meta_gradient": sum(x * x for x in metrics.meta_gradient) ** 0.5,
        "eta/lambda": 0.9,
        "eta/gamma": torch.sigmoid(new.eta[0]).item(),
    }
    for name, value in expected.items():
        assert metrics.scalars[name] == pytest.approx(value, rel=1e-5), name
    phases = {name for name in metrics.scalars if name.startswith("time/")}
    assert phases == {f"time/{phase}_seconds" for phase in ("sample", "inner", "outer", "meta", "metrics")}


def test_state_goes_in_and_stays(make_algorithm: MakeAlgorithm, sampler: Any) -> None:
    algorithm = make_algorithm(n=2)
    state = algorithm.init(0, CPU)
    state, _ = algorithm.update(state, sampler)
    copies = [x.clone() for x in (state.theta, state.eta, *state.optimizer.moments, *state.meta_optimizer.moments)]
    algorithm.update(state, sampler)
    after = (state.theta, state.eta, *state.optimizer.moments, *state.meta_optimizer.moments)
    assert all(map(torch.equal, copies, after))


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_nothing_of_a_graph_outlives_an_update(make_algorithm: MakeAlgorithm, sampler: Any, strategy: str) -> None:
    algorithm = make_algorithm(n=2, strategy=strategy)
    state, _ = algorithm.update(algorithm.init(0, CPU), sampler)
    for x in (state.theta, state.eta, *state.optimizer.moments, *state.meta_optimizer.moments):
        assert not x.requires_grad


@pytest.mark.parametrize(("bad_step", "name"), [(0, "loss/inner"), (2, "loss/outer")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_quantity_is_named_with_its_update(
    make_algorithm: MakeAlgorithm, sampler: Any, bad_step: int, name: str, value: float
) -> None:
    algorithm = make_algorithm(n=2)
    state, _ = algorithm.update(algorithm.init(0, CPU), sampler)

    def broken(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        batch: Trajectory = sampler(snapshot, lookahead_step)
        if lookahead_step == bad_step:
            batch = batch._replace(reward=torch.full_like(batch.reward, value))
        return batch

    with pytest.raises(NonFinite, match=rf"^{name} became \S+ at update 2$"):
        algorithm.update(state, broken)


def test_an_overflow_is_no_nan_and_ends_the_run_too(make_algorithm: MakeAlgorithm, sampler: Any) -> None:
    algorithm = make_algorithm(n=0)

    def large(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        batch: Trajectory = sampler(snapshot, lookahead_step)
        return batch._replace(reward=torch.full_like(batch.reward, 1e25), valid=torch.ones_like(batch.valid))

    with pytest.raises(NonFinite, match=r"^loss/inner became inf at update 1$"):
        algorithm.update(algorithm.init(0, CPU), large)


def test_a_meta_gradient_that_is_no_number_is_named_before_the_meta_parameter_that_it_ruins(
    make_algorithm: MakeAlgorithm, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = make_algorithm(n=1)
    found = MetaGradient(torch.tensor([1.0, torch.nan]), None)
    monkeypatch.setattr("metagrad.learner.actor_critic.meta_gradient", lambda *_, **__: found)
    with pytest.raises(NonFinite, match=r"^meta_gradient/entropy_coefficient became nan at update 1$"):
        algorithm.update(algorithm.init(0, CPU), sampler)


def test_a_learnt_step_size_is_the_last_component_of_eta_and_moves(
    config: Callable[..., LearnerConfig], sampler: Any, trajectory: Any
) -> None:
    rate = MetaParameter(initial=0.01, high=0.1)
    learnt, fixed = (
        build_actor_critic(each, build_network(Mlp(hidden=8), (5,), 3, True), (5,), 3)
        for each in (replace(config(), optimizer=replace(config().optimizer, learning_rate=rate)), config())
    )
    assert list(learnt.declaration) == [*fixed.declaration, "learning_rate"]
    state = learnt.init(0, CPU)
    assert learnt.learnt(state)["learning_rate"] == pytest.approx(0.01)
    new, metrics = learnt.update(state, sampler)
    other, _ = fixed.update(fixed.init(0, CPU), sampler)
    torch.testing.assert_close(new.theta, other.theta)  # the first update is made with the initial value
    assert learnt.learnt(new)["learning_rate"] != learnt.learnt(state)["learning_rate"]
    assert metrics.meta_gradient[-1] != 0.0


def test_the_meta_gradient_of_a_learnt_step_size_is_that_of_finite_differences(
    config: Callable[..., LearnerConfig], trajectory: Any
) -> None:
    optimizer = replace(config().optimizer, learning_rate=MetaParameter(initial=0.01, high=0.1))
    learnt = build_actor_critic(
        replace(config(), optimizer=optimizer), build_network(Mlp(hidden=8), (5,), 3, True), (5,), 3
    )
    state, tape = learnt.init(0, CPU), []
    theta, moments = state.theta, state.optimizer
    for j in range(2):
        update = inner_update(learnt.problem, theta, moments, state.eta, trajectory(j), keep_graph=True)
        theta, moments = update.theta, update.state
        tape.append(update.step)
    outer = torch.linspace(-1.0, 1.0, len(theta))
    found = meta_gradient(learnt.problem, tape, [None, outer], "retain").eta
    expected = _slope(learnt, state, [trajectory(0), trajectory(1)], outer)
    assert found[-1].item() == pytest.approx(expected, rel=2e-2)


def _slope(algorithm: ActorCritic, state: LearnerState, batches: list[Trajectory], outer: torch.Tensor) -> float:
    """Derivative of θₙ · outer in the last component of η, by a central difference."""
    ends = []
    for shift in (1e-2, -1e-2):
        eta = state.eta.clone()
        eta[-1] += shift
        theta, _ = plain_updates(algorithm, state._replace(eta=eta), batches)
        ends.append((theta.double() @ outer.double()).item())
    return (ends[0] - ends[1]) / 2e-2
