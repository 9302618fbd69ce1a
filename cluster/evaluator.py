"""Evaluation beside training: full-life episodes in raw rewards, in the same process or in a Ray actor of its own."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.envs.base import EnvironmentSpec
from actors.evaluate import evaluate
from cluster.run_config import BaseExperiment

Scores = dict[str, float]


class Evaluator(Protocol):
    """Who plays."""

    def submit(self, theta: Tensor, update: int) -> None:
        """Have these parameters scored."""
        ...

    def finished(self, seconds: float) -> list[tuple[int, Scores]]:
        """(update, scores) of evaluations that have ended, after waiting at most this long for one that has not."""
        ...

    @property
    def pending(self) -> int:
        """Evaluations that have not ended."""
        ...


def score(experiment: BaseExperiment, spec: EnvironmentSpec, theta: Tensor) -> Scores:
    """Scalars of one evaluation; always the same games, with random streams that no actor has."""
    config, network = experiment.evaluation, experiment.algorithm(spec).network
    cpu, seed, threads = torch.device("cpu"), experiment.seed + 1_000_003, experiment.actor_threads
    result = evaluate(network, theta.cpu(), experiment.env, config.episodes, seed, config.is_greedy, cpu, threads)
    scores = {
        "evaluation/return_mean": result.mean,
        "evaluation/length_mean": sum(result.lengths) / len(result.lengths),
    }
    return scores | ({"evaluation/return_std": result.std} if config.episodes > 1 else {})


class InlineEvaluator:
    """Plays at once, and training waits."""

    pending = 0

    def __init__(self, experiment: BaseExperiment, spec: EnvironmentSpec):
        self._experiment, self._spec = experiment, spec
        self._done: list[tuple[int, Scores]] = []

    def submit(self, theta: Tensor, update: int) -> None:
        self._done.append((update, score(self._experiment, self._spec, theta)))

    def finished(self, seconds: float) -> list[tuple[int, Scores]]:
        del seconds
        done, self._done = self._done, []
        return done


class _EvaluationActor:
    """The Ray side: one at a time, on a CPU of its own."""

    def __init__(self, experiment: BaseExperiment, spec: EnvironmentSpec):
        torch.set_num_threads(experiment.actor_threads)
        self._experiment, self._spec = experiment, spec

    def score(self, theta: Any) -> Scores:
        with torch.no_grad():
            return score(self._experiment, self._spec, torch.tensor(theta))


class RayEvaluator:
    """Plays on a CPU of its own, on any node, while training goes on; one that is lost plays again elsewhere."""

    def __init__(
        self, experiment: BaseExperiment, spec: EnvironmentSpec, options: dict[str, Any], report: Callable[[str], None]
    ):
        import ray

        remote = ray.remote(_EvaluationActor).options(max_restarts=-1, max_task_retries=3, **options)
        self._actor: Any = remote.remote(experiment, spec)
        self._pending: deque[tuple[int, Any]] = deque()
        self._report = report

    @property
    def pending(self) -> int:
        return len(self._pending)

    def submit(self, theta: Tensor, update: int) -> None:
        self._pending.append((update, self._actor.score.remote(theta.numpy())))

    def finished(self, seconds: float) -> list[tuple[int, Scores]]:
        import ray

        done: list[tuple[int, Scores]] = []
        while self._pending:
            update, reference = self._pending[0]
            if not ray.wait([reference], timeout=seconds)[0]:
                break
            self._pending.popleft()
            try:
                done.append((update, ray.get(reference)))
            except ray.exceptions.RayActorError as error:
                self._report(f"evaluation of update {update} was lost ({error}); the run goes on without it")
        return done
