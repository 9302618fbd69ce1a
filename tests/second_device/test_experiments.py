"""Every experiment trains on a second device: it mixes no devices, computes the CPU's numbers, and waits as budgeted.

`device_runs` has the budget, and `standin` lists what this device cannot express.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from device_runs import WITHOUT_PEEK, budget, require_equal, small, train

from metagrad.experiments import EXPERIMENTS

CASES = [
    *[(name, "colocated", "lockstep", "retain") for name in EXPERIMENTS],
    *[(name, "ray", "lockstep", "recompute") for name in WITHOUT_PEEK],
    *[(name, "ray", "peek", "recompute") for name in EXPERIMENTS if name not in WITHOUT_PEEK],
    *[
        pytest.param(name, topology, schedule, product, marks=pytest.mark.slow)
        for topology, schedule, product in (("ray", "lockstep", "recompute"), ("colocated", "peek", "retain"))
        for name in EXPERIMENTS
        if name not in WITHOUT_PEEK
    ],
]


@pytest.mark.parametrize(("name", "topology", "schedule", "product"), CASES)
def test_it_trains_as_on_the_cpu(
    name: str, topology: str, schedule: str, product: str, recorder: Any, standin: ModuleType
) -> None:
    experiment = small(name, topology, schedule, product)
    ours = train(experiment, standin.DEVICE, recorder.waits)
    assert ours.waits == budget(experiment)
    require_equal(ours, train(experiment, torch.device("cpu"), []), standin.DEVICE)
