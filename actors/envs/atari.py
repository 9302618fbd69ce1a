"""Makes Atari games for actors and for the eye, on EnvPool (default), ale-py's AtariVectorEnv or its scalar emulators.

A game is the same in training and in evaluation, and in all backends up to the table below; only what is called
terminal differs:

* Whole games are stepped. With `episodic_life`, in training, a lost life is terminal for the learner and the game
  continues. Both backends' own episodic life is left alone: EnvPool's plays up to 30 no-ops after each lost life and
  loses their score, ale-py's resets the whole game.
* With `fire_on_reset` (and FIRE among the game's actions) the step after a lost life presses FIRE whatever the action
  was, as in Baselines: Breakout would wait for it for ever. That step has `valid=False`, like the step that resets a
  finished game (NEXT_STEP autoreset). It is part of the game: it can carry a raw reward, and seldom ends the episode,
  so returns of whole games sum `raw_reward` over all steps, valid or not, up to `is_episode_end`.
* The screens before a lost life stay in the stack (Baselines clears it; the game's state does not change either).

The backends are `envpool`, `ale` (AtariVectorEnv) and `ale-snapshots` (`atari_consoles.py`), which plays what `ale`
plays, bit for bit, and whose games can be copied out and put back. All step B games on their own threads with NEXT_STEP
autoreset and are asked for whole games and raw scores. The first two differ in:

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

None hands out the same buffer twice: an observation stays what it was for as long as it is held. The backends are
imported when games are made, so that a configuration can be checked without them.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from metagrad.actors.envs.atari_consoles import ConsoleGames, ConsoleRules
from metagrad.actors.envs.atari_games import GAMES, GAMES_WITHOUT_EXACT_COPIES, close_games
from metagrad.actors.envs.base import EnvironmentConfig, EnvironmentSpec, EnvironmentStep
from metagrad.actors.envs.envpool import distinct_seeds, import_envpool
from metagrad.actors.envs.snapshots import checked_fields
from metagrad.errors import require

AtariBackend = Literal["envpool", "ale", "ale-snapshots"]

FRAMES_PER_SECOND = 60  # of the console
SCREEN_HEIGHT, SCREEN_WIDTH = 210, 160  # pixels of a colour view


@dataclass(frozen=True, kw_only=True, slots=True)
class AtariConfig(EnvironmentConfig):
    """Describes one Atari game and its preprocessing; all backends honour every value.

    Source: Mnih et al. 2015 (Nature 518), Methods and Extended Data Table 1, as completed by the wrappers of OpenAI
    Baselines (`atari_wrappers.py`), which the meta-gradient A2C experiments use.

    Raises:
        ConfigurationError: the game or backend is unknown, or a value is out of its range.
    """

    has_threads: ClassVar[bool] = True

    game: str = "Pong"  # name of the game, such as Pong
    backend: AtariBackend = "envpool"  # library that runs the games
    no_op_max: int = 30  # most no-ops at the start of a game (Mnih et al. 2015, Extended Data Table 1)
    frame_skip: int = 4  # frames per action; a screen is the maximum of the last 2 (Mnih et al. 2015, Methods)
    episodic_life: bool = True  # True: in training a lost life is terminal (Mnih et al. 2015, Methods)
    fire_on_reset: bool = True  # True: press FIRE at the start and after a lost life, in evaluation too (Baselines)
    frame_size: int = 84  # pixels of a grey screen's side, by area interpolation (Mnih et al. 2015; Baselines)
    stack_size: int = 4  # number of last screens in an observation (Mnih et al. 2015, "agent history length")
    sign_reward: bool = True  # True: the learner's reward is the sign of the score's change (Mnih et al. 2015)
    sticky_action_probability: float = 0.0  # of repeating an action; Machado et al. 2018 recommend 0.25
    full_action_space: bool = False  # True: all 18 actions (Machado et al. 2018); False: the game's own
    max_episode_steps: int = 27_000  # agent steps; 27,000 are 30 minutes of play (van Hasselt et al. 2016)

    def __post_init__(self) -> None:
        if self.game not in GAMES:
            near = " or ".join(close_games(self.game))
            remedy = f"did you mean {near}?" if near else f"names are written like {', '.join(list(GAMES)[:3])}"
            require(False, "env.game", self.game, f"none of the {len(GAMES)} Atari games", remedy)
        backends = get_args(AtariBackend)
        require(self.backend in backends, "env.backend", self.backend, f"one of {backends}", "envpool is the default")
        is_exact = not (self.has_snapshots and self.game in GAMES_WITHOUT_EXACT_COPIES)
        rule = f"ale-py's copies of {self.game} do not go on as the game does"
        require(is_exact, "env.backend", self.backend, rule, "use envpool or ale")
        # The backends count in 32 bits and give screens of 210 x 160 pixels.
        for name, low, high, remedy in (
            ("no_op_max", 1, 1_000, "1 is the shortest random start"),
            ("frame_skip", 2, 1_000, "a screen joins the last 2 frames"),
            ("frame_size", 1, 1_000, "84 is what networks expect"),
            ("stack_size", 1, 1_000, "1 shows the present screen only"),
            ("max_episode_steps", 1, 2**31 - 1, "27000 is usual"),
        ):
            self.require_whole(name, low, high, remedy)
        sticky = self.sticky_action_probability
        require(0 <= sticky < 1, "env.sticky_action_probability", sticky, "in [0, 1)", "0 never repeats an action")

    @property
    def rom_name(self) -> str:
        """Return the name of the game's ROM, which is the same in both backends."""
        return GAMES[self.game]

    @property
    def has_snapshots(self) -> bool:
        """Return whether the state of the games can be copied out and put back."""
        return self.backend == "ale-snapshots"

    @property
    def has_pictures(self) -> bool:
        """Return True: every game has a screen."""
        return True

    def make_pictured(self, seed: int) -> "PicturedAtari":
        """Make one game with its screen in colours."""
        return PicturedAtari(self, seed)

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "AtariEnvironment":
        """Make B games on the host, whatever the device."""
        del device
        return make_atari(self, batch_size=batch_size, seed=seed, threads=threads, is_training=is_training)


