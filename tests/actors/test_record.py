from io import BytesIO
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from metagrad.actors.envs import AtariConfig, SnakeConfig
from metagrad.actors.envs.atari import make_atari
from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.actors.envs.gym import GymConfig
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.envs.snake import PicturedSnake
from metagrad.actors.envs.snake_render import render
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig
from metagrad.actors.record import LAST_MILLISECONDS, record
from metagrad.actors.rollout import probe
from metagrad.errors import ConfigurationError
from metagrad.networks import Mlp, NatureCnn, SnakeCnn, build_network

SNAKE = SnakeConfig(rows=4, columns=5, time_limit=60)


def policy_for(config, network_spec):
    spec = probe(config)
    network = build_network(network_spec, spec.observation_shape, spec.num_actions, has_outer_critic=False)
    return network, network.init(torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def snake_policy():
    return policy_for(SNAKE, SnakeCnn(channels=4, policy_hidden=8, value_hidden=8))


def read(gif):
    """Pictures [frames, height, width, 3], milliseconds of each, and the loop count (0: for ever)."""
    with Image.open(BytesIO(gif)) as image:
        pictures, milliseconds = [], []
        for i in range(image.n_frames):
            image.seek(i)
            pictures.append(np.asarray(image.convert("RGB")))
            milliseconds.append(image.info["duration"])
        return np.stack(pictures), milliseconds, image.info["loop"]


class Replay:
    """The environment that `record` made, with what it returned."""

    def __init__(self, environment, log):
        self._environment, self._log = environment, log
        self.spec, self.close = environment.spec, environment.close

    def reset(self):
        self._log.append((None, self._environment.reset()))
        return self._log[-1][1]

    def step(self, action):
        self._log.append((self._environment.step(action), None))
        return self._log[-1][0]


@pytest.fixture
def played(monkeypatch):
    """Log of (step, first observation) that fills while `record` plays."""
    log = []
    for kind in (SnakeConfig, AtariConfig):
        make = kind.make
        monkeypatch.setattr(kind, "make", lambda config, make=make, **named: Replay(make(config, **named), log))
    return log


@pytest.mark.parametrize("is_greedy", [True, False])
def test_snake_recording_shows_the_episode(snake_policy, played, is_greedy):
    episode = record(*snake_policy, SNAKE, 5, is_greedy)
    steps = [step for step, _ in played[1:]]
    assert episode.length == len(steps)
    assert episode.episode_return == sum(step.raw_reward.item() for step in steps)
    assert episode.is_complete
    assert [bool(step.is_episode_end) for step in steps] == [False] * (len(steps) - 1) + [True]
    pictures, milliseconds, loop = read(episode.gif)
    assert loop == 0
    # The picture of the end is the one before it, shown for longer.
    a_step = PicturedSnake.milliseconds
    assert milliseconds == [a_step] * (len(steps) - 1) + [a_step + LAST_MILLISECONDS]
    boards = [played[0][1], *(step.observation for step in steps[:-1])]
    for picture, board in zip(pictures, boards, strict=True):
        expected = render(board[0], 80).astype(float)
        assert picture.shape == expected.shape
        assert np.abs(picture - expected).mean() < 2  # of 255: the palette has 255 colours


@pytest.mark.parametrize("backend", ["envpool", "ale"])
def test_atari_recording_shows_the_colours_of_the_game_played(tmp_path, played, backend):
    config = AtariConfig(game="Breakout", backend=backend, max_episode_steps=30)
    network, theta = policy_for(config, NatureCnn(hidden=16))
    episode = record(network, theta, config, 5, False)
    steps = [step for step, _ in played[1:]]
    assert episode.is_complete
    assert len(steps) == 30
    assert episode.length == sum(step.valid.item() for step in steps)
    assert episode.episode_return == sum(step.raw_reward.item() for step in steps)
    pictures, milliseconds, loop = read(episode.gif)
    assert loop == 0
    assert pictures.shape[1:] == (420, 320, 3)
    assert sum(milliseconds) == 30 * 70 + LAST_MILLISECONDS  # 4 of 60 frames a second; equal pictures are one
    view = make_atari(config, batch_size=1, seed=0, threads=1, is_training=False, is_colour_view=True)
    colours = {tuple(colour) for colour in view.reset()[0].numpy().reshape(-1, 3)}
    assert {tuple(colour) for colour in pictures[0].reshape(-1, 3)} >= colours  # bricks of every row, undistorted
    shown = np.repeat(pictures, np.array(milliseconds) // 70, axis=0)
    seen = [played[0][1][0, -1], *(step.observation[0, -1] for step in steps)]
    for picture, screen in zip(shown, seen, strict=False):
        grey = Image.fromarray(picture).convert("L").resize((84, 84), Image.Resampling.BOX)
        # Of 255; a ball or paddle elsewhere is a difference of 50 or more.
        assert np.abs(np.asarray(grey).astype(float) - screen.numpy()).max() < 25


def test_recording_is_repeatable(snake_policy):
    first, again = (record(*snake_policy, SNAKE, 5, False).gif for _ in range(2))
    assert first == again


def test_long_episode_is_cut_and_says_so():
    config = AtariConfig()
    network, theta = policy_for(config, NatureCnn(hidden=16))
    episode = record(network, theta, config, 0, False, max_steps=7)
    assert (episode.length, episode.is_complete) == (7, False)
    _, milliseconds, _ = read(episode.gif)
    assert sum(milliseconds) == 7 * 70 + LAST_MILLISECONDS


def test_longest_recording_is_one_step(snake_policy):
    episode = record(*snake_policy, SNAKE, 5, False, max_steps=1)
    assert episode.length == 1
    assert read(episode.gif)[0].shape[1:] == (4 * 80 + 40, 5 * 80 + 40, 3)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"max_steps": 0}, "max_steps"), ({"seed": -1}, "seed")],
)
def test_wrong_values_are_refused_before_anything_is_played(snake_policy, played, wrong, field):
    arguments = {"seed": 0, "is_greedy": True} | wrong
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        record(*snake_policy, SNAKE, **arguments)
    assert not played


