"""Every experiment that `metagrad list` shows runs."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.launch import run
from metagrad.disco import DiscoRule
from metagrad.experiments import EXPERIMENTS
from metagrad.networks import NatureCnn

SHORT: dict[str, dict[str, Any]] = {  # rollouts are whole episodes, or small networks
    "discounting-chain": {"env": DiscountingChainConfig(horizon=2)},
    "pong": {"minibatches": 2},
    "atari-released": {"network": NatureCnn(hidden=8, gamma_embedding=2)},
    "ipd": {"env": IteratedPrisonersDilemmaConfig(steps=2), "inner_rollouts": 1},
    "lifetimes": {"agents": 2},
    "lifetimes-families": {"agents": 2, "actors": 1},
    "lifetimes-correction": {"agents": 2},
    "lifetimes-disco": {"rule": DiscoRule(prediction=4, largest_value=2, hidden=4, meta_hidden=3)},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_tiny_updates(name: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]()
    is_sequential = isinstance(experiment, Experiment) and experiment.meta.strategy == "sequential"
    short = SHORT.get(name, {})
    each = experiment.reuse * short.get("minibatches", 1) if isinstance(experiment, Experiment) else 1
    updates = 3 if is_sequential else 2 * each
    experiment = replace(
        experiment,
        environments=2,
        rollout_length=2,
        updates=updates,
        topology="colocated",
        learner_threads=1,
        **short,
    )
    summary = run(experiment, tmp_path, False, Console(file=StringIO()))
    assert (summary["experiment"], summary["updates"]) == (name, updates)
    # Of `sequential` the batch after the last update is real too; populations count what their agents do.
    batches = (updates // each + is_sequential) * experiment.rollouts_per_order
    assert summary["frames_real"] == 4 * batches
    looked_ahead = 2 * (name == "ipd")  # one for each player
    if isinstance(experiment, Experiment):
        looked_ahead = experiment.meta.n * (not is_sequential)
    assert summary["frames_lookahead"] == looked_ahead * 8
