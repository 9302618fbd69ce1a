"""Define a population that takes the place of a meta-gradient: whose values it tunes, where they are drawn, its runs.

A learnt value x in (low, high) is tuned through its odds (x - low) / (high - x), of which η is the logarithm: a factor
of the odds multiplies small values, divides the distance of large ones from their upper bound, and leaves no bound. So
Tune's own mutations, which multiply, work in the transformed range of every meta-parameter.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment, CheckpointConfig
from metagrad.errors import require
from metagrad.learner.config import MetaGradientConfig
from metagrad.meta_parameters import Declaration, MetaParameter, MetaVector, learnt_names, learnt_slices

Odds = dict[str, float]
"""Odds of the learnt values, by the names of the meta-parameters."""
DECADE = 10.0
"""Values are drawn between a tenth and ten times the odds that the experiment starts from, on a logarithmic scale."""
MOST_MEMBERS = 1_000
_GENERATIONS = 20  # of a population that is told no other number


def without_meta_gradient(experiment: BaseExperiment) -> Experiment:
    """Return the experiment with hyper-parameters that stay where they start, and no outer critic.

    Raises:
        ConfigurationError: it learns no hyper-parameters in the first place.
    """
    rule, remedy = "is no actor-critic with learnt hyper-parameters, which a population tunes", "choose another"
    require(isinstance(experiment, Experiment), "experiment", experiment.name, rule, remedy)
    assert isinstance(experiment, Experiment)
    return replace(
        experiment,
        meta=MetaGradientConfig(n=0, optimizer=experiment.meta.optimizer),
        outer=replace(experiment.outer, critic="inner"),
        lookahead="continue",
    )


def learnt(experiment: Experiment) -> dict[str, MetaParameter]:
    """Return what a meta-gradient would learn in this experiment, in the order of η.

    Raises:
        ConfigurationError: nothing, or something that is no number between bounds.
    """
    declaration: Declaration = experiment.algorithm(probe(experiment.env)).declaration
    vectors = [name for name in learnt_slices(declaration) if isinstance(declaration[name], MetaVector)]
    rule = "is learnt and no number between bounds, which is all that is drawn"
    require(not vectors, "meta_parameters", " ".join(vectors), rule, "choose another experiment")
    found = {name: declaration[name] for name in learnt_names(declaration)}
    rule, remedy = "learns no hyper-parameter, and there is nothing to tune", "set one's is-learnt to True"
    require(bool(found), "experiment", experiment.name, rule, remedy)
    return {name: parameter for name, parameter in found.items() if isinstance(parameter, MetaParameter)}


def odds(parameter: MetaParameter) -> float:
    """Return (x - low) / (high - x) of the initial value.

    >>> odds(MetaParameter(initial=0.75))
    3.0
    """
    return (parameter.initial - parameter.low) / (parameter.high - parameter.initial)


def value(parameter: MetaParameter, its_odds: float) -> float:
    """Return the value that has these odds.

    >>> value(MetaParameter(initial=0.5, high=2.0), 3.0)
    1.5
    """
    return parameter.low + (parameter.high - parameter.low) * its_odds / (1.0 + its_odds)


def drawn(parameters: Mapping[str, MetaParameter], seed: int, index: int) -> Odds:
    """Draw odds for the member (or trial) of an index, which does not depend on how many there are."""
    generator = np.random.default_rng((seed, index))
    return {name: odds(parameter) * DECADE ** generator.uniform(-1.0, 1.0) for name, parameter in parameters.items()}


def starting_at(experiment: Experiment, values: Mapping[str, float]) -> Experiment:
    """Return the experiment with other initial values of what it learns, by their names.

    Raises:
        ConfigurationError: a meta-parameter is none of the loss's fields, or refuses its value.
    """
    losses = experiment.meta_parameters
    fields = {field.name.rstrip("_"): field.name for field in dataclasses.fields(losses)}
    own = {name: x for name, x in values.items() if name != "learning_rate"}
    for name in own:
        rule = f"is no field of {type(losses).__name__}, and its initial value cannot be set"
        require(name in fields, "meta_parameters", name, rule, "choose another experiment")
    changed = {fields[name]: replace(getattr(losses, fields[name]), initial=x) for name, x in own.items()}
    optimizer = experiment.optimizer
    if "learning_rate" in values:
        assert isinstance(optimizer.learning_rate, MetaParameter)
        rate = replace(optimizer.learning_rate, initial=values["learning_rate"])
        optimizer = replace(optimizer, learning_rate=rate)
    return replace(experiment, meta_parameters=replace(losses, **changed), optimizer=optimizer)


def exploited(own: dict[str, Any], better: dict[str, Any], values: Sequence[float]) -> dict[str, Any]:
    """Return the checkpoint with which a member goes on from a better one, both after the same update.

    It takes over the learner (θ, the optimizer's state, statistics) and the episodes that say how good it is, with η of
    `values`, odds in the order of η. Its games, random streams and accounts stay its own.
    """
    eta: Tensor = better["learner"]["eta"]
    moved = torch.tensor(values, dtype=torch.float64).log().to(eta.dtype)
    return own | {"learner": better["learner"] | {"eta": moved}, "episodes": better["episodes"]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """Holds members that train at the same time; after every `every` updates the worst go on from the best."""

    experiment: Experiment
    """Without a meta-gradient, colocated (`without_meta_gradient`)."""
    size: int
    """Members, the first of which starts from the experiment's own values."""
    every: int
    """Updates of one generation; the last one may be shorter."""

    def __post_init__(self) -> None:
        rule = f"a population has 2 to {MOST_MEMBERS} members"
        require(2 <= self.size <= MOST_MEMBERS, "pbt", self.size, rule, "use --pbt 8, say")
        every, updates, each = self.every, self.experiment.updates, self.experiment.updates_per_batch
        require(1 <= every <= updates, "pbt-every", every, f"must lie in [1, updates = {updates}]", "change it")
        rule, remedy = f"must be whole batches, of {each} updates each", f"use {-(-every // each) * each}"
        require(every % each == 0, "pbt-every", every, rule, remedy)
        most = 2**63 // MOST_MEMBERS
        require(
            self.experiment.seed < most, "seed", self.experiment.seed, f"must lie below {most}", "use a smaller one"
        )

    @property
    def generations(self) -> int:
        """Return how often the members train."""
        return -(-self.experiment.updates // self.every)

    def odds(self, index: int) -> Odds:
        """Return the odds that a member starts from."""
        parameters = learnt(self.experiment)
        if index:
            return drawn(parameters, self.experiment.seed, index)
        return {name: odds(parameter) for name, parameter in parameters.items()}

    def member(self, index: int) -> Experiment:
        """Return the run of a member, with a seed that no member of another population has."""
        parameters, own = learnt(self.experiment), self.odds(index)
        values = {name: value(parameter, own[name]) for name, parameter in parameters.items()}
        checkpoint = self.experiment.checkpoint
        # A better member may be a generation ahead of the one that takes its checkpoint.
        keep = max(checkpoint.keep, self.every // checkpoint.every + 3)
        return replace(
            starting_at(self.experiment, values),
            seed=self.experiment.seed * MOST_MEMBERS + index,
            checkpoint=CheckpointConfig(every=checkpoint.every, keep=keep),
        )

    def until(self, generation: int) -> int:
        """Return the update at which a generation, counted from 0, ends."""
        return min((generation + 1) * self.every, self.experiment.updates)


def default_every(experiment: Experiment) -> int:
    """Return the updates of a generation where nobody says: a twentieth of the run, in whole batches."""
    each = experiment.updates_per_batch
    return -(-experiment.updates // (_GENERATIONS * each)) * each
