"""Reports the study `ipd`: figures 2 and 8 from our runs, and what the paper's text says of them held against these.

The figures carry no numbers; an ordering holds where 0 is not in the 95 % interval of the paired differences over the
seeds. Reward is the mean undiscounted reward per step of both players; over a run means over its updates.

Source: "A Theoretical Understanding of Gradient Bias in Meta-RL", §5.2 (figure 2), G.2 (figure 8).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from metagrad.actors.envs.iterated_prisoners_dilemma import STATE_NAMES
from metagrad.cluster.studies.study import Result
from metagrad.experiments.reporting.claims import Change, change_row, neighbours
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Parts, by_setting
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, mean_and_std, mean_of, number, std_of

Runs = dict[str, list[Result]]  # by arm, in the order of the seeds

COOPERATION, DEFECTION = -1.0, -2.0  # reward per step of both
WITHIN = 0.02

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


def runs_of(parts: Parts) -> Runs:
    """Return results by arm, in the order of the seeds, whatever the order of the parts."""
    return by_setting(parts, "arm")


def over_run(runs: Runs, arm: str) -> Array:
    """Return the mean reward over all updates of each seed."""
    return np.array([np.mean(result["reward"]) for result in runs[arm]])


def at_end(runs: Runs, arm: str, player: int | None = None) -> Array:
    """Return the mean reward over the last twentieth of the updates of each seed, of both players or of one."""
    rewards = np.array([result["own_reward"] for result in runs[arm]])
    last = rewards[:, -max(1, rewards.shape[1] // 20) :].mean(1)
    return np.asarray(last.mean(1) if player is None else last[:, player])


def probed(runs: Runs, estimator: str) -> Array:
    """Return the mean cosine of an estimator with the exact gradient, over the points of each seed's run."""
    return np.array([np.mean(result["probe"][estimator]) for result in runs["probe"]])


def has(runs: Runs, arms: Iterable[str]) -> bool:
    """Tell whether all these arms were run."""
    return all(arm in runs for arm in arms)


def end_rows(runs: Runs) -> Iterator[Row]:
    """Tell where exact LOLA and independent learners end."""
    for arm, claim, goal in (
        ("inner-exact-outer-exact", "both can reach social welfare, (-1, -1)", COOPERATION),
        ("independent-exact", "-", DEFECTION),
        ("independent-outer128", "-", DEFECTION),
    ):
        if arm not in runs:
            continue
        reward = at_end(runs, arm)
        distance = float(np.abs(reward - goal).max())
        where = "within" if distance <= WITHIN else "not within"
        ours = f"{mean_of(reward)}; every seed {where} {WITHIN} of {number(goal)}"
        off = f"{arm} ends at {mean_of(reward)}, a seed up to {number(distance, 2)} off ({claim})."
        sentences = [off] if distance > WITHIN and claim != "-" else []
        spread = f"farthest seed off by {number(distance, 2)}"
        yield Row(f"{arm}: reward per step at the end", claim, ours, len(reward), spread, sentences)


def claim_rows(runs: Runs) -> Iterator[Row]:
    """Yield orderings of the mean reward over the run, those of the paper and those of ours."""
    for quantity, claim, arms in CLAIMS:
        if has(runs, arms):
            yield change_row(quantity, claim, True, neighbours(arms, [over_run(runs, arm) for arm in arms]))
    if has(runs, (*HESSIAN, *COMPOSITIONAL)):
        gains = [over_run(runs, arms[-1]) - over_run(runs, arms[0]) for arms in (COMPOSITIONAL, HESSIAN)]
        change = Change("exact value", gains[0], "exact derivative", gains[1])
        yield change_row("Gain over value128-hessian128", "that of the Hessian is larger (G.2.2)", True, [change])
    controls = [(f"{off} against as many on-policy games", (on, off)) for off, on in CONTROLS]
    for quantity, arms in (*controls, *NO_CLAIM):
        if has(runs, arms):
            first, second = arms
            yield _compared(quantity, Change(first, over_run(runs, first), second, over_run(runs, second)))


def _compared(quantity: str, change: Change) -> Row:
    """Make a comparison that the paper does not make, whichever way it falls."""
    difference = change.paired
    ours = f"{change}: {difference.direction('higher', 'lower')}"
    return Row(quantity, "-", ours, difference.seeds, f"paired {difference}")


