"""The loop on colocated actors: what it counts, logs, keeps, and what stands when it ends."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from actors.rollout import Actor, EnvironmentFault
from cluster.config import Experiment
from cluster.launch import run
from cluster.run_config import CheckpointConfig
from learner import algorithm
from learner.checkpoint import paths, update_of
from learner.step import NonFinite, meta_update

Tiny = Callable[..., Experiment]

# Keys and types that scripts rely on.
SUMMARY: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "seed": int,
    "updates": int,
    "frames_real": int,
    "frames_lookahead": int,
    "frames_per_second": float,
    "return_mean": float,
    "return_count": int,
    "eta": dict,
    "sampled": int,
    "consumed": int,
    "dropped": int,
    "in_flight": int,
    "actors_restarted": int,
    "wall_seconds": float,
}


def summary_of(run_dir: Path) -> dict[str, Any]:
    """summary.json, its account checked."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"]
    return summary


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """SIGTERM to this process in the middle of the meta-update that follows `updates` others."""
    done = [0]

    def counted(*args: Any) -> Any:
        if done[0] == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        done[0] += 1
        return meta_update(*args)

    monkeypatch.setattr(algorithm, "meta_update", counted)


def test_the_summary_holds_what_is_promised(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    returned = run(tiny(meta={"n": 2}), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert summary == returned
    for key, kind in SUMMARY.items():
        assert isinstance(summary[key], kind), key
    assert set(summary["eta"]) == {"gamma", "lambda", "value_coefficient", "entropy_coefficient"}
    assert summary["updates"] == 6
    assert (summary["frames_real"], summary["frames_lookahead"]) == (6 * 12, 2 * 6 * 12)
    assert summary["sampled"] == summary["consumed"] == 3 * 6 * 12
    assert summary["in_flight"] == summary["dropped"] == summary["actors_restarted"] == 0
    assert summary["stopped_by"] is None
    assert summary["return_count"] > 0


def test_sequential_updates_use_real_frames_and_hold_one_batch(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(meta={"n": 3, "strategy": "sequential"}), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert summary["updates"] == 6
    assert (summary["frames_real"], summary["frames_lookahead"]) == (7 * 12, 0)
    assert summary["in_flight"] == 12


@pytest.mark.parametrize("meta", [{"n": 0}, {"n": 1}, {"n": 2, "strategy": "sequential"}])
def test_a_stopped_run_continues_bitwise(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, monkeypatch: pytest.MonkeyPatch, meta: dict[str, Any]
) -> None:
    run(tiny(meta=meta, updates=10), tmp_path / "whole", False, console)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = run(tiny(meta=meta, updates=10), tmp_path / "parts", False, console)
    assert stopped["stopped_by"] == "SIGTERM"
    assert 3 <= stopped["updates"] < 10, "the update under way is finished, the others are not begun"
    assert summary_of(tmp_path / "parts") == stopped
    resumed = run(tiny(meta=meta, updates=10), tmp_path / "parts", True, console)
    assert learner_of(tmp_path / "parts") == learner_of(tmp_path / "whole")
    whole = summary_of(tmp_path / "whole")
    for key in SUMMARY.keys() - {"wall_seconds", "frames_per_second"}:
        assert resumed[key] == whole[key], key
    assert resumed["wall_seconds"] > stopped["wall_seconds"]


def test_the_last_k_checkpoints_stay(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(updates=11, checkpoint=CheckpointConfig(every=2, keep=3)), tmp_path, False, console)
    assert [update_of(path) for path in paths(tmp_path / "checkpoints")] == [8, 10, 11]


def scalars(run_dir: Path) -> dict[str, list[int]]:
    """TensorBoard tag to the updates it has values for, as TensorBoard shows them."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_row_of_scalars_is_written_once(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(updates=7, meta={"n": 2}), tmp_path, False, console)
    written = scalars(tmp_path)
    for tag in (
        "loss/inner",
        "loss/outer",
        "eta/gamma",
        "eta/lambda",
        "norm/meta_gradient",
        "advantage/outer_mean",
        "episode/return_mean",
        "throughput/real_frames_per_second",
        "throughput/lookahead_frames_per_second",
        "transport/lag_versions",
        "transport/in_flight_steps",
        "time/sample_seconds",
    ):
        assert written[tag] == [2, 4, 6, 7], tag
    assert written["meta_gradient/variance"] == [2, 4, 6], "one update has no variance"


def test_rows_written_after_the_checkpoint_are_not_shown_twice_after_a_resumption(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    run(tiny(updates=12, checkpoint=CheckpointConfig(every=5, keep=3)), tmp_path, False, console)
    paths(tmp_path / "checkpoints")[-1].unlink()  # as if killed after update 12 was logged, before it was saved
    run(tiny(updates=16, checkpoint=CheckpointConfig(every=5, keep=3)), tmp_path, True, console)
    assert scalars(tmp_path)["loss/inner"] == [2, 4, 6, 8, 10, 12, 14, 16]


def test_an_error_in_the_learner_ends_the_run_and_the_account_still_holds(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = [0]

    def failing(agent: Any, state: Any, sample: Any) -> Any:
        updates[0] += 1
        if updates[0] == 4:
            sample(state.snapshot(), 0)
            raise NonFinite("loss/inner became nan at update 4")
        return meta_update(agent, state, sample)

    monkeypatch.setattr(algorithm, "meta_update", failing)
    with pytest.raises(NonFinite, match="at update 4"):
        run(tiny(checkpoint=CheckpointConfig(every=2, keep=3)), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert summary["updates"] == 3
    assert summary["in_flight"] == 12
    assert [update_of(path) for path in paths(tmp_path / "checkpoints")] == [2]


def test_an_environments_fault_ends_the_run(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = Actor.rollout
    calls = [0]

    def broken(self: Actor, snapshot: Any, lookahead_step: int) -> Any:
        calls[0] += 1
        if calls[0] == 8:
            raise EnvironmentFault("Snake: environment 1 of 2 returned a non-finite reward at step 9")
        return rollout(self, snapshot, lookahead_step)

    monkeypatch.setattr(Actor, "rollout", broken)
    with pytest.raises(EnvironmentFault, match="environment 1 of 2"):
        run(tiny(), tmp_path, False, console)
    summary = summary_of(tmp_path)
    assert (summary["updates"], summary["consumed"], summary["in_flight"]) == (1, 24, 24)
