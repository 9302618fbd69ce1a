"""Tables and figures of the study `snake-12x12`, beside Table 1 of "One Step at a Time".

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", Table 1 and Figure 3.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time.snake_12x12 import UPDATES
from metagrad.experiments.reporting.paired import Change, claim_row, neighbours
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report
from metagrad.experiments.training.meta_gradient_probe import Normalised, normalised_std


class Published(NamedTuple):
    """A column of Table 1: mean and standard deviation over 3 seeds."""

    final_return: tuple[float, float]
    spread: tuple[float, float] | None  # of the meta-gradient, in units of the 1-step arm's


PUBLISHED: dict[str, Published] = {
    "0": Published((67, 3), None),
    "1": Published((85, 28), (1.0, 0.0)),
    "3": Published((114, 15), (4.6, 0.5)),
    "5": Published((97, 7), (8.6, 2.1)),
    "10": Published((86, 9), (23.5, 8.4)),
    "3-mix": Published((115, 2), (1.7, 0.4)),
    "5-mix": Published((113, 12), (2.6, 0.8)),
}
TITLES = {arm: arm if "mix" in arm else f"{arm}-step" for arm in PUBLISHED}
Runs = Literal["own", "1-step"]
Average = Literal["ratio of means", "mean of ratios"]
RUNS: tuple[Runs, ...] = ("own", "1-step")
AVERAGES: tuple[Average, ...] = ("ratio of means", "mean of ratios")
META_PARAMETERS = {
    "eta/gamma": "discount γ",
    "eta/lambda": "λ",
    "eta/value_coefficient": "critic coefficient",
    "eta/entropy_coefficient": "entropy coefficient",
}
_RETURN = "episode/return_mean"


def by_arm(parts: Mapping[str, tuple[Settings, Result]]) -> dict[str, list[Result]]:
    """Results of every arm, in the order of Table 1, seeds in order."""
    found = {}
    for arm in PUBLISHED:
        own = sorted(((s["seed"], r) for s, r in parts.values() if s["arm"] == arm), key=lambda each: int(each[0]))
        if own:
            found[arm] = [result for _, result in own]
    return found


def spreads(results: Mapping[str, list[Result]], arm: str, runs: Runs) -> list[Normalised]:
    """Spread of an arm's meta-gradient in units of the 1-step arm's, by seed; none where nothing was sampled.

    `runs` is whose training the arm's was sampled along; the 1-step one's always along its own.
    """
    found = []
    for own, common in zip(results[arm], results["1"], strict=True):
        sampled = (own if runs == "own" else common)["probes"].get(arm, {"std": []})["std"]
        if sampled:
            found.append(normalised_std(sampled, common["probes"]["1"]["std"]))
    return found


def _value(spread: Normalised, average: Average) -> float:
    return spread.ratio_of_means if average == "ratio of means" else spread.mean_of_ratios


def _return_rows(results: Mapping[str, list[Result]]) -> Iterator[Row]:
    for arm, published in PUBLISHED.items():
        values = np.array([result["return"]["mean"] for result in results[arm]])
        mean, std = mean_and_std(values)
        paper = "{:g} (std {:g})".format(*published.final_return)
        spread = f"std {number(float(std), 2)}, {number(values.min())} to {number(values.max())}"
        yield Row(f"{TITLES[arm]}: return at the end", paper, number(float(mean)), str(len(values)), spread)


def _spread_rows(results: Mapping[str, list[Result]]) -> Iterator[Row]:
    """Both averages along both kinds of runs: the paper says neither which one nor along which."""
    for runs in RUNS:
        for arm, published in PUBLISHED.items():
            found = spreads(results, arm, runs) if published.spread is not None and arm != "1" else []
            if not found or published.spread is None:
                continue
            paper = "{:g} (std {:g})".format(*published.spread)
            ours, stds = [], []
            for average in AVERAGES:
                mean, std = mean_and_std([_value(each, average) for each in found])
                ours.append(f"{number(float(mean))} ({average})")
                stds.append(number(float(std), 2))
            whose = "its own run" if runs == "own" else "the 1-step run"
            label = f"{TITLES[arm]}: std of the meta-gradient / that of 1-step, along {whose}"
            yield Row(label, paper, ", ".join(ours), str(len(found)), f"std {', '.join(stds)}")


def _claims(results: Mapping[str, list[Result]]) -> Iterator[tuple[Row, list[str]]]:
    """What the text makes of Table 1 (§3.2, §3.5), by paired differences over seeds."""

    def returns(*arms: str) -> list[Change]:
        values = [[result["return"]["mean"] for result in results[arm]] for arm in arms]
        return neighbours([TITLES[arm] for arm in arms], values)

    yield claim_row("return at the end", "rises with n at first", True, returns("0", "1", "3"))
    yield claim_row("return at the end, more steps", "then falls", False, returns("3", "5", "10"))
    yield claim_row("return at the end, mixing 5", "5-mix above 5-step", True, returns("5", "5-mix"))
    for runs in RUNS:
        of = {arm: spreads(results, arm, runs) for arm in PUBLISHED if arm != "0"}
        if not all(of.values()):
            continue

        def changes(*arms: str, of: dict[str, list[Normalised]] = of) -> list[Change]:
            values = [[each.mean_of_ratios for each in of[arm]] for arm in arms]
            return neighbours([TITLES[arm] for arm in arms], values)

        along = "own runs" if runs == "own" else "the 1-step run"
        name = f"std of the meta-gradient (mean of ratios, along {along})"
        yield claim_row(name, "the higher n, the higher", True, changes("1", "3", "5", "10"))
        mixed = [*changes("3", "3-mix"), *changes("5", "5-mix")]
        yield claim_row(f"{name}, mixing", "mixing cuts it, by 3 for n = 3", False, mixed)


def _panels(results: Mapping[str, list[Result]]) -> list[Panel]:
    """Figure 3: returns, and the four meta-parameters of the arms that learn them."""
    panels = []
    for name, title in {_RETURN: "return", **META_PARAMETERS}.items():
        lines: list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]] = []
        for arm, own in results.items():
            curves = [result[name] for result in own if name in result]
            if not curves:
                continue
            updates, values = _common([curve["updates"] for curve in curves], [curve["values"] for curve in curves])
            mean, std = mean_and_std(values)
            lines.append((TITLES[arm], updates, mean, std))
        label = "mean of the last 512 episodes" if name == _RETURN else "mean of each interval"
        panels.append(Panel(title, "updates", label, lines))
    return panels


def _common(updates: list[list[int]], values: list[list[float]]) -> tuple[Array, Array]:
    """Curves at the updates that all of them have: no episode has ended yet where a return is missing."""
    shared = sorted(set(updates[0]).intersection(*updates))
    rows = [
        [dict(zip(at, row, strict=True))[update] for update in shared] for at, row in zip(updates, values, strict=True)
    ]
    return np.array(shared, dtype=np.float64), np.array(rows, dtype=np.float64)


def _spread_panels(results: Mapping[str, list[Result]]) -> list[Panel]:
    """Standard deviations along the 1-step runs, one panel for each meta-parameter."""
    panels = []
    probes = [result["probes"] for result in results["1"]]
    for component, title in enumerate(META_PARAMETERS.values()):
        lines: list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]] = []
        for arm in probes[0]:
            of = [each[arm] for each in probes]
            mean, std = mean_and_std([np.array(each["std"])[:, component] for each in of])
            lines.append((TITLES[arm], of[0]["updates"], mean, std))
        panels.append(Panel(f"∂J/∂logit of {title}", "updates", "standard deviation", lines, is_log_y=True))
    return panels


_INTRODUCTION = """\
A2C on Snake 12x12 whose discount, λ, critic and entropy coefficients are tuned by meta-gradients through n updates, the
first of which is kept; 0-step keeps them as they start. {seeds} seed(s), {updates} updates of {environments}
environments x {length} steps with a step size that falls to 0 over {annealing}; look-ahead rollouts run in the same
environments. Return at the end: mean of {episodes} full episodes under the sampled policy. Spread of a meta-gradient:
{samples} independent samples (logits of the meta-parameters, before clipping) at every {every}th update, per
meta-parameter over that of the 1-step meta-gradient of the same seed at the same update, averaged over the four and
over all {points} points. The paper says neither along whose run nor which average it reports: all four readings
are in the table. Bands are standard deviations over seeds.

