"""The arithmetic of one run, and one small run on real actor processes."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import feeding
from benchmarks.feeding import Case, Fed
from benchmarks.taking import Mark, Taking

CASE = Case("peek", 64, 5, 2)


def test_every_run_counts_enough_batches() -> None:
    for batch in feeding.BATCHES:
        for schedule in feeding.SCHEDULES:
            experiment = Case(schedule, *batch).experiment(False)
            taking = experiment.algorithm(_spec(experiment))
            assert feeding.LEAST_BATCHES <= taking.last - taking.first <= feeding.MOST_BATCHES
            assert experiment.updates == taking.last + 1, "the clocks are read before the last update"
            assert experiment.look_ahead_batches == 0
            assert experiment.rollouts_per_batch == batch[2]


def test_numbers_are_of_a_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = CASE.experiment(True)
    taking = experiment.algorithm(_spec(experiment))
    decisions = 64 * 5 * 2
    taking.marks.append(Mark(10.0, 1.0, {1: ("python", 1.0), 2: ("actor", 5.0)}))
    taking.marks.append(Mark(12.0, 1.5, {1: ("python", 1.5), 2: ("actor", 6.0), 3: ("another", 0.25)}))
    taking.bytes_of_batches.append(320 * 1000)

    @contextmanager
    def training(*_: Any) -> Any:
        yield SimpleNamespace(run=lambda stop: None, algorithm=taking)

    fed = feeding.feed(SimpleNamespace(training=training), experiment)  # type: ignore[arg-type]
    assert isinstance(taking, Taking)
    expected = Fed(decisions / 2.0, 0.5e6 / decisions, 1.75e6 / decisions, 1000.0)
    assert fed == pytest.approx(expected)


@pytest.mark.slow
def test_a_small_batch_is_measured() -> None:
    runs = feeding.run(rounds=1, quick=True)["runs"]
    parts = ("2 actors", "1 actors of 2 processes")
    assert list(runs) == [f"{schedule}, 16 x 5, {part}" for part in parts for schedule in ("peek", "lockstep")]
    for row in runs.values():
        assert row["decisions_per_s"]["median"] > 0
        assert row["cpu_us_per_decision"]["median"] > 0
        # six observations for five steps, and 8 + 4 + 3 + 4 bytes of a step
        assert row["bytes_per_decision"]["median"] == pytest.approx(6 / 5 * 4 * 84 * 84 + 19)


def _spec(experiment: Any) -> Any:
    return feeding.StillConfig().make(batch_size=1, seed=0, device="cpu", threads=1, is_training=True).spec
