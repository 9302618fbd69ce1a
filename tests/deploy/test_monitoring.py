"""The dashboard asks for what a run exports, and for nothing else but Ray's own."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from metagrad.cluster.on_ray.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent / "deploy" / "monitoring"
BOARD = ROOT / "grafana" / "dashboards" / "metagrad.json"
OF_RAY = {
    *("ray_node_cpu_utilization", "ray_node_mem_used", "ray_object_store_memory", "ray_node_gpus_utilization"),
    *("ray_node_network_receive_speed", "ray_node_network_send_speed"),
}


def exported() -> dict[str, set[str]]:
    """Name in Prometheus -> labels."""
    found: dict[str, set[str]] = {}
    for name, declared in METRICS.items():
        labels = {"experiment", "run"} | ({declared.label} if declared.label else set())
        found[declared.exported_as(name)] = labels
        if declared.kind == "histogram":
            found[f"{declared.exported_as(name)}_bucket"] = labels | {"le"}
    return found


@pytest.fixture
def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(BOARD.read_text(encoding="utf-8"))
    return loaded


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in board["panels"] if panel["type"] != "row")


def test_every_query_is_of_an_exported_metric_and_its_labels(board: dict[str, Any]) -> None:
    known, asked = exported(), set()
    for panel in panels(board):
        for target in panel["targets"]:
            names = re.findall(r"\bray_\w+", target["expr"])
            assert names, target
            for name in names:
                assert name in known.keys() | OF_RAY, f"{panel['title']}: {name}"
                asked.add(name)
                used = set(re.findall(r"{{(\w+)}}", target["legendFormat"])) | set(
                    re.findall(r"(\w+)=~?\"", target["expr"])
                )
                assert name in OF_RAY or used <= known[name], f"{panel['title']}: {used - known[name]}"
    wanted = {
        "ray_metagrad_return",
        "ray_metagrad_eta",
        "ray_metagrad_lag_versions_bucket",
        "ray_metagrad_steps_dropped_total",
    }
    assert wanted <= asked


def test_rare_events_are_shown_as_totals(board: dict[str, Any]) -> None:
    """Their series begin with the first event, at its value: an increase is never seen of that one."""
    rare = [name for name in exported() if re.fullmatch(r"ray_metagrad_\w+_(dropped|restarted)_total", name)]
    assert len(rare) == 3
    asked = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    for name in rare:
        queries = [query for query in asked if name in query]
        assert queries
        assert not [query for query in queries if re.search(r"\b(increase|rate|irate|delta)\(", query)]


def test_every_panel_has_a_title_a_unit_and_a_place_of_its_own(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels(board))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_dashboard_asks_the_provisioned_source(board: dict[str, Any]) -> None:
    (source,) = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    uids = set(re.findall(r'"uid": "([\w-]+)"', BOARD.read_text())) - {board["uid"]}
    assert uids == {source["uid"]}
    compose = yaml.safe_load((ROOT.parent.parent / "docker/compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    (provider,) = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/metagrad.yml").read_text())["providers"]
    mounted = {volume.split(":")[1] for volume in compose["grafana"]["volumes"]}
    assert {provider["options"]["path"], "/etc/grafana/provisioning"} <= mounted


def test_prometheus_follows_rays_own_list_of_nodes() -> None:
    config = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
