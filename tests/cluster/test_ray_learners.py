"""Several learners as Ray processes: their bits, and what happens when one of them dies, freezes or is asked to stop.

One embedded Ray serves the whole file.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig, FaultConfig
from metagrad.cluster.launch import supervise
from metagrad.cluster.launch.launch import run
from metagrad.cluster.launch.supervise import LearnerLost
from metagrad.cluster.run.plot import logged_scalars
from metagrad.learner.checkpoint import paths, restore_newest, update_of

Tiny = Callable[..., Experiment]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.usefixtures("runs_use_embedded_ray")]

RAY_CPUS = 8


def several(tiny: Tiny, **changes: Any) -> Experiment:
    """Three actors of two boards for two learners."""
    return tiny(**{"topology": "ray", "learners": 2, "actors": 3, "environments": 6, "device": "cpu"} | changes)


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


class Started:
    """Notes the learners that runs start, and does something to those of the newest life."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._handles: list[Any] = []
        start = supervise.start_learner

        def noted(*arguments: Any) -> Any:
            self._handles.append(start(*arguments))
            return self._handles[-1]

        monkeypatch.setattr(supervise, "start_learner", noted)

    def processes(self, count: int = 2) -> list[int]:
        return [ray.get(handle.place.remote()).pid for handle in self._handles[-count:]]

    def once_there_is(self, update: int, folder: Path, work: Callable[[list[int]], None]) -> threading.Thread:
        """Do something to their processes once a checkpoint of so many updates is there."""

        def wait() -> None:
            while not any(update_of(path) >= update for path in paths(folder / "checkpoints")):
                time.sleep(0.05)
            work(self.processes())

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


def account_holds(summary: dict[str, Any]) -> bool:
    return bool(summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"])


def test_two_learners_are_one_and_a_resumed_run_the_whole_one(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any
) -> None:
    for name, changes in (("one", {"learners": 1}), ("two", {}), ("half", {"updates": 3})):
        run(several(tiny, meta={"n": 2}, **changes), tmp_path / name, False, console)
    run(several(tiny, meta={"n": 2}), tmp_path / "half", True, console)
    one, two = (restore_newest(tmp_path / name / "checkpoints").tree for name in ("one", "two"))
    assert torch.allclose(one["learner"]["theta"], two["learner"]["theta"], rtol=0, atol=1e-5)
    assert torch.allclose(one["learner"]["eta"], two["learner"]["eta"], rtol=0, atol=1e-5)
    assert (one["episodes"], one["account"]) == (two["episodes"], two["account"])
    assert learner_of(tmp_path / "half") == learner_of(tmp_path / "two")
    scalars = logged_scalars(tmp_path / "two")
    assert {"time/collectives_seconds", "transport/collectives_bytes"} <= scalars.keys()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
def test_a_killed_learner_costs_a_life_and_the_run_goes_on(
    tiny: Tiny, console: Console, tmp_path: Path, started: Started, which: int, schedule: str
) -> None:
    experiment = several(
        tiny, updates=60, learner_restarts=2, schedule=schedule, checkpoint=CheckpointConfig(every=2, keep=3)
    )
    thread = started.once_there_is(4, tmp_path / "run", lambda found: os.kill(found[which], signal.SIGKILL))
    summary = run(experiment, tmp_path / "run", False, console)
    thread.join()
    assert summary["updates"] == 60
    assert account_holds(summary)
    assert text(console).count("learner: lost") == 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_frozen_learner_is_replaced_with_the_others(
    tiny: Tiny, console: Console, tmp_path: Path, started: Started, which: int, learner_of: Any
) -> None:
    """In the time that is said; the run ends with the bits of one that nothing happened to."""
    experiment = several(
        tiny,
        updates=200,
        learner_restarts=1,
        checkpoint=CheckpointConfig(every=2, keep=3),
        faults=FaultConfig(learner_seconds=10),
    )
    thread = started.once_there_is(4, tmp_path / "run", lambda found: os.kill(found[which], signal.SIGSTOP))
    summary = run(experiment, tmp_path / "run", False, console)
    thread.join()
    assert (summary["updates"], account_holds(summary)) == (200, True)
    assert "learner: lost (no answer for 1" in text(console)
    run(several(tiny, updates=200), tmp_path / "undisturbed", False, console)
    disturbed, undisturbed = (learner_of(tmp_path / name) for name in ("run", "undisturbed"))
    names = [name for name in undisturbed if "account" not in name]
    assert [disturbed[name] for name in names] == [undisturbed[name] for name in names]


def test_without_lives_left_the_run_ends_and_resumes(
    tiny: Tiny, console: Console, tmp_path: Path, started: Started
) -> None:
    experiment = several(tiny, updates=60, checkpoint=CheckpointConfig(every=2, keep=3))
    started.once_there_is(2, tmp_path / "run", lambda found: os.kill(found[1], signal.SIGKILL))
    with pytest.raises(LearnerLost, match="continue with --resume"):
        run(experiment, tmp_path / "run", False, console)
    assert run(experiment, tmp_path / "run", True, console)["updates"] == 60


def test_a_signal_reaches_all_and_one_checkpoint_is_written(
    tiny: Tiny, console: Console, tmp_path: Path, started: Started
) -> None:
    experiment = several(tiny, updates=100_000, checkpoint=CheckpointConfig(every=3, keep=2))
    started.once_there_is(3, tmp_path / "run", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    summary = run(experiment, tmp_path / "run", False, console)
    assert summary["stopped_by"] == "SIGTERM"
    assert account_holds(summary)
    assert update_of(paths(tmp_path / "run" / "checkpoints")[-1]) == summary["updates"]


def test_another_number_of_learners_continues(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(several(tiny, learners=3, updates=3, schedule="peek"), tmp_path / "run", False, console)
    summary = run(several(tiny, updates=6, schedule="peek"), tmp_path / "run", True, console)
    assert (summary["updates"], account_holds(summary)) == (6, True)
    assert "2 learners now, 3 before: sums over a batch are added up in another order" in text(console)


def test_an_error_of_one_learner_is_told_rather_than_that_the_others_lost_it(
    tiny: Tiny, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metagrad.actors.rollout import Actor, EnvironmentFault

    class Faulty(Actor):
        def rollout(self, snapshot: Any, lookahead_step: int) -> Any:
            if self.setup.index == 2 and snapshot.version > 3:
                raise EnvironmentFault("this one")
            return super().rollout(snapshot, lookahead_step)

    with pytest.raises(EnvironmentFault, match="this one"):
        run(several(tiny, updates=60), tmp_path / "run", False, console, Faulty)


def test_everything_listens_on_loopback_alone(tiny: Tiny, console: Console, tmp_path: Path, started: Started) -> None:
    addresses: set[str] = set()

    def look(found: list[int]) -> None:
        inodes = set()
        for pid in found:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:  # listens
                    addresses.add(fields[1].partition(":")[0])
        os.kill(os.getpid(), signal.SIGTERM)

    started.once_there_is(3, tmp_path / "run", look).join(0)
    run(several(tiny, updates=100_000, checkpoint=CheckpointConfig(every=3, keep=2)), tmp_path / "run", False, console)
    assert addresses
    assert addresses <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
