"""The arithmetic and the receiver; tests/benchmarks/test_fleet.py sends weights to processes."""

import numpy as np
import pytest
import torch

from benchmarks.broadcast import Broadcast, Receiver, _setup, compared
from benchmarks.harness import Timing
from metagrad.types import WeightSnapshot


@pytest.mark.parametrize("is_by_value", [False, True])
def test_a_receiver_says_which_weights_it_has(is_by_value: bool) -> None:
    weights = torch.full((7,), 5.0)
    published = torch.full((1,), 6.0)
    receiver = Receiver(_setup(3), weights.numpy() if is_by_value else None)
    rollout = receiver.rollout(WeightSnapshot(1, published, torch.zeros(1)), 0)
    expected = (5, 7) if is_by_value else (6, 1)
    assert (rollout.trajectory.policy_version, int(rollout.trajectory.action[0, 0])) == expected
    assert rollout.actor == 3


def test_a_receiver_has_a_copy_of_its_own() -> None:
    weights = np.full(7, 5.0, dtype=np.float32)
    receiver = Receiver(_setup(0), weights)
    weights[:] = 9.0
    assert receiver.rollout(WeightSnapshot(1, torch.zeros(1), torch.zeros(1)), 0).trajectory.policy_version == 5


def test_ratios_are_of_speeds_and_round_by_round() -> None:
    broadcast = Broadcast(1_000_000, 2)
    assert broadcast.label == "1 MB to 2 actors"
    timings = {
        "1 MB to 2 actors, by reference": [Timing(1.0, 0.0), Timing(2.0, 0.0), Timing(4.0, 0.0)],
        "1 MB to 2 actors, by value": [Timing(3.0, 0.0), Timing(4.0, 0.0), Timing(4.0, 0.0)],
        "1 MB to 2 actors, of nothing": [Timing(0.5, 0.0), Timing(1.0, 0.0), Timing(1.0, 0.0)],
    }
    found = compared(broadcast, timings)
    assert found["by_reference_over_by_value"]["median"] == 2.0
    assert found["by_reference_s"]["median"] == 2.0
    assert found["by_value_s"]["median"] == 4.0
    assert found["by_reference_beyond_calls_s_per_actor"]["median"] == 0.5
