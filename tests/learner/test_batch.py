from typing import Any

import numpy as np
import pytest
import torch

from metagrad.learner.batch import merge
from metagrad.types import Episodes, Rollout, Trajectory

CPU = torch.device("cpu")


def rollout(trajectory: Trajectory, actor: int) -> Rollout:
    return Rollout(trajectory, Episodes(torch.zeros(0), torch.zeros(0, dtype=torch.int64)), actor, False)


def as_numpy(trajectory: Trajectory) -> Trajectory:
    arrays = [x.numpy() if isinstance(x, torch.Tensor) else x for x in trajectory]
    for array in arrays[:-1]:
        array.setflags(write=False)
    return Trajectory(*arrays)


@pytest.mark.parametrize("convert", [lambda t: t, as_numpy])
def test_environments_lie_side_by_side_in_the_order_of_the_actors(trajectory: Any, convert: Any) -> None:
    parts = [trajectory(7)._replace(policy_version=3), trajectory(8)._replace(policy_version=3)]
    merged = merge([rollout(convert(part), i) for i, part in enumerate(parts)], 3, CPU).trajectory
    assert merged.policy_version == 3
    for name in Trajectory._fields[:-1]:
        expected = torch.cat([getattr(part, name) for part in parts], dim=1)
        found = getattr(merged, name)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), name


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_copied(trajectory: Any) -> None:
    part = as_numpy(trajectory(0))
    merged = merge([rollout(part, 0)], 0, CPU).trajectory
    merged.reward.zero_()
    assert np.any(part.reward != 0)


def test_a_rollout_of_another_version_is_refused(trajectory: Any) -> None:
    with pytest.raises(ValueError, match=r"actor 1 acted under version 4 where version 3 was asked for"):
        merge([rollout(trajectory(3), 0), rollout(trajectory(4), 1)], 3, CPU)
