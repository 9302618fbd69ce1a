import torch

from benchmarks.still import FEATURES, Still, StillConfig
from metagrad.actors.policy import Decision
from metagrad.actors.rollout import Pool, collect


def test_a_rollout_is_of_one_observation_and_has_the_bytes_of_four_pictures() -> None:
    environment = StillConfig().make(batch_size=3, seed=0, device=torch.device("cpu"), threads=1, is_training=True)
    assert isinstance(environment, Still)
    choice = Decision(torch.zeros(3, dtype=torch.int64), torch.zeros(3))
    trajectory, episodes = collect(Pool(environment, 0), lambda observation, generator: choice, 7, 5)
    assert trajectory.observation.shape == (6, 3, FEATURES)
    assert trajectory.observation[0, 0].nbytes == 4 * 84 * 84
    assert bool((trajectory.observation == 0.5).all())
    assert bool(trajectory.valid.all())
    assert not bool(trajectory.is_terminal.any())
    assert episodes.returns.numel() == 0
    environment.close()
