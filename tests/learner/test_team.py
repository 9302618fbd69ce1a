"""Learners have shares of a run, and its checkpoint is put together from them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from metagrad.frame_stacks import packed, unpacked
from metagrad.learner.actors import Account
from metagrad.learner.batch import trajectory_of, tree_of
from metagrad.learner.team import LearnersShare, digest, joined_fields, own_part, share_of
from metagrad.types import Trajectory

Make = Callable[[int], Trajectory]


def same(one: Trajectory, other: Trajectory) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["vectors", "pictures", "carried"])
def test_parts_of_a_window_are_the_window(trajectory: Make, pictures: Make, kind: str, size: int) -> None:
    whole = pictures(7) if kind == "pictures" else trajectory(7)
    columns = whole.reward.shape[1]
    if kind == "carried":
        whole = whole._replace(first_state=torch.rand(columns, 2), first_return=torch.rand(columns))
    sent = packed(whole) if kind == "pictures" else whole
    assert (type(sent) is Trajectory) == (kind != "pictures")
    window = [{"trajectory": tree_of(sent), "versions": list(range(columns))}]
    learner = {"carry": tree_of(sent), "update": 3}
    account = Account()
    account.order(12)
    checkpoint = {"learner": learner, "window": window, "actors": [{}] * columns, "account": account.to_tree()}
    parts = [own_part(checkpoint, LearnersShare(*(share_of(columns, rank, size),) * 3)) for rank in range(size)]
    for of in (lambda part: part["window"][0]["trajectory"], lambda part: part["learner"]["carry"]):
        fields: Any = joined_fields([of(part) for part in parts])
        assert same(unpacked(trajectory_of(fields)), whole)
    frames = [len(part["window"][0]["trajectory"].get("frames", ())) for part in parts]
    assert sum(frames) == len(tree_of(sent).get("frames", ())), "each has the frames that its columns show"
    assert [version for part in parts for version in part["window"][0]["versions"]] == list(range(columns))
    assert [part["account"]["sampled"] for part in parts] == [12] + [0] * (size - 1)


def test_a_part_that_shows_other_pictures_is_joined_whole(pictures: Make) -> None:
    """Stacks of which most do not continue are not packed; beside such a share the others are not either."""
    one, other = tree_of(packed(pictures(1))), tree_of(pictures(2))
    fields: Any = joined_fields([one, other])
    assert "frames" not in fields
    assert torch.equal(fields["observation"][:, :3], pictures(1).observation)


def test_a_digest_sees_every_bit_but_those_of_the_batch() -> None:
    learner = {"theta": torch.zeros(3), "optimizer": {"moments": [torch.ones(3)]}, "carry": {"reward": torch.ones(2)}}
    other = learner | {"carry": None}
    assert digest(learner) == digest(other)
    assert digest(learner) != digest(learner | {"theta": torch.tensor([0.0, 0.0, -0.0])})
