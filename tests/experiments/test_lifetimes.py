"""Experiment `lifetimes`: what it refuses, what it counts and logs, that it resumes, and the rule that comes of it."""

import os
import signal
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import metagrad.experiments.loading
from metagrad.actors.population import Population
from metagrad.actors.rollout import ActorSetup, probe
from metagrad.cli.main import main
from metagrad.cluster.config.lifetimes import LifetimesExperiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.checkpoint_parts import misfit
from metagrad.cluster.run.plot import logged_scalars
from metagrad.disco import DiscoRule
from metagrad.errors import ConfigurationError
from metagrad.experiments.lifetimes.lifetimes import (
    lifetimes,
    lifetimes_correction,
    lifetimes_disco,
    lifetimes_families,
)
from metagrad.learner.checkpoint import restore_newest
from metagrad.lpg import Lpg
from metagrad.optimizers import Adam
from metagrad.rule_files import load_rule
from metagrad.trees import map_tensors
from metagrad.types import Rollout, WeightSnapshot

RULE = Lpg(units=4, predictions=3, embedding=3)


def tiny(**changes: Any) -> LifetimesExperiment:
    sizes = {"rule": RULE, "agents": 2, "actors": 1, "environments": 4, "rollout_length": 5, "inner_updates": 2}
    there = {"topology": "colocated", "learner_threads": 1, "log_every": 2, "updates": 3, "lifetime": 4}
    return replace(lifetimes(), **sizes | there | changes)


def trained(experiment: LifetimesExperiment, folder: Path, is_resumed: bool = False) -> dict[str, Any]:
    return run(experiment, folder, is_resumed, Console(file=StringIO()))


def checkpoint(folder: Path) -> dict[str, Any]:
    """The newest one, with tensors as lists; wall-clock times left out."""
    tree = restore_newest(folder / "checkpoints").tree
    kept = {name: tree[name] for name in ("learner", "actors", "account", "episodes")}
    plain: dict[str, Any] = map_tensors(torch.Tensor.tolist, kept)
    return plain


def test_the_published_settings() -> None:
    """They are GROOVE's, but for its 512 agents."""
    published = lifetimes()
    assert (published.rollout_length, published.inner_updates, published.least_environments) == (20, 5, 64)
    assert (published.rule, published.meta_optimizer) == (Lpg(), Adam(learning_rate=1e-4, max_gradient_norm=0.5))
    assert (published.rollouts_per_order, published.steps_per_rollout) == (6, 64 * 64 * 20 * 6)
    assert published.bytes_sent == 2 * 4 * Lpg().layout.size


def test_other_rules_and_families_are_experiments_of_their_own(tmp_path: Path) -> None:
    """DiscoRL's public meta-training has 2 agents, 32 environments, T = 16 and K = 2."""
    disco = lifetimes_disco()
    assert (disco.agents, disco.least_environments, disco.rollout_length, disco.inner_updates) == (2, 32, 16, 2)
    assert disco.population.normaliser == Adam(learning_rate=1.0)
    assert lifetimes().population.normaliser is None
    several = tiny(other_families=lifetimes_families().other_families, agents=4, environments=8, updates=1)
    assert (several.kinds_of_actors, replace(several, actors=2).kinds_of_actors) == (3, 3)
    trained(several, tmp_path)
    assert {name.split("/")[1] for name in logged_scalars(tmp_path) if name.endswith("reward_mean")} == {
        family.make_tasks(seeds=[0], batch_size=1, device=torch.device("cpu")).spec.name for family in several.families
    }
    for rule in (lifetimes_correction().rule, DiscoRule(prediction=4, largest_value=2, hidden=2, meta_hidden=2)):
        assert trained(tiny(rule=rule, updates=1), tmp_path / type(rule).__name__)["updates"] == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"agents": 3}, r"^environments = 4: must be a positive multiple of agents = 3; use --environments 3$"),
        ({"actors": 2, "agents": 1}, r"^agents = 1: must be a positive multiple of actors = 2; use --agents 2$"),
        ({"agents": 0}, r"^agents = 0: "),
        ({"inner_updates": 0}, r"^inner_updates = 0: must lie in \[1, 10,000\]"),
        ({"lifetime": 1}, r"^lifetime = 1: an agent makes at least the inner_updates = 2 of one meta-update"),
        ({"product": "forget"}, r"^product = 'forget': must be one of retain, recompute"),
        ({"precision": "bf16-mixed"}, r"^precision = 'bf16-mixed': agents and rule compute in float32"),
        ({"lookahead": "fork"}, r"^lookahead = 'fork': "),
        ({"schedule": "peek"}, r"^schedule = 'peek': "),
        ({"learners": 2, "topology": "ray"}, r"^learners = 2: "),
        ({"actor_processes": 2, "topology": "ray"}, r"^actor_processes = 2: .*; use more --actors$"),
        ({"meta_optimizer": Adam(learning_rate=lambda *_: 1.0)}, r"^meta_optimizer.learning_rate = "),
    ],
)
def test_wrong_values_and_what_means_nothing_here_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        tiny(**changes)


