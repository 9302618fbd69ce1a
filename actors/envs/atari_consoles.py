"""Steps Atari games on ale-py's scalar emulators, whose state can be copied out and put back.

Screens, rewards, ends and seeds are bit for bit those of ale-py's AtariVectorEnv, whose preprocessing is written again
here (`src/ale/vector/preprocessed_env.cpp` of ale-py 0.12): FIRE and then no-ops at the start of a game, a stack that
begins with zeros, the maximum of the last two frames that a step captured, OpenCV's area interpolation. A frame at
which a game or the time limit ends is not captured.

A copy of a game holds the emulator's state as ale-py serialises it, the last joined screen, the stack and the counts.
Sticky actions are drawn here, from the numbers that ale-py would draw, since its states lack the action that would be
repeated. Two streams of random numbers are then all that is random, and they are copied apart: of sticky actions and of
no-ops.

OpenCV and ale-py are imported when games are made, so that a configuration can be checked without them.
"""

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metagrad.errors import require

T = TypeVar("T")

# Bytes kept for an emulator's state, whose length varies by a few; the longest ones of the 104 games have 8256. Before
# it stand its length and the checksum of its game's name: ale-py cannot refuse the state of another game.
STATE_BYTES = 9 * 1024
_HEADER = struct.Struct("<II")


class ConsoleStep(NamedTuple):
    """Holds what B games show after a step or a reset."""

    observation: np.ndarray  # uint8 [B, stack, H, W], or [B, stack, H, W, 3] in colour
    raw_reward: np.ndarray  # float32 [B]
    lives: np.ndarray  # int32 [B]
    is_game_over: np.ndarray  # bool [B]
    is_time_limit: np.ndarray  # bool [B]


class ConsoleRules(NamedTuple):
    """Says how games are played and shown, the same for all games of a batch."""

    rom_name: str
    no_op_max: int
    frame_skip: int
    fire_on_reset: bool
    height: int
    width: int
    stack_size: int
    is_grey: bool
    sticky_action_probability: float
    full_action_space: bool
    max_episode_frames: int


def mersenne_twister(seed: int) -> np.random.MT19937:
    """Return the stream of C++'s `std::mt19937` with this seed, which only numpy's older interface seeds alike."""
    stream = np.random.MT19937()
    state: Any = np.random.RandomState(seed).get_state(legacy=False)
    stream.state = state
    return stream


def uniform_int(stream: np.random.MT19937, count: int) -> int:
    """Draw from 0 … count - 1 as `std::uniform_int_distribution` draws from `std::mt19937` in GNU's C++ library.

    Source: Lemire 2019, Fast Random Integer Generation in an Interval, Algorithm 5 (libstdc++ since GCC 11).
    """
    product = stream.random_raw() * count
    if product % 2**32 < count:
        threshold = 2**32 % count
        while product % 2**32 < threshold:
            product = stream.random_raw() * count
    return product >> 32


