"""Updates per second against actors, by arithmetic: what `benchmarks.scaling` measures, predicted for more of them.

A closed network: actors that roll out and one learner. A rollout takes R seconds on a machine of the actor's own,
mean and standard deviation measured; the learner's arithmetic is L(rollouts) seconds; what a rollout costs on its way
(order, transfer, merging) is fitted to measured points. Cores that actors would share are not in here.

**Lockstep** is fork-join with a barrier. An update of n + 1 batches, each one rollout of every one of N actors, takes

    C = (n + 1) (a + c N + E[max of N rollouts]) + L(N)

**Peek** is a closed queue with an order for a customer, and one batch of m rollouts for an update. What happens to an
order hardly varies but for its rollout, and up to max_lag batches of finished rollouts even that out, so services are
taken as deterministic: mean value analysis, whose services are exponential, would have the learner wait for batches
that are there already. The slower of the two sides sets the pace:

    C = max(m (R + o) / A + idle, L(m) + m h)        A = min(N, max(2, entry lag) m - (m - 1) / 2)

A is the bounded staleness. A batch may enter the window `entry lag` = max_lag - n updates after its policy was
published, so by Little's law no more than that many batches can be on their way, however many actors there are; of
these, (m - 1) / 2 rollouts on average have arrived and wait for the rest of their batch. `idle` is what actors wait for
orders in an update, since the learner gives none while it computes. It orders two rollouts ahead of an actor while two
batches are not on their way, so the share s = (2 m - N) / N of actors, within [0, 1], has a second order. The others
are at any point U(0, R) of their only one when the learner begins to compute; those with two begin them together if
they ran out of them the last time:

    idle = (1 - s) E[(L - U)⁺] + s (L - 2 R)⁺

Not in here: what rollouts several times as long as the others lose, dropped because they came too late, and the luck
of times that hardly vary (sd below a fifth of the mean), where actors may fall in step with the learner. With sd from a
fifth to half of the mean C is within 7 % of a simulation of the real rules (tests/benchmarks/test_queueing.py).

The share of time in which the learner is idle is 1 - L / C: it waits for rollouts, takes them in or hands out orders.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

_GRID = 20_000  # points of the integral for a maximum; its error is below 1e-6 of the spread
_FINENESS = 24  # points of each axis of a fit's grid
_ZOOMS = 6  # each to the neighbourhood of the best point, a sixth of the length


class Rollouts(NamedTuple):
    """How long one rollout takes."""

    mean_s: float
    sd_s: float


class Learner(NamedTuple):
    """L = fixed + rollouts × per_rollout, of the batch that an update learns from."""

    fixed_s: float
    per_rollout_s: float

    def seconds(self, rollouts: float) -> float:
        """Of an update with so many rollouts in a batch."""
        return self.fixed_s + rollouts * self.per_rollout_s


class Pace(NamedTuple):
    """An update of the whole system in its steady state."""

    update_s: float
    learner_idle_share: float


class Lockstep(NamedTuple):
    """Every batch has one rollout of every actor."""

    rollouts: Rollouts
    learner: Learner
    batches: int  # n + 1
    batch_s: float  # a: of a batch, whoever is in it
    rollout_s: float  # c: of each rollout in it, one after another in the learner

    def pace(self, actors: int) -> Pace:
        """With so many actors."""
        sampling = self.batch_s + actors * self.rollout_s + expected_maximum(self.rollouts, actors)
        return _pace(self.batches * sampling, self.learner.seconds(actors))


class Peek(NamedTuple):
    """An update takes `batch` rollouts, whoever brings them."""

    rollouts: Rollouts
    learner: Learner
    batch: int  # m
    entry_lag: int  # updates between the policy of a rollout and its batch's entry into the window
    order_s: float  # o: of a rollout, between its actor's end of one and begin of the next
    take_s: float  # h: of a rollout in the learner

    @property
    def useful_actors(self) -> float:
        """More than so many find no order that would be in time."""
        return max(2, self.entry_lag) * self.batch - (self.batch - 1) / 2

    def pace(self, actors: int) -> Pace:
        """With so many actors."""
        m, learning = self.batch, self.learner.seconds(self.batch)
        rollout = self.rollouts.mean_s + self.order_s
        second = min(1.0, max(0.0, (2 * m - actors) / actors))
        idle = (1 - second) * _outlasts(learning, rollout) + second * max(0.0, learning - 2 * rollout)
        actors_need = m * rollout / min(actors, self.useful_actors) + idle
        return _pace(max(actors_need - learning, m * self.take_s), learning)


def _pace(waiting: float, learning: float) -> Pace:
    return Pace(waiting + learning, waiting / (waiting + learning))


def _outlasts(x: float, longest: float) -> float:
    """E[(x - U)⁺] with U uniform on [0, longest]."""
    if x <= 0:
        return 0.0
    return x * x / (2 * longest) if x < longest else x - longest / 2


def expected_maximum(rollouts: Rollouts, count: int) -> float:
    """E[max of `count` independent rollouts], gamma distributed with the measured mean and spread.

    Equation: ∫ 1 - F(x)^N dx from 0. A gamma distribution, because a rollout is a sum of steps that take no less than
    no time; it reaches beyond the longest rollout that happened to be measured.

    >>> expected_maximum(Rollouts(1.0, 0.0), 1000)
    1.0
    >>> round(expected_maximum(Rollouts(1.0, 1.0), 3), 4)  # exponential: 1 + 1/2 + 1/3
    1.8333
    """
    mean, sd = rollouts
    if sd == 0 or count == 1:
        return mean
    shape, scale = (mean / sd) ** 2, sd**2 / mean
    # Beyond it lies less than 1e-9 of a maximum, for any shape: a gamma's tail is an exponential of this scale.
    end = mean + 12 * sd * math.sqrt(math.log1p(count)) + scale * (math.log(count) + 20)
    x = torch.linspace(0.0, end, _GRID, dtype=torch.float64)
    cumulative = torch.special.gammainc(torch.tensor(shape, dtype=torch.float64), x / scale)
    return torch.trapezoid(1 - cumulative**count, x).item()


class Point(NamedTuple):
    """What a run with so many actors gave."""

    actors: int
    pace: Pace

    @property
    def sampling_s(self) -> float:
        """Of an update, all that was no learning."""
        return self.pace.update_s * self.pace.learner_idle_share

    @property
    def learning_s(self) -> float:
        """Of an update."""
        return self.pace.update_s - self.sampling_s


def fit_lockstep(rollouts: Rollouts, batches: int, points: Sequence[Point]) -> Lockstep:
    """Least squares of relative errors: L from what was learning, a and c from what was not, none of them negative."""
    learner = Learner(*_fit_line([(x.actors, x.learning_s) for x in points]))
    beyond = [(x.actors, x.sampling_s / batches - expected_maximum(rollouts, x.actors)) for x in points]
    return Lockstep(rollouts, learner, batches, *_fit_line(beyond, [x.sampling_s / batches for x in points]))


def fit_peek(rollouts: Rollouts, batch: int, entry_lag: int, points: Sequence[Point]) -> Peek:
    """L is the mean of the points, whose batches are equal; o and h are those whose relative errors are the least."""
    learner = Learner(math.fsum(x.learning_s for x in points) / len(points), 0.0)

    def model(order_s: float, take_s: float) -> Peek:
        return Peek(rollouts, learner, batch, entry_lag, order_s, take_s)

    def error(order_s: float, take_s: float) -> float:
        there = model(order_s, take_s)
        return math.fsum((there.pace(x.actors).update_s / x.pace.update_s - 1) ** 2 for x in points)

    longest = max(x.pace.update_s for x in points)
    return model(*_minimum(error, longest, longest / batch))


def _fit_line(points: Iterable[tuple[float, float]], sizes: Sequence[float] | None = None) -> tuple[float, float]:
    """Intercept and slope of a line, neither negative, by least squares of errors over `sizes` (default: the values).

    What one of the two would have below 0 the other one has to explain alone.
    """
    x, y = (list(column) for column in zip(*points, strict=True))
    scale = [1 / size**2 for size in (sizes or y)]

    def total(*factors: list[float]) -> float:
        return math.fsum(math.prod(each) for each in zip(scale, *factors, strict=True))

    one, first, second, level, product = total(), total(x), total(x, x), total(y), total(x, y)
    determinant = one * second - first**2
    if determinant > 1e-12 * one * second:
        intercept = (second * level - first * product) / determinant
        slope = (one * product - first * level) / determinant
        if intercept >= 0 and slope >= 0:
            return intercept, slope
    lines = [(max(0.0, level / one), 0.0), (0.0, max(0.0, product / second))]
    return min(lines, key=lambda line: total([(line[0] + line[1] * a - b) ** 2 for a, b in zip(x, y, strict=True)]))


def _minimum(error: Callable[[float, float], float], width: float, height: float) -> tuple[float, float]:
    """Where a function of two numbers in [0, width] × [0, height] is least, by grids that close in."""
    best = (0.0, 0.0)
    low, size = [0.0, 0.0], [width, height]
    for _ in range(_ZOOMS):
        axes = [[low[i] + size[i] * step / _FINENESS for step in range(_FINENESS + 1)] for i in range(2)]
        best = min(((a, b) for a in axes[0] for b in axes[1]), key=lambda at: error(*at))
        size = [each / 6 for each in size]
        low = [max(0.0, best[i] - size[i] / 2) for i in range(2)]
    return best


def errors(predicted: Pace, measured: Pace) -> dict[str, float]:
    """Relative error of the throughput, and how much idle share was predicted too much."""
    return {
        "throughput_relative_error": measured.update_s / predicted.update_s - 1,
        "idle_share_error": predicted.learner_idle_share - measured.learner_idle_share,
    }
