"""The class without Ray around it; tests/cluster/test_ray_actors.py has it in a process."""

import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.on_ray import learner_process
from metagrad.cluster.on_ray.learner_process import Learner, threads_of_node
from metagrad.cluster.run.colocated import ColocatedActors
from metagrad.cluster.run.learning import Assignment
from metagrad.learner.reports import Row, Summary

Tiny = Callable[..., Experiment]


def test_it_trains_in_one_thread_and_answers_in_another(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny(topology="ray", updates=1_000_000)
    given: list[Any] = []

    def actors(slots: Any, faults: Any, report: Any, make: Any, life: int, rollouts_per_batch: int) -> ColocatedActors:
        given.append((len(slots), [slot.handle for slot in slots], make, life, rollouts_per_batch))
        return ColocatedActors([slot.setup for slot in slots], None, rollouts_per_batch)

    monkeypatch.setattr(learner_process, "RayActors", actors)
    monkeypatch.setattr(learner_process, "threads_of_node", lambda: 1)
    learner = Learner()
    assignment = Assignment(experiment=experiment, spec=probe(experiment.env), checkpoint=None, life=3)
    thread = threading.Thread(target=learner.run, args=(assignment, ["a", "b"], Actor))
    thread.start()
    said = learner.fetch(60.0)
    assert Row in map(type, said)
    learner.stop("SIGTERM")
    while thread.is_alive() or (rest := learner.fetch(0.0)):
        said += learner.fetch(0.1) if thread.is_alive() else rest
    summary = said[-1]
    assert isinstance(summary, Summary)
    assert summary.content["stopped_by"] == "SIGTERM"
    assert 0 < summary.content["updates"] < 1_000_000
    assert given == [(2, ["a", "b"], Actor, 3, 2)]


@pytest.mark.parametrize(
    ("ray_cpus", "raylet", "job", "threads"),
    [
        (64.0, {}, {}, 8),  # OMP_NUM_THREADS is Ray's own
        (3.0, {}, {}, 3),
        (0.0, {}, {}, 1),
        (64.0, {"OMP_NUM_THREADS": "2"}, {}, 2),
        (64.0, {}, {"OMP_NUM_THREADS": "2"}, 2),
        (1.0, {"OMP_NUM_THREADS": "2"}, {}, 1),
    ],
)
def test_threads_are_those_of_the_node_and_not_of_the_process(
    ray_cpus: float, raylet: dict[str, str], job: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"NodeID": "other", "Resources": {"CPU": 999.0}}
    resources = {"CPU": ray_cpus} if ray_cpus else {}  # Ray leaves out what a node has none of
    monkeypatch.setattr(learner_process.ray, "nodes", lambda: [others, {"NodeID": "own", "Resources": resources}])
    context = SimpleNamespace(get_node_id=lambda: "own", runtime_env={"env_vars": job} if job else {})
    monkeypatch.setattr(learner_process.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(learner_process, "usable_cores", lambda: 8)
    monkeypatch.setattr(learner_process, "default_threads", lambda: 2)
    environment = {"PATH": "/bin"} | raylet
    with subprocess.Popen([shutil.which("sleep") or "sleep", "60"], env=environment) as parent:
        try:
            while not Path(f"/proc/{parent.pid}/environ").read_bytes():  # the kernel is still filling it in
                pass
            monkeypatch.setattr(learner_process.os, "getppid", lambda: parent.pid)
            assert threads_of_node() == threads
        finally:
            parent.kill()
