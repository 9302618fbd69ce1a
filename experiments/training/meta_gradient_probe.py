"""Measures mean and spread of a meta-gradient at points of a training run, from independent samples of it.

checkpoint ─► θ, η, optimizer states ──────────────────────────────┐
           └► games, with random streams of the sample's own ─► look-ahead ─► ∂J/∂η ─► moments      (K times)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from metagrad.actors.rollout import Actor, ActorSetup, ActorState, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.folder import read_json, write_json
from metagrad.cluster.run.learning import actor_setups
from metagrad.diagnostics import Moments, add_samples, no_samples, standard_deviation
from metagrad.errors import require
from metagrad.learner.batch import merge
from metagrad.learner.checkpoint import checkpoint_path, load
from metagrad.learner.storage import exists
from metagrad.types import Trajectory, WeightSnapshot

CPU = torch.device("cpu")


def meta_gradient_samples(
    experiment: Experiment, checkpoint: Mapping[str, Any], count: int, seed: int
) -> Iterator[Float[Tensor, "M"]]:
    """Draw independent samples of ∂J/∂η at a checkpoint: unconstrained space, before clipping; nothing is updated.

    For each one all games are put back to where the checkpoint has them, and the random streams of policies and
    environments are fresh. The same arguments give the same samples, bit for bit, and different estimators under one
    seed start from the same τ₀, which takes noise from their ratios.

    Args:
        experiment: the run's, with the estimator that is asked for: its `meta` (n, mix and κ, …), `lookahead` or
            optimizer's constants may be others than the run's.
        checkpoint: what `metagrad.learner.checkpoint.load` gives; it is not changed.
        count: number K of samples.
        seed: not negative; of all streams.

    Raises:
        ConfigurationError: nothing is looked ahead, or the checkpoint is of another experiment or without its games.

    Source: "One Step at a Time", Table 1: 96 meta-gradients at each of 300 points throughout training.
    """
    algorithm = experiment.algorithm(probe(experiment.env))
    actors: list[ActorState] = checkpoint["actors"]
    require(experiment.meta.n >= 1, "meta.n", experiment.meta.n, "looks ahead nowhere", "use 1 or more")
    wrong = algorithm.misfit(checkpoint["learner"])
    require(wrong is None, "checkpoint", wrong, "is not as this experiment has it", "probe with the run's own settings")
    # A fork is made again from the real games; a pool of its own can only come from the checkpoint.
    pools = ("real/", "lookahead/") if experiment.lookahead == "separate" else ("real/",)
    has_games = all(any(name.startswith(pool) for name in games) for games in actors for pool in pools)
    rule = f"must be the games of {experiment.actors} actors, in {' and '.join(pools)}"
    remedy = "probe a run in environments that can be snapshot, with the lookahead that it had"
    require(has_games and len(actors) == experiment.actors, "checkpoint", "actors", rule, remedy)
    # Under `sequential` the state holds a batch that was sampled already: every sample draws its own.
    state = algorithm.from_tree(checkpoint["learner"], CPU)._replace(carry=None)
    setups = actor_setups(experiment, CPU, state.update)
    for index in range(count):
        with ExitStack() as stack:
            own = [
                restarted(replace(setup, seed=(seed, state.update, 1 + index)), games)
                for setup, games in zip(setups, actors, strict=True)
            ]
            for actor in own:
                stack.callback(actor.close)

            def sample(snapshot: WeightSnapshot, j: int, own: Sequence[Actor] = own) -> Trajectory:
                with torch.no_grad():
                    return merge([actor.rollout(snapshot, j) for actor in own], snapshot.version, CPU).trajectory

            yield algorithm.estimate_meta_gradient(state, sample)


def restarted(setup: ActorSetup, games: ActorState) -> Actor:
    """Return an actor whose random streams come from its setup and whose games are these."""
    actor = Actor(setup)
    streams = {name: x for name, x in actor.state().items() if name.endswith("generator") and name in games}
    actor.load_state(games | streams)
    return actor


def meta_gradient_moments(experiment: Experiment, checkpoint: Mapping[str, Any], count: int, seed: int) -> Moments:
    """Return mean and spread of each component of ∂J/∂η over `meta_gradient_samples` of the same arguments."""
    moments: Moments | None = None
    for gradient in meta_gradient_samples(experiment, checkpoint, count, seed):
        moments = add_samples(no_samples(gradient.numel()) if moments is None else moments, gradient[None])
    assert moments is not None, "no samples"
    return moments


def probe_run(
    estimators: Mapping[str, Experiment], folder: Path, updates: Sequence[int], count: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return moments of several estimators at checkpoints of one run; each is kept in the run's folder when done.

    Args:
        estimators: name (of a file) to the run's experiment with that estimator.
        folder: the run's.
        updates: which checkpoints.
        count: samples of each.
        seed: as in `meta_gradient_samples`.

    Returns:
        By name: "updates" [P], "mean" and "std" [P, M].
    """
    found: dict[str, dict[str, Any]] = {name: {"updates": [], "mean": [], "std": []} for name in estimators}
    for update in updates:
        for name, experiment in estimators.items():
            path = folder / "probes" / f"{name}-update{update}-samples{count}.json"
            if not exists(path):
                checkpoint = load(checkpoint_path(folder / "checkpoints", update))
                moments = meta_gradient_moments(experiment, checkpoint, count, seed)
                rows = {"mean": moments.mean, "std": standard_deviation(moments)}
                write_json(path, {key: [float(f"{x:.6g}") for x in row.tolist()] for key, row in rows.items()})
            kept = read_json(path)
            for key, value in ({"updates": update} | kept).items():
                found[name][key].append(value)
    return found


class Normalised(NamedTuple):
    """Holds the spread of an estimator in units of another one's.

    The paper does not say which of the two averages it reports.
    """

    ratio_of_means: float
    mean_of_ratios: float


def normalised_std(std: ArrayLike, reference: ArrayLike) -> Normalised:
    """Divide standard deviations by those of a reference, averaged over components and points of training.

    Equation: ratio of means (1/M) Σ_m (Σ_p σ_pm) / (Σ_p σ'_pm); mean of ratios (1/PM) Σ_pm σ_pm / σ'_pm.

    Args:
        std: σ [P, M] of the estimator at P points.
        reference: σ' [P, M], positive, of the 1-step estimator.

    Source: "One Step at a Time", Table 1.

    >>> normalised_std([[2.0, 3.0], [6.0, 3.0]], [[1.0, 1.0], [1.0, 3.0]])
    Normalised(ratio_of_means=2.75, mean_of_ratios=3.0)
    """
    ours, theirs = np.asarray(std, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return Normalised(float((ours.sum(0) / theirs.sum(0)).mean()), float((ours / theirs).mean()))
