import pytest
import torch

from metagrad.meta_gradient import meta_gradient
from metagrad.optimizers import Adam, ClipByGlobalNorm, RmsProp, Sgd, constant
from metagrad.tape import CHECKPOINT_EVERY, ReplayedStep, recorded, whole_step
from metagrad.unroll import InnerProblem, TapeStep, inner_update

OPTIMIZERS = {
    "adam": ClipByGlobalNorm(max_norm=0.5, optimizer=Adam(learning_rate=constant(0.1))),
    "momentum": Sgd(learning_rate=constant(0.1), momentum=0.9),
    "learnt rate": RmsProp(learning_rate=lambda count, eta: 0.1 * eta / (1 + count)),
}
ETA = torch.tensor([0.7])


def loss(theta, eta, batch):
    return (eta * theta.sin() ** 3 * batch).sum(), None


def unroll(optimizer, n, keep_graph):
    """Every step as the update left it, and the tape."""
    problem = InnerProblem(loss, optimizer)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=generator)
    state, steps, tape = optimizer.init(theta), [], ()
    for _ in range(n):
        update = inner_update(problem, theta, state, ETA, torch.randn(50, generator=generator), keep_graph)
        theta, state = update.theta, update.state
        steps.append(update.step)
        tape = recorded(tape, update.step)
    return problem, steps, tape


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_between_checkpoints_come_back_bit_by_bit(name):
    problem, steps, tape = unroll(OPTIMIZERS[name], 2 * CHECKPOINT_EVERY + 2, keep_graph=False)
    assert [isinstance(step, TapeStep) for step in tape] == [i % CHECKPOINT_EVERY == 0 for i in range(len(tape))]
    for i, step in enumerate(steps):
        found = whole_step(problem, tape, i)
        assert torch.equal(found.theta, step.theta)
        assert found.state.updates == step.state.updates == i
        assert all(map(torch.equal, found.state.moments, step.state.moments))
        assert (found.eta is step.eta, found.batch is step.batch, found.gradient is step.gradient) == (True,) * 3


def test_steps_with_a_graph_stay_whole():
    _, steps, tape = unroll(OPTIMIZERS["adam"], CHECKPOINT_EVERY + 2, keep_graph=True)
    assert all(found is step for found, step in zip(tape, steps, strict=True))
    assert not any(isinstance(step, ReplayedStep) for step in tape)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_meta_gradient_is_that_of_the_whole_tape(name):
    problem, steps, tape = unroll(OPTIMIZERS[name], 2 * CHECKPOINT_EVERY, keep_graph=False)
    outer = [None] * (len(tape) - 1) + [torch.ones(50)]
    thin, whole = (meta_gradient(problem, each, outer, "recompute", wants_theta=True) for each in (tape, steps))
    assert torch.equal(thin.eta, whole.eta)
    assert torch.equal(thin.theta, whole.theta)
