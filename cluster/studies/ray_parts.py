"""Compute parts of a study as Ray tasks of one CPU each on any node; a part whose worker is lost starts again."""

import os
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from metagrad.cluster.on_ray import session as ray_session
from metagrad.cluster.on_ray import watch as ray_watch
from metagrad.cluster.on_ray.faults import LOST_TASK, first_line
from metagrad.cluster.studies.study import PartFailed, Parts, Record, Result, Settings, Study, execute
from metagrad.errors import require

_RESTARTS = 3
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_FIND_ROOM = 3.0  # what Ray counts as free lags behind by about a second


def ray_parts(
    study: Study, folder: Path, missing: dict[str, Settings], say: Callable[[str], None], wait_for_resources: float
) -> Parts:
    """Compute the parts in parallel and yield them in the order in which they finish.

    Args:
        study: whose parts they are.
        folder: the study's.
        missing: settings of the parts, by their names.
        say: told what is waited for.
        wait_for_resources: seconds until one CPU at least has to be free.

    Raises:
        ConfigurationError: no cluster at RAY_ADDRESS, one without any CPU, or none that was free in time.
        PartFailed: a part raised, or its worker died too often; the others are cancelled.
        ClusterLost: Ray itself ended; what had finished is kept.
    """
    with ray_session.ray_session(ray_session.ANY_ROOM):
        yield from _wait_for_a_cpu(say, wait_for_resources)
        # Ray's own retries would repeat a part that runs out of memory for ever, and say nothing.
        task = ray.remote(_execute_on_worker).options(num_cpus=1, max_retries=0)

        def start(name: str) -> Any:
            return task.remote(study.name, study.runner(folder, name), missing[name])

        pending = {start(name): name for name in missing}
        losses: Counter[str] = Counter()
        try:
            while pending:
                failure: PartFailed | None = None
                ready = _ready(list(pending))
                if (lost := ray_watch.lost()) is not None:
                    raise lost
                for reference in ready:
                    name, outcome = pending.pop(reference), _outcome(reference)
                    losses[name] += isinstance(outcome, LOST_TASK)
                    if not isinstance(outcome, RayError):
                        yield name, outcome
                    elif isinstance(outcome, LOST_TASK) and losses[name] <= _RESTARTS:
                        say(f"part {name}: its worker died ({first_line(outcome)}); started again")
                        pending[start(name)] = name
                    else:
                        failure = failure or _failed(study, name, losses[name], outcome)
                if failure is not None:  # only now: what finished at the same time is kept
                    raise failure
                yield None
                _require_cpu()
        finally:
            for reference in pending if ray_watch.lost() is None else ():
                ray.cancel(reference, force=True)


def _execute_on_worker(study: str, run_part: Callable[[Settings], Result], settings: Settings) -> Record:
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that a part may start
    return execute(study, run_part, settings)


def _ready(references: list[Any]) -> list[Any]:
    """Wait a moment for the first, and return all that are there."""
    ray.wait(references, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
    ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
    return list(ready)


def _outcome(reference: Any) -> Record | RayError:
    """Return the record of a task that is over, or its error."""
    try:
        record: Record = ray.get(reference)
    except RayError as error:
        return error
    return record


def _wait_for_a_cpu(say: Callable[[str], None], limit: float) -> Generator[None]:
    """Yield until a CPU is free, and say so where that takes a while."""
    started, is_said = time.monotonic(), False
    _require_cpu()
    while ray.available_resources().get("CPU", 0) < 1:
        waited = time.monotonic() - started
        if waited > _SECONDS_TO_FIND_ROOM and not is_said:
            say(f"every CPU of the cluster is in use; waiting for one, at most {limit:g} s (--wait-for-resources)")
            is_said = True
        rule = f"in that time none of the cluster's CPUs was free: {ray_session.free_resources()}"
        remedy = "add nodes, wait for other runs to end, or wait longer"
        require(waited <= max(limit, _SECONDS_TO_FIND_ROOM), "wait_for_resources", limit, rule, remedy)
        if (lost := ray_watch.lost()) is not None:
            raise lost
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield None
        _require_cpu()


def _require_cpu() -> None:
    cpus = ray.cluster_resources().get("CPU", 0)
    where = os.environ.get("RAY_ADDRESS", "")
    require(cpus >= 1, "RAY_ADDRESS", where, "this cluster has no CPU, so no part would ever start", "add nodes to it")


def _failed(study: Study, name: str, losses: int, error: RayError) -> PartFailed:
    what = f"lost its worker {losses} times" if isinstance(error, LOST_TASK) else "failed"
    failure = PartFailed(f"part {name} of study {study.name} {what}; the finished ones are kept")
    failure.__cause__ = error
    return failure
