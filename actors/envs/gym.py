"""Makes any Gymnasium environment, by its id or by its class, in Gymnasium's own vector environments.

Returns are raw, and an episode that reaches its time limit is truncated. Gymnasium's two kinds of autoreset become
ours:

* next-step: the step after an episode's end only resets (`valid=False`).
* same-step: an episode that terminates is followed by the next one's first observation, and every step counts. Where an
  episode is truncated, the observation is its true successor, which bootstraps; Gymnasium has begun the next episode by
  then, unseen. Its first action is thus chosen for another state, and that step has `valid=False`; its reward is part
  of the episode's return. Evaluation resets by next-step always, so that the policy chooses every action.

Gymnasium is imported when environments are made, so that a configuration can be checked without it.
"""

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from metagrad.actors.envs.base import MAX_STEPS, EnvironmentConfig, EnvironmentStep
from metagrad.actors.envs.envpool import distinct_seeds
from metagrad.actors.envs.spaces import actions, observations, specification, with_batch_axis
from metagrad.errors import ConfigurationError, require, require_one_of

Vectorisation = Literal["sync", "async"]
Autoreset = Literal["next-step", "same-step"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GymConfig(EnvironmentConfig):
    """Describes a Gymnasium environment.

    Raises:
        ConfigurationError: a value is out of its range; when it is made, the id is none, or has a space that is not
            taken.
    """

    id: str = "CartPole-v1"
    """Gymnasium's id; module:Id to import the module that registers it first; or module:Class for a class or function
    that makes one."""
    vectorisation: Vectorisation = "sync"
    """sync: an actor steps its environments one after another; async: each in a process of its own, for slow ones."""
    autoreset: Autoreset = "next-step"
    """When Gymnasium resets in training: in the step after an episode's end, which is lost, or in the same step."""
    reward_scale: float = 1.0
    """Factor of the learner's reward; returns stay raw."""
    max_episode_steps: int | None = None
    """Truncate an episode after this many steps; None: as it is registered."""

    def __post_init__(self) -> None:
        require_one_of(self.vectorisation, Vectorisation, "env.vectorisation")
        require_one_of(self.autoreset, Autoreset, "env.autoreset")
        is_id = bool(self.id) and self.id.count(":") <= 1 and not self.id.startswith(":")
        require(is_id, "env.id", self.id, "must be an id, module:Id or module:Class", "CartPole-v1, say")
        self.require_reward_scale(self.reward_scale)
        if self.max_episode_steps is not None:
            self.require_whole("max_episode_steps", 1, MAX_STEPS)

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "GymEnvironment":
        """Make B environments on the host, whatever the device."""
        del device, threads
        require(batch_size >= 1, "batch_size", batch_size, "at least 1", "give the number of environments")
        return GymEnvironment(self, batch_size, seed, self.autoreset if is_training else "next-step")

    @property
    def has_pictures(self) -> bool:
        """Return True: whether an environment draws itself is known once it is made."""
        return True

    def make_pictured(self, seed: int) -> "GymEnvironment":
        """Make one environment that draws itself (Gymnasium's `rgb_array`)."""
        with ExitStack() as undo:
            try:
                environment = GymEnvironment(self, 1, seed, "next-step", render_mode="rgb_array")
                undo.callback(environment.close)
                environment.reset()
                environment.picture()
            except ConfigurationError:
                raise
            except Exception as error:  # of any kind: drawing is the environment's own
                said = " ".join(str(error).split())[:200] or type(error).__name__
                remedy = "install what it needs, or evaluate it without pictures"
                text = f"env.id = {self.id!r}: it cannot be drawn here: {said}; {remedy}"
                raise ConfigurationError(text) from error
            undo.pop_all()
        return environment


def _maker(config: GymConfig, render_mode: str | None) -> Callable[[], Any]:
    """Return what makes one environment.

    Raises:
        ConfigurationError: no such id, module or class, or something that it needs is not installed.
    """
    import gymnasium

    module, _, name = config.id.rpartition(":")
    try:
        loaded = importlib.import_module(module) if module else None
        if loaded is not None and name not in gymnasium.registry and hasattr(loaded, name):
            spec = gymnasium.envs.registration.EnvSpec(f"{name}-v0", entry_point=config.id)
        else:
            spec = gymnasium.spec(name)
        options: dict[str, Any] = {"max_episode_steps": config.max_episode_steps}
        if render_mode is not None:  # an environment need not know the argument
            options["render_mode"] = render_mode
        maker = partial(gymnasium.make, spec, disable_env_checker=True, **options)
        maker().close()
    except (ImportError, gymnasium.error.Error) as error:
        said = " ".join(str(error).split())[:300]
        remedy = "check the id, or install what it needs"
        raise ConfigurationError(f"env.id = {config.id!r}: Gymnasium cannot make it: {said}; {remedy}") from error
    return maker


class GymEnvironment:
    """B environments of one kind that behave as an `Environment` (CPU tensors)."""

    def __init__(
        self, config: GymConfig, batch_size: int, seed: int, autoreset: Autoreset, render_mode: str | None = None
    ) -> None:
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

        maker = _maker(config, render_mode)
        mode = AutoresetMode.NEXT_STEP if autoreset == "next-step" else AutoresetMode.SAME_STEP
        kind = SyncVectorEnv if config.vectorisation == "sync" else AsyncVectorEnv
        self._environments: Any = kind([maker] * batch_size, autoreset_mode=mode)
        try:
            space = self._environments.single_observation_space
            self._observations = observations(space, config.id, "env.id")
            self._actions = actions(self._environments.single_action_space, config.id, "env.id")
        except ConfigurationError:
            self._environments.close()
            raise
        self._seeds = distinct_seeds(seed, batch_size).tolist()
        self._reward_scale = config.reward_scale
        self._is_same_step = autoreset == "same-step"
        self._is_lost = np.zeros(batch_size, np.bool_)  # the next step's action is for another state, or none at all
        self.spec = specification(batch_size, self._observations, self._actions, config.id)

    def reset(self) -> Shaped[Tensor, "B ..."]:
        """Start all B episodes under distinct seeds and return their first observations; called once."""
        observation, _ = self._running().reset(seed=self._seeds)
        self._is_lost = np.zeros(self.spec.batch_size, np.bool_)
        return self._observations.encode(observation)

    def step(self, action: Shaped[Tensor, "B ..."]) -> EnvironmentStep:
        """Step all B environments once."""
        decoded = self._actions.decode(action)
        observation, reward, is_terminal, is_truncated, info = self._running().step(decoded)
        encoded, is_lost = self._observations.encode(observation), self._is_lost
        if not self._is_same_step:
            self._is_lost = (is_terminal | is_truncated) & ~is_lost
            return EnvironmentStep.next_step(encoded, reward, is_terminal, is_truncated, is_lost, self._reward_scale)
        self._is_lost = is_truncated & ~is_terminal
        for index in self._is_lost.nonzero()[0].tolist():
            encoded[index] = self._observations.encode(with_batch_axis(info["final_obs"][index]))[0]
        step = EnvironmentStep.next_step(
            encoded, reward, is_terminal, is_truncated, np.zeros_like(is_lost), self._reward_scale
        )
        return step._replace(valid=torch.from_numpy(~is_lost))

    @property
    def milliseconds(self) -> int:
        """Return for how long a picture is shown: as the environment says, else 40."""
        return 10 * max(1, round(100 / self._running().metadata.get("render_fps", 25)))

    def picture(self) -> UInt8[np.ndarray, "height width 3"]:
        """Return what the first environment draws.

        Raises:
            TypeError: it draws no picture.
        """
        drawn = self._running().render()[0]
        if not isinstance(drawn, np.ndarray):
            raise TypeError(f"render() of rgb_array returned {type(drawn).__name__}")
        return drawn

    def close(self) -> None:
        """Close the environments, and end their processes."""
        if self._environments is not None:
            self._environments.close()
        self._environments = None

    def _running(self) -> Any:
        if self._environments is None:
            raise RuntimeError(f"the environment {self.spec.name} was closed")
        return self._environments
