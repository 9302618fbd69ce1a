"""Makes tables and figures of the study `snake-12x12`, beside Table 1 of "One Step at a Time".

Source: "One Step at a Time: Pros and Cons of Multi-Step Meta-Gradient Reinforcement Learning", Table 1 and Figure 3.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result
from metagrad.experiments.one_step_at_a_time.snake_12x12 import UPDATES
from metagrad.experiments.reporting.claims import Change, change_row, neighbours
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Parts, by_setting, curves_of, first_settings
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import mean_of, number, std_of
from metagrad.experiments.training.meta_gradient_probe import Normalised, normalised_std


class Published(NamedTuple):
    """Holds a column of Table 1: mean and standard deviation over 3 seeds."""

    final_return: tuple[float, float]
    spread: tuple[float, float] | None  # of the meta-gradient, in units of the 1-step arm's; None: not sampled

    @property
    def shown_spread(self) -> str:
        return "{:g} (std {:g})".format(*self.spread) if self.spread else "-"


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
RUNS: tuple[Runs, ...] = ("own", "1-step")
META_PARAMETERS = {
    "eta/gamma": "discount γ",
    "eta/lambda": "λ",
    "eta/value_coefficient": "critic coefficient",
    "eta/entropy_coefficient": "entropy coefficient",
}
_RETURN = "episode/return_mean"


ByArm = Mapping[str, list[Result]]


def by_arm(parts: Parts) -> dict[str, list[Result]]:
    """Return the results of every arm, in the order of Table 1, seeds in order."""
    found = by_setting(parts, "arm")
    return {arm: found[arm] for arm in PUBLISHED if arm in found}


def spreads(results: ByArm, arm: str, runs: Runs) -> list[Normalised]:
    """Return an arm's meta-gradient spread over the 1-step arm's, by seed; none where nothing was sampled.

    `runs` is whose training the arm's was sampled along; the 1-step one's always along its own.
    """
    found = []
    for own, common in zip(results[arm], results["1"], strict=True):
        sampled = (own if runs == "own" else common)["probes"].get(arm, {"std": []})["std"]
        if sampled:
            found.append(normalised_std(sampled, common["probes"]["1"]["std"]))
    return found


def _return_rows(results: ByArm) -> Iterator[Row]:
    for arm, published in PUBLISHED.items():
        values = np.array([result["return"]["mean"] for result in results[arm]])
        paper = "{:g} (std {:g})".format(*published.final_return)
        spread = f"std {std_of(values)}, {number(values.min())} to {number(values.max())}"
        yield Row(f"{TITLES[arm]}: return at the end", paper, mean_of(values), len(values), spread)


def _spread_rows(results: ByArm) -> Iterator[Row]:
    """Yield both averages along both kinds of runs: the paper says neither which one nor along which."""
    for runs in RUNS:
        for arm, published in PUBLISHED.items():
            found = spreads(results, arm, runs) if published.spread is not None and arm != "1" else []
            if not found:
                continue
            averages = list(zip(("ratio of means", "mean of ratios"), zip(*found, strict=True), strict=True))
            ours = ", ".join(f"{mean_of(values)} ({average})" for average, values in averages)
            stds = ", ".join(std_of(values) for _, values in averages)
            whose = "its own run" if runs == "own" else "the 1-step run"
            label = f"{TITLES[arm]}: std of the meta-gradient / that of 1-step, along {whose}"
            yield Row(label, published.shown_spread, ours, len(found), f"std {stds}")


def _claims(results: ByArm) -> Iterator[Row]:
    """Hold what the text makes of Table 1 (§3.2, §3.5) against paired differences over seeds."""

    def changes(of: Mapping[str, list[float]], *arms: str) -> list[Change]:
        return neighbours([TITLES[arm] for arm in arms], [of[arm] for arm in arms])

    returns = {arm: [result["return"]["mean"] for result in own] for arm, own in results.items()}
    yield change_row("return at the end", "rises with n at first", True, changes(returns, "0", "1", "3"))
    yield change_row("return at the end, more steps", "then falls", False, changes(returns, "3", "5", "10"))
    yield change_row("return at the end, mixing 5", "5-mix above 5-step", True, changes(returns, "5", "5-mix"))
    for runs in RUNS:
        of = {arm: [x.mean_of_ratios for x in spreads(results, arm, runs)] for arm in PUBLISHED if arm != "0"}
        if not all(of.values()):
            continue
        along = "own runs" if runs == "own" else "the 1-step run"
        name = f"std of the meta-gradient (mean of ratios, along {along})"
        yield change_row(name, "the higher n, the higher", True, changes(of, "1", "3", "5", "10"))
        mixed = [*changes(of, "3", "3-mix"), *changes(of, "5", "5-mix")]
        yield change_row(f"{name}, mixing", "mixing cuts it, by 3 for n = 3", False, mixed)


def _panels(results: ByArm) -> list[Panel]:
    """Return Figure 3: returns, and the four meta-parameters of the arms that learn them."""
    panels = []
    for name, title in {_RETURN: "return", **META_PARAMETERS}.items():
        found = {arm: curves_of(own, name) for arm, own in results.items()}
        lines = [mean_curve(TITLES[arm], *curves) for arm, curves in found.items() if curves is not None]
        label = "mean of the last 512 episodes" if name == _RETURN else "mean of each interval"
        panels.append(Panel(title, "updates", label, lines))
    return panels


def _spread_panels(results: ByArm) -> list[Panel]:
    """Return standard deviations along the 1-step runs, one panel for each meta-parameter."""
    panels = []
    probes = [result["probes"] for result in results["1"]]
    for component, title in enumerate(META_PARAMETERS.values()):
        lines = [
            mean_curve(
                TITLES[arm], probes[0][arm]["updates"], [np.array(each[arm]["std"])[:, component] for each in probes]
            )
            for arm in probes[0]
        ]
        panels.append(Panel(f"∂J/∂logit of {title}", "updates", "standard deviation", lines, is_log_y=True))
    return panels


_INTRODUCTION = """\
A2C on Snake 12x12 whose discount, λ, critic and entropy coefficients are tuned by meta-gradients through n updates, the
first of which is kept; 0-step keeps them as they start. {seeds} seed(s), {made} updates of {environments}
environments x {length} steps with a step size that falls to 0 over {annealing:,}; look-ahead rollouts run in the same
environments. Return at the end: mean of {episodes} full episodes under the sampled policy. Spread of a meta-gradient:
{samples} independent samples (logits of the meta-parameters, before clipping) at every {every}th update, per
meta-parameter over that of the 1-step meta-gradient of the same seed at the same update, averaged over the four and
over all {points} points. The paper says neither along whose run nor which average it reports: all four readings
are in the table. Bands are standard deviations over seeds.

