"""The recurrence against torch's own cell, and its written-out derivative against autograd's."""

import pytest
import torch
from torch import Tensor, nn

from metagrad.backward_gru import backward_gru

STEPS, BATCH, UNITS, AGENTS = 5, 3, 4, 2


def problem(*lead: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    is_end = torch.rand(*lead, STEPS, BATCH, generator=generator) < 0.3
    return normal(STEPS, BATCH, 3 * UNITS), is_end, normal(UNITS, 3 * UNITS), normal(3 * UNITS)


def by_cell(of_inputs: Tensor, is_end: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    cell = nn.GRUCell(3 * UNITS, UNITS, dtype=torch.float64)
    eye, zeros = torch.eye(3 * UNITS, dtype=torch.float64), torch.zeros(3 * UNITS, dtype=torch.float64)
    parameters = {"weight_ih": eye, "weight_hh": weight.mT, "bias_ih": zeros, "bias_hh": bias}
    state, states = torch.zeros(BATCH, UNITS, dtype=torch.float64), []
    for x, ends in zip(of_inputs.flip(0), is_end.flip(0), strict=True):
        state = torch.where(ends.unsqueeze(-1), 0.0, state)
        state = torch.func.functional_call(cell, parameters, (x, state))
        states.append(state)
    return torch.stack(states[::-1])


def test_states_and_derivatives_are_those_of_torch() -> None:
    of_inputs, is_end, weight, bias = problem()
    leaves = [x.requires_grad_() for x in (of_inputs, weight, bias)]
    found, expected = (run(of_inputs, is_end, weight, bias) for run in (backward_gru, by_cell))
    torch.testing.assert_close(found, expected)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, theirs = (torch.autograd.grad(states, leaves, direction) for states in (found, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        assert torch.equal(backward_gru(of_inputs, is_end, weight, bias), found)


def test_agents_side_by_side_are_agents_alone() -> None:
    given = problem(AGENTS)
    leaves = [x.requires_grad_() for x in given if x.is_floating_point()]
    found = torch.func.vmap(backward_gru)(*given)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(found, leaves, direction)
    for i in range(AGENTS):
        own = [x[i].detach().requires_grad_(x.is_floating_point()) for x in given]
        states = by_cell(*own)
        torch.testing.assert_close(found[i], states)
        expected = torch.autograd.grad(states, [x for x in own if x.requires_grad], direction[i])
        for one, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(one[i], other)
    shared = torch.func.vmap(backward_gru, in_dims=(0, 0, None, None))(*given[:2], given[2][0], given[3][0])
    torch.testing.assert_close(shared[1], by_cell(given[0][1], given[1][1], given[2][0], given[3][0]))


def test_second_derivatives_are_refused() -> None:
    of_inputs, is_end, weight, bias = problem()
    states = backward_gru(of_inputs, is_end, weight.requires_grad_(), bias)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(states.sum(), weight, create_graph=True)
