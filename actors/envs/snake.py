"""Plays Snake on a torch device: a few whole-batch tensor operations step B boards together.

The rules are those of Jumanji's Snake (Bonnet et al. 2024, arXiv:2306.09884; versions 0.1.3 and 1.1.2 agree on them).

Shapes: B boards of `cells` = rows * columns cells; a cell is its row-major number. Everything random is drawn outside
the rules and handed to them: `advance` moves the snakes, `restart` and `place_fruit` take the cells that were drawn.
The rules are pure, copy nothing to the host and have no shape that depends on data, so on a GPU they queue up without
waiting and can be captured in a CUDA graph. The host need not wait for its data: `step_state_on_host` gives the same
bits and searches those boards alone that need a new snake or fruit, which are few.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16, Int32, Int64, UInt8
from torch import Tensor

from metagrad.actors.envs.base import MAX_STEPS, DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep
from metagrad.actors.envs.snake_render import render
from metagrad.errors import require

ACTION_NAMES = ("up", "right", "down", "left")
MAX_CELLS = torch.iinfo(torch.int16).max  # `body_state` counts up to the snake's length in int16
PICTURE_SIZE = 400  # pixels, roughly, of a drawn board's longer side
CACHED_BYTES = 3 * 2**19  # of observations written at a time on the host: a second-level cache of 2 MiB keeps them


@dataclass(frozen=True, kw_only=True, slots=True)
class SnakeConfig(DeviceEnvironmentConfig):
    """Describes board and time limit; the default is Jumanji 0.1.3's `Snake-6x6-v0` (its 12x12 has a limit of 5000)."""

    rows: int = 6  # of the board
    columns: int = 6  # of the board
    time_limit: int = 500  # longest episode in steps; reaching it is a true termination

    def __post_init__(self) -> None:
        self.require_whole("rows", 1)
        self.require_whole("columns", 1)
        self.require_whole("time_limit", 1, MAX_STEPS, "Jumanji uses 500 on 6 x 6 and 5000 on 12 x 12")
        board = f"{self.rows} x {self.columns}"
        rule = f"the board must have 2 to {MAX_CELLS} cells (head and first fruit need one each)"
        require(2 <= self.cells <= MAX_CELLS, "env.rows x env.columns", board, rule, "change env.rows or env.columns")

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    def make(self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool) -> "Snake":
        """Make B environments on `device`; neither threads nor training matter."""
        del threads, is_training
        return Snake(self, batch_size, seed, device)

    @property
    def has_pictures(self) -> bool:
        """Return True: boards are drawn."""
        return True

    def make_pictured(self, seed: int) -> "PicturedSnake":
        """Make one game whose board is drawn."""
        return PicturedSnake(self, seed)


class SnakeState(NamedTuple):
    """Holds B games; after a death the snake's cells mean nothing until `restart`."""

    body_state: Int16[Tensor, "B cells"]  # steps until the cell is vacated: `length` at the head, 1 at the tail, 0 free
    head: Int64[Tensor, "B"]  # cell
    tail: Int64[Tensor, "B"]  # cell
    fruit: Int64[Tensor, "B"]  # cell
    length: Int16[Tensor, "B"]  # cells that the snake covers
    step_count: Int32[Tensor, "B"]  # steps of the episode so far


class SnakeOutcome(NamedTuple):
    """Tells what one move led to."""

    is_fruit_eaten: Bool[Tensor, "B"]
    is_terminal: Bool[Tensor, "B"]  # wall, own body, full board or time limit


