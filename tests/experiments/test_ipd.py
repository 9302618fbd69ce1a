"""Experiment `ipd`: what it refuses, what it plays, and that cooperation comes of it."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.rollout import probe
from metagrad.cli.main import main
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.plot import logged_scalars, plot_runs
from metagrad.errors import ConfigurationError
from metagrad.experiments.gradient_bias.ipd import LolaExperiment, ipd
from metagrad.learner.algorithm import Algorithm
from metagrad.learner.checkpoint import restore_newest
from metagrad.networks import MemoryOnePair

EXACT = {"inner": "exact", "outer": "exact"}


def tiny(**changes: Any) -> LolaExperiment:
    games = {"env": IteratedPrisonersDilemmaConfig(steps=5), "rollout_length": 5, "environments": 4}
    there = {"topology": "colocated", "learner_threads": 1, "log_every": 2, "updates": 2}
    return replace(ipd(), **games | there | {"inner_rollouts": 2} | changes)


def trained(experiment: LolaExperiment, folder: Path, is_resumed: bool = False) -> dict[str, Any]:
    return run(experiment, folder, is_resumed, Console(file=StringIO()))


def state_of(folder: Path) -> dict[str, Any]:
    tree = restore_newest(folder / "checkpoints").tree
    learner = {name: x.tolist() if isinstance(x, torch.Tensor) else x for name, x in tree["learner"].items()}
    return learner | {name: tree[name] for name in ("account", "episodes")}


def test_the_papers_settings() -> None:
    """Gradient-bias paper, Table 3; the inner games are eight times its 128."""
    paper = ipd()
    assert (paper.environments, paper.rollout_length, paper.env.steps, paper.updates) == (128, 100, 100, 500)
    assert (paper.inner_learning_rate, paper.learning_rate, paper.gamma) == (0.3, 0.1, 0.96)
    assert (paper.opponent_updates, paper.inner_rollouts, paper.network) == (1, 8, MemoryOnePair())
    assert (paper.estimation.value, paper.estimation.outer) == (1024, 128)
    assert (paper.topology, paper.actors) == ("ray", 2)
    assert isinstance(paper.algorithm(probe(paper.env)), Algorithm)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rollout_length": 10}, "rollout_length"),
        ({"opponent_updates": -1}, "opponent_updates"),
        ({"inner_rollouts": 0}, "inner_rollouts"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"value_learning_rate": float("nan")}, "value_learning_rate"),
        ({"gamma": 1.0}, "gamma"),
        ({"inner": "exact"}, "inner_rollouts"),
        ({"opponent_updates": 0}, "inner_rollouts"),
        ({"opponent_updates": 0, "inner_rollouts": 8, "inner": "exact"}, "inner"),
        ({"opponent_updates": 0, "inner_rollouts": 8, "inner_learning_rate": 0.5}, "inner_learning_rate"),
        (EXACT | {"inner_rollouts": 8, "value_target": "reward"}, "value_target"),
        (EXACT | {"inner_rollouts": 8, "value_learning_rate": 0.5}, "value_learning_rate"),
        ({"opponent_updates": 0, "inner_rollouts": 8, "lookahead": "fork"}, "lookahead"),
        ({"outer": "exact", "lookahead": "fork"}, "lookahead"),
        ({"environments": 3}, "environments"),
    ],
)
def test_wrong_values_and_options_that_nobody_looks_at_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        tiny(**changes)


@pytest.mark.parametrize("command", ["config", "train"])
def test_a_refusal_is_one_line_on_the_command_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "ipd", "--inner", "exact", "--inner-rollouts", "4"]) == 2
    assert capsys.readouterr().err == "metagrad: inner_rollouts = 4: belongs to --inner sampled; leave it out\n"
    assert main([command, "ipd", "--env.steps", "0"]) == 2
    assert capsys.readouterr().err.startswith("metagrad: env.steps = 0: ")


@pytest.mark.parametrize(
    ("changes", "real", "ahead"),
    [
        ({}, 2, 2),
        ({"opponent_updates": 2, "lookahead": "fork"}, 2, 6),
        ({"outer": "exact"}, 2, 0),
        ({"inner": "exact", "inner_rollouts": 8, "lookahead": "continue"}, 1, 2),
        (EXACT | {"inner_rollouts": 8}, 1, 0),
        ({"opponent_updates": 0, "inner_rollouts": 8}, 1, 0),
    ],
)
@pytest.mark.thinned(3)
def test_frames_are_counted_apart_and_runs_are_deterministic(
    tmp_path: Path, changes: dict[str, Any], real: int, ahead: int
) -> None:
    summary = trained(tiny(**changes), tmp_path / "a")
    steps = 2 * 4 * 5  # of one rollout in every update
    assert (summary["frames_real"], summary["frames_lookahead"]) == (real * steps, ahead * steps)
    assert summary["sampled"] == summary["consumed"] == (real + ahead) * steps
    is_mixed = changes.get("lookahead") == "continue"
    assert summary["return_count"] == 2 * 4 * (real + ahead * is_mixed), "of the real games, unless they go on"
    assert len(summary["eta"]) == 10
    trained(tiny(**changes), tmp_path / "b")
    assert state_of(tmp_path / "a") == state_of(tmp_path / "b")
    trained(tiny(**changes, updates=1), tmp_path / "parts")
    trained(tiny(**changes), tmp_path / "parts", is_resumed=True)
    assert state_of(tmp_path / "a") == state_of(tmp_path / "parts")


def test_another_seed_plays_other_games(tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(tiny(seed=seed), tmp_path / str(seed))
    assert state_of(tmp_path / "0")["episodes"] != state_of(tmp_path / "1")["episodes"]


@pytest.mark.slow
def test_the_same_bits_on_ray(tmp_path: Path) -> None:
    trained(tiny(), tmp_path / "here")
    trained(tiny(topology="ray"), tmp_path / "ray")
    assert state_of(tmp_path / "here") == state_of(tmp_path / "ray")


def test_a_run_is_evaluated_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tiny(), tmp_path)
    evaluate_run(tmp_path, None, 6, 0, False, False)
    (path,) = tmp_path.glob("evaluation-*.json")
    report = json.loads(path.read_text())
    assert report["lengths"] == [5] * 6
    assert all(-10.0 <= x <= -5.0 for x in report["returns"])
    plot_runs([tmp_path], tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1_000
    capsys.readouterr()
    assert main(["eval", str(tmp_path), "--record"]) == 2
    assert capsys.readouterr().err.startswith("metagrad: env = 'IteratedPrisonersDilemmaConfig': has no pictures")


def per_step(folder: Path) -> float:
    return float(logged_scalars(folder)["reward/mean_per_step"][1][-1])


@pytest.mark.slow  # test_ipd.py has the same end of the same exact updates
def test_exact_players_cooperate_and_independent_ones_do_not(tmp_path: Path) -> None:
    """Curves of the study: about 60 updates to cooperation. Games only keep the score here, so short ones do."""
    short = {"inner_rollouts": 8, "environments": 100, "actors": 1, "updates": 90}
    trained(tiny(**EXACT, **short), tmp_path / "lola")
    assert per_step(tmp_path / "lola") > -1.1
    trained(tiny(outer="exact", opponent_updates=0, **short), tmp_path / "independent")
    assert per_step(tmp_path / "independent") < -1.9
