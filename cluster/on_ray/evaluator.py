"""Evaluates during training: full-life episodes in raw rewards, in the same process or in a Ray actor."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.evaluate import EvaluationStopped, evaluate
from metagrad.actors.record import record
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.learner.team import Stop

Scores = dict[str, float]
_SHOWN_STEPS = 500  # of an episode that is shown: of Atari 33 seconds, some 2 MiB
_BEYOND_ACTORS = 1_000_003  # added to the run's seed: random streams that no actor has
_ROLLOUTS_PER_EVALUATION = 10.0  # which plays whole episodes: its limit is so many times a rollout's


class Evaluation(NamedTuple):
    """Holds what an evaluation came to."""

    update: int
    scores: Scores
    gif: bytes | None = None  # of one episode, where it is shown


class Evaluator(Protocol):
    """Plays evaluations."""

    def submit(self, theta: Tensor, update: int) -> None:
        """Have these parameters scored."""
        ...

    def finished(self, seconds: float) -> list[Evaluation]:
        """Return evaluations that have ended, after waiting at most this long for one that has not ended."""
        ...

    def withdraw(self, after: int) -> None:
        """Forget evaluations of updates beyond this one: a learner that went back to it comes to them again."""
        ...

    @property
    def pending(self) -> int:
        """Return the number of evaluations that have not ended."""
        ...


CUT = "evaluation/cut_episodes"  # of `Scores`, where there are any


def score(
    experiment: BaseExperiment, spec: EnvironmentSpec, theta: Tensor, is_stopped: Callable[[], bool] = lambda: False
) -> Scores:
    """Return the scalars of one evaluation; always the same games, with random streams that no actor has.

    Raises:
        EvaluationStopped: `is_stopped` said so.
    """
    config, network = experiment.evaluation, experiment.algorithm(spec).network
    assert network is not None, "only policies are evaluated (BaseExperiment.has_policy)"
    cpu, seed, threads = torch.device("cpu"), experiment.seed + _BEYOND_ACTORS, experiment.actor_threads
    result = evaluate(
        network,
        theta.cpu(),
        experiment.env,
        config.episodes,
        seed,
        config.is_greedy,
        cpu,
        threads,
        max_steps=config.max_steps,
        is_stopped=is_stopped,
    )
    scores = {
        "evaluation/return_mean": result.mean,
        "evaluation/length_mean": sum(result.lengths) / len(result.lengths),
    }
    scores |= {CUT: float(result.cut)} if result.cut else {}
    return scores | ({"evaluation/return_std": result.std} if config.episodes > 1 else {})


def shown(experiment: BaseExperiment, spec: EnvironmentSpec, theta: Tensor) -> bytes | None:
    """Return one episode as a GIF, always the same game, where the experiment shows its evaluations."""
    config, seed = experiment.evaluation, experiment.seed + _BEYOND_ACTORS
    if not config.is_shown:
        return None
    network = experiment.algorithm(spec).network
    assert network is not None
    policy = (network, theta.cpu(), experiment.env)
    return record(*policy, seed, config.is_greedy, min(_SHOWN_STEPS, config.max_steps)).gif


class InlineEvaluator:
    """Plays at once, and training waits; one that is stopped is left out, with a message."""

    pending = 0

    def __init__(self, experiment: BaseExperiment, spec: EnvironmentSpec, stop: Stop, report: Callable[[str], None]):
        self._experiment, self._spec = experiment, spec
        self._stop, self._report = stop, report
        self._done: list[Evaluation] = []

    def submit(self, theta: Tensor, update: int) -> None:
        try:
            scores = score(self._experiment, self._spec, theta, lambda: self._stop.signal_name is not None)
        except EvaluationStopped:
            self._report(f"evaluation at update {update} stopped by {self._stop.signal_name}; --resume plays it again")
            return
        self._done.append(Evaluation(update, scores, shown(self._experiment, self._spec, theta)))

    def finished(self, seconds: float) -> list[Evaluation]:
        del seconds
        done, self._done = self._done, []
        return done

    def withdraw(self, after: int) -> None:
        self._done = [evaluation for evaluation in self._done if evaluation.update <= after]


class _EvaluationActor:
    """Runs evaluations on Ray: one at a time, on a CPU of its own."""

    def __init__(self, experiment: BaseExperiment, spec: EnvironmentSpec):
        torch.set_num_threads(experiment.actor_threads)
        self._experiment, self._spec = experiment, spec

    def play(self, theta: Any) -> tuple[Scores, bytes | None]:
        with torch.no_grad():
            played = (self._experiment, self._spec, torch.tensor(theta))
            return score(*played), shown(*played)


@dataclass(slots=True)
class _Order:
    """Holds an evaluation that was asked for."""

    update: int
    theta: np.ndarray
    reference: Any


class RayEvaluator:
    """Plays on a CPU of its own, on any node, while training continues; one that is lost plays again elsewhere."""

    def __init__(
        self, experiment: BaseExperiment, spec: EnvironmentSpec, options: dict[str, Any], report: Callable[[str], None]
    ):
        self._experiment, self._spec, self._options = experiment, spec, options
        self._limit = _ROLLOUTS_PER_EVALUATION * experiment.faults.rollout_seconds
        self._report = report
        self._actor = self._begin()
        self._pending: deque[_Order] = deque()
        self._since = 0.0  # when the first of them came to be played

    def _begin(self) -> Any:
        import ray

        remote = ray.remote(_EvaluationActor).options(max_restarts=-1, max_task_retries=3, **self._options)
        return remote.remote(self._experiment, self._spec)

    @property
    def pending(self) -> int:
        return len(self._pending)

    def submit(self, theta: Tensor, update: int) -> None:
        if not self._pending:
            self._since = time.monotonic()
        array: np.ndarray = theta.numpy()
        self._pending.append(_Order(update, array, self._actor.play.remote(array)))

    def withdraw(self, after: int) -> None:
        self._pending = deque(order for order in self._pending if order.update <= after)

    def finished(self, seconds: float) -> list[Evaluation]:
        """Do as `Evaluator` says.

        Raises:
            Exception: what an evaluation ended with, with its own traceback.
        """
        import ray

        from metagrad.cluster.on_ray.faults import LOST_ACTOR, first_line, original_traceback

        done: list[Evaluation] = []
        while self._pending:
            first = self._pending[0]
            if not ray.wait([first.reference], timeout=seconds)[0]:
                if time.monotonic() > self._since + self._limit:
                    self._replace_hung()
                break
            self._pending.popleft()
            self._since = time.monotonic()
            try:
                with original_traceback():
                    done.append(Evaluation(first.update, *ray.get(first.reference)))
            except LOST_ACTOR as error:
                line = first_line(error)
                self._report(f"evaluation of update {first.update} was lost ({line}); the run continues without it")
        return done

    def _replace_hung(self) -> None:
        """Leave the evaluation that hangs out; another process plays those behind it."""
        import ray

        ray.kill(self._actor)
        hung = self._pending.popleft()
        self._report(f"evaluation of update {hung.update} hung for {self._limit:g} s; the run continues without it")
        self._actor = self._begin()
        for waiting in self._pending:
            waiting.reference = self._actor.play.remote(waiting.theta)
        self._since = time.monotonic()
