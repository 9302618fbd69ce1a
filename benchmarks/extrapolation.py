"""What the fitted models say of more actors than there are cores and memory for: up to 1,000, each on its own core."""

import math
from typing import Any, NamedTuple

from benchmarks.queueing import Learner, Lockstep, Pace, Peek, Rollouts

MORE_ACTORS = (1, 8, 16, 32, 64, 128, 256, 512, 1_000)


def _row(schedule: str, actors: int, environments: int, length: int, pace: Pace) -> dict[str, Any]:
    return {
        "schedule": schedule,
        "actors": actors,
        "environments_of_a_batch": environments,
        "real_frames_per_second": environments * length / pace.update_s,
        "learner_idle_share": pace.learner_idle_share,
    }


def waiting_predicted(lockstep: Lockstep, peek: Peek, share: int, length: int) -> list[dict[str, Any]]:
    """The measured runs with more actors: lockstep's batch has a rollout of each, peek's stays what it is.

    Args:
        lockstep: fitted to them.
        peek: likewise.
        share: environments of an actor.
        length: steps of a rollout.
    """
    return [
        each
        for actors in MORE_ACTORS
        for each in (
            _row("lockstep", actors, actors * share, length, lockstep.pace(actors)),
            _row("peek", actors, peek.batch * share, length, peek.pace(actors)),
        )
    ]


class Atari(NamedTuple):
    """The gradient-bias paper's Atari experiment, actors on a CPU core each and the learner on a GPU, as numbers.

    Numbers that were not measured on this project's machines are assumptions, and said to be; a prediction is as good
    as they are. What a call costs beyond the bytes (order, hand-over) is the fitted models'.
    """

    environments: int = 64  # of a batch (Table 4)
    length: int = 5  # Table 4
    n: int = 3
    entry_lag: int = 4  # max_lag - n, the default
    actor_steps_per_second: float = 2_297.0  # docs/results.md, `environments`: Pong on EnvPool in the loop, one core
    spread: float = 0.2  # assumed: standard deviation of a rollout over its mean
    update_s: float = 0.02  # assumed of a GPU: n = 3 meta-update of 64 x 5, the Nature network
    batch_transfer_s: float = 0.034  # a batch of 10.8 MB from two actors of one machine through Ray
    peek_shares: tuple[int, ...] = (8, 1)  # environments of one of peek's actors

    def predicted(self, lockstep: Lockstep, peek: Peek) -> list[dict[str, Any]]:
        """Against actors. Lockstep shares the batch out, down to one environment each, from where it grows with them.

        Peek's batch is the paper's, with each of the shares, at the default lag and at the least one that gives all of
        its actors orders.
        """
        rows = []
        for actors in MORE_ACTORS:
            share = max(1, self.environments // actors)
            # The learner's seconds go with the batch: beyond the paper's the GPU has as much work as there is more of.
            size = actors * share
            there = lockstep._replace(
                rollouts=self._rollouts(share),
                learner=Learner(self.update_s * max(1.0, size / self.environments), 0.0),
                batches=self.n + 1,
                rollout_s=lockstep.rollout_s + share * self._transfer_s,
            )
            rows.append(_row("lockstep", actors, size, self.length, there.pace(actors)))
            rows += [row for own in self.peek_shares for row in self._peek_rows(peek, actors, own)]
        return rows

    def _peek_rows(self, fitted: Peek, actors: int, share: int) -> list[dict[str, Any]]:
        batch = self.environments // share
        enough = math.ceil((actors + (batch - 1) / 2) / batch)
        rows = []
        for lag in sorted({self.entry_lag, max(self.entry_lag, enough)}):
            there = fitted._replace(
                rollouts=self._rollouts(share),
                learner=Learner(self.update_s, 0.0),
                batch=batch,
                entry_lag=lag,
                take_s=fitted.take_s + share * self._transfer_s,
            )
            row = _row("peek", actors, self.environments, self.length, there.pace(actors))
            rows.append(row | {"environments_of_an_actor": share, "max_lag": lag + self.n})
        return rows

    @property
    def _transfer_s(self) -> float:
        """Of one environment's share of a batch."""
        return self.batch_transfer_s / self.environments

    def _rollouts(self, share: int) -> Rollouts:
        mean = share * self.length / self.actor_steps_per_second
        return Rollouts(mean, self.spread * mean)
