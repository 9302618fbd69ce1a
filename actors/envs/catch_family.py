"""Defines a family of Catch (bsuite): boards of several sizes, in which a paddle is to meet a falling ball."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from metagrad.actors.envs.families import LIFETIME, TaskBatch, TaskEnvironment, TaskFamily


@dataclass(frozen=True, kw_only=True, slots=True)
class CatchFamily(TaskFamily):
    """Describes Catch; a task draws the number of rows and that of columns, each size as likely.

    The ball begins in a random column of the first row and falls by a row with each step, the paddle in the middle of
    the last row; the episode ends with 1 for a caught ball and -1 for a missed one. Observations are float32
    [max_size, max_size], with 1 where ball and paddle are; a smaller board is the upper left corner.
    """

    min_size: int = 5
    """Rows and columns of the smallest boards."""
    max_size: int = 10
    """Rows and columns of the largest ones; the same as the smallest: all boards are of that size."""

    def __post_init__(self) -> None:
        TaskFamily.__post_init__(self)
        self.require_whole("max_size", 2, 2**10)
        self.require_whole("min_size", 2, self.max_size, "use at most env.max_size")

    def make_tasks(
        self, *, seeds: Sequence[int], batch_size: int, device: torch.device, streams: Sequence[int] | None = None
    ) -> "CatchTasks":
        return CatchTasks(self, TaskBatch(seeds, batch_size, device, streams))

    def lifetime(self, seed: int) -> int:
        del seed
        return LIFETIME


class CatchBoard(NamedTuple):
    """Holds the size of one board, or of N in front of these dimensions."""

    rows: Int64[Tensor, ""]
    columns: Int64[Tensor, ""]


class CatchTaskState(NamedTuple):
    """Holds N x B games."""

    row: Int64[Tensor, "N B"]  # of the ball
    ball: Int64[Tensor, "N B"]  # column
    paddle: Int64[Tensor, "N B"]  # column


class CatchTasks(TaskEnvironment[CatchBoard, CatchTaskState]):
    """Plays B games on each of N boards with SAME_STEP autoreset."""

    def __init__(self, family: CatchFamily, batch: TaskBatch) -> None:
        self._config = family
        super().__init__(
            family,
            batch,
            name="CatchTasks",
            observation_shape=(family.max_size, family.max_size),
            action_names=("left", "stay", "right"),
            draws=(1, 0),
        )

    def observe(self) -> Float[Tensor, "columns rows width"]:
        """Return the observation of the present states, without stepping."""
        games, side = self._running(), self._config.max_size
        ball = games.row * side + games.ball
        paddle = (self._tasks.rows[:, None] - 1) * side + games.paddle
        board = torch.zeros(self.spec.batch_size, side * side, device=self.spec.device)
        board.scatter_(1, torch.stack((ball.flatten(), paddle.flatten()), dim=1), 1.0)
        return board.view(-1, side, side)

    def _draw(self, seed: int) -> CatchBoard:
        low, high = self._config.min_size, self._config.max_size
        rows, columns = self.family.random_numbers(seed).integers(low, high + 1, 2).tolist()
        return CatchBoard(torch.tensor(rows), torch.tensor(columns))

    def _begin(self, tasks: CatchBoard, uniform: Float[Tensor, "n B start_draws"]) -> CatchTaskState:
        columns = tasks.columns[:, None]
        ball = (uniform[..., 0] * columns).to(torch.int64)
        return CatchTaskState(torch.zeros_like(ball), ball, (columns // 2).expand_as(ball))

    def _move(
        self,
        tasks: CatchBoard,
        state: CatchTaskState,
        action: Int64[Tensor, "N B"],
        uniform: Float[Tensor, "N B step_draws"],
    ) -> tuple[CatchTaskState, Float[Tensor, "N B"], Bool[Tensor, "N B"]]:
        paddle = (state.paddle + action - 1).clamp(min=0).minimum(tasks.columns[:, None] - 1)
        row = state.row + 1
        is_end = row == tasks.rows[:, None] - 1
        reward = torch.where(is_end, torch.where(paddle == state.ball, 1.0, -1.0), 0.0)
        return CatchTaskState(row, state.ball, paddle), reward, is_end
