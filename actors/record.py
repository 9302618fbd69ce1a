"""Records one full-life episode as a GIF that a person can look at."""

from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metagrad.actors.envs import EnvironmentConfig
from metagrad.actors.envs.base import PicturedEnvironment
from metagrad.actors.evaluate import Player
from metagrad.errors import require
from metagrad.networks import Network

MAX_STEPS = 2_000  # a cap on memory and file size; of Atari (frame skip 4) 2 minutes 13 seconds
PICTURE_SIZE = 400  # pixels, roughly, of a picture's longer side; smaller ones are magnified
LAST_MILLISECONDS = 1_500  # the end stays on show before the loop begins again
PALETTE_PICTURES = 16  # pictures that the common palette is made from


class RecordedEpisode(NamedTuple):
    """Holds the recording of an episode."""

    gif: bytes
    episode_return: float  # raw rewards of the game, undiscounted
    length: int  # steps in which the policy acted
    is_complete: bool  # False: cut at `max_steps`, and `episode_return` with it


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
    """Play one full-life episode on the CPU and make a looped GIF of it, in real time.

    A longer episode is cut at `max_steps` environment steps, which `is_complete` tells.

    Raises:
        ConfigurationError: there are no pictures or no step to record, or the seed is negative.
    """
    require(max_steps >= 1, "max_steps", max_steps, "at least 1", "give the steps to record")
    require(seed >= 0, "seed", seed, "not negative", "use 0 or more")
    environment_seed, policy_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    with closing(config.make_pictured(environment_seed)) as environment:
        player = Player(network, theta.cpu(), policy_seed, is_greedy)
        frames = list(_play(environment, player, max_steps))
        gif = _gif([frame.picture for frame in frames], environment.milliseconds)
    episode_return = sum(frame.raw_reward for frame in frames)
    return RecordedEpisode(gif, episode_return, sum(frame.valid for frame in frames), frames[-1].is_episode_end)


def _play(environment: PicturedEnvironment, player: Player, max_steps: int) -> Iterator[_Frame]:
    observation = environment.reset()
    yield _Frame(environment.picture(), 0.0, False, False)
    for _ in range(max_steps):
        step = environment.step(player.act(observation))
        player.see(step)
        is_end = bool(step.is_episode_end)
        yield _Frame(environment.picture(), float(step.raw_reward), bool(step.valid), is_end)
        if is_end:
            return
        observation = step.observation


def _gif(pictures: list[NDArray[np.uint8]], milliseconds: int) -> bytes:
    """Make a looped GIF that shows each picture for `milliseconds` (a multiple of 10), magnified if it is small."""
    scale = max(1, round(PICTURE_SIZE / max(pictures[0].shape)))
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
