"""Real Ray actors: the bits they give, and what happens when they die, hang, fail or never come up.

One embedded Ray serves the whole file. Injected faults are classes of this file, sent to the actors by value.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from actors.envs.base import EnvironmentStep
from actors.rollout import Actor, ActorSetup, EnvironmentFault
from cluster import ray_actors, ray_session
from cluster.config import Experiment
from cluster.launch import actor_setups, run
from cluster.ray_actors import ActorsLost
from cluster.run_config import CheckpointConfig, FaultConfig
from experiments import EXPERIMENTS
from learner import algorithm
from learner.config import BootstrapConfig
from learner.step import meta_update
from metagrad.types import Rollout, WeightSnapshot

Tiny = Callable[..., Experiment]


@pytest.fixture(scope="module", autouse=True)
def embedded_ray() -> Iterator[None]:
    """One local Ray, that of a run itself."""
    with ray_session.ray_session(replace(EXPERIMENTS["demo"](), actors=2)):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield


@pytest.fixture(autouse=True)
def every_run_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "ray_session", lambda _experiment: nullcontext())


def summary_of(run_dir: Path) -> dict[str, Any]:
    """summary.json, its account checked."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"]
    return summary


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_seed_gives_the_same_bits_on_ray_and_colocated(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any
) -> None:
    for name, topology in (("a", "ray"), ("b", "ray"), ("here", "colocated")):
        run(tiny(meta={"n": 2}, topology=topology), tmp_path / name, False, console)
    assert learner_of(tmp_path / "a") == learner_of(tmp_path / "b")
    assert learner_of(tmp_path / "a") == learner_of(tmp_path / "here")
    assert summary_of(tmp_path / "a")["in_flight"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"lookahead": "fork", "meta": {"n": 2}},
        {"lookahead": "separate", "meta": {"n": 2}},
        {"meta": {"n": 3, "strategy": "sequential"}},
        {"meta": {"n": 0}},
        {"meta": {"n": 3, "estimator": "mix"}},
        {"lookahead": "fork", "meta": {"n": 2, "bootstrap": BootstrapConfig(updates=2)}},
    ],
    ids=str,
)
def test_every_scheme_gives_the_same_bits_on_ray_and_colocated(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, changes: dict[str, Any]
) -> None:
    for name, topology in (("a", "ray"), ("b", "ray"), ("here", "colocated")):
        run(tiny(topology=topology, **changes), tmp_path / name, False, console)
    assert learner_of(tmp_path / "a") == learner_of(tmp_path / "b") == learner_of(tmp_path / "here")


