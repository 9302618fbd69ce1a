from collections.abc import Callable
from typing import Any

import pytest
import torch

from metagrad.learner.agent import Agent
from metagrad.learner.state import LearnerState, init_state
from metagrad.learner.step import NonFinite, meta_update
from metagrad.meta_gradient import outer_weights, reference_meta_gradient
from metagrad.optimizers import OptimizerState
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.unroll import inner_update

MakeAgent = Callable[..., Agent]
CPU = torch.device("cpu")


def plain_updates(agent: Agent, state: LearnerState, batches: list[Trajectory]) -> tuple[torch.Tensor, OptimizerState]:
    """θ and s after ordinary inner updates, nothing looked ahead."""
    theta, optimizer = state.theta, state.optimizer
    for batch in batches:
        update = inner_update(agent.problem, theta, optimizer, state.eta, batch, keep_graph=False)
        theta, optimizer = update.theta, update.state
    return theta, optimizer


def assert_same_optimizer(left: OptimizerState, right: OptimizerState) -> None:
    assert left.count == right.count
    assert len(left.moments) == len(right.moments) > 0
    assert all(map(torch.equal, left.moments, right.moments))


def test_without_lookahead_eta_stays_and_theta_moves(make_agent: MakeAgent, sampler: Any, trajectory: Any) -> None:
    agent = make_agent(n=0)
    state = init_state(agent, 0, CPU)
    new, metrics = meta_update(agent, state, sampler)
    assert torch.equal(new.eta, state.eta)
    assert_same_optimizer(new.meta_optimizer, state.meta_optimizer)
    theta, optimizer = plain_updates(agent, state, [trajectory(0)])
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
    make_agent: MakeAgent, sampler: Any, trajectory: Any, n: int, estimator: str, product: str
) -> None:
    agent = make_agent(n=n, estimator=estimator, product=product)
    state = init_state(agent, 0, CPU)
    new, _ = meta_update(agent, state, sampler)
    theta, optimizer = plain_updates(agent, state, [trajectory(0)])
    assert torch.equal(new.theta, theta)
    assert_same_optimizer(new.optimizer, optimizer)
    assert not torch.equal(new.eta, state.eta)
    assert new.update == 1
    assert new.carry is None


@pytest.mark.parametrize("n", [0, 1, 3])
def test_discard_asks_for_each_version_once_in_order(make_agent: MakeAgent, sampler: Any, n: int) -> None:
    agent = make_agent(n=n)
    state = init_state(agent, 0, CPU)
    for _ in range(3):
        state, _ = meta_update(agent, state, sampler)
    versions, steps = zip(*sampler.calls, strict=True)
    assert versions == tuple(range(3 * (n + 1)))
    assert steps == tuple(range(n + 1)) * 3
    if n:
        assert torch.equal(sampler.thetas[n + 1], sampler.thetas[1]), "the next real rollout is under θ₁"
        assert not torch.equal(sampler.thetas[n + 1], sampler.thetas[n]) or n == 1


def test_lookahead_rollouts_run_under_the_virtual_parameters(
    make_agent: MakeAgent, sampler: Any, trajectory: Any
) -> None:
    agent = make_agent(n=3)
    state = init_state(agent, 0, CPU)
    meta_update(agent, state, sampler)
    for j in range(4):
        assert torch.equal(sampler.thetas[j], plain_updates(agent, state, [trajectory(i) for i in range(j)])[0])