@pytest.mark.parametrize("config", [TabularMdpConfig(), MarkovRewardProcessConfig()])
def test_environment_without_pictures_is_refused_before_anything_is_played(played, config):
    assert not config.has_pictures
    assert SnakeConfig().has_pictures
    network, theta = policy_for(config, Mlp(hidden=4))
    with pytest.raises(ConfigurationError, match=r"^env = '\w+Config': has no pictures that could be recorded; "):
        record(network, theta, config, 0, False)
    assert not played


def test_envpool_task_is_drawn_as_it_is_played():
    config = EnvPoolConfig(task="CartPole-v1")
    network, theta = policy_for(config, Mlp(hidden=4))
    episode = record(network, theta, config, 3, False)
    pictures, milliseconds, _ = read(episode.gif)
    assert episode.is_complete
    assert pictures.shape[1:] == (400, 600, 3)
    assert sum(milliseconds) == 40 * episode.length + LAST_MILLISECONDS
    assert episode.episode_return == episode.length
    # It falls: the pole is upright in the first picture and elsewhere in the last one.
    assert np.abs(pictures[0].astype(float) - pictures[-1]).max() > 100


def test_drawn_envpool_task_is_the_one_that_is_evaluated():
    config, cpu = EnvPoolConfig(task="CartPole-v1"), torch.device("cpu")
    drawn = config.make_pictured(7)
    plain = config.make(batch_size=1, seed=7, device=cpu, threads=1, is_training=False)
    assert torch.equal(drawn.reset(), plain.reset())
    for _ in range(30):
        action = torch.ones(1, dtype=torch.int64)
        assert all(torch.equal(x, y) for x, y in zip(drawn.step(action), plain.step(action), strict=True))


def test_task_that_envpool_cannot_draw_is_refused():
    config = EnvPoolConfig(task="InvertedPendulum-v4")  # drawn with OpenGL, which ends a process that has none
    try:
        config.make_pictured(0).close()
    except ConfigurationError as error:
        assert str(error).startswith("env.task = 'InvertedPendulum-v4': EnvPool cannot draw it on this machine (")  # noqa: PT017
    else:
        pytest.skip("this machine has OpenGL")


class Drawn(gymnasium.Env):
    """Ends after 5 steps; its picture is as bright as the step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode, self._steps = render_mode, 0

    def reset(self, *, seed=None, options=None):
        self._steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        return np.zeros(2, np.float32), 1.0, self._steps == 5, False, {}

    def render(self):
        return np.full((20, 30, 3), 40 * self._steps, np.uint8)


class Undrawn(Drawn):
    """Takes no render mode."""

    def __init__(self):
        super().__init__()


class Broken(Drawn):
    """Fails to draw."""

    def render(self):
        raise RuntimeError("no screen")


def test_gymnasium_environment_is_drawn():
    config = GymConfig(id=f"{__name__}:Drawn")
    network, theta = policy_for(config, Mlp(hidden=4))
    episode = record(network, theta, config, 0, False)
    pictures, milliseconds, _ = read(episode.gif)
    assert (episode.length, episode.episode_return, episode.is_complete) == (5, 5.0, True)
    assert milliseconds == [100] * 5 + [LAST_MILLISECONDS]
    assert [int(picture[0, 0, 0]) for picture in pictures] == [0, 40, 80, 120, 160, 200]
    assert pictures.shape[1:] == (20 * 13, 30 * 13, 3)  # small pictures are magnified


@pytest.mark.parametrize(("name", "said"), [("Undrawn", "render_mode"), ("Broken", "no screen")])
def test_gymnasium_environment_without_pictures_is_refused(name, said):
    config = GymConfig(id=f"{__name__}:{name}")
    with pytest.raises(ConfigurationError, match=rf"^env.id = '.*:{name}': it cannot be drawn here: .*{said}.*; "):
        config.make_pictured(0)
