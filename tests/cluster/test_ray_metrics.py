"""Ray's own metric classes are replaced in the fast tests; one slow test scrapes a real node's agent."""

import re
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.on_ray import metrics as ray_metrics
from metagrad.cluster.on_ray.metrics import METRICS, RayMetrics, place_of

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Series:
    """(metric, sorted labels) -> last value of a gauge, sum of a counter, number of a histogram's observations."""
    series: Series = {}

    class Fake:
        def __init__(self, name: str, description: str, *rest: Any):
            self.name, self.keys = name, set(rest[-1])

        def _key(self, tags: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
            assert set(tags) == self.keys, f"{self.name}: {tags}"
            return self.name, tuple(sorted(tags.items()))

        def set(self, value: float, tags: dict[str, str]) -> None:
            series[self._key(tags)] = value

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0  # as Ray asks
            series[self._key(tags)] = series.get(self._key(tags), 0.0) + value

        def observe(self, value: float, tags: dict[str, str]) -> None:
            self.inc(1.0, tags)

    for kind in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, Fake)
    return series


def value(series: Series, metric: str, **labels: str) -> float:
    return series[metric, tuple(sorted(({"experiment": "snake", "run": "first"} | labels).items()))]


SUMMARY = {
    "frames_real": 100,
    "frames_lookahead": 40,
    "sampled": 150,
    "consumed": 140,
    "actors_restarted": 0,
    "dropped_reasons": {"actor died": 10},
}


def test_names_are_legal() -> None:
    for name, declared in METRICS.items():
        assert re.fullmatch(r"metagrad_[a-z_]+", name)  # Ray drops illegal names without an error
        assert declared.label is None or re.fullmatch(r"[a-z]+", declared.label)
        assert declared.label not in ("experiment", "run")


@pytest.mark.parametrize(
    ("scalar", "place"),
    [
        ("episode/return_mean", ("metagrad_return", "mean")),
        ("eta/gamma", ("metagrad_eta", "gamma")),
        ("meta_gradient/gamma", ("metagrad_meta_gradient", "gamma")),
        ("meta_gradient/variance", ("metagrad_meta_gradient_variance", None)),
        ("advantage/outer_mean", ("metagrad_advantage", "outer_mean")),
        ("norm/meta_gradient", ("metagrad_norm", "meta_gradient")),
        ("time/sample_seconds", ("metagrad_phase_seconds", "sample")),
        ("throughput/lookahead_frames_per_second", ("metagrad_frames_per_second", "lookahead")),
        ("users/own", ("metagrad_scalar", "users/own")),
        ("loss", ("metagrad_scalar", "loss")),
    ],
)
def test_every_scalar_has_its_place(scalar: str, place: tuple[str, str | None]) -> None:
    assert place_of(scalar) == place
    assert METRICS[place[0]].kind == "gauge"
    assert (METRICS[place[0]].label is None) == (place[1] is None)


def test_the_names_of_the_conventions_are_no_others() -> None:
    """A scalar of docs/conventions.md falls under `metagrad_scalar` only if its area is nobody's."""
    page = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text()
    areas = set(re.findall(r"^\* `(\w+)/", page, re.MULTILINE))
    assert {"episode", "eta", "meta_gradient", "time"} <= areas
    names = re.findall(r"`((?:episode|advantage|norm|throughput|policy|transport|evaluation)/\w+)`", page)
    assert len(names) >= 6
    pictures = {"evaluation/episode"}
    assert all(place_of(name)[0] != "metagrad_scalar" for name in names if name not in pictures)


def test_a_row_sets_gauges(recorded: Series) -> None:
    RayMetrics("snake", "first").record({"eta/gamma": 0.9, "episode/return_mean": 3.0, "users/own": 1.0}, update=20)
    assert value(recorded, "metagrad_update") == 20
    assert value(recorded, "metagrad_eta", name="gamma") == 0.9
    assert value(recorded, "metagrad_return", statistic="mean") == 3.0
    assert value(recorded, "metagrad_scalar", name="users/own") == 1.0


def test_what_only_grows_is_no_gauge(recorded: Series) -> None:
    RayMetrics("snake", "first").record({"transport/dropped_steps": 5, "transport/actors_restarted": 1}, update=20)
    assert {metric for metric, _ in recorded} == {"metagrad_update"}


