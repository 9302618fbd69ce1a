"""Pictures of a user's own on NatureCnn, and an outer loss of a user's own, each in a file of its own."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from metagrad.actors.rollout import probe
from metagrad.cluster.config.json_form import from_json, to_json
from metagrad.cluster.launch.launch import run
from metagrad.losses import Estimates, OuterObjective
from metagrad.types import Trajectory

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def example(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("pixels")


def test_a_player_in_the_gap_passes_and_one_beside_it_loses(example: ModuleType) -> None:
    walls = example.WallsConfig(walls=3).make(batch_size=128, seed=0, device=CPU, threads=1, is_training=True)
    picture = walls.reset()
    assert (picture.shape, picture.dtype) == ((128, 1, 36, 36), torch.uint8)
    total = torch.zeros(128)
    for step in range(1, 3 * 8 + 1):
        cells = picture[:, 0, ::4, ::4]
        assert torch.equal(picture, cells.repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1))
        wall = cells[:, (step - 1) % 8]
        assert ((wall == 0).sum(-1) == 1).all()
        gap, player = (wall == 0).int().argmax(-1), cells[:, -1].argmax(-1)
        is_loser = torch.arange(128) < 64
        towards = (gap - player).sign() + 1
        # Losers step beside the gap at the first wall's last moment.
        beside = torch.where(gap == player, torch.where(gap == 0, 2, 0), 1)
        outcome = walls.step(torch.where(is_loser & (step == 8), beside, towards))
        total += outcome.reward
        picture = outcome.observation
        if step == 8:
            assert torch.equal(outcome.is_terminal, outcome.reward == 0.0)
            assert outcome.is_terminal[is_loser].all()
    survivors = ~is_loser & (total == 3.0)
    assert survivors.float().mean() > 0.1, "a gap within reach is reached"
    assert outcome.is_terminal[survivors].all(), "the game ends with the last wall"


def test_a_cautious_outer_loss_weighs_what_went_badly(example: ModuleType) -> None:
    objective = example.walls().outer
    assert objective.caution == 2.0
    shape, yes = (2, 1), torch.ones(2, 1, dtype=torch.bool)
    trajectory = Trajectory(
        torch.zeros(3, 1), torch.zeros(shape).long(), torch.zeros(shape), yes, ~yes, yes, torch.zeros(shape), 0
    )
    advantage = torch.tensor([[1.0], [-1.0]])
    outputs = {"logits": torch.tensor([[[0.0, 1.0]], [[0.0, 2.0]]])}
    scores = torch.log_softmax(outputs["logits"], -1)[:, 0, 0]
    loss, _ = objective.loss(outputs, trajectory, Estimates(advantage, advantage))
    torch.testing.assert_close(loss, -(scores[0] - 2.0 * scores[1]) / 2)
    plain, _ = OuterObjective.loss(objective, outputs, trajectory, Estimates(advantage, advantage))
    torch.testing.assert_close(plain, -(scores[0] - scores[1]) / 2)
    assert objective.reaches_critics, "its own loss is taken for one that may"


def test_the_file_is_all_that_a_run_needs(example: ModuleType, tmp_path: Path) -> None:
    experiment = example.walls()
    assert experiment.algorithm(probe(experiment.env)).outer == experiment.outer
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment
    short = replace(experiment, environments=4, updates=3, topology="colocated", learner_threads=1)
    summary = run(short, tmp_path, False, Console(file=StringIO()))
    assert summary["updates"] == 3
    assert summary["eta"]["gamma"] != pytest.approx(0.8, abs=1e-6), "it is learnt"
