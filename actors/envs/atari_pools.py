"""The two C++ pools behind the Atari environments, brought to one form.

Both step B games on their own threads, NEXT_STEP autoreset, and are asked for whole games and raw scores: lost lives,
signs and everything else that a learner sees differently is the business of `atari.py`.

| | EnvPool 1.2 | ale-py 0.12 AtariVectorEnv |
|-|-|-|
| own episodic life | up to 30 no-ops and FIRE after each lost life, their score lost | resets the whole game |
| reward | float32, raw in info even if clipped | int32, clipped by default, the raw one not in info |
| first stack | the first screen, repeated | zeros before the first screen |
| start of a game | no-ops (at least 1 in all), then FIRE | FIRE, then no-ops |
| time limit | agent steps; game over at that very step: truncated | frames; game over at that very step: terminated |
| screen at the time limit | like any other | lacks the very last frame |
| screens over 210 lines (Klax and 12 more) | the upper 210 lines | all lines, squeezed |
| seeds | when made | at reset |
| threads end with | the object, not `close()` | the object, not `close()` |

Neither hands out the same buffer twice: an observation stays what it was for as long as it is held.
"""

import functools
import importlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from metagrad.actors.envs.atari_config import AtariConfig

SCREEN_HEIGHT, SCREEN_WIDTH = 210, 160  # pixels of a colour view


class PoolStep(NamedTuple):
    """What a pool says of B games after one step; a game that ended is reset by the step that follows."""

    observation: np.ndarray  # uint8; [B, stack, H, W], or [B, 210, 160, 3] of a colour view
    raw_reward: np.ndarray  # float32 [B], the game's own score; 0 on a step that resets
    lives: np.ndarray  # int32 [B]; 0 in games without lives
    is_game_over: np.ndarray  # bool [B]
    is_time_limit: np.ndarray  # bool [B]; may coincide with the end of the game


class Pool(Protocol):
    """B Atari games stepped together."""

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        """Begin all B games; observations and lives."""
        ...

    def step(self, action: np.ndarray) -> PoolStep:
        """Step all B games with int32 actions [B]."""
        ...


class EnvPoolGames:
    """The games of EnvPool's `<Game>-v5`, which is NoFrameskip-v4 with preprocessing, not ALE/v5."""

    def __init__(self, config: AtariConfig, seeds: np.ndarray, *, threads: int, is_colour_view: bool) -> None:
        height, width = _screen(config, is_colour_view)
        self._is_colour_view = is_colour_view
        self._pool: Any = _import_envpool().make_gymnasium(
            f"{config.game}-v5",
            num_envs=len(seeds),
            num_threads=threads,
            seed=seeds.tolist(),
            max_episode_steps=config.max_episode_steps,
            noop_max=config.no_op_max,
            frame_skip=config.frame_skip,
            use_fire_reset=config.fire_on_reset,
            episodic_life=False,
            reward_clip=False,
            img_height=height,
            img_width=width,
            stack_num=1 if is_colour_view else config.stack_size,
            gray_scale=not is_colour_view,
            repeat_action_probability=config.sticky_action_probability,
            full_action_space=config.full_action_space,
        )

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        observation, info = self._pool.reset()
        return self._frames(observation), info["lives"]

    def step(self, action: np.ndarray) -> PoolStep:
        observation, reward, _, is_truncated, info = self._pool.step(action)
        return PoolStep(
            self._frames(observation), reward, info["lives"], info["terminated"].astype(np.bool_), is_truncated
        )

    def _frames(self, observation: np.ndarray) -> np.ndarray:
        return observation.transpose(0, 2, 3, 1) if self._is_colour_view else observation


class AleGames:
    """The games of ale-py's AtariVectorEnv."""

    def __init__(self, config: AtariConfig, seeds: np.ndarray, *, threads: int, is_colour_view: bool) -> None:
        from ale_py import AtariVectorEnv

        height, width = _screen(config, is_colour_view)
        self._is_colour_view = is_colour_view
        self._seeds = seeds
        self._pool: Any = AtariVectorEnv(
            config.rom_name,
            num_envs=len(seeds),
            num_threads=threads,
            autoreset_mode="NextStep",
            max_num_frames_per_episode=config.max_episode_steps * config.frame_skip,
            noop_max=config.no_op_max,
            frameskip=config.frame_skip,
            maxpool=True,
            use_fire_reset=config.fire_on_reset,
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            img_height=height,
            img_width=width,
            stack_num=1 if is_colour_view else config.stack_size,
            grayscale=not is_colour_view,
            repeat_action_probability=config.sticky_action_probability,
            full_action_space=config.full_action_space,
        )

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        observation, info = self._pool.reset(seed=self._seeds)
        return self._frames(observation), info["lives"]

    def step(self, action: np.ndarray) -> PoolStep:
        observation, reward, is_terminated, is_truncated, info = self._pool.step(action)
        return PoolStep(
            self._frames(observation), reward.astype(np.float32), info["lives"], is_terminated, is_truncated
        )

    def _frames(self, observation: np.ndarray) -> np.ndarray:
        return observation[:, 0] if self._is_colour_view else observation


def action_names(config: AtariConfig) -> tuple[str, ...]:
    """Names of the actions in both backends' order, e.g. ("NOOP", "FIRE", ...); EnvPool itself only counts them."""
    return _action_names(config.rom_name, config.full_action_space)


@functools.cache  # loading a ROM boots its console: 65 ms
def _action_names(rom_name: str, full_action_space: bool) -> tuple[str, ...]:
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    game = ALEInterface()
    path = roms.get_rom_path(rom_name)
    assert path is not None, rom_name  # every game of atari_games.py comes with ale-py
    game.loadROM(path)
    actions = game.getLegalActionSet() if full_action_space else game.getMinimalActionSet()
    return tuple(action.name for action in actions)


def _import_envpool() -> Any:
    """EnvPool, imported when games are made, since it takes a second, and on a call stack of its own.

    Where a library of one of its other environments is missing (Qt for Procgen), EnvPool keeps the ImportError, with
    it the call stack that imported it, and with that the local variables of every caller: the first pool would never
    be released, nor its threads.
    """
    with ThreadPoolExecutor(max_workers=1) as fresh_stack:
        return fresh_stack.submit(importlib.import_module, "envpool").result()


def _screen(config: AtariConfig, is_colour_view: bool) -> tuple[int, int]:
    return (SCREEN_HEIGHT, SCREEN_WIDTH) if is_colour_view else (config.frame_size, config.frame_size)


POOLS: dict[str, type[EnvPoolGames] | type[AleGames]] = {"envpool": EnvPoolGames, "ale": AleGames}
