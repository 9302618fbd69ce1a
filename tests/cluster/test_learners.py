"""Several learners keep the books of one: checkpoints, accounts, episodes, stops; without Ray, in a gloo group."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from metagrad.actors.rollout import Actor, ActorSetup, ActorState, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.run.checkpoint_parts import misfit
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import Assignment, prepared_training, share_of_learner
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.reports import Checkpoint, Message
from metagrad.learner.team import ALONE, Learners, LearnersDiffer, own_part, share_of
from metagrad.shares import RankLost

Tiny = Callable[..., Experiment]
InGroup = Callable[[int, Callable[[], Any]], list[Any]]


def trained(
    experiment: Experiment, checkpoint: Any = None, stop_at: int | None = None, spoil: Callable[[Any], None] = id
) -> list[Any]:
    """Train as one of the group's learners, or alone where there is none; return all reports."""
    reports: list[Any] = []
    team: Any = Learners() if dist.is_initialized() else ALONE
    stop = SimpleNamespace(signal_name=None)

    @contextmanager
    def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[ColocatedActors]:
        rollouts = len(share_of_learner(experiment, team.rank, team.size).rollouts)
        yield ColocatedActors(setups, states, rollouts, Actor)

    def report(each: Any) -> None:
        reports.append(each)
        # The last learner alone is told to stop.
        if getattr(each, "update", 0) == stop_at and team.rank == team.size - 1:
            stop.signal_name = "SIGTERM"

    assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=checkpoint)
    with prepared_training(assignment, open_actors, report, stop, 1, team) as training:
        spoil(training)
        training.run(stop)
    return reports


