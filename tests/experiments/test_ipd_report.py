"""The page of the study `ipd` from a run of very few updates, and its table: what it says follows from the numbers."""

from pathlib import Path

import numpy as np
import pytest

from metagrad.experiments.gradient_bias import ipd_report as claims
from metagrad.experiments.gradient_bias import ipd_study as ipd
from metagrad.experiments.gradient_bias.ipd_report import (
    PANELS,
    SMOOTHED,
    correlation_panels,
    report,
    reward_panels,
    runs_of,
)
from metagrad.experiments.gradient_bias.ipd_study import ARMS, PROBES
from metagrad.experiments.reporting.report import differences_of


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


def run(arm, reward, seed=0, probe=0.5):
    """Constant rewards; a little of its own for each seed, so that differences have a spread."""
    own = reward + 0.001 * seed * len(arm)
    return (
        {"arm": arm, "seed": seed},
        {
            "reward": [own] * 40,
            "own_reward": [[own, own + 0.1]] * 40,
            "cooperation": [[0.9, 0.1, 0.2, 0.3, 0.8]] * 2,
            "effective_sample_size": [10.0, 20.0] if arm == "value-off-hessian-off" else [],
            "probe": {name: [probe, probe + 0.001 * seed] for name in PROBES} if arm == "probe" else {},
        },
    )


def runs(rewards=None, probe=0.5, seeds=3):
    """All arms and the probe; those in `rewards` with another one than -1.5."""
    arms = dict.fromkeys((*ARMS, "probe"), -1.5) | (rewards or {})
    parts = [run(arm, reward, seed, probe) for arm, reward in arms.items() for seed in range(seeds)]
    return claims.runs_of({str(i): part for i, part in enumerate(reversed(parts))})


def row(rows, quantity):
    return next(row for row in rows if row.quantity.startswith(quantity))


def test_runs_are_in_the_order_of_the_seeds():
    found = runs()["inner128-outer128"]
    assert [result["reward"][0] for result in found] == sorted(result["reward"][0] for result in found)


@pytest.mark.parametrize(("end", "is_within"), [(-1.0, True), (-1.019, True), (-1.021, False), (-0.97, False)])
def test_where_exact_players_end(end, is_within):
    rows = list(claims.end_rows(runs({"inner-exact-outer-exact": end - 0.05}, seeds=1)))  # player 1 has 0.1 more
    sentences = differences_of(rows)
    found = row(rows, "inner-exact-outer-exact")
    assert ("every seed within" if is_within else "every seed not within") in found.ours
    assert bool(sentences) == (not is_within)


def test_an_ordering_is_as_in_the_paper_the_opposite_or_undecided():
    rising = {"inner128-outer128": -1.6, "inner1024-outer128": -1.4, "inner-exact-outer128": -1.1}
    rows = list(claims.claim_rows(runs(rising)))
    sentences = differences_of(rows)
    assert row(rows, "Fig. 2a, inner").ours.count("as in the paper") == 2
    assert not any("inner estimate" in sentence for sentence in sentences)
    falling = {"inner128-outer128": -1.1, "inner1024-outer128": -1.4, "inner-exact-outer128": -1.4}
    rows = list(claims.claim_rows(runs(falling)))
    sentences = differences_of(rows)
    assert "the opposite" in row(rows, "Fig. 2a, inner").ours
    assert any("inner estimate" in sentence and "the opposite" in sentence for sentence in sentences)
    assert not any("as in the paper" in found.ours for found in claims.claim_rows(runs(seeds=1)))


def test_a_control_is_reported_whichever_way_it_falls():
    for reward, says in ((-1.2, "higher"), (-1.8, "lower")):
        rows = list(claims.claim_rows(runs({"value-off-hessian-off": reward})))
        sentences = differences_of(rows)
        found = row(rows, "value-off-hessian-off against")
        assert found.ours.endswith(says)
        assert found.paper == "-"
        assert not any("against as many" in sentence for sentence in sentences)


def test_gain_of_the_hessian_against_that_of_the_value():
    gains = {"value128-hessian-exact": -1.1, "value-exact-hessian128": -1.4}
    assert "as in the paper" in row(claims.claim_rows(runs(gains)), "Gain over").ours
    gains = {"value128-hessian-exact": -1.4, "value-exact-hessian128": -1.1}
    assert "the opposite" in row(claims.claim_rows(runs(gains)), "Gain over").ours


def test_cosines_of_the_compositional_settings():
    found = runs()
    rows = list(claims.probe_rows(found))
    sentences = differences_of(rows)
    assert "comparable" in row(rows, "Fig. 8c").ours
    assert not any("Fig. 8c" in sentence for sentence in sentences)
    for result in found["probe"]:
        result["probe"]["value-exact-hessian128"] = [0.9]
    rows = list(claims.probe_rows(found))
    sentences = differences_of(rows)
    assert "differ by up to" in row(rows, "Fig. 8c").ours
    assert any("Fig. 8c" in sentence for sentence in sentences)
    for result in found["probe"]:
        result["probe"]["inner128-outer128 return-to-go"] = [0.7 + 0.01 * np.mean(result["probe"]["inner128-outer128"])]
    assert row(claims.probe_rows(found), "Cosine by table of values, inner128").ours.endswith("higher")


def test_states_players_and_ring_are_named():
    found = runs()
    assert not any("probe" in of.quantity for of in claims.policy_rows(found))
    assert "start 0.90, DD 0.10, DC 0.20, CD 0.30, CC 0.80" in next(claims.policy_rows(found)).ours
    (ring,) = claims.ring_rows(found)
    assert ring.quantity.startswith("value-off-hessian-off")
    assert "mean 15, lowest 10" in ring.ours
    assert "looks ahead" in next(claims.player_rows(found)).ours
    assert next(claims.player_rows(found)).ours.endswith("lower")  # player 1's rewards are 0.1 more


def test_arms_that_were_not_run_have_no_row():
    quick = {arm: of for arm, of in runs().items() if arm in ("inner128-outer128", "probe", "independent-exact")}
    assert len(list(claims.end_rows(quick))) == 1
    assert not list(claims.claim_rows(quick))
    assert not list(claims.player_rows(quick))
