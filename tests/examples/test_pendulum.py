"""The example of docs/environments.md that swings a pendulum up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from metagrad.actors.evaluate import evaluate
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.trained import trained_run


def test_a_batch_is_used_forty_times_and_gamma_and_lambda_are_learnt(
    load_example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    experiment = load_example("pendulum").pendulum()
    assert experiment.updates_per_batch == 40
    shape = {"environments": 4, "rollout_length": 8, "reuse": 2, "minibatches": 2, "updates": 8}
    tiny = replace(experiment, **shape, learner_threads=1)
    run(tiny, tmp_path / "run", False, Console(quiet=True))
    eta = trained_run(tmp_path / "run", None, print).eta
    assert eta["gamma"] != pytest.approx(0.9, abs=1e-6)
    assert eta["lambda"] != pytest.approx(0.95, abs=1e-6)
    assert (eta["value_coefficient"], eta["entropy_coefficient"]) == (0.5, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_it_swings_up(load_example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    experiment = replace(load_example("pendulum").pendulum(), learner_threads=1)
    run(experiment, tmp_path / "run", False, Console(quiet=True))
    trained = trained_run(tmp_path / "run", None, print)
    result = evaluate(trained.network, trained.theta, experiment.env, 100, 0, False, torch.device("cpu"), 1)
    assert result.mean > -200.0
