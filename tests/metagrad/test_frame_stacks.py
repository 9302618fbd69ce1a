"""Whatever stacks come, they are rebuilt bit for bit, and stacks of one game after another take the room of frames."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from metagrad.frame_stacks import FramePacker, packed, side_by_side, unpacked
from metagrad.types import PackedTrajectory, Trajectory

KINDS_OF_START = ("repeated", "zeros", "shown elsewhere", "older frames", "all new")


def steps(length: int, batch: int) -> list[Any]:
    rows, flags = torch.rand(length, batch), torch.rand(length, batch) < 0.5
    return [torch.ones(length, batch, dtype=torch.int64), rows, flags, flags, flags, rows, 3]


def pack(observation: Tensor) -> PackedTrajectory:
    packer = FramePacker(observation[0], len(observation) - 1)
    for stacks in observation[1:]:
        packer.add(stacks)
    return packer.trajectory(*steps(len(observation) - 1, observation.shape[1]))


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.contiguous().view(torch.uint8).equal(expected.contiguous().view(torch.uint8))


def play(seed: int, length: int, batch: int, depth: int, shape: tuple[int, ...], starts: list[str]) -> Tensor:
    """T+1 stacks of B games that begin anew now and then, each time in one of the ways of `starts`.

    Few different frames, so that games look alike by chance and stand still.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    frames = torch.randint(0, 256, (3, *shape), generator=generator).to(torch.uint8)
    frames[0] = 0
    stacks = [[frames[draw(3)] for _ in range(depth)] for _ in range(batch)]
    rows = []
    for _ in range(length + 1):
        rows.append(torch.stack([torch.stack(stack) for stack in stacks]))
        for b, stack in enumerate(stacks):
            new = frames[draw(3)]
            stacks[b] = [*stack[1:], new]
            if starts and draw(3) == 0:
                older = stack[draw(depth) :]
                stacks[b] = {
                    "repeated": [new] * depth,
                    "zeros": [*[torch.zeros_like(new)] * (depth - 1), new],
                    "shown elsewhere": [*stacks[0][1:], new],
                    "older frames": [*(older * depth)[: depth - 1], new],
                    "all new": [frames[draw(3)] + 1 for _ in range(depth)],
                }[starts[draw(len(starts))]]
    return torch.stack(rows)


@hypothesis.given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([(), (1,), (3,), (2, 2), (4, 4), (3, 2, 2)]),
    st.lists(st.sampled_from(KINDS_OF_START), unique=True),
)
def test_games_with_every_kind_of_start_are_rebuilt(
    seed: int, length: int, batch: int, depth: int, shape: tuple[int, ...], starts: list[str]
) -> None:
    observation = play(seed, length, batch, depth, shape, starts)
    trajectory = pack(observation)
    assert_same_bits(unpacked(trajectory).observation, observation)
    if not set(starts) - {"repeated", "zeros"}:
        most = (length + depth) * batch + len(starts)  # zeros are kept once
        assert len(trajectory.frames) <= most


@hypothesis.given(
    st.integers(0, 2**32),
    st.sampled_from([torch.uint8, torch.bool, torch.float32, torch.float64, torch.float16, torch.int64]),
    st.integers(1, 4),
    st.sampled_from([(), (1,), (5,), (2, 3)]),
)
def test_any_numbers_at_all_are_rebuilt(seed: int, dtype: torch.dtype, depth: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    high = 2 if dtype is torch.bool else 256  # all bits of floats: NaN of every kind, infinity, -0.0
    raw = torch.randint(high, (4, 2, depth, *shape, size), generator=generator).to(torch.uint8)
    observation = raw.view(dtype).view(4, 2, depth, *shape)
    assert_same_bits(unpacked(pack(observation)).observation, observation)


def test_zero_and_minus_zero_are_two_frames() -> None:
    observation = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[-0.0, 1.0]]])
    assert_same_bits(unpacked(pack(observation)).observation, observation)


