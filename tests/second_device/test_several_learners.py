"""Two learners train on second devices: they mix none, compute the CPU's numbers, and wait no more often than one."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from device_runs import WITHOUT_PEEK, budget, require_equal, small, train

from metagrad.experiments import EXPERIMENTS
from metagrad.learner.team import Learners


def _cases() -> Iterator[Any]:
    """Yield every experiment that several learners can run; one of them is fast."""
    for name, make in EXPERIMENTS.items():
        for schedule, product in (("lockstep", "retain"), ("peek", "recompute")):
            is_run = make().shares_batches and not (schedule == "peek" and name in WITHOUT_PEEK)
            marks = () if (name, schedule) == ("snake-6x6", "peek") else pytest.mark.slow
            if is_run:
                yield pytest.param(name, schedule, product, marks=marks)


@pytest.mark.parametrize(("name", "schedule", "product"), list(_cases()))
def test_two_train_as_on_the_cpu(
    name: str, schedule: str, product: str, standin: ModuleType, in_group: Callable[[int, Callable[[], Any]], list[Any]]
) -> None:
    experiment = small(name, "ray", schedule, product, learners=2)

    def work() -> list[str]:
        with standin.second_device() as recorder:
            ours = train(experiment, standin.DEVICE, recorder.waits, Learners())
        require_equal(ours, train(experiment, torch.device("cpu"), [], Learners()), standin.DEVICE)
        return ours.waits

    assert in_group(2, work) == [budget(experiment)] * 2
