"""Define what every experiment configures: where it runs, for how long, what is kept. Subclasses add algorithms."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import tyro

from metagrad.actors.envs.base import EnvironmentConfig, EnvironmentSpec
from metagrad.actors.evaluate import MAX_EPISODE_STEPS
from metagrad.actors.rollout import Actor, ActorSetup, AnyActor, LookaheadEnvironments
from metagrad.errors import require, require_one_of
from metagrad.learner.algorithm import Algorithm
from metagrad.networks import NetworkSpec
from metagrad.precision import Precision, PrecisionChoice, resolved

ActorDevice = Literal["auto", "cpu", "cuda"]
ScheduleName = Literal["lockstep", "peek"]
LogName = Literal["trackio", "wandb"]
SECONDS_TO_WAIT_FOR_RESOURCES = 3_600.0  # of others, on a cluster, unless told otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Configures when checkpoints are written and how many are kept."""

    every: int = 500
    """Updates between checkpoints; one is also written at the end and on SIGTERM or Ctrl-C."""
    keep: int = 3
    """How many of the newest checkpoints are kept."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "must be at least 1 update", "raise it")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least the newest checkpoint stays", "raise it")


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultConfig:
    """Configures what counts as a fault, and how many of its actors' a run survives."""

    rollout_seconds: float = 120.0
    """Replace an actor that has not returned a rollout, its start included, after this many seconds."""
    restarts_without_progress: int = 5
    """Give an actor up after this many replacements in a row without a rollout; the run continues with the others, and
    ends when none is left."""

    learner_seconds: float | None = None
    """Replace a learner, and all where there are several, that has not answered for this many seconds (topology ray);
    None: 120, or rollout_seconds where these are more."""

    def __post_init__(self) -> None:
        for field, seconds in (("rollout_seconds", self.rollout_seconds), ("learner_seconds", self.learner_seconds)):
            is_time = seconds is None or 0 < seconds <= 86_400
            require(is_time, f"faults.{field}", seconds, "must lie in (0, 86400]", "use at most a day")
        restarts = self.restarts_without_progress
        require(restarts >= 0, "faults.restarts_without_progress", restarts, "must be 0 or more", "raise it")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Configures evaluation beside training: full-life episodes with raw rewards, in environments of its own."""

    every: int = 0
    """Updates between evaluations; 0: none. On Ray a process of its own plays them while training continues; colocated
    training waits for them."""
    episodes: int = 64
    """Episodes of one evaluation."""
    is_greedy: bool = False
    """True: take the most likely action; False: sample."""
    max_steps: int = MAX_EPISODE_STEPS
    """Cut an episode that has not ended after this many steps; the result reports how many were cut."""
    is_shown: bool = False
    """True: also play one episode as a picture for TensorBoard and --log, where the environment has pictures; one that
    is longer than 500 steps is cut."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", self.every, "must be 0 (none) or more updates", "raise it")
        require(self.episodes >= 1, "evaluation.episodes", self.episodes, "must be at least 1", "raise it")
        require(self.max_steps >= 1, "evaluation.max_steps", self.max_steps, "must be at least 1", "raise it")
        for name, is_default in (
            ("episodes", self.episodes == 64),
            ("is_greedy", not self.is_greedy),
            ("max_steps", self.max_steps == MAX_EPISODE_STEPS),
            ("is_shown", not self.is_shown),
        ):
            rule, remedy = "has no effect without evaluation.every", "set evaluation.every or leave it out"
            require(is_default or self.every > 0, f"evaluation.{name}", getattr(self, name), rule, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseExperiment(ABC):
    """Configures one experiment: environment, network, where and how long it runs."""

    name: tyro.conf.Suppress[str]
    description: tyro.conf.Suppress[str]
    env: EnvironmentConfig
    network: NetworkSpec
    environments: int
    """Number of environments, shared out evenly among the actors."""
    rollout_length: int
    """Steps T of every environment per rollout."""
    updates: int
    """Real inner updates to train for."""
    seed: int = 0
    """Seed of everything random in the run."""
    actors: int = 2
    """Number of actors, which step the environments; train, plan and submit also take auto, which chooses it, their
    threads and their environments for the cluster that is there."""
    actor_threads: int = 1
    """CPU threads of each actor (policy inference and C++ environment pools)."""
    actor_processes: int = 1
    """Processes of each actor on Ray, with its CPU threads each: they step equal shares of its environments, and their
    rollouts go to the learner as one. For environments in Python; those of C++ have threads."""
    schedule: ScheduleName = "lockstep"
    """lockstep: every rollout is sampled under exactly the parameters it is used for; peek: look-ahead uses rollouts
    that were streamed under recent parameters, with V-trace corrections, and needs no frames of its own."""
    max_lag: int | None = None
    """With peek, the most real updates (with reuse, batches) between the parameters that sampled a rollout and those of
    the real update that uses it; older rollouts are dropped and counted. None: 4 more than the length of the
    look-ahead."""
    environments_per_actor: int | None = None
    """With peek, environments of one actor. A batch then takes the rollouts that come first, and the number of actors
    is free; --actors is an upper bound. None: environments / actors."""
    lookahead: LookaheadEnvironments = "continue"
    """Look-ahead rollouts continue the real environments, fork their states, or use separate ones."""
    topology: Literal["ray", "colocated"] = "ray"
    """ray: actors are Ray processes, on any node; colocated: they run in the learner's process, without Ray."""
    device: str = "auto"
    """The learner's torch device; auto: cuda where there is one."""
    actor_device: ActorDevice = "auto"
    """Names the device of the actors' policy and of environments that are tensor operations. auto: colocated, the
    learner's device (the CPU for environments stepped in Python); on Ray, cuda with actor_gpus, else the CPU."""
    actor_gpus: float = 0.0
    """Part of a GPU that each actor on Ray asks of its node, to evaluate the policy there."""
    precision: PrecisionChoice = "float32"
    """float32; tf32: products and convolutions of a GPU may round their factors to TF32 (10 bits instead of 23);
    bf16-mixed: layers of networks compute in bfloat16 (8 bits), all else in float32; auto: bf16-mixed where this
    machine's device multiplies bfloat16 in silicon, else float32."""
    learner_threads: int | None = None
    """CPU threads of the learner; None: all cores that it may use, because actors rest while it works or are ahead of
    it, except with peek on Ray without look-ahead, where it is learner_cpus. It may use the cores of its affinity
    mask, at most its container's CPU quota, OMP_NUM_THREADS and the CPUs that Ray counts on its node."""
    log_every: int = 10
    """Updates between two rows of scalars."""
    log: tuple[LogName, ...] = ()
    """Tools that are given the rows of TensorBoard too, once a checkpoint covers them: wandb (Weights & Biases) and
    trackio, of the extras of these names. One that fails says so once, and the run goes on."""
    learners: int = 1
    """Number of learners (topology ray): each has a share of the actors and of every batch, on a GPU of its own where
    the cluster has one for each; together they make exactly the update of one learner with the whole batch. train,
    plan and submit also take auto: one for each GPU of the cluster."""
    learner_cpus: int = 1
    """CPUs of the cluster reserved for each learner's process (topology ray)."""
    learner_restarts: int = 0
    """How often a learner that died is restarted from the newest checkpoint with the same actors (topology ray)."""
    wait_for_resources: float | None = None
    """Seconds to wait before the run begins for CPUs and a GPU that others use (topology ray); None: an hour."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    faults: FaultConfig = FaultConfig()

    def __post_init__(self) -> None:
        require(self.actors >= 1, "actors", self.actors, "a run needs at least one actor", "use --actors 1 or more")
        require(self.actors <= 2**16, "actors", self.actors, "must be at most 65,536", "use fewer")
        self._check_shares()
        self._check_where()
        length, size = self.rollout_length, f"{self.environments} x {self.rollout_length}"
        require(length >= 1, "rollout_length", length, "a rollout has at least one step", "raise it")
        is_small = self.steps_per_rollout < 2**31
        require(is_small, "environments x rollout_length", size, "must be below 2^31 steps", "lower one of them")
        require(self.updates >= 1, "updates", self.updates, "must be at least 1", "raise it")
        remedy = "use a smaller non-negative integer"
        require(0 <= self.seed < 2**63, "seed", self.seed, "must lie in [0, 2^63)", remedy)
        require(self.log_every >= 1, "log_every", self.log_every, "must be at least 1 update", "raise it")
        for tool in self.log:
            require_one_of(tool, LogName, "log")
        require(len(set(self.log)) == len(self.log), "log", self.log, "names a tool twice", "name it once")
        is_shown, rule = self.evaluation.is_shown, f"{type(self.env).__name__} has no pictures"
        can_be = not is_shown or self.env.has_pictures
        require(can_be, "evaluation.is_shown", is_shown, rule, "leave it out")
        for name, count in (
            ("actor_threads", self.actor_threads),
            ("actor_processes", self.actor_processes),
            ("learner_threads", self.learner_threads),
        ):
            require(count is None or 1 <= count <= 1_024, name, count, "must lie in [1, 1024]", "change it")

    def _check_shares(self) -> None:
        """Refuse a batch that is not made of whole rollouts."""
        own = self.environments_per_actor
        share, name = (self.actors, "actors") if own is None else (own, "environments_per_actor")
        remedy = "leave it out or raise it"
        require(own is None or own >= 1, "environments_per_actor", own, "must be at least 1", remedy)
        is_multiple = self.environments >= 1 and self.environments % share == 0
        remedy = f"use --environments {max(1, round(self.environments / share)) * share}"
        rule = f"must be a positive multiple of {name} = {share}"
        require(is_multiple, "environments", self.environments, rule, remedy)
        rule = "needs losses that correct for rollouts of older policies, and this algorithm has none"
        is_taken = self.schedule == "lockstep" or self.takes_streamed_rollouts
        require(is_taken, "schedule", self.schedule, rule, "use lockstep")
        for field, value in (("max_lag", self.max_lag), ("environments_per_actor", own)):
            rule = "belongs to --schedule peek: in lockstep every actor brings its share under the newest parameters"
            require(value is None or self.schedule == "peek", field, value, rule, "leave it out")
        self._check_processes()
        waits = self.look_ahead_batches
        rule, least = (
            f"a batch waits for {waits} updates in the window and is one update old when it arrives",
            waits + 1,
        )
        is_enough = self.max_lag is None or self.max_lag >= least
        require(is_enough, "max_lag", self.max_lag, rule, f"use {least} or more")

    def _check_processes(self) -> None:
        """Refuse processes of actors that would have unequal shares or are no help."""
        processes, share = self.actor_processes, self.environments_of_an_actor
        if processes == 1:
            return
        rule, remedy = "has no effect with --topology colocated", "use --topology ray"
        require(self.topology == "ray", "actor_processes", processes, rule, remedy)
        rule = f"{type(self.env).__name__} steps in threads of its own"
        require(not self.env.has_threads, "actor_processes", processes, rule, "use --actor-threads")
        rule, remedy = f"must divide the {share} environments of an actor", "change it, or the environments"
        is_even = processes < 1 or share % processes == 0
        require(is_even, "actor_processes", processes, rule, remedy)

    def _check_where(self) -> None:
        """Refuse options that only a cluster has."""
        cpus = self.learner_cpus
        require(1 <= cpus <= 1_024, "learner_cpus", cpus, "must lie in [1, 1024]", "change it")
        restarts = self.learner_restarts
        require(restarts >= 0, "learner_restarts", restarts, "must be 0 or more", "raise it")
        check_wait_for_resources(self.wait_for_resources, self.topology)
        self._check_learners()
        self._check_actor_device()
        for field, value, default in (
            ("actor_gpus", self.actor_gpus, 0.0),
            ("learners", self.learners, 1),
            ("learner_cpus", self.learner_cpus, 1),
            ("learner_restarts", restarts, 0),
            ("faults.learner_seconds", self.faults.learner_seconds, None),
        ):
            rule = "has no effect with --topology colocated"
            require(value == default or self.topology == "ray", field, value, rule, "use --topology ray")

    def _check_actor_device(self) -> None:
        """Refuse a device that actors would not see, or would not use."""
        chosen, gpus = self.actor_device, self.actor_gpus
        require_one_of(chosen, ActorDevice, "actor_device")
        rule, remedy = "must be 0 or lie in [0.001, 1]", "use 0.1 for ten actors on a GPU"
        require(gpus == 0 or 0.001 <= gpus <= 1, "actor_gpus", gpus, rule, remedy)
        rule, remedy = "has no effect with --actor-device cpu", "leave one of them out"
        require(gpus == 0 or chosen != "cpu", "actor_gpus", gpus, rule, remedy)
        rule, remedy = "actors on Ray see a GPU only where they ask for a part of it", "add --actor-gpus 0.1"
        is_seen = chosen != "cuda" or gpus > 0 or self.topology == "colocated"
        require(is_seen, "actor_device", chosen, rule, remedy)
        rule, remedy = "colocated actors use the learner's GPU, and --device is cpu", "leave one of them out"
        is_there = chosen != "cuda" or self.topology == "ray" or self.device != "cpu"
        require(is_there, "actor_device", chosen, rule, remedy)

    def _check_learners(self) -> None:
        """Refuse learners that would have nothing to do, and several of an algorithm that only one can run."""
        learners, rule = self.learners, "a run needs at least one learner"
        require(learners >= 1, "learners", learners, rule, "use --learners 1 or more")
        rule = "this algorithm has no sums over shares of a batch"
        require(learners == 1 or self.shares_batches, "learners", learners, rule, "leave it out")
        for name, count in (("actors", self.actors), ("rollouts of a batch", self.rollouts_per_batch)):
            rule = f"each learner has actors and rollouts of its own, and there are {count} {name}"
            require(learners <= count, "learners", learners, rule, f"use --learners {count}, or more actors")

    @abstractmethod
    def algorithm(self, spec: EnvironmentSpec) -> Algorithm[Any]:
        """Return what learns, in environments of this kind."""

    def parameters(self, spec: EnvironmentSpec) -> int:
        """Count the numbers in θ, as far as they are known before anything is made."""
        return 0

    @property
    def actor_type(self) -> Callable[[ActorSetup], AnyActor]:
        """Return what makes an actor of its setup, in any process."""
        return Actor

    @property
    def kinds_of_actors(self) -> int:
        """Return how many kinds of actors there are, in turn."""
        return 1

    @property
    def takes_processes(self) -> bool:
        """True where several processes may share an actor's environments."""
        return True

    @property
    def least_environments(self) -> int:
        """Return the number of environments that the smallest actor would have."""
        return 1

    @property
    def bytes_sent(self) -> int | None:
        """Count the bytes that the actors send for a batch; None: it is of trajectories."""
        return None

    @property
    def has_policy(self) -> bool:
        """True where what the run learns is a policy, which can be played."""
        return True

    @property
    def rollouts_per_order(self) -> int:
        """Count the rollouts that an actor makes for one order of the learner."""
        return 1

    @property
    def has_outer_critic(self) -> bool:
        """True where the network carries an outer-critic head."""
        return False

    @property
    def normalises_observations(self) -> bool:
        """True where the network normalises observations by statistics of the run."""
        return False

    @property
    def return_discount(self) -> float | None:
        """Return γ' of the returns by whose deviation rewards are scaled; None: they are not scaled."""
        return None

    @property
    def takes_streamed_rollouts(self) -> bool:
        """True where the algorithm learns from rollouts of older policies, as --schedule peek has them."""
        return False

    @property
    def shares_batches(self) -> bool:
        """True where several learners can make an update together, each with a share of the batch."""
        return False

    @property
    def vectors_added_up(self) -> int:
        """Count the vectors of the size of θ that several learners add up for a meta-update."""
        return 0

    @property
    def look_ahead_batches(self) -> int:
        """Count the batches beyond the real one that an update looks into."""
        return 0

    @property
    def updates_per_batch(self) -> int:
        """Count the real updates that are made of one batch."""
        return 1

    @property
    def resolved_precision(self) -> Precision:
        """Return `precision`; auto, which a run settles for its device (`settled`), means this machine's CPU here."""
        return self.precision if self.precision != "auto" else self.settled(torch.device("cpu")).resolved_precision

    def settled(self, device: torch.device) -> Self:
        """Return the experiment with the precision that it has where the learner's device is `device`.

        Raises:
            ConfigurationError: TF32 on a device that has none.
        """
        is_float32 = self.precision == "auto" and not self.network.has_hidden_layers
        return replace(self, precision="float32" if is_float32 else resolved(self.precision, device))

    @property
    def resolved_max_lag(self) -> int:
        """Return `max_lag`, or its default."""
        return self.look_ahead_batches + 4 if self.max_lag is None else self.max_lag

    @property
    def resolved_wait_for_resources(self) -> float:
        """Return `wait_for_resources`, or its default, which studies have too."""
        return SECONDS_TO_WAIT_FOR_RESOURCES if self.wait_for_resources is None else self.wait_for_resources

    @property
    def environments_of_an_actor(self) -> int:
        """Return the number of environments that one actor steps together."""
        return self.environments_per_actor or self.environments // self.actors

    @property
    def cpus_of_an_actor(self) -> int:
        """Return the number of CPUs that one actor keeps busy."""
        return self.actor_threads * self.actor_processes

    @property
    def rollouts_per_batch(self) -> int:
        """Return the number of rollouts in one batch."""
        return self.environments // self.environments_of_an_actor

    @property
    def steps_per_rollout(self) -> int:
        """Return the environment steps of one batch, T times B, as often as an order asks for."""
        return self.environments * self.rollout_length * self.rollouts_per_order


def check_wait_for_resources(seconds: float | None, topology: Literal["ray", "colocated"]) -> None:
    """Refuse a time that is none, and any without a cluster to wait for."""
    field, rule = "wait_for_resources", "must lie in [1, 2592000]"
    require(seconds is None or 1 <= seconds <= 2_592_000, field, seconds, rule, "use at most a month")
    rule = "has no effect with --topology colocated"
    require(seconds is None or topology == "ray", field, seconds, rule, "use --topology ray, or leave it out")


OPERATIONAL_FIELDS = frozenset(
    (
        *("updates", "topology", "device", "actor_device", "actor_gpus", "actor_threads", "learner_threads"),
        *("learners", "learner_cpus"),
        *("learner_restarts", "precision", "wait_for_resources", "log_every", "log"),
        *("checkpoint", "evaluation", "faults"),
    )
)
"""How and how long a run is run, not what it computes: these may change when it is resumed."""
