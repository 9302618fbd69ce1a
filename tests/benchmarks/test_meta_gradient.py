import pytest
import torch

from benchmarks import meta_gradient as subject
from benchmarks.alternative import NotInstalled, interpreter
from benchmarks.harness import Timing, interleave
from benchmarks.meta_gradient_cases import SETTINGS, MetaUpdate


@pytest.fixture(scope="module")
def race():
    return subject.Race(MetaUpdate(SETTINGS["snake"]._replace(environments=2)), {}, n=3)


def timings(race, **wall):
    return {name: [Timing(wall.get(name, 1.0), 1.0), Timing(2.0 * wall.get(name, 1.0), 1.0)] for name in race.cases}


def test_rows_compare_round_by_round(race):
    race.given = {name: [1.0, 2.0] for name in ("retain", "recompute", "reference")}
    rows = race.rows(timings(race, plain=0.5, retain=4.0, reference=6.0))
    assert rows["retain"]["plain_updates"]["median"] == 8.0  # of each round, 4 / 0.5 and 8 / 1
    assert rows["retain"]["over_floor"] == pytest.approx(8.0 / (26 / 3))
    assert rows["reference"]["over_retain"]["median"] == 1.5
    assert rows["reference"]["wall_s"]["median"] == 9.0
    assert rows["recompute"]["difference"] == 0.0


@pytest.mark.parametrize("wrong", [[1.0, 2.1], [1.0, float("nan")]])
def test_what_gives_another_meta_gradient_is_no_alternative(race, wrong):
    race.given = {"retain": wrong, "recompute": [1.0, 2.0], "reference": [1.0, 2.0]}
    with pytest.raises(RuntimeError, match="retain, n = 3"):
        race.rows(timings(race))


def test_every_way_of_ours_is_run_as_often_as_asked(race):
    runs = interleave(race.cases, 2, warm_up_rounds=0)
    assert set(runs) == {"plain", "retain", "recompute", "reference"}
    assert all(len(found) == 2 and all(timing.wall_s > 0 for timing in found) for found in runs.values())


def rows_of_time(**over_retain):
    return {"n = 3": {name: {"over_retain": {"median": value}} for name, value in over_retain.items()}}


def rows_of_memory(**peaks):
    return {
        "n = 20": {
            name: {"peak_mib": peak, "over_reference": peak / peaks["reference"]} for name, peak in peaks.items()
        }
    }


TIME = {
    "nature": rows_of_time(retain=1.0, recompute=1.3, reference=1.1, torchopt=0.8, jax=2.0),
    "snake": rows_of_time(retain=1.0, recompute=1.3, reference=1.25),
}
MEMORY = {
    "nature": rows_of_memory(retain=90.0, recompute=20.0, reference=100.0, jax=60.0),
    "snake": rows_of_memory(retain=90.0, recompute=20.0, reference=100.0),
}


def test_more_is_better_in_every_ratio():
    ratios = subject._ratios(TIME, MEMORY, "n = 20")
    assert ratios["nature, n = 3: speed over torchopt"] == 0.8
    assert ratios["nature, n = 3: speed over jax"] == 2.0
    assert ratios["nature, n = 20: reference's memory over recompute's"] == 5.0
    assert ratios["nature, n = 20: jax's memory over recompute's"] == 3.0
    assert ratios["snake, n = 3: speed over reference"] == 1.25
    assert not any("torchopt" in label for label in ratios if label.startswith("snake"))


def test_the_fastest_other_way_sets_the_target_and_ours_is_never_one():
    targets = {target["name"]: target for target in subject._targets(TIME, MEMORY, "n = 20")}
    torch_target, jax_target, nature, snake = targets.values()
    assert (torch_target["value"], torch_target["at_most"], torch_target["met"]) == (1.25, 1.05, False)
    assert (jax_target["value"], jax_target["met"]) == (0.5, True)
    assert (nature["value"], nature["met"]) == (0.2, True)
    assert (snake["value"], snake["at_most"], snake["met"]) == (0.2, 0.125, False)


@pytest.mark.parametrize(("n", "expected"), [(1, 8 / 3), (3, 26 / 3), (20, 59 + 2 / 3)])
def test_floor(n, expected):
    assert subject.floor(n) == pytest.approx(expected)


def test_a_small_component_counts_as_much_as_the_rest_allows():
    assert subject.difference([1000.0, 1.0], [1000.0, 2.0]) == pytest.approx(1.0 / 3.0, rel=1e-5)
    assert subject.difference([1001.0, 2.0], [1000.0, 2.0]) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.slow
def test_quick_and_alone(monkeypatch):
    # Peaks are of fresh processes, seconds each: the slow test has them.
    monkeypatch.setattr(subject, "in_fresh_process", lambda _function, _setting, form, n: (1 + len(form)) * n * 2**20)
    result = subject.run(rounds=1, quick=True, alone=True)
    assert set(result["time"]) == set(result["memory"]) == {"nature", "snake"}
    assert set(result["time"]["snake"]) == {"n = 1", "n = 3"}
    assert set(result["time"]["nature"]["n = 3"]) == {
        "floor_plain_updates", "plain", "retain", "recompute", "reference",
    }  # fmt: skip
    assert result["memory"]["nature"]["n = 3"]["recompute"] == {"peak_mib": 30.0, "over_reference": 1.0}
    assert len(result["targets"]) == 3
    assert result["versions"] == {}
    assert result["setting"]["snake"]["batch"] == [5, 64]
    assert torch.get_num_threads() >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)  # six programs are compiled on one core
def test_the_alternatives_give_the_same_meta_gradient():
    try:
        interpreter("jax")
    except NotInstalled as error:
        pytest.skip(str(error))
    result = subject.run(rounds=1, quick=True, alone=False)
    assert {"torch", "torchopt", "jax", "jaxlib"} <= set(result["versions"])
    for setting in ("nature", "snake"):
        rows = result["time"][setting]["n = 3"]
        assert all(rows[name]["difference"] <= subject.TOLERANCE for name in subject.THEIRS)
        assert rows["jax"]["compile_s"] > 0
        peaks = result["memory"][setting]["n = 3"]
        assert set(peaks) == {"retain", "recompute", "reference", *subject.THEIRS}
        assert all(row["peak_mib"] > 0 for row in peaks.values())
    assert len(result["targets"]) == 4