class Console:
    """Plays one Atari game: an emulator, its stack of screens and its random streams."""

    def __init__(self, rules: ConsoleRules, seed: int) -> None:
        import ale_py
        import cv2

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._state_from: Callable[[bytes], Any] = ale_py.ALEState
        self._resize, self._area = cv2.resize, cv2.INTER_AREA
        self._rules = rules
        self._size = (rules.width, rules.height)
        self._emulator: Any = ale_py.ALEInterface()
        self._emulator.setFloat("repeat_action_probability", 0.0)
        self._emulator.setInt("random_seed", seed)
        path = ale_py.roms.get_rom_path(rules.rom_name)
        assert path is not None, rules.rom_name  # every game of atari_games.py comes with ale-py
        self._emulator.loadROM(path)
        game = self._emulator
        actions = game.getLegalActionSet() if rules.full_action_space else game.getMinimalActionSet()
        self._actions = [action.value for action in actions]
        self._fire = ale_py.Action.FIRE.value
        self._has_fire = rules.fire_on_reset and self._fire in self._actions
        self._repeats_below = float(np.float32(rules.sticky_action_probability)) * 2**32  # ale-py keeps a float32
        self._streams = {"no_ops": mersenne_twister(seed), "sticky": mersenne_twister(seed)}
        self._pressed = 0  # the action of the last frame
        channels = () if rules.is_grey else (3,)
        self._capture = game.getScreenGrayscale if rules.is_grey else game.getScreenRGB
        self._screens = np.zeros((2, *game.getScreenDims(), *channels), np.uint8)  # the last two that were captured
        self.stack = np.zeros((rules.stack_size, rules.height, rules.width, *channels), np.uint8)
        self.frames = 0  # of the game
        self.raw_reward = 0  # of the last step
        self.is_game_over = False

    @property
    def lives(self) -> int:
        return int(self._emulator.lives())

    @property
    def is_time_limit(self) -> bool:
        return self.frames >= self._rules.max_episode_frames and not self.is_game_over

    def reset(self) -> None:
        """Begin a game."""
        self._emulator.reset_game()
        self._pressed = 0
        if self._has_fire:
            self._act(self._fire)
        for _ in range(uniform_int(self._streams["no_ops"], self._rules.no_op_max) - self._has_fire):
            self._act(0)
            if self._emulator.game_over():
                self._emulator.reset_game()
                self._pressed = 0
        self._capture(self._screens[0])
        self._screens[1] = 0
        self.stack[:] = 0
        self._push_screen()
        self.frames, self.raw_reward, self.is_game_over = 0, 0, False

    def _act(self, action: int) -> int:
        """Step one frame; return its reward."""
        if self._repeats_below:
            stream = self._streams["sticky"]
            if stream.random_raw() >= self._repeats_below:
                self._pressed = action
            stream.random_raw()  # for the second player, who is not there
        else:
            self._pressed = action
        return int(self._emulator.act(self._pressed))

    def step(self, action: int) -> None:
        """Take one action for as many frames as are skipped; where the game has ended, only begin another one."""
        if self.is_game_over or self.is_time_limit:
            self.reset()
            return
        emulator, act, chosen, reward = self._emulator, self._act, self._actions[action], 0
        if not self._repeats_below:
            act, self._pressed = emulator.act, chosen
        for left in range(self._rules.frame_skip - 1, -1, -1):
            reward += act(chosen)
            self.frames += 1
            self.is_game_over = emulator.game_over()
            if self.is_game_over or self.frames >= self._rules.max_episode_frames:
                break
            if left < 2:
                self._capture(self._screens[left])
        self.raw_reward = reward
        self._push_screen()

    def _push_screen(self) -> None:
        screen, stack = self._screens[0], self.stack
        np.maximum(screen, self._screens[1], out=screen)
        stack[:-1] = stack[1:]
        if screen.shape == stack.shape[1:]:
            stack[-1] = screen
        else:
            self._resize(screen, self._size, dst=stack[-1], interpolation=self._area)

    def copy(self) -> dict[str, Any]:
        """Copy the game, without its random numbers."""
        return {
            "emulator": self._copied_emulator(),
            "screen": self._screens[0].copy(),  # nowhere darker than the other one, with which it was joined
            "stack": self.stack.copy(),
            "frames": np.int64(self.frames),
            "is_game_over": np.bool_(self.is_game_over),
            "pressed": np.int64(self._pressed),
        }

    def _copied_emulator(self) -> np.ndarray:
        state = self._emulator.cloneState().serialize()
        kept = _HEADER.pack(len(state), zlib.crc32(self._rules.rom_name.encode())) + state
        assert len(kept) <= STATE_BYTES, f"ale-py's state has grown to {len(state)} bytes"
        return np.frombuffer(kept.ljust(STATE_BYTES, b"\0"), np.uint8)

    def copy_streams(self) -> np.ndarray:
        """Copy the random numbers to come, as uint8: of each stream 624 words and the place among them."""
        states: Any = [stream.state["state"] for stream in self._streams.values()]
        words = [np.append(state["key"], np.uint32(state["pos"])) for state in states]
        return np.concatenate(words).view(np.uint8)

    def put_back(self, game: dict[str, Any], streams: np.ndarray | None) -> None:
        """Continue from a copy; without random numbers in it, the own ones continue.

        Raises:
            ConfigurationError: the copy is not of this game.
        """
        state, name = game["emulator"].tobytes(), self._rules.rom_name
        size, checksum = _HEADER.unpack_from(state)
        is_own = checksum == zlib.crc32(name.encode())
        require(is_own, "snapshot[emulator]", f"{size} bytes", f"is no state of {name}", f"restore one of {name}")
        self._emulator.restoreState(self._state_from(state[_HEADER.size : _HEADER.size + size]))
        self._screens[0], self._screens[1] = game["screen"], 0
        self.stack[:] = game["stack"]
        self.frames, self.is_game_over = int(game["frames"]), bool(game["is_game_over"])
        self._pressed = int(game["pressed"])
        if streams is not None:
            for stream, words in zip(self._streams.values(), streams.view(np.uint32).reshape(2, -1), strict=True):
                inner: Any = {"key": words[:-1], "pos": int(words[-1])}
                stream.state = {"bit_generator": "MT19937", "state": inner}


