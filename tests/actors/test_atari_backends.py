"""The facts about the two backends that the adapter and its table rest on."""

import traceback

import numpy as np
import pytest

from metagrad.actors.envs import atari, envpool
from metagrad.actors.envs.atari import AtariConfig, action_names

NOOP, FIRE = 0, 1
BACKENDS = ("envpool", "ale")


def make(config, batch_size=1, *, is_colour_view=False):
    seeds = np.arange(11, 11 + batch_size)
    return atari.BACKENDS[config.backend](config, seeds, threads=1, is_colour_view=is_colour_view)


def act(pool, action, count):
    return [pool.step(np.array([action], np.int32)) for _ in range(count)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_observation_stays_what_it_was(backend):
    pool = make(AtariConfig(game="Breakout", backend=backend))
    held = [pool.reset()[0]]
    copies = [held[0].copy()]
    for _ in range(100):
        held.append(act(pool, FIRE, 1)[0].observation)
        copies.append(held[-1].copy())
    assert all((observation == copy).all() for observation, copy in zip(held, copies, strict=True))
    assert len({copy.tobytes() for copy in copies}) > 50


@pytest.mark.parametrize(("backend", "is_repeated"), [("envpool", True), ("ale", False)])
def test_the_first_stack(backend, is_repeated):
    observation, lives = make(AtariConfig(game="Breakout", backend=backend)).reset()
    assert lives.tolist() == [5]
    assert observation[0, 3].any()
    for screen in observation[0, :3]:
        assert (screen == observation[0, 3]).all() if is_repeated else not screen.any()


@pytest.mark.parametrize(("backend", "is_whole"), [("envpool", True), ("ale", False)])
def test_the_screen_at_the_time_limit(backend, is_whole):
    screens = []
    for limit in (30, 1000):
        pool = make(AtariConfig(game="Pong", backend=backend, max_episode_steps=limit))
        pool.reset()
        step = act(pool, 2, 30)[-1]
        assert step.is_time_limit.tolist() == [limit == 30]
        screens.append(step.observation[0])
    assert (screens[0][:3] == screens[1][:3]).all()
    assert (screens[0][3] == screens[1][3]).all() == is_whole


def test_ales_own_episodic_life_resets_the_game():
    from ale_py import AtariVectorEnv

    pool = AtariVectorEnv("breakout", 1, num_threads=1, episodic_life=True)
    pool.reset(seed=np.array([11]))
    terminated = False
    while not terminated:
        _, _, terminated, _, info = pool.step(np.array([FIRE]))
    assert info["lives"] == 4
    _, _, _, _, info = pool.step(np.array([FIRE]))
    assert info["lives"] == 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tall_screen_fits_the_view(backend):
    pool = make(AtariConfig(game="Klax", backend=backend), is_colour_view=True)
    observation, _ = pool.reset()
    assert observation.shape == act(pool, NOOP, 1)[0].observation.shape == (1, 210, 160, 3)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("game", ["Pong", "MsPacman", "Backgammon"])
def test_action_names_are_as_many_as_envpools_actions(game, full):
    import envpool

    names = action_names(AtariConfig(game=game, full_action_space=full))
    assert len(names) == envpool.make_spec(f"{game}-v5", full_action_space=full).action_space.n


def test_importing_envpool_holds_no_caller(monkeypatch):
    monkeypatch.setattr(envpool.importlib, "import_module", lambda name: (name, traceback.extract_stack()))
    name, stack = envpool.import_envpool()
    assert name == "envpool"
    assert "test_importing_envpool_holds_no_caller" not in {frame.name for frame in stack}
