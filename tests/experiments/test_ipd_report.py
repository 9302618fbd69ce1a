"""The page of the study `ipd`, from a run of very few updates."""

from pathlib import Path

import pytest

from metagrad.experiments.gradient_bias import ipd
from metagrad.experiments.gradient_bias.ipd_report import (
    PANELS,
    SMOOTHED,
    correlation_panels,
    report,
    reward_panels,
    runs_of,
)


@pytest.fixture(scope="module")
def parts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ipd, "PROBE_SAMPLES", 1)
        patch.setattr(ipd, "CORRELATION_INTERVAL", 1)
        done = {}
        for name, settings in ipd.STUDY.parts(2, True).items():
            small = settings["estimation"] | {"steps": 4}
            if isinstance(small.get("value"), int):
                small["value"] = 8
            done[name] = (settings, ipd.run_part(settings | {"updates": 3, "estimation": small}))
        return done


def test_the_page(parts, tmp_path: Path) -> None:
    report(tmp_path, parts, True)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Quick" in page
    assert (tmp_path / "figure2.png").exists()
    assert (tmp_path / "figure8.png").exists()
    for name in ("Fig. 2a, inner estimate", "Fig. 8c", "effective sample size", "final P(cooperate)", "start 0."):
        assert name in page
    assert "defection -2" in page
    report(tmp_path, parts, False)
    assert "Quick" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_panels_hold_what_was_run(parts) -> None:
    panels = {panel.title: panel for panel in reward_panels(runs_of(parts))}
    assert [curve[0] for curve in panels["2d: off-policy DiCE"].curves][:2] == [
        "inner128-outer128",
        "value-off-hessian-off",
    ]
    assert all(len(mean) == 3 for panel in panels.values() for _, _, mean, _ in panel.curves)
    for panel in correlation_panels(runs_of(parts)):
        assert not panel.title.startswith("2")
        assert all(len(x) == len(mean) == max(1, 3 - SMOOTHED + 1) for _, x, mean, _ in panel.curves)


def test_every_arm_is_in_some_panel() -> None:
    shown = {arm for _, arms in PANELS for arm in arms}
    assert set(ipd.ARMS) - shown == {"inner1024-against-naive"}
