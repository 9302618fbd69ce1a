"""Tests what only a CUDA device can show, its numbers and its waits; `on_cuda` prints its times."""

import pytest
import torch
from device_runs import WITHOUT_PEEK, budget, small, train
from on_cuda import counted_waits, errors

from metagrad.experiments import EXPERIMENTS

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(480)]
CUDA = torch.device("cuda")

# Both devices round each operation to 24 bits and differ in the order in which they add, so one is about as far from
# float64 as the other. Chance makes of that a factor of a few; a wrong operation or TF32 (11 bits) one of thousands.
MOST_ERRORS_OF_THE_CPU = 10
FLOAT32 = 2.0**-24


@pytest.mark.parametrize("product", ["retain", "recompute"])
@pytest.mark.parametrize("name", ["snake-6x6", "snake-12x12", "atari", "stacx", "stacx-impala", "lirpg-snake"])
def test_an_update_is_as_exact_as_on_the_cpu(name: str, product: str) -> None:
    experiment = small(name, "colocated", "lockstep", product)
    for what, (ours, cpus) in errors(experiment, CUDA).items():
        print(f"{name}, {product}, {what}: relative error {ours:.1e}, on the CPU {cpus:.1e}")
        assert ours <= MOST_ERRORS_OF_THE_CPU * max(cpus, FLOAT32), what


@pytest.mark.parametrize(("topology", "schedule"), [("colocated", "lockstep"), ("ray", "peek")])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_host_waits_as_budgeted(name: str, topology: str, schedule: str) -> None:
    if schedule == "peek" and name in WITHOUT_PEEK:
        pytest.skip("its losses know no peek")
    experiment = small(name, topology, schedule, "retain")
    waits: list[str] = []
    with counted_waits(waits):
        trained = train(experiment, CUDA, waits)
    assert len(trained.waits) == len(budget(experiment)), trained.waits
