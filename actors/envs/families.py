"""Defines families of tasks: environments of one shape, each drawn from its own seed, stepped together.

Shapes: N tasks with B environments each; column n * B + b is environment b of task n. Whatever is random in a task
comes from a stream of its own, so N tasks stepped together do what each would do alone, bit for bit and on any device.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from metagrad.actors.envs.base import DeviceEnvironment, DeviceEnvironmentConfig, EnvironmentStep
from metagrad.actors.envs.snapshots import checked_fields
from metagrad.actors.envs.task_streams import Streams, draw, make_streams
from metagrad.errors import require

LIFETIME = 1_000  # updates, where no paper says more
TASK = 0x46414D  # keeps what tasks are drawn from apart from every stream that is seeded with the same number

P = TypeVar("P", bound=tuple[Tensor, ...])  # a NamedTuple of tensors [N, ...]: what the tasks are
S = TypeVar("S", bound=tuple[Tensor, ...])  # a NamedTuple of tensors [N, B, ...]: the episodes


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFamily(DeviceEnvironmentConfig):
    """Describes a distribution over tasks whose observations have one shape and that have the same actions.

    An ordinary experiment trains on one task of it, that of seed 0.
    """

    task_seed: int = 0
    """Selects the task, whatever the run's seed; families that differ in it alone share no tasks."""

    def __post_init__(self) -> None:
        self.require_whole("task_seed", 0, 2**63 - 1, "use a non-negative integer")

    @abstractmethod
    def make_tasks(
        self, *, seeds: Sequence[int], batch_size: int, device: torch.device, streams: Sequence[int] | None = None
    ) -> "TaskEnvironment[Any, Any]":
        """Make the tasks of these seeds, with B environments each.

        Args:
            seeds: one for each of the N tasks; the same seed draws the same task.
            batch_size: B.
            device: where the environments live.
            streams: seeds of what is random in the episodes of each task; None: those of the tasks.
        """

    @property
    def is_tabular(self) -> bool:
        """True where an observation is a one-hot vector: the number of a state."""
        return False

    @abstractmethod
    def lifetime(self, seed: int) -> int:
        """Return after how many updates the agent of this seed is replaced by a new one in a new task."""

    def make(
        self, *, batch_size: int, seed: int, device: torch.device, threads: int, is_training: bool
    ) -> "TaskEnvironment[Any, Any]":
        """Make B environments of the task of seed 0; neither threads nor training matter."""
        del threads, is_training
        return self.make_tasks(seeds=[0], batch_size=batch_size, device=device, streams=[seed])

    def random_numbers(self, seed: int) -> np.random.Generator:
        """Return what the task of this seed is drawn from, on the host."""
        return np.random.default_rng((TASK, self.task_seed, seed))


def log_uniform(random: np.random.Generator, low: float, high: float, count: int) -> np.ndarray:
    """Draw numbers whose logarithms are uniform."""
    return np.exp(random.uniform(np.log(low), np.log(high), count))


def log_uniform_whole(random: np.random.Generator, bounds: tuple[int, int]) -> int:
    """Draw a whole number within these bounds whose logarithm is uniform before it is rounded."""
    return round(float(log_uniform(random, *bounds, count=1)[0]))


class TaskBatch(NamedTuple):
    """Says which tasks are stepped, and where; see `TaskFamily.make_tasks`."""

    seeds: Sequence[int]
    batch_size: int  # environments of each task
    device: torch.device | str = "cpu"
    streams: Sequence[int] | None = None


