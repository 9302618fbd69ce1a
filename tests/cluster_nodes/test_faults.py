"""Tries what a cluster does to a run: each completes its updates, and says how long it was held up."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
from ray_nodes import RayNodes, wait_until
from runs import Run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

PROCESS_GOAL, NODE_GOAL = 5.0, 30.0  # seconds, on a machine that has its cores to itself
LENIENCE = 4.0  # of the tests towards one that has not
SCHEDULES = {"lockstep": (), "peek": ("--schedule", "peek")}


def told(run: Run, what: str, killed_at: float, goal: float) -> None:
    """Print how long the run was held up, and the actors were away; fail where that was far too long."""
    pause = run.pause_after(killed_at)
    away = ", ".join(f"{x:.1f}" for x in run.seconds_away())
    print(f"\nRECOVERY {what}: longest pause {pause:.1f} s (goal {goal:g} s); actors away for {away or 'no time'} s")
    assert pause < LENIENCE * goal, run.job.output


def victim(nodes: RayNodes) -> str:
    """A worker node with actors and without the learner."""
    learner = set(nodes.workers("Learner").values())
    actors = Counter(nodes.workers("RolloutActor").values())
    return max(actors.keys() - learner - {"head"}, key=lambda name: actors[name])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigkill_of_an_actor(nodes: RayNodes, start: Callable[..., Run], schedule: str) -> None:
    run = start("--updates", "200", *SCHEDULES[schedule])
    run.wait_for_updates(20)
    killed_at = time.time()
    os.kill(min(nodes.workers("RolloutActor")), signal.SIGKILL)
    summary = run.finish()
    told(run, f"SIGKILL of an actor, {schedule}", killed_at, PROCESS_GOAL)
    assert summary["actors_restarted"] >= 1
    assert len(run.seconds_away()) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigkill_of_a_raylet(nodes: RayNodes, start: Callable[..., Run], schedule: str) -> None:
    """There is room elsewhere."""
    run = start("--updates", "250", *SCHEDULES[schedule])
    run.wait_for_updates(20)
    lost = victim(nodes)
    killed_at = time.time()
    nodes.kill_raylet(lost)
    summary = run.finish()
    told(run, f"SIGKILL of a raylet, {schedule}", killed_at, NODE_GOAL)
    assert summary["actors_restarted"] >= 1
    assert lost not in nodes.alive()


def test_a_node_without_power_that_returns(nodes: RayNodes, start: Callable[..., Run]) -> None:
    """No connection is closed: the cluster notices only that nothing answers. And there is no room elsewhere."""
    run = start("--updates", "400", "--actors", "8")
    run.wait_for_updates(20)
    lost = victim(nodes)
    killed_at = time.time()
    nodes.network.hosts[lost].power_off()
    time.sleep(20)
    nodes.start(lost, 4)
    run.finish()
    told(run, "a node without power that returns", killed_at, NODE_GOAL)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_partition_of_20_seconds(nodes: RayNodes, start: Callable[..., Run], schedule: str) -> None:
    run = start("--updates", "400", *SCHEDULES[schedule])
    run.wait_for_updates(20)
    cut = nodes.network.hosts[victim(nodes)]
    cut_at = time.time()
    cut.disconnect()
    time.sleep(20)
    cut.connect()
    run.finish()
    told(run, f"partition of 20 s, {schedule}", cut_at, NODE_GOAL)


def test_a_node_that_is_added_is_used(nodes: RayNodes, start: Callable[..., Run]) -> None:
    run = start("--updates", "400", "--schedule", "peek", "--actors", "11", "--environments-per-actor", "2")
    run.wait_for_updates(20)
    before = len(nodes.workers("RolloutActor"))
    nodes.start("worker-3", 4)
    up = wait_until(lambda: "worker-3" in nodes.alive(), 240, lambda: "worker-3")
    used = wait_until(lambda: "worker-3" in nodes.workers("RolloutActor").values(), 120, lambda: run.job.output)
    run.finish()
    print(f"\nRECOVERY a node added: {up:.1f} s until it was there, {used:.1f} s until it had an actor (goal 30 s)")
    assert used < LENIENCE * NODE_GOAL
    assert before < 11


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sigkill_of_the_learner(nodes: RayNodes, start: Callable[..., Run], schedule: str) -> None:
    run = start("--updates", "200", "--learner-restarts", "2", *SCHEDULES[schedule])
    run.wait_for_updates(20)
    actors = set(nodes.workers("RolloutActor"))
    killed_at = time.time()
    (learner,) = nodes.workers("Learner")
    os.kill(learner, signal.SIGKILL)
    run.wait_for_updates(run.updates + 20)
    kept = set(nodes.workers("RolloutActor"))
    run.finish()
    told(run, f"SIGKILL of the learner, {schedule}", killed_at, PROCESS_GOAL)
    assert kept == actors
    assert run.job.output.count("started again from the newest checkpoint") == 1


def freeze(nodes: RayNodes, learner: int) -> None:
    """Stop a process where it stands: its node and its connections stay."""
    os.kill(learner, signal.SIGSTOP)


def lose_its_node(nodes: RayNodes, learner: int) -> None:
    nodes.kill_raylet(nodes.workers("Learner")[learner])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fault", [freeze, lose_its_node])
def test_one_of_two_learners(
    nodes: RayNodes, start: Callable[..., Run], fault: Callable[[RayNodes, int], None], schedule: str
) -> None:
    """Each has a node of its own: with three CPUs and an actor's there is room for one on each worker."""
    words = ("--updates", "120", "--learners", "2", "--learner-cpus", "3", "--actors", "2")
    run = start(*words, "--learner-restarts", "2", "--faults.learner-seconds", "12", *SCHEDULES[schedule])
    run.wait_for_updates(20)
    learners = nodes.workers("Learner")
    assert sorted(learners.values()) == ["worker-1", "worker-2"]
    struck = max(learners)
    killed_at = time.time()
    fault(nodes, struck)
    if fault is lose_its_node:
        nodes.network.hosts[learners[struck]].power_off()
        nodes.start(learners[struck], 4)
    run.wait_for_updates(run.updates + 20)
    assert not learners.keys() & nodes.workers("Learner").keys(), "all are replaced"
    run.finish()
    told(run, f"{fault.__name__} of one of two learners, {schedule}", killed_at, NODE_GOAL)
    assert run.job.output.count("started again from the newest checkpoint") == 1
