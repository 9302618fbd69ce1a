"""Report of the study `ipd`: figures 2 and 8 as ours are, and the page with the table.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", figures 2 and 8.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.gradient_bias.ipd_claims import (
    COMPOSITIONAL,
    HESSIAN,
    INNER,
    OFF_POLICY,
    TABLES,
    Runs,
    claim_rows,
    end_rows,
    player_rows,
    policy_rows,
    probe_rows,
    ring_rows,
    runs_of,
)
from metagrad.experiments.reporting.report import Panel, line_panels, mean_and_std, write_report

INTRODUCTION = """{quick}Two players with five parameters each play 100 rounds of the iterated prisoner's dilemma
(discount 0.96) and make {updates} updates at the same time. Each looks at one virtual gradient step of the other
(learning rate 0.3) and updates its own parameters (Adam, 0.1) by the gradient through it. Names say from what the inner
update (value and derivative together, or apart with games of their own) and the outer gradient are estimated: so many
games, or exactly. "off" is the ring of 1,024 games that both players' look-aheads push 128 into, importance-weighted
without clipping.

Mutual cooperation pays -1 per step, mutual defection -2. States are named by the last actions, own first: D defect, C
cooperate. Rewards without a place are means over all updates: the curves are not monotone. Tables of values regress on
the immediate reward, as the paper's release does, unless an arm says return-to-go. Exact gradients are deterministic
and start at the same policies, so seeds of exact arms differ only in the games that are scored."""
QUICK = "**Quick: few updates, arms and seeds; nothing here is a result.** "
SMOOTHED = 10  # neighbouring cosines averaged in a picture

PANELS = (
    ("2a: inner and outer estimate", (*INNER, "inner1024-outer-exact", "inner-exact-outer-exact")),
    ("2b: derivative of the inner update", HESSIAN),
    ("2c: value of the inner update", COMPOSITIONAL),
    ("2d: off-policy DiCE", (*OFF_POLICY, "inner128-no-baseline", "inner1024-outer128")),
    ("Beyond: table of values", ("inner128-return-to-go", "inner1024-return-to-go", *INNER[:2])),
    (
        "Beyond: who looks how far ahead",
        (
            "inner-exact-outer-exact",
            "exact-2-steps",
            "exact-3-steps",
            "exact-against-naive",
            "independent-exact",
            "independent-outer128",
        ),
    ),
)


def reward_panels(runs: Runs, panels: Sequence[tuple[str, Sequence[str]]] = PANELS) -> list[Panel]:
    """Figure 2: reward against updates, mean and standard deviation over the seeds."""
    drawn = []
    for title, arms in panels:
        curves = []
        for arm in (arm for arm in arms if arm in runs):
            mean, std = mean_and_std([result["reward"] for result in runs[arm]])
            curves.append((arm, np.arange(1, len(mean) + 1), mean, std))
        if curves:
            drawn.append(Panel(title, "meta-update", "reward per step", curves))
    return drawn


def correlation_panels(runs: Runs) -> list[Panel]:
    """Figure 8: cosine with the exact gradient along each arm's own run."""
    drawn = []
    for title, arms in PANELS[:5]:
        curves = []
        for arm in (arm for arm in arms if arm in runs):
            window = min(SMOOTHED, len(runs[arm][0]["cosine"]))
            kernel = np.full(window, 1.0 / window)
            mean, std = mean_and_std([np.convolve(result["cosine"], kernel, "valid") for result in runs[arm]])
            curves.append((arm, runs[arm][0]["compared"][window - 1 :], mean, std))
        if curves:
            drawn.append(Panel(title.replace("2", "8", 1), "meta-update", "cosine with the exact gradient", curves))
    return drawn


def probe_panel(runs: Runs) -> Panel:
    """Cosines of estimators with different tables of values at the same points."""
    curves = []
    for name in (estimator for table in TABLES for estimator in (table, f"{table} return-to-go")):
        mean, std = mean_and_std([result["probe"][name] for result in runs["probe"]])
        curves.append((name, runs["probe"][0]["probed"], mean, std))
    return Panel("Tables of values at the same points", "meta-update", "cosine with the exact gradient", curves)


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Write figures 2 and 8 as ours are, and report.md."""
    runs = runs_of(parts)
    line_panels(folder / "figure2.png", reward_panels(runs))
    line_panels(folder / "figure8.png", [*correlation_panels(runs), probe_panel(runs)])
    parts_of = [end_rows(runs), claim_rows(runs), probe_rows(runs)]
    rows = [row for found, _ in parts_of for row in found] + player_rows(runs) + ring_rows(runs) + policy_rows(runs)
    updates = len(next(iter(runs.values()))[0]["reward"])
    write_report(
        folder,
        "LOLA-DiCE on the iterated prisoner's dilemma",
        INTRODUCTION.format(updates=updates, quick=QUICK if is_quick else ""),
        rows,
        [
            ("figure2.png", "Reward per step of both players; mean and standard deviation over the seeds."),
            (
                "figure8.png",
                f"Cosine of gradients with the exact one along the arm's own run, {SMOOTHED} neighbours averaged. "
                "Last panel: at the same points for all.",
            ),
        ],
        [sentence for _, found in parts_of for sentence in found],
    )
