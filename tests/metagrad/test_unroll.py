import pytest
import torch

from metagrad.actor_critic import A2cLoss
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter, hyperparameters, init_eta
from metagrad.networks import Mlp, build_network
from metagrad.optimizers import Adam, Sgd, constant
from metagrad.surrogates import SURROGATES
from metagrad.unroll import InnerProblem, inner_update


def cubic(theta, eta, batch):
    """L = Σ η θ³ · batch / 3, ∇L = η θ² · batch."""
    return (eta * theta**3 * batch).sum() / 3.0, {"seen": batch}


@pytest.fixture
def problem():
    return InnerProblem(cubic, Adam(learning_rate=constant(0.1)))


THETA = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ETA = torch.tensor([0.7], dtype=torch.float64)
BATCH = torch.tensor([1.0, 3.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("keep_graph", [True, False])
def test_is_one_ordinary_update(problem, keep_graph):
    state = problem.optimizer.init(THETA)
    update = inner_update(problem, THETA, state, ETA, BATCH, keep_graph)
    gradient = 0.7 * THETA**2 * BATCH
    theta, expected_state = problem.optimizer.update(gradient, state, THETA, ETA)
    torch.testing.assert_close(update.theta, theta, rtol=1e-14, atol=0.0)
    assert update.state.updates == expected_state.updates == 1
    torch.testing.assert_close(update.state.moments, expected_state.moments, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(update.loss, cubic(THETA, ETA, BATCH)[0])
    torch.testing.assert_close(update.step.gradient.detach(), gradient)
    assert update.metrics["seen"] is BATCH


@pytest.mark.parametrize("keep_graph", [True, False])
def test_only_the_kept_gradient_carries_a_graph(problem, keep_graph):
    # Also where the caller is itself being differentiated: what enters is taken as a value.
    theta, eta = THETA.clone().requires_grad_(), ETA.clone().requires_grad_()
    update = inner_update(problem, theta, problem.optimizer.init(theta), eta, BATCH, keep_graph)
    assert not update.theta.requires_grad
    assert not update.loss.requires_grad
    assert not any(moment.requires_grad for moment in update.state.moments)
    step = update.step
    assert [x.requires_grad for x in (step.theta, step.eta, step.gradient)] == [keep_graph] * 3
    assert step.theta.is_leaf
    assert step.eta.is_leaf
    if keep_graph:
        d_theta, d_eta = torch.autograd.grad(step.gradient.sum(), (step.theta, step.eta))
        torch.testing.assert_close(d_theta, 2.0 * 0.7 * THETA * BATCH)
        torch.testing.assert_close(d_eta, (THETA**2 * BATCH).sum().reshape(1))


def test_tape_keeps_what_the_update_saw(problem):
    state = problem.optimizer.init(THETA)
    first = inner_update(problem, THETA, state, ETA, BATCH, False)
    second = inner_update(problem, first.theta, first.state, ETA, BATCH + 1.0, False)
    assert torch.equal(second.step.theta, first.theta)
    assert second.step.state is first.state
    assert torch.equal(second.step.eta, ETA)
    assert torch.equal(second.step.batch, BATCH + 1.0)
    assert first.step.state.updates == 0
    assert second.state.updates == 2


@pytest.mark.parametrize("keep_graph", [True, False])
def test_inputs_are_left_alone(problem, keep_graph):
    theta, eta, state = THETA.clone(), ETA.clone(), problem.optimizer.init(THETA)
    inner_update(problem, theta, state, eta, BATCH, keep_graph)
    assert torch.equal(theta, THETA)
    assert torch.equal(eta, ETA)
    assert not theta.requires_grad
    assert not eta.requires_grad
    assert all((moment == 0.0).all() for moment in state.moments)


def test_keeping_the_graph_changes_no_bit_of_the_update(problem):
    state = problem.optimizer.init(THETA)
    kept, plain = (inner_update(problem, THETA, state, ETA, BATCH, keep_graph) for keep_graph in (True, False))
    assert torch.equal(kept.theta, plain.theta)
    assert torch.equal(kept.step.gradient, plain.step.gradient)


def test_a_split_update_has_the_value_of_one_loss_and_the_derivative_of_another(problem):
    def other(theta, eta, batch):
        """∇L = 2 η² θ · batch."""
        return (eta**2 * theta**2 * batch).sum(), None

    split, state = problem._replace(derivative=other), problem.optimizer.init(THETA)
    whole, update = (inner_update(p, THETA, state, ETA, BATCH, keep_graph=True) for p in (problem, split))
    assert torch.equal(update.theta, whole.theta)
    assert torch.equal(update.step.gradient, whole.step.gradient)
    d_theta, d_eta = torch.autograd.grad(update.step.gradient.sum(), (update.step.theta, update.step.eta))
    torch.testing.assert_close(d_theta, 2.0 * 0.7**2 * BATCH)
    torch.testing.assert_close(d_eta, (4.0 * 0.7 * THETA * BATCH).sum().reshape(1))


def test_the_derivative_of_a_split_is_looked_at_only_where_a_graph_is_kept(problem):
    def never(theta, eta, batch):
        raise AssertionError

    step = inner_update(
        problem._replace(derivative=never), THETA, problem.optimizer.init(THETA), ETA, BATCH, keep_graph=False
    ).step
    assert not step.gradient.requires_grad


@pytest.mark.parametrize("uses_outer_critic", [True, False])
def test_ad_and_lvc_make_the_same_update_bit_by_bit(make_trajectory, uses_outer_critic):
    names = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")
    a2c = A2cLoss(**dict.fromkeys(names, MetaParameter(initial=0.4)))
    declaration = a2c.declaration((), 0)
    network = build_network(Mlp(hidden=8), (3,), 3, uses_outer_critic)
    generator = torch.Generator().manual_seed(0)
    theta = network.init(generator)
    batches = [make_trajectory(generator) for _ in range(3)]
    batches = [b._replace(observation=b.observation.float(), reward=b.reward.float()) for b in batches]
    outer = OuterObjective(gamma=0.99, lambda_=0.95, critic="outer" if uses_outer_critic else "inner")

    def run(surrogate):
        problem = InnerProblem(
            lambda theta, eta, batch: a2c.inner_loss(
                network, theta, hyperparameters(declaration, eta), batch, SURROGATES[surrogate], outer
            ),
            Sgd(learning_rate=constant(0.1)),
        )
        x, state = theta, problem.optimizer.init(theta)
        for batch in batches:
            update = inner_update(problem, x, state, init_eta(declaration), batch, keep_graph=False)
            x, state = update.theta, update.state
        return x

    assert torch.equal(run("ad"), run("lvc"))
    assert not torch.equal(run("ad"), theta)