def test_sequential_keeps_every_update_and_carries_the_outer_batch(
    make_agent: MakeAgent, sampler: Any, trajectory: Any
) -> None:
    agent = make_agent(n=3, strategy="sequential")
    first = init_state(agent, 0, CPU)
    second, _ = meta_update(agent, first, sampler)
    theta, optimizer = plain_updates(agent, first, [trajectory(i) for i in range(3)])
    assert torch.equal(second.theta, theta)
    assert_same_optimizer(second.optimizer, optimizer)
    assert (second.update, second.version) == (3, 3)
    assert second.carry is not None
    assert second.carry.policy_version == 3
    assert torch.equal(sampler.thetas[3], second.theta), "the carried batch was sampled under the parameters kept"

    third, _ = meta_update(agent, second, sampler)
    assert torch.equal(third.theta, plain_updates(agent, second, [trajectory(i) for i in range(3, 6)])[0])
    assert [version for version, _ in sampler.calls] == list(range(7)), "the carried batch is not sampled again"
    assert {step for _, step in sampler.calls} == {0}, "all frames are real"


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
@pytest.mark.parametrize(("estimator", "kappa"), [("n-step", None), ("mix", None), ("mix", 0.3), ("mix", 1.0)])
def test_eta_moves_by_the_meta_optimizer_on_the_reference_gradient(
    make_agent: MakeAgent, sampler: Any, trajectory: Any, strategy: str, estimator: str, kappa: float | None
) -> None:
    n = 3
    agent = make_agent(n=n, strategy=strategy, estimator=estimator, kappa=kappa)
    state = init_state(agent, 0, CPU)
    new, metrics = meta_update(agent, state, sampler)
    reference = reference_meta_gradient(
        agent.problem,
        lambda theta, batch: agent.outer_loss(theta, state.eta, batch),
        state.theta,
        state.optimizer,
        state.eta,
        [trajectory(i) for i in range(n)],
        [(weight, trajectory(i)) for i, weight in enumerate(outer_weights(estimator, n, kappa), start=1)],
    ).eta
    assert reference.abs().min() > 0
    torch.testing.assert_close(torch.tensor(metrics.meta_gradient), reference, rtol=2e-3, atol=0)
    eta, meta_optimizer = agent.meta_optimizer.update(
        torch.tensor(metrics.meta_gradient), state.meta_optimizer, state.eta, state.eta
    )
    assert torch.equal(new.eta, eta)
    assert_same_optimizer(new.meta_optimizer, meta_optimizer)