Choices that the paper leaves open, and what was tried: docs/snake-12x12.md.
{short}"""

_SHORT = """
This run ends after {updates} of {whole} updates: it is the beginning of the paper's, and its returns stand for nothing
that the paper reports.
"""


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Pictures and report.md; verdicts only on runs of full length."""
    del is_quick  # what counts is the number of updates
    settings = next(iter(parts.values()))[0]
    results = by_arm(parts)
    is_whole = settings["updates"] >= UPDATES
    points = len(results["1"][0]["probes"]["1"]["updates"])
    introduction = _INTRODUCTION.format(
        seeds=len(results["1"]),
        updates=f"{settings['updates']:,}",
        environments=settings["environments"],
        length=settings["rollout_length"],
        annealing=f"{settings['annealing_updates']:,}",
        episodes=settings["episodes"],
        samples=settings["samples"],
        every=settings["probe_every"],
        points=points,
        short="" if is_whole else _SHORT.format(updates=f"{settings['updates']:,}", whole=f"{UPDATES:,}"),
    )
    claims = list(_claims(results)) if is_whole else []
    sentences = [text for _, texts in claims for text in texts]
    if not is_whole:
        made = f"{settings['updates']:,}"
        sentences = [f"Only {made} updates were made, the paper's runs are taken to have {UPDATES:,}: no verdicts."]
    line_panels(folder / "figure_3.png", _panels(results))
    line_panels(folder / "spread.png", _spread_panels(results), columns=2)
    figures = [
        ("figure_3.png", "As the paper's Figure 3: returns and meta-parameters. Mean ± standard deviation over seeds."),
        ("spread.png", "Spread of the meta-gradients along the 1-step runs, behind the second row of Table 1."),
    ]
    rows = [*_return_rows(results), *_spread_rows(results), *(row for row, _ in claims)]
    write_report(folder, "Snake 12x12: multi-step meta-gradients", introduction, rows, figures, sentences)
