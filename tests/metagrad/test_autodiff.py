import torch

from metagrad import autodiff


def test_stop_gradient_keeps_the_value_and_drops_every_derivative():
    x = torch.tensor([1.5, -2.0], dtype=torch.float64)

    def product(x):
        return (x * autodiff.stop_gradient(x)).sum()

    assert torch.equal(autodiff.stop_gradient(x), x)
    assert not autodiff.stop_gradient(x.clone().requires_grad_()).requires_grad
    assert torch.equal(torch.func.grad(product)(x), x)  # the derivative of x² would be 2x
    _, tangent = torch.func.jvp(product, (x,), (torch.ones_like(x),))
    assert tangent == x.sum()
    _, second = torch.func.jvp(torch.func.grad(product), (x,), (torch.ones_like(x),))
    assert torch.equal(second, torch.zeros_like(x))
