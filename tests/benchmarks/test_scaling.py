from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks import broadcast, scaling
from benchmarks.broadcast import Broadcast
from benchmarks.harness import summary
from benchmarks.scaling import ENVIRONMENTS, WAITING_ACTORS, Case, Measured

ROLLOUT_S, LEARNING_S = 0.1, 0.04


def test_seconds_are_those_from_row_to_row() -> None:
    rows = {
        "throughput/real_frames_per_second": [1.0, 1.0, 100.0, 50.0],
        "time/sample_seconds": [9.0, 9.0, 0.5, 1.0],
        "transport/dropped_steps": [0.0, 0.0, 0.0, 5.0],
    }
    found = scaling.steady(rows, frames=100)
    assert found.update_s == pytest.approx(1.5)
    assert found.learner_idle_share == pytest.approx(1.5 / 3)
    assert found.dropped_steps == 5.0


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_actor_has_the_same_environments(environment: str) -> None:
    for actors in (1, 3, 16):
        lockstep, peek = (Case(environment, schedule, actors).experiment for schedule in scaling.SCHEDULES)
        assert lockstep.environments_of_an_actor == peek.environments_of_an_actor == ENVIRONMENTS[environment]
        assert lockstep.environments == actors * ENVIRONMENTS[environment]
        assert peek.environments == 4 * ENVIRONMENTS[environment]
    assert Case(environment, "lockstep", 3).rollouts_per_update == 4 * 3
    assert Case(environment, "peek", 3).rollouts_per_update == 4


def test_bytes_are_those_of_all_rollouts() -> None:
    runs = [Measured(2.0, 0.5, 0.0)]
    found = scaling.row(Case("waiting", "lockstep", 2), runs, ROLLOUT_S)
    per_rollout = 16 * (6 * 32 * 4 + 5 * (8 + 4 + 3 + 4))
    assert found["rollout_bytes_per_second"]["median"] == pytest.approx(4 * 2 * per_rollout / 2.0)
    assert found["real_frames_per_second"]["median"] == pytest.approx(2 * 16 * 5 / 2.0)


def test_waiting_is_known_and_computing_is_measured() -> None:
    assert 0.1 < scaling.rollout_seconds(Case("waiting", "peek", 1).experiment, 3) < 0.2


@pytest.mark.parametrize(
    ("schedule", "actors", "update_s"),
    [("lockstep", 1, 4 * ROLLOUT_S + LEARNING_S), ("lockstep", 8, 4 * ROLLOUT_S + LEARNING_S),
     ("peek", 2, 4 / 2 * ROLLOUT_S), ("peek", 16, LEARNING_S)],
)  # fmt: skip
def test_a_run_is_held_against_its_plan(schedule: Any, actors: int, update_s: float) -> None:
    """Rollouts of equal length and free transport: lockstep's n + 1 batches in turn, peek's slower side."""
    as_planned = Measured(update_s, 1 - LEARNING_S / update_s, 0.0)
    case = Case("waiting", schedule, actors)
    assert scaling.share_of_plan(case, [as_planned], ROLLOUT_S) == pytest.approx(1.0)
    slower = Measured(2 * update_s, 1 - LEARNING_S / (2 * update_s), 0.0)
    assert scaling.share_of_plan(case, [slower], ROLLOUT_S) == pytest.approx(0.5)


def cluster_at(update_s: float) -> Any:
    """Stand in for a cluster on which every update takes as long."""

    def on_raylets(
        cpus: Sequence[int], function: Any, cases: Sequence[Case], rounds: int, quick: bool, sent: Sequence[Broadcast]
    ) -> dict[str, Any]:
        assert sum(cpus) >= max(case.actors for case in cases)
        assert function is scaling.measure
        assert not quick
        measured = Measured(update_s, 1 - LEARNING_S / update_s, 0.0)
        runs = {case.label: [measured] * rounds for case in cases}
        return {
            "runs": runs,
            "broadcasts": {each.label: {"by_reference_over_by_value": summary([3.0])} for each in sent},
        }

    return on_raylets


def test_a_whole_run_has_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "on_raylets", cluster_at(1.0))
    monkeypatch.setattr(scaling, "rollout_seconds", lambda *_: ROLLOUT_S)
    result = scaling.run(rounds=5, quick=False)
    waiting = {(row["schedule"], row["actors"]) for row in result["runs"].values() if "share_of_plan" in row}
    assert waiting == {(schedule, actors) for schedule in scaling.SCHEDULES for actors in WAITING_ACTORS}
    assert result["rollout_s"] == ROLLOUT_S
    assert result["ratios"] == {
        f"broadcast of {size} MB to {actors} actors by reference over by value": 3.0
        for size in ("1", "6.8")
        for actors in (1, 2, 4, 8)
    }
    assert list(result["broadcast"]) == ["1 node", "2 nodes", "4 nodes"]
    assert [row["nodes"] for row in result["runs"].values()][-6:] == [1, 1, 2, 2, 4, 4]
    assert "snake, peek, 8 actors" in result["runs"]


def test_nothing_need_be_broadcast() -> None:
    assert broadcast.measure([], [], 1, rounds=1) == {}


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_quick_run() -> None:
    result = scaling.run(rounds=1, quick=True)
    assert [row["actors"] for row in result["runs"].values()] == [1, 1, 2, 2]
    for row in result["runs"].values():
        assert row["real_frames_per_second"]["median"] > 0
        assert 0 < row["learner_idle_share"]["median"] < 1
        assert row["share_of_plan"] > 0
    assert list(result["ratios"]) == ["broadcast of 1 MB to 2 actors by reference over by value"]
