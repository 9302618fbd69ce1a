"""Study `snake-12x12`: its arms, its parts, and a part against its own training run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metagrad.actors.rollout import probe
from metagrad.experiments.one_step_at_a_time import snake_12x12_study as study
from metagrad.experiments.one_step_at_a_time.snake_12x12 import UPDATES, snake_12x12
from metagrad.experiments.training.meta_gradient_probe import meta_gradient_moments
from metagrad.learner.checkpoint import checkpoint_path, load

TINY: dict[str, Any] = {
    "updates": 4,
    "annealing_updates": 4,
    "environments": 2,
    "rollout_length": 2,
    "log_every": 1,
    "probe_every": 2,
    "samples": 2,
    "episodes": 2,
}


def test_parts_are_the_columns_of_table_1_with_three_seeds() -> None:
    parts = study.STUDY.parts(study.STUDY.seeds, False)
    assert len(parts) == 7 * 3
    assert {(s["updates"], s["annealing_updates"], s["samples"]) for s in parts.values()} == {(UPDATES, UPDATES, 96)}
    settings = parts["n5-mix-seed2"]
    assert (settings["arm"], settings["seed"], settings["probed"]) == ("5-mix", 2, ["5-mix"])
    assert parts["n0-seed0"]["probed"] == []
    assert parts["n1-seed0"]["probed"] == ["1", "3", "5", "10", "3-mix", "5-mix"]
    assert UPDATES // settings["probe_every"] >= 300


def test_more_seeds_add_parts_and_fewer_updates_make_a_beginning() -> None:
    assert study.STUDY.parts(1, False).items() <= study.STUDY.parts(3, False).items()
    assert study.STUDY.parts(1, True).items() <= study.STUDY.parts(3, True).items()
    short = study.STUDY.parts(1, False, 100)["n3-seed0"]
    assert (short["updates"], short["annealing_updates"], short["probe_every"]) == (100, UPDATES, 100)


@pytest.mark.parametrize(
    ("name", "n", "estimator", "weights"),
    [("0", 0, "n-step", 0), ("1", 1, "n-step", 1), ("10", 10, "n-step", 1), ("3-mix", 3, "mix", 3)],
)
def test_arms_differ_in_the_meta_gradient_alone(name: str, n: int, estimator: str, weights: int) -> None:
    base = snake_12x12()
    own = study.arm_experiment(base, name)
    assert (own.meta.n, own.meta.estimator) == (n, estimator)
    assert replace(own, meta=replace(own.meta, n=3, estimator="n-step")) == base
    agent = own.algorithm(probe(base.env))
    assert sum(weight > 0 for weight in agent.weights) == weights


def test_two_arms_of_one_part_differ_in_nothing_else() -> None:
    parts = study.STUDY.parts(1, True)
    first, second = (study.part_experiment(parts[name]) for name in ("n3-seed0", "n5-mix-seed0"))
    assert replace(second, meta=first.meta) == first
    assert first.optimizer.annealing_updates == UPDATES


@pytest.mark.parametrize(("arm", "probed"), [("1", ["1", "3-mix"]), ("0", [])])
def test_a_part_is_its_run_and_probes_along_it(tmp_path: Path, arm: str, probed: list[str]) -> None:
    settings = TINY | {"arm": arm, "seed": 1, "probed": probed}
    result = study.run_part(settings, tmp_path / "run")
    assert json.loads(json.dumps(result)) == result
    assert result["frames_real"] == 4 * 2 * 2
    assert result["frames_lookahead"] == (16 if arm == "1" else 0)
    assert result["return"]["episodes"] == 2
    assert result["eta/gamma"]["updates"] == [1, 2, 3, 4]
    assert list(result["probes"]) == probed
    if probed:
        # Not after the last update, where the step size is 0.
        assert result["probes"]["3-mix"]["updates"] == [2]
        own = study.arm_experiment(study.part_experiment(settings), "3-mix")
        moments = meta_gradient_moments(own, load(checkpoint_path(tmp_path / "run" / "checkpoints", 2)), 2, 1)
        assert result["probes"]["3-mix"]["mean"][0] == pytest.approx(moments.mean.tolist(), rel=1e-5)
    again = study.run_part(settings, tmp_path / "run")  # what is there is not done again
    assert again == result
