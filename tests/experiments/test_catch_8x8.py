"""Catch 8 x 8 is the environment of DiscoRL's public evaluation, and can be learnt."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from metagrad.cluster.launch.launch import run
from metagrad.experiments.tasks.catch import catch_8x8


def test_the_board_is_the_published_one() -> None:
    environment = catch_8x8().env.make(batch_size=64, seed=0, device=torch.device("cpu"), threads=1, is_training=True)
    board = environment.reset()
    assert board.shape == (64, 8, 8)
    assert set(board[:, 0].argmax(-1).tolist()) == set(range(8)), "the ball starts anywhere"
    assert (board[:, 7].argmax(-1) == 4).all(), "the paddle in column 4"
    ball = board[:, 0].argmax(-1)
    for step in range(1, 8):
        outcome = environment.step((ball - board[:, 7].argmax(-1)).sign() + 1)
        board = outcome.observation
        assert bool(outcome.is_terminal.all()) == bool(outcome.is_terminal.any()) == (step == 7)
    assert (outcome.reward == 1.0).all()


@pytest.mark.slow
def test_an_actor_critic_learns_it(tmp_path: Path) -> None:
    summary = run(replace(catch_8x8(), updates=400, learner_threads=1), tmp_path / "run", False, Console(quiet=True))
    assert summary["return_mean"] > 0.8
