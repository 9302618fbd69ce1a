from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from metagrad.actors.rollout import ActorSetup, ActorState, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run import learning
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import Assignment, actor_setups, learner_threads, prepared_training
from metagrad.learner.actors import Actors
from metagrad.learner.reports import Checkpoint, Lags, Message, Report, Reporter, Row, Standing, Summary

Tiny = Callable[..., Experiment]


class Stop:
    signal_name: str | None = None


@contextmanager
def open_actors(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
    yield ColocatedActors(setups, states, len(setups))


def learn(assignment: Assignment, open_actors: Any, report: Reporter) -> None:
    with prepared_training(assignment, open_actors, report, Stop()) as training:
        training.run(Stop())


def test_a_life_reports_rows_checkpoint_and_summary_and_another_goes_on(tiny: Tiny) -> None:
    experiment = tiny(updates=2)
    reports: list[Report] = []
    spec = probe(experiment.env)
    learn(Assignment(experiment=experiment, spec=spec, checkpoint=None), open_actors, reports.append)
    *_, checkpoint, summary = reports
    assert [type(report) for report in reports] == [Row, Lags, Standing, Summary, Checkpoint, Summary]
    assert isinstance(summary, Summary)
    assert isinstance(checkpoint, Checkpoint)
    assert (checkpoint.update, summary.content["updates"], summary.content["stopped_by"]) == (2, 2, None)
    tree = checkpoint.tree | {"device": "cuda"}
    again = Assignment(experiment=tiny(updates=4), spec=spec, checkpoint=tree, life=1)
    reports.clear()
    learn(again, open_actors, reports.append)
    first, last = reports[0], reports[-1]
    assert isinstance(last, Summary)
    assert last.content["updates"] == 4
    assert isinstance(first, Message)
    assert "on cpu now, cuda before" in first.text
    # Actors on GPUs beside a learner without one: CUDA's random streams have 16 bytes.
    cudas = [{k: x[:16] if k.endswith("generator") else x for k, x in state.items()} for state in tree["actors"]]
    reports.clear()
    learn(replace(again, checkpoint=checkpoint.tree | {"actors": cudas}), open_actors, reports.append)
    assert isinstance(reports[0], Message)
    assert reports[0].text.startswith("actors on cpu now, elsewhere before: random streams")


def test_the_summary_stands_when_a_life_ends_badly(tiny: Tiny) -> None:
    experiment = tiny()
    reports: list[Report] = []

    class Broken(ColocatedActors):
        def sample(self, snapshot: Any, lookahead_step: int) -> Any:
            raise RuntimeError("its own")

    @contextmanager
    def broken(setups: list[ActorSetup], states: Sequence[ActorState] | None) -> Iterator[Actors]:
        yield Broken(setups, states, len(setups))

    assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None)
    with pytest.raises(RuntimeError, match="its own"):
        learn(assignment, broken, reports.append)
    (summary,) = reports
    assert isinstance(summary, Summary)
    assert summary.content["updates"] == 0


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
    preparation = prepared_training(assignment, nothing, [].append, Stop(), threads)
    with pytest.raises(RuntimeError, match="threads are set"), preparation:
        pass
    assert asked == [used]
