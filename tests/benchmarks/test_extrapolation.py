from typing import Any

import pytest

from benchmarks.extrapolation import MORE_ACTORS, Atari, waiting_predicted
from benchmarks.queueing import Learner, Lockstep, Peek, Rollouts

ROLLOUTS, LEARNER = Rollouts(0.1, 0.0), Learner(0.05, 0.0)
LOCKSTEP = Lockstep(ROLLOUTS, LEARNER, 4, 0.0, 0.0)
PEEK = Peek(ROLLOUTS, LEARNER, 4, 4, 0.0, 0.0)


def key(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["environments_of_an_actor"], row["actors"], row["max_lag"]


def test_lockstep_grows_with_its_actors_and_peek_with_its_learner_only() -> None:
    rows = waiting_predicted(LOCKSTEP, PEEK, share=16, length=5)
    by_key = {(row["schedule"], row["actors"]): row for row in rows}
    assert len(rows) == len(by_key) == 2 * len(MORE_ACTORS)
    last = by_key["lockstep", 1_000]
    assert last["environments_of_a_batch"] == 16_000
    assert last["real_frames_per_second"] == pytest.approx(16_000 * 5 / 0.45)
    assert by_key["peek", 1_000]["real_frames_per_second"] == pytest.approx(64 * 5 / 0.05)
    assert by_key["peek", 1_000]["learner_idle_share"] == pytest.approx(0.0)


def test_atari_is_its_numbers() -> None:
    inputs = Atari(actor_steps_per_second=100.0, spread=0.0, update_s=0.02, batch_transfer_s=0.0)
    rows = inputs.predicted(LOCKSTEP, PEEK)
    lockstep = {row["actors"]: row for row in rows if row["schedule"] == "lockstep"}
    # 64 environments, 5 steps each, at 100 steps per second; four batches; then the learner
    assert lockstep[1]["real_frames_per_second"] == pytest.approx(320 / (4 * 3.2 + 0.02))
    assert lockstep[64]["real_frames_per_second"] == pytest.approx(320 / (4 * 0.05 + 0.02))
    assert lockstep[512]["real_frames_per_second"] == pytest.approx(2_560 / (4 * 0.05 + 0.16))
    assert lockstep[512]["environments_of_a_batch"] == 512
    peek = {key(row): row for row in rows if row["schedule"] == "peek"}
    assert peek[1, 1, 7]["real_frames_per_second"] == pytest.approx(100.0, rel=0.01)
    assert peek[8, 1, 7]["real_frames_per_second"] == pytest.approx(100.0, rel=0.02)
    assert peek[1, 256, 7]["real_frames_per_second"] == pytest.approx(320 / 0.02)


def test_more_lag_is_asked_for_where_the_default_leaves_actors_without_orders() -> None:
    slow = Atari(actor_steps_per_second=1.0, spread=0.0, batch_transfer_s=0.0, update_s=1e-6)
    rows = slow.predicted(LOCKSTEP, PEEK)
    peek = {key(row): row for row in rows if row["schedule"] == "peek"}
    assert [(share, lag) for share, actors, lag in peek if actors == 1_000] == [(8, 7), (8, 129), (1, 7), (1, 20)]
    assert peek[1, 1_000, 20]["real_frames_per_second"] == pytest.approx(1_000, rel=0.001)
    assert peek[1, 1_000, 7]["real_frames_per_second"] == pytest.approx(4 * 64 - 31.5, rel=0.001)


def test_bytes_are_the_learners_time() -> None:
    free, dear = (Atari(spread=0.0, batch_transfer_s=seconds).predicted(LOCKSTEP, PEEK) for seconds in (0.0, 0.034))
    for without, with_them in zip(free, dear, strict=True):
        assert without["real_frames_per_second"] >= with_them["real_frames_per_second"]
    # at 64 actors and beyond, the learner of peek takes 34 ms to take a batch in and 20 to learn
    assert dear[-1]["real_frames_per_second"] == pytest.approx(320 / 0.054, rel=0.001)
