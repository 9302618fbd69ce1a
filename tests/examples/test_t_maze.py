"""The example of docs/environments.md that asks for memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from metagrad.actors.evaluate import evaluate
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.trained import trained_run

CPU = torch.device("cpu")


def test_what_the_signal_says_is_right(load_example: Callable[[str], ModuleType]) -> None:
    env = load_example("t_maze").TMazeConfig(length=2, time_limit=5)
    maze = env.make(batch_size=40, seed=0, device=CPU, threads=1, is_training=True)
    signal = maze.reset()
    assert (signal[:, :2].sum(-1) == 1.0).all()
    assert signal[:, 0].sum().item() == pytest.approx(20, abs=10)
    wrong_turn = maze.step(torch.ones(40, dtype=torch.int64))
    assert (wrong_turn.reward == -0.1).all()
    assert torch.equal(wrong_turn.observation, signal)
    forward = torch.zeros(40, dtype=torch.int64)
    corridor, junction = maze.step(forward), maze.step(forward)
    assert (corridor.observation == torch.tensor([0.0, 0.0, 1.0, 0.0])).all()
    assert (junction.observation == torch.tensor([0.0, 0.0, 0.0, 1.0])).all()
    last = maze.step(torch.where(torch.arange(40) < 20, 2 - signal[:, 0].long(), 1 + signal[:, 0].long()))
    assert last.is_terminal.all()
    assert torch.equal(last.reward, torch.where(torch.arange(40) < 20, 1.0, -1.0))
    for age in range(5):
        assert maze.step(forward).is_terminal.all() == (age == 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("gru", [32, None])
def test_it_is_solved_with_memory_and_not_without(
    load_example: Callable[[str], ModuleType], tmp_path: Path, gru: int | None
) -> None:
    base = load_example("t_maze").t_maze()
    experiment = replace(
        base, network=replace(base.network, gru=gru), topology="colocated", actors=1, learner_threads=1
    )
    run(experiment, tmp_path / "run", False, Console(quiet=True))
    trained = trained_run(tmp_path / "run", None, print)
    result = evaluate(trained.network, trained.theta, experiment.env, 256, 0, False, CPU, 1)
    assert result.mean > 0.98 if gru else result.mean < 0.2
