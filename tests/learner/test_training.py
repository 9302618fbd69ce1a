"""The loop alone: actors without environments, an algorithm of five lines, a list that takes the reports."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metagrad.learner.algorithm import Algorithm, AlgorithmState, Sample, UpdateMetrics
from metagrad.learner.reports import Candidate, Checkpoint, Lags, Report, Row, Standing, Summary
from metagrad.learner.schedule import Lockstep, Peek, Received, Schedule
from metagrad.learner.tally import Tally
from metagrad.learner.training import CHECKPOINT_PARTS, Training, TrainingConfig, summary_before
from metagrad.types import Episodes, Trajectory, WeightSnapshot

CPU = torch.device("cpu")
STEPS = 12  # of a trajectory
CONFIG = TrainingConfig(
    name="toy", seed=3, updates=6, steps_per_batch=STEPS, log_every=2, checkpoint_every=4, evaluation_every=3
)


class Stop:
    """Asks for an end where it is told to."""

    signal_name: str | None = None


class State(NamedTuple):
    """θ, and a batch that waits for the next update, as `sequential` has one."""

    update: int
    version: int
    theta: Tensor
    held_batches: int = 0


class Toy:
    """θ grows by the mean rewards of a real batch, and of those that it looks ahead to."""

    network: Any = None

    def __init__(self, look_ahead: int = 0, happens: Callable[[int], None] = lambda update: None) -> None:
        self.look_ahead, self.happens = look_ahead, happens

    def init(self, seed: int, device: torch.device) -> State:
        return State(0, 0, torch.full((2,), float(seed), device=device))

    def update(self, state: State, sample: Sample) -> tuple[State, UpdateMetrics]:
        self.happens(state.update + 1)
        theta = state.theta
        for j in range(1 + self.look_ahead):
            theta = theta + sample(WeightSnapshot(state.version + j, theta, torch.zeros(0)), j).reward.mean()
        version = state.version + 1 + self.look_ahead
        return State(state.update + 1, version, theta), UpdateMetrics(
            {"toy/size": theta.norm().item()}, (1.0 * version,)
        )

    def shown(self, state: State) -> dict[str, float]:
        return {"size": state.theta.norm().item(), "seed": 3.0}

    def learnt(self, state: State) -> dict[str, float]:
        return {"size": state.theta.norm().item()}

    def to_tree(self, state: State) -> dict[str, Any]:
        return state._asdict()

    def from_tree(self, tree: dict[str, Any], device: torch.device) -> State:
        return State(**tree | {"theta": tree["theta"].to(device)})

    def misfit(self, tree: Any) -> str | None:
        return None


MakeTraining = Callable[..., tuple[Training, list[Report]]]


@pytest.fixture
def make(fake_actors: Any, trajectory: Callable[[int], Trajectory]) -> MakeTraining:
    """(checkpoint, algorithm, window, **changes of the configuration) -> training, and the list that it reports to."""

    def training(
        checkpoint: dict[str, Any] | None = None, toy: Toy | None = None, window: int = 0, **changes: Any
    ) -> tuple[Training, list[Report]]:
        algorithm, reports = toy or Toy(), list[Report]()
        actors = fake_actors(lambda snapshot, _: [trajectory(snapshot.version)])
        state = algorithm.init(3, CPU) if checkpoint is None else algorithm.from_tree(checkpoint["learner"], CPU)
        schedule: Schedule = Lockstep(actors, CPU)
        if window:
            schedule = Peek(actors, CPU, window, window, state.update)
        new = Training(replace(CONFIG, **changes), algorithm, state, actors, schedule, reports.append)
        if checkpoint is not None:
            new.load(checkpoint)
        return new, reports

    return training


def of(kind: type[Any], reports: list[Report]) -> list[Any]:
    return [report for report in reports if type(report) is kind]


def test_the_toy_is_an_algorithm() -> None:
    assert isinstance(Toy(), Algorithm)
    assert isinstance(Toy().init(0, CPU), AlgorithmState)


def test_reports_come_in_the_order_of_the_updates(make: MakeTraining) -> None:
    training, reports = make()
    training.run(Stop())
    row = [Row, Lags, Standing, Summary]
    assert [type(report) for report in reports] == [*row, Candidate, *row, Checkpoint, *row, Candidate, Checkpoint]
    assert [row.update for row in of(Row, reports)] == [2, 4, 6]
    assert [candidate.update for candidate in of(Candidate, reports)] == [3, 6]
    assert [checkpoint.update for checkpoint in of(Checkpoint, reports)] == [4, 6]
    assert of(Lags, reports)[0] == Lags([0, 0], 2)
    assert of(Standing, reports)[-1].learnt == {"size": training.state.theta.norm().item()}


def test_the_last_update_is_saved_once(make: MakeTraining) -> None:
    training, reports = make(checkpoint_every=3)
    training.run(Stop())
    assert [checkpoint.update for checkpoint in of(Checkpoint, reports)] == [3, 6]


def test_rows_are_of_their_intervals(make: MakeTraining, trajectory: Callable[[int], Trajectory]) -> None:
    training, reports = make()
    training.run(Stop())
    theta, sizes = torch.full((2,), 3.0), []
    for version in range(6):
        theta = theta + trajectory(version).reward.mean()
        sizes.append(theta.norm().item())
    for row, first in zip(of(Row, reports), (0, 2, 4), strict=True):
        assert row.scalars["toy/size"] == pytest.approx(sum(sizes[first : first + 2]) / 2)
        assert row.scalars["meta_gradient/variance"] == 0.5, "of k and k + 1"
    ended = [x for version in range(6) for x in trajectory(version).reward[trajectory(version).is_terminal].tolist()]
    summary = training.summary()
    assert summary["return_count"] == len(ended) > 0
    assert summary["return_mean"] == pytest.approx(sum(ended) / len(ended))
    assert (summary["experiment"], summary["seed"], summary["updates"]) == ("toy", 3, 6)
    assert summary["eta"] == training.algorithm.shown(training.state)


def test_frames_and_steps_of_a_look_ahead_are_counted_apart(
    make: MakeTraining, trajectory: Callable[[int], Trajectory]
) -> None:
    training, reports = make(toy=Toy(look_ahead=2))
    training.run(Stop())
    valid = [int(trajectory(version).valid.sum()) for version in range(18)]
    summary = training.summary()
    assert summary["frames_real"] == sum(valid[::3])
    assert summary["frames_lookahead"] == sum(valid) - sum(valid[::3])
    assert summary["sampled"] == summary["consumed"] == 18 * STEPS
    assert summary["in_flight"] == 0
    for row in of(Row, reports):
        assert row.scalars["throughput/real_frames_per_second"] > 0
        assert row.scalars["throughput/lookahead_frames_per_second"] > 0


def test_batches_of_a_window_are_consumed_when_they_are_used(make: MakeTraining) -> None:
    training, reports = make(window=3)
    training.run(Stop())
    summary = training.summary()
    assert (summary["consumed"], summary["in_flight"]) == (6 * STEPS, 2 * STEPS)
    assert of(Lags, reports)[-1].versions == [2, 2], "as old as the window is long"
    assert summary["frames_lookahead"] == 0


@pytest.mark.parametrize("update", range(1, 7))
@pytest.mark.parametrize("window", [0, 3])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(make: MakeTraining, update: int, window: int) -> None:
    whole, expected = make(window=window)
    whole.run(Stop())
    stop = Stop()

    def happens(now: int) -> None:
        stop.signal_name = "SIGTERM" if now == update else None

    first, before = make(toy=Toy(happens=happens), window=window)
    first.run(stop)
    assert first.state.update == update, "the update at hand is finished"
    checkpoint = before[-1]
    assert isinstance(checkpoint, Checkpoint)
    assert set(CHECKPOINT_PARTS) < checkpoint.tree.keys()
    assert checkpoint.tree["interval"]["evaluation"] == ("none" if update % 3 else "due")
    second, after = make(checkpoint.tree, window=window)
    second.run(Stop())
    assert torch.equal(second.state.theta, whole.state.theta)

    def lasting(reports: list[Report]) -> list[Any]:
        rows = [
            (row.update, row.scalars["toy/size"], row.scalars["meta_gradient/variance"]) for row in of(Row, reports)
        ]
        return [rows, of(Lags, reports)]

    assert [x + y for x, y in zip(lasting(before), lasting(after), strict=True)] == lasting(expected)
    timed = {"wall_seconds", "frames_per_second"}
    summaries = [{k: v for k, v in x.summary().items() if k not in timed} for x in (second, whole)]
    assert summaries[0] == summaries[1]
    evaluated = [candidate.update for candidate in of(Candidate, before) + of(Candidate, after)]
    assert sorted(set(evaluated)) == [3, 6], "one that a signal may have cut short is asked for again"


def test_what_is_left_of_an_interval_has_a_row_at_the_end(make: MakeTraining) -> None:
    training, reports = make(updates=5, evaluation_every=0)
    training.run(Stop())
    assert [row.update for row in of(Row, reports)] == [2, 4, 5]
    assert training.tally.is_row_partial
    assert of(Candidate, reports) == []


def test_steps_that_were_on_their_way_are_dropped_on_the_way_back(make: MakeTraining) -> None:
    training, reports = make()
    training.run(Stop())
    tree = of(Checkpoint, reports)[-1].tree
    tree = tree | {"account": tree["account"] | {"sampled": 7 * STEPS, "in_flight": STEPS}}
    again, _ = make(tree)
    assert again.summary()["dropped_reasons"] == {"run was stopped": STEPS}
    assert again.summary()["in_flight"] == 0
    before = summary_before(CONFIG, Toy(), tree)
    assert before == again.summary()
    assert summary_before(CONFIG, Toy(), None)["updates"] == 0


def test_an_error_leaves_the_updates_before_it(make: MakeTraining) -> None:
    def happens(update: int) -> None:
        if update == 4:
            raise FloatingPointError("its own")

    training, reports = make(toy=Toy(happens=happens))
    with pytest.raises(FloatingPointError, match="its own"):
        training.run(Stop())
    assert training.summary()["updates"] == 3
    assert of(Checkpoint, reports) == []


def test_a_tally_continues_from_its_tree(make: MakeTraining) -> None:
    training, _ = make(updates=5)
    training.run(Stop())
    again = Tally()
    again.load_tree(training.tally.to_tree())
    assert again.row(training.actors.account) == training.tally.row(training.actors.account)
    assert again.counters == training.tally.counters
    older = {name: x for name, x in training.tally.to_tree().items() if name != "interval"}
    fresh = Tally()
    fresh.load_tree(older)
    assert (fresh.lags, fresh.evaluation, fresh.counters) == ([], "none", training.tally.counters)


def test_the_mean_return_is_of_the_last_hundred_episodes() -> None:
    tally, received = Tally(), torch.arange(250.0)
    lengths = torch.ones(250, dtype=torch.int64)
    tally.count([Received((Episodes(received, lengths),), torch.tensor(1), False)], (0,), UpdateMetrics({}, ()))
    statistics = tally.episodes.statistics()
    assert (statistics.return_mean, statistics.episodes) == (199.5, 250)
