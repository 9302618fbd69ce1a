"""Table of the study `ipd`: what the paper's text says of figures 2 and 8, held against runs with the same seeds.

The figures carry no numbers; an ordering holds where the paired difference over the seeds is off 0 by more than two
standard errors. Reward is the mean undiscounted reward per step of both players; over a run means over its updates.
"""

from collections.abc import Iterable

import numpy as np

from metagrad.actors.envs.iterated_prisoners_dilemma import STATE_NAMES
from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.reporting.paired import AGREES, Change, claim_row, neighbours, paired
from metagrad.experiments.reporting.report import Array, Row, mean_and_std, number

COOPERATION, DEFECTION = -1.0, -2.0  # reward per step of both
WITHIN = 0.02

Runs = dict[str, list[Result]]  # by arm, in the order of the seeds

INNER = ("inner128-outer128", "inner1024-outer128", "inner-exact-outer128")
OUTER_EXACT = ("inner128-outer-exact", "inner1024-outer-exact")
HESSIAN = ("value128-hessian128", "value128-hessian1024", "value128-hessian-exact")
COMPOSITIONAL = ("value128-hessian128", "value1024-hessian128", "value-exact-hessian128")
OFF_POLICY = ("inner128-outer128", "value-off-hessian-on", "value-on-hessian-off", "value-off-hessian-off")
CONTROLS = (
    ("value-off-hessian-off", "inner1024-outer128"),
    ("value-off-hessian-on", "value1024-hessian128"),
    ("value-on-hessian-off", "value128-hessian1024"),
)
"""Arms with the ring, and on-policy ones whose estimates have as many games in the same places."""

_OFF_POLICY_HELPS = "off-policy DiCE increases performance by either of value and derivative, or by both"
_INNER_MATTERS = "with an inner batch of 128 LOLA fails, with 1,024 it succeeds; exact is better still"
_OUTER_MATTERS = "the outer estimate is crucial too"
CLAIMS = (
    ("Fig. 2a, inner estimate", _INNER_MATTERS, INNER),
    ("Fig. 2a, outer estimate", _OUTER_MATTERS, ("inner1024-outer128", "inner1024-outer-exact")),
    ("Fig. 2a, outer estimate", _OUTER_MATTERS, ("inner-exact-outer128", "inner-exact-outer-exact")),
    ("Fig. 2b, derivative", "Hessian variance is the main problem (8b)", HESSIAN),
    ("Fig. 2c, value", "correcting compositional bias helps (8c)", COMPOSITIONAL),
    ("Fig. 2d, value from the ring", _OFF_POLICY_HELPS, ("inner128-outer128", "value-off-hessian-on")),
    ("Fig. 2d, derivative from the ring", _OFF_POLICY_HELPS, ("inner128-outer128", "value-on-hessian-off")),
    ("Fig. 2d, both from the ring", _OFF_POLICY_HELPS, ("inner128-outer128", "value-off-hessian-off")),
)
NO_CLAIM = (
    ("Baseline of the inner estimate", ("inner128-no-baseline", "inner128-outer128")),
    ("Return-to-go table, inner 128", ("inner128-outer128", "inner128-return-to-go")),
    ("Return-to-go table, inner 1024", ("inner1024-outer128", "inner1024-return-to-go")),
    ("Two steps ahead, exact", ("inner-exact-outer-exact", "exact-2-steps")),
    ("Three steps ahead, exact", ("inner-exact-outer-exact", "exact-3-steps")),
)
_EXACT_INNER_HELPS = "an exact inner loop raises it from 0.7 to 1.0"
PROBED_CLAIMS = (
    ("Fig. 8a, cosine, outer 128", _EXACT_INNER_HELPS, INNER),
    ("Fig. 8a, cosine, outer exact (inner exact: 1)", _EXACT_INNER_HELPS, OUTER_EXACT),
    ("Fig. 8b, cosine", "lower Hessian variance raises it", HESSIAN),
)
TABLES = ("inner128-outer128", "inner1024-outer128", "inner-exact-outer128")
COMPARABLE = 0.05


