"""DiscoRL's Adam: entries are bounded, and the second moment is a constant of meta-gradients."""

import pytest
import torch
from torch import Tensor

from metagrad.errors import ConfigurationError
from metagrad.optimizers import Adam, BoundedAdam, OptimizerState

ETA = torch.zeros(0, dtype=torch.float64)


def made(optimizer: Adam, gradients: Tensor) -> Tensor:
    """θ after an update for each gradient."""
    theta = torch.zeros(gradients.shape[1], dtype=torch.float64)
    state, steps = optimizer.init(theta), []
    for gradient in gradients:
        theta, state = optimizer.update(gradient, state, theta, ETA)
        steps.append(theta)
    return torch.stack(steps)


def test_it_is_adam_whose_entries_are_cut() -> None:
    gradients = torch.tensor([[1.0, -1e-4]] * 20 + [[1.0, 3.0]] * 10, dtype=torch.float64)
    adam, bounded = (made(kind(learning_rate=0.1), gradients) for kind in (Adam, BoundedAdam))
    torch.testing.assert_close(bounded[:20], adam[:20])
    entries = (bounded[:-1] - bounded[1:]) / 0.1
    assert entries.abs().max() <= 1.0 + 1e-12
    loose = made(BoundedAdam(learning_rate=0.1, bound=100.0), gradients)
    torch.testing.assert_close(loose, adam)
    assert (adam - bounded).abs().max() > 0.01, "the gradients of this test reach the bound"


def test_the_root_is_a_constant_of_the_meta_gradient() -> None:
    x = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = BoundedAdam(learning_rate=0.1, bound=10.0)
    theta, _ = optimizer.update(x, optimizer.init(x), torch.zeros_like(x), ETA)
    (found,) = torch.autograd.grad(theta.sum(), x)
    torch.testing.assert_close(found, -0.1 / x.detach().abs(), rtol=1e-7, atol=0.0)  # Adam's own derivative is 0


def test_many_side_by_side_count_for_themselves() -> None:
    optimizer, generator = BoundedAdam(learning_rate=0.1), torch.Generator().manual_seed(1)
    gradient, theta = (torch.randn(3, 4, generator=generator) for _ in range(2))
    moments = tuple(torch.rand(3, 4, generator=generator) * 0.1 for _ in range(2))
    counts = torch.tensor([0, 3, 40])

    def update(gradient: Tensor, theta: Tensor, count: Tensor, *moments: Tensor) -> Tensor:
        return optimizer.update(gradient, OptimizerState(count, moments), theta, ETA.float())[0]

    together = torch.func.vmap(update)(gradient, theta, counts, *moments)
    for i, count in enumerate(counts.tolist()):
        state = OptimizerState(count, tuple(moment[i] for moment in moments))
        torch.testing.assert_close(together[i], optimizer.update(gradient[i], state, theta[i], ETA.float())[0])


def test_a_bound_is_positive() -> None:
    with pytest.raises(ConfigurationError, match=r"bound = 0\.0"):
        BoundedAdam(learning_rate=0.1, bound=0.0)
