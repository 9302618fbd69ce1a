"""Real Ray actors: the bits they give, and what happens when they die, hang, fail or never come up.

One embedded Ray serves the whole file. Injected faults are classes of this file, sent to the actors by value.
"""

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from rich.console import Console

from metagrad.actors.envs.base import EnvironmentStep
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.rollout import Actor, ActorSetup, EnvironmentFault
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig, EvaluationConfig, FaultConfig
from metagrad.cluster.config.ruled import under_rule
from metagrad.cluster.launch.launch import run
from metagrad.cluster.launch.supervise import LearnerLost
from metagrad.cluster.on_ray.actors import ActorsLost
from metagrad.cluster.on_ray.worker_prints import LINES_OF_A_PROCESS
from metagrad.cluster.run.plot import logged_scalars
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.config import BootstrapConfig
from metagrad.learner.ruled import ReplayConfig
from metagrad.lpg import Lpg
from metagrad.networks import HaikuMlp
from metagrad.rule_files import save_rule
from metagrad.types import Rollout, WeightSnapshot

Tiny = Callable[..., Experiment]


RAY_CPUS = 4

pytestmark = pytest.mark.usefixtures("runs_use_embedded_ray")


def summary_of(run_dir: Path) -> dict[str, Any]:
    """summary.json, its account checked."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"]
    return summary


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_processes_of_an_embedded_ray_have_the_priority_of_the_command() -> None:
    """Ray's default would starve a run on a machine where anything else computes."""
    priority = ray.remote(num_cpus=0)(lambda: os.getpriority(os.PRIO_PROCESS, 0))
    assert ray.get(priority.remote()) == os.getpriority(os.PRIO_PROCESS, 0)


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
        {"meta": {"n": 1}, "reuse": 2},
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


class FaultyActor(Actor):
    """Once, at a rollout of its own, actor 0 of all does what `fault` says; `marker` remembers that it did."""

    marker: Path
    fault: Callable[[], None]
    at: int

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        self.calls = getattr(self, "calls", 0) + 1
        if self.setup.index == 0 and self.calls == self.at and not self.marker.exists():
            self.marker.touch()
            self.fault()
        return super().rollout(snapshot, lookahead_step)


def faulty(marker: Path, fault: Callable[[], None], at: int = 3) -> Callable[[ActorSetup], Actor]:
    def make(setup: ActorSetup) -> Actor:
        actor = FaultyActor(setup)
        actor.marker, actor.fault, actor.at = marker, fault, at
        return actor

    return make


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(10_000)


def actors_beside_this() -> set[int]:
    """Return the processes of rollout actors that have this process's raylet for a parent."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getppid() and (process / "cmdline").read_text().startswith("ray::RolloutActor"):
                found.add(int(process.name))
    return found


def kill_the_learner() -> None:
    """The one under the same raylet."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_learner = (folder / "cmdline").read_bytes().startswith(b"ray::Learner")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if is_learner and parent == os.getppid():
            os.kill(int(folder.name), signal.SIGKILL)


def test_a_stopped_run_continues_bitwise(tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any) -> None:
    """The uninterrupted run is colocated: it has the same bits."""
    experiment = tiny(topology="ray", lookahead="separate", meta={"n": 1}, updates=16)
    run(replace(experiment, topology="colocated"), tmp_path / "whole", False, console)
    driver = os.getpid()

    def stop() -> None:
        os.kill(driver, signal.SIGTERM)
        time.sleep(1.5)  # the driver looks for signals twice a second

    make = faulty(tmp_path / "marker", stop, at=5)
    stopped = run(experiment, tmp_path / "parts", False, console, make)
    assert stopped["stopped_by"] == "SIGTERM"
    assert 3 <= stopped["updates"] < 16, "how many begin before the driver looks is the machine's"
    run(experiment, tmp_path / "parts", True, console)
    assert learner_of(tmp_path / "parts") == learner_of(tmp_path / "whole")
    assert summary_of(tmp_path / "parts")["sampled"] == summary_of(tmp_path / "whole")["sampled"]


