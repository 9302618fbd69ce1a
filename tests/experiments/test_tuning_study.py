"""Study `self-tuning`: arms (`metagrad.experiments.self_tuning.tuning_arms`), parts, and the page of its report.

The page is `metagrad.experiments.self_tuning.tuning_report`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metagrad.cluster.sweeps.population import learnt
from metagrad.experiments.self_tuning.tuning_arms import (
    ARMS,
    BATCHES,
    MEMBERS,
    META_GRADIENTS,
    STARTS,
    TASKS,
    base_experiment,
    batches_of,
    population_of,
    run_of,
)
from metagrad.experiments.self_tuning.tuning_report import (
    RETURN,
    best_of,
    budgets,
    improvement,
    interval,
    report,
    trials_of,
)
from metagrad.experiments.self_tuning.tuning_study import STUDY, run_part

HAS_TUNE = all(find_spec(package) for package in ("pandas", "pyarrow", "tensorboardX"))
TINY = {"task": "catch", "start": "bad", "seed": 1, "batches": 16}


def test_more_seeds_add_parts_and_change_none() -> None:
    few, many = STUDY.parts(1, False), STUDY.parts(10, False)
    assert few.items() < many.items()
    assert len(many) == len(TASKS) * (1 + 10 * len(STARTS) * (len(ARMS) - 1 + MEMBERS))
    assert len(STUDY.parts(10, True)) == 2 * (1 + len(STARTS) * (len(ARMS) - 1 + MEMBERS))


@pytest.mark.parametrize("task", ["catch", "snake-6x6"])
def test_all_ways_tune_the_same_and_take_the_same_batches(task: str) -> None:
    names = ["gamma", "lambda", "entropy_coefficient", "learning_rate"]
    good, bad = (learnt(base_experiment(task, start)) for start in STARTS)
    assert list(good) == list(bad) == names
    assert bad["gamma"].initial == 0.8
    assert bad["entropy_coefficient"].initial == pytest.approx(10 * good["entropy_coefficient"].initial)
    assert bad["learning_rate"].initial == pytest.approx(good["learning_rate"].initial / 10)
    seeds = set()
    for arm in ARMS:
        own = run_of(task, "bad", "search" if arm == "population" else arm, 2, BATCHES[task])
        assert abs(own.updates * batches_of(arm) - BATCHES[task]) < batches_of(arm)
        assert own.meta.n == (META_GRADIENTS[arm].n if arm in META_GRADIENTS else 0)
        assert own.optimizer.annealing_updates is None
        seeds.add(own.seed)
    assert seeds == {2_000}
    population = population_of(task, "bad", 2, BATCHES[task])
    for member in (0, 3):
        assert run_of(task, "bad", "search", 2, BATCHES[task], member) == population.member(member)


def test_a_finished_run_is_a_part_without_more_training(tmp_path: Path) -> None:
    settings = TINY | {"arm": "mg-outer-n1"}
    first = run_part(settings, tmp_path / "part")
    assert first[RETURN]["updates"][-1] == 8
    assert first["eta/learning_rate"]["values"][-1] != first["eta/learning_rate"]["values"][0]
    assert (first["frames_lookahead"] > 0, first["wall_seconds"] > 0) == (True, True)
    assert run_part(settings, tmp_path / "part") == first


@pytest.mark.skipif(not HAS_TUNE, reason="needs the extra tune")
def test_a_population_is_a_part_that_goes_on(tmp_path: Path) -> None:
    first = run_part(TINY | {"arm": "population"}, tmp_path / "part")
    assert len(first["members"]) == len(first["generations"]) == MEMBERS
    assert [record["updates"] for record in first["generations"][0]] == [1, 2]
    assert run_part(TINY | {"arm": "population"}, tmp_path / "part") == first


def test_the_best_member_is_chosen_by_the_row_before() -> None:
    runs = [{RETURN: {"updates": [2, 4, 6], "values": values}} for values in ([1.0, 5.0, 0.0], [2.0, 3.0, 4.0])]
    trial = best_of(runs)
    assert trial.updates.tolist() == [4, 6]
    assert trial.returns.tolist() == [3.0, 0.0], "not 5 and 4, which nobody could have chosen"
    assert (trial.at(3), trial.at(5), trial.at(9)) == (None, 3.0, 0.0)
    assert best_of(runs[:1]).returns.tolist() == [1.0, 5.0, 0.0]
    assert best_of([{}]).at(100) is None


def test_budgets_charge_all_runs_and_all_batches() -> None:
    seconds = {"fixed": 1.0} | {arm: 3.0 for arm in META_GRADIENTS}
    quarter, batches, _, cpu, updates = budgets(240, seconds)
    assert (quarter.updates["fixed"], batches.updates["fixed"], cpu.updates["fixed"]) == (60, 240, 240)
    assert (batches.updates["search"], cpu.updates["population"]) == (30, 30)
    assert (batches.updates["mg-n3"], batches.updates["bmg-outer-n1"], cpu.updates["mg-n1"]) == (60, 80, 80)
    assert set(updates.updates.values()) == {30}


def test_intervals_come_from_seeds() -> None:
    scores = np.arange(10, dtype=np.float64)
    found = interval(scores)
    assert found.low < found.point == 4.5 < found.high
    assert np.isnan(interval(scores[:1]).low)
    better = improvement(scores + 20, scores)
    assert (better.low, better.point, better.high) == (1.0, 1.0, 1.0)
    assert improvement(scores, scores).point == 0.5
    assert np.isnan(improvement(scores, scores[:1]).low)


def _parts(seeds: int) -> dict[str, Any]:
    """Return parts of a study of two ways and a search, in which a meta-gradient is best."""
    parts: dict[str, Any] = {}
    for name, settings in STUDY.parts(seeds, False).items():
        if settings["task"] != "catch":
            continue
        if "rounds" in settings:
            parts[name] = settings, {"seconds": {arm: 0.02 for arm in ("fixed", *META_GRADIENTS)}}
        elif settings["arm"] in ("fixed", "search", "mg-outer-n1"):
            level = {"fixed": 0.0, "search": 0.2, "mg-outer-n1": 0.8}[settings["arm"]] + 0.01 * settings["seed"]
            updates = [10, 20, 30, 40]
            parts[name] = settings, {RETURN: {"updates": updates, "values": [level * u / 40 for u in updates]}}
    return parts


def test_a_search_counts_once_all_its_runs_are_there() -> None:
    parts = _parts(2)
    assert set(trials_of(parts)["catch", "bad", "search"]) == {1, 2}
    del parts["catch-bad-search5-seed2"]
    assert set(trials_of(parts)["catch", "bad", "search"]) == {1}


@pytest.mark.usefixtures("without_pictures")
def test_the_page_says_what_is_better_and_what_was_not_run(tmp_path: Path) -> None:
    report(tmp_path, _parts(4), False)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| mg-outer-n1 | 4 |" in page
    assert "- catch, bad start, equal CPU: better than search: mg-outer-n1." in page
    assert "Not run yet: catch, good, population; " in page
    assert "cartpole" not in page.partition("Not run yet")[0]
