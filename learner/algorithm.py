"""Defines the protocol between a training loop and an algorithm, and what algorithms share."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from metagrad.networks import Network
from metagrad.types import WeightSnapshot

Sample = Callable[[WeightSnapshot, int], Any]
"""(snapshot, j) to what the actors bring under exactly that snapshot: j = 0 for a real rollout, j ≥ 1 for one at
looked-ahead parameters. It is a `Trajectory` of T steps of all environments; of populations, `MetaGradients`."""


class NonFinite(FloatingPointError):
    """Says that a loss, a parameter or a meta-parameter became NaN or infinite; the last checkpoint stands."""


class UpdateMetrics(NamedTuple):
    """Holds what one update has to log."""

    scalars: dict[str, float]  # by name, "area/quantity_unit"
    meta_gradient: tuple[float, ...]  # of the learnt scalars, before clipping; empty where there are none
    eta_gradient: Float[Tensor, "M"] | None = None  # the whole of it; None: η was not updated


@runtime_checkable
class AlgorithmState(Protocol):
    """Names what the loop reads of a state; all else is the algorithm's."""

    @property
    def update(self) -> int: ...  # real updates done
    @property
    def theta(self) -> Float[Tensor, "P"]: ...  # what is evaluated
    @property
    def held_batches(self) -> int: ...  # real batches in the state that no update has used yet


S = TypeVar("S", bound=AlgorithmState)


@runtime_checkable
class Algorithm(Protocol[S]):
    """Makes one update after another, state in, state out; where rollouts come from is the loop's."""

    @property
    def network(self) -> Network | None:
        """Return the network with which actors act, under the θ of the snapshots that `update` asks rollouts for.

        None: θ is no policy's.
        """
        ...

    def init(self, seed: int, device: torch.device) -> S:
        """Return a fresh state."""
        ...

    def update(self, state: S, sample: Sample) -> tuple[S, UpdateMetrics]:
        """Return the next state and the scalars of this update."""
        ...

    def shown(self, state: S) -> dict[str, float]:
        """Return the present values that belong into the summary."""
        ...

    def learnt(self, state: S) -> dict[str, float]:
        """Return those of them that move, for the progress line."""
        ...

    def to_tree(self, state: S) -> dict[str, Any]:
        """Return the state as plain data (dictionaries, lists, numbers, tensors) for a checkpoint."""
        ...

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> S:
        """Invert `to_tree`, on `device`."""
        ...

    def misfit(self, tree: Any) -> str | None:
        """Return the name of the first entry of a tree that is not as `to_tree` gives it; None: the tree fits."""
        ...


class Clock:
    """Adds up the seconds spent in each phase of an update."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last call to this phase."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._since
        self._since = now

    def scalars(self) -> dict[str, float]:
        """Return the seconds under the names that they are logged by."""
        return {f"time/{phase}_seconds": seconds for phase, seconds in self.phases.items()}


def fetched(tensors: dict[str, Tensor]) -> dict[str, float]:
    """Fetch scalars from the device in one transfer."""
    flat = torch.cat([x.reshape(1) for x in tensors.values()]).tolist() if tensors else []
    return dict(zip(tensors, flat, strict=True))


def finite_scalars(tensors: dict[str, Tensor], update: int) -> dict[str, float]:
    """Fetch all scalars of an update: the one moment at which it waits for the device.

    Raises:
        NonFinite: one is NaN or infinite; names the first and the update.
    """
    scalars = fetched(tensors)
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise NonFinite(f"{name} became {value} at update {update}")
    return scalars
