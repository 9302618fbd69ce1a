from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from metagrad.actors.rollout import ActorSetup, ActorState, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run import learning
from metagrad.cluster.run.learning import Assignment, actor_setups, learn, learner_threads
from metagrad.cluster.run.reports import QueuedReports
from metagrad.cluster.run.transport import Actors, ColocatedActors

Tiny = Callable[..., Experiment]


class Stop:
    signal_name: str | None = None


@contextmanager
def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
    yield ColocatedActors(setups, states, len(setups))


def kinds(reports: QueuedReports) -> tuple[list[str], dict[str, Any]]:
    fetched = reports.fetch(0.0)
    return [kind for kind, _ in fetched], {kind: values for kind, values in fetched}


def test_a_life_reports_rows_checkpoint_and_summary_and_another_goes_on(tiny: Tiny) -> None:
    experiment = tiny(updates=2)
    reports, spec = QueuedReports(), probe(experiment.env)
    summary = learn(Assignment(experiment=experiment, spec=spec, checkpoint=None), open_actors, reports, Stop())
    said, values = kinds(reports)
    assert said == ["scalars", "lags", "progress", "summary", "checkpoint", "summary"]
    assert values["summary"] == (summary,)
    update, tree = values["checkpoint"]
    assert (update, summary["updates"], summary["stopped_by"]) == (2, 2, None)
    again = Assignment(experiment=tiny(updates=4), spec=spec, checkpoint=tree | {"device": "cuda"}, life=1)
    assert learn(again, open_actors, reports, Stop())["updates"] == 4
    said, values = kinds(reports)
    assert said[0] == "say"
    assert "on cpu now, cuda before" in values["say"][0]


def test_the_summary_stands_when_a_life_ends_badly(tiny: Tiny) -> None:
    experiment, reports = tiny(), QueuedReports()

    class Broken(ColocatedActors):
        def sample(self, snapshot: Any, lookahead_step: int) -> Any:
            raise RuntimeError("its own")

    @contextmanager
    def broken(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
        yield Broken(setups, states, len(setups))

    assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None)
    with pytest.raises(RuntimeError, match="its own"):
        learn(assignment, broken, reports, Stop())
    said, values = kinds(reports)
    assert said == ["summary"]
    assert values["summary"][0]["updates"] == 0


def test_actors_of_another_life_have_streams_of_their_own(tiny: Tiny) -> None:
    experiment, cpu = tiny(), torch.device("cpu")
    seeds = [actor_setups(experiment, cpu, 5, life)[0].seed for life in (0, 1)]
    assert seeds[0] == (experiment.seed, 5, 0), "as without lives"
    assert seeds[1] != seeds[0]


def test_threads_of_the_learner(tiny: Tiny) -> None:
    assert learner_threads(tiny(learner_threads=7), 3) == 7
    assert learner_threads(tiny(learner_threads=None), 3) == 3
    assert learner_threads(tiny(learner_threads=None, topology="ray"), 3) == 3
    peek = {"learner_threads": None, "schedule": "peek", "topology": "ray"}
    looks_ahead = tiny(learner_cpus=2, **peek)
    assert learner_threads(looks_ahead, 3) == 3
    alone = replace(looks_ahead, meta=replace(looks_ahead.meta, n=0))
    assert learner_threads(alone, 3) == 2
    assert learner_threads(alone, 1) == 1


@pytest.mark.parametrize(("threads", "used"), [(None, 3), (2, 2)])
def test_a_learner_has_the_threads_that_are_there(
    threads: int | None, used: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(learning, "default_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    experiment = tiny(learner_threads=None, updates=2)

    @contextmanager
    def nothing(_setups: Any, _states: Any) -> Iterator[Any]:
        raise RuntimeError("threads are set")
        yield

    assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None)
    with pytest.raises(RuntimeError, match="threads are set"):
        learn(assignment, nothing, QueuedReports(), Stop(), threads)
    assert asked == [used]
