"""Every experiment trains on a second device: it mixes no devices, computes the CPU's numbers, and waits as budgeted.

`device_runs` has the budget, and `standin` lists what this device cannot express.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from device_runs import WITHOUT_PEEK, budget, require_equal, small, train

from metagrad.experiments import EXPERIMENTS

# Only their first form is fast: in the second one a smaller experiment shows the same.
NOT_EXPRESSED = ("lifetimes-disco",)  # `standin` says why
ALIKE = ("lifetimes-families", "lifetimes-correction", "demo", "stacx")  # others show the same in less time
LARGE = ("atari-released", "stacx-impala", "lirpg-atari", "pong")


def _cases() -> Iterator[Any]:
    """Yield colocated lockstep and the learner's part of Ray's peek (or lockstep), and what is left as slow."""
    for name in EXPERIMENTS:
        if name in NOT_EXPRESSED:
            continue
        first = (name, "colocated", "lockstep", "retain")
        yield pytest.param(*first, marks=pytest.mark.slow if name in ALIKE else ())
        second = (name, "ray", "lockstep" if name in WITHOUT_PEEK else "peek", "recompute")
        yield pytest.param(*second, marks=pytest.mark.slow if name in (*LARGE, *ALIKE) else ())
        if name not in WITHOUT_PEEK:
            yield pytest.param(name, "ray", "lockstep", "recompute", marks=pytest.mark.slow)
            yield pytest.param(name, "colocated", "peek", "retain", marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "topology", "schedule", "product"), list(_cases()))
def test_it_trains_as_on_the_cpu(
    name: str, topology: str, schedule: str, product: str, recorder: Any, standin: ModuleType
) -> None:
    experiment = small(name, topology, schedule, product)
    ours = train(experiment, standin.DEVICE, recorder.waits)
    if (expected := budget(experiment)) is not None:
        assert ours.waits == expected
    require_equal(ours, train(experiment, torch.device("cpu"), []), standin.DEVICE)
