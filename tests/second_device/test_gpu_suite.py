"""The tests on a GPU are tried on the second device, as far as it goes."""

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import on_cuda
import pytest
from device_runs import small

from metagrad.actors.envs.atari import AtariConfig
from metagrad.experiments import EXPERIMENTS
from metagrad.networks import NatureCnn


@pytest.mark.parametrize("name", ["snake-6x6", "stacx"])
def test_errors_on_the_second_device_are_the_cpus(name: str, recorder: Any, standin: ModuleType) -> None:
    experiment = small(name, "colocated", "lockstep", "retain")
    found = on_cuda.errors(experiment, standin.DEVICE)
    assert set(found) == {"step", "meta_gradient"}
    for ours, cpus in found.values():
        assert ours == cpus
        assert 0 < cpus < 1e-3


def test_times_are_of_each_size_and_precision(
    recorder: Any, standin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def meta_update_seconds(experiment: Any, precision: str, *_: Any) -> float:
        asked.append((experiment.environments, experiment.rollout_length, precision))
        return 0.001

    original = on_cuda.meta_update_seconds
    monkeypatch.setattr(on_cuda, "meta_update_seconds", meta_update_seconds)
    pong = replace(EXPERIMENTS["atari"](), env=AtariConfig(game="Pong"), network=NatureCnn(hidden=8))
    lines = list(on_cuda.times(pong, standin.DEVICE, 1, lambda: None))
    assert len(set(asked)) == len(lines) == 9
    assert lines[0] == "64 x 5 in float32: 1.00 ms"
    tiny = replace(pong, environments=2, rollout_length=2)
    assert 0 < original(tiny, "float32", standin.DEVICE, 1, lambda: None) < math.inf
