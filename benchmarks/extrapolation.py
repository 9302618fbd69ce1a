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

    def predicted(self, lockstep: Lockstep, peek: Peek) -> list[dict[str, Any]]:
        """Against actors. Lockstep shares the batch out, down to one environment each, from where it grows with them.

        Peek has actors of one environment, at the default lag and at the least one that gives all of them orders; a
        batch is what the paper has.
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
            enough = math.ceil((actors + (self.environments - 1) / 2) / self.environments)
            for lag in sorted({self.entry_lag, max(self.entry_lag, enough)}):
                pace = self._peek(peek, lag).pace(actors)
                rows.append(_row("peek", actors, self.environments, self.length, pace) | {"max_lag": lag + self.n})
        return rows

    def _peek(self, fitted: Peek, entry_lag: int) -> Peek:
        return fitted._replace(
            rollouts=self._rollouts(1),
            learner=Learner(self.update_s, 0.0),
            batch=self.environments,
            entry_lag=entry_lag,
            take_s=fitted.take_s + self._transfer_s,
        )

    @property
    def _transfer_s(self) -> float:
        """Of one environment's share of a batch."""
        return self.batch_transfer_s / self.environments

    def _rollouts(self, share: int) -> Rollouts:
        mean = share * self.length / self.actor_steps_per_second
        return Rollouts(mean, self.spread * mean)