def last_checkpoint(reports: list[Any]) -> dict[str, Any]:
    return [each for each in reports if isinstance(each, Checkpoint)][-1].tree


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """A checkpoint's entries by name; seconds and what depends on them are left out."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {name: tree}
    return {k: x for key, value in items if "second" not in key for k, x in flat(value, f"{name}/{key}").items()}


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    left, right = flat(one), flat(other)
    left = {name: x for name, x in left.items() if "collectives" not in name}
    right = {name: x for name, x in right.items() if "collectives" not in name and name != "/learners"}
    assert left.keys() == right.keys()
    for name, x in left.items():
        y = right[name]
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            assert torch.allclose(x, y, rtol=0, atol=tolerance), (name, (x - y).abs().max())
        elif isinstance(x, torch.Tensor):
            assert torch.equal(x, y), name
        elif isinstance(x, float):
            assert x == pytest.approx(y, rel=0, abs=tolerance), name
        else:
            assert x == y, name


RUNS: dict[str, dict[str, Any]] = {
    "lockstep": {"meta": {"n": 2}},
    "sequential": {"meta": {"n": 2, "strategy": "sequential"}},
    # One actor each: colocated ones take turns by what the whole run has sampled.
    "peek": {"meta": {"n": 1, "product": "recompute"}, "schedule": "peek", "actors": 2, "environments": 4},
}


def several(tiny: Tiny, run: str, **changes: Any) -> Experiment:
    """Three actors of two boards for two learners: four columns and two."""
    return tiny(
        **{"topology": "ray", "learners": 2, "actors": 3, "environments": 6, "log_every": 2} | RUNS[run] | changes
    )


@pytest.mark.parametrize(
    "run", ["lockstep", *(pytest.param(x, marks=pytest.mark.slow) for x in ("sequential", "peek"))]
)
def test_two_learners_write_the_checkpoint_of_one_and_go_on_from_it(tiny: Tiny, in_group: InGroup, run: str) -> None:
    experiment = several(tiny, run)
    alone = last_checkpoint(trained(experiment))

    def work() -> tuple[dict[str, Any], dict[str, Any], int]:
        reports = trained(experiment, stop_at=2)
        parts: list[Any] = [last_checkpoint(reports)]
        dist.broadcast_object_list(parts)  # the first learner's is of all
        return parts[0], last_checkpoint(trained(experiment, parts[0])), reports[-1].content["updates"]

    (half, whole, updates), (*_, of_other) = in_group(2, work)
    assert half["learner"]["update"] == updates == of_other < 6, "told to one, heard by both after the same update"
    assert misfit(whole, 6, experiment, experiment.algorithm(probe(experiment.env))) is None
    assert whole["learners"] == 2
    assert_same(alone, whole, tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_another_number_of_learners_goes_on_and_says_so(tiny: Tiny, in_group: InGroup, run: str) -> None:
    experiment = several(tiny, run)
    alone = last_checkpoint(trained(experiment))
    half = last_checkpoint(trained(several(tiny, run, updates=2)))

    def work() -> list[Any]:
        return trained(experiment, half)

    reports, _ = in_group(2, work)
    assert_same(alone, last_checkpoint(reports), tolerance=1e-5)
    text = "2 learners now, 1 before: sums over a batch are added up in another order"
    assert text in [each.text for each in reports if isinstance(each, Message)]
    back = trained(experiment, last_checkpoint(reports) | {"learners": 2})
    assert "1 learner now, 2 before" in back[0].text


def test_a_learner_whose_parameters_differ_ends_the_run(tiny: Tiny, in_group: InGroup) -> None:
    experiment = several(tiny, "lockstep", updates=1, checkpoint=CheckpointConfig(every=1))

    def spoil(training: Any) -> None:
        if dist.get_rank() == 1:
            training.state = training.state._replace(theta=training.state.theta.nextafter(torch.tensor(9.0)))

    def work() -> str:
        try:
            trained(experiment, spoil=spoil)
        except LearnersDiffer as error:
            return str(error)
        return ""

    first, _ = in_group(2, work)
    assert first.startswith("learners 0 and 1 do not hold the same parameters after update 1")


def test_the_others_notice_that_a_learner_is_gone(tiny: Tiny, in_group: InGroup) -> None:
    experiment = several(tiny, "lockstep")

    def leave(training: Any) -> None:
        if dist.get_rank() == 1:
            raise ZeroDivisionError("its own")

    def work() -> str:
        try:
            trained(experiment, spoil=leave)
        except ZeroDivisionError:
            dist.destroy_process_group()
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            return "gone"
        except RankLost as error:
            return str(error)
        return ""

    assert in_group(2, work)[0].startswith("another learner is gone, or did not answer in time (")


def test_each_learner_has_its_share() -> None:
    for count, size in ((3, 2), (65, 2), (7, 3), (4, 4)):
        shares = [share_of(count, rank, size) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_part_of_a_window_shows_its_own_pictures(tiny: Tiny) -> None:
    experiment = tiny(topology="ray", learners=2, actors=2, schedule="peek")
    whole = last_checkpoint(trained(experiment))
    parts = [own_part(whole, share_of_learner(experiment, rank, 2)) for rank in range(2)]
    for part, columns in zip(parts, (slice(0, 2), slice(2, 4)), strict=True):
        for entry, own in zip(whole["window"], part["window"], strict=True):
            assert torch.equal(entry["trajectory"]["reward"][:, columns], own["trajectory"]["reward"])
    assert [part["account"]["sampled"] for part in parts] == [whole["account"]["sampled"], 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "colocated", "learners": 2}, "learners = 2: has no effect with --topology colocated"),
        ({"topology": "ray", "learners": 0}, "learners = 0: a run needs at least one learner"),
        (
            {"topology": "ray", "learners": 3},
            "learners = 3: each learner has actors and rollouts of its own, and there",
        ),
    ],
)
def test_learners_that_cannot_be_are_refused(tiny: Tiny, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        tiny(**changes)


def test_an_algorithm_without_shares_has_one_learner() -> None:
    from dataclasses import replace

    with pytest.raises(ConfigurationError, match="learners = 2: this algorithm has no sums over shares of a batch"):
        replace(EXPERIMENTS["ipd"](), topology="ray", learners=2)
