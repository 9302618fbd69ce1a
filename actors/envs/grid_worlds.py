"""Steps LPG's grid worlds on a torch device: a few whole-batch tensor operations for all worlds and environments.

Shapes: N worlds with B environments each, C cells of the family's largest square, M objects at most.

An agent moves up, down, left or right or stays; walls and borders block. If an object is where it then is, it collects
it: the reward is paid at once, the episode may end, and the object is gone. Then each object that was gone before the
step may come back. An episode ends at its time limit, too; every end is a true termination.

Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms" (LPG), A.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.families import TaskBatch, TaskEnvironment, TaskFamily, log_uniform_whole, one_hot
from metagrad.actors.envs.grid_world_distributions import (
    ACTION_NAMES,
    DISTRIBUTIONS,
    DistributionName,
    GridWorld,
    WorldDistribution,
    draw_world,
)
from metagrad.actors.envs.grid_world_optimum import optimal_returns
from metagrad.errors import require, require_one_of


@dataclass(frozen=True, kw_only=True, slots=True)
class GridWorldFamily(TaskFamily):
    """Describes LPG's grid worlds.

    Worlds whose places are fixed ("tabular") are seen as one-hot float32 [C * 2^M] of position and objects that are
    there: cell + C * (sum of 2^m over these objects m). Random ones are seen as float32 [rows, columns, 1 + types]: a
    plane for the agent and one for each type of objects. Deviation: GROOVE appends the time.
    """

    distribution: DistributionName = "small"
    """A distribution to train on (small, medium, large, all, all_shortlife, all_vrandlife, rand_all), or a world of
    LPG's, of which only the places are drawn."""

    def __post_init__(self) -> None:
        TaskFamily.__post_init__(self)
        require_one_of(self.distribution, DistributionName, "env.distribution")

    @property
    def is_tabular(self) -> bool:
        """Return True where places are fixed."""
        return not DISTRIBUTIONS[self.distribution].is_random

    def make_tasks(
        self, *, seeds: Sequence[int], batch_size: int, device: torch.device, streams: Sequence[int] | None = None
    ) -> "GridWorlds":
        return GridWorlds(self, DISTRIBUTIONS[self.distribution], TaskBatch(seeds, batch_size, device, streams))

    def lifetime(self, seed: int) -> int:
        return log_uniform_whole(self.random_numbers(seed).spawn(1)[0], DISTRIBUTIONS[self.distribution].lifetimes)


class GridWorldState(NamedTuple):
    """Holds N x B episodes."""

    cell: Int64[Tensor, "N B"]  # of the agent
    object_cell: Int64[Tensor, "N B M"]  # also of objects that are gone
    is_there: Bool[Tensor, "N B M"]
    step_count: Int32[Tensor, "N B"]  # steps of the episode so far


