"""Against hand calculations, and what must hold for any cluster."""

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.rollout import Actor, ActorSetup, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import EvaluationConfig
from metagrad.cluster.plan.placement import (
    Node,
    Rates,
    learner_gpus,
    make_plan,
    place,
    problems,
    rollout_bytes,
    sampling_seconds,
    saturating_actors,
    update_seconds,
)
from metagrad.cluster.run.learning import actor_setups
from metagrad.frame_stacks import packed
from metagrad.types import PackedTrajectory, Trajectory, WeightSnapshot

Tiny = Callable[..., Experiment]
SPEC = probe(SnakeConfig(rows=3, columns=3, time_limit=20))
RATES = Rates(rollout=0.002, environment=0.001, update=0.1, batches=2)  # 4 environments of tiny runs: 6 ms a batch


@pytest.mark.parametrize(
    ("changes", "placed", "batches", "seconds"),
    [
        ({"actors": 1}, 1, 1, 0.006 + 0.1),
        ({"actors": 1}, 1, 4, 4 * 0.006 + 0.1),
        ({"actors": 4}, 4, 4, 4 * 0.003 + 0.1),
        ({"actors": 4}, 3, 4, 4 * 2 * 0.003 + 0.1),  # one of the three stands in for the fourth
        ({"actors": 2, "environments": 400, "actor_processes": 4}, 2, 1, 0.002 + 50 * 0.001 + 0.1),
        ({"actors": 1, "schedule": "peek"}, 1, 1, 0.1),
        ({"actors": 2, "environments": 400, "schedule": "peek"}, 2, 1, 0.202),
        ({"actors": 2, "environments": 400, "schedule": "peek"}, 1, 1, 0.404),
        ({"actors": 8, "environments": 400, "environments_per_actor": 100, "schedule": "peek"}, 8, 1, 0.1),
        ({"actors": 3, "environments": 400, "environments_per_actor": 100, "schedule": "peek"}, 3, 1, 0.136),
        ({"actors": 4, "topology": "colocated"}, 4, 2, 2 * 4 * 0.003 + 0.1),
        ({"actors": 4, "topology": "colocated", "schedule": "peek"}, 4, 1, 4 * 0.003 + 0.1),
    ],
    ids=str,
)
def test_an_update_takes_its_parts_together_or_the_longer_one(
    tiny: Tiny, changes: dict[str, object], placed: int, batches: float, seconds: float
) -> None:
    experiment = tiny(**{"topology": "ray"} | changes)
    assert update_seconds(experiment, RATES._replace(batches=batches), placed) == pytest.approx(seconds)


def test_a_learner_is_saturated_where_sampling_takes_no_longer(tiny: Tiny) -> None:
    lockstep = tiny(topology="ray", environments=12, actors=1)
    rates = Rates(rollout=0.25, environment=0.125, update=1.0, batches=1)  # k actors: 0.25 + 12 / k * 0.125
    assert saturating_actors(lockstep, rates) == 2
    assert saturating_actors(lockstep, rates._replace(batches=2)) == 6
    assert saturating_actors(lockstep, rates._replace(batches=3)) is None  # 12 actors take 3 (0.25 + 0.125)
    streamed = tiny(topology="ray", environments=12, environments_per_actor=3, actors=7, schedule="peek")
    assert saturating_actors(streamed, rates) == 3  # 4 rollouts of 0.625 s in a second


@hypothesis.given(
    st.integers(0, 64), st.integers(1, 64), st.integers(1, 64), st.integers(1, 4), st.sampled_from(["lockstep", "peek"])
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=30)
def test_more_actors_never_lower_what_a_run_sends(
    tiny: Tiny, rollout: int, environment: int, update: int, batches: int, schedule: str
) -> None:
    rates = Rates(rollout / 1024, environment / 1024, update / 1024, 1 if schedule == "peek" else batches)
    nodes = [Node("a", 5, 0), Node("b", 4, 0), Node("c", 4, 0)]
    before = None
    for actors in (1, 2, 3, 4, 6, 12):
        experiment = tiny(topology="ray", environments=12, actors=actors, schedule=schedule, device="cpu")
        plan = make_plan(experiment, SPEC, 100, nodes, rates)
        assert plan.waiting_actors == 0
        is_saturated = plan.saturating_actors is not None and actors >= plan.saturating_actors
        assert is_saturated == (sampling_seconds(experiment, rates, actors, actors) <= rates.update)
        if before is not None:
            assert plan.updates_per_second >= before.updates_per_second
            assert plan.bytes_out >= before.bytes_out
        before = plan


def test_a_batch_is_as_large_as_it_travels(tiny: Tiny) -> None:
    experiment = tiny()
    setup: ActorSetup = actor_setups(experiment, torch.device("cpu"), 0)[0]
    theta = experiment.algorithm(probe(experiment.env)).init(0, torch.device("cpu")).theta
    trajectory: Trajectory = Actor(setup).rollout(WeightSnapshot(0, theta, torch.zeros(1)), 0).trajectory
    size = sum(x.numel() * x.element_size() for x in trajectory if isinstance(x, torch.Tensor))
    assert rollout_bytes(probe(experiment.env), setup.batch_size, experiment.rollout_length) == size


