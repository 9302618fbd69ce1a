"""Configures actor-critic experiments with meta-gradients; the fields are command-line options."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from metagrad.actor_critic import InnerLoss
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.size import require_possible
from metagrad.distributions import DiscreteActions
from metagrad.errors import require
from metagrad.learner.actor_critic import ActorCritic, build_actor_critic
from metagrad.learner.config import LearnerConfig, MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Network, NetworkSpec, build_network
from metagrad.optimizers import FirstOrderOptimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment(BaseExperiment):
    """Configures an actor-critic and the hyper-parameters that it tunes while it learns."""

    optimizer: FirstOrderOptimizer
    meta: MetaGradientConfig
    outer: OuterObjective
    meta_parameters: InnerLoss
    reuse: int = 1
    """How often each real batch is used. From its second update on the policy is no longer the one that acted, and
    V-trace corrects for it, as in peek. All updates of a batch count in updates; a look-ahead begins with the last."""
    minibatches: int = 1
    """Inner updates that each use of a batch makes, each of other environments' rollouts, dealt out anew for each use;
    1: an update looks at the whole batch."""
    ratio_clip: float | None = None
    """With peek, reuse or minibatches and A2C's losses, the bound on V-trace's importance ratios, ρ̄ and c̄: 1 as in
    IMPALA, which biases the meta-gradient once updates are large; None: ratios are left whole and inner advantages
    centred."""
    is_observation_normalised: bool = False
    """True: networks see observations less their mean and divided by their deviation over the run so far, within ±10;
    for observations that are numbers."""
    is_reward_normalised: bool = False
    """True: losses see rewards divided by the deviation of the discounted return (outer.gamma) over the run so far,
    within ±10; returns that are shown stay raw."""

    def __post_init__(self) -> None:
        BaseExperiment.__post_init__(self)
        self._check_combinations()
        self._check_network()
        rule = "belongs to --schedule peek, --reuse and --minibatches: without them every rollout is the policy's own"
        is_for_it = self.ratio_clip is None or self.is_off_policy
        require(is_for_it, "ratio_clip", self.ratio_clip, rule, "leave it out")
        if self.is_off_policy:
            self.meta_parameters.streamed(self.ratio_clip)
        is_sequential = self.meta.strategy == "sequential"
        rule = "does not go with --meta.strategy sequential, whose first batch was sampled under the statistics before"
        is_normalised = self.is_observation_normalised
        require(not (is_normalised and is_sequential), "is_observation_normalised", is_normalised, rule, "leave it out")
        is_scaled, kind = self.is_reward_normalised, type(self.meta_parameters).__name__
        rule = f"is for losses that learn values, and {kind} has them from elsewhere, of rewards as they are"
        can_be = self.meta_parameters.learns_critics or not is_scaled
        require(can_be, "is_reward_normalised", is_scaled, rule, "leave it out")

    def _check_combinations(self) -> None:
        require(
            self.lookahead != "fork" or self.env.has_snapshots,
            "lookahead",
            self.lookahead,
            "needs environments whose state can be copied; EnvPool, Gymnasium and AtariVectorEnv cannot",
            "use --lookahead continue or separate, or for Atari --env.backend ale-snapshots",
        )
        rate = self.optimizer.learning_rate
        rule, remedy = "a run keeps its configuration as numbers, no function", "give a number or a MetaParameter"
        is_kept = isinstance(rate, MetaParameter) or not callable(rate)
        require(is_kept, "optimizer.learning_rate", rate, rule, remedy)
        names = {field.name for field in dataclasses.fields(self.meta_parameters)}
        rule, remedy = "is learnt, and these losses have a hyper-parameter of that name", "rename that of the losses"
        is_free = not isinstance(rate, MetaParameter) or "learning_rate" not in names
        require(is_free, "optimizer.learning_rate", rate, rule, remedy)
        check_annealing(self.optimizer, self.updates)
        n = self.meta.n
        require(
            self.meta.strategy == "discard" or self.updates % n == 0,
            "updates",
            self.updates,
            f"--meta.strategy sequential makes meta.n = {n} updates at a time",
            f"use --updates {max(1, round(self.updates / max(1, n))) * n}",
        )
        self._check_reuse()
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

    def _check_reuse(self) -> None:
        reuse, parts, each = self.reuse, self.minibatches, self.updates_per_batch
        require(1 <= reuse <= 1_000, "reuse", reuse, "must lie in [1, 1000]", "1 uses every batch once")
        rule = f"must lie between 1 and environments = {self.environments}: a minibatch has whole rollouts"
        require(1 <= parts <= self.environments, "minibatches", parts, rule, "1 makes updates of whole batches")
        rule, remedy = "does not go with several learners, each of which has a share of every batch", "use --learners 1"
        require(parts == 1 or self.learners == 1, "minibatches", parts, rule, remedy)
        rule, remedy = "does not go with --meta.strategy sequential, whose updates have a batch each", "use discard"
        field, value = ("reuse", reuse) if reuse > 1 else ("minibatches", parts)
        require(each == 1 or self.meta.strategy == "discard", field, value, rule, remedy)
        made = f"reuse = {reuse}" if parts == 1 else f"reuse x minibatches = {each}"
        rule, remedy = f"{made} updates are made of each batch", f"use --updates {-(-self.updates // each) * each}"
        require(self.updates % each == 0, "updates", self.updates, rule, remedy)

    def _check_network(self) -> None:
        for field, spec in self._networks():
            spec.check_sizes(field)
            embedding = getattr(spec, "gamma_embedding", None)
            rule = "tells a critic the discount, and these losses have no hyper-parameter gamma"
            is_told = hasattr(self.meta_parameters, "gamma")
            if spec is not self.network:
                rule, is_told = "is for critics, and this network is none", False
            require(embedding is None or is_told, f"{field}.gamma_embedding", embedding, rule, "leave it out")
            gru = getattr(spec, "gru", None)
            rule = "remembers an episode, and this network is shown single steps"
            require(gru is None or spec is self.network, f"{field}.gru", gru, rule, "leave it out")
        network, has_critics = type(self.network).__name__, self.network.has_critics
        require(
            has_critics or not self.meta_parameters.learns_critics,
            "network",
            network,
            "has no critics, which this loss learns",
            "use a network with critics, such as Mlp",
        )
        for field, coefficient in (
            ("meta.bootstrap.value_coefficient", self.meta.bootstrap.value_coefficient),
            ("outer.value_coefficient", self.outer.value_coefficient),
        ):
            rule = f"matches critics, and {network} has none"
            require(has_critics or not coefficient, field, coefficient, rule, "leave it out")

    def _networks(self) -> Iterator[tuple[str, NetworkSpec]]:
        """Yield the actor-critic and the networks among the meta-parameters with the fields that hold them."""
        yield "network", self.network
        for field in dataclasses.fields(self.meta_parameters):
            value = getattr(self.meta_parameters, field.name)
            if isinstance(value, NetworkSpec):
                yield f"meta_parameters.{field.name}", value

    def algorithm(self, spec: EnvironmentSpec) -> ActorCritic:
        require_possible(self, spec, self.parameters(spec))
        return build_actor_critic(self.learner, self._built(spec), spec.observation_shape, spec.actions.outputs)

    def parameters(self, spec: EnvironmentSpec) -> int:
        with torch.device("meta"):  # nothing is made
            return self._built(spec).layout.size

    def _built(self, spec: EnvironmentSpec) -> Network:
        """Build the actor-critic for an environment, once all networks are known to take its observations."""
        losses = self.meta_parameters
        is_taken = isinstance(spec.actions, DiscreteActions) or not losses.needs_discrete_actions
        rule, remedy = "needs discrete actions, and the environment has others", "use another loss or environment"
        require(is_taken, "meta_parameters", type(losses).__name__, rule, remedy)
        for field, network in self._networks():
            network.check_observations(spec.observation_shape, spec.observation_dtype, field)
        is_normalised, dtype = self.is_observation_normalised, spec.observation_dtype
        rule = f"is for observations that are fractions, and the environment gives {dtype}".replace("torch.", "")
        can_be = dtype.is_floating_point or not is_normalised
        require(can_be, "is_observation_normalised", is_normalised, rule, "leave it out")
        sizes = (spec.observation_shape, spec.actions)
        precision = self.resolved_precision
        return build_network(self.network, *sizes, self.has_outer_critic, precision, is_normalised)

    @property
    def learner(self) -> LearnerConfig:
        """Return what the learner is told; in peek and with reuse, losses that correct for the policies that acted."""
        loss = self.meta_parameters
        if self.is_off_policy:
            loss = loss.streamed(self.ratio_clip)
        return LearnerConfig(
            optimizer=self.optimizer,
            meta=self.meta,
            outer=self.outer,
            meta_parameters=loss,
            reuse=self.reuse,
            minibatches=self.minibatches,
            is_reward_normalised=self.is_reward_normalised,
        )

    @property
    def is_off_policy(self) -> bool:
        """True where updates see rollouts of other policies than the one that they improve."""
        return self.schedule == "peek" or self.updates_per_batch > 1

    @property
    def updates_per_batch(self) -> int:
        """Count the real updates that are made of one batch; without reuse `sequential` has a batch for each."""
        return self.reuse * self.minibatches

    @property
    def normalises_observations(self) -> bool:
        """Return `is_observation_normalised`."""
        return self.is_observation_normalised

    @property
    def return_discount(self) -> float | None:
        """Return γ' where rewards are scaled."""
        return self.outer.gamma if self.is_reward_normalised else None

    @property
    def takes_streamed_rollouts(self) -> bool:
        """True as far as it is up to the experiment; the loss has its own say (`InnerLoss.streamed`)."""
        return True

    @property
    def shares_batches(self) -> bool:
        """Return True: every sum over a batch goes through `metagrad.shares`."""
        return True

    @property
    def vectors_added_up(self) -> int:
        """Count inner and outer gradients, and the products of the adjoint pass."""
        n, target = self.meta.n, self.meta.bootstrap.updates
        outers = n if self.meta.estimator == "mix" else min(n, 1)
        products = 0 if self.meta.estimator == "trace" else max(n - 1, 0)
        return max(n, 1) + self.reuse - 1 + outers + target + products

    @property
    def look_ahead_batches(self) -> int:
        """Count inner batches of virtual updates and the outer one; with a bootstrapped target, its batches too."""
        return self.meta.n + self.meta.bootstrap.updates

    @property
    def has_outer_critic(self) -> bool:
        """Return True where the network carries an outer-critic head."""
        return self.outer.uses_outer_critic and self.network.has_critics


def check_annealing(optimizer: FirstOrderOptimizer, updates: int) -> None:
    """Refuse a run that goes on after its step size has decayed to 0."""
    annealing = optimizer.annealing_updates
    rule = f"the step size is 0 from update {annealing} on (optimizer.annealing_updates), nothing would be learnt"
    remedy = f"use --updates {annealing} or fewer, or raise --optimizer.annealing-updates"
    require(annealing is None or annealing >= updates, "updates", updates, rule, remedy)
