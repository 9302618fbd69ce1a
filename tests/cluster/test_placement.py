"""Against hand calculations, and what must hold for any cluster."""

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from actors.rollout import Actor, ActorSetup, probe
from cluster.config import Experiment
from cluster.learning import actor_setups
from cluster.placement import Node, Rates, make_plan, place, rollout_bytes, saturating_actors, update_seconds
from cluster.run_config import EvaluationConfig
from metagrad.types import Trajectory, WeightSnapshot

Tiny = Callable[..., Experiment]
RATES = Rates(step=0.001, update=0.1)  # 12 steps of the tiny runs: 12 ms a batch


@pytest.mark.parametrize(
    ("changes", "actors", "seconds"),
    [
        ({"meta": {"n": 0}}, 1, 0.012 + 0.1),
        ({"meta": {"n": 3}}, 1, 4 * 0.012 + 0.1),
        ({"meta": {"n": 3}}, 4, 0.012 + 0.1),
        ({"meta": {"n": 3}, "schedule": "peek"}, 1, 0.1),
        ({"meta": {"n": 3}, "schedule": "peek", "environments": 80}, 1, 0.24),
        ({"meta": {"n": 3}, "schedule": "peek", "environments": 80}, 2, 0.12),
    ],
    ids=str,
)
def test_an_update_takes_its_parts_together_or_the_longer_one(
    tiny: Tiny, changes: dict[str, object], actors: int, seconds: float
) -> None:
    assert update_seconds(tiny(**changes), RATES, actors) == pytest.approx(seconds)


def test_a_learner_is_saturated_where_both_sides_take_equally_long(tiny: Tiny) -> None:
    rates = Rates(step=0.125, update=0.125)
    assert saturating_actors(tiny(meta={"n": 0}), rates) == 12
    assert saturating_actors(tiny(meta={"n": 3}), rates) == 48
    assert saturating_actors(tiny(meta={"n": 3}, schedule="peek"), rates) == 12


def test_a_batch_is_as_large_as_it_travels(tiny: Tiny) -> None:
    experiment = tiny()
    setup: ActorSetup = actor_setups(experiment, torch.device("cpu"), 0)[0]
    theta = experiment.algorithm(probe(experiment.env)).init(0, torch.device("cpu")).theta
    trajectory: Trajectory = Actor(setup).rollout(WeightSnapshot(0, theta, torch.zeros(1)), 0).trajectory
    size = sum(x.numel() * x.element_size() for x in trajectory if isinstance(x, torch.Tensor))
    assert rollout_bytes(probe(experiment.env), setup.batch_size, experiment.rollout_length) == size


def test_the_learner_goes_to_the_gpu_and_actors_spread(tiny: Tiny) -> None:
    nodes = [Node("a", 8, 0), Node("b", 2, 1), Node("c", 3, 0)]
    assert place(tiny(actors=4, topology="ray", device="auto"), nodes) == ([2, 1, 1], 1)
    assert place(tiny(actors=4, topology="ray", device="cpu"), nodes) == ([2, 1, 1], 0)
    assert place(tiny(actors=4, topology="ray", actor_threads=3, device="cpu"), nodes) == ([2, 0, 1], 0)
    evaluated = tiny(actors=2, topology="ray", device="auto", evaluation=EvaluationConfig(every=1))
    assert place(evaluated, nodes) == ([1, 0, 1], 1), "learner and evaluator fill the node with the GPU"
    assert place(tiny(topology="ray", learner_cpus=9), nodes)[1] is None


def test_bytes_cross_between_nodes_alone_and_weights_once_per_node(tiny: Tiny) -> None:
    experiment = tiny(meta={"n": 1}, topology="ray", actors=4, device="cpu")
    spec = probe(experiment.env)
    plan = make_plan(experiment, spec, 100, [Node("a", 3, 0), Node("b", 2, 0)], RATES)
    here, there = plan.shares
    assert (here.actors, there.actors, here.has_learner, plan.is_possible, plan.waiting_actors) == (2, 2, True, True, 0)
    seconds = 2 * 0.003 + 0.1
    assert plan.updates_per_second == pytest.approx(1 / seconds)
    assert here.rollout_bytes_per_second == here.weight_bytes_per_second == 0
    assert there.rollout_bytes_per_second == pytest.approx(2 * plan.rollout_bytes / 2 / seconds)
    assert there.weight_bytes_per_second == plan.bytes_out == pytest.approx(2 * 400 / seconds)
    small = make_plan(experiment, spec, 100, [Node("a", 3, 0)], RATES)
    assert (small.waiting_actors, small.is_possible) == (2, False), "in lockstep all of them are needed"


NODES = st.lists(
    st.builds(Node, st.text("abc", min_size=1), st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=5
)


@hypothesis.given(NODES, st.integers(1, 6), st.integers(1, 3), st.sampled_from(["lockstep", "peek"]))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None)
def test_nobody_gets_more_than_there_is(
    tiny: Tiny, nodes: list[Node], actors: int, threads: int, schedule: str
) -> None:
    experiment = tiny(
        topology="ray", actors=actors, environments=actors, actor_threads=threads, schedule=schedule, device="auto"
    )
    plan = make_plan(experiment, probe(experiment.env), 10, nodes, RATES)
    for share in plan.shares:
        assert share.actors * threads + share.has_learner <= max(share.node.cpus, 0)
    assert sum(share.actors for share in plan.shares) + plan.waiting_actors == actors
    assert sum(share.has_learner for share in plan.shares) <= 1
    more = make_plan(experiment, probe(experiment.env), 10, [*nodes, Node("more", 8, 0)], RATES)
    assert more.waiting_actors <= plan.waiting_actors
    assert more.updates_per_second >= plan.updates_per_second
