"""Collects rollouts: an actor steps its environments under a published policy and returns T steps of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from metagrad.actors import policy
from metagrad.actors.envs import EnvironmentConfig
from metagrad.actors.envs.base import (
    Environment,
    EnvironmentSpec,
    EnvironmentStep,
    SnapshotEnvironment,
    continue_stream,
)
from metagrad.frame_stacks import FramePacker, unpacked
from metagrad.networks import NetworkSpec, build_network
from metagrad.normalisation import next_return
from metagrad.precision import Precision
from metagrad.recurrence import next_state
from metagrad.types import Episodes, PackedTrajectory, Rollout, Trajectory, WeightSnapshot

LookaheadEnvironments = Literal["continue", "fork", "separate"]
"""Says where rollouts of virtual updates run: the real environments, forks of their states, or a separate pool."""

ActorState = dict[str, Tensor]


class EnvironmentFault(RuntimeError):
    """An environment returned what no environment may return (NaN or infinity)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorSetup:
    """Holds all that an actor needs to start, on any machine."""

    index: int
    environment: EnvironmentConfig
    network: NetworkSpec
    has_outer_critic: bool
    batch_size: int
    rollout_length: int
    lookahead: LookaheadEnvironments
    seed: tuple[int, ...]  # distinct for every run, actor and restart
    device: str = "cpu"  # of the policy, and of environments that are tensor operations
    threads: int = 1
    processes: int = 1  # that share the environments, with so many threads each
    precision: Precision = "float32"
    is_observation_normalised: bool = False
    return_discount: float | None = None  # of the returns by which the learner scales rewards; None: it scales none
    rollouts: int = 1  # that one order makes: a population makes one for each update of its agents, and one more

    @property
    def cpus(self) -> int:
        """Count the CPUs that it keeps busy."""
        return self.processes * self.threads

    @property
    def steps(self) -> int:
        """Count the environment steps of one order."""
        return self.batch_size * self.rollout_length * self.rollouts


class AnyActor(Protocol):
    """Stands for an actor of one process or of several, or for a population."""

    setup: ActorSetup

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        """Collect what one order asks for, under `snapshot`."""
        ...

    def state(self) -> ActorState:
        """Return what a checkpoint needs."""
        ...

    def load_state(self, state: ActorState) -> None:
        """Continue from `state()`."""
        ...

    def close(self) -> None:
        """Close the environments."""
        ...


class Pool:
    """A batch of environments with random streams of its own, what is remembered of the episodes, and their counts."""

    def __init__(self, environment: Environment, seed: int):
        self.environment = environment
        spec = environment.spec
        self.generator = torch.Generator(spec.device).manual_seed(seed)
        self.observation = environment.reset()
        self.episode_return = torch.zeros(spec.batch_size, device=spec.device)
        self.episode_length = torch.zeros(spec.batch_size, dtype=torch.int64, device=spec.device)
        self.steps_done = 0
        self.recurrent_state: Tensor | None = None  # of a recurrent network, before the next step
        self.discounted_return: Tensor | None = None  # of the episodes in progress, where rewards are scaled by it

    def state(self) -> ActorState:
        """Return all that a bitwise continuation needs; nothing where the environments cannot be snapshot."""
        if not isinstance(self.environment, SnapshotEnvironment):
            return {}
        own = {
            "policy_generator": self.generator.get_state(),
            "episode_return": self.episode_return.clone(),
            "episode_length": self.episode_length.clone(),
            "steps_done": torch.tensor(self.steps_done),
        }
        for name in ("recurrent_state", "discounted_return"):
            if (carried := getattr(self, name)) is not None:
                own[name] = carried.clone()
        return own | {f"environment/{name}": x for name, x in self.environment.snapshot().items()}

    def load_state(self, state: ActorState) -> None:
        """Continue from `state()`, bitwise if it comes from the same kind of device."""
        assert isinstance(self.environment, SnapshotEnvironment)
        prefix = "environment/"
        self.environment.restore({k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)})
        self.observation = self.environment.observe()
        continue_stream(self.generator, state["policy_generator"])
        self.episode_return = state["episode_return"].to(self.episode_return.device)
        self.episode_length = state["episode_length"].to(self.episode_length.device)
        self.steps_done = int(state["steps_done"])
        for name in ("recurrent_state", "discounted_return"):
            if (carried := getattr(self, name)) is not None:
                setattr(self, name, state[name].to(carried.device))

    def remember(self, step: EnvironmentStep, state: Tensor | None, return_discount: float | None) -> None:
        """Carry what is remembered over a step, after which a recurrent network's state is `state`."""
        if self.discounted_return is None and self.recurrent_state is None:
            return
        is_end = step.is_terminal | step.is_truncated
        if self.discounted_return is not None and return_discount is not None:
            self.discounted_return = next_return(self.discounted_return, step.reward, is_end, return_discount)
        if self.recurrent_state is not None and state is not None:
            self.recurrent_state = next_state(self.recurrent_state, state, is_end, step.valid)

    def fork_from(self, other: "Pool") -> None:
        """Take over the other pool's game states and what is remembered; this pool's random streams continue."""
        assert isinstance(self.environment, SnapshotEnvironment)
        assert isinstance(other.environment, SnapshotEnvironment)
        self.environment.restore({k: x for k, x in other.environment.snapshot().items() if k != "generator"})
        self.observation = self.environment.observe()
        self.episode_return = other.episode_return.clone()
        self.episode_length = other.episode_length.clone()
        self.recurrent_state, self.discounted_return = other.recurrent_state, other.discounted_return


