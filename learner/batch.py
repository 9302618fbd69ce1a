"""Merges the actors' rollouts into the learner's batch."""

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metagrad.diagnostics import added_up
from metagrad.frame_stacks import side_by_side, unpacked
from metagrad.types import OF_COLUMNS, MetaGradients, PackedTrajectory, Rollout, Trajectory

Sent = Trajectory | PackedTrajectory | MetaGradients
"""Holds what actors bring."""

_BYTES_WORTH_A_ROOM = 2**20


class Batch(NamedTuple):
    """Holds what all actors brought, as one, and the versions under which its parts were sampled."""

    sent: Sent  # as the actors sent it; frames of stacks stay packed while the batch waits
    versions: tuple[int, ...]  # one per rollout; `sent.policy_version` is the oldest

    @property
    def trajectory(self) -> Any:
        """Return the trajectory for an update, or the meta-gradients; stacks are rebuilt with each call."""
        return self.sent if isinstance(self.sent, MetaGradients) else unpacked(self.sent)


def room_like(fields: Sequence[Tensor]) -> list[Tensor]:
    """Allocate memory for large fields of another batch of this size, which `merge` may fill in another thread.

    C libraries give threads memory of their own, which they return to the kernel as soon as it is free: each batch of
    another thread would be written to pages that the kernel has to clear first, which takes several times as long. The
    learner's own thread keeps what it frees (`cluster.run.memory`). On CUDA, torch keeps page-locked memory itself.
    """
    large = [x for x in fields if x.device.type == "cpu" and x.numel() * x.element_size() >= _BYTES_WORTH_A_ROOM]
    return [torch.empty_like(x) for x in large]


def merge(rollouts: Sequence[Rollout], version: int | None, device: torch.device, room: Sequence[Tensor] = ()) -> Batch:
    """Merge all rollouts' environments side by side into one trajectory, in the order given, on `device`.

    Fields may be torch tensors or the read-only numpy arrays that a transport delivers; numpy ones are copied once.

    Args:
        rollouts: of one batch.
        version: that all of them must have acted under; None: of several, and the trajectory carries the oldest.
        device: where the learner computes.
        room: memory that becomes the batch's, where its fields fit.

    Raises:
        ValueError: a rollout was sampled under another version than the one asked for.
    """
    versions = tuple(rollout.trajectory.policy_version for rollout in rollouts)
    for rollout, found in zip(rollouts, versions, strict=True):
        if version is not None and found != version:
            raise ValueError(f"actor {rollout.actor} acted under version {found} where version {version} was asked for")
    return Batch(joined([rollout.trajectory for rollout in rollouts], device, room), versions)


def joined(trajectories: Sequence[Sent], device: torch.device, room: Sequence[Tensor] = ()) -> Sent:
    """Put trajectories of one kind side by side, in the order given, on `device`; the oldest version is that of all.

    `room` is memory that becomes the batch's, where its fields fit.
    """
    rooms = list(room)

    def concatenate(column: Sequence[Any], axis: int) -> Tensor:
        if isinstance(column[0], np.ndarray):
            field = _concatenated(column, axis, device, rooms)
        else:
            field = column[0] if len(column) == 1 else torch.cat(tuple(column), dim=axis)
        return field.to(device, non_blocking=True)

    populations = [x for x in trajectories if isinstance(x, MetaGradients)]
    if populations:
        *columns, facts, versions = zip(*populations, strict=True)
        gradient, agents, frames, lifetimes = (concatenate(column, 0) for column in columns)
        return MetaGradients(gradient, agents, frames, lifetimes, added_up(facts), min(versions))
    return side_by_side([x for x in trajectories if not isinstance(x, MetaGradients)], concatenate)


def _concatenated(arrays: Sequence[np.ndarray], axis: int, device: torch.device, room: list[Tensor]) -> Tensor:
    """Write arrays one behind the other into a tensor on the host, page-locked where a GPU is to fetch it.

    The tensor is one that is taken from `room`, or a new one.
    """
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    fitting = [i for i, x in enumerate(room) if x.dtype == dtype and x.numel() >= math.prod(shape)]
    if fitting:
        joined = room.pop(fitting[0]).resize_(shape)
    else:
        joined = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    np.concatenate(arrays, axis=axis, out=joined.numpy())
    return joined


def minibatches(batch: Trajectory, uses: int, parts: int, seed: int) -> Iterator[Trajectory]:
    """Yield what each update of a batch looks at: in each of `uses` passes, `parts` minibatches of whole rollouts.

    A pass shuffles the environments and deals them out, so that minibatches have the same number of them or one more.
    The order follows from `seed` alone. With one part each use is of the batch itself.
    """
    if parts == 1:
        yield from repeat(batch, uses)
        return
    generator = torch.Generator().manual_seed(seed)
    for _ in range(uses):
        order = torch.randperm(batch.reward.shape[1], generator=generator)
        for columns in order.to(batch.reward.device, non_blocking=True).tensor_split(parts):
            chosen: dict[str, Any] = {
                name: x.index_select(0 if name in OF_COLUMNS else 1, columns)
                for name, x in batch._asdict().items()
                if isinstance(x, Tensor)
            }
            yield batch._replace(**chosen)


def valid_steps(sent: Sent) -> Tensor:
    """Count the environment steps that were not resets, where they were made."""
    return torch.as_tensor(sent.frames.sum() if isinstance(sent, MetaGradients) else sent.valid.sum())


def tree_of(trajectory: Sent) -> dict[str, Any]:
    """Return the fields of a trajectory for a checkpoint; without those that are None."""
    return {name: x for name, x in trajectory._asdict().items() if x is not None}


def trajectory_of(tree: dict[str, Any]) -> Trajectory | PackedTrajectory:
    """Return the trajectory whose fields are in a checkpoint; older ones have stacks whole."""
    return PackedTrajectory(**tree) if "frames" in tree else Trajectory(**tree)
