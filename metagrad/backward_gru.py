"""Runs a GRU backwards over a rollout, with a derivative that is written out.

Autograd makes a node of every small operation of every step, and adds a gradient of the weights' size up at each. Here
a step backwards is one product and a few operations, and the weights' gradient is one product for all steps.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def backward_gru(
    of_inputs: Float[Tensor, "T B _"],
    is_end: Bool[Tensor, "T B"],
    weight: Float[Tensor, "units _"],
    bias: Float[Tensor, "_"],
) -> Float[Tensor, "T B units"]:
    """Return the states of a GRU from the last step to the first, each set to 0 before a step that ends an episode.

    Equation: r, z = σ(x + U h + b), n = tanh(x + r (U h + b)), h' = n + z (h - n), with the parts of x and of U h + b
    in the order r, z, n; h is 0 at first. Differentiable once, in reverse mode.

    Source: Cho et al. (2014), with the reset gate after the product, as in torch and flax.

    Args:
        of_inputs: x, the product of inputs and their weights, [T, B, 3 units].
        is_end: the state is 0 before step t.
        weight: U, [units, 3 units].
        bias: b, [3 units].

    Raises:
        RuntimeError: in a second derivative.
    """
    keeps = (~is_end).to(of_inputs.dtype).unsqueeze(-1)
    one = (of_inputs.unsqueeze(1), keeps.unsqueeze(1), weight.unsqueeze(0), bias.unsqueeze(0))
    states: Tensor = _BackwardGru.apply(*one, torch.is_grad_enabled())[0]
    return states.squeeze(1)


class _BackwardGru(torch.autograd.Function):
    """Has an axis N of agents behind that of time, [T, N, B, …] and [N, units, 3 units]; `vmap` makes it longer."""

    @staticmethod
    def forward(
        of_inputs: Tensor, keeps: Tensor, weight: Tensor, bias: Tensor, keeps_all: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return states, and of each step what a derivative needs, or of a single one where there is to be none."""
        steps, units = len(of_inputs), weight.shape[1]
        size, rows = of_inputs.shape[1:-1], steps if keeps_all else 1
        states = of_inputs.new_empty(steps, *size, units)
        before, candidate, remembered = (of_inputs.new_empty(rows, *size, units) for _ in range(3))
        gates = of_inputs.new_empty(rows, *size, 2 * units)
        for_gates, for_candidate = of_inputs.split((2 * units, units), -1)
        state, bias = of_inputs.new_zeros(*size, units), bias.unsqueeze(1)
        for t in reversed(range(steps)):
            row = t if keeps_all else 0
            torch.mul(state, keeps[t], out=before[row])
            of_state = torch.baddbmm(bias, before[row], weight)
            torch.sigmoid(of_state[..., : 2 * units].add_(for_gates[t]), out=gates[row])
            remembered[row] = of_state[..., 2 * units :]
            reset, keep = gates[row].split(units, -1)
            torch.tanh(torch.addcmul(for_candidate[t], reset, remembered[row]), out=candidate[row])
            state = torch.lerp(candidate[row], before[row], keep, out=states[t])
        return states, before, gates, candidate, remembered

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[1], inputs[2], *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("backward_gru is differentiable once")
        keeps, weight, before, gates, candidate, remembered = ctx.saved_tensors
        units = weight.shape[1]
        reset, keep = gates.split(units, -1)
        rest = 1.0 - keep
        of_n = rest * (1.0 - candidate.square())  # slope of h' in n's argument
        of_z = torch.sub(before, candidate).mul_(keep).mul_(rest)
        of_r = remembered * reset * (1.0 - reset)  # of n's argument in r's
        of_state = torch.empty_like(gates.new_empty(()).expand(*gates.shape[:-1], 3 * units))
        for_n = torch.empty_like(before)
        transposed, adjoint = weight.mT, torch.zeros_like(before[0])
        for t in range(len(before)):
            adjoint = adjoint + gradients[0][t]
            row = of_state[t]
            torch.mul(adjoint, of_n[t], out=for_n[t])
            torch.mul(for_n[t], of_r[t], out=row[..., :units])
            torch.mul(adjoint, of_z[t], out=row[..., units : 2 * units])
            torch.mul(for_n[t], reset[t], out=row[..., 2 * units :])
            adjoint = torch.baddbmm(adjoint.mul_(keep[t]), row, transposed).mul_(keeps[t])
        by_agent = of_state.movedim(1, 0).flatten(1, 2)
        of_weight = before.movedim(1, 0).flatten(1, 2).mT @ by_agent
        of_bias = by_agent.sum(1)
        of_state[..., 2 * units :] = for_n
        return of_state, None, of_weight, of_bias, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        of_inputs: Tensor,
        keeps: Tensor,
        weight: Tensor,
        bias: Tensor,
        keeps_all: bool,
    ) -> tuple[Any, Any]:
        """Put the new axis before N, and both together."""
        count = info.batch_size

        def merged(x: Tensor, at: int | None, to: int) -> Tensor:
            wide = x.unsqueeze(to).expand(*x.shape[:to], count, *x.shape[to:]) if at is None else x.movedim(at, to)
            return wide.flatten(to, to + 1)

        given = zip((of_inputs, keeps, weight, bias), in_dims, (1, 1, 0, 0), strict=False)
        found = _BackwardGru.apply(*(merged(*one) for one in given), keeps_all)
        return tuple(x.unflatten(1, (count, -1)) for x in found), (1,) * len(found)
