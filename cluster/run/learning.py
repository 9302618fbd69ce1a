"""Makes a training loop of an experiment, ready to run in any process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from metagrad.actors.envs import DeviceEnvironmentConfig
from metagrad.actors.envs.base import EnvironmentSpec, is_cudas_stream
from metagrad.actors.rollout import ActorSetup, ActorState
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.run.memory import keep_freed_memory
from metagrad.cores import default_threads
from metagrad.errors import ConfigurationError, counted, require
from metagrad.learner.actor_critic import ActorCritic
from metagrad.learner.actors import Actors
from metagrad.learner.reports import Message, Reporter, Summary
from metagrad.learner.schedule import Lockstep, Peek, Schedule
from metagrad.learner.team import ALONE, LearnersShare, Stop, Team, own_part, share_of
from metagrad.learner.training import Training, TrainingConfig
from metagrad.precision import Precision, multiplies_bfloat16

OpenActors = Callable[[list[ActorSetup], Sequence[ActorState] | None], AbstractContextManager[Actors]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Says what a learner is to do."""

    experiment: BaseExperiment
    spec: EnvironmentSpec
    checkpoint: dict[str, Any] | None
    """Content of the checkpoint to continue from; None: a fresh run."""
    life: int = 0
    """How many learners of this process of `metagrad train` died before this one."""


def resolve_device(device: str) -> torch.device:
    """Return the learner's device; "auto" is cuda where there is one.

    Raises:
        ConfigurationError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"device = {device!r}: is not a torch device; use auto, cpu or cuda") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        require(
            (resolved.index or 0) < count,
            "device",
            device,
            f"this machine has {counted(count, 'CUDA device')}",
            "use auto",
        )
    else:
        require(resolved.type == "cpu", "device", device, "only cpu and cuda are supported", "use auto, cpu or cuda")
    return resolved


def require_actor_device(experiment: BaseExperiment, learner: torch.device) -> None:
    """Refuse colocated actors on a GPU beside a learner that turns out to have none.

    Raises:
        ConfigurationError: the learner's device is another one.
    """
    is_there = experiment.topology == "ray" or experiment.actor_device != "cuda" or learner.type == "cuda"
    rule, remedy = f"colocated actors use the learner's device, which is {learner}", "use auto or cpu"
    require(is_there, "actor_device", experiment.actor_device, rule, remedy)


def actor_device(experiment: BaseExperiment, learner: torch.device) -> str:
    """Return where actors evaluate the policy, and where environments that are tensor operations live."""
    if experiment.topology == "ray":
        return "cuda" if experiment.actor_gpus else "cpu"
    is_suited = experiment.env.has_threads or isinstance(experiment.env, DeviceEnvironmentConfig)
    is_chosen = experiment.actor_device == "cuda" or (experiment.actor_device == "auto" and is_suited)
    return str(learner) if is_chosen else "cpu"


def set_tf32(precision: Precision) -> None:
    """Choose the float32 arithmetic of this process's CUDA kernels."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def actor_setups(
    experiment: BaseExperiment, device: torch.device, start_update: int, life: int = 0
) -> list[ActorSetup]:
    """Return one setup per actor, with random streams of its own for this run, this resumption and this actor."""
    return [
        ActorSetup(
            index=index,
            environment=experiment.env,
            network=experiment.network,
            has_outer_critic=experiment.has_outer_critic,
            batch_size=experiment.environments_of_an_actor,
            rollout_length=experiment.rollout_length,
            lookahead=experiment.lookahead,
            seed=(experiment.seed, start_update, life << 20),  # the last one also counts the actor's restarts
            device=actor_device(experiment, device),
            threads=experiment.actor_threads,
            processes=experiment.actor_processes,
            precision=experiment.resolved_precision,
            is_observation_normalised=experiment.normalises_observations,
            return_discount=experiment.return_discount,
            rollouts=experiment.rollouts_per_order,
        )
        for index in range(experiment.actors)
    ]