class ConsoleGames:
    """Steps B consoles with NEXT_STEP autoreset, in threads that each keep some of them."""

    def __init__(self, rules: ConsoleRules, seeds: np.ndarray, threads: int) -> None:
        """Make the consoles.

        Raises:
            ConfigurationError: OpenCV is not installed.
        """
        rule, remedy = "needs OpenCV, which is not installed", "pip install 'metagrad[ale-snapshots]'"
        require(find_spec("cv2") is not None, "env.backend", "ale-snapshots", rule, remedy)
        shares = np.array_split(np.arange(len(seeds)), min(threads, len(seeds)))
        self._shares = [share.tolist() for share in shares]
        self._threads = ThreadPoolExecutor(len(shares)) if len(shares) > 1 else None
        self._consoles = self._each(lambda index: Console(rules, int(seeds[index])))
        self._has_begun = False

    def _each(self, function: Callable[[int], T]) -> list[T]:
        """Call a function for every game, in the thread that keeps it; return what it returned."""

        def of_share(share: list[int]) -> list[T]:
            return [function(index) for index in share]

        results = map(of_share, self._shares) if self._threads is None else self._threads.map(of_share, self._shares)
        return [result for share in results for result in share]

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        """Begin all games; return observations and lives."""
        self._has_begun = True
        self._each(lambda index: self._consoles[index].reset())
        shown = self._shown()
        return shown.observation, shown.lives

    def step(self, action: np.ndarray) -> ConsoleStep:
        """Step all games with actions [B]."""
        consoles, actions = self._running(), action.tolist()
        self._each(lambda index: consoles[index].step(actions[index]))
        return self._shown()

    def observe(self) -> np.ndarray:
        """Return what the games show now."""
        return np.stack([console.stack for console in self._running()])

    def _shown(self) -> ConsoleStep:
        every = self._consoles
        return ConsoleStep(
            self.observe(),
            np.array([console.raw_reward for console in every], np.float32),
            np.array([console.lives for console in every], np.int32),
            np.array([console.is_game_over for console in every], np.bool_),
            np.array([console.is_time_limit for console in every], np.bool_),
        )

    def snapshot(self) -> dict[str, np.ndarray]:
        """Copy all games by name, and their random numbers as "generator"."""
        self._running()
        return {**self._copied(self._consoles), "generator": self._streams()}

    def like(self) -> dict[str, np.ndarray]:
        """Return arrays of the types and shapes that a snapshot holds, without its "generator"."""
        one = self._copied(self._consoles[:1])
        return {name: np.broadcast_to(value[0], (len(self._consoles), *value.shape[1:])) for name, value in one.items()}

    @staticmethod
    def _copied(consoles: list[Console]) -> dict[str, np.ndarray]:
        copies = [console.copy() for console in consoles]
        return {name: np.stack([copy[name] for copy in copies]) for name in copies[0]}

    def _streams(self) -> np.ndarray:
        return np.concatenate([console.copy_streams() for console in self._consoles])

    def restore(self, games: dict[str, np.ndarray], generator: np.ndarray | None) -> None:
        """Put copies back; without random numbers, the games' own ones continue."""
        self._has_begun = True
        streams = [None] * len(self._consoles) if generator is None else np.split(generator, len(self._consoles))
        for index, (console, stream) in enumerate(zip(self._consoles, streams, strict=True)):
            console.put_back({name: values[index] for name, values in games.items()}, stream)

    def _running(self) -> list[Console]:
        if not self._has_begun:
            raise RuntimeError("no games to step or observe; call reset() or restore(snapshot) first")
        return self._consoles
