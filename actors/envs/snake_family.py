"""Defines a family of Snake on square boards of several sizes, by the rules of `snake`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int16, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.base import MAX_STEPS
from metagrad.actors.envs.families import LIFETIME, TaskBatch, TaskEnvironment, TaskFamily
from metagrad.actors.envs.snake import (
    ACTION_NAMES,
    Boards,
    SnakeConfig,
    SnakeState,
    advance,
    make_board,
    observe_state,
    place_fruit,
    restart,
    uniform_free_cell,
)

MAX_SIZE = 181  # 181^2 cells is what lengths in int16 can count


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeFamily(TaskFamily):
    """Describes Snake; a task draws the size of its square board, each as likely.

    Observations are float32 [max_size, max_size, 5] as those of Snake; a smaller board is the upper left corner.
    """

    min_size: int = 4
    """Rows and columns of the smallest boards."""
    max_size: int = 8
    """Rows and columns of the largest ones."""
    time_limit: int = 500
    """Longest episode in steps; reaching it is a true termination."""

    def __post_init__(self) -> None:
        TaskFamily.__post_init__(self)
        self.require_whole("max_size", 2, MAX_SIZE)
        self.require_whole("min_size", 2, self.max_size, "use at most env.max_size")
        self.require_whole("time_limit", 1, MAX_STEPS, "Jumanji uses 500 on 6 x 6 and 5000 on 12 x 12")

    def make_tasks(
        self, *, seeds: Sequence[int], batch_size: int, device: torch.device, streams: Sequence[int] | None = None
    ) -> "SnakeTasks":
        return SnakeTasks(self, TaskBatch(seeds, batch_size, device, streams))

    def lifetime(self, seed: int) -> int:
        del seed
        return LIFETIME


class SnakeBoard(NamedTuple):
    """Holds the size of one task's board, or of N in front of these dimensions."""

    size: Int64[Tensor, ""]  # less the family's smallest


class SnakeTaskState(NamedTuple):
    """Holds N x B games; the fields are those of `SnakeState`."""

    body_state: Int16[Tensor, "N B cells"]
    head: Int64[Tensor, "N B"]
    tail: Int64[Tensor, "N B"]
    fruit: Int64[Tensor, "N B"]
    length: Int16[Tensor, "N B"]
    step_count: Int32[Tensor, "N B"]


class SnakeTasks(TaskEnvironment[SnakeBoard, SnakeTaskState]):
    """Plays B games on each of N boards with SAME_STEP autoreset."""

    def __init__(self, family: SnakeFamily, batch: TaskBatch) -> None:
        self._config = family
        side = family.max_size
        super().__init__(
            family,
            batch,
            name="SnakeTasks",
            observation_shape=(side, side, 5),
            action_names=ACTION_NAMES,
            draws=(2, 1),
        )
        device = self.spec.device
        sizes = range(family.min_size, side + 1)
        boards = [make_board(SnakeConfig(rows=n, columns=n), device) for n in sizes]
        self._next_cell = _stacked([board.next_cell for board in boards])
        self._neighbourhood = _stacked([board.neighbourhood for board in boards])
        self._num_cells = torch.tensor([n * n for n in sizes], dtype=torch.int16, device=device)
        self._place = _stacked([_places(n, side, device) for n in sizes])

    def observe(self) -> Float[Tensor, "columns rows width 5"]:
        """Return the observation of the present states, without stepping."""
        games = SnakeState(*(field.flatten(0, 1) for field in self._running()))
        place = self._place[self._size(self._tasks).flatten()]
        # Everything keeps its row and column. Cells that a smaller board lacks are empty: they all add 0 to cell 0.
        body = torch.zeros_like(games.body_state).scatter_add_(1, place, games.body_state)
        head, tail, fruit = (place.gather(1, x[:, None]).squeeze(1) for x in (games.head, games.tail, games.fruit))
        moved = games._replace(body_state=body, head=head, tail=tail, fruit=fruit)
        return observe_state(moved, self._config.max_size)

    def _draw(self, seed: int) -> SnakeBoard:
        sizes = self._config.max_size - self._config.min_size + 1
        return SnakeBoard(torch.tensor(int(self.family.random_numbers(seed).integers(sizes))))

    def _size(self, tasks: SnakeBoard) -> Int64[Tensor, "n B"]:
        return tasks.size[:, None].expand(-1, self.environments_per_task)

    def _begin(self, tasks: SnakeBoard, uniform: Float[Tensor, "n B start_draws"]) -> SnakeTaskState:
        num_cells = self._num_cells[self._size(tasks)].flatten()
        head = (uniform[..., 0].flatten() * num_cells).to(torch.int64)
        nothing = torch.zeros(head.shape[0], self._next_cell.shape[1], dtype=torch.int16, device=self.spec.device)
        length = torch.zeros_like(num_cells)
        games = SnakeState(nothing, head, head, head, length, length.to(torch.int32))
        games = restart(games, torch.ones_like(head, dtype=torch.bool), head)
        fruit = self._free_cell(games, num_cells, uniform[..., 1].flatten())
        return SnakeTaskState(*(x.unflatten(0, uniform.shape[:2]) for x in games._replace(fruit=fruit)))

    def _move(
        self,
        tasks: SnakeBoard,
        state: SnakeTaskState,
        action: Int64[Tensor, "N B"],
        uniform: Float[Tensor, "N B step_draws"],
    ) -> tuple[SnakeTaskState, Float[Tensor, "N B"], Bool[Tensor, "N B"]]:
        size = self._size(tasks).flatten()
        boards = Boards(self._next_cell, self._neighbourhood, self._num_cells, size, self._config.time_limit)
        games, outcome = advance(SnakeState(*(x.flatten(0, 1) for x in state)), action.flatten(), boards)
        fruit = self._free_cell(games, self._num_cells[size], uniform[..., 0].flatten())
        games = place_fruit(games, outcome.is_fruit_eaten, fruit)
        moved = SnakeTaskState(*(x.unflatten(0, action.shape) for x in games))
        reward, is_terminal = outcome.is_fruit_eaten.to(torch.float32), outcome.is_terminal
        return moved, reward.view(action.shape), is_terminal.view(action.shape)

    def _free_cell(
        self, games: SnakeState, num_cells: Int16[Tensor, "columns"], uniform: Float[Tensor, "columns"]
    ) -> Int64[Tensor, "columns"]:
        """Choose a free cell of each column's board; the cells that it lacks come last, and count as covered."""
        lacking = self._next_cell.shape[1] - num_cells
        return uniform_free_cell(games.body_state, games.length + lacking, uniform)


def _stacked(tables: list[Int64[Tensor, "..."]]) -> Int64[Tensor, "..."]:
    """Stack tables of boards of increasing sizes, filled up with 0."""
    rows = tables[-1].shape[0]
    padded = [torch.cat((table, table.new_zeros(rows - table.shape[0], *table.shape[1:]))) for table in tables]
    return torch.stack(padded)


def _places(size: int, largest: int, device: torch.device) -> Int64[Tensor, "cells"]:
    """Return the numbers that the cells of a small board have in the largest one."""
    cell = torch.arange(size * size, device=device)
    return cell // size * largest + cell % size
