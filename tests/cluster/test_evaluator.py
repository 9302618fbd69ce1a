from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import EvaluationConfig, FaultConfig
from metagrad.cluster.on_ray import evaluator
from metagrad.cluster.on_ray.evaluator import InlineEvaluator, RayEvaluator, score

Tiny = Callable[..., Experiment]


def test_scores_are_of_the_same_games_each_time(tiny: Tiny) -> None:
    experiment = tiny(evaluation=EvaluationConfig(every=1, episodes=5))
    spec = probe(experiment.env)
    theta = experiment.algorithm(spec).init(0, torch.device("cpu")).theta
    first, again = score(experiment, spec, theta), score(experiment, spec, theta)
    assert first == again
    assert set(first) == {"evaluation/return_mean", "evaluation/return_std", "evaluation/length_mean"}
    assert 0 < first["evaluation/length_mean"] <= 20
    one = replace(experiment, evaluation=EvaluationConfig(every=1, episodes=1))
    assert "evaluation/return_std" not in score(one, spec, theta), "one episode has no spread"
    inline = InlineEvaluator(experiment, spec, SimpleNamespace(signal_name=None), [].append)
    inline.submit(theta, 9)
    inline.withdraw(7)
    inline.submit(theta, 7)
    assert (inline.finished(0.0), inline.finished(0.0), inline.pending) == ([(7, first, None)], [], 0)


class Played:
    """Ray, replaced: what each evaluation comes to, by the number of its call; nothing: not yet there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.outcomes: dict[int, Any] = {}
        self.actors: list[dict[str, Any]] = []
        self.killed: list[int] = []
        self.calls: list[tuple[int, list[float]]] = []  # whose, and which parameters
        self.now = 0.0
        monkeypatch.setattr(ray, "remote", lambda _: SimpleNamespace(options=self._options))
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([x for x in refs if x in self.outcomes], []))
        monkeypatch.setattr(ray, "get", self._get)
        monkeypatch.setattr(ray, "kill", lambda actor: self.killed.append(actor.number))
        monkeypatch.setattr(evaluator, "time", SimpleNamespace(monotonic=lambda: self.now))

    def _options(self, **options: Any) -> Any:
        self.actors.append(options)
        number = len(self.actors) - 1

        def score(theta: Any) -> int:
            self.calls.append((number, theta.tolist()))
            return len(self.calls) - 1

        handle = SimpleNamespace(number=number, play=SimpleNamespace(remote=score))
        return SimpleNamespace(remote=lambda experiment, spec: handle)

    def _get(self, reference: int) -> Any:
        if isinstance(self.outcomes[reference], Exception):
            raise self.outcomes[reference]
        return self.outcomes[reference]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


def three(tiny: Tiny, said: list[str]) -> RayEvaluator:
    """Evaluations of updates 10, 20 and 30 are asked for; one may take 100 s."""
    spec: Any = None
    evaluator = RayEvaluator(tiny(faults=FaultConfig(rollout_seconds=10)), spec, {"num_cpus": 1}, said.append)
    for update in (10, 20, 30):
        evaluator.submit(torch.tensor([float(update)]), update)
    return evaluator


def test_evaluations_end_in_their_order_and_a_lost_one_is_said(tiny: Tiny, played: Played) -> None:
    said: list[str] = []
    evaluator = three(tiny, said)
    assert played.actors == [{"max_restarts": -1, "max_task_retries": 3, "num_cpus": 1}]
    played.outcomes = {0: ({"a": 1.0}, None), 1: ray.exceptions.NodeDiedError("node gone\nand a paragraph")}
    assert evaluator.finished(0.0) == [(10, {"a": 1.0}, None)]
    assert said == ["evaluation of update 20 was lost (node gone); the run continues without it"]
    assert evaluator.pending == 1
    played.outcomes[2] = ({"a": 3.0}, None)
    assert (evaluator.finished(0.0), evaluator.pending) == ([(30, {"a": 3.0}, None)], 0)


def test_an_evaluation_that_hangs_is_left_out_and_the_others_are_played_by_another(tiny: Tiny, played: Played) -> None:
    """Waiting for the last ones at the end of a run would otherwise have no end."""
    said: list[str] = []
    evaluator = three(tiny, said)
    played.outcomes[0] = ({"a": 1.0}, None)
    played.now = 99.0
    assert evaluator.finished(0.0) == [(10, {"a": 1.0}, None)]
    played.now = 198.0
    assert (evaluator.finished(0.0), played.killed) == ([], []), "the second one began when the first one ended"
    played.now = 200.0
    assert evaluator.finished(0.0) == []
    assert said == ["evaluation of update 20 hung for 100 s; the run continues without it"]
    assert (played.killed, len(played.actors), played.calls[3:]) == ([0], 2, [(1, [30.0])])
    played.outcomes[3] = ({"a": 3.0}, None)
    assert (evaluator.finished(0.0), evaluator.pending) == ([(30, {"a": 3.0}, None)], 0)


def test_an_evaluation_that_fails_ends_with_its_own_traceback(tiny: Tiny, played: Played) -> None:
    evaluator = three(tiny, [])
    played.outcomes[0] = RayTaskError("score", "its own traceback", KeyError("game"))
    with pytest.raises(KeyError, match="its own traceback"):
        evaluator.finished(0.0)


def test_what_another_life_asked_for_is_withdrawn(tiny: Tiny, played: Played) -> None:
    evaluator = three(tiny, [])
    evaluator.withdraw(20)
    played.outcomes = {0: ({"a": 1.0}, None), 1: ({"a": 2.0}, None), 2: ({"a": 3.0}, None)}
    assert evaluator.finished(0.0) == [(10, {"a": 1.0}, None), (20, {"a": 2.0}, None)]