def test_a_stopped_run_continues_bitwise(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uninterrupted run is colocated: it has the same bits."""
    experiment = tiny(topology="ray", lookahead="separate", meta={"n": 1}, updates=8)
    run(replace(experiment, topology="colocated"), tmp_path / "whole", False, console)
    updates = [0]

    def stopping(*args: Any) -> Any:
        updates[0] += 1
        if updates[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return meta_update(*args)

    with monkeypatch.context() as patch:
        patch.setattr(algorithm, "meta_update", stopping)
        stopped = run(experiment, tmp_path / "parts", False, console)
    assert (stopped["stopped_by"], stopped["updates"]) == ("SIGTERM", 3)
    run(experiment, tmp_path / "parts", True, console)
    assert learner_of(tmp_path / "parts") == learner_of(tmp_path / "whole")
    assert summary_of(tmp_path / "parts")["sampled"] == summary_of(tmp_path / "whole")["sampled"]


class FaultyActor(Actor):
    """Once, at its third rollout, actor 0 of all does what `fault` says; `marker` remembers that it did."""

    marker: Path
    fault: str

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        self.calls = getattr(self, "calls", 0) + 1
        if self.setup.index == 0 and self.calls == 3 and not self.marker.exists():
            self.marker.touch()
            if self.fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10_000)
        return super().rollout(snapshot, lookahead_step)


def faulty(marker: Path, fault: str) -> Callable[[ActorSetup], Actor]:
    def make(setup: ActorSetup) -> Actor:
        actor = FaultyActor(setup)
        actor.marker, actor.fault = marker, fault
        return actor

    return make


def test_a_killed_actor_is_replaced_and_the_run_completes(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    make = faulty(tmp_path / "marker", "dies")
    run(tiny(topology="ray"), tmp_path / "run", False, console, make)
    summary = summary_of(tmp_path / "run")
    assert (summary["updates"], summary["actors_restarted"], summary["in_flight"]) == (6, 1, 0)
    assert summary["dropped_reasons"] == {"actor died": 2 * 3}
    assert summary["consumed"] == 2 * 6 * 12
    assert "actor 0: actor died" in text(console)
    resumed = run(tiny(topology="ray", updates=7), tmp_path / "run", True, console)
    assert (resumed["actors_restarted"], resumed["dropped"]) == (1, 6), "the account goes on"


def test_a_hung_actor_is_replaced(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock races from the moment that the actor hangs to the one at which that was noticed."""
    marker = tmp_path / "marker"

    def monotonic() -> float:
        is_hanging = marker.exists() and "actor hung" not in text(console)
        return time.monotonic() + (1e5 * (time.time() - marker.stat().st_mtime) if is_hanging else 0.0)

    monkeypatch.setattr(ray_actors, "time", SimpleNamespace(monotonic=monotonic))
    experiment = tiny(topology="ray", actors=1, faults=FaultConfig(rollout_seconds=5_000))
    run(experiment, tmp_path / "run", False, console, faulty(marker, "hangs"))
    summary = summary_of(tmp_path / "run")
    assert (summary["updates"], summary["actors_restarted"]) == (6, 1)
    assert summary["dropped_reasons"] == {"actor hung": 12}
    assert "actor 0: actor hung (no rollout for 5000 s); replaced" in text(console)


def test_an_actor_that_never_comes_up_is_left_out_of_a_checkpoint(tiny: Tiny) -> None:
    def make(setup: ActorSetup) -> Actor:
        time.sleep(10_000)
        return Actor(setup)

    said: list[str] = []
    (setup,) = actor_setups(tiny(topology="ray", actors=1), torch.device("cpu"), 0)
    actors = ray_actors.RayActors([setup], None, FaultConfig(rollout_seconds=0.5), said.append, make)
    try:
        assert actors.states() == [{}]
    finally:
        actors.close()
    assert "actor 0: lost while its state was read" in said[0]


def test_an_actor_that_always_dies_ends_the_run(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    def make(setup: ActorSetup) -> Actor:
        os._exit(1)

    experiment = tiny(topology="ray", actors=1, faults=FaultConfig(restarts_without_progress=1))
    with pytest.raises(ActorsLost, match=r"^actor 0 was lost 2 times in a row .* last reason: actor died"):
        run(experiment, tmp_path, False, console, make)
    summary = summary_of(tmp_path)
    assert (summary["updates"], summary["actors_restarted"], summary["dropped"]) == (0, 1, 24)


class BrokenEnvironment:
    """An environment whose second board gives no number at the fifth step."""

    def __init__(self, inner: Any, what: str):
        self.inner, self.spec, self.what, self.steps = inner, inner.spec, what, 0

    def step(self, action: torch.Tensor) -> EnvironmentStep:
        step: EnvironmentStep = self.inner.step(action)
        self.steps += 1
        if self.steps == 5:
            value = getattr(step, self.what).to(torch.float32, copy=True)
            value[1] = torch.nan
            step = step._replace(**{self.what: value})
        return step


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_nan_of_an_environment_ends_the_run_and_is_located(
    tiny: Tiny, console: Console, tmp_path: Path, what: str
) -> None:
    def make(setup: ActorSetup) -> Actor:
        actor = Actor(setup)
        actor._real.environment = BrokenEnvironment(actor._real.environment, what)  # type: ignore[assignment]
        return actor

    experiment = tiny(topology="ray", actors=1, meta={"n": 0}, checkpoint=CheckpointConfig(every=1, keep=1))
    with pytest.raises(EnvironmentFault) as fault:
        run(experiment, tmp_path, False, console, make)
    assert f"environment 1 of 4 returned a non-finite {what} at step 4" in str(fault.value)
    assert "Snake" in str(fault.value)
    assert "in collect" in str(fault.value), "the actor's own traceback"
    summary = summary_of(tmp_path)
    assert (summary["updates"], summary["consumed"], summary["in_flight"]) == (1, 12, 12)


def test_an_actor_that_cannot_be_made_ends_the_run_with_its_own_traceback(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    def make_without_game(setup: ActorSetup) -> Actor:
        raise FileNotFoundError("no ROM of this game")

    with pytest.raises(FileNotFoundError, match=r"(?s)in make_without_game.*no ROM of this game"):
        run(tiny(topology="ray", actors=1), tmp_path, False, console, make_without_game)
    assert summary_of(tmp_path)["in_flight"] == 12


def test_an_error_in_the_learner_ends_the_run_and_its_actors(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles: list[Any] = []

    def failing(agent: Any, state: Any, sample: Any) -> Any:
        sample(state.snapshot(), 0)
        raise RuntimeError("the learner's own")

    start = ray_actors.RayActors._start

    def recorded(self: ray_actors.RayActors, *args: Any) -> None:
        start(self, *args)
        handles.append(self._handles[0])

    monkeypatch.setattr(algorithm, "meta_update", failing)
    monkeypatch.setattr(ray_actors.RayActors, "_start", recorded)
    with pytest.raises(RuntimeError, match="the learner's own"):
        run(tiny(topology="ray", actors=1), tmp_path, False, console)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(handles[0].state.remote(), timeout=60)
    assert summary_of(tmp_path)["in_flight"] == 12
