"""Gymnasium's environments behind our protocol; what all environments share is in test_environments.py."""

import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch

from metagrad.actors.envs.gym import GymConfig
from metagrad.errors import ConfigurationError

CPU = torch.device("cpu")
EVERY_VECTORISATION = pytest.mark.parametrize("vectorisation", ["sync", "async"])


class Count(gymnasium.Env):
    """Observes seed, episode and step; ends after 3 steps in odd episodes, and is cut after 4 in even ones."""

    observation_space = gymnasium.spaces.Dict(
        {"at": gymnasium.spaces.Box(-1, 99, (2,), np.int64), "seed": gymnasium.spaces.Box(0, 1e3, (), np.float64)}
    )
    action_space = gymnasium.spaces.Discrete(2)
    seed_seen, episode, step_seen = 0, -1, 0

    def reset(self, *, seed=None, options=None):
        self.seed_seen = self.seed_seen if seed is None else seed % 997
        self.episode, self.step_seen = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.step_seen += 1
        is_odd = self.episode % 2 == 1
        reward = 10.0 * self.episode + self.step_seen + 0.5 * action
        return self._observation(), reward, is_odd and self.step_seen == 3, not is_odd and self.step_seen == 4, {}

    def _observation(self):
        return {"at": np.array([self.episode, self.step_seen]), "seed": np.array(float(self.seed_seen))}


@pytest.fixture(autouse=True)
def _counts(monkeypatch):
    module = ModuleType("counting")
    module.Count = Count
    monkeypatch.setitem(sys.modules, "counting", module)


def make(batch_size=2, seed=0, is_training=True, **values):
    config = GymConfig(**({"id": "counting:Count"} | values))
    return config.make(batch_size=batch_size, seed=seed, device=CPU, threads=1, is_training=is_training)


def played(environment, steps):
    environment.reset()
    ones = torch.ones(environment.spec.batch_size, dtype=torch.int64)
    result = [environment.step(ones) for _ in range(steps)]
    environment.close()
    return result


def column(steps, read):
    return [read(step)[0].item() for step in steps]


@EVERY_VECTORISATION
def test_next_step(vectorisation):
    steps = played(make(vectorisation=vectorisation), 9)
    at = [tuple(step.observation[0, :2].int().tolist()) for step in steps]
    assert at == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    assert column(steps, lambda s: s.valid) == [True] * 4 + [False] + [True] * 3 + [False]
    assert column(steps, lambda s: s.is_truncated) == [False] * 3 + [True] + [False] * 5
    assert column(steps, lambda s: s.is_terminal) == [False] * 7 + [True, False]
    assert column(steps, lambda s: s.is_episode_end) == [False] * 3 + [True] + [False] * 3 + [True, False]
    assert column(steps, lambda s: s.raw_reward) == [1.5, 2.5, 3.5, 4.5, 0, 11.5, 12.5, 13.5, 0]


@EVERY_VECTORISATION
def test_same_step(vectorisation):
    """A terminal is followed by the next episode's first observation, a truncation by its own true successor."""
    steps = played(make(vectorisation=vectorisation, autoreset="same-step"), 9)
    at = [tuple(step.observation[0, :2].int().tolist()) for step in steps]
    assert at == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert column(steps, lambda s: s.valid) == [True] * 4 + [False] + [True] * 4
    assert column(steps, lambda s: s.is_truncated) == [False] * 3 + [True] + [False] * 5
    assert column(steps, lambda s: s.is_terminal) == [False] * 6 + [True] + [False] * 2
    assert column(steps, lambda s: s.is_episode_end) == [False] * 3 + [True] + [False] * 2 + [True] + [False] * 2
    assert column(steps, lambda s: s.raw_reward) == [1.5, 2.5, 3.5, 4.5, 11.5, 12.5, 13.5, 21.5, 22.5]
    assert steps[3].observation[0, 2] == steps[0].observation[0, 2], "the whole of a Dict is put back"


def test_evaluation_resets_by_next_step():
    steps = played(make(autoreset="same-step", is_training=False), 5)
    assert column(steps, lambda s: s.valid) == [True] * 4 + [False]
    assert column(steps, lambda s: s.raw_reward)[-1] == 0


def test_seeds_are_distinct():
    environment = make(batch_size=64)
    seeds = environment.reset()[:, 2]
    assert len(set(seeds.tolist())) > 56  # modulo 997; two of the same happen by chance


def test_the_learners_reward_is_scaled_and_the_raw_one_is_not():
    step = played(make(reward_scale=0.1), 1)[0]
    assert (step.reward[0].item(), step.raw_reward[0].item()) == (pytest.approx(0.15), 1.5)


def test_an_id_is_gymnasiums_own():
    environment = make(id="FrozenLake-v1", max_episode_steps=5)
    own = gymnasium.make("FrozenLake-v1").observation_space
    assert environment.spec.observation_shape == (own.n,)
    steps = played(environment, 6)
    assert any(step.is_episode_end.any() for step in steps[:5])


def test_a_time_limit_truncates():
    assert [step.is_truncated.all().item() for step in played(make(max_episode_steps=2), 2)] == [False, True]


def test_a_module_that_registers_its_ids(monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Count-v3", gymnasium.envs.registration.EnvSpec("Count-v3", Count))
    assert make(id="counting:Count-v3").spec.observation_shape == (3,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": "Nope-v1"}, r"^env\.id = 'Nope-v1': Gymnasium cannot make it: "),
        ({"id": "no_such_module:Nope"}, r"^env\.id = 'no_such_module:Nope': .* No module named 'no_such_module'"),
        ({"id": "counting:Nope"}, r"^env\.id = 'counting:Nope': "),
        ({"id": "phys2d/CartPole-v1"}, r"^env\.id = 'phys2d/CartPole-v1': .* 'jax'"),
        ({"id": "a:b:c"}, r"^env\.id = 'a:b:c': must be an id"),
        ({"id": ""}, r"^env\.id = ''"),
        ({"reward_scale": 0.0}, r"^env\.reward_scale = 0\.0"),
        ({"max_episode_steps": 0}, r"^env\.max_episode_steps = 0"),
    ],
)
def test_what_is_not_taken_is_refused_in_one_line(values, message):
    with pytest.raises(ConfigurationError, match=message) as refusal:
        make(**values)
    assert "\n" not in str(refusal.value)