Choices that the paper leaves open, and what was tried: docs/snake-12x12.md.
{short}"""

_SHORT = """
This run ends after {made} of {whole} updates: it is the beginning of the paper's, and its returns stand for nothing
that the paper reports.
"""


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the page; verdicts are passed only on runs of full length."""
    del is_quick  # what counts is the number of updates
    settings, results = first_settings(parts), by_arm(parts)
    is_whole, made = settings["updates"] >= UPDATES, f"{settings['updates']:,}"
    introduction = _INTRODUCTION.format(
        seeds=len(results["1"]),
        made=made,
        length=settings["rollout_length"],
        annealing=settings["annealing_updates"],
        every=settings["probe_every"],
        points=len(results["1"][0]["probes"]["1"]["updates"]),
        short="" if is_whole else _SHORT.format(made=made, whole=f"{UPDATES:,}"),
        **settings,
    )
    text = "As the paper's Figure 3: returns and meta-parameters. Mean ± standard deviation over seeds."
    spread = "Spread of the meta-gradients along the 1-step runs, behind the second row of Table 1."
    figures = [
        Figure("figure_3.png", text, _panels(results)),
        Figure("spread.png", spread, _spread_panels(results), columns=2),
    ]
    rows = [*_return_rows(results), *_spread_rows(results), *(_claims(results) if is_whole else ())]
    short = f"Only {made} updates were made, the paper's runs are taken to have {UPDATES:,}: no verdicts."
    title = "Snake 12x12: multi-step meta-gradients"
    write_report(folder, title, introduction, rows, figures, None if is_whole else [short])