class _WholeRows:
    """Takes T+1 rows of observations, each written whole."""

    def __init__(self, spec: EnvironmentSpec, first: Shaped[Tensor, "B ..."], length: int):
        shape = (length + 1, spec.batch_size, *spec.observation_shape)
        self._observation = torch.empty(shape, dtype=spec.observation_dtype, device=spec.device)
        self._observation[0] = first
        self._row = 0

    def add(self, observation: Shaped[Tensor, "B ..."]) -> None:
        self._row += 1
        self._observation[self._row] = observation

    def trajectory(self, *steps: Any) -> Trajectory:
        return Trajectory(self._observation, *steps)


def collect(
    pool: Pool, act: policy.Policy, policy_version: int, length: int, return_discount: float | None = None
) -> tuple[Trajectory | PackedTrajectory, Episodes]:
    """Step a pool T times under one policy; return the steps, and the full-life episodes that ended in them.

    Stacks of frames are packed: each frame is written once.

    Raises:
        EnvironmentFault: an observation or reward was NaN or infinite; names environment, index and step.
    """
    spec = pool.environment.spec
    rows: FramePacker | _WholeRows
    if spec.is_frame_stack:
        rows = FramePacker(pool.observation, length)
    else:
        rows = _WholeRows(spec, pool.observation, length)
    columns: list[tuple[Tensor, ...]] = []
    first = (pool.recurrent_state, pool.discounted_return)
    for _ in range(length):
        remembered = () if pool.recurrent_state is None else (pool.recurrent_state,)
        choice = act(pool.observation, pool.generator, *remembered)
        step = pool.environment.step(choice.action)
        rows.add(step.observation)
        pool.observation = step.observation
        # Fresh tensors at each step: the totals that end with this step stay in `columns`.
        pool.episode_return = pool.episode_return + step.raw_reward
        pool.episode_length = pool.episode_length + step.valid
        outcome = (step.reward, step.is_terminal, step.is_truncated, step.valid)
        columns.append(
            (choice.action, choice.log_prob, *outcome, step.is_episode_end, pool.episode_return, pool.episode_length)
        )
        pool.episode_return = pool.episode_return.masked_fill(step.is_episode_end, 0.0)
        pool.episode_length = pool.episode_length.masked_fill(step.is_episode_end, 0)
        pool.remember(step, choice.state, return_discount)
    stacked = [torch.stack(column) for column in zip(*columns, strict=True)]
    action, log_prob, reward, is_terminal, is_truncated, valid, is_end, returns, lengths = stacked
    trajectory = rows.trajectory(action, reward, is_terminal, is_truncated, valid, log_prob, policy_version, *first)
    is_end, returns, lengths, *is_finite = _on_host(is_end, returns, lengths, *_is_finite(spec, trajectory, returns))
    # The reward, and the observations where they have fractions: row t+1 of these is what step t returned.
    for what, finite_rows, before in zip(("reward", "observation"), is_finite, (0, 1), strict=False):
        name_fault(spec, what, finite_rows, pool.steps_done - before)
    pool.steps_done += length
    return trajectory, Episodes(returns[is_end], lengths[is_end])


def _is_finite(spec: EnvironmentSpec, trajectory: Trajectory | PackedTrajectory, returns: Tensor) -> Iterator[Tensor]:
    # Running returns too: the sign of an infinite raw reward is finite.
    yield torch.isfinite(trajectory.reward) & torch.isfinite(returns)
    pixels = trajectory.frames if isinstance(trajectory, PackedTrajectory) else trajectory.observation
    # A sum is finite only if all its terms are, and the mask of all pixels takes longer than the rollout. On another
    # device it takes next to nothing, while the host would wait for the sum.
    is_fractional = spec.observation_dtype.is_floating_point
    if is_fractional and not (pixels.device.type == "cpu" and bool(torch.isfinite(pixels.sum()))):
        yield torch.isfinite(unpacked(trajectory).observation).flatten(2).all(-1)