class GridWorlds(TaskEnvironment[GridWorld, GridWorldState]):
    """Steps B episodes of each of N grid worlds with SAME_STEP autoreset."""

    def __init__(self, family: GridWorldFamily, distribution: WorldDistribution, batch: TaskBatch) -> None:
        self.distribution = distribution
        side, num_objects = distribution.largest, len(distribution.types)
        self._cells, self._num_types = side**2, distribution.num_types
        board = (side, side, 1 + self._num_types)
        super().__init__(
            family,
            batch,
            name=f"GridWorlds-{family.distribution}",
            observation_shape=board if distribution.is_random else (self._cells * 2**num_objects,),
            action_names=ACTION_NAMES,
            draws=(1 + num_objects, 1 + 2 * num_objects) if distribution.is_random else (0, 1 + num_objects),
        )
        device = self.spec.device
        self._world = torch.arange(self.num_tasks, device=device)[:, None]
        self._powers = self._cells * 2 ** torch.arange(num_objects, device=device)
        # Of the entries of a board, row by row, that of an object in cell 0.
        self._plane = 1 + torch.tensor(distribution.types, device=device)

    def observe(self) -> Float[Tensor, "columns ..."]:
        """Return the observation of the present states, without stepping."""
        state = self._running()
        if not self.distribution.is_random:
            return one_hot(self.state_numbers(), *self.spec.observation_shape)
        num_planes = 1 + self._num_types
        board = one_hot((state.cell * num_planes).flatten(), self._cells * num_planes)
        # Added, not written: an object that is gone keeps a cell, which another one of its type may have.
        entry = (state.object_cell * num_planes + self._plane).flatten(0, 1)
        board.scatter_add_(1, entry, state.is_there.flatten(0, 1).to(torch.float32))
        return board.view(-1, *self.spec.observation_shape)

    def state_numbers(self) -> Int64[Tensor, "columns"]:
        """Return where the ones of one-hot observations are; only of worlds whose places are fixed."""
        state = self._running()
        return (state.cell + torch.where(state.is_there, self._powers, 0).sum(-1)).flatten()

    def optimal_returns(self) -> Float64[Tensor, "N"]:
        """Return the best expected return of an episode of each world, exactly.

        Raises:
            ConfigurationError: places are random, and there are too many states.
        """
        rule = "has random places, and too many states to go through"
        is_fixed, name = not self.distribution.is_random, self.spec.name
        require(is_fixed, "environment", name, rule, "use worlds whose places are fixed, such as small")
        return optimal_returns(self._tasks)

    def _draw(self, seed: int) -> GridWorld:
        return draw_world(self.distribution, self.family.random_numbers(seed))

    def _begin(self, tasks: GridWorld, uniform: Float[Tensor, "n B start_draws"]) -> GridWorldState:
        shape = uniform.shape[:2]
        is_there = tasks.is_object[:, None].expand(*shape, -1)
        step_count = torch.zeros(shape, dtype=torch.int32, device=self.spec.device)
        if not self.distribution.is_random:
            cell, object_cell = tasks.start[:, None].expand(shape), tasks.object_cell[:, None].expand(*shape, -1)
            return GridWorldState(cell, object_cell, is_there, step_count)
        world = self._world if shape[0] == self.num_tasks else torch.arange(shape[0], device=self.spec.device)[:, None]
        rank = (uniform[..., 0] * tasks.num_free[:, None]).to(torch.int64)
        cell = tasks.free_cell[world, rank]
        nobody = torch.zeros_like(is_there)
        nowhere = torch.zeros_like(is_there, dtype=torch.int64)
        object_cell = _placed(tasks, world, cell, nowhere, nobody, is_there, uniform[..., 1:])
        return GridWorldState(cell, object_cell, is_there, step_count)

    def _move(
        self,
        tasks: GridWorld,
        state: GridWorldState,
        action: Int64[Tensor, "N B"],
        uniform: Float[Tensor, "N B step_draws"],
    ) -> tuple[GridWorldState, Float[Tensor, "N B"], Bool[Tensor, "N B"]]:
        num_objects = state.is_there.shape[-1]
        cell = tasks.next_cell[self._world, state.cell, action]
        is_collected = state.is_there & (state.object_cell == cell[..., None])
        # At most one object is in a cell, so the sums pick that one's values.
        reward = torch.where(is_collected, tasks.reward[:, None], 0.0).sum(-1)
        end_probability = torch.where(is_collected, tasks.end_probability[:, None], 0.0).sum(-1)
        step_count = state.step_count + 1
        is_terminal = (uniform[..., 0] < end_probability) | (step_count >= tasks.time_limit[:, None])
        is_back = ~state.is_there & (uniform[..., 1 : 1 + num_objects] < tasks.return_probability[:, None])
        is_left = state.is_there & ~is_collected
        object_cell = state.object_cell
        if self.distribution.is_random:
            places = uniform[..., 1 + num_objects :]
            object_cell = _placed(tasks, self._world, cell, object_cell, is_left, is_back, places)
        return GridWorldState(cell, object_cell, is_left | is_back, step_count), reward, is_terminal


def _placed(
    tasks: GridWorld,
    world: Int64[Tensor, "n 1"],
    agent: Int64[Tensor, "n B"],
    object_cell: Int64[Tensor, "n B M"],
    is_there: Bool[Tensor, "n B M"],
    is_coming: Bool[Tensor, "n B M"],
    uniform: Float[Tensor, "n B M"],
) -> Int64[Tensor, "n B M"]:
    """Give each object that comes a cell that is free of walls, agent and objects, each as likely, one after the other.

    The cell is the r-th of those that are free, where r is drawn. Its place among all cells without walls follows from
    the occupied ones, in order: each that is not behind it moves it on by one.
    """
    free_ranks = tasks.num_free[:, None, None]
    taken = torch.where(is_there, tasks.free_rank[world[..., None], object_cell], free_ranks)
    occupied = torch.cat((tasks.free_rank[world, agent][..., None], taken), dim=-1)
    cells = []
    for m in range(object_cell.shape[-1]):
        num_occupied = (occupied < free_ranks).sum(-1)
        rank = (uniform[..., m] * (free_ranks[..., 0] - num_occupied)).to(torch.int64)
        for other in occupied.sort(dim=-1).values.unbind(-1):
            rank = rank + (other <= rank)
        occupied[..., 1 + m] = torch.where(is_coming[..., m], rank, occupied[..., 1 + m])
        cells.append(torch.where(is_coming[..., m], tasks.free_cell[world, rank], object_cell[..., m]))
    return torch.stack(cells, dim=-1)
