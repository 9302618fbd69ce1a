from pathlib import Path

import pytest

from metagrad.cluster.config.json_form import differences
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.experiments.gradient_bias.atari_scores import HUMAN_NORMALISATION
from metagrad.experiments.gradient_bias.atari_study import (
    ALE_STUDY,
    ARMS,
    GAMES,
    QUICK_GAMES,
    STUDY,
    part_experiment,
    run_part,
)

SETTINGS = {"game": "Qbert", "arm": "mgrl", "seed": 1, "updates": 2, "environments": 2, "log_every": 1}
TINY = SETTINGS | {"episodes": 1, "backend": "envpool"}


def test_agents_differ_in_the_values_of_the_paper_alone() -> None:
    whole = next(iter(STUDY.parts(1, False).values()))
    assert (whole["game"], whole["arm"], whole["seed"]) == ("Asteroids", "a2c", 0)
    how_it_runs = {"topology", "actors", "learner_threads", "log_every", "checkpoint.keep", "env.game"}

    def changed(arm: str) -> dict[str, object]:
        found = differences(atari(), part_experiment(whole | {"arm": arm}))
        return {field: new for field, _, new in found if field not in how_it_runs}

    assert changed("a2c") == {"meta.n": 0, "meta.surrogate": "ad"}
    assert changed("mgrl") == {"meta.surrogate": "ad"}
    assert changed("mgrl-lvc") == {}


def test_the_papers_games_all_have_a_human_score() -> None:
    assert len(set(GAMES)) == 8
    assert set(GAMES) <= set(HUMAN_NORMALISATION)
    assert set(QUICK_GAMES) < set(GAMES)


def test_parts_are_seeds_by_games_by_agents() -> None:
    few, many = STUDY.parts(1, False), STUDY.parts(5, False)
    assert few.items() < many.items()
    assert len(many) == 5 * 8 * len(ARMS)
    assert {settings["updates"] for settings in many.values()} == {125_000}
    short = STUDY.parts(1, False, 500)
    assert {settings["updates"] for settings in short.values()} == {500}
    annealed = part_experiment(short["Alien-mgrl-seed0"]).optimizer.annealing_updates
    assert annealed == 125_000, "a short run is the beginning of a long one"
    assert {settings["backend"] for settings in ALE_STUDY.parts(1, True).values()} == {"ale"}


# test_experiments.py trains on EnvPool.
@pytest.mark.parametrize("backend", [pytest.param("envpool", marks=pytest.mark.slow), "ale"])
def test_a_part_trains_and_plays_full_games(tmp_path: Path, backend: str) -> None:
    result = run_part(TINY | {"backend": backend}, tmp_path / "part")
    assert len(result["returns"]) == 1
    assert result["eta/lambda"]["updates"] == [1, 2]
    assert 0 < result["frames_real"] <= 2 * 2 * 5, "the steps that reset or fire are none"
    assert result["frames_real"] < result["frames_lookahead"] <= 3 * 2 * 2 * 5
