"""Carries a recurrent state through the steps of episodes, in actors and learner by the same rules.

* The state is 0 where an episode begins, and an episode begins for the memory with the first step that is chosen in it:
  what is seen in rows before, such as the one that only resets, leaves no trace (`next_state`).
* A rollout brings the state before its first row, as its actor had it (`Trajectory.first_state`). The learner unrolls
  from it, a constant, over the T rows under its own parameters (`memory_of`). After a truncation the row that only
  resets shows the true successor, whose value the returns need: its state is the old episode's.

Source: the stored state of IMPALA (Espeholt et al. 2018) and R2D2 (Kapturowski et al. 2019). Where the parameters are
not those that acted, the first state is the older network's: it is not burnt in.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from metagrad import autodiff
from metagrad.errors import require
from metagrad.network_layers import Linear, OrthogonalGates
from metagrad.types import Trajectory


class Memory(NamedTuple):
    """Holds what a recurrent network is given beside the observations of T steps of B environments."""

    state: Float[Tensor, "B H"]  # before the first step
    begins: Bool[Tensor, "T B"] | None = None  # True: the state is 0 before this step; None: T = 1. Row 0 is not read

    def until(self, steps: int) -> "Memory":
        """Return the memory for the first rows alone."""
        assert self.begins is not None
        return self._replace(begins=self.begins[:steps])

    def after(self, states: Float[Tensor, "rows H"]) -> "Memory":
        """Return the memory for the last row, a constant, of the states after those before it."""
        assert self.begins is not None
        last = autodiff.stop_gradient(states[-len(self.state) :])
        return Memory(torch.where(self.begins[-1].unsqueeze(-1), 0.0, last))

    def split(self, parts: int) -> list["Memory"]:
        """Return the memories of networks that share nothing, whose states lie side by side."""
        return [Memory(state, self.begins) for state in self.state.chunk(parts, -1)]


class Gru(nn.Module):
    """Computes a gated recurrent unit of linear layers, so that every derivative exists; features [T B, F] to [T B, H].

    Equation: r, z = σ(W x + b + U h + c), n = tanh(W' x + b' + r (U' h + c')), h ← (1 - z) n + z h; all of W x at once.

    Source: Cho et al. (2014), in the variant of cuDNN and `torch.nn.GRU`. Deviation: orthogonal init of each gate.
    """

    def __init__(self, features: int, units: int):
        super().__init__()
        self.units = units
        self.of_features = OrthogonalGates(features, 3 * units)
        self.of_state = OrthogonalGates(units, 3 * units)

    def forward(self, features: Float[Tensor, "rows F"], memory: Memory) -> Float[Tensor, "rows H"]:
        gates, state = self.of_features(features), memory.state.to(self.of_state.weight.dtype)
        if memory.begins is None:
            return self._step(gates, state)
        states: list[Tensor] = []
        for row, begins in zip(gates.unflatten(0, memory.begins.shape), memory.begins.unsqueeze(-1), strict=True):
            state = self._step(row, torch.where(begins, 0.0, state) if states else state)
            states.append(state)
        return torch.cat(states)

    def _step(self, of_features: Tensor, state: Tensor) -> Tensor:
        gates, candidate = of_features.split((2 * self.units, self.units), -1)
        of_state, remembered = self.of_state(state).split((2 * self.units, self.units), -1)
        reset, keep = torch.sigmoid(gates + of_state).chunk(2, -1)
        new = torch.tanh(candidate + reset * remembered)
        return new + keep * (state - new)


class RecurrentNetwork(nn.Module):
    """Puts a core between a torso and the last layer of a network that shares nothing."""

    def __init__(self, torso: nn.Module, core: Gru, last: Linear):
        super().__init__()
        self.torso = torso
        self.core = core
        self.last = last

    def forward(self, observation: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Return the outputs and the states after each step."""
        state = self.core(self.torso(observation), memory)
        return self.last(state), state


def next_state(
    state: Float[Tensor, "B H"], updated: Float[Tensor, "B H"], is_end: Bool[Tensor, "B"], valid: Bool[Tensor, "B"]
) -> Float[Tensor, "B H"]:
    """Return the state before the next step: `updated`, or 0 where the episode ended or has not begun yet.

    Args:
        state: before the step.
        updated: what the network made of it.
        is_end: the step was the last one of an episode.
        valid: the policy chose the step.
    """
    is_forgotten = is_end | (is_zero(state) & ~valid)
    return torch.where(is_forgotten.unsqueeze(-1), 0.0, updated)


def is_zero(state: Float[Tensor, "B H"]) -> Bool[Tensor, "B"]:
    """Return True where nothing is remembered."""
    return (state == 0.0).all(-1)


def is_before_choice(
    valid: Bool[Tensor, "T B"], is_last: Bool[Tensor, "T B"], begins: Bool[Tensor, "B"]
) -> Bool[Tensor, "T B"]:
    """Return True for rows up to which no step of their episode has been chosen.

    Args:
        valid: the policy chose the step.
        is_last: an episode ended with it.
        begins: True: row 0 is an episode's first; False: steps of its episode were chosen before it.
    """
    chosen = valid.long().cumsum(0)
    first = begins.long().unsqueeze(0) - 1  # less than any count where the episode has been going on
    before = torch.where(is_last, chosen, first).cummax(0).values  # chosen steps of episodes that ended up to here
    return chosen == torch.cat([first, before[:-1]])


def memory_of(trajectory: Trajectory) -> Memory | None:
    """Return what a recurrent network needs to be unrolled over all T+1 rows; None where the actors' had no state."""
    if trajectory.first_state is None:
        return None
    state, valid = autodiff.stop_gradient(trajectory.first_state), trajectory.valid
    is_last = trajectory.is_terminal | trajectory.is_truncated
    is_forgotten = is_last | is_before_choice(valid, is_last, is_zero(state))
    # What only resets after a truncation is in the old episode; so is the last row, which may be seen for its value.
    is_seen_only = torch.cat([~valid[1:], torch.ones_like(valid[:1])])
    begins = is_forgotten & ~(trajectory.is_truncated & is_seen_only)
    return Memory(state, torch.cat([torch.zeros_like(valid[:1]), begins]))


def require_memory(memory: Memory | None, state_size: int) -> None:
    """Refuse a memory that is not the network's, and none where it has one."""
    found = 0 if memory is None else memory.state.shape[-1]
    remembered = f"{state_size} numbers of each environment" if state_size else "nothing"
    rule, remedy = f"the network remembers {remembered}", "give Memory(state), at first of network.fresh_state(B)"
    require(found == state_size, "memory", found, rule, remedy if state_size else "leave it out")
