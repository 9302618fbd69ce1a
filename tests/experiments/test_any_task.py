"""Self-tuned A2C on tasks of EnvPool and Gymnasium: trained, resumed and evaluated, on Ray and colocated.

`TASKS` is the table of docs/environments.md: what stands there was tried here.
"""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metagrad.actors.envs.base import EnvironmentConfig
from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.actors.envs.gym import GymConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.experiments.tasks.any_task import envpool, gym

TASKS: list[EnvironmentConfig] = [
    *(EnvPoolConfig(task=task) for task in ("CartPole-v1", "MiniGrid-Empty-5x5-v0")),
    GymConfig(id="CartPole-v1"),
    GymConfig(id="Blackjack-v1", autoreset="same-step"),
]
IN_A_HURRY = {"episodes": 2, "seed": 0, "is_greedy": False, "wants_recording": False, "max_steps": 20}


def name_of(env: EnvironmentConfig) -> str:
    return f"envpool {env.task}" if isinstance(env, EnvPoolConfig) else f"gym {env.id}"  # type: ignore[attr-defined]


def tiny(env: EnvironmentConfig, **values: Any) -> Experiment:
    experiment = envpool() if isinstance(env, EnvPoolConfig) else gym()
    small = {"environments": 4, "rollout_length": 4, "actors": 2, "updates": 2, "learner_threads": 1}
    small_network = replace(experiment.network, picture_hidden=8)
    return replace(experiment, env=env, network=small_network, **small | values)


def trained_resumed_and_evaluated(experiment: Experiment, folder: Path) -> None:
    console = Console(file=StringIO())
    first = run(experiment, folder, False, console)
    assert first["updates"] == experiment.updates
    again = run(replace(experiment, updates=experiment.updates + 1), folder, True, console)
    assert again["updates"] == experiment.updates + 1
    evaluate_run(folder, None, **IN_A_HURRY)
    (result,) = folder.glob("evaluation-*.json")
    assert len(json.loads(result.read_text())["returns"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
@pytest.mark.parametrize("env", TASKS, ids=name_of)
def test_every_task_of_the_table(env: EnvironmentConfig, schedule: Any, tmp_path: Path) -> None:
    trained_resumed_and_evaluated(tiny(env, schedule=schedule, topology="colocated"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
@pytest.mark.parametrize("env", TASKS, ids=name_of)
def test_every_task_of_the_table_on_ray(env: EnvironmentConfig, schedule: Any, tmp_path: Path) -> None:
    trained_resumed_and_evaluated(tiny(env, schedule=schedule, topology="ray"), tmp_path)


@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
def test_some_tasks_quickly(schedule: Any, tmp_path: Path) -> None:
    for env in (EnvPoolConfig(task="MiniGrid-Empty-5x5-v0"), GymConfig(id="CartPole-v1", autoreset="same-step")):
        trained_resumed_and_evaluated(tiny(env, schedule=schedule, topology="colocated"), tmp_path / name_of(env))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_cart_pole_is_solved_with_what_is_tuned(seed: int, tmp_path: Path) -> None:
    experiment = replace(envpool(), seed=seed, topology="colocated", learner_threads=1)
    run(experiment, tmp_path, False, Console(file=StringIO()))
    evaluate_run(tmp_path, None, **IN_A_HURRY | {"episodes": 100, "max_steps": 500})
    (result,) = tmp_path.glob("evaluation-*.json")
    assert json.loads(result.read_text())["return_mean"] >= 475.0
