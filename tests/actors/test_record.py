from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from metagrad.actors.envs import AtariConfig, SnakeConfig
from metagrad.actors.envs.atari import make_atari
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.envs.snake_render import render
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig
from metagrad.actors.record import LAST_MILLISECONDS, SNAKE_MILLISECONDS, has_pictures, record
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
    assert milliseconds == [SNAKE_MILLISECONDS] * (len(steps) - 1) + [SNAKE_MILLISECONDS + LAST_MILLISECONDS]
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
    assert not has_pictures(config)
    assert has_pictures(SnakeConfig())
    network, theta = policy_for(config, Mlp(hidden=4))
    with pytest.raises(ConfigurationError, match=r"^env = '\w+Config': has no pictures that could be recorded; "):
        record(network, theta, config, 0, False)
    assert not played
