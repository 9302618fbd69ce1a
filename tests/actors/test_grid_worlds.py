"""Plays the grid worlds beside one written out for a single agent, in sets and lists."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad.actors.envs.families import TaskBatch
from metagrad.actors.envs.grid_world_distributions import (
    DISTRIBUTIONS,
    ObjectTypes,
    WorldDistribution,
    draw_world,
)
from metagrad.actors.envs.grid_worlds import GridWorldFamily, GridWorlds
from metagrad.actors.envs.task_streams import draw, make_streams
from metagrad.errors import ConfigurationError

CPU = torch.device("cpu")
STEPS = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1), 4: (0, 0)}
TINY = WorldDistribution(  # where much happens in few steps
    sizes=(2, 4),
    limits=(5, 12),
    types=(0, 1, 1),
    objects=(1, 3),
    lifetimes=(3, 9),
    fixed=ObjectTypes(reward=(1.0, -0.5), end_probability=(0.3, 0.1), return_probability=(0.5, 0.2)),
    random_walls=2,
)
worlds = {"tiny": TINY, "tiny random": replace(TINY, is_random=True), **DISTRIBUTIONS}


class Slow:
    """One agent in one world."""

    def __init__(self, world, distribution, index):
        self.index, self.side, self.is_random = index, distribution.largest, distribution.is_random
        self.types = distribution.types
        self.walls = {i for i in range(self.side**2) if world.next_cell[i, 4] != i or not self.is_inside(world, i)}
        self.world = {name: value.tolist() for name, value in world._asdict().items() if name != "next_cell"}

    def is_inside(self, world, i):
        return i in world.free_cell[: int(world.num_free)].tolist()

    def cell_of(self, number, blocked):
        free = [i for i in range(self.side**2) if i not in self.walls and i not in blocked]
        return free[int(np.float32(number) * np.float32(len(free)))]

    def reset(self, numbers):
        self.time = 0
        self.there = {m for m, is_object in enumerate(self.world["is_object"]) if is_object}
        if not self.is_random:
            self.agent, self.places = self.world["start"], list(self.world["object_cell"])
            return
        self.agent = self.cell_of(numbers[0], ())
        self.places = [0] * len(self.types)
        placed = []
        for m in sorted(self.there):
            self.places[m] = self.cell_of(numbers[1 + m], {self.agent, *placed})
            placed.append(self.places[m])

    def step(self, action, begin, numbers):
        down, right = STEPS[action]
        row, column = divmod(self.agent, self.side)
        row, column = row + down, column + right
        target = self.side * row + column
        if 0 <= row < self.side and 0 <= column < self.side and target not in self.walls:
            self.agent = target
        self.time += 1
        collected = {m for m in self.there if self.places[m] == self.agent}
        reward = sum(self.world["reward"][m] for m in collected)
        is_over = any(numbers[0] < np.float32(self.world["end_probability"][m]) for m in collected)
        gone = [m for m in range(len(self.types)) if m not in self.there]
        self.there -= collected
        for m in gone:
            if self.world["is_object"][m] and numbers[1 + m] < np.float32(self.world["return_probability"][m]):
                if self.is_random:
                    blocked = {self.agent, *(self.places[other] for other in self.there)}
                    self.places[m] = self.cell_of(numbers[1 + len(self.types) + m], blocked)
                self.there.add(m)
        is_over |= self.time == self.world["time_limit"]
        if is_over:
            self.reset(begin)
        return reward, is_over

    def observe(self):
        if not self.is_random:
            seen = np.zeros(self.side**2 * 2 ** len(self.types))
            seen[self.agent + self.side**2 * sum(2**m for m in self.there)] = 1
            return seen
        seen = np.zeros((self.side, self.side, 2 + max(self.types)))
        seen[(*divmod(self.agent, self.side), 0)] = 1
        for m in self.there:
            seen[(*divmod(self.places[m], self.side), 1 + self.types[m])] = 1
        return seen


def make(distribution, seeds=(0,), batch_size=2):
    return GridWorlds(GridWorldFamily(), distribution, TaskBatch(seeds, batch_size))


def world_of(environment, n):
    return type(environment.tasks)(*(field[n] for field in environment.tasks))


@pytest.mark.parametrize("name", ["tiny", "tiny random"])
@given(seed=st.integers(0, 2**40), actions=st.lists(st.integers(0, 4), min_size=20, max_size=20))
@settings(max_examples=6)
def test_as_written_out_for_one_agent(name, seed, actions):
    check_against_slow(worlds[name], seed, actions)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.thinned(6)
def test_every_distribution_is_as_written_out(name):
    check_against_slow(worlds[name], 3, np.random.default_rng(0).integers(5, size=40).tolist())


def check_against_slow(distribution, seed, actions):
    environment, seeds = make(distribution, (seed, seed + 1)), (seed, seed + 1)
    objects = len(distribution.types)
    start_draws, step_draws = (1 + objects, 1 + 2 * objects) if distribution.is_random else (0, 1 + objects)
    streams = make_streams(list(seeds), CPU)
    numbers, streams = draw(streams, 2 * start_draws)
    numbers = numbers.view(4, start_draws).numpy()
    slow = [Slow(world_of(environment, i // 2), distribution, i) for i in range(4)]
    seen = environment.reset().numpy()
    for one, own in zip(slow, numbers, strict=True):
        one.reset(own)
        np.testing.assert_array_equal(seen[one.index], one.observe())
    for t in range(len(actions)):
        action = [actions[(t + i) % len(actions)] for i in range(4)]
        step = environment.step(torch.tensor(action))
        numbers, streams = draw(streams, 2 * (start_draws + step_draws))
        numbers = numbers.view(4, start_draws + step_draws).numpy()
        for one, own in zip(slow, numbers, strict=True):
            reward, is_over = one.step(action[one.index], own[:start_draws], own[start_draws:])
            assert step.reward[one.index] == np.float32(reward)
            assert step.is_terminal[one.index] == is_over
            np.testing.assert_array_equal(step.observation[one.index].numpy(), one.observe())


# Drawing


@pytest.mark.parametrize("name", worlds)
def test_worlds_are_as_their_distribution_says(name):
    distribution, random = worlds[name], np.random.default_rng(1)
    side = distribution.largest
    sizes, limits, counts = set(), [], set()
    for _ in range(40):
        world = draw_world(distribution, random)
        free = world.free_cell[: int(world.num_free)].tolist()
        size = 1 + max(max(divmod(cell, side)) for cell in free)
        assert distribution.limits[0] <= world.time_limit <= distribution.limits[1]
        assert len({int(world.start), *world.object_cell.tolist()}) == 1 + len(distribution.types)
        assert {int(world.start), *world.object_cell.tolist()} <= set(free)
        assert not set(distribution.walls) & set(free)
        assert size**2 - len(distribution.walls) - distribution.random_walls <= len(free)
        assert size <= side
        sizes.add(size)
        limits.append(int(world.time_limit))
        counts.add(int(world.is_object.sum()))
        assert (world.return_probability[~world.is_object] == 0).all()
        for m, kind in enumerate(distribution.types):
            if distribution.fixed is not None:
                assert world.reward[m] == np.float32(distribution.fixed.reward[kind])
                assert world.end_probability[m] == np.float32(distribution.fixed.end_probability[kind])
            else:
                assert (0 if kind == 0 else -1) <= world.reward[m] <= 1
                assert 0.01 <= world.end_probability[m] <= 1
                assert not world.is_object[m] or 0.001 <= world.return_probability[m] <= 0.1
    assert counts == set(range(distribution.objects[0], distribution.objects[1] + 1))
    assert max(sizes) == side
    assert len(set(limits)) > 1 or distribution.limits[0] == distribution.limits[1]


@pytest.mark.parametrize(
    ("name", "size", "walls", "limit", "objects"),
    [
        ("dense", 11, 0, 500, 4),
        ("sparse", 13, 0, 50, 2),
        ("long", 11, 0, 1000, 4),
        ("longer", 9, 7, 2000, 5),
        ("long_dense", 11, 17, 2000, 4),
        ("rand_small", 7, 2, 500, 4),
        ("rand_very_dense", 11, 0, 2000, 1),
    ],
)
def test_named_worlds(name, size, walls, limit, objects):
    world = draw_world(DISTRIBUTIONS[name], np.random.default_rng(0))
    assert int(world.num_free) == size**2 - walls
    assert (int(world.time_limit), int(world.is_object.sum())) == (limit, objects)


def test_the_corridors_of_walled_worlds_are_open():
    longer = draw_world(DISTRIBUTIONS["longer"], np.random.default_rng(0)).next_cell
    through = [row for row in range(9) if longer[9 * row + 3, 3] == 9 * row + 4]
    assert through == [1, 7]
    cross = draw_world(DISTRIBUTIONS["long_dense"], np.random.default_rng(0)).next_cell
    assert [row for row in range(11) if cross[11 * row + 4, 3] == 11 * row + 5] == [0, 7]
    assert [column for column in range(11) if cross[33 + column, 1] == 44 + column] == [2, 8]


def test_lifetimes():
    def lifetimes(name):
        return {GridWorldFamily(distribution=name).lifetime(seed) for seed in range(200)}

    expected = {"small": 250, "medium": 1000, "large": 2500, "all": 1000, "all_shortlife": 250, "dense": 2500}
    assert {name: lifetimes(name) for name in expected} == {name: {value} for name, value in expected.items()}
    assert lifetimes("rand_long") == {25_000}
    various = lifetimes("all_vrandlife")
    assert 10 <= min(various) < 20
    assert 200 < max(various) <= 250


@pytest.mark.parametrize("action", [5, 99])
def test_action_that_does_not_exist_is_an_error(action):
    environment = make(TINY, batch_size=1)
    environment.reset()
    with pytest.raises(IndexError):
        environment.step(torch.tensor([action]))


def test_unknown_distribution_is_refused():
    family = GridWorldFamily()
    object.__setattr__(family, "distribution", "huge")
    with pytest.raises(ConfigurationError, match=r"^env.distribution = 'huge': must be one of dense, "):
        family.__post_init__()
