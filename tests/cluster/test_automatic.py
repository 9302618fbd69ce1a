"""Which actors are chosen for which nodes; `metagrad plan` and `train` choose with it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from metagrad.actors.envs import AtariConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import EvaluationConfig
from metagrad.cluster.plan.automatic import choose_actors, choose_learners
from metagrad.cluster.plan.placement import Node
from metagrad.errors import ConfigurationError, counted
from metagrad.experiments import EXPERIMENTS

Tiny = Callable[..., Experiment]


def actors(experiment: Experiment, *cpus: int, is_alone: bool = False) -> tuple[int, int, int]:
    """Number, threads or processes, and environments of the actors chosen for nodes with so many CPUs."""
    nodes = [Node(f"10.0.0.{i}", count, 0) for i, count in enumerate(cpus)]
    chosen = choose_actors(experiment, nodes, is_alone)
    made = chosen.experiment
    (reason,) = chosen.reasons
    assert reason.startswith(f"{counted(made.actors, 'actor')}, {made.environments_of_an_actor} environments and ")
    assert (made.actor_processes if made.env.has_threads else made.actor_threads) == 1
    return made.actors, made.cpus_of_an_actor, made.environments_of_an_actor


@pytest.fixture
def snake(tiny: Tiny) -> Experiment:
    return tiny(topology="ray", environments=64, actors=2)


@pytest.fixture
def atari() -> Experiment:
    made = EXPERIMENTS["atari"]()
    assert isinstance(made, Experiment)
    assert isinstance(made.env, AtariConfig)
    return replace(made, environments=64)


def test_a_pool_has_one_process_per_node_with_the_cpus_that_the_learner_leaves(atari: Experiment) -> None:
    assert actors(atari, 16) == (1, 15, 64)
    assert actors(atari, 16, 16) == (2, 15, 32)
    assert actors(atari, *[16] * 5) == (4, 16, 16), "lockstep needs a number that divides the environments"
    assert actors(replace(atari, schedule="peek"), *[16] * 5) == (5, 15, 16), "peek does not"
    assert actors(atari, 16, 2) == (1, 15, 64), "a node with next to nothing would make the others wait"
    assert actors(replace(atari, environments=4), 16) == (1, 4, 4), "a game keeps one thread busy"


def test_others_have_processes_in_few_actors_that_keep_as_many_cpus_busy(snake: Experiment) -> None:
    assert actors(snake, 9) == (1, 8, 64)
    assert actors(snake, 6) == (1, 4, 64), "five would have unequal shares"
    assert actors(snake, 5, 4) == (2, 4, 32), "one on each node"
    assert actors(snake, 4, 6) == (2, 4, 32), "the learner's CPU, and one that divides nothing"
    peek = replace(snake, schedule="peek", meta=replace(snake.meta, n=1))
    assert actors(peek, 4, 6) == (2, 4, 32), "not nine of one process, for the sake of one CPU"
    assert actors(peek, 6, 4, 4) == (3, 4, 32)
    assert actors(peek, 16, 16, 16) == (5, 8, 16), "40 CPUs of 47"
    evaluated = replace(snake, evaluation=EvaluationConfig(every=5))
    assert actors(evaluated, 10) == (1, 8, 64), "the evaluator has a CPU too"


def test_on_a_machine_alone_lockstep_has_all_cores_and_peek_what_the_learner_leaves(
    atari: Experiment, snake: Experiment
) -> None:
    assert actors(atari, 2, is_alone=True) == (1, 2, 64)
    assert actors(snake, 2, is_alone=True) == (1, 2, 64)
    assert actors(replace(atari, schedule="peek"), 4, is_alone=True) == (1, 3, 64)
    assert actors(replace(atari, schedule="peek"), 1, is_alone=True) == (1, 1, 64)


def test_cpus_of_others_are_left_to_them(snake: Experiment) -> None:
    chosen = choose_actors(snake, [Node("a", 16, 0, used_cpus=11)], False).experiment
    assert (chosen.actors, chosen.actor_processes) == (1, 4)
    full = choose_actors(snake, [Node("a", 4, 0, used_cpus=4)], False).experiment
    assert (full.actors, full.cpus_of_an_actor) == (1, 1), "which the cluster refuses, or has it wait for"


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"topology": "colocated"}, "actors = 'auto'"), ({"actor_threads": 2}, "actor_threads = 2"),
     ({"actor_gpus": 0.1}, "actor_gpus = 0.1"),
     ({"actor_processes": 2}, "actor_processes = 2"),
     ({"schedule": "peek", "environments_per_actor": 4}, "environments_per_actor = 4")],
)  # fmt: skip
def test_what_leaves_nothing_to_choose_is_refused(tiny: Tiny, changes: dict[str, object], field: str) -> None:
    experiment = tiny(**{"topology": "ray", "environments": 12, "actors": 2, "meta": {"n": 1}} | changes)
    with pytest.raises(ConfigurationError, match=field):
        choose_actors(experiment, [Node("a", 4, 0)], True)


@pytest.mark.parametrize(
    ("changes", "gpus", "chosen", "why"),
    [
        ({}, (0, 0), 1, "1 learner (no GPUs to share a batch among)"),
        ({}, (1,), 1, "1 learner (one for each of 1 GPU)"),
        ({}, (1, 2), 3, "3 learners (one for each of 3 GPUs)"),
        ({"device": "cpu"}, (1, 2), 1, "1 learner (no GPUs to share a batch among)"),
        ({}, (8,), 4, "4 learners (of 8 GPUs, since each has some of the 4 actors and 4 rollouts of a batch)"),
        ({"schedule": "peek", "environments_per_actor": 6}, (8,), 2,
         "2 learners (of 8 GPUs, since each has some of the 4 actors and 2 rollouts of a batch)"),
    ],
)  # fmt: skip
def test_a_learner_is_chosen_for_each_gpu(
    tiny: Tiny, changes: dict[str, object], gpus: tuple[int, ...], chosen: int, why: str
) -> None:
    experiment = tiny(**{"topology": "ray", "environments": 12, "actors": 4, "meta": {"n": 1}} | changes)
    made = choose_learners(experiment, [Node(f"10.0.0.{i}", 8, count) for i, count in enumerate(gpus)])
    assert (made.experiment.learners, made.reasons) == (chosen, (why,))


def test_a_colocated_run_has_no_learners_to_choose(tiny: Tiny) -> None:
    with pytest.raises(ConfigurationError, match="learners = 'auto': chooses among the processes of a cluster"):
        choose_learners(tiny(), [Node("a", 4, 2)])
