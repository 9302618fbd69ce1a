"""The second device computes what the CPU does, and notices what a real one would suffer from."""

from types import ModuleType
from typing import Any

import pytest
import torch

from metagrad.convolution import Geometry, conv2d
from metagrad.optimizers import RmsProp


def test_derivatives_of_both_orders_and_of_custom_functions_are_the_cpus(recorder: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, weight = torch.randn(2, 3, 6, 6, generator=generator), torch.randn(4, 3, 3, 3, generator=generator)

    def second_order(device: str) -> tuple[torch.Tensor, ...]:
        x, w = pictures.to(device), weight.to(device).requires_grad_()
        (first,) = torch.autograd.grad(conv2d(x, w, None, Geometry((1, 1))).tanh().square().sum(), w, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), w)
        slope = torch.func.jvp(lambda w: conv2d(x, w, None, Geometry((2, 2))).square().sum(), (w.detach(),), (first,))
        return first.detach().cpu(), second.cpu(), slope[1].detach().cpu()

    for ours, cpus in zip(second_order("standin"), second_order("cpu"), strict=True):
        assert torch.equal(ours, cpus)


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: there.mul_(here),
        lambda here, there: torch.cat([here, there]),
        lambda here, there: here.index_select(0, there.long()),
        lambda here, there: here @ there,
        lambda here, there: torch.zeros(()).add_(here.sum()),
        lambda here, there: torch.stack([here[0], there[0]]),
        lambda here, there: here.uniform_(generator=torch.Generator()),
    ],
)
def test_operations_that_mix_devices_raise(recorder: Any, mix: Any) -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(torch.ones(3, device="standin"), torch.ones(3))


def test_numbers_may_come_from_the_cpu(recorder: Any) -> None:
    x = torch.ones(3, device="standin")
    assert torch.equal((x * torch.tensor(2.0) + 1.0).cpu(), torch.full((3,), 3.0))
    assert recorder.waits == ["test_standin.py:test_numbers_may_come_from_the_cpu: copy to the host"]


@pytest.mark.parametrize(
    ("waits", "operation"),
    [
        (1, lambda x: x.sum().item()),
        (1, lambda x: bool((x > 0).all())),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (1, lambda x: x[x > 0]),
        (1, lambda x: (x > 0).nonzero()),
        (1, lambda x: x.copy_(torch.ones(3))),
        (1, lambda x: torch.tensor([1.0], device="standin")),
        (1, lambda x: x.repeat_interleave(torch.ones_like(x).long())),
        (0, lambda x: x.copy_(torch.ones(3), non_blocking=True)),
        (0, lambda x: torch.ones(3).to("standin", non_blocking=True)),
        (0, lambda x: x.to("cpu", non_blocking=True)),
        (0, lambda x: torch.zeros(3, device="standin")),
        (0, lambda x: x.masked_fill(x > 0, 0.0)),
        (0, lambda x: x.to(torch.float64).sum() * 2),
        (0, lambda x: x[torch.zeros_like(x).long()]),
    ],
)
def test_waits_of_the_host_are_recorded(recorder: Any, waits: int, operation: Any) -> None:
    x = torch.zeros(3, device="standin")
    recorder.waits.clear()
    operation(x)
    assert len(recorder.waits) == waits


def test_a_copy_to_the_host_that_nobody_waited_for_holds_rubbish(recorder: Any) -> None:
    x = torch.ones(3, device="standin")
    copied = x.to("cpu", non_blocking=True)
    assert copied.isnan().all()
    x += 1  # the copy was ordered before
    x.sum().item()
    assert torch.equal(copied, torch.ones(3))


def test_generators_draw_the_cpus_numbers(recorder: Any, standin: ModuleType) -> None:
    ours, cpus = torch.Generator("standin").manual_seed(3), torch.Generator().manual_seed(3)
    drawn = torch.rand(5, generator=ours, device="standin")
    assert (drawn.device, ours.device) == (standin.DEVICE, standin.DEVICE)
    assert torch.equal(drawn.cpu(), torch.rand(5, generator=cpus))
    assert isinstance(ours, torch.Generator)
    assert isinstance(cpus, torch.Generator)


def test_branches_that_may_not_look_give_the_same_step(recorder: Any) -> None:
    optimizer = RmsProp(learning_rate=0.1, max_gradient_norm=0.5)
    steps = []
    for device in ("standin", "cpu"):
        theta = torch.linspace(-1, 1, 7).to(device)
        steps.append(optimizer.update(theta.square(), optimizer.init(theta), theta, theta[:0])[0].cpu())
    assert torch.equal(*steps)
