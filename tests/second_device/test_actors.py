"""An actor on Ray that has a part of a GPU: its class, without Ray, on the second device."""

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import ray
import torch
from device_runs import small

from metagrad.actors.rollout import Actor
from metagrad.cluster.on_ray.rollout_actor import RolloutActor, versions
from metagrad.cluster.run.learning import actor_setups
from metagrad.networks import build_network


@pytest.mark.parametrize("name", ["snake-6x6", "atari"])
def test_it_sends_what_it_would_from_the_cpu(
    name: str, recorder: Any, standin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.9")
    experiment = small(name, "ray", "lockstep", "retain")
    (setup,) = actor_setups(experiment, torch.device("cpu"), 0)
    spec = setup.environment.make(batch_size=1, seed=0, device=torch.device("cpu"), threads=1, is_training=True).spec
    network = build_network(setup.network, spec.observation_shape, spec.actions, setup.has_outer_critic)
    weights = (network.init(torch.Generator().manual_seed(0)).numpy(), np.zeros(1, np.float32))

    def sent(device: str) -> tuple[Any, Any, Any]:
        first, second = RolloutActor(), RolloutActor()
        first.start(replace(setup, device=device), Actor, None, versions())
        rollout = first.rollout((0, 0, weights), 0)
        state = first.state()
        second.start(replace(setup, device=device), Actor, state, versions())
        return rollout, state, second.rollout((0, 0, weights), 0)

    ours = sent(str(standin.DEVICE))
    where = {wait.split(":")[1] for wait in recorder.waits}
    assert ("apply" if name == "atari" else "_on_host") in where, "it was on the second device"
    expected = sent("cpu")
    for rollout, cpus in ((ours[0], expected[0]), (ours[2], expected[2])):
        for column, of_cpu in zip(rollout.trajectory[:-1], cpus.trajectory[:-1], strict=True):
            assert isinstance(column, type(of_cpu))
            assert of_cpu is None or np.array_equal(column, of_cpu)
    assert ours[1].keys() == expected[1].keys()
    for key, x in ours[1].items():
        assert x.device.type == "cpu"
        assert torch.equal(x, expected[1][key]), key
