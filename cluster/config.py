"""The only composed configuration tree: an experiment is one frozen value, its fields are command-line options."""

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from actors.envs import EnvironmentConfig
from actors.envs.atari import AtariConfig
from actors.envs.discounting_chain import DiscountingChainConfig
from actors.envs.markov_reward_process import MarkovRewardProcessConfig
from actors.envs.snake import SnakeConfig
from actors.envs.tabular_mdp import TabularMdpConfig
from actors.rollout import Lookahead
from learner.config import (
    AdamConfig,
    LearnerConfig,
    MetaGradientConfig,
    MetaParametersConfig,
    OptimizerConfig,
    OuterConfig,
    RmsPropConfig,
    SgdConfig,
)
from metagrad.errors import require
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp, NatureCnn, NetworkSpec, SnakeCnn


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
class Experiment:
    """One experiment: environment, network, algorithm, and where it runs."""

    name: tyro.conf.Suppress[str]
    description: tyro.conf.Suppress[str]
    env: EnvironmentConfig
    network: NetworkSpec
    optimizer: OptimizerConfig
    meta: MetaGradientConfig
    outer: OuterConfig
    meta_parameters: MetaParametersConfig
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
        self._check_combinations()

    def _check_combinations(self) -> None:
        is_atari = isinstance(self.env, AtariConfig)
        require(
            self.lookahead != "fork" or not is_atari,
            "lookahead",
            self.lookahead,
            "needs environments whose state can be copied; EnvPool and ALE cannot",
            "use --lookahead continue or separate",
        )
        annealing = self.optimizer.annealing_updates
        require(
            annealing is None or annealing >= self.updates,
            "updates",
            self.updates,
            f"the step size is 0 from update {annealing} on (optimizer.annealing_updates), nothing would be learnt",
            f"use --updates {annealing} or fewer, or raise --optimizer.annealing-updates",
        )
        n = self.meta.n
        require(
            self.meta.strategy == "discard" or self.updates % n == 0,
            "updates",
            self.updates,
            f"--meta.strategy sequential makes meta.n = {n} updates at a time",
            f"use --updates {max(1, round(self.updates / max(1, n))) * n}",
        )
        require(
            self.lookahead == "continue" or (self.meta.n > 0 and self.meta.strategy == "discard"),
            "lookahead",
            self.lookahead,
            f"this run looks ahead in no other environments (meta.n = {self.meta.n}, {self.meta.strategy})",
            "use --lookahead continue",
        )
        for f in dataclasses.fields(self.network):
            size = getattr(self.network, f.name)
            rule = "a layer has at least one unit, and at most 2^20"
            require(1 <= size <= 2**20, f"network.{f.name}", size, rule, "change it")
        network = type(self.network).__name__
        require(
            not isinstance(self.network, NatureCnn) or is_atari,
            "network",
            network,
            "expects Atari screens",
            "use an Atari environment or another network",
        )
        if isinstance(self.network, NatureCnn) and isinstance(self.env, AtariConfig):
            size = self.env.frame_size
            rule = "the three convolutions of NatureCnn need 36 pixels"
            require(size >= 36, "env.frame_size", size, rule, "use 36 or more; the papers use 84")
        require(
            not isinstance(self.network, SnakeCnn) or isinstance(self.env, SnakeConfig),
            "network",
            network,
            "expects Snake boards",
            "use a Snake environment or another network",
        )

    @property
    def learner(self) -> LearnerConfig:
        """What the learner is told."""
        return LearnerConfig(
            optimizer=self.optimizer, meta=self.meta, outer=self.outer, meta_parameters=self.meta_parameters
        )

    @property
    def has_outer_critic(self) -> bool:
        """True where the network carries an outer-critic head."""
        return self.outer.critic == "outer"

    @property
    def steps_per_rollout(self) -> int:
        """Environment steps of all actors in one rollout, T times B."""
        return self.environments * self.rollout_length


OPERATIONAL_FIELDS = frozenset(
    ("updates", "topology", "device", "actor_threads", "learner_threads", "log_every", "checkpoint", "faults")
)
"""How and how long a run is run, not what it computes: these may change when it is resumed."""

CONFIG_TYPES: dict[str, type[Any]] = {
    cls.__name__: cls
    for cls in (
        AdamConfig,
        AtariConfig,
        CheckpointConfig,
        DiscountingChainConfig,
        Experiment,
        FaultConfig,
        MarkovRewardProcessConfig,
        MetaGradientConfig,
        MetaParameter,
        MetaParametersConfig,
        Mlp,
        NatureCnn,
        OuterConfig,
        RmsPropConfig,
        SgdConfig,
        SnakeCnn,
        SnakeConfig,
        TabularMdpConfig,
    )
}


def to_json(config: Any) -> Any:
    """Dictionaries and scalars of a configuration, each dataclass with its "type"."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__} | fields
    return config


def from_json(tree: Any) -> Any:
    """Inverse of `to_json`; only the types listed here can come out of it, each field of the type it declares.

    Raises:
        ConfigurationError: an unknown type, or a value of another type than its field's, or that the field refuses.
    """
    if not isinstance(tree, dict):
        return tree
    name = tree.get("type")
    require(name in CONFIG_TYPES, "config.json type", name, "is no configuration type", "was it written by metagrad?")
    kind = CONFIG_TYPES[str(name)]
    fields = {key: from_json(value) for key, value in tree.items() if key != "type"}
    for key, hint in get_type_hints(kind).items():
        if key in fields:
            expected = f"must be {getattr(hint, '__name__', hint)}".replace("typing.", "")
            require(_is_a(fields[key], hint), f"{name}.{key}", fields[key], expected, "correct it in config.json")
    return kind(**fields)


def _is_a(value: Any, hint: Any) -> bool:
    """True for a value that a field of this declared type may hold; JSON writes 1.0 as 1 at will."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is UnionType:
        return any(_is_a(value, member) for member in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted field, old value and new value wherever two configurations differ."""
    if type(old) is not type(new) or not dataclasses.is_dataclass(old):
        return [] if old == new else [(prefix, old, new)]
    found = []
    for f in dataclasses.fields(old):
        path = f"{prefix}.{f.name}" if prefix else f.name
        found += differences(getattr(old, f.name), getattr(new, f.name), path)
    return found
