"""Every experiment that `metagrad list` shows runs."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.cluster.config import Experiment
from metagrad.cluster.launch import run
from metagrad.experiments import EXPERIMENTS

SHORT: dict[str, dict[str, Any]] = {  # rollouts are whole episodes there
    "discounting-chain": {"env": DiscountingChainConfig(horizon=2)},
    "ipd": {"env": IteratedPrisonersDilemmaConfig(steps=2), "inner_rollouts": 1},
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_tiny_updates(name: str, tmp_path: Path) -> None:
    experiment = replace(
        EXPERIMENTS[name](),
        environments=2,
        rollout_length=2,
        updates=2,
        topology="colocated",
        learner_threads=1,
        **SHORT.get(name, {}),
    )
    summary = run(experiment, tmp_path, False, Console(file=StringIO()))
    assert (summary["experiment"], summary["updates"]) == (name, 2)
    assert summary["frames_real"] == 8
    looked_ahead = experiment.meta.n if isinstance(experiment, Experiment) else 2  # `ipd`: one for each player
    assert summary["frames_lookahead"] == looked_ahead * 8
