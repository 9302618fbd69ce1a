"""Computes the best expected return of grid worlds whose places are fixed, by dynamic programming, so regret is exact.

Shapes: N worlds, C cells, M objects; a state of an episode is the agent's cell, which objects are there (one of 2^M
sets, number m of them at bit m) and the time. Values are float64, and returns are not discounted.

After a step the agent is in a cell with the objects that were there before it. What that is worth needs no action: the
object in the cell pays and may end the episode, each object that was not there comes back with its probability, and the
value of the next step is taken in expectation over all of it:

    U_t(c, o) = r(c, o) + (1 - p_end(c, o)) E[V_{t+1}(c, o')]        V_t(c, o) = max_a U_t(next(c, a), o)

with V = 0 at the time limit. Objects come back independently, so the expectation is one weighted sum for each object.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from metagrad.actors.envs.grid_world_distributions import GridWorld


class Plan(NamedTuple):
    """Holds what is best at one time of an episode."""

    time: int  # steps done
    value: Float64[Tensor, "N sets C"]  # best expected return from here on
    action: Int64[Tensor, "N sets C"]  # that attains it


def optimal_returns(worlds: GridWorld) -> Float64[Tensor, "N"]:
    """Return the best expected return of an episode of each of N worlds with fixed places."""
    value = None
    for plan in plans(worlds):
        value = plan.value
    assert value is not None  # a limit is at least one step
    everything = (worlds.is_object * 2 ** torch.arange(worlds.is_object.shape[1], device=value.device)).sum(1)
    return value[torch.arange(value.shape[0], device=value.device), everything, worlds.start]


def plans(worlds: GridWorld) -> Iterator[Plan]:
    """Yield the best actions and values at each time, the last one before the largest time limit first."""
    num_worlds, cells, actions = worlds.next_cell.shape
    num_objects = worlds.is_object.shape[1]
    device = worlds.next_cell.device
    value = torch.zeros(num_worlds, 2**num_objects, cells, dtype=torch.float64, device=device)
    target = worlds.next_cell[:, None].expand(-1, 2**num_objects, -1, -1).flatten(2)
    for time in range(int(worlds.time_limit.max()) - 1, -1, -1):
        entered = _worth_of_entering(worlds, value)
        best, action = entered.gather(2, target).unflatten(2, (cells, actions)).max(dim=-1)
        is_running = (time < worlds.time_limit)[:, None, None]
        value = torch.where(is_running, best, 0.0)
        yield Plan(time, value, action)


def _worth_of_entering(worlds: GridWorld, value: Float64[Tensor, "N sets C"]) -> Float64[Tensor, "N sets C"]:
    """Return U_t(c, o), where the agent has just come to c, or stayed there, while the objects o were there."""
    probabilities = worlds.return_probability.to(torch.float64)
    worth = value
    for m in range(probabilities.shape[1]):
        worth = _with_return(worth, m, probabilities[:, m])
    worth = worth.clone()
    world = torch.arange(value.shape[0], device=value.device)
    for m in range(probabilities.shape[1]):
        # In the object's own cell it is gone after the step, and only the others may have come back.
        cell = worlds.object_cell[:, m]
        after = value[world, :, cell][..., None]
        for other in range(probabilities.shape[1]):
            if other != m:
                after = _with_return(after, other, probabilities[:, other])
        gone = _by_object(after, m)[:, :, 0]  # [N, higher, lower, 1]
        keeps = 1 - worlds.end_probability[:, m].to(torch.float64)
        paid = worlds.reward[:, m].to(torch.float64)[:, None, None] + keeps[:, None, None] * gone[..., 0]
        sets = torch.arange(value.shape[1], device=value.device)
        with_it = sets[(sets >> m) % 2 == 1]
        worth[world[:, None], with_it, cell[:, None]] = paid.flatten(1)
    return worth


def _by_object(value: Float64[Tensor, "N sets columns"], m: int) -> Float64[Tensor, "N higher 2 lower columns"]:
    """Return a view of a function of sets whose third dimension says whether object m is among them."""
    return value.unflatten(1, (-1, 2, 2**m))


def _with_return(
    value: Float64[Tensor, "N sets columns"], m: int, probability: Float64[Tensor, "N"]
) -> Float64[Tensor, "N sets columns"]:
    """Return the expectation of a function of the set after object m has had its chance to come back."""
    missing, there = _by_object(value, m).unbind(2)
    expected = missing + probability[:, None, None, None] * (there - missing)
    return torch.stack((expected, there), dim=2).flatten(1, 3)