def test_every_lag_is_observed(recorded: Series) -> None:
    RayMetrics("snake", "first").lags([0, 0, 3])
    assert value(recorded, "metagrad_lag_versions") == 3


def test_counters_follow_the_totals(recorded: Series) -> None:
    metrics = RayMetrics("snake", "first")
    metrics.totals(SUMMARY)
    metrics.totals(SUMMARY)
    assert value(recorded, "metagrad_frames", kind="real") == 100
    metrics.totals(SUMMARY | {"frames_real": 130, "dropped_reasons": {"actor died": 10, "too old": 6}})
    assert value(recorded, "metagrad_frames", kind="real") == 130
    assert value(recorded, "metagrad_frames", kind="lookahead") == 40
    assert value(recorded, "metagrad_steps_dropped", reason="actor died") == 10
    assert value(recorded, "metagrad_steps_dropped", reason="too old") == 6
    assert value(recorded, "metagrad_steps_sampled") == 150
    assert value(recorded, "metagrad_steps_consumed") == 140


def test_what_a_new_learner_does_again_counts_again(recorded: Series) -> None:
    metrics = RayMetrics("snake", "first")
    for frames in (100, 60, 110):  # 100, back to the checkpoint at 60, and on
        metrics.totals(SUMMARY | {"frames_real": frames})
    metrics.learner_restarted()
    assert value(recorded, "metagrad_frames", kind="real") == 150
    assert value(recorded, "metagrad_learner_restarted") == 1


def test_a_run_leaves_no_scalar_without_a_metric_of_its_own(
    recorded: Series, tiny: Callable[..., Experiment], console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`record` and `totals` take what a training run reports, and its summary."""
    from metagrad.cluster.launch.driver_reports import DriverReports
    from metagrad.learner.reports import Report, Row

    metrics, rows = RayMetrics("snake", "first"), []
    take = DriverReports.__call__

    def record(self: DriverReports, report: Report) -> None:
        if isinstance(report, Row):
            rows.append(report)
            metrics.record(*report)
        take(self, report)

    monkeypatch.setattr(DriverReports, "__call__", record)
    metrics.totals(run(tiny(updates=2), tmp_path / "run", False, console))
    assert rows
    assert "metagrad_scalar" not in {metric for metric, _ in recorded}
    assert value(recorded, "metagrad_frames", kind="real") == 24


@pytest.mark.slow
def test_values_arrive_in_what_prometheus_scrapes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=port, log_to_driver=False)
    try:
        metrics = RayMetrics("snake", "first")
        metrics.record({"eta/gamma": 0.75}, update=20)
        metrics.lags([0, 3])
        metrics.totals(SUMMARY)
        url = f"http://{ray.nodes()[0]['NodeManagerAddress']}:{port}/metrics"
        lines = scraped(url, wanted=r"ray_metagrad_steps_dropped_total\{")
    finally:
        ray.shutdown()
    labels = r'.*experiment="snake".*'
    expected = (
        rf'ray_metagrad_eta\{{{labels}name="gamma".*run="first".*\}} 0.75',
        rf"ray_metagrad_update\{{{labels}\}} 20.0",
        rf'ray_metagrad_frames_total\{{{labels}kind="real".*\}} 100.0',
        rf'ray_metagrad_steps_dropped_total\{{{labels}reason="actor died".*\}} 10.0',
        rf'ray_metagrad_lag_versions_bucket\{{{labels}le="0.5".*\}} 1.0',
        rf'ray_metagrad_lag_versions_bucket\{{{labels}le="3.5".*\}} 2.0',
    )
    missing = [pattern for pattern in expected if not any(re.fullmatch(pattern, line) for line in lines)]
    assert not missing, "\n".join(line for line in lines if "metagrad" in line)
    exported = {declared.exported_as(name) for name, declared in METRICS.items()}
    found = {re.split(r"[{ ]", line)[0] for line in lines if line.startswith("ray_metagrad_")}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in found} <= exported


def scraped(url: str, wanted: str, seconds: float = 60.0) -> list[str]:
    """Lines of the exported text, once one of them is there; agents export every few seconds."""
    deadline, lines = time.monotonic() + seconds, [""]
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:  # the agent is not up yet
            lines = []
        if any(re.match(wanted, line) for line in lines):
            return lines
        time.sleep(1.0)
    raise AssertionError(f"{wanted} did not come within {seconds} s; there were {len(lines)} lines")