def test_a_killed_actor_is_replaced_and_the_run_completes(
    tiny: Tiny, console: Console, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tiny(topology="ray"), tmp_path / "run", False, console, faulty(tmp_path / "marker", die))
    summary = summary_of(tmp_path / "run")
    assert (summary["updates"], summary["actors_restarted"], summary["in_flight"]) == (6, 1, 0)
    assert summary["dropped_reasons"] == {"actor died": 2 * 3}
    assert summary["consumed"] == 2 * 6 * 12
    assert "): actor died (" in text(console)
    assert "A worker died or was killed" not in capfd.readouterr().out, "Ray's own words for it"
    resumed = run(tiny(topology="ray", updates=7), tmp_path / "run", True, console)
    assert (resumed["actors_restarted"], resumed["dropped"]) == (1, 6), "the account goes on"


@pytest.mark.slow
def test_an_agent_under_a_rule_has_the_same_bits_on_ray_and_colocated(
    console: Console, tmp_path: Path, learner_of: Any
) -> None:
    rule = Lpg(predictions=3, units=4, embedding=2)
    save_rule(tmp_path / "rule.npz", rule, rule.init(torch.Generator().manual_seed(0)), {})
    experiment = under_rule(EXPERIMENTS["catch-8x8"](), str(tmp_path / "rule.npz"))
    small = replace(experiment.network, torso=HaikuMlp(hidden=8))
    changes = {"network": small, "environments": 2, "actors": 2, "rollout_length": 4, "updates": 3}
    replay = ReplayConfig(capacity=6, batch=4)
    for topology in ("ray", "colocated"):
        run(replace(experiment, topology=topology, replay=replay, **changes), tmp_path / topology, False, console)
    assert learner_of(tmp_path / "ray") == learner_of(tmp_path / "colocated")


@pytest.mark.slow
def test_two_players_have_the_same_bits_on_ray_and_colocated(console: Console, tmp_path: Path, learner_of: Any) -> None:
    env = IteratedPrisonersDilemmaConfig(steps=5)
    experiment = replace(
        EXPERIMENTS["ipd"](), env=env, rollout_length=5, environments=4, inner_rollouts=2, updates=3, learner_threads=1
    )
    run(experiment, tmp_path / "ray", False, console)
    run(replace(experiment, topology="colocated"), tmp_path / "here", False, console)
    assert learner_of(tmp_path / "ray") == learner_of(tmp_path / "here")