@pytest.mark.parametrize("product", ["retain", "recompute"])
def test_the_accumulative_trace_has_its_own_decay(make_agent: MakeAgent, sampler: Any, product: str) -> None:
    def components(**options: Any) -> torch.Tensor:
        agent = make_agent(product=product, **options)
        return torch.tensor(meta_update(agent, init_state(agent, 0, CPU), sampler)[1].meta_gradient)

    fast, slow = (components(n=3, estimator="trace", mu=mu) for mu in (0.1, 0.9))
    assert (fast - slow).norm() > 1e-3 * slow.norm()
    assert (components(n=3) - slow).norm() > 1e-6 * slow.norm(), "the exact estimator is another one"
    torch.testing.assert_close(components(n=1, estimator="trace", mu=0.1), components(n=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_the_meta_optimizer_goes_on_from_its_own_state(make_agent: MakeAgent, sampler: Any, strategy: str) -> None:
    agent = make_agent(n=2, strategy=strategy)
    state = init_state(agent, 0, CPU)
    eta, meta_optimizer = state.eta, state.meta_optimizer
    for updates in range(1, 4):
        state, metrics = meta_update(agent, state, sampler)
        gradient = torch.tensor(metrics.meta_gradient)
        eta, meta_optimizer = agent.meta_optimizer.update(gradient, meta_optimizer, eta, eta)
        assert torch.equal(state.eta, eta)
        assert_same_optimizer(state.meta_optimizer, meta_optimizer)
        assert state.meta_optimizer.count == updates


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
    make_agent: MakeAgent, sampler: Any, monkeypatch: pytest.MonkeyPatch, changes: Any, keeps: bool
) -> None:
    gradients = []

    def recorded(*arguments: Any, **named: Any) -> Any:
        update = inner_update(*arguments, **named)
        gradients.append(update.step.gradient)
        return update

    for module in (
        "metagrad.learner.step",
        "metagrad.learner.lookahead",
    ):  # where there is a look-ahead, and where there is none
        monkeypatch.setattr(f"{module}.inner_update", recorded)
    agent = make_agent(**{"n": 3} | changes)
    meta_update(agent, init_state(agent, 0, CPU), sampler)
    assert [gradient.requires_grad for gradient in gradients] == [keeps] * max(1, agent.meta.n)


def test_with_nothing_learnt_there_is_no_meta_gradient(make_agent: MakeAgent, sampler: Any) -> None:
    agent = make_agent(is_learnt=False, n=2)
    state = init_state(agent, 0, CPU)
    new, metrics = meta_update(agent, state, sampler)
    assert new.eta.numel() == 0
    assert new.meta_optimizer.count == 0
    assert metrics.meta_gradient == ()
    assert metrics.scalars["eta/gamma"] == pytest.approx(0.8)


def test_metrics_are_those_of_the_real_update_and_of_the_weighted_outer_losses(
    make_agent: MakeAgent, sampler: Any, trajectory: Any
) -> None:
    agent = make_agent(n=2, estimator="mix")
    state = init_state(agent, 0, CPU)
    new, metrics = meta_update(agent, state, sampler)
    loss, inner = agent.problem.loss(state.theta, state.eta, trajectory(0))
    outer, advantage = 0.0, 0.0
    for weight, theta, batch in zip(agent.weights, sampler.thetas[1:], [trajectory(1), trajectory(2)], strict=True):
        value, mean = agent.outer_loss(theta, state.eta, batch)
        outer, advantage = outer + weight * value.item(), advantage + weight * mean.item()
    theta = state.theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(agent.problem.loss(theta, state.eta, trajectory(0))[0], theta)
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


def test_state_goes_in_and_stays(make_agent: MakeAgent, sampler: Any) -> None:
    agent = make_agent(n=2)
    state = init_state(agent, 0, CPU)
    state, _ = meta_update(agent, state, sampler)
    copies = [x.clone() for x in (state.theta, state.eta, *state.optimizer.moments, *state.meta_optimizer.moments)]
    meta_update(agent, state, sampler)
    after = (state.theta, state.eta, *state.optimizer.moments, *state.meta_optimizer.moments)
    assert all(map(torch.equal, copies, after))


@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_nothing_of_a_graph_outlives_an_update(make_agent: MakeAgent, sampler: Any, strategy: str) -> None:
    agent = make_agent(n=2, strategy=strategy)
    state, _ = meta_update(agent, init_state(agent, 0, CPU), sampler)
    for x in (state.theta, state.eta, *state.optimizer.moments, *state.meta_optimizer.moments):
        assert not x.requires_grad


@pytest.mark.parametrize(("bad_step", "name"), [(0, "loss/inner"), (2, "loss/outer")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_quantity_is_named_with_its_update(
    make_agent: MakeAgent, sampler: Any, bad_step: int, name: str, value: float
) -> None:
    agent = make_agent(n=2)
    state, _ = meta_update(agent, init_state(agent, 0, CPU), sampler)

    def broken(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        batch: Trajectory = sampler(snapshot, lookahead_step)
        if lookahead_step == bad_step:
            batch = batch._replace(reward=torch.full_like(batch.reward, value))
        return batch

    with pytest.raises(NonFinite, match=rf"^{name} became \S+ at update 2$"):
        meta_update(agent, state, broken)


def test_an_overflow_is_no_nan_and_ends_the_run_too(make_agent: MakeAgent, sampler: Any) -> None:
    agent = make_agent(n=0)

    def large(snapshot: WeightSnapshot, lookahead_step: int) -> Trajectory:
        batch: Trajectory = sampler(snapshot, lookahead_step)
        return batch._replace(reward=torch.full_like(batch.reward, 1e25), valid=torch.ones_like(batch.valid))

    with pytest.raises(NonFinite, match=r"^loss/inner became inf at update 1$"):
        meta_update(agent, init_state(agent, 0, CPU), large)


def test_a_meta_gradient_that_is_no_number_is_named_before_the_meta_parameter_that_it_ruins(
    make_agent: MakeAgent, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(n=1)
    monkeypatch.setattr("metagrad.learner.step.eta_gradient", lambda *_: torch.tensor([1.0, torch.nan]))
    with pytest.raises(NonFinite, match=r"^meta_gradient/entropy_coefficient became nan at update 1$"):
        meta_update(agent, init_state(agent, 0, CPU), sampler)
