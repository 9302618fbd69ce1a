import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ray

from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.rollout import Actor, probe
from metagrad.cli.main import main
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.plan import preview as page
from metagrad.cluster.plan.placement import Node, Rates, make_plan
from metagrad.cluster.plan.preview import describe, find_nodes, measure
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.config import BootstrapConfig

SPEC = probe(SnakeConfig(rows=3, columns=3, time_limit=20))
Tiny = Callable[..., Experiment]
Capture = pytest.CaptureFixture[str]


def test_a_machine_alone_has_room_for_what_a_run_asks_for(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", None)  # Ray is not started
    monkeypatch.setattr(page, "usable_cores", lambda: 2)
    ((here,), where) = find_nodes(tiny(topology="ray", actors=40, environments=40))
    assert here.cpus == 41
    assert re.search(r"this machine alone .* has 2 cores for 41 CPUs: processes share them", where)
    assert "share" not in find_nodes(tiny(topology="ray", actors=1))[1]


@pytest.mark.parametrize("name", ["snake-6x6", "ipd", "discounting-chain"])
def test_rates_are_measured_on_the_experiments_own_parts(name: str) -> None:
    experiment = replace(EXPERIMENTS[name](), environments=4, actors=1)
    rates, parameters = measure(experiment, probe(experiment.env))
    assert rates.rollout_seconds(4) > 0
    assert rates.environment >= 0
    assert rates.update > 0
    assert rates.batches == {"snake-6x6": 2, "ipd": 10, "discounting-chain": 2}[name]
    learnt = {"snake-6x6": 1, "ipd": 0, "discounting-chain": 1}[name]
    assert parameters == experiment.algorithm(probe(experiment.env)).network.layout.size + learnt


def test_a_page_says_who_goes_where_and_what_is_missing(tiny: Tiny) -> None:
    experiment = tiny(topology="ray", actors=4, device="cpu", meta={"n": 1})
    nodes = [Node("10.0.0.1", 3, 0), Node("10.0.0.22", 2, 1)]
    rates = Rates(rollout=0.002, environment=0.001, update=0.1, batches=2)
    found = make_plan(experiment, probe(experiment.env), 250_000, nodes, rates)
    text = describe(experiment, found, rates, "the cluster at auto")
    assert "10.0.0.1   3 CPUs            learner, 2 actors\n" in text
    assert "10.0.0.22  2 CPUs, 1 GPU     2 actors  (" in text
    assert "learner           100.0 ms for an update, 2 batches each, lockstep" in text
    assert "one version of the weights 1 MB" in text
    assert "refused" not in text
    assert "actors wait" not in text
    alone = make_plan(experiment, probe(experiment.env), 250_000, nodes[:1], rates)
    assert "This run would be refused" in describe(experiment, alone, rates, "here")
    streamed = tiny(topology="ray", actors=4, device="cpu", schedule="peek")
    waiting = make_plan(streamed, probe(experiment.env), 250_000, nodes[:1], rates)
    text = describe(streamed, waiting, rates, "here")
    assert "does not fit: actors: 2 of 4 wait, and the run continues without them; add nodes with 2 CPUs" in text
    assert "refused" not in text


def test_a_page_says_what_others_use_and_where_saturation_is_out_of_reach(tiny: Tiny) -> None:
    experiment = tiny(topology="ray")
    nodes = [Node("a", 16, 1, used_cpus=4, memory_bytes=64 * 10**9)]
    rates = Rates(rollout=0.06, environment=0.01, update=0.1, batches=2)
    text = describe(experiment, make_plan(experiment, SPEC, 250_000, nodes, rates), rates, "here")
    assert "a  16 CPUs (4 used), 1 GPU, 64 GB  learner, 2 actors\n" in text
    assert "saturation        with no number of actors: one environment each, they still take 140.0 ms" in text
    assert "The learner would have a GPU, which this machine lacks" in text


def test_without_ray_nothing_is_said_of_a_cluster(tiny: Tiny) -> None:
    experiment = tiny(topology="colocated")
    rates = Rates(rollout=0.002, environment=0.001, update=0.1, batches=2)
    (here, *others), where = find_nodes(experiment)
    assert not others
    text = describe(experiment, make_plan(experiment, SPEC, 250_000, [here], rates), rates, where)
    assert "in one process without Ray" in text
    assert "saturation" not in text
    assert "object store" not in text
    assert "refused" not in text


def test_nodes_of_a_cluster_have_what_is_free_of_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        {"NodeID": "2", "NodeManagerAddress": "b", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 9.0}},
        {"NodeID": "1", "NodeManagerAddress": "a", "Alive": True, "Resources": {"object_store_memory": 7.0}},
        {"NodeID": "3", "NodeManagerAddress": "c", "Alive": False, "Resources": {}},
    ]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("metagrad.cluster.on_ray.session.ray_session", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(ray, "nodes", lambda: listed)
    monkeypatch.setattr("ray._private.state.available_resources_per_node", lambda: {"2": {"CPU": 1.0}, "1": {}})
    found, where = find_nodes(tiny(topology="ray"))
    assert found == [Node("a", 0, 0, object_store_bytes=7), Node("b", 4, 1, used_cpus=3, memory_bytes=9)]
    assert where == "the cluster at auto"


@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ({"meta": {"n": 0}}, 1),
        ({"meta": {"n": 3}}, 4),
        ({"meta": {"n": 3, "strategy": "sequential"}}, 1),
        ({"meta": {"n": 3}, "schedule": "peek"}, 1),
        ({"meta": {"n": 2, "bootstrap": BootstrapConfig(updates=2)}}, 5),
    ],
    ids=str,
)
def test_batches_are_those_that_a_real_update_asks_for(tiny: Tiny, changes: dict[str, Any], batches: float) -> None:
    assert measure(tiny(topology="ray", **changes), SPEC)[0].batches == batches


def test_seconds_are_those_of_actor_and_learner(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only rollouts move, by 5 s and 2 s for each environment, and only updates, by 7 s."""
    clock = [0.0]
    experiment = tiny(topology="ray", environments=12, actors=3, meta={"n": 1})
    roll_out, update = Actor.rollout, ActorCritic.update

    def slow_rollout(self: Actor, *arguments: Any) -> Any:
        clock[0] += 5.0 + 2.0 * self.setup.batch_size
        return roll_out(self, *arguments)

    def slow_update(self: ActorCritic, state: Any, sample: Any) -> Any:
        clock[0] += 7.0
        return update(self, state, sample)

    monkeypatch.setattr(Actor, "rollout", slow_rollout)
    monkeypatch.setattr(ActorCritic, "update", slow_update)
    monkeypatch.setattr(page.time, "perf_counter", lambda: clock[0])
    assert measure(experiment, SPEC)[0] == Rates(rollout=5.0, environment=2.0, update=7.0, batches=2.0)


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(page, "measure", lambda *_: (Rates(0.002, 0.001, 0.1, 2.0), 1_000))
    assert main(["plan", "snake-6x6", "--actors", "3", "--environments", "6", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["shares"][0]["actors"] == 3
    assert found["weight_bytes"] == 4_000
    assert found["measured"] == {"rollout": 0.002, "environment": 0.001, "update": 0.1, "batches": 2.0}
    assert found["problems"] == []


def test_a_cluster_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["plan", "snake-6x6"]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err