@pytest.mark.parametrize(("start", "more"), [("repeated", 0), ("zeros", 1)])
def test_a_start_costs_no_more_than_its_own_frames(start: str, more: int) -> None:
    """Nothing is kept twice, in any later stack of the game either, and the zeros of all games are one frame."""
    numbers = torch.arange(1, 121, dtype=torch.uint8).view(-1, 1, 1).expand(-1, 3, 3)
    games = []
    for game in numbers.split(40):
        before = game[:1].expand(3, 3, 3) if start == "repeated" else torch.zeros_like(game[:3])
        games.append(torch.cat([before, game]).unfold(0, 4, 1))
    stacks = torch.cat(games).permute(0, 3, 1, 2).unsqueeze(1)
    trajectory = pack(stacks)
    assert_same_bits(unpacked(trajectory).observation, stacks)
    assert len(trajectory.frames) == len(stacks) + 3 + more  # T+K, and the zeros


def test_an_environment_may_write_to_its_own_memory_again() -> None:
    observation = play(1, 6, 2, 4, (3, 3), ["repeated", "all new"])
    buffer = observation[0].clone()
    packer = FramePacker(buffer, 6)
    for stacks in observation[1:]:
        buffer.copy_(stacks)
        packer.add(buffer)
    buffer.zero_()
    assert_same_bits(unpacked(packer.trajectory(*steps(6, 2))).observation, observation)


@pytest.mark.parametrize("change", ["strided", "shifted"])
def test_stacks_may_lie_in_memory_in_any_way(change: str) -> None:
    observation = play(2, 6, 2, 4, (4, 4), ["zeros", "older frames"])
    if change == "strided":
        laid_out = observation.transpose(-1, -2).contiguous().transpose(-1, -2)
    else:
        laid_out = torch.cat([torch.zeros(1, dtype=torch.uint8), observation.flatten()])[1:].view(observation.shape)
    assert_same_bits(unpacked(pack(laid_out)).observation, observation)


def test_rows_that_are_missing_are_noticed() -> None:
    with pytest.raises(AssertionError, match="rows are missing"):
        FramePacker(torch.zeros(2, 4, 3, 3), 5).trajectory()


def test_a_trajectory_is_packed_if_its_observations_are_stacks_of_pictures() -> None:
    stacks = play(3, 8, 2, 4, (5, 5), [])
    trajectory = Trajectory(stacks, *steps(8, 2))
    found = packed(trajectory)
    assert isinstance(found, PackedTrajectory)
    assert found[2:] == trajectory[1:], "nothing else changes"
    assert_same_bits(unpacked(found).observation, stacks)
    assert unpacked(trajectory) is trajectory
    colours = torch.randint(256, stacks.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for other in (colours, stacks[:, :, :1], stacks.float(), stacks.flatten(2)):
        whole = Trajectory(other, *steps(8, 2))
        assert packed(whole) is whole


@pytest.mark.parametrize(("length", "share"), [(5, 0.39), (20, 0.30)])
def test_a_trajectory_of_atari_is_so_much_smaller(length: int, share: float) -> None:
    def size(trajectory: Trajectory | PackedTrajectory) -> int:
        return sum(x.numel() * x.element_size() for x in trajectory if isinstance(x, Tensor))

    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (length + 4, 64, 84, 84), generator=generator).to(torch.uint8)
    stacks = frames.unfold(0, 4, 1).permute(0, 1, 4, 2, 3).contiguous()
    stacks[2, 3], stacks[4, 7, :3] = stacks[2, 3, -1:].clone(), 0  # a game of EnvPool begins, and one of ALE
    whole = Trajectory(stacks, *steps(length, 64))
    assert size(pack(stacks)) <= share * size(whole)


def test_trajectories_side_by_side_are_those_of_all_games_packed_or_whole() -> None:
    stacks = [play(seed, 4, 2, 3, (2, 2), list(KINDS_OF_START)) for seed in (1, 2)]
    parts = [pack(x)._replace(policy_version=version) for x, version in zip(stacks, (5, 4), strict=True)]
    joined = side_by_side(parts)
    assert isinstance(joined, PackedTrajectory)
    assert_same_bits(unpacked(joined).observation, torch.cat(stacks, 1))
    whole = side_by_side([unpacked(part) for part in parts])
    for name, x, y in zip(Trajectory._fields, unpacked(joined), whole, strict=True):
        assert torch.equal(x, y) if isinstance(y, Tensor) else x == y, name
    assert joined.policy_version == 4
