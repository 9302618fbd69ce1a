"""Steps the tasks of many agents side by side, each under a policy of its own.

Shapes: N agents with a task each, B environments of every task; column n * B + b of the environment is agent n's. What
an agent does comes from a stream of random numbers of its own, as its task's events do, so N agents side by side do
what each would do alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from metagrad.actors.envs.families import TaskEnvironment
from metagrad.actors.envs.task_streams import Streams, draw, make_streams
from metagrad.actors.rollout import ActorState, name_fault
from metagrad.lifetimes import per_agent
from metagrad.types import Episodes
from metagrad.update_rules import LifetimeRollout

Policies = Callable[[Shaped[Tensor, "N B ..."]], Float[Tensor, "N B A"]]
"""Observations of all agents to the logits of each one's policy."""


class Collected(NamedTuple):
    """Holds one rollout of all agents, and what ended or was paid in it."""

    rollout: LifetimeRollout  # each field with the agents in front, [N, T+1, B, ...]
    episodes: Episodes
    reward: Float[Tensor, "N"]  # mean over steps and environments


def chosen(logits: Float[Tensor, "N B A"], uniform: Float[Tensor, "N B"]) -> Int64[Tensor, "N B"]:
    """Return actions by the inverse CDF of a softmax policy.

    >>> chosen(torch.zeros(1, 3, 2), torch.tensor([[0.1, 0.6, 0.999]])).tolist()
    [[0, 1, 1]]
    """
    upto = logits.softmax(-1).cumsum(-1)
    # The sums may end below 1, or at the number itself; the last action is beyond none.
    return (upto[..., :-1] <= uniform[..., None]).sum(-1)


class AgentTasks:
    """Holds the tasks of N agents, and what is remembered of their episodes."""

    def __init__(self, environment: TaskEnvironment[Any, Any], seeds: Sequence[int], is_tabular: bool):
        """Begin all episodes.

        Args:
            environment: the tasks.
            seeds: of the agents' own random numbers.
            is_tabular: observations are one-hot, and agents are shown their numbers.
        """
        self.environment = environment
        self._is_tabular = is_tabular
        spec = environment.spec
        self._agents, self._columns = environment.num_tasks, environment.environments_per_task
        self._streams = make_streams(list(seeds), spec.device)
        environment.reset()
        self._observation = self._look()
        self._return = torch.zeros(spec.batch_size, device=spec.device)
        self._length = torch.zeros(spec.batch_size, dtype=torch.int64, device=spec.device)
        self._steps_done = 0

    def collect(self, policies: Policies, length: int) -> Collected:
        """Step all tasks T times.

        Raises:
            EnvironmentFault: a reward was NaN or infinite.
        """
        agents, columns = self._agents, self._columns
        numbers, self._streams = draw(self._streams, (length + 1) * columns)
        uniform = numbers.view(agents, length + 1, columns)
        observations, logits, actions = [], [], []
        steps: list[tuple[Tensor, ...]] = []
        for t in range(length + 1):
            observations.append(self._observation.unflatten(0, (agents, columns)))
            logits.append(policies(observations[-1]))
            actions.append(chosen(logits[-1], uniform[:, t]))
            if t == length:
                break
            reward, is_end = self.environment.advance(actions[-1].flatten())
            self._observation = self._look()
            self._return, self._length = self._return + reward, self._length + 1
            steps.append((reward, is_end, self._return, self._length))
            self._return = self._return.masked_fill(is_end, 0.0)
            self._length = self._length.masked_fill(is_end, 0)
        reward, is_end, returns, lengths = (torch.stack(x) for x in zip(*steps, strict=True))
        name_fault(self.environment.spec, "reward", torch.isfinite(reward).cpu(), self._steps_done)
        self._steps_done += length
        rollout = LifetimeRollout(
            observation=torch.stack(observations, 1),
            action=torch.stack(actions, 1),
            reward=per_agent(reward, agents),
            is_terminal=per_agent(is_end, agents),
            valid=torch.ones_like(per_agent(is_end, agents)),
            behaviour_logits=torch.stack(logits, 1),
        )
        is_end = is_end.cpu()
        episodes = Episodes(returns.cpu()[is_end], lengths.cpu()[is_end])
        return Collected(rollout, episodes, rollout.reward.mean((1, 2)))

    def _look(self) -> Shaped[Tensor, "columns ..."]:
        """Return what the agents are shown; one-hot rows are not even made, because a table is looked up by number."""
        return self.environment.state_numbers() if self._is_tabular else self.environment.observe()

    def redraw(self, indices: Sequence[int], task_seeds: Sequence[int], seeds: Sequence[int]) -> None:
        """Give these agents new tasks and random numbers; the others are untouched."""
        self.environment.redraw(indices, task_seeds)
        self._observation = self._look()
        where = self._rows(indices)
        columns = where.repeat_interleave(self._columns)
        self._return = self._return.masked_fill(columns, 0.0)
        self._length = self._length.masked_fill(columns, 0)
        fresh = make_streams(list(seeds), self.environment.spec.device)
        index = torch.tensor(list(indices), device=where.device)
        self._streams = Streams(*(a.index_copy(0, index, b) for a, b in zip(self._streams, fresh, strict=True)))

    def _rows(self, indices: Sequence[int]) -> Bool[Tensor, "N"]:
        where = torch.zeros(self._agents, dtype=torch.bool, device=self.environment.spec.device)
        where[list(indices)] = True
        return where

    def state(self) -> ActorState:
        """Return all that a bitwise continuation needs."""
        own = {
            "streams": torch.stack(self._streams),
            "episode_return": self._return.clone(),
            "episode_length": self._length.clone(),
            "steps_done": torch.tensor(self._steps_done),
        }
        return own | {f"environment/{name}": x for name, x in self.environment.snapshot().items()}

    def load_state(self, state: ActorState) -> None:
        """Continue from `state()`."""
        prefix, device = "environment/", self.environment.spec.device
        self.environment.restore({k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)})
        self._observation = self._look()
        self._streams = Streams(*state["streams"].to(device).unbind())
        self._return, self._length = state["episode_return"].to(device), state["episode_length"].to(device)
        self._steps_done = int(state["steps_done"])
