from typing import Any

import pytest
import torch
from torch import Tensor

from metagrad.learner.batch import tree_of
from metagrad.learner.plain_data import is_finite, is_like, is_trajectory
from metagrad.types import Trajectory

LIKE = {"count": 3, "rate": 0.5, "name": "x", "moments": [torch.zeros(2)], "nothing": None}


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"count": 0, "rate": 1, "moments": [torch.ones(2)]}, True),
        ({"count": "3"}, False),
        ({"count": True}, False),
        ({"count": -1}, False),
        ({"count": 2**63}, False),
        ({"count": 3.0}, False),
        ({"rate": float("nan")}, False),
        ({"rate": 10**400}, False),
        ({"rate": torch.zeros(())}, False),
        ({"name": None}, False),
        ({"nothing": 0}, False),
        ({"moments": []}, False),
        ({"moments": (torch.zeros(2),)}, False),
        ({"moments": [torch.zeros(3)]}, False),
        ({"moments": [torch.zeros(2, dtype=torch.int64)]}, False),
        ({"moments": [torch.zeros(2, dtype=torch.float64)]}, False),
        ({"moments": [torch.zeros(2, device="meta")]}, False),
        ({"moments": [torch.zeros(2).to_sparse()]}, False),
        ({"moments": [torch.nn.Parameter(torch.zeros(2))]}, False),
        ({"moments": [[0.0, 0.0]]}, False),
        ({"more": 1}, False),
    ],
    ids=str,
)
def test_a_tree_is_like_another_in_keys_types_and_shapes(changes: dict[str, Any], fits: bool) -> None:
    assert is_like(LIKE | changes, LIKE) == fits


def test_what_is_no_dictionary_is_like_none() -> None:
    for found in (None, 3, [], "x", torch.zeros(2)):
        assert not is_like(found, LIKE)


def trajectory(**changes: Tensor | int) -> dict[str, Any]:
    flags = torch.zeros(3, 2, dtype=torch.bool)
    whole = Trajectory(
        torch.zeros(4, 2, 5),
        torch.zeros(3, 2, dtype=torch.int64),
        torch.zeros(3, 2),
        flags,
        flags,
        flags,
        torch.zeros(3, 2),
        policy_version=1,
    )
    return tree_of(whole) | changes


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"reward": torch.zeros(3, 3)}, False),
        ({"observation": torch.zeros(3, 2, 5)}, False),
        ({"valid": torch.zeros(3, 2)}, False),
        ({"action": torch.zeros(3, 2)}, False),
        ({"reward": torch.zeros(3, 2, dtype=torch.int64)}, False),
        ({"policy_version": "1"}, False),
        ({"first_state": torch.zeros(2, 7)}, True),
        ({"first_state": torch.zeros(3, 7)}, False),
        ({"first_state": torch.zeros(2)}, False),
        ({"first_state": torch.zeros(2, 7, dtype=torch.int64)}, False),
        ({"first_state": None}, False),
        ({"first_return": torch.zeros(2)}, True),
        ({"first_return": torch.zeros(2, 1)}, False),
        ({"more": 1}, False),
    ],
    ids=str,
)
def test_a_trajectory_has_its_shapes_and_types(changes: dict[str, Any], fits: bool) -> None:
    assert is_trajectory(trajectory(**changes)) == fits
    assert not is_trajectory(None)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"frames": torch.zeros(12)}, True),
        ({"frames": torch.zeros(11, 5)}, False),
        ({"frames": torch.zeros(())}, False),
        ({"frame_index": torch.zeros(4, 2, 3, dtype=torch.int64)}, False),
        ({"frame_index": torch.zeros(4, 2, dtype=torch.int32)}, False),
        ({"frame_index": torch.zeros(3, 2, 3, dtype=torch.int32)}, False),
        ({"frame_index": torch.full((4, 2, 3), -1, dtype=torch.int32)}, False),
        ({"reward": torch.zeros(3, 3)}, False),
        ({"observation": torch.zeros(4, 2, 5)}, False),
    ],
    ids=str,
)
def test_the_frames_of_a_packed_trajectory_are_where_it_says(changes: dict[str, Any], fits: bool) -> None:
    index = torch.zeros(4, 2, 3, dtype=torch.int32)
    index[3, 1, 2] = 11
    steps = {name: x for name, x in trajectory().items() if name != "observation"}
    assert is_trajectory({"frames": torch.zeros(12, 5), "frame_index": index} | steps | changes) == fits


def test_no_component_is_nan_or_infinite() -> None:
    assert is_finite(torch.zeros(3))
    assert is_finite(torch.zeros(0))
    for bad in (float("nan"), float("inf")):
        assert not is_finite(torch.tensor([0.0, bad]))