class RawStep(NamedTuple):
    """Holds what a backend returns for B games after one step; the step after a game's end resets the game."""

    observation: np.ndarray  # uint8; [B, stack, H, W], or [B, 210, 160, 3] of a colour view
    raw_reward: np.ndarray  # float32 [B], the game's own score; 0 on a step that resets
    lives: np.ndarray  # int32 [B]; 0 in games without lives
    is_game_over: np.ndarray  # bool [B]
    is_time_limit: np.ndarray  # bool [B]; may coincide with the end of the game


class RawGames(Protocol):
    """Steps B whole Atari games together on one backend."""

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        """Begin all B games; return observations and lives."""
        ...

    def step(self, action: np.ndarray) -> RawStep:
        """Step all B games with int32 actions [B]."""
        ...


def _shared_arguments(config: AtariConfig, seeds: np.ndarray, threads: int, is_colour_view: bool) -> dict[str, Any]:
    """Return the arguments that both backends know by the same name."""
    return {
        "num_envs": len(seeds),
        "num_threads": threads,
        "noop_max": config.no_op_max,
        "use_fire_reset": config.fire_on_reset,
        "episodic_life": False,
        "img_height": SCREEN_HEIGHT if is_colour_view else config.frame_size,
        "img_width": SCREEN_WIDTH if is_colour_view else config.frame_size,
        "stack_num": 1 if is_colour_view else config.stack_size,
        "repeat_action_probability": config.sticky_action_probability,
        "full_action_space": config.full_action_space,
    }


class EnvPoolGames:
    """Steps the games of EnvPool's `<Game>-v5`, which is NoFrameskip-v4 with preprocessing, not ALE/v5."""

    def __init__(self, config: AtariConfig, seeds: np.ndarray, *, threads: int, is_colour_view: bool) -> None:
        self._is_colour_view = is_colour_view
        self._pool: Any = import_envpool().make_gymnasium(
            f"{config.game}-v5",
            seed=seeds.tolist(),
            max_episode_steps=config.max_episode_steps,
            frame_skip=config.frame_skip,
            reward_clip=False,
            gray_scale=not is_colour_view,
            **_shared_arguments(config, seeds, threads, is_colour_view),
        )

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        observation, info = self._pool.reset()
        return self._frames(observation), info["lives"]

    def step(self, action: np.ndarray) -> RawStep:
        observation, reward, _, is_truncated, info = self._pool.step(action)
        is_game_over = info["terminated"].astype(np.bool_)
        return RawStep(self._frames(observation), reward, info["lives"], is_game_over, is_truncated)

    def _frames(self, observation: np.ndarray) -> np.ndarray:
        return observation.transpose(0, 2, 3, 1) if self._is_colour_view else observation


