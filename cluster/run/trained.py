"""Take the policy, the critics and η of a run out of its folder, for a script or for a file that leaves metagrad."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from metagrad.actors import policy
from metagrad.actors.envs.base import EnvironmentSpec
from metagrad.actors.rollout import probe
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.lifetimes import LifetimesExperiment
from metagrad.cluster.run.checkpoint_parts import check_fits, restore
from metagrad.cluster.run.folder import RunFolder
from metagrad.distributions import Categorical, Decision
from metagrad.errors import refusal, refusing, require
from metagrad.learner.algorithm import Algorithm
from metagrad.learner.checkpoint import Unreadable, checkpoint_path, load, paths, update_of
from metagrad.learner.storage import Location
from metagrad.networks import Head, Network
from metagrad.recurrence import Memory
from metagrad.update_rules import UpdateRule


class PolicyModule(nn.Module):
    """Computes log π_θ(a | s) [N, A] of observations [N, …], as the environment gives them; actions are discrete.

    Whatever the network does with them first, such as scaling pixels, is part of it. A recurrent network takes the
    states [N, H] before the step too, zeros where an episode begins, and also returns those after it.
    """

    theta: Tensor

    def __init__(self, network: Network, theta: Float[Tensor, "P"]):
        super().__init__()
        self._network = network
        self.register_buffer("theta", theta.detach().clone())

    def forward(self, observation: Tensor, state: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        outputs = policy.outputs_of(self._network.at(self.theta), observation, state)
        chosen = outputs.policy
        rule, remedy = "has log-probabilities of discrete actions alone", "use the run's network and act()"
        require(isinstance(chosen, Categorical), "policy", type(chosen).__name__, rule, remedy)
        assert isinstance(chosen, Categorical)
        return chosen.log_probs if state is None else (chosen.log_probs, outputs["state"])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """Holds what a run has learnt so far; everything is on the CPU.

    `run.act(observations)` plays, `run.policy(observations)` is log π, and `run.eta["gamma"]` what was learnt. A
    recurrent network plays by `run.decide(observations, generator, state)`.
    """

    experiment: BaseExperiment
    """The configuration."""
    spec: EnvironmentSpec
    """Shape and type of observations, and the names of the actions."""
    update: int
    """Real updates that the checkpoint was written after."""
    eta: dict[str, float]
    """Bounded values of the hyper-parameters, learnt and fixed."""
    network: Network
    theta: Float[Tensor, "P"]
    policy: PolicyModule

    def act(
        self, observation: Shaped[Tensor, "N ..."], generator: torch.Generator | None = None
    ) -> Shaped[Tensor, "N ..."]:
        """Return actions as `metagrad eval` takes them: sampled with `generator`, or the most likely ones."""
        return self.decide(observation, generator).action

    def decide(
        self,
        observation: Shaped[Tensor, "N ..."],
        generator: torch.Generator | None = None,
        state: Float[Tensor, "N H"] | None = None,
    ) -> Decision:
        """Return actions, their log-probabilities and, of a recurrent network, its `state` after the step.

        Args:
            observation: of the environments.
            generator: as for `act`.
            state: that a recurrent network had before the step; first, and where an episode begins, zeros
                (`network.fresh_state(N)`).
        """
        network = self.network.at(self.theta)
        if generator is None:
            return policy.greedy(network, observation, state)
        return policy.sample(network, observation, generator, state)

    @torch.no_grad()
    def critics(
        self, observation: Shaped[Tensor, "N ..."], state: Float[Tensor, "N H"] | None = None
    ) -> dict[Head, Float[Tensor, "N"]]:
        """Return the values under each of the network's critics: "value", and "outer_value" where there is one."""
        heads: list[Head] = ["value"] if self.experiment.network.has_critics else []
        heads += ["outer_value"] if self.experiment.has_outer_critic else []
        return self.network.apply(self.theta, observation, heads, None if state is None else Memory(state))


def trained_run(run_dir: str | Location, update: int | None, say: Callable[[str], None]) -> TrainedRun:
    """Read the checkpoint of an update of a run, or its newest one.

    Raises:
        ConfigurationError: there is no such run or checkpoint, or it cannot be read.
    """
    folder = RunFolder(run_dir)
    return trained_in(folder, folder.experiment(), update, say)


def trained_in(
    folder: RunFolder, experiment: BaseExperiment, update: int | None, say: Callable[[str], None]
) -> TrainedRun:
    """Do as `trained_run`, of a folder whose experiment has been read already."""
    rule, remedy = "holds no policy but an update rule", "write it to a file with metagrad export, and train with that"
    require(experiment.has_policy, "run-dir", str(folder.path), rule, remedy)
    spec = probe(experiment.env)
    algorithm = experiment.algorithm(spec)
    state = algorithm.from_tree(_tree_of(folder, update, experiment, algorithm, say)["learner"], torch.device("cpu"))
    network, eta = algorithm.network, algorithm.shown(state)
    assert network is not None
    if network.is_conditioned:
        network = network.under(eta["gamma"])
    return TrainedRun(
        experiment=experiment,
        spec=spec,
        update=state.update,
        eta=eta,
        network=network,
        theta=state.theta,
        policy=PolicyModule(network, state.theta),
    )


class TrainedRule(NamedTuple):
    """Holds the update rule of a run as it is after an update of the run."""

    rule: UpdateRule
    weights: Float[Tensor, "M"]
    update: int
    lifetimes: int


def trained_rule(
    folder: RunFolder, experiment: LifetimesExperiment, update: int | None, say: Callable[[str], None]
) -> TrainedRule:
    """Read the rule from the checkpoint of an update of a run, or from its newest one.

    Raises:
        ConfigurationError: there is no such checkpoint, or it cannot be read.
    """
    algorithm = experiment.algorithm(probe(experiment.env))
    tree = _tree_of(folder, update, experiment, algorithm, say)["learner"]
    state = algorithm.from_tree(tree, torch.device("cpu"))
    return TrainedRule(experiment.rule, state.theta, state.update, state.lifetimes)


def _tree_of(
    folder: RunFolder,
    update: int | None,
    experiment: BaseExperiment,
    algorithm: Algorithm[Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the content of an update's checkpoint, or of the newest readable one.

    Raises:
        ConfigurationError: there is none, or it is not of this run.
    """
    if update is None:
        return restore(folder, experiment, algorithm, say).tree
    path = checkpoint_path(folder.checkpoints, update)
    with refusing(OSError, field="update", value=update, rule="cannot be read", remedy="choose another run"):
        held = ", ".join(str(update_of(path)) for path in paths(folder.checkpoints))
        try:
            tree = load(path)
        except FileNotFoundError as error:
            rule, remedy = "has no checkpoint in this run", f"choose one of {held or 'another run'}"
            raise refusal("update", update, rule, remedy) from error
        except Unreadable as error:
            raise refusal("update", update, f"cannot be read ({error})", f"choose another of {held}") from error
    check_fits(path, tree, experiment, algorithm)
    return tree
