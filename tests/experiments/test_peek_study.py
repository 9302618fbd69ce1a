from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.actors.rollout import probe
from metagrad.cluster.config.json_form import differences
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.experiments.gradient_bias.atari import atari
from metagrad.experiments.one_step_at_a_time.peek_study import (
    LEARNT,
    NS,
    PONG_STUDY,
    STUDY,
    peek_experiment,
    peek_samples,
    run_part,
)
from metagrad.experiments.training.runs import checkpoints, train
from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.checkpoint import checkpoint_path, load
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")
NAMES = ["gamma", "lambda", "value_coefficient", "entropy_coefficient"]
TINY = {"n": 2, "seed": 1, "updates": 4, "epoch": 2, "environments": 4, "episodes": 4}
OPERATIONAL = {"seed", "updates", "environments", "actors", "topology", "learner_threads", "log_every"}


def test_arms_differ_in_schedule_and_n_alone() -> None:
    for schedule in ("lockstep", "peek"):
        changed = {field: new for field, _, new in differences(snake_6x6(), peek_experiment(schedule, 3, TINY))}
        own = {k: v for k, v in changed.items() if k.partition(".")[0] not in OPERATIONAL | {"checkpoint"}}
        assert own == {"meta.n": 3} | ({"schedule": "peek"} if schedule == "peek" else {})


def test_other_surrogates_and_clips_are_in_the_settings() -> None:
    arms = STUDY.parts(1, False)
    whole, clipped = (peek_experiment("peek", 3, arms[f"{name}-n3-seed1"]) for name in ("peek", "peek-impala"))
    assert differences(whole, clipped) == [("ratio_clip", None, 1.0)]
    four = peek_experiment("peek", 3, arms["lvc-meta-gradients-n3"])
    assert four.meta.surrogate == "lvc"
    assert list(four.algorithm(probe(four.env)).learnt(four.algorithm(probe(four.env)).init(0, CPU))) == NAMES


def test_more_seeds_add_parts_and_change_none() -> None:
    few, many = STUDY.parts(1, False), STUDY.parts(3, False)
    assert few.items() < many.items()
    assert len(many) == 3 * 3 * len(NS) + 2 * len(NS) + len(NS)
    shorter = STUDY.parts(3, False, 310).values()
    assert {s["updates"] for s in shorter if "points" not in s} == {310}
    assert [s["points"] for s in shorter if "points" in s] == [[50, 300]] * 9
    assert not [s for s in STUDY.parts(3, False, 49).values() if "points" in s], "before the first point"
    few, many = PONG_STUDY.parts(1, False), PONG_STUDY.parts(3, False)
    assert few.items() < many.items()
    assert len(many) == 3 * 2


def test_pong_is_the_experiment_atari() -> None:
    whole = PONG_STUDY.parts(1, False)
    for schedule in ("lockstep", "peek"):
        experiment = peek_experiment(schedule, 3, whole[f"{schedule}-seed1"])
        changed = {field: new for field, _, new in differences(atari(), experiment)}
        own = {k: v for k, v in changed.items() if k.partition(".")[0] not in OPERATIONAL | {"checkpoint"}}
        assert own == ({"schedule": "peek"} if schedule == "peek" else {})


@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
def test_a_part_trains_and_is_evaluated(tmp_path: Path, schedule: str) -> None:
    result = run_part(TINY | {"schedule": schedule}, tmp_path / "part")
    assert result["sampled"]["updates"] == [0, 2, 4]
    real = {"lockstep": 4, "peek": 4 + 2}[schedule] * 4 * 5  # the window holds two batches more at the end
    assert (result["frames_real"], result["frames_lookahead"]) == (real, 0 if schedule == "peek" else 2 * 4 * 4 * 5)
    assert result["transport/lag_versions"]["values"][-1] == (2 if schedule == "peek" else 0)


@pytest.mark.slow
def test_a_part_plays_pong(tmp_path: Path) -> None:
    short = next(iter(PONG_STUDY.parts(1, True).values())) | {"schedule": "peek", "environments": 2}
    result = run_part(short, tmp_path / "part")
    assert len(result["sampled"]["values"]) == 2
    assert all(-21 <= x <= 21 for x in result["sampled"]["values"])
    assert result["frames_lookahead"] == 0


def test_meta_gradients_of_both_estimators_are_sampled_along_one_run(tmp_path: Path) -> None:
    settings = {"seed": 1, "n": 2, "epoch": 2, "environments": 4, "updates": 4, "points": [3, 4], "samples": 2}
    result = run_part(settings, tmp_path / "part")
    assert result["updates"] == [3, 4]
    for name in ("lockstep", "peek", "impala"):
        assert [[len(sample) for sample in samples] for samples in result[name]] == [[1, 1]] * 2
        assert len({sample[0] for samples in result[name] for sample in samples}) == 4, "samples differ"
    assert result["peek"] != result["impala"]
    assert result == run_part(settings, tmp_path / "again")
    four = run_part(settings | {"learnt": list(LEARNT), "updates": 3, "points": [3]}, tmp_path / "four")
    assert [[len(sample) for sample in samples] for samples in four["peek"]] == [[4, 4]]


def test_a_sampled_window_is_what_a_run_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The behaviour policies of a run's window at update k are θ of updates k - n to k, in that order."""
    experiment = peek_experiment("peek", 2, TINY)
    train(replace(experiment, checkpoint=replace(experiment.checkpoint, every=1)), tmp_path)
    theta = {u: tree["theta"] for u, tree in checkpoints(experiment, tmp_path).items()}
    acted: list[torch.Tensor] = []
    streamed = ColocatedActors.stream

    def recorded(self: Any, snapshot: WeightSnapshot, oldest: int) -> Any:
        acted.append(snapshot.theta)
        return streamed(self, snapshot, oldest)

    monkeypatch.setattr(ColocatedActors, "stream", recorded)
    train(experiment, tmp_path / "again")
    window_of_update_3 = acted[3:6]  # batches 3 to 5 of the stream
    assert all(torch.equal(x, theta[u]) for x, u in zip(window_of_update_3, (1, 2, 3), strict=True))
    trees = [load(checkpoint_path(tmp_path / "checkpoints", update)) for update in (1, 2, 3)]
    windows: list[list[Trajectory]] = []
    update = ActorCritic.update

    def looked(algorithm: Any, state: Any, sample: Any) -> Any:
        windows.append([sample(state.snapshot(), j) for j in range(3)])
        assert torch.equal(state.theta, theta[3])
        return update(algorithm, state, sample)

    monkeypatch.setattr(ActorCritic, "update", looked)
    assert [len(each) for each in peek_samples([experiment] * 2, trees, 2, seed=5)] == [2, 2]
    first, same, second, _ = windows
    assert first[1] is same[1], "both estimators see one window"
    assert not torch.equal(first[0].action, second[0].action), "fresh streams"
    assert torch.equal(first[0].observation[0], second[0].observation[0]), "the same games"
    assert torch.equal(first[0].observation[-1], first[1].observation[0]), "which go on"
    assert [x.policy_version for x in first] == [0, 1, 2]
