"""Records one full-life episode as a GIF that a person can look at."""

from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metagrad.actors.envs import EnvironmentConfig
from metagrad.actors.envs.atari import AtariConfig, make_atari
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.envs.snake_render import render
from metagrad.actors.evaluate import Player
from metagrad.errors import ConfigurationError, require
from metagrad.networks import Network

MAX_STEPS = 2_000  # a cap on memory and file size; of Atari (frame skip 4) 2 minutes 13 seconds
PICTURE_SIZE = 400  # pixels, roughly, of a picture's longer side
FRAMES_PER_SECOND = 60  # of the Atari console
SNAKE_MILLISECONDS = 120  # a step is shown for so long
LAST_MILLISECONDS = 1_500  # the end stays on show before the loop begins again
PALETTE_PICTURES = 16  # pictures that the common palette is made from


class RecordedEpisode(NamedTuple):
    """Holds the recording of an episode."""

    gif: bytes
    episode_return: float  # raw rewards of the game, undiscounted
    length: int  # steps in which the policy acted
    is_complete: bool  # False: cut at `max_steps`, and `episode_return` with it


def has_pictures(config: EnvironmentConfig) -> bool:
    """Return True where the environment has pictures that can be recorded."""
    return isinstance(config, SnakeConfig | AtariConfig)


def pictured(config: EnvironmentConfig) -> SnakeConfig | AtariConfig:
    """Return the configuration if its environment has pictures.

    Raises:
        ConfigurationError: it has none that could be recorded.
    """
    if isinstance(config, SnakeConfig | AtariConfig):
        return config
    name = type(config).__name__
    raise ConfigurationError(f"env = {name!r}: has no pictures that could be recorded; evaluate it without --record")


class _Frame(NamedTuple):
    """Holds one picture and the outcome of the step that led to it."""

    picture: UInt8[np.ndarray, "height width 3"]
    raw_reward: float
    valid: bool
    is_episode_end: bool


def record(
    network: Network,
    theta: Float[Tensor, "P"],
    config: EnvironmentConfig,
    seed: int,
    is_greedy: bool,
    max_steps: int = MAX_STEPS,
) -> RecordedEpisode:
    """Play one full-life episode on the CPU and make a looped GIF of it, in real time (GIFs count in 10 ms).

    A longer episode is cut at `max_steps` environment steps, which `is_complete` tells. Snake's last picture is the one
    before the last move, since the board that follows is already the next episode's.

    Raises:
        ConfigurationError: there are no pictures or no step to record, or the seed is negative.
    """
    shown = pictured(config)
    require(max_steps >= 1, "max_steps", max_steps, "at least 1", "give the steps to record")
    require(seed >= 0, "seed", seed, "not negative", "use 0 or more")
    environment_seed, policy_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    player = Player(network, theta.cpu(), policy_seed, is_greedy)
    match shown:
        case SnakeConfig():
            episode = _play_snake(shown, player, environment_seed, max_steps)
            milliseconds, scale = SNAKE_MILLISECONDS, 1
        case AtariConfig():
            episode = _play_atari(shown, player, environment_seed, max_steps)
            milliseconds, scale = 10 * round(100 * shown.frame_skip / FRAMES_PER_SECOND), 2
    frames = list(episode)
    gif = _gif([frame.picture for frame in frames], milliseconds, scale)
    episode_return = sum(frame.raw_reward for frame in frames)
    return RecordedEpisode(gif, episode_return, sum(frame.valid for frame in frames), frames[-1].is_episode_end)


def _play_snake(config: SnakeConfig, player: Player, seed: int, max_steps: int) -> Iterator[_Frame]:
    scale = max(8, 2 * round(PICTURE_SIZE / max(config.rows, config.columns) / 2))  # pixels a cell
    with closing(
        config.make(batch_size=1, seed=seed, device=torch.device("cpu"), threads=1, is_training=False)
    ) as environment:
        observation = environment.reset()
        picture = render(observation[0], scale)
        yield _Frame(picture, 0.0, False, False)
        for _ in range(max_steps):
            step = environment.step(player.act(observation))
            player.see(step)
            is_end = bool(step.is_episode_end)
            picture = picture if is_end else render(step.observation[0], scale)
            yield _Frame(picture, float(step.raw_reward), bool(step.valid), is_end)
            if is_end:
                return
            observation = step.observation


def _play_atari(config: AtariConfig, player: Player, seed: int, max_steps: int) -> Iterator[_Frame]:
    # Twins play the same game: one shows the policy what it was trained on, the other shows colours to a person.
    with (
        closing(
            config.make(batch_size=1, seed=seed, device=torch.device("cpu"), threads=1, is_training=False)
        ) as environment,
        closing(make_atari(config, batch_size=1, seed=seed, threads=1, is_training=False, is_colour_view=True)) as view,
    ):
        observation, screen = environment.reset(), view.reset()
        yield _Frame(screen[0].numpy(), 0.0, False, False)
        for _ in range(max_steps):
            action = player.act(observation)
            step, shown = environment.step(action), view.step(action)
            player.see(step)
            assert torch.equal(step.raw_reward, shown.raw_reward), "the twin environments play different games"
            is_end = bool(step.is_episode_end)
            yield _Frame(shown.observation[0].numpy(), float(step.raw_reward), bool(step.valid), is_end)
            if is_end:
                return
            observation = step.observation


def _gif(pictures: list[NDArray[np.uint8]], milliseconds: int, scale: int) -> bytes:
    """Make a looped GIF that shows each picture for `milliseconds` (a multiple of 10), magnified `scale` times."""
    # One palette for all: colours do not flicker, and only what moves differs from picture to picture.
    sample = np.concatenate(pictures[:: max(1, len(pictures) // PALETTE_PICTURES)])
    palette = Image.fromarray(sample).quantize(255)  # one entry is left for "as before"
    size = (pictures[0].shape[1] * scale, pictures[0].shape[0] * scale)

    def reduced(picture: NDArray[np.uint8]) -> Image.Image:
        image = Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE)
        return image.resize(size, Image.Resampling.NEAREST)

    content = BytesIO()
    reduced(pictures[0]).save(
        content,
        format="GIF",
        save_all=True,
        append_images=(reduced(picture) for picture in pictures[1:]),
        duration=[milliseconds] * (len(pictures) - 1) + [LAST_MILLISECONDS],
        loop=0,
    )
    return content.getvalue()
