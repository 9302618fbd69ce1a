"""Makes any task that EnvPool has: classic control, toy text, Box2D, MiniGrid, MuJoCo and others.

Returns are raw, an episode that reaches its time limit is truncated, and resets are NEXT_STEP: EnvPool steps a task
again after its end, ignores the action and returns the first observation of the next episode.
"""

import importlib
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from metagrad.actors.envs.base import MAX_STEPS, EnvironmentConfig, EnvironmentStep
from metagrad.actors.envs.spaces import actions, observations, specification
from metagrad.errors import ConfigurationError, require


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvPoolConfig(EnvironmentConfig):
    """Describes a task of EnvPool.

    Raises:
        ConfigurationError: a value is out of its range; when it is made, the task is none, or has a space or several
            agents that are not taken.
    """

    has_threads: ClassVar[bool] = True

    task: str = "CartPole-v1"
    """Name of the task, such as CartPole-v1 or MiniGrid-Empty-5x5-v0."""
    reward_scale: float = 1.0
    """Factor of the learner's reward; returns stay raw."""
    max_episode_steps: int | None = None
    """Truncate an episode after this many steps; None: the task's own limit."""

    def __post_init__(self) -> None:
        self.require_reward_scale(self.reward_scale)
        if self.max_episode_steps is not None:
            self.require_whole("max_episode_steps", 1, MAX_STEPS)

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "EnvPoolEnvironment":
        """Make B instances on the host, whatever the device."""
        del device, is_training
        require(batch_size >= 1, "batch_size", batch_size, "at least 1", "give the number of environments")
        return EnvPoolEnvironment(self, batch_size, seed, threads)

    @property
    def has_pictures(self) -> bool:
        """Return True: EnvPool draws its tasks, where `make_pictured` finds what that needs."""
        return True

    def make_pictured(self, seed: int) -> "EnvPoolEnvironment":
        """Make one instance that EnvPool draws.

        A process of its own tries it first: without OpenGL, MuJoCo ends the process that draws.
        """
        command = [sys.executable, "-c", _DRAW, self.task]
        with TemporaryDirectory() as folder:  # MuJoCo leaves a log where it is
            tried = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        said = " ".join((tried.stderr.strip() or tried.stdout.strip()).splitlines()[-1:])[:200]
        rule = f"EnvPool cannot draw it on this machine ({said or f'status {tried.returncode}'})"
        require(tried.returncode == 0, "env.task", self.task, rule, "evaluate it without pictures")
        return EnvPoolEnvironment(self, 1, seed, 1, is_drawn=True)


_DRAW = """
import sys, warnings
warnings.simplefilter("ignore")
import envpool
task = envpool.make_gymnasium(sys.argv[1], num_envs=1, seed=1, render_mode="rgb_array")
task.reset()
sys.exit(0 if task.render() is not None else "it returned no picture")
"""


def import_envpool() -> Any:
    """Import EnvPool on a call stack of its own, when games are made, since it takes a second.

    Where a library of one of its other environments is missing (Qt for Procgen), EnvPool keeps the ImportError, with
    it the call stack that imported it, and with that the local variables of every caller: the first pool would never
    be released, nor its threads.
    """
    with ThreadPoolExecutor(max_workers=1) as fresh_stack:
        return fresh_stack.submit(importlib.import_module, "envpool").result()


def distinct_seeds(seed: int, batch_size: int) -> np.ndarray:
    """Derive distinct seeds [B] in [1, 2^31 - 2], EnvPool's and ALE's range, from `seed` by numpy's SeedSequence."""
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    return 1 + generator.choice(2**31 - 2, size=batch_size, replace=False)


def _made(config: EnvPoolConfig, seeds: np.ndarray, threads: int, is_drawn: bool) -> Any:
    """Make EnvPool's own object.

    Raises:
        ConfigurationError: no such task, it needs what is not installed, or it has several agents.
    """
    envpool, task = import_envpool(), config.task
    known = envpool.list_all_envs()
    near = " or ".join(get_close_matches(task, known, n=2)) or "CartPole-v1, say"
    require(task in known, "env.task", task, f"none of EnvPool's {len(known)} tasks", f"did you mean {near}?")
    options: dict[str, Any] = {"num_envs": len(seeds), "num_threads": threads, "seed": seeds.tolist()}
    if is_drawn:
        options["render_mode"] = "rgb_array"
    if config.max_episode_steps is not None:
        options["max_episode_steps"] = config.max_episode_steps
    try:
        players = envpool.make_spec(task).config.max_num_players
        if players == 1:
            return envpool.make_gymnasium(task, **options)
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        rule = f"EnvPool cannot make it here: {said}"
        raise ConfigurationError(f"env.task = {task!r}: {rule}; install what it needs or choose another") from error
    remedy = "choose a task of one agent"
    raise ConfigurationError(f"env.task = {task!r}: has {players} agents, and one is taken; {remedy}")


class EnvPoolEnvironment:
    """B instances of one task that behave as an `Environment` (NEXT_STEP autoreset, CPU tensors)."""

    milliseconds = 40  # EnvPool does not say how fast a task is; most have 20 to 50 steps a second

    def __init__(
        self, config: EnvPoolConfig, batch_size: int, seed: int, threads: int, *, is_drawn: bool = False
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bounds of float64 spaces lose digits in float32
            self._pool: Any = _made(config, distinct_seeds(seed, batch_size), threads, is_drawn)
            self._observations = observations(self._pool.observation_space, config.task, "env.task")
            self._actions = actions(self._pool.action_space, config.task, "env.task")
        self._reward_scale = config.reward_scale
        self._resets_next = np.zeros(batch_size, np.bool_)
        self.spec = specification(batch_size, self._observations, self._actions, config.task)

    def reset(self) -> Shaped[Tensor, "B ..."]:
        """Start all B episodes and return their first observations; called once."""
        observation, _ = self._running().reset()
        self._resets_next = np.zeros(self.spec.batch_size, np.bool_)
        return self._observations.encode(observation)

    def step(self, action: Shaped[Tensor, "B ..."]) -> EnvironmentStep:
        """Step all B instances once; the action of a step with `valid=False` is ignored."""
        observation, reward, is_terminal, is_truncated, _ = self._running().step(self._actions.decode(action))
        encoded, resets = self._observations.encode(observation), self._resets_next
        self._resets_next = (is_terminal | is_truncated) & ~resets
        return EnvironmentStep.next_step(encoded, reward, is_terminal, is_truncated, resets, self._reward_scale)

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """Return what EnvPool draws of the first instance."""
        drawn: np.ndarray = self._running().render()[0]
        return drawn

    def close(self) -> None:
        """Let the instances go, and with them their threads, which EnvPool ties to the object."""
        self._pool = None

    def _running(self) -> Any:
        if self._pool is None:
            raise RuntimeError(f"the environment {self.spec.name} was closed")
        return self._pool
