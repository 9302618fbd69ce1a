"""Lists LPG's grid worlds and the distributions over them that rules are trained on, and draws worlds from them.

Source: Oh et al. (2020), "Discovering Reinforcement Learning Algorithms" (LPG), A.1, for the named worlds; Jackson et
al. (2023), "Discovering General Reinforcement Learning Algorithms with Adversarial Environment Design" (GROOVE), for
the distributions and for the three kinds of objects that "longer" has here (LPG: two and five).
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor

from metagrad.actors.envs.families import log_uniform, log_uniform_whole

ACTION_NAMES = ("up", "down", "left", "right", "stay")
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))  # rows and columns

DistributionName = Literal[
    "dense",
    "sparse",
    "long",
    "longer",
    "long_dense",
    "rand_dense",
    "rand_long",
    "rand_small",
    "rand_sparse",
    "rand_very_dense",
    "small",
    "medium",
    "large",
    "all",
    "all_shortlife",
    "all_vrandlife",
    "rand_all",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTypes:
    """Gives reward, probability of ending the episode and probability of coming back of each type of objects."""

    reward: tuple[float, ...]
    end_probability: tuple[float, ...]
    return_probability: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldDistribution:
    """Describes how a world is drawn; of ranges, both ends belong to them."""

    sizes: tuple[int, int]
    """Cells on a side of the square."""
    limits: tuple[int, int]
    """Steps of the longest episode; log-uniform."""
    types: tuple[int, ...]
    """Type of each object; a world has the first `objects` of them."""
    objects: tuple[int, int]
    lifetimes: tuple[int, int]
    """Updates of an agent; log-uniform."""
    fixed: ObjectTypes | None = None
    """None: rewards are uniform in [-1, 1], that of type 0 in [0, 1]; the probability of ending is log-uniform in
    [.01, 1] and that of coming back in [.001, .1]."""
    walls: tuple[int, ...] = ()
    """Numbers of the cells that are walls, row by row."""
    random_walls: int = 0
    """Wall cells that are drawn, of a square of the largest size; a smaller world has those that lie in it."""
    is_random: bool = False
    """True: start and objects get new places in each episode, and an object whenever it comes back; False: a world has
    its places for good."""

    @property
    def largest(self) -> int:
        return self.sizes[1]

    @property
    def num_types(self) -> int:
        return max(self.types) + 1


TABULAR_LIFETIME, RANDOM_LIFETIME = 2_500, 25_000


def _named(size: int, limit: int, types: tuple[int, ...], fixed: ObjectTypes, *walls: int) -> WorldDistribution:
    return WorldDistribution(
        sizes=(size, size),
        limits=(limit, limit),
        types=types,
        objects=(len(types), len(types)),
        lifetimes=(TABULAR_LIFETIME, TABULAR_LIFETIME),
        fixed=fixed,
        walls=walls,
    )


def _random(world: WorldDistribution) -> WorldDistribution:
    return replace(world, is_random=True, lifetimes=(RANDOM_LIFETIME, RANDOM_LIFETIME))


def _drawn(
    sizes: tuple[int, int], limits: tuple[int, int], objects: tuple[int, int], walls: int, lifetime: int
) -> WorldDistribution:
    return WorldDistribution(
        sizes=sizes,
        limits=limits,
        types=tuple(range(objects[1])),
        objects=objects,
        lifetimes=(lifetime, lifetime),
        random_walls=walls,
    )


def _types(*each: tuple[float, float, float]) -> ObjectTypes:
    reward, end_probability, return_probability = zip(*each, strict=True)
    return ObjectTypes(reward=reward, end_probability=end_probability, return_probability=return_probability)


_DENSE = _types((1.0, 0.0, 0.05), (-1.0, 0.5, 0.1), (-1.0, 0.0, 0.5))
_LONG = _types((1.0, 0.0, 0.01), (-1.0, 0.5, 1.0))
_CROSS = tuple(
    11 * row + column
    for row in range(11)
    for column in range(11)
    if (column == 5 and row not in (0, 7)) or (row == 4 and column not in (2, 8))
)
_dense, _long = _named(11, 500, (0, 0, 1, 2), _DENSE), _named(11, 1_000, (0, 0, 1, 1), _LONG)
_all = _drawn((4, 10), (20, 750), (1, 5), 15, 1_000)

DISTRIBUTIONS: dict[str, WorldDistribution] = {
    "dense": _dense,
    "sparse": _named(13, 50, (0, 1), _types((1.0, 1.0, 0.0), (-1.0, 1.0, 0.0))),
    "long": _long,
    "longer": _named(
        9,
        2_000,
        (0, 0, 1, 1, 1),
        _types((1.0, 0.1, 0.01), (-1.0, 0.8, 1.0)),
        *(9 * row + 4 for row in range(9) if row not in (1, 7)),
    ),
    "long_dense": _named(11, 2_000, (0, 0, 0, 0), _types((1.0, 0.0, 0.005)), *_CROSS),
    "rand_dense": _random(_dense),
    "rand_long": _random(_long),
    "rand_small": _random(_named(7, 500, (0, 0, 1, 1), _types((1.0, 0.0, 0.05), (-1.0, 0.5, 0.1)), 9, 25)),
    "rand_sparse": _random(_named(7, 50, (0, 1, 1), _types((1.0, 1.0, 1.0), (-1.0, 1.0, 1.0)))),
    "rand_very_dense": _random(_named(11, 2_000, (0,), _types((1.0, 0.0, 1.0)))),
    "small": _drawn((4, 6), (20, 100), (1, 3), 7, 250),
    "medium": _drawn((6, 8), (100, 250), (2, 4), 10, 1_000),
    "large": _drawn((8, 10), (250, 750), (2, 5), 15, 2_500),
    "all": _all,
    "all_shortlife": replace(_all, lifetimes=(250, 250)),
    "all_vrandlife": replace(_all, lifetimes=(10, 250)),
    "rand_all": _random(_all),
}
assert set(DISTRIBUTIONS) == set(get_args(DistributionName))


class GridWorld(NamedTuple):
    """Holds one world, or N of them in front of these dimensions; C cells of the largest square, M objects at most.

    Cells are numbered row by row in the largest square, of which a smaller world has the upper left corner.
    """

    next_cell: Int64[Tensor, "C 5"]  # where an action leads; at borders and walls the cell itself
    start: Int64[Tensor, ""]
    object_cell: Int64[Tensor, "M"]
    is_object: Bool[Tensor, "M"]  # False: the world has fewer objects
    reward: Float32[Tensor, "M"]
    end_probability: Float32[Tensor, "M"]
    return_probability: Float32[Tensor, "M"]
    time_limit: Int32[Tensor, ""]
    free_cell: Int64[Tensor, "C"]  # the cells that are no walls, in order; behind them 0
    free_rank: Int64[Tensor, "C"]  # place of a cell in `free_cell`
    num_free: Int64[Tensor, ""]


def draw_world(distribution: WorldDistribution, random: np.random.Generator) -> GridWorld:
    """Draw one world, on the host.

    Walls are drawn again where they leave too few cells for the agent and the objects. Deviation: GROOVE then has
    objects on walls.
    """
    size = int(random.integers(distribution.sizes[0], distribution.sizes[1] + 1))
    time_limit = log_uniform_whole(random, distribution.limits)
    num_objects = int(random.integers(distribution.objects[0], distribution.objects[1] + 1))
    kinds = distribution.fixed or _draw_types(random, distribution.num_types)
    is_free = _draw_free_cells(distribution, size, random)
    free = np.flatnonzero(is_free)
    places = random.choice(free, len(distribution.types) + 1, replace=False)
    is_object = np.arange(len(distribution.types)) < num_objects
    types = list(distribution.types)
    return_probability = np.where(is_object, np.array(kinds.return_probability)[types], 0.0)
    free_cell, free_rank = np.zeros((2, is_free.size), dtype=np.int64)
    free_cell[: free.size] = free
    free_rank[free] = np.arange(free.size)
    return GridWorld(
        next_cell=torch.from_numpy(_neighbours(is_free)),
        start=torch.tensor(int(places[0])),
        object_cell=torch.from_numpy(places[1:].astype(np.int64)),
        is_object=torch.from_numpy(is_object),
        reward=torch.tensor([kinds.reward[kind] for kind in types]),
        end_probability=torch.tensor([kinds.end_probability[kind] for kind in types]),
        return_probability=torch.from_numpy(return_probability.astype(np.float32)),
        time_limit=torch.tensor(time_limit, dtype=torch.int32),
        free_cell=torch.from_numpy(free_cell),
        free_rank=torch.from_numpy(free_rank),
        num_free=torch.tensor(free.size),
    )


def _draw_types(random: np.random.Generator, num_types: int) -> ObjectTypes:
    reward = np.concatenate((random.uniform(0.0, 1.0, 1), random.uniform(-1.0, 1.0, num_types - 1)))
    return ObjectTypes(
        reward=tuple(map(float, reward)),
        end_probability=tuple(map(float, log_uniform(random, 0.01, 1.0, num_types))),
        return_probability=tuple(map(float, log_uniform(random, 0.001, 0.1, num_types))),
    )


def _draw_free_cells(distribution: WorldDistribution, size: int, random: np.random.Generator) -> np.ndarray:
    """Return True for each cell of the largest square that lies in the world and is no wall."""
    largest = distribution.largest
    row, column = np.divmod(np.arange(largest**2), largest)
    is_inside = (row < size) & (column < size)
    is_inside[list(distribution.walls)] = False
    while True:
        is_free = is_inside.copy()
        is_free[random.choice(largest**2, distribution.random_walls, replace=False)] = False
        if is_free.sum() >= 1 + len(distribution.types):
            return is_free


def _neighbours(is_free: np.ndarray) -> np.ndarray:
    """Return where each action leads from each cell."""
    side = round(is_free.size**0.5)
    padded = np.pad(is_free.reshape(side, side), 1)
    cell = np.arange(is_free.size)
    row, column = np.divmod(cell, side)
    targets = [
        np.where(padded[row + down + 1, column + right + 1], cell + side * down + right, cell) for down, right in MOVES
    ]
    return np.stack(targets, axis=1)
