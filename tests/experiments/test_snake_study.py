from dataclasses import replace
from pathlib import Path

import pytest

from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cluster.config.json_form import differences
from metagrad.experiments.debiasing import snake_study
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.debiasing.snake_study import ARMS, STUDY, arm_experiment, run_part
from metagrad.experiments.training.runs import part_run, train

TINY = {"arm": "bmg-outer", "seed": 3, "updates": 4, "epoch": 2, "environments": 4, "episodes": 4}


def changed(arm: str) -> dict[str, object]:
    """Field to value, where an agent differs from the experiment of the command line."""
    return {field: new for field, _, new in differences(snake_6x6(), arm_experiment(ARMS[arm]))}


def test_agents_differ_in_the_values_of_the_paper_alone() -> None:
    assert changed("mg-outer") == {}, "the experiment `snake-6x6` is this agent"
    assert changed("a2c") == {"meta.n": 0, "outer.critic": "inner"}
    assert changed("mg") == {"outer.critic": "inner"}
    assert changed("bmg-outer") == {"meta.bootstrap.updates": 1, "meta.optimizer.learning_rate": 6e-3}
    assert changed("bmg") == changed("bmg-outer") | {"outer.critic": "inner"}
    normalised = {"outer.is_advantage_normalised": True, "meta_parameters.is_advantage_normalised": True}
    assert changed("mg-outer-normalised") == normalised
    assert changed("mg-normalised") == normalised | {"outer.critic": "inner"}


def test_more_seeds_add_parts_and_change_none() -> None:
    few, many = STUDY.parts(1, False), STUDY.parts(3, False)
    assert few.items() < many.items()
    assert len(few) == 7
    assert len(many) == 17, "Figure 6 has one seed"
    assert {settings["updates"] for settings in many.values()} == {29_346}
    assert {settings["updates"] for settings in STUDY.parts(3, False, 2_920).values()} == {2_920}
    assert {settings["seed"] for settings in STUDY.parts(10, True).values()} == {1, 2}


@pytest.fixture
def short_games(monkeypatch: pytest.MonkeyPatch) -> None:
    """A greedy policy that has learnt nothing goes in circles until the time limit."""
    base = snake_6x6()
    assert isinstance(base.env, SnakeConfig)
    short = replace(base, env=replace(base.env, time_limit=20))
    monkeypatch.setattr(snake_study, "snake_6x6", lambda: short)


@pytest.mark.usefixtures("short_games")
# The other arms are the same code with other values, which the first test compares.
@pytest.mark.parametrize(
    "arm", [arm if arm in ("a2c", "bmg-outer") else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS]
)
def test_a_part_trains_and_is_evaluated_after_every_epoch(tmp_path: Path, arm: str) -> None:
    result = run_part(TINY | {"arm": arm}, tmp_path / "part")
    for policy in ("sampled", "greedy"):
        assert result[policy]["updates"] == [0, 2, 4]
        assert len(result[policy]["values"]) == 3
    assert result["eta/gamma"]["updates"] == [2, 4]
    assert ("advantage/outer_mean" in result) == (arm != "a2c")
    per_update = 1 + (arm != "a2c") + arm.startswith("bmg")
    assert result["frames_real"] == 4 * 4 * 5
    assert result["frames_lookahead"] == (per_update - 1) * 4 * 4 * 5
    is_fixed = result["eta/gamma"]["values"] == pytest.approx([0.8, 0.8], abs=1e-7)
    assert is_fixed == (arm == "a2c")


@pytest.mark.usefixtures("short_games")
def test_a_part_that_was_interrupted_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = run_part(TINY, tmp_path / "whole")
    half = part_run(arm_experiment(ARMS["bmg-outer"]), TINY | {"updates": 2}, log_every=2, checkpoint_every=2)
    train(half, tmp_path / "halves")
    halves = run_part(TINY, tmp_path / "halves")
    for result in (whole, halves):
        del result["wall_seconds"]
    assert halves == whole
