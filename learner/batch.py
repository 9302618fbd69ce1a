"""Merges the actors' rollouts into the learner's batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from metagrad.types import Rollout, Trajectory


class Batch(NamedTuple):
    """Holds one trajectory of all environments, and the versions under which its parts were sampled."""

    trajectory: Trajectory
    versions: tuple[int, ...]  # one per rollout; `trajectory.policy_version` is the oldest


def merge(rollouts: Sequence[Rollout], version: int | None, device: torch.device) -> Batch:
    """Merge all rollouts' environments side by side into one trajectory, in the order given, on `device`.

    Fields may be torch tensors or the read-only numpy arrays that a transport delivers; numpy ones are copied once.

    Args:
        rollouts: of one batch.
        version: that all of them must have acted under; None: of several, and the trajectory carries the oldest.
        device: where the learner computes.

    Raises:
        ValueError: a rollout was sampled under another version than the one asked for.
    """
    versions = tuple(rollout.trajectory.policy_version for rollout in rollouts)
    for rollout, found in zip(rollouts, versions, strict=True):
        if version is not None and found != version:
            raise ValueError(f"actor {rollout.actor} acted under version {found} where version {version} was asked for")
    columns = zip(*(rollout.trajectory[:-1] for rollout in rollouts), strict=True)
    fields: list[Any] = []
    for column in columns:
        if isinstance(column[0], np.ndarray):
            field = torch.from_numpy(np.concatenate(column, axis=1))
        else:
            field = column[0] if len(column) == 1 else torch.cat(column, dim=1)
        fields.append(field.to(device, non_blocking=True))
    return Batch(Trajectory._make([*fields, min(versions)]), versions)
