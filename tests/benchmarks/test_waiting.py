import time

import numpy as np
import pytest
import torch

from benchmarks.waiting import EPISODE_STEPS, Waiting, WaitingConfig
from metagrad.errors import ConfigurationError

CPU = torch.device("cpu")
QUICK = WaitingConfig(least_s=0.0, mean_beyond_s=0.0, features=3)


def make(config: WaitingConfig, batch_size: int = 2) -> Waiting:
    return config.make(batch_size=batch_size, seed=0, device=CPU, threads=1, is_training=True)


def test_it_terminates_and_goes_on() -> None:
    environment = make(QUICK)
    assert environment.reset().shape == (2, 3)
    ends = [environment.step(torch.tensor([0, 1])) for _ in range(EPISODE_STEPS + 1)]
    assert [bool(step.is_terminal.all()) for step in ends] == [False] * (EPISODE_STEPS - 1) + [True, False]
    assert ends[0].reward.tolist() == [0.0, 1.0]
    assert bool(ends[-1].valid.all())
    assert not bool(ends[-1].is_truncated.any())
    environment.close()


def test_steps_take_what_they_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    config = WaitingConfig(least_s=0.02, mean_beyond_s=0.01)
    environment = make(config)
    environment.reset()
    for _ in range(4_000):
        environment.step(torch.tensor([0, 1]))
    assert min(waited) >= 0.02
    rollouts = np.array(waited).reshape(-1, 5).sum(axis=1)
    mean, sd = config.rollout_s(5)
    assert rollouts.mean() == pytest.approx(mean, rel=0.02)
    assert rollouts.std() == pytest.approx(sd, rel=0.1)


def test_seeds_decide_the_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for seed in (0, 0, 1):
        WaitingConfig().make(batch_size=1, seed=seed, device=CPU, threads=1, is_training=True).step(torch.tensor([0]))
    assert waited[0] == waited[1] != waited[2]


@pytest.mark.parametrize("wrong", [{"least_s": -1.0}, {"mean_beyond_s": float("inf")}, {"features": 0}])
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        WaitingConfig(**wrong)  # type: ignore[arg-type]