def test_a_run_counts_logs_and_resumes_to_the_bit(tmp_path: Path) -> None:
    summary = trained(tiny(), tmp_path / "a")
    steps = 3 * 4 * 5 * 3  # updates, environments, T, K + 1
    assert summary["frames_real"] == summary["sampled"] == summary["consumed"] == steps
    assert (summary["in_flight"], summary["dropped"], summary["frames_lookahead"]) == (0, 0, 0)
    assert summary["eta"]["lifetimes_ended"] >= 2
    logged = logged_scalars(tmp_path / "a")
    for name in ("families/GridWorlds-small/reward_mean", "families/GridWorlds-small/reward_at_end", "loss/outer"):
        assert logged[name][0].tolist()[-1] == 3
    assert {f"regulariser/{name}" for name in RULE.coefficients} <= set(logged)
    assert set(logged["lifetimes/agents"][1].tolist()) == {2.0}
    trained(tiny(updates=1), tmp_path / "parts")
    trained(tiny(), tmp_path / "parts", is_resumed=True)
    assert checkpoint(tmp_path / "a") == checkpoint(tmp_path / "parts")


def test_a_checkpoint_of_other_agents_is_none_of_this_run(tmp_path: Path) -> None:
    trained(tiny(updates=1), tmp_path)
    tree = restore_newest(tmp_path / "checkpoints").tree

    def part(experiment: LifetimesExperiment) -> str | None:
        return misfit(tree, 1, experiment, experiment.algorithm(probe(experiment.env)))

    assert part(tiny()) is None
    assert part(tiny(is_normalised_per_agent=True)) == "actors"
    assert part(tiny(environments=8)) == "actors"
    assert part(tiny(rule=replace(RULE, units=5))) == "theta"


def test_what_comes_of_it_is_a_rule_and_no_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tiny(updates=1), tmp_path / "run")
    file = tmp_path / "rule.npz"
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--output", str(file)]) == 0
    found, tree = load_rule(file), restore_newest(tmp_path / "run" / "checkpoints").tree["learner"]
    assert found.rule == RULE
    assert torch.equal(found.eta, tree["theta"])
    assert (found.provenance["update"], found.provenance["lifetimes"]) == (1, tree["lifetimes"])
    assert found.provenance["experiment"]["agents"] == 2
    for words, line in (
        (["export", "--output", "p.pt2"], "output = 'p.pt2': must end in .npz (--format rule); name such a file"),
        (["export", "--output", "p.pt2", "--format", "torch"], "format = 'torch': the run has learnt an update rule"),
        (["eval"], f"run-dir = '{tmp_path / 'run'}': holds no policy but an update rule; write it to a file with"),
    ):
        capsys.readouterr()
        assert main([words[0], str(tmp_path / "run"), *words[1:]]) == 2
        assert capsys.readouterr().err.startswith(f"metagrad: {line}")
    with pytest.raises(ConfigurationError, match="holds no policy but an update rule"):
        metagrad.experiments.loading.load(tmp_path / "run")


class Doomed(Population):
    """Kills its process at its third order, once."""

    marker: Path

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        self.orders = getattr(self, "orders", 0) + 1
        if self.setup.index == 1 and self.orders == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rollout(snapshot, lookahead_step)


@pytest.mark.slow
def test_a_killed_population_comes_back_with_fresh_agents_and_is_counted(tmp_path: Path) -> None:
    experiment = tiny(agents=4, environments=8, topology="ray", actors=2, updates=30, lifetime=1_000)
    said = StringIO()

    def make(setup: ActorSetup) -> Doomed:
        actor = Doomed(setup, experiment.population)
        actor.marker = tmp_path / "marker"
        return actor

    summary = run(experiment, tmp_path / "run", False, Console(file=said, width=200), make)
    assert (summary["updates"], summary["actors_restarted"], summary["in_flight"]) == (30, 1, 0)
    assert summary["consumed"] == 30 * experiment.steps_per_rollout
    assert summary["sampled"] == summary["consumed"] + summary["dropped"]
    assert summary["dropped_reasons"]["actor died"] == experiment.steps_per_rollout // 2
    assert "actor 1" in said.getvalue()
    assert "started again with new random streams" in said.getvalue()
    kept, fresh = restore_newest(tmp_path / "run" / "checkpoints").tree["actors"]
    assert kept["family 0/seed"].tolist() == [0, 0, 0]
    assert not fresh or fresh["family 0/seed"].tolist() == [0, 0, 1]
    summary = trained(replace(experiment, updates=31), tmp_path / "run", is_resumed=True)
    assert (summary["updates"], summary["actors_restarted"]) == (31, 1)


@pytest.mark.slow
def test_the_same_on_ray_with_the_agents_of_one_process_in_two(tmp_path: Path) -> None:
    summaries = [
        trained(tiny(agents=4, environments=8), tmp_path / "one"),
        trained(tiny(agents=4, environments=8, topology="ray", actors=2), tmp_path / "two"),
    ]
    assert summaries[0]["sampled"] == summaries[1]["sampled"] == summaries[1]["consumed"]
    one, two = (restore_newest(tmp_path / name / "checkpoints").tree for name in ("one", "two"))
    torch.testing.assert_close(two["learner"]["theta"], one["learner"]["theta"], rtol=0, atol=1e-6)
    torch.testing.assert_close(two["learner"]["moments"], one["learner"]["moments"], rtol=1e-5, atol=1e-9)
    (whole,), halves = one["actors"], two["actors"]
    for name in ("family 0/agent/0", "family 0/lives", "family 0/left"):
        torch.testing.assert_close(torch.cat([half[name] for half in halves]), whole[name], rtol=0, atol=1e-6)