def _on_host(*columns: Tensor) -> list[Tensor]:
    """Return copies on the host, made by one transfer, since each is waited for; what is there stays."""
    if columns[0].device.type == "cpu":
        return list(columns)
    parts = torch.cat([x.flatten().to(torch.float64) for x in columns]).cpu().split([x.numel() for x in columns])
    return [part.view(x.shape).to(x.dtype) for part, x in zip(parts, columns, strict=True)]


def name_fault(spec: EnvironmentSpec, what: str, is_finite: Bool[Tensor, "rows B"], steps_before: int) -> None:
    """Raise `EnvironmentFault` naming the first environment and step (row 0 is step `steps_before`) that is not finite.

    Steps are counted from 0; the observation of the reset is step -1.
    """
    if not bool(is_finite.all()):
        row, index = (~is_finite).nonzero()[0].tolist()
        step = steps_before + row
        where = "at its reset" if step < 0 else f"at step {step}"
        raise EnvironmentFault(
            f"{spec.name}: environment {index} of {spec.batch_size} returned a non-finite {what} {where}; "
            "nothing can be learnt from it, so the run ends"
        )


class Actor:
    """Steps its own environments with its own network and random streams; knows neither learner nor transport."""

    def __init__(self, setup: ActorSetup):
        self.setup = setup
        self._real = self._make_pool("real")
        spec = self._real.environment.spec
        sizes = (spec.observation_shape, spec.actions)
        self._network = build_network(
            setup.network, *sizes, setup.has_outer_critic, setup.precision, setup.is_observation_normalised
        )
        self._lookahead = self._real if setup.lookahead == "continue" else self._make_pool("lookahead")
        for pool in (self._real, self._lookahead):
            pool.recurrent_state = self._network.fresh_state(spec.batch_size, spec.device)
            if setup.return_discount is not None:
                pool.discounted_return = torch.zeros(spec.batch_size, device=spec.device)

    def _make_pool(self, purpose: Literal["real", "lookahead"]) -> Pool:
        setup = self.setup
        entropy = (*setup.seed, setup.index, ("real", "lookahead").index(purpose))
        environment_seed, policy_seed = np.random.SeedSequence(entropy).generate_state(2).tolist()
        environment = setup.environment.make(
            batch_size=setup.batch_size,
            seed=environment_seed,
            device=torch.device(setup.device),
            threads=setup.threads,
            is_training=True,
        )
        return Pool(environment, policy_seed)

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        """Collect T steps under `snapshot`; step 0 is real, 1…n are rollouts at looked-ahead parameters.

        The policy is evaluated where the snapshot's θ is.
        """
        pool = self._lookahead if lookahead_step else self._real
        if lookahead_step == 1 and self.setup.lookahead == "fork":
            pool.fork_from(self._real)
        network, device = self._network.at(snapshot.theta), snapshot.theta.device
        if device != pool.environment.spec.device:
            network = policy.for_the_host(network, device)
        act = partial(policy.sample, network)
        setup = self.setup
        trajectory, episodes = collect(pool, act, snapshot.version, setup.rollout_length, setup.return_discount)
        if pool is not self._real:
            episodes = Episodes(episodes.returns[:0], episodes.lengths[:0])  # statistics are of the real stream
        return Rollout(trajectory, episodes, self.setup.index, lookahead_step > 0)

    def state(self) -> ActorState:
        """Return both pools' states, for a checkpoint; nothing where the environments cannot be snapshot."""
        state = {f"real/{name}": x for name, x in self._real.state().items()}
        if self._lookahead is not self._real:
            state |= {f"lookahead/{name}": x for name, x in self._lookahead.state().items()}
        return state

    def load_state(self, state: ActorState) -> None:
        """Continue from `state()`; an empty one leaves the fresh environments as they are."""
        for name, pool in (("real", self._real), ("lookahead", self._lookahead)):
            own = {k.removeprefix(f"{name}/"): x for k, x in state.items() if k.startswith(f"{name}/")}
            if own:
                pool.load_state(own)

    def close(self) -> None:
        """Close the environments."""
        self._real.environment.close()
        if self._lookahead is not self._real:
            self._lookahead.environment.close()


def probe(config: EnvironmentConfig) -> EnvironmentSpec:
    """Return the specification of an environment, read off one instance of it."""
    environment = config.make(batch_size=1, seed=0, device=torch.device("cpu"), threads=1, is_training=True)
    environment.close()
    return environment.spec