def test_stacks_travel_as_frames() -> None:
    spec = probe(AtariConfig(frame_size=8))
    frames = torch.arange(2 * 9 * 64, dtype=torch.int32).to(torch.uint8).view(9, 2, 8, 8)
    stacks = frames.unfold(0, 4, 1).permute(0, 1, 4, 2, 3)
    rows, flags = torch.zeros(5, 2), torch.zeros(5, 2, dtype=torch.bool)
    sent = packed(Trajectory(stacks, rows.long(), rows, flags, flags, flags, rows, 0))
    assert isinstance(sent, PackedTrajectory)
    assert rollout_bytes(spec, 2, 5) == sum(x.numel() * x.element_size() for x in sent if isinstance(x, torch.Tensor))


def test_the_learner_goes_to_the_gpu_and_actors_spread(tiny: Tiny) -> None:
    nodes = [Node("a", 8, 0), Node("b", 2, 1), Node("c", 3, 0)]
    assert place(tiny(actors=4, topology="ray", device="auto"), nodes) == ([2, 1, 1], 1)
    assert place(tiny(actors=4, topology="ray", device="cpu"), nodes) == ([2, 1, 1], 0)
    assert place(tiny(actors=4, topology="ray", actor_threads=3, device="cpu"), nodes) == ([2, 0, 1], 0)
    in_processes = tiny(actors=4, environments=12, topology="ray", actor_processes=3, device="cpu")
    assert place(in_processes, nodes) == ([2, 0, 1], 0)
    evaluated = tiny(actors=2, topology="ray", device="auto", evaluation=EvaluationConfig(every=1))
    assert place(evaluated, nodes) == ([1, 0, 1], 1), "learner and evaluator fill the node with the GPU"
    assert place(tiny(topology="ray", learner_cpus=9), nodes)[1] is None
    assert place(tiny(topology="ray", device="cuda"), nodes[:1])[1] is None


def test_what_others_use_is_not_free(tiny: Tiny) -> None:
    nodes = [Node("a", 8, 0, used_cpus=7), Node("b", 3, 0)]
    assert place(tiny(actors=3, environments=3, topology="ray", device="cpu"), nodes) == ([1, 2], 1)


def test_colocated_all_are_one_process(tiny: Tiny) -> None:
    plan = make_plan(tiny(actors=4, topology="colocated"), SPEC, 100, [Node("here", 1, 0)], RATES)
    assert (plan.shares[0].actors, plan.shares[0].has_learner, plan.is_possible) == (4, True, True)
    assert (plan.bytes_in, plan.bytes_out, plan.object_store_bytes) == (0, 0, 0)


def test_the_object_store_holds_batches_and_two_versions(tiny: Tiny) -> None:
    nodes = [Node("a", 9, 0)]
    lockstep = make_plan(tiny(topology="ray"), SPEC, 100, nodes, RATES)
    streamed = make_plan(tiny(topology="ray", schedule="peek"), SPEC, 100, nodes, RATES)
    assert lockstep.object_store_bytes == lockstep.rollout_bytes + 800
    assert streamed.object_store_bytes == 3 * lockstep.rollout_bytes + 800


