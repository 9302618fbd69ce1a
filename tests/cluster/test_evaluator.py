from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch

from actors.rollout import probe
from cluster.config import Experiment
from cluster.evaluator import InlineEvaluator, RayEvaluator, score
from cluster.run_config import EvaluationConfig

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
    inline = InlineEvaluator(experiment, spec)
    inline.submit(theta, 7)
    assert (inline.finished(0.0), inline.finished(0.0), inline.pending) == ([(7, first)], [], 0)


def test_evaluations_end_in_their_order_and_a_lost_one_is_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is replaced: reference 0 is there, 1 is lost, 2 is not there yet."""
    said: list[str] = []

    class Handle:
        """A class, its options, an actor and a method in one."""

        calls = -1

        def __getattr__(self, _: str) -> Any:
            return self

        def __call__(self, **_: Any) -> Any:
            return self

        def remote(self, *_: Any) -> Any:
            self.calls += 1
            return self if self.calls == 0 else self.calls - 1

    def get(reference: int) -> dict[str, float]:
        if reference == 1:
            raise ray.exceptions.ActorDiedError
        return {"evaluation/return_mean": float(reference)}

    monkeypatch.setattr(ray, "remote", lambda _: Handle())
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([x for x in refs if x < 2], []))
    monkeypatch.setattr(ray, "get", get)
    experiment = tiny()
    evaluator = RayEvaluator(experiment, probe(experiment.env), {}, said.append)
    for update in (10, 20, 30):
        evaluator.submit(torch.zeros(2), update)
    assert evaluator.finished(0.0) == [(10, {"evaluation/return_mean": 0.0})]
    assert evaluator.pending == 1
    assert said[0].startswith("evaluation of update 20 was lost (")
