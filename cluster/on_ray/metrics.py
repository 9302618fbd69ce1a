"""Export a run's scalars as Ray metrics for Prometheus: the driver writes them, every node's agent exports its own.

Ray puts `ray_` before each name and `_total` behind a counter's: `metagrad_frames` is scraped as
`ray_metagrad_frames_total`. A series ends with the driver's process. deploy/monitoring/ shows them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

LAG_BOUNDARIES = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 16.5, 32.5)
"""Between whole numbers of versions, so that a bucket's border is never a value; Ray refuses a border of 0."""


@dataclass(frozen=True, slots=True)
class Declared:
    """Declares one metric; beside `experiment` and `run` at most one label tells its series apart."""

    kind: Literal["counter", "gauge", "histogram"]
    description: str
    label: str | None = None

    def exported_as(self, name: str) -> str:
        """Return the name that Prometheus has for it; a histogram has `_bucket` and `_count` besides."""
        return f"ray_{name}_total" if self.kind == "counter" else f"ray_{name}"


METRICS: dict[str, Declared] = {
    "metagrad_update": Declared("gauge", "Real updates done."),
    "metagrad_return": Declared("gauge", "Raw return of the last 100 full-life episodes.", "statistic"),
    "metagrad_episode_length_steps": Declared("gauge", "Mean length of the last 100 full-life episodes."),
    "metagrad_evaluation_return": Declared("gauge", "Raw return of the newest evaluation's episodes.", "statistic"),
    "metagrad_evaluation_length_steps": Declared("gauge", "Mean episode length of the newest evaluation."),
    "metagrad_evaluation_cut_episodes": Declared("gauge", "Episodes of the newest evaluation cut at its step limit."),
    "metagrad_eta": Declared("gauge", "Bounded value of a declared hyper-parameter.", "name"),
    "metagrad_meta_gradient": Declared("gauge", "Component of dJ/deta, unconstrained, before clipping.", "name"),
    "metagrad_meta_gradient_variance": Declared("gauge", "Summed variance over the interval's updates."),
    "metagrad_advantage": Declared("gauge", "Mean inner or outer advantage.", "name"),
    "metagrad_loss": Declared("gauge", "Loss, by part.", "name"),
    "metagrad_norm": Declared("gauge", "Norm of theta, of a gradient, of the meta-gradient.", "name"),
    "metagrad_policy_entropy_nats": Declared("gauge", "Mean entropy of the policy."),
    "metagrad_policy_log_prob_gap_nats": Declared("gauge", "Mean distance of the learner's log-probabilities."),
    "metagrad_policy_effective_sample_size": Declared("gauge", "Share of the steps that importance ratios leave."),
    "metagrad_frames_per_second": Declared("gauge", "Valid environment steps per second.", "kind"),
    "metagrad_lag_mean_versions": Declared("gauge", "Versions between a rollout's policy and the updated one."),
    "metagrad_lag_max_versions": Declared("gauge", "The largest of them since the last row."),
    "metagrad_in_flight_steps": Declared("gauge", "Environment steps ordered or held, and not yet used."),
    "metagrad_collectives_bytes": Declared("gauge", "Bytes that the first of several learners sends per meta-update."),
    "metagrad_phase_seconds": Declared("gauge", "Time of one meta-update, by phase.", "phase"),
    "metagrad_scalar": Declared("gauge", "Any other scalar of the algorithm, under its TensorBoard name.", "name"),
    "metagrad_lag_versions": Declared("histogram", "Versions between a rollout's policy and the updated one."),
    "metagrad_frames": Declared("counter", "Valid environment steps of the run.", "kind"),
    "metagrad_steps_sampled": Declared("counter", "Environment steps ordered from actors."),
    "metagrad_steps_consumed": Declared("counter", "Environment steps that an update has used."),
    "metagrad_steps_dropped": Declared("counter", "Environment steps that were lost.", "reason"),
    "metagrad_actors_restarted": Declared("counter", "Actors that were lost and started again."),
    "metagrad_learner_restarted": Declared("counter", "Learners that died and were started again."),
}
"""All that a run exports, by the name that Ray is told."""