class AleGames:
    """Steps the games of ale-py's AtariVectorEnv."""

    def __init__(self, config: AtariConfig, seeds: np.ndarray, *, threads: int, is_colour_view: bool) -> None:
        from ale_py import AtariVectorEnv

        self._is_colour_view = is_colour_view
        self._seeds = seeds
        self._pool: Any = AtariVectorEnv(
            config.rom_name,
            autoreset_mode="NextStep",
            max_num_frames_per_episode=config.max_episode_steps * config.frame_skip,
            frameskip=config.frame_skip,
            maxpool=True,
            life_loss_info=False,
            reward_clipping=False,
            grayscale=not is_colour_view,
            **_shared_arguments(config, seeds, threads, is_colour_view),
        )

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        observation, info = self._pool.reset(seed=self._seeds)
        return self._frames(observation), info["lives"]

    def step(self, action: np.ndarray) -> RawStep:
        observation, reward, is_game_over, is_truncated, info = self._pool.step(action)
        return RawStep(self._frames(observation), reward.astype(np.float32), info["lives"], is_game_over, is_truncated)

    def _frames(self, observation: np.ndarray) -> np.ndarray:
        return observation[:, 0] if self._is_colour_view else observation


class AleSnapshotGames:
    """Steps games on ale-py's scalar emulators, which can be copied."""

    def __init__(self, config: AtariConfig, seeds: np.ndarray, *, threads: int, is_colour_view: bool) -> None:
        rules = ConsoleRules(
            rom_name=config.rom_name,
            no_op_max=config.no_op_max,
            frame_skip=config.frame_skip,
            fire_on_reset=config.fire_on_reset,
            height=SCREEN_HEIGHT if is_colour_view else config.frame_size,
            width=SCREEN_WIDTH if is_colour_view else config.frame_size,
            stack_size=1 if is_colour_view else config.stack_size,
            is_grey=not is_colour_view,
            sticky_action_probability=config.sticky_action_probability,
            full_action_space=config.full_action_space,
            max_episode_frames=config.max_episode_steps * config.frame_skip,
        )
        self._is_colour_view = is_colour_view
        self.consoles = ConsoleGames(rules, seeds, threads)

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        observation, lives = self.consoles.reset()
        return self.frames(observation), lives

    def step(self, action: np.ndarray) -> RawStep:
        observation, *rest = self.consoles.step(action)
        return RawStep(self.frames(observation), *rest)

    def frames(self, observation: np.ndarray) -> np.ndarray:
        return observation[:, 0] if self._is_colour_view else observation


BACKENDS: dict[AtariBackend, type[EnvPoolGames] | type[AleGames] | type[AleSnapshotGames]] = {
    "envpool": EnvPoolGames,
    "ale": AleGames,
    "ale-snapshots": AleSnapshotGames,
}


def action_names(config: AtariConfig) -> tuple[str, ...]:
    """Return the actions' names in all backends' order, e.g. ("NOOP", "FIRE", ...); EnvPool only counts them."""
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


class AtariEnvironment:
    """B games of one backend that behave as an `Environment` (NEXT_STEP autoreset, CPU tensors)."""

    def __init__(self, games: RawGames, spec: EnvironmentSpec, config: AtariConfig, *, is_training: bool) -> None:
        self.spec = spec
        self._games: RawGames | None = games
        self._sign_reward = config.sign_reward
        self._is_life_terminal = config.episodic_life and is_training
        has_fire = config.fire_on_reset and "FIRE" in spec.action_names
        self._fire = spec.action_names.index("FIRE") if has_fire else None
        self._lives = np.zeros(spec.batch_size, np.int32)
        self._resets_next = np.zeros(spec.batch_size, np.bool_)  # the game ended: the next step only resets it
        self._fires_next = np.zeros(spec.batch_size, np.bool_)  # a life was lost: the next step presses FIRE

    def reset(self) -> UInt8[Tensor, "B ..."]:
        """Start all B games and return their first observations; called once."""
        observation, self._lives = self._running().reset()
        self._resets_next = np.zeros(self.spec.batch_size, np.bool_)
        self._fires_next = np.zeros(self.spec.batch_size, np.bool_)
        return torch.from_numpy(observation)

    def step(self, action: Int[Tensor, "B"]) -> EnvironmentStep:
        """Step all B games once; the action of a step with `valid=False` is ignored."""
        chosen = action.to(device="cpu", dtype=torch.int32).numpy()
        if self._fire is not None:
            chosen = np.where(self._fires_next, np.int32(self._fire), chosen)
        game = self._running().step(chosen)
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
        """Let the games go, and with them their threads (all backends tie them to the object, not to `close()`)."""
        self._games = None

    def _running(self) -> RawGames:
        if self._games is None:
            raise RuntimeError("the Atari environment was closed")
        return self._games