def runs_of(parts: dict[str, tuple[Settings, Result]]) -> Runs:
    """Results by arm, in the order of the seeds, whatever the order of the parts."""
    ordered = sorted(parts.values(), key=lambda part: part[0]["seed"])
    return {arm: [result for s, result in ordered if s["arm"] == arm] for arm in {s["arm"]: 0 for s, _ in ordered}}


def over_run(runs: Runs, arm: str) -> Array:
    """Mean reward over all updates of each seed."""
    return np.array([np.mean(result["reward"]) for result in runs[arm]])


def at_end(runs: Runs, arm: str, player: int | None = None) -> Array:
    """Mean reward over the last twentieth of the updates of each seed, of both players or of one."""
    rewards = np.array([result["own_reward"] for result in runs[arm]])
    last = rewards[:, -max(1, rewards.shape[1] // 20) :].mean(1)
    return np.asarray(last.mean(1) if player is None else last[:, player])


def probed(runs: Runs, estimator: str) -> Array:
    """Mean cosine of an estimator with the exact gradient, over the points of each seed's run."""
    return np.array([np.mean(result["probe"][estimator]) for result in runs["probe"]])


def has(runs: Runs, arms: Iterable[str]) -> bool:
    """All these arms were run."""
    return all(arm in runs for arm in arms)


def end_rows(runs: Runs) -> tuple[list[Row], list[str]]:
    """Where exact LOLA and independent learners end."""
    rows, sentences = [], []
    paper = {
        "inner-exact-outer-exact": ("both can reach social welfare, (-1, -1)", COOPERATION),
        "independent-exact": ("-", DEFECTION),
        "independent-outer128": ("-", DEFECTION),
    }
    for arm, (claim, goal) in paper.items():
        if arm not in runs:
            continue
        reward = at_end(runs, arm)
        distance = float(np.abs(reward - goal).max())
        where = "within" if distance <= WITHIN else "not within"
        ours = f"{number(float(reward.mean()))}; every seed {where} {WITHIN} of {number(goal)}"
        spread = f"farthest seed off by {number(distance, 2)}"
        rows.append(Row(f"{arm}: reward per step at the end", claim, ours, str(len(reward)), spread))
        if distance > WITHIN and claim != "-":
            sentences.append(
                f"{arm} ends at {number(float(reward.mean()))}, a seed up to {number(distance, 2)} off ({claim})."
            )
    return rows, sentences


def claim_rows(runs: Runs) -> tuple[list[Row], list[str]]:
    """Orderings of the mean reward over the run, those of the paper and those of ours."""
    rows, sentences = [], []
    for quantity, claim, arms in CLAIMS:
        if has(runs, arms):
            row, found = claim_row(quantity, claim, True, neighbours(arms, [over_run(runs, arm) for arm in arms]))
            rows.append(row)
            sentences += found
    if has(runs, (*HESSIAN, *COMPOSITIONAL)):
        gains = [over_run(runs, arms[-1]) - over_run(runs, arms[0]) for arms in (COMPOSITIONAL, HESSIAN)]
        changes = [Change("exact value", gains[0], "exact derivative", gains[1])]
        row, found = claim_row("Gain over value128-hessian128", "that of the Hessian is larger (G.2.2)", True, changes)
        rows.append(row)
        sentences += found
    for off, on in CONTROLS:
        if has(runs, (off, on)):
            rows.append(
                _compared(f"{off} against as many on-policy games", on, over_run(runs, on), off, over_run(runs, off))
            )
    for quantity, (first, second) in NO_CLAIM:
        if has(runs, (first, second)):
            rows.append(_compared(quantity, first, over_run(runs, first), second, over_run(runs, second)))
    return rows, sentences


def _compared(quantity: str, first_label: str, first: Array, second_label: str, second: Array) -> Row:
    """A comparison that the paper does not make, whichever way it falls."""
    difference = paired(first, second)
    kinds = {AGREES: "higher", "the opposite": "lower"}
    kind = kinds.get(difference.verdict(True), "not distinguishable")
    means = [number(float(values.mean())) for values in (first, second)]
    ours = f"{first_label} {means[0]} → {second_label} {means[1]}: {kind}"
    return Row(quantity, "-", ours, str(len(first)), f"paired {difference}")


def probe_rows(runs: Runs) -> tuple[list[Row], list[str]]:
    """Cosines with the exact gradient, all estimators at the same points of the same runs."""
    rows, sentences = [], []
    for quantity, claim, estimators in PROBED_CLAIMS:
        values = [probed(runs, estimator) for estimator in estimators]
        row, found = claim_row(quantity, claim, True, neighbours(estimators, values))
        rows.append(row)
        sentences += found
    values = [probed(runs, estimator) for estimator in COMPOSITIONAL]
    means = [float(value.mean()) for value in values]
    width = max(means) - min(means)
    verdict = "comparable" if width <= COMPARABLE else f"differ by up to {number(width, 2)}"
    ours = ", ".join(f"{name} {number(mean)}" for name, mean in zip(COMPOSITIONAL, means, strict=True))
    spread = "std " + ", ".join(number(float(mean_and_std(value)[1]), 2) for value in values)
    rows.append(Row("Fig. 8c, cosine", "the three are comparable", f"{ours}: {verdict}", str(len(values[0])), spread))
    if width > COMPARABLE:
        sentences.append(f"Fig. 8c: the cosines {verdict} ({ours}); in the paper the three are comparable.")
    for name in TABLES:
        better = f"{name} return-to-go"
        rows.append(
            _compared(
                f"Cosine by table of values, {name}", "reward", probed(runs, name), "return-to-go", probed(runs, better)
            )
        )
    none = "inner128-outer128 no table"
    rows.append(_compared("Cosine by table of values", "none", probed(runs, none), "reward", probed(runs, TABLES[0])))
    return rows, sentences


def ring_rows(runs: Runs) -> list[Row]:
    """Effective sample size of whole games of the ring."""
    rows = []
    for arm, results in runs.items():
        sizes = np.array([result["effective_sample_size"] for result in results])
        if sizes.size:
            each = sizes.mean(1)
            ours = f"mean {number(float(each.mean()))}, lowest {number(float(sizes.min()))}, of 1,024"
            rows.append(
                Row(
                    f"{arm}: effective sample size",
                    "-",
                    ours,
                    str(len(each)),
                    f"std {number(float(mean_and_std(each)[1]), 2)}",
                )
            )
    return rows


def player_rows(runs: Runs) -> list[Row]:
    """Where one player looks ahead and the other does not: what each gets."""
    rows = []
    for arm in ("exact-against-naive", "inner1024-against-naive"):
        if arm in runs:
            shaper, naive = at_end(runs, arm, 0), at_end(runs, arm, 1)
            rows.append(_compared(f"{arm}: reward per step at the end", "naive", naive, "looks ahead", shaper))
    return rows


def policy_rows(runs: Runs) -> list[Row]:
    """Final probabilities of both players by state, own last action first."""
    rows = []
    for arm, results in ((arm, of) for arm, of in runs.items() if arm != "probe"):
        final = np.array([result["cooperation"] for result in results])
        players = [
            ", ".join(f"{state} {p:.2f}" for state, p in zip(STATE_NAMES, row, strict=True)) for row in final.mean(0)
        ]
        spread = f"largest std over seeds {number(float(mean_and_std(final)[1].max()), 2)}"
        ours = f"player 0: {players[0]}; player 1: {players[1]}"
        rows.append(Row(f"{arm}: final P(cooperate)", "-", ours, str(len(final)), spread))
    return rows
