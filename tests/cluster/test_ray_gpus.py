"""Actors with parts of GPUs on a real raylet that counts one: no device is needed to see what Ray gives to whom."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest
import ray
import torch

from metagrad.actors.rollout import Actor
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.supervise import Supervisor
from metagrad.cluster.on_ray import session
from metagrad.cluster.on_ray.rollout_actor import versions
from metagrad.cluster.run.learning import actor_setups
from metagrad.errors import ConfigurationError

pytestmark = pytest.mark.cluster
RUNNING = SimpleNamespace(signal_name=None)
SECONDS_TO_PLACE = 60.0


@pytest.fixture
def raylet_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ray, "init", partial(ray.init, num_gpus=1))
    with session.ray_session(session.Demand(least=0, wanted=4, gpus=0)):
        yield


def wait_for_free_gpus(expected: float) -> None:
    """Wait until Ray, which tells it with a delay, counts so much of a GPU as free."""
    deadline = time.monotonic() + SECONDS_TO_PLACE
    while (free := ray.available_resources().get("GPU", 0.0)) != pytest.approx(expected, abs=1e-4):
        assert time.monotonic() < deadline, f"{free} of a GPU are free"
        time.sleep(0.2)


@pytest.mark.usefixtures("raylet_with_a_gpu")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU that Ray counts is to be one that torch does not see")
def test_actors_have_their_parts_and_the_learner_what_they_leave(tiny: Callable[..., Experiment]) -> None:
    experiment = tiny(topology="ray", actors=3, environments=6, actor_gpus=0.1)
    said: list[str] = []
    with closing(Supervisor(experiment, None, said.append, RUNNING)) as supervisor:  # type: ignore[arg-type]
        first, *_ = supervisor.handles
        ray.get([handle.place.remote() for handle in supervisor.handles])
        wait_for_free_gpus(0.0)  # 0.7 are reserved for the learner
        bundles = ray.util.placement_group_table(supervisor._group)["bundles"]
        assert [bundles[i]["GPU"] for i in (0, 1)] == pytest.approx([0.1, 0.7])
        (setup, *_) = actor_setups(experiment, torch.device("cpu"), 0)
        with pytest.raises(ConfigurationError, match="its torch sees no GPU where Ray counts one"):
            ray.get(first.start.remote(setup, Actor, None, versions()))
    wait_for_free_gpus(1.0)
    assert said == []


@pytest.mark.usefixtures("raylet_with_a_gpu")
def test_a_learner_without_a_gpu_left_is_refused(tiny: Callable[..., Experiment]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^actor_gpus = 0\.5: 2 actors with 0\.5 of a GPU each beside 1 learner"
    ):
        Supervisor(tiny(topology="ray", actor_gpus=0.5), None, print, RUNNING)  # type: ignore[arg-type]
    wait_for_free_gpus(1.0)
