"""Configures agents that learn by a learnt update rule from a file; the fields are command-line options."""

import hashlib
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.cluster.config.actor_critic import Experiment, check_annealing
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.size import require_possible
from metagrad.distributions import DiscreteActions
from metagrad.errors import refusing, require
from metagrad.learner.ruled import ReplayConfig, Ruled
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import build_network
from metagrad.optimizers import FirstOrderOptimizer
from metagrad.rule_files import StoredRule, decoded_rule
from metagrad.rule_network import RuleAgent, RuleNetwork
from metagrad.update_rules import LifetimeRollout

_LEFT_AT_DEFAULT = ("schedule", "max_lag", "environments_per_actor", "lookahead", "precision", "learners")
"""Fields of an actor-critic experiment that say how its own algorithm computes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuledExperiment(BaseExperiment):
    """Trains an agent by a learnt rule, whose weights stay as they are."""

    network: RuleNetwork
    optimizer: FirstOrderOptimizer
    rule: str
    """File of the rule, which the learner's machine reads when the run begins: of meta-training, or DiscoRL's published
    weights."""
    rule_digest: tyro.conf.Suppress[str]
    """SHA-256 of the file."""
    rule_weights: tyro.conf.Suppress[int]
    """Number of weights in the file."""
    replay: ReplayConfig = ReplayConfig()

    def __post_init__(self) -> None:
        BaseExperiment.__post_init__(self)
        self.network.check_sizes()
        for field, value, only, rule in (
            ("lookahead", self.lookahead, "continue", "is of virtual updates, and a rule's agents make real ones"),
            ("precision", self.precision, "float32", "agents under a rule compute in float32"),
        ):
            require(value == only, field, value, rule, f"use {only}")
        rate, constant = self.optimizer.learning_rate, self.optimizer.is_clip_coefficient_constant
        rule = "is a number, and learnt by nobody"
        require(isinstance(rate, int | float), "optimizer.learning_rate", rate, rule, "give a number")
        rule = "is about meta-gradients, and nothing is differentiated through this optimizer"
        require(not constant, "optimizer.is_clip_coefficient_constant", constant, rule, "leave it out")
        check_annealing(self.optimizer, self.updates)
        capacity, size = self.replay.capacity, self.environments
        rule = f"keeps whole batches of {size} environments"
        remedy = f"use --replay.capacity {max(1, round(capacity / size)) * size}"
        require(capacity % size == 0, "replay.capacity", capacity, rule, remedy)

    def algorithm(self, spec: EnvironmentSpec) -> Ruled:
        size, kind = self.network.rule.layout.size, type(self.network.rule).__name__
        rule = f"has {size:,} weights in these sizes, and the file {self.rule_weights:,}"
        require(size == self.rule_weights, "network.rule", kind, rule, "leave the rule's sizes out")
        require_possible(self, spec, self.parameters(spec))
        network, length = self.network, self.rollout_length
        rule, remedy = "needs discrete actions, and the environment has others", "use another environment"
        is_taken = isinstance(spec.actions, DiscreteActions)
        require(is_taken, "rule", type(network.rule).__name__, rule, remedy)
        network.check_observations(spec.observation_shape, spec.observation_dtype)
        return Ruled(
            network=build_network(network, spec.observation_shape, spec.actions, False),
            agent=RuleAgent(network.module(spec.observation_shape, spec.num_actions, False)),
            rule=network.rule,
            load_eta=partial(_load_eta, self.rule, self.rule_digest),
            optimizer=self.optimizer,
            replay=self.replay,
            seed=self.seed,
            example=_example(spec, length, self.environments),
        )

    def parameters(self, spec: EnvironmentSpec) -> int:
        with torch.device("meta"):  # nothing is made
            return build_network(self.network, spec.observation_shape, spec.actions, False).layout.size


def _example(spec: EnvironmentSpec, length: int, environments: int) -> LifetimeRollout:
    """Return a batch of rollouts that shares one number in each tensor."""

    def like(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros((), dtype=dtype).expand(*shape)

    rows, columns = length + 1, environments
    return LifetimeRollout(
        observation=like(rows, columns, *spec.observation_shape, dtype=spec.observation_dtype),
        action=like(rows, columns, dtype=torch.int64),
        reward=like(length, columns),
        is_terminal=like(length, columns, dtype=torch.bool),
        valid=like(length, columns, dtype=torch.bool),
        behaviour_logits=like(rows, columns, spec.num_actions),
    )


def _read(file: str) -> tuple[StoredRule, str]:
    """Return the rule in a file, and the file's digest."""
    with refusing(OSError, field="rule", value=file, rule="cannot be read", remedy="name another file"):
        content = Path(file).read_bytes()
    return decoded_rule(content, file), hashlib.sha256(content).hexdigest()


def _load_eta(file: str, digest: str) -> Float[Tensor, "M"]:
    """Return the weights in the file that a run was configured with.

    Raises:
        ConfigurationError: it cannot be read, or is another one by now.
    """
    stored, found = _read(file)
    rule, remedy = "is not the file that the run was configured with", "put that one there, or begin another run"
    require(found == digest, "rule", file, rule, remedy)
    return stored.eta


def under_rule(experiment: BaseExperiment, file: str) -> RuledExperiment:
    """Return an experiment with the same environment, hidden layers and optimizer, whose agent learns by a file's rule.

    What the experiment says of its own algorithm goes; its look-ahead and streaming too.

    Raises:
        ConfigurationError: no rule could be read, or the experiment is no actor-critic's.
    """
    kind = type(experiment).__name__
    rule, remedy = f"trains an actor-critic's agent, and {experiment.name} is of {kind}", "leave --rule out"
    require(isinstance(experiment, Experiment), "rule", file, rule, remedy)
    assert isinstance(experiment, Experiment)
    stored, digest = _read(file)
    kept = {field.name: getattr(experiment, field.name) for field in fields(BaseExperiment)}
    for field in fields(BaseExperiment):
        if field.name in _LEFT_AT_DEFAULT:
            kept[field.name] = field.default
    torso, optimizer = experiment.network, experiment.optimizer
    if getattr(torso, "gamma_embedding", None) is not None:  # of a critic
        torso = replace(torso, **{"gamma_embedding": None})
    if isinstance(optimizer.learning_rate, MetaParameter):
        optimizer = replace(optimizer, learning_rate=optimizer.learning_rate.initial)
    return RuledExperiment(
        **kept | {"network": RuleNetwork(torso=torso, rule=stored.rule)},
        optimizer=replace(optimizer, is_clip_coefficient_constant=False),
        rule=file,
        rule_digest=digest,
        rule_weights=stored.eta.numel(),
    )
