from typing import Any

import numpy as np
import pytest
import torch

from metagrad.frame_stacks import packed
from metagrad.learner.batch import merge, minibatches, room_like, trajectory_of, tree_of
from metagrad.types import Episodes, PackedTrajectory, Rollout, Trajectory

CPU = torch.device("cpu")


def rollout(trajectory: Trajectory | PackedTrajectory, actor: int) -> Rollout:
    return Rollout(trajectory, Episodes(torch.zeros(0), torch.zeros(0, dtype=torch.int64)), actor, False)


def as_numpy(trajectory: Trajectory | PackedTrajectory) -> Any:
    arrays = [x.numpy() if isinstance(x, torch.Tensor) else x for x in trajectory]
    for array in arrays:
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    return type(trajectory)(*arrays)


@pytest.mark.parametrize("convert", [lambda t: t, as_numpy])
@pytest.mark.parametrize("is_recurrent", [False, True])
def test_environments_lie_side_by_side_in_the_order_of_the_actors(
    trajectory: Any, convert: Any, is_recurrent: bool
) -> None:
    parts = [trajectory(7)._replace(policy_version=3), trajectory(8)._replace(policy_version=3)]
    if is_recurrent:
        batch = parts[0].reward.shape[1]
        first = [
            {"first_state": torch.full((batch, 3), i), "first_return": torch.full((batch,), i)} for i in (0.0, 1.0)
        ]
        parts = [part._replace(**each) for part, each in zip(parts, first, strict=True)]
    merged = merge([rollout(convert(part), i) for i, part in enumerate(parts)], 3, CPU).trajectory
    assert merged.policy_version == 3
    assert (merged.first_state is not None) == is_recurrent
    for name in (name for name in tree_of(merged) if name != "policy_version"):
        expected = torch.cat([getattr(part, name) for part in parts], dim=0 if "first" in name else 1)
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


def test_what_fits_is_written_into_the_memory_given_and_all_else_into_its_own(trajectory: Any) -> None:
    part = trajectory(0)
    rollouts = [rollout(as_numpy(part), i) for i in range(2)]
    expected = merge(rollouts, 0, CPU).trajectory
    exact, ample, small = torch.empty_like(expected.observation), torch.full((1000,), 7), torch.zeros(1)
    places = [exact.data_ptr(), ample.data_ptr()]
    batch = merge(rollouts, 0, CPU, [small, exact, ample])
    found = batch.trajectory
    assert [found.observation.data_ptr(), found.action.data_ptr()] == places
    for name in (x for x in tree_of(expected) if x != "policy_version"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.reward.data_ptr() != small.data_ptr()


def test_only_large_fields_get_memory_for_another_batch() -> None:
    large, small = torch.zeros(2, 2**18, dtype=torch.int32), torch.zeros(5)
    (room,) = room_like([small, large])
    assert (room.shape, room.dtype) == (large.shape, large.dtype)
    assert room.data_ptr() != large.data_ptr()


@pytest.mark.parametrize("convert", [lambda t: t, as_numpy])
@pytest.mark.parametrize("count", [1, 3])
def test_packed_rollouts_are_merged_packed_and_rebuilt_as_whole_ones(pictures: Any, convert: Any, count: int) -> None:
    parts = [pictures(version) for version in range(count)]
    batch = merge([rollout(convert(packed(part)), i) for i, part in enumerate(parts)], None, CPU)
    assert isinstance(batch.sent, PackedTrajectory)
    expected = merge([rollout(part, i) for i, part in enumerate(parts)], None, CPU).trajectory
    for name, found, other in zip(Trajectory._fields, batch.trajectory, expected, strict=True):
        is_equal = found == other if isinstance(other, int | None) else torch.equal(found, other)
        assert is_equal, name
    assert batch.trajectory.observation.dtype is torch.uint8


def test_a_checkpoint_may_hold_stacks_whole_or_packed(pictures: Any) -> None:
    recurrent = pictures(0)._replace(first_state=torch.ones(1, 2))
    for trajectory in (pictures(0), packed(pictures(0)), packed(recurrent)):
        tree = tree_of(trajectory)
        assert ("first_state" in tree) == (trajectory.first_state is not None)
        found = trajectory_of(tree)
        assert type(found) is type(trajectory)
        assert all(x is y for x, y in zip(found, trajectory, strict=True))


def numbered(environments: int) -> Trajectory:
    """Return a trajectory whose every field says the environment, and the row where it has rows."""
    rows = torch.arange(4)[:, None] * 100.0 + torch.arange(environments)
    flags = torch.zeros(3, environments, dtype=torch.bool)
    of_columns = torch.arange(environments)
    observation = rows[:, :, None].expand(-1, -1, 2)
    first_state = of_columns[:, None].float()
    fields = (rows[:3].long(), rows[:3], flags, flags, ~flags, -rows[:3], 7, first_state, of_columns.float())
    return Trajectory(observation, *fields)


@pytest.mark.parametrize(("environments", "parts"), [(8, 4), (7, 3), (3, 3)])
def test_each_use_deals_out_all_environments_anew(environments: int, parts: int) -> None:
    batch, uses = numbered(environments), 5
    dealt = list(minibatches(batch, uses, parts, seed=3))
    assert len(dealt) == uses * parts
    orders = []
    for part in dealt:
        columns = part.reward[0].long()
        for name, x in part._asdict().items():
            whole = getattr(batch, name)
            if name == "policy_version":
                assert x == whole
            else:
                assert torch.equal(x, whole[columns] if name.startswith("first") else whole[:, columns]), name
        orders.append(columns.tolist())
    passes = [[x for order in orders[i : i + parts] for x in order] for i in range(0, len(orders), parts)]
    assert all(sorted(columns) == list(range(environments)) for columns in passes), "each once in a pass"
    assert len({tuple(columns) for columns in passes}) > 1, "no two passes need be equal"
    assert {len(order) for order in orders} <= {environments // parts, -(-environments // parts)}
    again = [part.reward[0].long().tolist() for part in minibatches(batch, uses, parts, seed=3)]
    other = [part.reward[0].long().tolist() for part in minibatches(batch, uses, parts, seed=4)]
    assert again == orders != other


def test_a_batch_in_one_part_is_the_batch_itself() -> None:
    batch = numbered(4)
    assert all(part is batch for part in minibatches(batch, 3, 1, seed=0))