class Board(NamedTuple):
    """Holds the neighbourhood tables of one board size, and the time limit."""

    next_cell: Int64[Tensor, "cells 4"]  # where an action leads; off the board: the cell itself
    neighbourhood: Int64[Tensor, "cells 5"]  # the cell and its four `next_cell`
    time_limit: int

    def entered(self, head: Int64[Tensor, "B"], action: Int[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """Return the cell that each action leads to."""
        return self.next_cell[head, action]

    def around(self, cell: Int64[Tensor, "B"]) -> Int64[Tensor, "B 5"]:
        """Return each cell and its neighbours."""
        return self.neighbourhood.index_select(0, cell)

    def is_full(self, length: Int16[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Return True where a snake of this length leaves no cell free."""
        return length == self.next_cell.shape[0]


class Boards(NamedTuple):
    """Holds tables of boards of several sizes, of which each column has one; the largest has `cells` cells.

    A smaller board has the first ones, numbered row by row in the board itself.
    """

    next_cell: Int64[Tensor, "sizes cells 4"]
    neighbourhood: Int64[Tensor, "sizes cells 5"]
    cells: Int16[Tensor, "sizes"]
    size: Int64[Tensor, "B"]  # of each column's board: its number in these tables
    time_limit: int

    def entered(self, head: Int64[Tensor, "B"], action: Int[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """Return the cell that each action leads to."""
        return self.next_cell[self.size, head, action]

    def around(self, cell: Int64[Tensor, "B"]) -> Int64[Tensor, "B 5"]:
        """Return each cell and its neighbours."""
        return self.neighbourhood[self.size, cell]

    def is_full(self, length: Int16[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Return True where a snake of this length leaves no cell free."""
        return length == self.cells[self.size]


def make_board(config: SnakeConfig, device: torch.device) -> Board:
    """Make the tables of the board that `config` describes, on `device`."""
    cell = torch.arange(config.cells, device=device)
    row, column = cell // config.columns, cell % config.columns
    is_inside = torch.stack((row > 0, column < config.columns - 1, row < config.rows - 1, column > 0), dim=1)
    target = torch.stack((cell - config.columns, cell + 1, cell + config.columns, cell - 1), dim=1)
    next_cell = torch.where(is_inside, target, cell[:, None])
    return Board(next_cell, torch.cat((cell[:, None], next_cell), dim=1), config.time_limit)


def empty_state(board: Board, batch_size: int) -> SnakeState:
    """Make B boards without snakes, which `restart` fills."""
    device, cells = board.next_cell.device, board.next_cell.shape[0]
    position = torch.zeros(batch_size, dtype=torch.int64, device=device)
    return SnakeState(
        body_state=torch.zeros(batch_size, cells, dtype=torch.int16, device=device),
        head=position,
        tail=position,
        fruit=position,
        length=position.to(torch.int16),
        step_count=position.to(torch.int32),
    )


def advance(state: SnakeState, action: Int[Tensor, "B"], board: Board | Boards) -> tuple[SnakeState, SnakeOutcome]:
    """Move every snake once; the fruit stays where it is, also where it was eaten.

    The body forgets one step unless a fruit was eaten, so a head may enter the cell that the tail leaves in this step.
    """
    head = board.entered(state.head, action)
    entered = state.body_state.gather(1, head.unsqueeze(1)).squeeze(1)
    is_fruit_eaten = head == state.fruit
    grown = is_fruit_eaten.to(torch.int16)
    length = state.length + grown
    body_state = (state.body_state + (grown - 1).unsqueeze(1)).clamp_(min=0)
    body_state.scatter_(1, head.unsqueeze(1), length.unsqueeze(1))

    # The new tail is the old one (fruit eaten) or its neighbour on the body: the one cell of these that holds a 1.
    candidates = board.around(state.tail)
    tail = candidates.masked_fill(body_state.gather(1, candidates) != 1, 0).amax(dim=1)

    step_count = state.step_count + 1
    is_dead = (head == state.head) | (entered > 1)
    is_terminal = is_dead | board.is_full(length) | (step_count >= board.time_limit)
    moved = SnakeState(body_state, head, tail, state.fruit, length, step_count)
    return moved, SnakeOutcome(is_fruit_eaten, is_terminal)


def restart(state: SnakeState, is_terminal: Bool[Tensor, "B"], head: Int64[Tensor, "B"]) -> SnakeState:
    """Put a snake of length 1 on cell `head` where an episode ended; the fruit is left to `place_fruit`."""
    head = torch.where(is_terminal, head, state.head)
    length = state.length.masked_fill(is_terminal, 1)
    is_running = is_terminal.logical_not().to(torch.int16)
    return SnakeState(
        body_state=(state.body_state * is_running[:, None]).scatter_(1, head[:, None], length[:, None]),
        head=head,
        tail=torch.where(is_terminal, head, state.tail),
        fruit=state.fruit,
        length=length,
        step_count=state.step_count.masked_fill(is_terminal, 0),
    )


def place_fruit(state: SnakeState, is_fruit_needed: Bool[Tensor, "B"], fruit: Int64[Tensor, "B"]) -> SnakeState:
    """Put the fruit on cell `fruit` where one is needed."""
    return state._replace(fruit=torch.where(is_fruit_needed, fruit, state.fruit))


def uniform_cell(uniform: Float[Tensor, "B"], cells: int) -> Int64[Tensor, "B"]:
    """Choose a cell of the board, each as likely, by a number uniform in [0, 1)."""
    return (uniform * cells).to(torch.int64)


def uniform_free_cell(
    body_state: Int16[Tensor, "B cells"], length: Int16[Tensor, "B"], uniform: Float[Tensor, "B"]
) -> Int64[Tensor, "B"]:
    """Choose a cell without snake, each as likely, by a number uniform in [0, 1); meaningless on a full board."""
    is_free = (1 - body_state).clamp_(min=0)
    num_free = is_free.shape[1] - length
    rank = (uniform * num_free).to(torch.int16)  # the product rounds to below num_free for every uniform < 1
    free_so_far = is_free.cumsum(dim=1, dtype=torch.int16)
    return torch.searchsorted(free_so_far, rank.unsqueeze(1), right=True).squeeze(1)


def step_state(
    state: SnakeState, action: Int[Tensor, "B"], uniform: Float[Tensor, "2 B"], board: Board
) -> tuple[SnakeState, SnakeOutcome]:
    """Move once with SAME_STEP autoreset; `uniform` in [0, 1) places new heads (row 0) and new fruits (row 1)."""
    state, outcome = advance(state, action, board)
    state = restart(state, outcome.is_terminal, uniform_cell(uniform[0], state.body_state.shape[1]))
    is_fruit_needed = outcome.is_fruit_eaten | outcome.is_terminal
    fruit = uniform_free_cell(state.body_state, state.length, uniform[1])
    return place_fruit(state, is_fruit_needed, fruit), outcome


def step_state_on_host(
    state: SnakeState, action: Int[Tensor, "B"], uniform: Float[Tensor, "2 B"], board: Board
) -> tuple[SnakeState, SnakeOutcome]:
    """Do what `step_state` does, bit by bit, in shapes that depend on how many boards need a new snake or fruit."""
    state, outcome = advance(state, action, board)  # all fields are new but the fruit: they are written in place
    over = outcome.is_terminal.nonzero().squeeze(1)
    head = uniform_cell(uniform[0].index_select(0, over), state.body_state.shape[1])
    state.body_state.index_fill_(0, over, 0)[over, head] = 1
    for cell in (state.head, state.tail):
        cell.index_copy_(0, over, head)
    state.length.index_fill_(0, over, 1)
    state.step_count.index_fill_(0, over, 0)
    without_fruit = (outcome.is_fruit_eaten | outcome.is_terminal).nonzero().squeeze(1)
    fruit = uniform_free_cell(*(x.index_select(0, without_fruit) for x in (state.body_state, state.length, uniform[1])))
    return state._replace(fruit=state.fruit.index_copy(0, without_fruit, fruit)), outcome


def observe_state(state: SnakeState, rows: int) -> Float[Tensor, "B rows columns 5"]:
    """Return channels body, head, tail, fruit, body_state / length (1 at the head, falling to the tail, 0 elsewhere).

    Deviations: Jumanji divides by max(1, max(body_state)), which is the length of every snake that is alive; compiled,
    it multiplies by the rounded reciprocal instead, so its last channel can be off by one unit in the last place.
    """
    batch_size, cells = state.body_state.shape
    observation = state.body_state.new_empty(batch_size, cells, 5, dtype=torch.float32)
    whole = observation, state.body_state, state.length.to(torch.float32).unsqueeze(1)
    boards = max(1, CACHED_BYTES // (cells * 5 * observation.itemsize))
    is_split = observation.device.type == "cpu" and batch_size > boards
    for part in zip(*(x.split(boards) for x in whole), strict=True) if is_split else [whole]:
        _write_body(*part)
    # Head, tail and fruit are one cell each: three scattered ones per board instead of three passes over it.
    channel = torch.arange(1, 4, device=observation.device)
    entry = torch.stack((state.head, state.tail, state.fruit), dim=1).mul_(5).add_(channel)
    observation.view(batch_size, cells * 5).scatter_(1, entry, 1.0)
    return observation.view(batch_size, rows, cells // rows, 5)


def _write_body(
    observation: Float[Tensor, "B cells 5"], body_state: Int16[Tensor, "B cells"], length: Float[Tensor, "B 1"]
) -> None:
    """Write the first and the last channel, and zeros between them."""
    order = body_state.to(torch.float32).div_(length)
    observation.zero_()[..., 4] = order
    observation[..., 0] = order.ceil_()


class Snake(DeviceEnvironment[SnakeState]):
    """Plays B games with SAME_STEP autoreset; every draw comes from one generator seeded by `seed`.

    Reward 1 for a fruit, else 0. An episode ends at a wall, at the own body, on a full board and at the time limit,
    each a true termination. Observations are float32 [B, rows, columns, 5] and belong to the caller.
    """

    def __init__(self, config: SnakeConfig, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(
            name=f"Snake-{config.rows}x{config.columns}",
            batch_size=batch_size,
            observation_shape=(config.rows, config.columns, 5),
            action_names=ACTION_NAMES,
            device=device,
            seed=seed,
        )
        self._config = config
        self._board = make_board(config, self.spec.device)
        self._step_state = step_state_on_host if self.spec.device.type == "cpu" else step_state

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Move all B snakes; an action outside 0..3 is an IndexError on the CPU."""
        self._state, outcome = self._step_state(self._running(), action, self._uniform(), self._board)
        reward = outcome.is_fruit_eaten.to(torch.float32)
        return EnvironmentStep.same_step(self.observe(), reward, outcome.is_terminal)

    def observe(self) -> Float[Tensor, "B rows columns 5"]:
        """Return the observation of the present states, without stepping."""
        return observe_state(self._running(), self._config.rows)

    def _start(self) -> SnakeState:
        everywhere = torch.ones(self.spec.batch_size, dtype=torch.bool, device=self.spec.device)
        uniform = self._uniform()
        head = uniform_cell(uniform[0], self._config.cells)
        state = restart(empty_state(self._board, self.spec.batch_size), everywhere, head)
        return place_fruit(state, everywhere, uniform_free_cell(state.body_state, state.length, uniform[1]))

    def _uniform(self) -> Float[Tensor, "2 B"]:
        # As many draws whatever happens on the boards: the stream depends on the number of steps alone.
        shape = (2, self.spec.batch_size)
        return torch.rand(shape, generator=self._generator, dtype=torch.float32, device=self.spec.device)


class PicturedSnake:
    """Draws one game. Its last picture is the one before the last move: the next board is already a new episode's."""

    milliseconds = 120

    def __init__(self, config: SnakeConfig, seed: int) -> None:
        cpu = torch.device("cpu")
        self._game = config.make(batch_size=1, seed=seed, device=cpu, threads=1, is_training=False)
        self.spec, self.close = self._game.spec, self._game.close
        self._scale = max(8, 2 * round(PICTURE_SIZE / max(config.rows, config.columns) / 2))  # pixels a cell

    def reset(self) -> Float[Tensor, "1 rows columns 5"]:
        """Start the episode."""
        self._board = self._game.reset()
        return self._board

    def step(self, action: Int[Tensor, "1"]) -> EnvironmentStep:
        """Move once."""
        step = self._game.step(action)
        if not step.is_episode_end:
            self._board = step.observation
        return step

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """Draw the board."""
        return render(self._board[0], self._scale)
