"""Packs observations that are stacks of frames, as Atari's are, so that every frame is held once.

A stack shows the last K frames of a game, the newest last, so the next stack shows K-1 of them again. T+1 stacks are
therefore kept as T+K frames and, for each place of each stack, the number of the frame there:

    observation[t, b, k] = frames[frame_index[t, b, k]]

Every stack is compared with what would be rebuilt for it, bit by bit. Where it does not continue the one before (a new
game has begun, and its first stack is filled up with repetitions or zeros), frames that are nowhere else are kept in
addition. So whatever the sequence is, it is rebuilt exactly; one that is not of stacks merely saves nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Integer, Shaped
from torch import Tensor

from metagrad.types import OF_COLUMNS, PackedTrajectory, Trajectory

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}  # by their bytes


class FramePacker:
    """Takes the T+1 stacks of B games, row after row, and writes each new frame once."""

    def __init__(self, first: Shaped[Tensor, "B K ..."], length: int):
        """Begin with row 0; `length` is T, the number of rows to come."""
        words = _words(first)
        batch, self._depth, size = words.shape
        rows = length + self._depth
        self._dtype, self._shape = first.dtype, first.shape[2:]
        self._frames = words.new_empty((rows, batch, size))
        self._frames[: self._depth] = words.transpose(0, 1)
        self._flat = self._frames.flatten(0, 1)
        self._others: list[Tensor] = []  # what was the newest frame of no stack; numbered after those of `_flat`
        numbers = torch.arange(rows * batch, dtype=torch.int32, device=first.device).view(rows, batch)
        self._index = numbers.unfold(0, self._depth, 1).clone()  # [T+1, B, K]: each stack continues the one before
        self._row = 0

    def add(self, stacks: Shaped[Tensor, "B K ..."]) -> None:
        """Take the next row, which may be overwritten afterwards."""
        words = _words(stacks)
        self._row += 1
        newest = self._row + self._depth - 1
        self._frames[newest] = words[:, -1]
        shown, expected = words[:, :-1].transpose(0, 1), self._frames[self._row : newest]
        if not torch.equal(shown, expected):
            for b in (shown != expected).any(-1).any(0).nonzero().flatten().tolist():
                self._locate(b, words[b])

    def _locate(self, b: int, stack: Integer[Tensor, "K words"]) -> None:
        """Note where the frames are of a stack that is not the last K rows, from the newest one backwards."""
        before, here = self._index[self._row - 1, b], self._index[self._row, b]
        for k in reversed(range(self._depth - 1)):
            # As in the game's stack before, or a repetition, or what was kept last (the zeros of another game, say).
            end = len(self._flat) + len(self._others)
            candidates = [int(before[k + 1]), int(here[k + 1]), *([end - 1] if self._others else [])]
            found = next((number for number in candidates if torch.equal(self._frame(number), stack[k])), end)
            if found == end:
                self._others.append(stack[k].clone())
            here[k] = found

    def _frame(self, number: int) -> Integer[Tensor, "words"]:
        other = number - len(self._flat)
        return self._flat[number] if other < 0 else self._others[other]

    def trajectory(self, *steps: Any) -> PackedTrajectory:
        """Return the trajectory of all rows; `steps` are the fields from `action` on."""
        assert self._row == len(self._index) - 1, "rows are missing"
        flat = torch.cat([self._flat, torch.stack(self._others)]) if self._others else self._flat
        return PackedTrajectory(flat.view(self._dtype).view(-1, *self._shape), self._index, *steps)


def _words(stacks: Shaped[Tensor, "B K ..."]) -> Integer[Tensor, "B K words"]:
    """Return the bits of each frame as integers as wide as its size allows: quick to compare, NaN and -0.0 included."""
    frame, item = math.prod(stacks.shape[2:]), stacks.element_size()
    width = math.gcd(8, frame * item)
    stacks = stacks.contiguous()
    if stacks.storage_offset() * item % width:
        stacks = stacks.clone()
    return stacks.view(*stacks.shape[:2], frame).view(_WORDS[width])


def packed(trajectory: Trajectory) -> Trajectory | PackedTrajectory:
    """Pack a trajectory whose observations are stacks of pictures, as most of them show; return any other as it is."""
    observation, *steps = trajectory
    if observation.dtype is not torch.uint8 or observation.dim() != 5 or observation.shape[2] == 1:
        return trajectory
    continues = (observation[1:, :, :-1] == observation[:-1, :, 1:]).flatten(2).all(-1)
    if 2 * continues.sum() < continues.numel():
        return trajectory
    packer = FramePacker(observation[0], len(observation) - 1)
    for stacks in observation[1:]:
        packer.add(stacks)
    return packer.trajectory(*steps)


def unpacked(trajectory: Trajectory | PackedTrajectory) -> Trajectory:
    """Return the trajectory with whole stacks, on its device; one that is whole is returned as it is."""
    if isinstance(trajectory, Trajectory):
        return trajectory
    index = trajectory.frame_index
    steps: tuple[Any, ...] = trajectory[2:]
    return Trajectory(trajectory.frames.index_select(0, index.flatten()).unflatten(0, index.shape), *steps)


def _concatenated(column: Sequence[Tensor], axis: int) -> Tensor:
    return torch.cat(tuple(column), axis)


def side_by_side(
    trajectories: Sequence[Trajectory | PackedTrajectory],
    concatenate: Callable[[Sequence[Any], int], Any] = _concatenated,
) -> Trajectory | PackedTrajectory:
    """Join trajectories of as many steps, the environments of one behind those of the one before.

    Args:
        trajectories: all packed, or none.
        concatenate: joins the arrays of one field along an axis.

    Returns:
        A trajectory of the same kind under the oldest of their policy versions.
    """
    parts = [trajectory._asdict() for trajectory in _shifted(trajectories)]
    fields: dict[str, Any] = {}
    for name, first in parts[0].items():
        if name != "policy_version" and first is not None:
            axis = 0 if name in ("frames", *OF_COLUMNS) else 1
            fields[name] = concatenate([part[name] for part in parts], axis)
    return type(trajectories[0])(**fields, policy_version=min(part["policy_version"] for part in parts))


def _shifted(trajectories: Sequence[Trajectory | PackedTrajectory]) -> Iterator[Trajectory | PackedTrajectory]:
    """Shift what packed trajectories say about their frames, which come to lie behind those of the ones before."""
    frames = 0
    for trajectory in trajectories:
        if isinstance(trajectory, PackedTrajectory):
            yield trajectory._replace(frame_index=trajectory.frame_index + frames)
            frames += len(trajectory.frames)
        else:
            yield trajectory