@pytest.mark.slow
def test_an_actor_that_dies_at_rest_is_started_again(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    """Ray has another process in its place before anything is asked of it, and tells nobody."""

    def die_a_moment_later() -> None:
        threading.Timer(1.0, die).start()  # the rollout is over by then, and the other actor is at its own

    class Paced(FaultyActor):
        def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
            if self.setup.index == 1 and getattr(self, "calls", 0) == self.at - 1:
                before = actors_beside_this()
                while not self.marker.exists():
                    time.sleep(0.05)
                while not actors_beside_this() - before:
                    time.sleep(0.2)
            return super().rollout(snapshot, lookahead_step)

    def make(setup: ActorSetup) -> Actor:
        actor = Paced(setup)
        actor.marker, actor.fault, actor.at = tmp_path / "marker", die_a_moment_later, 3
        return actor

    run(tiny(topology="ray"), tmp_path / "run", False, console, make)
    summary = summary_of(tmp_path / "run")
    assert (summary["updates"], summary["actors_restarted"]) == (6, 1)
    assert ", has taken the place of one that died); started again" in text(console)


@pytest.mark.slow
def test_the_only_actor_comes_back_when_it_dies(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(topology="ray", actors=1), tmp_path / "run", False, console, faulty(tmp_path / "marker", die))
    summary = summary_of(tmp_path / "run")
    assert (summary["updates"], summary["actors_restarted"], summary["dropped"]) == (6, 1, 12)
    assert "): rolls out again after " in text(console)


def test_a_hung_actor_is_named_and_replaced(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    experiment = tiny(topology="ray", actors=1, faults=FaultConfig(rollout_seconds=5))
    run(experiment, tmp_path / "run", False, console, faulty(tmp_path / "marker", hang))
    summary = summary_of(tmp_path / "run")
    assert (summary["updates"], summary["actors_restarted"]) == (6, 1)
    assert summary["dropped_reasons"] == {"actor hung": 12}
    assert ": actor hung (nothing for 5 s); started again with new random streams" in text(console)


def test_a_killed_learner_goes_on_from_its_checkpoint_with_the_actors_kept(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any
) -> None:
    """Their games go back to the checkpoint too: the run ends with the bits of one that nothing happened to."""
    made = tmp_path / "made"

    def make(setup: ActorSetup) -> Actor:
        with made.open("a") as file:
            file.write(f"{setup.index}\n")
        return faulty(tmp_path / "marker", kill_the_learner, at=8)(setup)

    experiment = tiny(topology="ray", learner_restarts=1, checkpoint=CheckpointConfig(every=1, keep=3))
    run(experiment, tmp_path / "run", False, console, make)
    assert summary_of(tmp_path / "run")["updates"] == 6
    assert "started again from the newest checkpoint, actors kept" in text(console)
    assert sorted(made.read_text().split()) == ["0", "1"], "each actor was made once"
    run(replace(experiment, topology="colocated", learner_restarts=0), tmp_path / "undisturbed", False, console)
    disturbed, undisturbed = (learner_of(tmp_path / name) for name in ("run", "undisturbed"))
    assert {k: x for k, x in disturbed.items() if "account" not in k} == {
        k: x for k, x in undisturbed.items() if "account" not in k
    }


@pytest.mark.slow
def test_a_learner_that_may_not_be_started_again_ends_the_run(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    make = faulty(tmp_path / "marker", kill_the_learner)
    with pytest.raises(LearnerLost, match=r"^the learner's process was lost \(.*; continue with --resume"):
        run(tiny(topology="ray"), tmp_path / "run", False, console, make)


def test_an_actor_that_always_dies_ends_the_run(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    def make(setup: ActorSetup) -> Actor:
        os._exit(1)

    experiment = tiny(topology="ray", actors=1, faults=FaultConfig(restarts_without_progress=1))
    with pytest.raises(ActorsLost, match=r"actor 0 .*: lost 2 times in a row; last reason: actor died .*no other"):
        run(experiment, tmp_path, False, console, make)
    assert not (tmp_path / "config.json").exists(), "nothing came of it, and its folder is given back"


@pytest.mark.slow
def test_an_actor_that_always_dies_is_given_up_and_the_others_do_its_work(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    def make(setup: ActorSetup) -> Actor:
        if setup.index == 0:
            os._exit(1)
        return Actor(setup)

    experiment = tiny(topology="ray", updates=2, faults=FaultConfig(restarts_without_progress=0))
    run(experiment, tmp_path, False, console, make)
    assert summary_of(tmp_path)["consumed"] == 2 * 2 * 12
    assert "given up (lost 1 times in a row" in text(console)


def slow_actor_0(seconds: float) -> type[Actor]:
    class Slow(Actor):
        def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
            if self.setup.index == 0:
                time.sleep(seconds)
            return super().rollout(snapshot, lookahead_step)

    return Slow


def test_in_peek_a_slow_actor_holds_nobody_up(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    experiment = tiny(topology="ray", schedule="peek", updates=20, meta={"n": 2})
    run(experiment, tmp_path, False, console, slow_actor_0(10_000))
    summary = summary_of(tmp_path)
    assert (summary["updates"], summary["frames_lookahead"], summary["actors_restarted"]) == (20, 0, 0)
    assert summary["consumed"] == 20 * 12
    stuck = 2 * 6  # ordered from the slow actor, and not counted on
    assert summary["in_flight"] <= (2 + 2) * 12 + stuck, "two batches of the window, and two ahead"


@pytest.mark.slow
def test_peek_drops_and_counts_what_is_too_old(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    """Actor 0 brings a rollout every half second, dozens of updates late."""
    experiment = tiny(topology="ray", schedule="peek", max_lag=2, updates=150, meta={"n": 1})
    run(experiment, tmp_path, False, console, slow_actor_0(0.5))
    summary = summary_of(tmp_path)
    assert set(summary["dropped_reasons"]) == {"too old"}
    assert logged_scalars(tmp_path)["transport/lag_max_versions"][1].max() <= 2


@pytest.mark.slow
def test_peek_needs_no_more_than_one_of_its_actors(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    """Five actors on four CPUs, one of which is the learner's."""
    experiment = tiny(topology="ray", schedule="peek", actors=5, environments_per_actor=2, updates=10)
    run(experiment, tmp_path, False, console)
    assert summary_of(tmp_path)["consumed"] == 10 * 12


def test_evaluations_are_played_beside_training(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    config = EvaluationConfig(every=3, episodes=4)
    for topology in ("ray", "colocated"):
        run(tiny(topology=topology, evaluation=config), tmp_path / topology, False, console)
    updates, there = logged_scalars(tmp_path / "ray")["evaluation/return_mean"]
    _, here = logged_scalars(tmp_path / "colocated")["evaluation/return_mean"]
    assert updates.tolist() == [3, 6]
    assert there.tolist() == here.tolist(), "the same parameters in the same games"


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


@pytest.mark.parametrize("what", ["reward", pytest.param("observation", marks=pytest.mark.slow)])
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
    assert not (tmp_path / "config.json").exists(), "nothing came of it, and its folder is given back"


def test_an_error_in_the_learner_ends_the_run_with_its_own_traceback(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    class Liar(Actor):
        def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
            return super().rollout(snapshot._replace(version=99), lookahead_step)

    with pytest.raises(ValueError, match=r"(?s)in merge.*actor 0 acted under version 99 where version 0 was asked for"):
        run(tiny(topology="ray", actors=1), tmp_path, False, console, Liar)
    assert not (tmp_path / "config.json").exists(), "nothing came of it, and its folder is given back"


def test_an_actor_with_other_versions_is_refused_in_one_line(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    def make(setup: ActorSetup) -> Actor:
        raise ModuleNotFoundError("No module named 'envpool'")

    with pytest.raises(
        ConfigurationError, match=r"^node = '[\d.]+': cannot make SnakeConfig there \(No module"
    ) as refusal:
        run(tiny(topology="ray", actors=1), tmp_path / "run", False, console, make)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == [], "nothing has started"


def descendants(pid: int) -> list[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def sockets_of(pids: list[int]) -> dict[str, int]:
    """Inode -> process."""
    found = {}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                link = os.readlink(descriptor)
                if link.startswith("socket:["):
                    found[link[8:-1]] = pid
    return found


def open_to_the_network(sockets: dict[str, int]) -> list[tuple[IPv4Address | IPv6Address, int]]:
    """(address, process) of each TCP socket that listens and each UDP socket, as the kernel lists them."""
    found = []
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if rest[5] in sockets and (kind.startswith("udp") or state == "0A"):
                words = bytes.fromhex(local.partition(":")[0])
                address = ip_address(b"".join(words[k : k + 4][::-1] for k in range(0, len(words), 4)))
                found.append((getattr(address, "ipv4_mapped", None) or address, sockets[rest[5]]))
    return found


def of_process(pid: int, name: str) -> bytes:
    """A file of /proc; empty where the process has ended by now, as Ray's idle workers do."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_everything_of_an_embedded_ray_is_out_of_reach_of_the_network_and_of_other_users(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    """Head, raylet, agents, workers; their sockets, files and token."""
    run(tiny(topology="ray"), tmp_path, False, console)
    # A test of an actor's processes in this worker has left the server that starts them, which is not of this run.
    processes = [pid for pid in descendants(os.getpid()) if b"multiprocessing" not in of_process(pid, "cmdline")]
    assert {b"gcs_server\n", b"raylet\n"} < {of_process(pid, "comm") for pid in processes}
    sockets = sockets_of(processes)
    listening = open_to_the_network(sockets)
    assert len({process for _, process in listening}) >= 5
    assert [(address, pid) for address, pid in listening if not address.is_loopback] == []
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    private = token.parent
    assert (stat.S_IMODE(private.stat().st_mode), stat.S_IMODE(token.stat().st_mode)) == (0o700, 0o600)
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    named = [Path(row[7]) for row in rows if row[6] in sockets and len(row) > 7 and row[7].startswith("/")]
    assert {path.name for path in named if path.is_relative_to(private)} == {"plasma_store", "raylet"}
    assert [path for path in named if not path.is_relative_to(private)] == []
    for pid in processes[1:]:
        assert token.read_bytes() not in of_process(pid, "cmdline")


class PrintingActor(Actor):
    """A user's environment that prints."""

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        for _ in range(LINES_OF_A_PROCESS):
            print("a print of an environment", flush=True)
        return super().rollout(snapshot, lookahead_step)


@pytest.mark.slow
def test_what_environments_print_is_shown_and_bounded(
    tiny: Tiny, console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny(topology="ray", actors=1, environments=4), tmp_path, False, console, PrintingActor)
    shown = ""
    while "prints more than" not in shown:  # Ray brings the lines about every half second
        time.sleep(0.1)
        shown += capsys.readouterr().out
    time.sleep(1)
    shown += capsys.readouterr().out
    assert shown.count(") a print of an environment") == LINES_OF_A_PROCESS
    assert "(RolloutActor, process " in shown
