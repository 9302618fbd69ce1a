import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import ray

from actors.rollout import probe
from cluster import plan as page
from cluster.cli import main
from cluster.config import Experiment
from cluster.placement import Node, Rates, make_plan
from cluster.plan import describe, find_nodes, measure
from experiments import EXPERIMENTS

Tiny = Callable[..., Experiment]
Capture = pytest.CaptureFixture[str]


def test_a_machine_alone_has_room_for_what_a_run_asks_for(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", None)  # Ray is not started
    ((here,), where) = find_nodes(tiny(topology="ray", actors=40, environments=40))
    assert here.cpus == 41
    assert "this machine alone" in where


@pytest.mark.parametrize("name", ["snake-6x6", "ipd", "discounting-chain"])
def test_rates_are_measured_on_the_experiments_own_parts(name: str) -> None:
    experiment = replace(EXPERIMENTS[name](), environments=8, actors=1)
    rates, parameters = measure(experiment, probe(experiment.env))
    assert rates.step > 0
    assert rates.update > 0
    learnt = {"snake-6x6": 1, "ipd": 0, "discounting-chain": 1}[name]
    assert parameters == experiment.algorithm(probe(experiment.env)).network.layout.size + learnt


def test_a_page_says_who_goes_where_and_what_is_missing(tiny: Tiny) -> None:
    experiment = tiny(topology="ray", actors=4, device="cpu", meta={"n": 1})
    nodes = [Node("10.0.0.1", 3, 0), Node("10.0.0.22", 2, 1)]
    rates = Rates(step=0.001, update=0.1)
    found = make_plan(experiment, probe(experiment.env), 250_000, nodes, rates)
    text = describe(experiment, found, rates, "the cluster at auto")
    assert "10.0.0.1   3 CPUs            learner, 2 actors\n" in text
    assert "10.0.0.22  2 CPUs, 1 GPUs    2 actors  (" in text
    assert "learner           100.0 ms for an update, 2 batches each, lockstep" in text
    assert "one version of the weights 1 MB" in text
    assert "refused" not in text
    assert "actors wait" not in text
    alone = make_plan(experiment, probe(experiment.env), 250_000, nodes[:1], rates)
    assert "This run would be refused" in describe(experiment, alone, rates, "here")
    streamed = tiny(topology="ray", actors=4, device="cpu", schedule="peek")
    waiting = make_plan(streamed, probe(experiment.env), 250_000, nodes[:1], rates)
    assert "2 actors wait until a node joins; the run goes on without them." in describe(
        streamed, waiting, rates, "here"
    )


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(page, "measure", lambda *_: (Rates(0.001, 0.1), 1_000))
    assert main(["plan", "snake-6x6", "--actors", "3", "--environments", "6", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["shares"][0]["actors"] == 3
    assert found["weight_bytes"] == 4_000
    assert found["measured_seconds"] == {"step": 0.001, "update": 0.1}


def test_a_cluster_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["plan", "snake-6x6"]) == 2
    assert "no Ray cluster answers there" in capsys.readouterr().err
