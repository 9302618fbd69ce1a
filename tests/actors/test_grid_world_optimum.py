from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad.actors.envs.families import TaskBatch
from metagrad.actors.envs.grid_world_distributions import ObjectTypes, WorldDistribution
from metagrad.actors.envs.grid_world_optimum import optimal_returns, plans
from metagrad.actors.envs.grid_worlds import GridWorldFamily, GridWorlds
from metagrad.errors import ConfigurationError

TINY = WorldDistribution(
    sizes=(2, 3),
    limits=(3, 6),
    types=(0, 1),
    objects=(1, 2),
    lifetimes=(1, 1),
    fixed=ObjectTypes(reward=(1.0, -0.7), end_probability=(0.3, 0.6), return_probability=(0.5, 0.25)),
    random_walls=1,
)
DRAWN = replace(TINY, sizes=(2, 4), types=(0, 1, 2), objects=(1, 3), fixed=None)


def brute_force(worlds, n):
    """The best return of one world: a maximum over actions of a sum over all that may happen, step by step."""
    world = {name: field[n].tolist() for name, field in worlds._asdict().items()}
    objects = range(len(world["is_object"]))

    @cache
    def best(time, cell, there):
        if time == world["time_limit"]:
            return 0.0
        return max(after(time, target, there) for target in world["next_cell"][cell])

    def after(time, cell, there):
        collected = {m for m in there if world["object_cell"][m] == cell}
        reward = sum(world["reward"][m] for m in collected)
        (end,) = {world["end_probability"][m] for m in collected} or {0.0}
        total = 0.0
        gone = [m for m in objects if m not in there]
        for coins in product((False, True), repeat=len(gone)):
            probability = 1.0
            for m, comes in zip(gone, coins, strict=True):
                back = world["return_probability"][m]
                probability *= back if comes else 1 - back
            if probability:
                returned = {m for m, comes in zip(gone, coins, strict=True) if comes}
                total += probability * best(time + 1, cell, frozenset((there - collected) | returned))
        return reward + (1 - end) * total

    return best(0, world["start"], frozenset(m for m in objects if world["is_object"][m]))


def make(distribution, seeds, batch_size=1):
    return GridWorlds(GridWorldFamily(), distribution, TaskBatch(seeds, batch_size))


@pytest.mark.parametrize("distribution", [TINY, DRAWN])
@given(seed=st.integers(0, 2**40))
@settings(max_examples=5)
def test_as_by_brute_force(distribution, seed):
    worlds = make(distribution, range(seed, seed + 3)).tasks
    expected = [brute_force(worlds, n) for n in range(3)]
    np.testing.assert_allclose(optimal_returns(worlds).numpy(), expected, rtol=0, atol=1e-12)


def test_random_places_are_refused():
    with pytest.raises(ConfigurationError, match=r"^environment = 'GridWorlds-small': has random places"):
        make(replace(TINY, is_random=True), [0]).optimal_returns()


def test_worlds_together_are_each_alone():
    together = make(DRAWN, range(5)).optimal_returns()
    alone = torch.cat([optimal_returns(make(DRAWN, [n]).tasks) for n in range(5)])
    assert torch.equal(together, alone)


def test_one_reward_that_ends_the_episode_is_worth_itself():
    one = replace(
        DRAWN,
        objects=(1, 1),
        fixed=ObjectTypes(reward=(0.8, 0, 0), end_probability=(1, 0, 0), return_probability=(0, 0, 0)),
    )
    worlds = make(replace(one, sizes=(3, 3), random_walls=0, limits=(4, 4)), range(4)).tasks
    np.testing.assert_allclose(optimal_returns(worlds).numpy(), 0.8, atol=1e-7)


def played(environment, policies):
    """Returns of one episode of every column under the policy of each time."""
    side, (tasks, size) = environment.distribution.largest, (environment.num_tasks, environment.environments_per_task)
    environment.reset()
    total, running = torch.zeros(tasks, size, dtype=torch.float64), torch.ones(tasks, size, dtype=torch.bool)
    for plan in policies:
        number = environment.observe().argmax(-1).view(tasks, size)
        sets, cell = number // side**2, number % side**2
        action = plan.action.flatten(1).gather(1, sets * side**2 + cell)
        step = environment.step(action.flatten())
        total += torch.where(running, step.reward.view(tasks, size).double(), 0)
        running &= ~step.is_terminal.view(tasks, size)
    assert not running.any()
    return total


def test_the_best_policy_earns_it_in_the_environment():
    environment = GridWorldFamily(task_seed=3).make_tasks(seeds=range(8), batch_size=300, device=torch.device("cpu"))
    policies = sorted(plans(environment.tasks), key=lambda plan: plan.time)
    returns = played(environment, policies)
    error = returns.std(1) / returns.shape[1] ** 0.5
    gap = (returns.mean(1) - optimal_returns(environment.tasks)).abs()
    assert (gap < 4 * error + 1e-6).all()
    # A policy that is wrong at times earns less: the comparison could fail.
    wrong = [plan._replace(action=torch.where(plan.action == 4, 0, 4)) for plan in policies]
    assert (played(environment, wrong).mean(1) < returns.mean(1)).all()
