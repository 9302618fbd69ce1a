"""Measures what rounding does to gradients: one state and its trajectories in float32, bf16-mixed and float64.

training run ─► θ, η, optimizer state, rollouts under float32's look-ahead ─┬► float32    ─► ∇L, ∂J/∂η
                                                                            ├► bf16-mixed ─► ∇L, ∂J/∂η
                                                                            └► float64    ─► ∇L, ∂J/∂η
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metagrad.actors.rollout import Actor, probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.run.colocated import colocated_actors
from metagrad.cluster.run.learning import actor_setups
from metagrad.learner.actor_critic import ActorCritic, LearnerState
from metagrad.learner.algorithm import Sample
from metagrad.learner.config import BootstrapConfig
from metagrad.learner.schedule import Lockstep
from metagrad.meta_parameters import init_eta, learnt_slices
from metagrad.precision import Precision
from metagrad.trees import map_tensors
from metagrad.types import Trajectory, WeightSnapshot
from metagrad.unroll import inner_update

CPU = torch.device("cpu")
LEARNT = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")
MU = 0.9  # decay of the trace
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16-mixed")
ESTIMATORS: tuple[Literal["n-step", "mix", "trace", "bmg"], ...] = ("n-step", "mix", "trace", "bmg")


class Case(NamedTuple):
    """Names one way to compute a meta-gradient."""

    n: int
    estimator: Literal["n-step", "mix", "trace", "bmg"]  # bmg: one update from θₙ to a bootstrapped target

    def __str__(self) -> str:
        return f"{self.estimator}, n = {self.n}"


def cases(ns: Sequence[int]) -> list[Case]:
    """Return every way for each n; at n = 1 mix and trace are n-step."""
    return [Case(n, estimator) for n in ns for estimator in ESTIMATORS if n > 1 or estimator in ("n-step", "bmg")]


def measuring(experiment: Experiment, case: Case, precision: Precision) -> Experiment:
    """Return the experiment with another look-ahead, and derivatives in all four hyper-parameters."""
    losses = experiment.meta_parameters
    all_four = {name: replace(getattr(losses, name), is_learnt=True) for name in LEARNT}
    meta = replace(
        experiment.meta,
        n=case.n,
        estimator="n-step" if case.estimator == "bmg" else case.estimator,
        mu=MU if case.estimator == "trace" else None,
        bootstrap=BootstrapConfig(updates=1 if case.estimator == "bmg" else 0),
    )
    return replace(experiment, meta=meta, meta_parameters=replace(losses, **all_four), precision=precision)


def rounding_errors(experiment: Experiment, windows: int, ns: Sequence[int]) -> list[dict[str, Any]]:
    """Train as `experiment` says, colocated and in lockstep, and compare precisions after its last update.

    Returns:
        For each window of rollouts: "inner": relative error and cosine of ∇L by precision; "meta": by case and then
        precision, float64 included, ∂J/∂η [4] in the order of `LEARNT`, before clipping. A window goes on from where
        the games of the one before are.
    """
    spec = probe(experiment.env)
    run = experiment.algorithm(spec)
    ways = {
        case: {precision: measuring(experiment, case, precision).algorithm(spec) for precision in PRECISIONS}
        for case in cases(ns)
    }
    setups = actor_setups(experiment, CPU, 0)
    with colocated_actors(setups, None, experiment.rollouts_per_batch, Actor) as actors:
        live = Lockstep(actors, CPU).sample
        state = run.init(experiment.seed, CPU)
        while state.update < experiment.updates:
            state, _ = run.update(state, live)
        return [_window(run, state, ways, live) for _ in range(windows)]


def _window(
    run: ActorCritic, state: LearnerState, ways: dict[Case, dict[Precision, ActorCritic]], live: Sample
) -> dict[str, Any]:
    """Compare the precisions on fresh rollouts, which all ways share as far as they act by the same parameters."""
    state = _with_all_four(run, state, next(iter(ways.values()))["float32"])
    kept: dict[tuple[int, int], Trajectory] = {}
    inner: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for case, algorithms in ways.items():

        def recorded(snapshot: WeightSnapshot, j: int, n: int = case.n) -> Trajectory:
            key = (n if j > n else 0, j)  # a target's policy depends on n, θⱼ does not
            if key not in kept:
                kept[key] = live(snapshot, j)
            return kept[key]

        def in_float64(snapshot: WeightSnapshot, j: int, replay: Sample = recorded) -> Trajectory:
            return _float64(replay(snapshot, j))

        runs: list[tuple[str, ActorCritic, LearnerState, Sample]] = [  # float32 comes first: it acts
            (name, algorithms[name], state, recorded) for name in PRECISIONS
        ]
        runs.append(("float64", algorithms["float32"], _float64(state), in_float64))
        gradients = {name: algorithm.estimate_meta_gradient(start, of) for name, algorithm, start, of in runs}
        meta[str(case)] = {name: gradient.tolist() for name, gradient in gradients.items()}
        if not inner:
            first = {name: _inner_gradient(algorithm, start, of) for name, algorithm, start, of in runs}
            inner = {name: _compared(first[name], first["float64"]) for name in PRECISIONS}
    return {"inner": inner, "meta": meta}


def _with_all_four(run: ActorCritic, state: LearnerState, algorithm: ActorCritic) -> LearnerState:
    """Let η have those that the run does not learn too, where they are; a target starts from the run's moments."""
    eta, own = init_eta(algorithm.declaration), learnt_slices(run.declaration)
    for name, at in learnt_slices(algorithm.declaration).items():
        if name in own:
            eta[at] = state.eta[own[name]]
    meta_optimizer = algorithm.meta_optimizer.init(eta)
    return state._replace(eta=eta, meta_optimizer=meta_optimizer, target_optimizer=state.optimizer)


def _float64(tree: Any) -> Any:
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, tree)


def _inner_gradient(algorithm: ActorCritic, state: LearnerState, sample: Sample) -> Tensor:
    batch = sample(state.snapshot(), 0)
    return inner_update(algorithm.problem, state.theta, state.optimizer, state.eta, batch, False).step.gradient


def _compared(found: Tensor, exact: Tensor) -> dict[str, float]:
    found = found.double()
    error = (found - exact).norm() / exact.norm()
    return {"error": error.item(), "cosine": torch.cosine_similarity(found, exact, dim=0).item()}
