"""What every experiment says: where it runs, for how long, and what is kept; its algorithm is a subclass's."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from actors.envs.base import EnvironmentConfig, EnvironmentSpec
from actors.rollout import Lookahead
from learner.algorithm import Algorithm
from metagrad.errors import require
from metagrad.networks import NetworkSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written and how many stay."""

    every: int = 500
    """Updates between checkpoints; one is also written at the end and on SIGTERM or Ctrl-C."""
    keep: int = 3

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "must be at least 1 update", "raise it")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least the newest checkpoint stays", "raise it")


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultConfig:
    """How much a run forgives its actors."""

    rollout_seconds: float = 120.0
    """An actor that has not returned a rollout (its start included) after this long is replaced."""
    restarts_without_progress: int = 5
    """Replacements in a row, with no rollout from that actor in between, after which the run ends."""

    def __post_init__(self) -> None:
        seconds = self.rollout_seconds
        require(0 < seconds <= 86_400, "faults.rollout_seconds", seconds, "must lie in (0, 86400]", "a day is the most")
        restarts = self.restarts_without_progress
        require(restarts >= 0, "faults.restarts_without_progress", restarts, "must be 0 or more", "raise it")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseExperiment(ABC):
    """One experiment: environment, network, where and how long it runs."""

    name: tyro.conf.Suppress[str]
    description: tyro.conf.Suppress[str]
    env: EnvironmentConfig
    network: NetworkSpec
    environments: int
    """Environments in all, shared out evenly among the actors."""
    rollout_length: int
    """Steps T of every environment per rollout."""
    updates: int
    """Real inner updates to train for."""
    seed: int = 0
    actors: int = 2
    actor_threads: int = 1
    """CPU threads of each actor (policy inference and C++ environment pools)."""
    lookahead: Lookahead = "continue"
    """Where look-ahead rollouts run: continue the real environments, fork their states, or separate environments."""
    topology: Literal["ray", "colocated"] = "ray"
    """ray: actors are Ray processes, on any node; colocated: they run in the learner's process, without Ray."""
    device: str = "auto"
    """The learner's torch device; auto: cuda where there is one. Colocated device environments run there too."""
    learner_threads: int | None = None
    """CPU threads of the learner; None: all cores of its machine, since in lockstep actors rest while it works."""
    log_every: int = 10
    """Updates between two rows of scalars."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultConfig = FaultConfig()

    def __post_init__(self) -> None:
        require(self.actors >= 1, "actors", self.actors, "a run needs at least one actor", "use --actors 1 or more")
        require(
            self.environments >= 1 and self.environments % self.actors == 0,
            "environments",
            self.environments,
            f"must be a positive multiple of actors = {self.actors}",
            f"use --environments {max(1, round(self.environments / self.actors)) * self.actors}",
        )
        require(
            self.rollout_length >= 1,
            "rollout_length",
            self.rollout_length,
            "a rollout has at least one step",
            "raise it",
        )
        require(
            self.steps_per_rollout < 2**31,
            "environments x rollout_length",
            f"{self.environments} x {self.rollout_length}",
            "must be below 2^31 steps",
            "lower one of them",
        )
        require(self.updates >= 1, "updates", self.updates, "must be at least 1", "raise it")
        require(
            0 <= self.seed < 2**63, "seed", self.seed, "must lie in [0, 2^63)", "use a smaller non-negative integer"
        )
        require(self.log_every >= 1, "log_every", self.log_every, "must be at least 1 update", "raise it")
        for name, threads in (("actor_threads", self.actor_threads), ("learner_threads", self.learner_threads)):
            require(threads is None or 1 <= threads <= 1_024, name, threads, "must lie in [1, 1024]", "change it")

    @abstractmethod
    def algorithm(self, spec: EnvironmentSpec) -> Algorithm[Any]:
        """What learns, in environments of this kind."""

    @property
    def has_outer_critic(self) -> bool:
        """True where the network carries an outer-critic head."""
        return False

    @property
    def steps_per_rollout(self) -> int:
        """Environment steps of all actors in one rollout, T times B."""
        return self.environments * self.rollout_length


OPERATIONAL_FIELDS = frozenset(
    ("updates", "topology", "device", "actor_threads", "learner_threads", "log_every", "checkpoint", "faults")
)
"""How and how long a run is run, not what it computes: these may change when it is resumed."""