@pytest.mark.parametrize(
    ("changes", "nodes", "expected"),
    [
        ({"actors": 2}, [Node("a", 3, 0)], []),
        (
            {"actors": 4},
            [Node("a", 4, 0)],
            [
                "actors: 1 of 4 have no place, and lockstep needs all; use --actors 2, or add nodes with 1 CPU, "
                "1 on one node for each"
            ],
        ),
        (
            {"actors": 2, "actor_threads": 4},
            [Node("a", 3, 0), Node("b", 3, 0)],
            ["actors: 2 of 2 have no place, and lockstep needs all; add nodes with 8 CPUs, 4 on one node for each"],
        ),
        (
            {"actors": 4, "schedule": "peek"},
            [Node("a", 4, 0)],
            ["actors: 1 of 4 wait, and the run continues without them; add nodes with 1 CPU, 1 on one node for each"],
        ),
        (
            {"actors": 1, "schedule": "peek"},
            [Node("a", 1, 0)],
            ["actors: none has a place; lower --actor-threads, or add nodes with 1 CPU, 1 on one node for each"],
        ),
        (
            {"actors": 1, "actor_processes": 4, "schedule": "peek"},
            [Node("a", 4, 0)],
            ["actors: none has a place; lower --actor-processes, or add nodes with 4 CPUs, 4 on one node for each"],
        ),
        (
            {"actors": 1, "learner_cpus": 4},
            [Node("a", 3, 0)],
            ["learner: no node has 4 CPUs free; lower --learner-cpus, or add such a node"],
        ),
        (
            {"actors": 1, "learner_cpus": 4, "device": "auto"},
            [Node("a", 9, 0), Node("b", 3, 1)],
            ["learner: no node has 4 CPUs and a GPU free; lower --learner-cpus, use --device cpu, or add such a node"],
        ),
        (
            {"actors": 1},
            [Node("a", 9, 0, object_store_bytes=4_999)],
            [
                "object store: 5116 bytes are needed on the learner's node, which has 4999; start Ray there with a "
                "larger --object-store-memory"
            ],
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_with_a_remedy(
    tiny: Tiny, changes: dict[str, object], nodes: list[Node], expected: list[str]
) -> None:
    experiment = tiny(**{"topology": "ray", "device": "cpu"} | changes)
    plan = make_plan(experiment, SPEC, 251, nodes, RATES)
    assert problems(experiment, plan) == expected
    must_be_refused = any("wait" not in line and "object store" not in line for line in expected)
    assert plan.is_possible == (not must_be_refused)


@pytest.mark.parametrize(
    ("changes", "gpus", "learners_part", "placed", "is_possible"),
    [
        ({"actors": 4}, (1,), 1.0, [4], True),
        ({"actors": 4, "actor_gpus": 0.1}, (1,), 0.6, [4], True),
        ({"actors": 4, "actor_gpus": 0.1}, (1, 1), 1.0, [0, 4], True),
        ({"actors": 4, "actor_gpus": 0.3}, (1, 1), 0.7, [1, 3], True),
        ({"actors": 4, "actor_gpus": 0.5}, (1, 0, 2), 1.0, [0, 0, 4], True),
        ({"actors": 4, "actor_gpus": 0.25}, (1,), 0.0, None, False),
        ({"actors": 4, "actor_gpus": 0.25, "device": "cpu"}, (0, 1), 0.0, [0, 4], True),
        ({"actors": 4, "actor_gpus": 0.3, "device": "cpu"}, (1,), 0.0, None, False),
        ({"actors": 4, "actor_gpus": 0.1}, (0,), 0.0, None, False),
        ({"actors": 4, "actor_gpus": 0.2, "learners": 2}, (1, 1), 0.6, [2, 2], True),
    ],
    ids=str,
)
def test_actors_take_their_parts_of_gpus_beside_the_learners(
    tiny: Tiny,
    changes: dict[str, object],
    gpus: tuple[int, ...],
    learners_part: float,
    placed: list[int] | None,
    is_possible: bool,
) -> None:
    experiment = tiny(**{"topology": "ray", "device": "auto"} | changes)
    nodes = [Node(f"10.0.0.{i}", 16, count) for i, count in enumerate(gpus)]
    assert learner_gpus(experiment, sum(gpus)) == pytest.approx(learners_part)
    plan = make_plan(experiment, SPEC, 251, nodes, RATES)
    if placed is not None:
        assert [share.actors for share in plan.shares] == placed
    assert plan.is_possible == is_possible
    lines = problems(experiment, plan)
    assert is_possible == (not lines)
    assert is_possible or lines[-1].startswith("actor_gpus: 4 actors with 0.")


def test_bytes_cross_between_nodes_alone_and_weights_once_per_node(tiny: Tiny) -> None:
    experiment = tiny(topology="ray", actors=4, device="cpu")
    plan = make_plan(experiment, SPEC, 100, [Node("a", 3, 0), Node("b", 2, 0)], RATES)
    here, there = plan.shares
    assert (here.actors, there.actors, here.has_learner, plan.is_possible, plan.waiting_actors) == (2, 2, True, True, 0)
    seconds = 2 * 0.003 + 0.1
    assert plan.updates_per_second == pytest.approx(1 / seconds)
    assert here.rollout_bytes_per_second == here.weight_bytes_per_second == 0
    assert there.rollout_bytes_per_second == pytest.approx(2 * plan.rollout_bytes / 2 / seconds)
    assert there.weight_bytes_per_second == plan.bytes_out == pytest.approx(2 * 400 / seconds)
    small = make_plan(experiment, SPEC, 100, [Node("a", 3, 0)], RATES)
    assert (small.waiting_actors, small.is_possible) == (2, False), "in lockstep all of them are needed"


NODES = st.lists(
    st.builds(
        lambda name, free, gpus, used: Node(name, free + used, gpus, used),
        st.text("abc", min_size=1),
        st.integers(0, 9),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=5,
)


@hypothesis.given(NODES, st.integers(1, 6), st.integers(1, 3), st.sampled_from(["lockstep", "peek"]))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=30)
def test_nobody_gets_more_than_there_is(
    tiny: Tiny, nodes: list[Node], actors: int, threads: int, schedule: str
) -> None:
    experiment = tiny(
        topology="ray", actors=actors, environments=actors, actor_threads=threads, schedule=schedule, device="auto"
    )
    plan = make_plan(experiment, SPEC, 10, nodes, RATES)
    for share in plan.shares:
        assert share.actors * threads + share.has_learner <= share.node.cpus - share.node.used_cpus
    assert sum(share.actors for share in plan.shares) + plan.waiting_actors == actors
    assert sum(share.has_learner for share in plan.shares) <= 1
    more = make_plan(experiment, SPEC, 10, [*nodes, Node("more", 8, 0)], RATES)
    assert more.waiting_actors <= plan.waiting_actors
    assert more.updates_per_second >= plan.updates_per_second
