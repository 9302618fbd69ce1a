"""Actor-critic experiments with meta-gradients: one frozen value, its fields are command-line options."""

import dataclasses
from dataclasses import dataclass

from actors.envs.atari import AtariConfig
from actors.envs.base import DeviceEnvironmentConfig, EnvironmentSpec
from actors.envs.snake import SnakeConfig
from cluster.run_config import BaseExperiment
from learner.agent import build_agent
from learner.algorithm import MetaGradientActorCritic
from learner.config import LearnerConfig, MetaGradientConfig, OuterConfig
from learner.meta_parameters import A2cParameters, MetaParametersConfig
from learner.optimizer_config import OptimizerConfig
from metagrad.errors import require
from metagrad.networks import NatureCnn, PolicyOnly, SnakeCnn, build_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment(BaseExperiment):
    """An actor-critic and the hyper-parameters that it tunes while it learns."""

    optimizer: OptimizerConfig
    meta: MetaGradientConfig
    outer: OuterConfig
    meta_parameters: MetaParametersConfig

    def __post_init__(self) -> None:
        BaseExperiment.__post_init__(self)
        self._check_combinations()
        self._check_network()

    def _check_combinations(self) -> None:
        require(
            self.lookahead != "fork" or isinstance(self.env, DeviceEnvironmentConfig),
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

    def _check_network(self) -> None:
        for f in dataclasses.fields(self.network):
            size = getattr(self.network, f.name)
            rule = "a layer has at least one unit, and at most 2^20"
            is_size = isinstance(size, int)  # other numbers are checked where they are declared
            require(not is_size or 1 <= size <= 2**20, f"network.{f.name}", size, rule, "change it")
        network = type(self.network).__name__
        require(
            not isinstance(self.network, NatureCnn) or isinstance(self.env, AtariConfig),
            "network",
            network,
            "expects Atari screens",
            "use an Atari environment or another network",
        )
        require(
            not isinstance(self.network, PolicyOnly) or not isinstance(self.meta_parameters, A2cParameters),
            "network",
            network,
            "has no critics, which this loss learns",
            "use a network with critics, such as Mlp",
        )
        coefficient = self.meta.bootstrap.value_coefficient
        rule = f"matches critics, and {network} has none"
        has_critics = not isinstance(self.network, PolicyOnly)
        require(has_critics or not coefficient, "meta.bootstrap.value_coefficient", coefficient, rule, "leave it out")
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

    def algorithm(self, spec: EnvironmentSpec) -> MetaGradientActorCritic:
        shape, actions = spec.observation_shape, spec.num_actions
        network = build_network(self.network, shape, actions, self.has_outer_critic)
        return MetaGradientActorCritic(build_agent(self.learner, network, shape, actions))

    @property
    def learner(self) -> LearnerConfig:
        """What the learner is told."""
        return LearnerConfig(
            optimizer=self.optimizer, meta=self.meta, outer=self.outer, meta_parameters=self.meta_parameters
        )

    @property
    def has_outer_critic(self) -> bool:
        """True where the network carries an outer-critic head."""
        return self.outer.critic == "outer" and not isinstance(self.network, PolicyOnly)