def learner_threads(experiment: BaseExperiment, available: int) -> int:
    """Return how many threads a learner takes: all, since actors rest while it works or are ahead of it.

    Several learners, which may be on one node, share them. In peek without a look-ahead neither is so, and it takes its
    share. What the experiment says comes first.
    """
    if experiment.learner_threads is not None:
        return experiment.learner_threads
    available = max(1, available // experiment.learners)
    is_shared = experiment.topology == "ray" and experiment.schedule == "peek" and experiment.look_ahead_batches == 0
    return min(experiment.learner_cpus, available) if is_shared else available


def share_of_learner(experiment: BaseExperiment, rank: int, size: int) -> LearnersShare:
    """Return what one of `size` learners has of a run: some of its actors, and of each batch as many rollouts."""
    rollouts, environments = share_of(experiment.rollouts_per_batch, rank, size), experiment.environments_of_an_actor
    columns = range(rollouts.start * environments, rollouts.stop * environments)
    return LearnersShare(share_of(experiment.actors, rank, size), rollouts, columns)


def training_config(experiment: BaseExperiment, share: LearnersShare | None = None) -> TrainingConfig:
    """Return what the loop has to know of an experiment; None: it is that of the only learner."""
    steps_of_a_column = experiment.rollout_length * experiment.rollouts_per_order
    return TrainingConfig(
        name=experiment.name,
        seed=experiment.seed,
        updates=experiment.updates,
        steps_per_batch=experiment.steps_per_rollout,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint.every,
        evaluation_every=experiment.evaluation.every,
        precision=experiment.resolved_precision,
        own_steps_per_batch=None if share is None else len(share.columns) * steps_of_a_column,
    )


def _schedule(experiment: BaseExperiment, actors: Actors, device: torch.device, update: int) -> Schedule:
    if experiment.schedule == "lockstep":
        return Lockstep(actors, device)
    version = update // experiment.updates_per_batch
    return Peek(actors, device, 1 + experiment.look_ahead_batches, experiment.resolved_max_lag, version)


def _are_from_elsewhere(experiment: BaseExperiment, states: Sequence[ActorState], device: str) -> bool:
    """True where random streams of actors are those of another kind of device."""
    is_gpu = device.startswith("cuda") and isinstance(experiment.env, DeviceEnvironmentConfig)
    streams = [x for state in states for name, x in state.items() if name.endswith("policy_generator")]
    return any(is_cudas_stream(stream) != is_gpu for stream in streams)


@contextmanager
def prepared_training(
    assignment: Assignment,
    open_actors: OpenActors,
    report: Reporter,
    stop: Stop,
    threads: int | None = None,
    team: Team = ALONE,
) -> Iterator[Training]:
    """Make algorithm, state and actors, and report the summary at the end, also of a run that fails.

    Of several learners each has a share of the actors, and of every batch the columns that they bring.

    `threads` are those that this process may have, `default_threads` where nobody says.

    Raises:
        ConfigurationError: no such device here, or actors that cannot run where they are.
    """
    checkpoint, device = assignment.checkpoint, resolve_device(assignment.experiment.device)
    experiment = assignment.experiment.settled(device)
    precision = experiment.resolved_precision
    set_tf32(precision)
    if precision == "bf16-mixed" and not multiplies_bfloat16(device):
        report(Message(f"precision bf16-mixed: this {device.type} has no units for it and is slower than in float32"))
    keep_freed_memory()
    torch.set_num_threads(learner_threads(experiment, threads or default_threads()))
    algorithm, share = experiment.algorithm(assignment.spec), share_of_learner(experiment, team.rank, team.size)
    if team.size > 1:
        assert isinstance(algorithm, ActorCritic), "only actor-critics are shared (BaseExperiment.shares_batches)"
        algorithm = algorithm.sharing(team.shares)
        checkpoint = None if checkpoint is None else own_part(checkpoint, share)
    if checkpoint is None:
        state, states = algorithm.init(experiment.seed, device), None
    else:
        state, states = algorithm.from_tree(checkpoint["learner"], device), checkpoint["actors"]
    setups = [actor_setups(experiment, device, state.update, assignment.life)[i] for i in share.actors]
    with (
        open_actors(setups, states) as actors,
        closing(_schedule(experiment, actors, device, state.update)) as schedule,
    ):
        training = Training(training_config(experiment, share), algorithm, state, actors, schedule, report, team)
        if checkpoint is not None:
            training.load(checkpoint)
            if checkpoint["device"] != device.type:
                text = f"on {device.type} now, {checkpoint['device']} before: random streams of environments that live "
                report(Message(text + "there start afresh"))
            elif _are_from_elsewhere(experiment, checkpoint["actors"], setups[0].device):
                text = f"actors on {setups[0].device} now, elsewhere before: random streams of their environments start"
                report(Message(f"{text} afresh"))
            if (before := checkpoint.get("learners", 1)) != team.size:
                now = counted(team.size, "learner")
                report(Message(f"{now} now, {before} before: sums over a batch are added up in another order"))
            if (before := checkpoint.get("precision", "float32")) != precision:  # older versions had no other
                report(Message(f"precision {precision} now, {before} before: the run continues in other arithmetic"))
        try:
            yield training
        finally:
            report(Summary(training.summary() | {"stopped_by": stop.signal_name}))
