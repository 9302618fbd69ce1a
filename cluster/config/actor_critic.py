"""Actor-critic experiments with meta-gradients: one frozen value, its fields are command-line options."""

import dataclasses
from dataclasses import dataclass

import torch

from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.base import DeviceEnvironmentConfig, EnvironmentConfig, EnvironmentSpec
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.size import require_possible
from metagrad.errors import require
from metagrad.learner.agent import build_agent
from metagrad.learner.algorithm import MetaGradientActorCritic
from metagrad.learner.config import LearnerConfig, MetaGradientConfig, OuterConfig
from metagrad.learner.intrinsic_reward import IntrinsicRewardParameters
from metagrad.learner.meta_parameters import A2cParameters, MetaParametersConfig
from metagrad.learner.optimizer_config import OptimizerConfig
from metagrad.learner.vtrace_parameters import VtraceParameters, off_policy
from metagrad.networks import (
    ImpalaCnn,
    NatureCnn,
    NetworkSpec,
    PolicyOnly,
    SnakeCnn,
    SnakeTorsoCnn,
    build_network,
)


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
        if self.schedule == "peek":
            off_policy(self.meta_parameters)

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
        for field, value, only in (
            ("meta.strategy", self.meta.strategy, "discard"),
            ("lookahead", self.lookahead, "continue"),
        ):
            rule = "does not go with --schedule peek, which looks ahead in the rollouts of the next real updates"
            require(self.schedule == "lockstep" or value == only, field, value, rule, f"use {only} or lockstep")
        require(
            self.lookahead == "continue" or (self.meta.n > 0 and self.meta.strategy == "discard"),
            "lookahead",
            self.lookahead,
            f"this run looks ahead in no other environments (meta.n = {self.meta.n}, {self.meta.strategy})",
            "use --lookahead continue",
        )

    def _check_network(self) -> None:
        _check_spec("network", self.network, self.env)
        embedding = getattr(self.network, "gamma_embedding", None)
        rule = "tells a critic the discount, and these losses have no hyper-parameter gamma"
        is_told = embedding is None or hasattr(self.meta_parameters, "gamma")
        require(is_told, "network.gamma_embedding", embedding, rule, "leave it out")
        for f in dataclasses.fields(self.meta_parameters):
            value = getattr(self.meta_parameters, f.name)
            if isinstance(value, NetworkSpec):
                _check_spec(f"meta_parameters.{f.name}", value, self.env)
                embedding = getattr(value, "gamma_embedding", None)
                rule = "is for critics, and this network is none"
                require(embedding is None, f"meta_parameters.{f.name}.gamma_embedding", embedding, rule, "leave it out")
        network = type(self.network).__name__
        has_critics = not isinstance(self.network, PolicyOnly)
        require(
            has_critics or not isinstance(self.meta_parameters, _LOSSES_WITH_CRITICS),
            "network",
            network,
            "has no critics, which this loss learns",
            "use a network with critics, such as Mlp",
        )
        coefficient = self.meta.bootstrap.value_coefficient
        rule = f"matches critics, and {network} has none"
        require(has_critics or not coefficient, "meta.bootstrap.value_coefficient", coefficient, rule, "leave it out")

    def algorithm(self, spec: EnvironmentSpec) -> MetaGradientActorCritic:
        shape, actions = spec.observation_shape, spec.num_actions
        require_possible(self, spec, self.parameters(spec))
        network = build_network(self.network, shape, actions, self.has_outer_critic)
        return MetaGradientActorCritic(build_agent(self.learner, network, shape, actions))

    def parameters(self, spec: EnvironmentSpec) -> int:
        with torch.device("meta"):  # nothing is made
            layers = build_network(self.network, spec.observation_shape, spec.num_actions, self.has_outer_critic)
        return layers.layout.size

    @property
    def learner(self) -> LearnerConfig:
        """What the learner is told; in peek, losses that correct for the policies that acted."""
        losses = off_policy(self.meta_parameters) if self.schedule == "peek" else self.meta_parameters
        return LearnerConfig(optimizer=self.optimizer, meta=self.meta, outer=self.outer, meta_parameters=losses)

    @property
    def takes_streamed_rollouts(self) -> bool:
        """Which losses do, `off_policy` says."""
        return True

    @property
    def look_ahead_batches(self) -> int:
        """Inner batches of virtual updates and the outer one; with a bootstrapped target, its batches too."""
        return self.meta.n + self.meta.bootstrap.updates

    @property
    def has_outer_critic(self) -> bool:
        """True where the network carries an outer-critic head."""
        return self.outer.critic == "outer" and not isinstance(self.network, PolicyOnly)


_LOSSES_WITH_CRITICS = A2cParameters | VtraceParameters | IntrinsicRewardParameters


def _check_spec(field: str, network: NetworkSpec, env: EnvironmentConfig) -> None:
    """Refuse layers without units, and observations that this network cannot have."""
    for f in dataclasses.fields(network):
        size = getattr(network, f.name)
        rule = "a layer has at least one unit, and at most 2^16"
        is_size = isinstance(size, int)  # other numbers are checked where they are declared
        require(not is_size or 1 <= size <= 2**16, f"{field}.{f.name}", size, rule, "change it")
    name = type(network).__name__
    is_atari, is_snake = isinstance(env, AtariConfig), isinstance(env, SnakeConfig)
    rule, remedy = "expects Atari screens", "use an Atari environment or another network"
    require(is_atari or not isinstance(network, NatureCnn | ImpalaCnn), field, name, rule, remedy)
    rule, remedy = "expects Snake boards", "use a Snake environment or another network"
    require(is_snake or not isinstance(network, SnakeCnn | SnakeTorsoCnn), field, name, rule, remedy)
    if isinstance(network, NatureCnn) and isinstance(env, AtariConfig):
        size = env.frame_size
        rule = "the three convolutions of NatureCnn need 36 pixels"
        require(size >= 36, "env.frame_size", size, rule, "use 36 or more; the papers use 84")
    if isinstance(network, SnakeTorsoCnn) and isinstance(env, SnakeConfig):
        sides = f"{env.rows} x {env.columns}"
        rule = "the two poolings of SnakeTorsoCnn need 4 rows and 4 columns"
        remedy = "use a larger board or another network"
        require(min(env.rows, env.columns) >= 4, "env.rows, columns", sides, rule, remedy)
