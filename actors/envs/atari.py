"""Atari games for actors and for the eye, on EnvPool (default) or ale-py's AtariVectorEnv.

A game is the same in training and in evaluation, and in both backends up to the table in `atari_pools.py`; only what
is called terminal differs:

* Whole games are stepped. With `episodic_life`, in training, a lost life is terminal for the learner and the game
  goes on. Both backends' own episodic life is left alone: EnvPool's plays up to 30 no-ops after each lost life and
  loses their score, ale-py's resets the whole game.
* With `fire_on_reset` (and FIRE among the game's actions) the step after a lost life presses FIRE whatever the action
  was, as in Baselines: Breakout would wait for it for ever. That step has `valid=False`, like the step that resets a
  finished game (NEXT_STEP autoreset). It is part of the game: it can carry a raw reward, and seldom ends the episode,
  so returns of whole games sum `raw_reward` over all steps, valid or not, up to `is_episode_end`.
* The screens before a lost life stay in the stack (Baselines clears it; the game's state does not change either).
"""

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from metagrad.actors.envs.atari_config import AtariBackend, AtariConfig
from metagrad.actors.envs.atari_pools import POOLS, SCREEN_HEIGHT, SCREEN_WIDTH, Pool, action_names
from metagrad.actors.envs.base import EnvironmentSpec, EnvironmentStep
from metagrad.errors import require

__all__ = ["AtariBackend", "AtariConfig", "AtariEnvironment", "make_atari", "make_atari_view"]


class AtariEnvironment:
    """B games of one pool behind the `Environment` protocol (NEXT_STEP autoreset, CPU tensors)."""

    def __init__(self, pool: Pool, spec: EnvironmentSpec, config: AtariConfig, *, is_training: bool) -> None:
        self.spec = spec
        self._pool: Pool | None = pool
        self._sign_reward = config.sign_reward
        self._is_life_terminal = config.episodic_life and is_training
        has_fire = config.fire_on_reset and "FIRE" in spec.action_names
        self._fire = spec.action_names.index("FIRE") if has_fire else None
        self._lives = np.zeros(spec.batch_size, np.int32)
        self._resets_next = np.zeros(spec.batch_size, np.bool_)  # the game ended: the next step only resets it
        self._fires_next = np.zeros(spec.batch_size, np.bool_)  # a life was lost: the next step presses FIRE

    def reset(self) -> UInt8[Tensor, "B ..."]:
        """First observations of all B games; called once."""
        observation, self._lives = self._open_pool().reset()
        self._resets_next = np.zeros(self.spec.batch_size, np.bool_)
        self._fires_next = np.zeros(self.spec.batch_size, np.bool_)
        return torch.from_numpy(observation)

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Step all B games once; the action of a step with `valid=False` is ignored."""
        chosen = action.to(device="cpu", dtype=torch.int32).numpy()
        if self._fire is not None:
            chosen = np.where(self._fires_next, np.int32(self._fire), chosen)
        game = self._open_pool().step(chosen)
        valid = ~(self._resets_next | self._fires_next)
        is_episode_end = game.is_game_over | game.is_time_limit
        # Qbert shows 0 lives for some frames before the game is over, hence 0 < lives (Baselines EpisodicLifeEnv)
        is_life_lost = (0 < game.lives) & (game.lives < self._lives) & ~self._resets_next
        is_terminal = game.is_game_over | is_life_lost if self._is_life_terminal else game.is_game_over
        self._lives = game.lives
        self._resets_next = is_episode_end
        if self._fire is not None:
            self._fires_next = is_life_lost & ~is_episode_end
        raw_reward = torch.from_numpy(game.raw_reward)
        return EnvironmentStep(
            observation=torch.from_numpy(game.observation),
            reward=raw_reward.sign() if self._sign_reward else raw_reward,
            is_terminal=torch.from_numpy(is_terminal),
            is_truncated=torch.from_numpy(game.is_time_limit & ~is_terminal),
            valid=torch.from_numpy(valid),
            raw_reward=raw_reward,
            is_episode_end=torch.from_numpy(is_episode_end),
        )

    def close(self) -> None:
        """Let the pool go, and with it its threads (both backends end them with the object, not with `close()`)."""
        self._pool = None

    def _open_pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("the Atari environment was closed")
        return self._pool


def make_atari(config: AtariConfig, batch_size: int, seed: int, *, threads: int, is_training: bool) -> AtariEnvironment:
    """B Atari games with observations uint8 [B, stack_size, frame_size, frame_size].

    Args:
        config: the game and its preprocessing.
        batch_size: B, the number of games.
        seed: non-negative; the B games get distinct seeds derived from it. Results do not depend on `threads`.
        threads: threads of the pool, at least 1.
        is_training: a lost life is terminal, if `config.episodic_life`.

    Raises ConfigurationError: batch size, seed or threads out of range.
    """
    shape = (config.stack_size, config.frame_size, config.frame_size)
    return _make(config, batch_size, seed, shape, threads=threads, is_training=is_training, is_colour_view=False)


def make_atari_view(
    config: AtariConfig, batch_size: int, seed: int, *, threads: int, is_training: bool
) -> AtariEnvironment:
    """Twin of `make_atari` that shows colour screens, uint8 [B, 210, 160, 3], for video.

    Same arguments and same actions give the same games: all but `observation` is identical at every step.

    Raises ConfigurationError: as `make_atari`.
    """
    shape = (SCREEN_HEIGHT, SCREEN_WIDTH, 3)
    return _make(config, batch_size, seed, shape, threads=threads, is_training=is_training, is_colour_view=True)


def _make(
    config: AtariConfig,
    batch_size: int,
    seed: int,
    observation_shape: tuple[int, ...],
    *,
    threads: int,
    is_training: bool,
    is_colour_view: bool,
) -> AtariEnvironment:
    require(batch_size >= 1, "batch_size", batch_size, "at least 1", "give the number of games")
    require(seed >= 0, "seed", seed, "not negative", "use 0 or more")
    require(threads >= 1, "threads", threads, "at least 1", "give the threads that the games may use")
    pool = POOLS[config.backend](config, game_seeds(seed, batch_size), threads=threads, is_colour_view=is_colour_view)
    spec = EnvironmentSpec(
        batch_size=batch_size,
        observation_shape=observation_shape,
        observation_dtype=torch.uint8,
        action_names=action_names(config),
        device=torch.device("cpu"),
        name=config.game,
    )
    return AtariEnvironment(pool, spec, config, is_training=is_training)


def game_seeds(seed: int, batch_size: int) -> np.ndarray:
    """Distinct seeds [B] in [1, 2^31 - 2], the backends' range, derived from `seed` through numpy's SeedSequence."""
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    return 1 + generator.choice(2**31 - 2, size=batch_size, replace=False)