class AtariSnapshotEnvironment(AtariEnvironment):
    """B games whose state can be copied out and put back (a `SnapshotEnvironment`)."""

    def observe(self) -> UInt8[Tensor, "B ..."]:
        """Return the observation of the present states, without stepping."""
        games = self._copyable()
        return torch.from_numpy(games.frames(games.consoles.observe()))

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the state by name; "generator" is the state of the random numbers."""
        copied = self._copyable().consoles.snapshot() | self._own()
        return {name: torch.from_numpy(value) for name, value in copied.items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put a copy of a snapshot back; without a "generator" in it, the own one continues (a fork)."""
        consoles = self._copyable().consoles
        expected = {name: torch.from_numpy(value.copy()) for name, value in (consoles.like() | self._own()).items()}
        fields = {name: x.numpy() for name, x in checked_fields(snapshot, expected, self.spec.name).items()}
        generator = snapshot.get("generator")
        consoles.restore(fields, None if generator is None else generator.cpu().numpy())
        self._lives, self._fires_next, self._resets_next = (fields[name] for name in self._own())

    def _own(self) -> dict[str, np.ndarray]:
        own = {"lives": self._lives, "fires_next": self._fires_next, "resets_next": self._resets_next}
        return {name: value.copy() for name, value in own.items()}

    def _copyable(self) -> AleSnapshotGames:
        games = self._running()
        assert isinstance(games, AleSnapshotGames)
        return games


def make_atari(
    config: AtariConfig, *, batch_size: int, seed: int, threads: int, is_training: bool, is_colour_view: bool = False
) -> AtariEnvironment:
    """Make B Atari games with observations uint8 [B, stack_size, frame_size, frame_size].

    Args:
        config: the game and its preprocessing.
        batch_size: B, the number of games.
        seed: non-negative; the B games get distinct seeds derived from it. Results do not depend on `threads`.
        threads: threads of the backend, at least 1.
        is_training: a lost life is terminal, if `config.episodic_life`.
        is_colour_view: show colour screens for video, uint8 [B, 210, 160, 3]. The games are the same: after the same
            actions all but `observation` is identical at every step.

    Raises:
        ConfigurationError: batch size, seed or threads are out of range.
    """
    require(batch_size >= 1, "batch_size", batch_size, "at least 1", "give the number of games")
    require(seed >= 0, "seed", seed, "not negative", "use 0 or more")
    require(threads >= 1, "threads", threads, "at least 1", "give the threads that the games may use")
    seeds = distinct_seeds(seed, batch_size)
    games = BACKENDS[config.backend](config, seeds, threads=threads, is_colour_view=is_colour_view)
    grey = (config.stack_size, config.frame_size, config.frame_size)
    spec = EnvironmentSpec(
        batch_size=batch_size,
        observation_shape=(SCREEN_HEIGHT, SCREEN_WIDTH, 3) if is_colour_view else grey,
        observation_dtype=torch.uint8,
        action_names=action_names(config),
        device=torch.device("cpu"),
        name=config.game,
        is_frame_stack=not is_colour_view and config.stack_size > 1,
    )
    kind = AtariSnapshotEnvironment if config.has_snapshots else AtariEnvironment
    return kind(games, spec, config, is_training=is_training)


class PicturedAtari:
    """Plays one game twice: one twin returns what the policy was trained on, the other has colours for a person."""

    def __init__(self, config: AtariConfig, seed: int) -> None:
        cpu = torch.device("cpu")
        self._game = config.make(batch_size=1, seed=seed, device=cpu, threads=1, is_training=False)
        self._view = make_atari(config, batch_size=1, seed=seed, threads=1, is_training=False, is_colour_view=True)
        self.spec = self._game.spec
        self.milliseconds = 10 * round(100 * config.frame_skip / FRAMES_PER_SECOND)

    def reset(self) -> UInt8[Tensor, "1 ..."]:
        """Start the game."""
        self._screen = self._view.reset()
        return self._game.reset()

    def step(self, action: Int[Tensor, "1"]) -> EnvironmentStep:
        """Step both twins."""
        step, shown = self._game.step(action), self._view.step(action)
        assert torch.equal(step.raw_reward, shown.raw_reward), "the twin environments play different games"
        self._screen = shown.observation
        return step

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """Return the screen."""
        return self._screen[0].numpy()

    def close(self) -> None:
        """Close both twins."""
        self._game.close()
        self._view.close()