def probe_rows(runs: Runs) -> Iterator[Row]:
    """Compare cosines with the exact gradient, all estimators at the same points of the same runs."""
    for quantity, claim, estimators in PROBED_CLAIMS:
        values = [probed(runs, estimator) for estimator in estimators]
        yield change_row(quantity, claim, True, neighbours(estimators, values))
    values = [probed(runs, estimator) for estimator in COMPOSITIONAL]
    means = [float(value.mean()) for value in values]
    width = max(means) - min(means)
    verdict = "comparable" if width <= COMPARABLE else f"differ by up to {number(width, 2)}"
    ours = ", ".join(f"{name} {number(mean)}" for name, mean in zip(COMPOSITIONAL, means, strict=True))
    spread = "std " + ", ".join(std_of(value) for value in values)
    differ = f"Fig. 8c: the cosines {verdict} ({ours}); in the paper the three are comparable."
    sentences = [differ] if width > COMPARABLE else []
    yield Row("Fig. 8c, cosine", "the three are comparable", f"{ours}: {verdict}", len(values[0]), spread, sentences)
    for name in TABLES:
        better = Change("reward", probed(runs, name), "return-to-go", probed(runs, f"{name} return-to-go"))
        yield _compared(f"Cosine by table of values, {name}", better)
    none = Change("none", probed(runs, "inner128-outer128 no table"), "reward", probed(runs, TABLES[0]))
    yield _compared("Cosine by table of values", none)


def ring_rows(runs: Runs) -> Iterator[Row]:
    """Yield the effective sample size of whole games of the ring."""
    for arm, results in runs.items():
        sizes = np.array([result["effective_sample_size"] for result in results])
        if sizes.size:
            each = sizes.mean(1)
            ours = f"mean {mean_of(each)}, lowest {number(sizes.min())}, of 1,024"
            yield Row(f"{arm}: effective sample size", "-", ours, len(each), f"std {std_of(each)}")


def player_rows(runs: Runs) -> Iterator[Row]:
    """Tell what each player gets where one looks ahead and the other does not."""
    for arm in ("exact-against-naive", "inner1024-against-naive"):
        if arm in runs:
            change = Change("naive", at_end(runs, arm, 1), "looks ahead", at_end(runs, arm, 0))
            yield _compared(f"{arm}: reward per step at the end", change)


def policy_rows(runs: Runs) -> Iterator[Row]:
    """Yield the final probabilities of both players by state, own last action first."""
    for arm, results in runs.items():
        if arm == "probe":
            continue
        mean, std = mean_and_std([result["cooperation"] for result in results])
        ours = "; ".join(
            f"player {player}: " + ", ".join(f"{state} {p:.2f}" for state, p in zip(STATE_NAMES, row, strict=True))
            for player, row in enumerate(mean)
        )
        spread = f"largest std over seeds {number(std.max(), 2)}"
        yield Row(f"{arm}: final P(cooperate)", "-", ours, len(results), spread)


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
    """Return figure 2: reward against updates, mean and standard deviation over the seeds."""
    drawn = []
    for title, arms in panels:
        rewards = {arm: np.array([result["reward"] for result in runs[arm]]) for arm in arms if arm in runs}
        curves = [mean_curve(arm, np.arange(1, each.shape[1] + 1), each) for arm, each in rewards.items()]
        if curves:
            drawn.append(Panel(title, "meta-update", "reward per step", curves))
    return drawn


def correlation_panels(runs: Runs) -> list[Panel]:
    """Return figure 8: cosine with the exact gradient along each arm's own run."""
    drawn = []
    for title, arms in PANELS[:5]:
        curves = []
        for arm in (arm for arm in arms if arm in runs):
            window = min(SMOOTHED, len(runs[arm][0]["cosine"]))
            kernel = np.full(window, 1.0 / window)
            smooth = [np.convolve(result["cosine"], kernel, "valid") for result in runs[arm]]
            curves.append(mean_curve(arm, runs[arm][0]["compared"][window - 1 :], smooth))
        if curves:
            drawn.append(Panel(title.replace("2", "8", 1), "meta-update", "cosine with the exact gradient", curves))
    return drawn


def probe_panel(runs: Runs) -> Panel:
    """Return the cosines of estimators with different tables of values at the same points."""
    names = [estimator for table in TABLES for estimator in (table, f"{table} return-to-go")]
    at = runs["probe"][0]["probed"]
    curves = [mean_curve(name, at, [result["probe"][name] for result in runs["probe"]]) for name in names]
    return Panel("Tables of values at the same points", "meta-update", "cosine with the exact gradient", curves)


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the page of `ipd` with figures 2 and 8."""
    runs = runs_of(parts)
    rows = [*end_rows(runs), *claim_rows(runs), *probe_rows(runs), *player_rows(runs)]
    text = "Reward per step of both players; mean and standard deviation over the seeds."
    along = f"Cosine of gradients with the exact one along the arm's own run, {SMOOTHED} neighbours averaged. "
    write_report(
        folder,
        "LOLA-DiCE on the iterated prisoner's dilemma",
        INTRODUCTION.format(updates=len(next(iter(runs.values()))[0]["reward"]), quick=QUICK if is_quick else ""),
        [*rows, *ring_rows(runs), *policy_rows(runs)],
        [
            Figure("figure2.png", text, reward_panels(runs)),
            Figure(
                "figure8.png",
                f"{along}Last panel: at the same points for all.",
                [*correlation_panels(runs), probe_panel(runs)],
            ),
        ],
    )
