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


def test_first_order_keeps_value_and_gradient_and_drops_the_second_derivative() -> None:
    x = torch.tensor([1.5, -2.0], dtype=torch.float64, requires_grad=True)

    def cube(x: torch.Tensor) -> torch.Tensor:
        return autodiff.first_order(x).pow(3).sum()

    assert torch.equal(autodiff.first_order(x), x)
    (gradient,) = torch.autograd.grad(cube(x), x, create_graph=True)
    assert torch.equal(gradient, 3 * x.detach() ** 2)
    assert not gradient.requires_grad
    _, tangent = torch.func.jvp(cube, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, (3 * x.detach() ** 2).sum())
