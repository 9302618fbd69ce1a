from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.cluster.launch.launch import run
from metagrad.experiments.tasks.any_task import grid_world

FAMILY = GridWorldFamily(task_seed=1)  # two objects, at most 35 steps


def return_at_random(family):
    world = family.make_tasks(seeds=[0], batch_size=64, device=torch.device("cpu"))
    world.reset()
    draw = torch.Generator().manual_seed(0)
    steps = [world.step(torch.randint(5, (64,), generator=draw)) for _ in range(200)]
    ends = torch.stack([step.is_terminal for step in steps]).sum()
    return (torch.stack([step.reward for step in steps]).sum() / ends).item(), world.optimal_returns().item()


@pytest.mark.slow
def test_a2c_comes_close_to_the_best_return(tmp_path):
    experiment = replace(grid_world(), env=FAMILY, topology="colocated", actors=1, learner_threads=1, updates=40)
    summary = run(experiment, tmp_path, False, Console(file=StringIO()))
    at_random, best = return_at_random(FAMILY)
    assert at_random < 0.3 * best
    assert summary["return_count"] > 1_000
    assert summary["return_mean"] > best - 0.25 * (best - at_random)
