from pathlib import Path
from typing import Any

import pytest

from metagrad.cluster.config.experiment import OPERATIONAL_FIELDS
from metagrad.cluster.config.json_form import differences
from metagrad.experiments import EXPERIMENTS
from metagrad.experiments.mixed_precision import precision_study
from metagrad.experiments.mixed_precision.precision_study import STUDY, experiment_of, learning_curves, run_part

TINY = {"experiment": "snake-6x6", "precision": "bf16-mixed", "seed": 1, "updates": 4, "environments": 4}


def test_more_seeds_add_parts_and_change_none() -> None:
    few, many = STUDY.parts(1, False), STUDY.parts(5, False)
    assert few.items() < many.items()
    assert len(many) == 6 + 5 * 2 * 2


def test_curves_are_those_of_runs_of_the_experiments_as_they_are() -> None:
    for name, settings in STUDY.parts(2, False).items():
        if "precision" in settings:
            experiment = experiment_of(settings)
            changed = {field for field, *_ in differences(EXPERIMENTS[settings["experiment"]](), experiment)}
            assert changed <= OPERATIONAL_FIELDS | {"seed"}, name
            assert (experiment.precision, experiment.actors) == (settings["precision"], 2)


def test_a_finished_run_is_a_part_without_more_training(tmp_path: Path) -> None:
    first = run_part(TINY, tmp_path / "part")
    assert first["eta/gamma"]["updates"] == [1, 2, 3, 4]
    assert (first["frames_real"], first["wall_seconds"] > 0) == (4 * 4 * 5, True)
    assert run_part(TINY, tmp_path / "part") == first


def test_a_tenth_is_the_mean_of_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gamma = {"updates": [10, 20, 30, 40, 195, 200], "values": [1.0, 3.0, 5.0, 7.0, 8.0, 10.0]}
    monkeypatch.setattr(precision_study, "curves", lambda *_: {"eta/gamma": gamma})
    assert learning_curves(tmp_path, 200) == {"eta/gamma": {"updates": [20, 40, 200], "values": [2.0, 6.0, 9.0]}}


def test_a_part_compares_gradients() -> None:
    settings: dict[str, Any] = {"experiment": "snake-6x6", "seed": 1, "updates": 1, "environments": 4}
    found = run_part(settings | {"windows": 2, "ns": [1]}, Path())
    assert found["names"] == ["gamma", "lambda_", "value_coefficient", "entropy_coefficient"]
    assert len(found["windows"]) == 2


@pytest.mark.slow
def test_a_part_plays_pong() -> None:
    settings: dict[str, Any] = {"experiment": "pong", "seed": 1, "updates": 1, "environments": 2}
    (window,) = run_part(settings | {"windows": 1, "ns": [1]}, Path())["windows"]
    assert window["inner"]["float32"]["error"] < 1e-3 < window["inner"]["bf16-mixed"]["error"]