class TaskEnvironment(DeviceEnvironment[S], Generic[P, S]):
    """Steps B environments of each of N tasks with SAME_STEP autoreset.

    A subclass says how a task is drawn (`_draw`), how episodes begin (`_begin`) and go on (`_move`), all of it tensor
    operations over tasks and environments, and what is seen (`observe`).
    """

    def __init__(
        self,
        family: TaskFamily,
        batch: TaskBatch,
        *,
        name: str,
        observation_shape: tuple[int, ...],
        action_names: tuple[str, ...],
        draws: tuple[int, int],
    ) -> None:
        """Draw the tasks.

        Args:
            family: what the tasks are drawn from.
            batch: which of them.
            name: of the environments.
            observation_shape: of one observation.
            action_names: names of the actions.
            draws: how many random numbers an environment uses to begin an episode, and for a step.
        """
        seeds, size = list(batch.seeds), batch.batch_size
        require(len(seeds) >= 1, "seeds", seeds, "must name at least one task", "give a seed for each task")
        require(size >= 1, "batch_size", size, "must be at least 1", "raise batch_size")
        super().__init__(
            name=name,
            batch_size=len(seeds) * size,
            observation_shape=observation_shape,
            action_names=action_names,
            device=batch.device,
            seed=None,
        )
        self.family = family
        self.num_tasks, self.environments_per_task = len(seeds), size
        self._draws = draws
        self._tasks: P = self._draw_all(seeds)
        self._streams = self._begin_streams(seeds if batch.streams is None else batch.streams)

    @abstractmethod
    def _draw(self, seed: int) -> P:
        """Draw one task, on the host; its fields have no dimension of tasks."""

    @abstractmethod
    def _begin(self, tasks: P, uniform: Float[Tensor, "n B start_draws"]) -> S:
        """Return the first states of B episodes of each of these tasks."""

    @abstractmethod
    def _move(
        self, tasks: P, state: S, action: Int64[Tensor, "N B"], uniform: Float[Tensor, "N B step_draws"]
    ) -> tuple[S, Float[Tensor, "N B"], Bool[Tensor, "N B"]]:
        """Return the states after one step, the rewards, and where episodes ended."""

    @property
    def tasks(self) -> P:
        """Return what the tasks are, as tensors [N, …] that belong to the environment."""
        return self._tasks

    def state_numbers(self) -> Int64[Tensor, "columns"]:
        """Return where the ones of one-hot observations are, without making these."""
        return self.observe().argmax(-1)

    def step(self, action: Int[Tensor, "columns"]) -> EnvironmentStep:
        """Step all N * B environments once."""
        reward, is_terminal = self.advance(action)
        return EnvironmentStep.same_step(self.observe(), reward, is_terminal)

    def advance(self, action: Int[Tensor, "columns"]) -> tuple[Float[Tensor, "columns"], Bool[Tensor, "columns"]]:
        """Step all N * B environments once without looking at them; return rewards, and where episodes ended."""
        shape = self.num_tasks, self.environments_per_task
        before = self._running()
        numbers, self._streams = draw(self._streams, self.environments_per_task * sum(self._draws))
        # As many numbers whatever happens: the streams depend on the number of steps alone.
        uniform = numbers.view(*shape, sum(self._draws))
        moved, reward, is_terminal = self._move(
            self._tasks, before, action.to(torch.int64).view(shape), uniform[..., self._draws[0] :]
        )
        begun = self._begin(self._tasks, uniform[..., : self._draws[0]])
        self._state = self._chosen(is_terminal, begun, moved)
        return reward.flatten(), is_terminal.flatten()

    def redraw(self, indices: Sequence[int], seeds: Sequence[int]) -> None:
        """Give the tasks at `indices` new ones, drawn from `seeds`, whose episodes begin; the others are untouched.

        A redrawn task does what a task of a new environment does after its `reset`.

        Raises:
            ConfigurationError: not one seed for each index, an index twice, or one that is no task's.
        """
        are_places = len(set(indices)) == len(indices) and all(0 <= i < self.num_tasks for i in indices)
        rule = f"must be different numbers in 0..{self.num_tasks - 1}"
        require(are_places, "indices", list(indices), rule, "name each task once")
        rule, remedy = f"must be as many as the {len(indices)} indices", "give a seed for each task"
        require(len(seeds) == len(indices), "seeds", list(seeds), rule, remedy)
        if not indices:
            return
        running: Any = self._running()
        tasks = self._draw_all(seeds)
        begun, streams = self._first(tasks, self._begin_streams(seeds))
        index = torch.tensor(indices, device=self.spec.device)
        self._tasks = _with_rows(self._tasks, index, tasks)
        self._streams = _with_rows(self._streams, index, streams)
        self._state = _with_rows(running, index, begun)

    def snapshot(self) -> dict[str, Tensor]:
        """Copy the episodes, the tasks ("task_…") and, where anything is random, the streams' state ("generator")."""
        copied = {name: x.clone() for name, x in self._named(self._running(), self._tasks).items()}
        return copied | ({"generator": torch.stack(self._streams)} if any(self._draws) else {})

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put a copy of a snapshot back, tasks included; without a "generator" in it, the own streams continue."""
        state: Any = self._first(self._tasks, self._streams)[0] if self._state is None else self._state
        expected = self._named(state, self._tasks)
        streams = {"streams": snapshot["generator"]} if "generator" in snapshot else {}
        own = {"streams": torch.stack(self._streams)} if streams else {}
        fields = checked_fields(snapshot | streams, expected | own, self.spec.name)
        tasks: Any = self._tasks
        self._state = state._replace(**{name: fields[name] for name in state._fields})
        self._tasks = tasks._replace(**{name: fields[f"task_{name}"] for name in tasks._fields})
        if streams:
            self._streams = Streams(*fields["streams"].unbind())

    def _start(self) -> S:
        begun, self._streams = self._first(self._tasks, self._streams)
        return begun

    def _first(self, tasks: P, streams: Streams) -> tuple[S, Streams]:
        """Return first states of all episodes of these tasks, and the streams after them."""
        shape = streams.start.shape[0], self.environments_per_task, self._draws[0]
        numbers, streams = draw(streams, self.environments_per_task * self._draws[0])
        return self._begin(tasks, numbers.view(shape)), streams

    def _draw_all(self, seeds: Sequence[int]) -> P:
        tasks: list[Any] = [self._draw(seed) for seed in seeds]
        fields = (torch.stack(field).to(self.spec.device) for field in zip(*tasks, strict=True))
        drawn: P = type(tasks[0])(*fields)
        return drawn

    def _begin_streams(self, seeds: Sequence[int]) -> Streams:
        return make_streams(list(seeds), self.spec.device)

    @staticmethod
    def _named(state: Any, tasks: Any) -> dict[str, Tensor]:
        return state._asdict() | {f"task_{name}": x for name, x in tasks._asdict().items()}

    @staticmethod
    def _chosen(where: Bool[Tensor, "N B"], first: S, second: S) -> S:
        """Return the states of `first` where the flag is True, else those of `second`."""
        pairs = zip(first, second, strict=True)
        fields = (torch.where(where.view(where.shape + (1,) * (a.ndim - 2)), a, b) for a, b in pairs)
        chosen: S = type(first)(*fields)
        return chosen


def _with_rows(whole: Any, index: Int64[Tensor, "n"], rows: Any) -> Any:
    """Return copies of all fields with these rows in the places `index`."""
    return type(whole)(*(a.index_copy(0, index, b) for a, b in zip(whole, rows, strict=True)))


def one_hot(index: Int64[Tensor, "columns"], size: int) -> Float[Tensor, "columns size"]:
    """Return float32 rows with a 1 at `index`, in shapes that do not depend on data."""
    return torch.zeros(index.shape[0], size, device=index.device).scatter_(1, index[:, None], 1.0)