_PLACES: dict[str, tuple[str, str | None]] = {
    "episode/return_mean": ("metagrad_return", "mean"),
    "episode/return_std": ("metagrad_return", "std"),
    "episode/length_mean": ("metagrad_episode_length_steps", None),
    "evaluation/return_mean": ("metagrad_evaluation_return", "mean"),
    "evaluation/return_std": ("metagrad_evaluation_return", "std"),
    "evaluation/cut_episodes": ("metagrad_evaluation_cut_episodes", None),
    "evaluation/length_mean": ("metagrad_evaluation_length_steps", None),
    "meta_gradient/variance": ("metagrad_meta_gradient_variance", None),
    "policy/entropy_nats": ("metagrad_policy_entropy_nats", None),
    "policy/log_prob_gap_nats": ("metagrad_policy_log_prob_gap_nats", None),
    "policy/effective_sample_size": ("metagrad_policy_effective_sample_size", None),
    "throughput/real_frames_per_second": ("metagrad_frames_per_second", "real"),
    "throughput/lookahead_frames_per_second": ("metagrad_frames_per_second", "lookahead"),
    "transport/lag_versions": ("metagrad_lag_mean_versions", None),
    "transport/lag_max_versions": ("metagrad_lag_max_versions", None),
    "transport/in_flight_steps": ("metagrad_in_flight_steps", None),
    "transport/collectives_bytes": ("metagrad_collectives_bytes", None),
}
_AREAS = {
    "eta": "metagrad_eta",
    "meta_gradient": "metagrad_meta_gradient",
    "advantage": "metagrad_advantage",
    "loss": "metagrad_loss",
    "norm": "metagrad_norm",
    "time": "metagrad_phase_seconds",
}
_COUNTED = frozenset(("transport/dropped_steps", "transport/actors_restarted"))  # grow only: `totals` has them


def place_of(scalar: str) -> tuple[str, str | None]:
    """Return metric and label value of a scalar's TensorBoard name; an unknown one is a `metagrad_scalar`."""
    if scalar in _PLACES:
        return _PLACES[scalar]
    area, _, name = scalar.partition("/")
    if area not in _AREAS or not name:
        return "metagrad_scalar", scalar
    return _AREAS[area], name.removesuffix("_seconds") if area == "time" else name


class RayMetrics:
    """Holds the metrics of one run. The process that writes the run's files makes it, within its Ray session.

    A run that is resumed counts on: its counters start from the run's totals, as summary.json has them.
    """

    def __init__(self, experiment: str, run: str):
        """Declare all metrics to Ray; `run` tells runs of one experiment apart, by its folder's name say."""
        self._tags = {"experiment": experiment, "run": run}
        self._totals: dict[tuple[str, str | None], float] = {}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        for name, declared in METRICS.items():
            tags = ("experiment", "run", *([declared.label] if declared.label else []))
            match declared.kind:
                case "gauge":
                    self._gauges[name] = Gauge(name, declared.description, tags)
                case "counter":
                    self._counters[name] = Counter(name, declared.description, tags)
                case "histogram":
                    self._lag = Histogram(name, declared.description, list(LAG_BOUNDARIES), tags)

    def record(self, scalars: Mapping[str, float], update: int) -> None:
        """Set a row of scalars, given under their TensorBoard names."""
        self._gauges["metagrad_update"].set(float(update), self._tags)
        for name, value in scalars.items():
            if name not in _COUNTED:
                metric, label = place_of(name)
                self._gauges[metric].set(float(value), self._labels(metric, label))

    def lags(self, versions: Sequence[int]) -> None:
        """Count the lag of every rollout since the last row."""
        for lag in versions:
            self._lag.observe(float(lag), self._tags)

    def totals(self, summary: Mapping[str, Any]) -> None:
        """Count what the run has used and lost so far, as summary.json has it."""
        self._count_up_to("metagrad_frames", "real", summary["frames_real"])
        self._count_up_to("metagrad_frames", "lookahead", summary["frames_lookahead"])
        self._count_up_to("metagrad_steps_sampled", None, summary["sampled"])
        self._count_up_to("metagrad_steps_consumed", None, summary["consumed"])
        self._count_up_to("metagrad_actors_restarted", None, summary["actors_restarted"])
        for reason, steps in summary["dropped_reasons"].items():
            self._count_up_to("metagrad_steps_dropped", reason, steps)

    def learner_restarted(self) -> None:
        """Count a learner that died, for which another one takes over."""
        self._counters["metagrad_learner_restarted"].inc(1.0, self._tags)

    def _count_up_to(self, metric: str, label: str | None, total: float) -> None:
        # A learner that continues from a checkpoint has a smaller total than the one that died; what it repeats counts.
        grown = total - self._totals.get((metric, label), 0.0)
        self._totals[metric, label] = total
        if grown > 0:
            self._counters[metric].inc(float(grown), self._labels(metric, label))

    def _labels(self, metric: str, label: str | None) -> dict[str, str]:
        declared = METRICS[metric].label
        if declared is None:
            return self._tags
        assert label is not None
        return self._tags | {declared: label}
