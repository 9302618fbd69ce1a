"""Makes tables, figures and sentences of the study `discounting-chain`.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", Figures 2, 5a and 6; the
numbers are those of its authors' data.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Settings
from metagrad.experiments.debiasing.discounting_chain_agents import ChainAgent
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Parts, first_settings
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, mean_and_std, number, std_of

UPDATES = 50_000  # release
START_DISCOUNT = 0.95  # C.1


ARMS: dict[str, ChainAgent] = {
    "a2c": ChainAgent("none"),
    "mg": ChainAgent("mg"),
    "mg-outer": ChainAgent("mg", uses_outer_value=True),
    "bmg": ChainAgent("bmg"),
    "bmg-outer": ChainAgent("bmg", uses_outer_value=True),
}
"""The agents of Figure 2."""
TITLES = {
    "a2c": "A2C",
    "mg": "MG",
    "mg-outer": "MG, outer value",
    "bmg": "BMG",
    "bmg-outer": "BMG, outer value",
}


class Quantity(NamedTuple):
    """Represents a number of the authors' data, and how far ours may be from it."""

    name: str  # of the curve
    label: str
    tolerance: float
    published: dict[str, str]  # by arm, as the table shows it


def _published(biased: str, debiased: str) -> dict[str, str]:
    return {"mg": biased, "bmg": biased, "mg-outer": debiased, "bmg-outer": debiased}


QUANTITIES = (
    Quantity("discount", "γ at the end", 0.002, {"a2c": "0.95"} | _published("0.900", "1.000")),
    Quantity("return", "return at the end", 0.01, {"a2c": "1.000"} | _published("1.000", "1.078")),
    Quantity("first_advantage", "outer advantage at step 0, second half", 0.02, _published("0.10", "0")),
)
PUBLISHED_SPREAD = {"mg-outer": " (std 0.003)", "bmg-outer": " (std 0.003)"}  # of the return
CENTRED = 0.02  # a mean advantage at step 0 up to this one is centred; the published ones are 0.10 and 0
LEARNT, MYOPIC = 1.05, 1.02  # returns: mostly the long chain, hardly ever


class ArmCurves(NamedTuple):
    """Holds what one agent's seeds recorded, [seeds, K]."""

    updates: Array  # [K]
    of: dict[str, Array]  # discount, return; of agents that learn γ also first_advantage, advantage

    def end(self, name: str) -> Array:
        """Return the last number of every seed; of an advantage its mean over the second half."""
        values = self.of[name]
        return np.asarray(values[:, values.shape[1] // 2 :].mean(1) if "advantage" in name else values[:, -1])

    def mean_end(self, name: str) -> float:
        """Return the mean of `end` over the seeds."""
        return float(self.end(name).mean())

    @property
    def seeds(self) -> int:
        return len(self.of["return"])


ByArm = Mapping[str, ArmCurves]


def curves_of(parts: Parts, variant: str) -> dict[str, ArmCurves]:
    """Return curves by arm, in the order of `ARMS`, seeds in order; of a variant: "", "normalised", "exact-start"."""
    found = {}
    for arm in ARMS:
        own = [each for each in parts.values() if each[0]["arm"] == arm and _variant(each[0]) == variant]
        own.sort(key=lambda each: each[0]["seeds"][0])
        if own:
            names = [name for name in own[0][1] if name != "updates"]
            updates = np.array(own[0][1]["updates"], dtype=np.float64)
            of = {name: np.concatenate([result[name] for _, result in own]) for name in names}
            found[arm] = ArmCurves(updates, of)
    return found


def _variant(settings: Settings) -> str:
    if settings["is_normalised"]:
        return "normalised"
    return "exact-start" if settings["is_first_value_exact"] else ""


def _paper_rows(main: ByArm) -> Iterator[Row]:
    """Yield each published number, with a sentence where ours is not within its tolerance."""
    for quantity in QUANTITIES:
        tolerance = quantity.tolerance
        for arm, text in quantity.published.items():
            values, paper = main[arm].end(quantity.name), float(text)
            off, mean = abs(values - paper) > tolerance, values.mean()
            is_off = abs(mean - paper) > tolerance
            label = f"{TITLES[arm]}: {quantity.label}"
            spread = f"std {std_of(values)}, {values.min():.3f} to {values.max():.3f}"
            shown = text + (PUBLISHED_SPREAD.get(arm, "") if quantity.name == "return" else "")
            sentences = []
            if is_off:
                sentences.append(f"{label}: {mean:.3f}, published {text} (tolerance {tolerance:g}).")
            elif off.any():
                beyond = f"{off.sum()} of {len(values)} seeds beyond {tolerance:g} of it"
                sentences.append(f"{label}: {text} as published on average ({mean:.3f}), with {beyond}.")
            yield Row(label, shown, f"{mean:.3f}{' (differs)' if is_off else ''}", len(values), spread, sentences)


def _way_rows(main: ByArm) -> Iterator[Row]:
    """Tell where γ goes before it ends; the paper's text speaks of the biased agents as unable to increase it."""
    for arm, curves in main.items():
        if ARMS[arm].meta == "none":
            continue
        mean, std = mean_and_std(curves.of["discount"])
        is_biased = not ARMS[arm].uses_outer_value
        at = int(mean.argmax() if is_biased else mean.argmin())
        extreme, update = float(mean[at]), f"{curves.updates[at]:,.0f}"
        label = f"{TITLES[arm]}: {'largest' if is_biased else 'smallest'} γ on the way"
        paper = "“unable to increase the discount factor”" if is_biased else "figure only"
        sentences = []
        if is_biased and extreme > START_DISCOUNT + 0.002:
            sentences.append(
                f"{TITLES[arm]}: γ rises from 0.95 to {extreme:.3f} (update {update}) before it ends at"
                f" {mean[-1]:.3f}; the text says that it cannot rise."
            )
        ours = f"{extreme:.3f} after {update} updates"
        yield Row(label, paper, ours, curves.seeds, f"std {number(std[at], 2)}", sentences)


def _normalised_rows(normalised: ByArm) -> Iterator[Row]:
    """Yield Figure 6: with normalised advantages the biased agents stay myopic; the claim is about them."""
    for arm, curves in normalised.items():
        gamma, paid = (curves.mean_end(name) for name in ("discount", "return"))
        is_biased = not ARMS[arm].uses_outer_value
        paper = "normalising does not fix it" if is_biased else "figure only"
        label = f"{TITLES[arm]}, advantages normalised: γ, return at the end"
        spread = f"largest mean advantage of a batch {number(abs(curves.of['advantage']).max(), 1)}"
        ends, sentences = f"{label}: {gamma:.3f} and {paid:.3f}", []
        if is_biased and paid > MYOPIC:
            sentences.append(f"{ends}; the paper says that normalising does not fix the bias.")
        if not is_biased and paid < LEARNT:
            sentences.append(f"{ends}, so it does not learn to wait for the bonus.")
        yield Row(label, paper, f"{gamma:.3f}, {paid:.3f}", curves.seeds, spread, sentences)


def _exact_start_rows(main: ByArm, exact: ByArm) -> Iterator[Row]:
    """Tell what is left of the published numbers where the start has its exact value: our control."""
    for arm, curves in exact.items():
        title = TITLES[arm]
        ends = {name: curves.mean_end(name) for name in ("discount", "return", "first_advantage")}
        ours = ", ".join(f"{value:.3f}" for value in ends.values())
        released = main[arm].mean_end("first_advantage")
        sentences = []
        if abs(ends["first_advantage"]) <= CENTRED < abs(released):
            sentences.append(
                f"{title}: the mean outer advantage at step 0, {released:.3f} with the released value of the"
                f" start (γ^K for γ^(K-1)), is {ends['first_advantage']:.3f} with the exact one. At the end of"
                " training its offset there is the released value's, not the inner critic's."
            )
        for name, tolerance in (("discount", 0.002), ("return", 0.01)):
            other = main[arm].mean_end(name)
            if abs(ends[name] - other) > tolerance:
                text = f"{ends[name]:.3f} with the exact value of the start, {other:.3f} with the released one."
                sentences.append(f"{title}: {name} at the end {text}")
        label = f"{title}, exact value of the start: γ, return, advantage at step 0"
        spread = f"return: std {std_of(curves.end('return'))}"
        yield Row(label, "not in the paper", ours, curves.seeds, spread, sentences)


def _panel(curves: ByArm, name: str, title: str, label: str) -> Panel:
    own = {arm: each for arm, each in curves.items() if name in each.of}
    lines = [mean_curve(TITLES[arm], each.updates, each.of[name]) for arm, each in own.items()]
    return Panel(title, "updates", label, lines)


def _figures(all_curves: Mapping[str, ByArm]) -> list[Figure]:
    """Return one picture for each figure of the paper, and one for the control."""
    shown = (
        ("discount", "discount", "γ"),
        ("return", "return", "mean of a batch"),
        ("first_advantage", "outer advantage, first step", "mean of a batch"),
    )
    panels = {variant: [_panel(curves, *each) for each in shown] for variant, curves in all_curves.items()}
    every_step = _panel(all_curves["normalised"], "advantage", "outer advantage, all steps", "mean of a batch")
    main, first = "As the paper's Figure 2: γ and return. Mean ± standard deviation over seeds.", panels[""]
    advantage = "As the paper's Figure 5a: mean advantage of the outer loss at the first step."
    normalised = "As the paper's Figure 6, first row: advantages normalised over the batch."
    exact = "Beyond the paper: the exact value of the start instead of the released one."
    return [
        Figure("figure_2.png", main, first[:2], columns=2),
        Figure("figure_5a.png", advantage, first[2:]),
        Figure("figure_6.png", normalised, [*panels["normalised"], every_step], columns=2),
        Figure("exact_start.png", exact, panels["exact-start"]),
    ]


INTRODUCTION = """\
A first action picks one of five chains, which pay 1 after 1, 3, 10, 30 or 100 steps; the chain of 30 pays 1.1. The
discount starts at 0.95, under which 30 steps are too many to wait, and is tuned within [0.9, 1] for the undiscounted
return. The true values are known, so nothing but the discount of the value in the outer loss tells the agents apart:
γ' = 1 with the outer value, the present γ without. A2C keeps γ at 0.95. {updates} updates, each of 128 new episodes for
the inner and 128 for the outer loss; what is shown is one update in every {every}. Lines are means over seeds, bands
standard deviations; "at the end" is the last number recorded, of a seed.

Choices of the authors' release that the paper does not mention are kept: 50,000 updates; the bonus on the chain of 30;
bootstrapped meta-gradients match policies at the initial state alone; the value of the start is Σ π(a) γ^K R(a), one
power of γ too many (exact for γ = 1); the inner and outer losses have an entropy term over all 100 steps, and are means
over 128 x 100 steps, which makes meta-gradients as small as 1e-13, at and below the eps of Adam. Unlike it, arithmetic
is in float64. A batch is drawn as counts of actions, which is the same in distribution and in all gradients.
{short}"""

SHORT = """
This run ends after {updates} updates, where none of the published numbers is reached: the table shows where it stands.
"""


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the page; published numbers are judged only after as many updates as the authors made."""
    del is_quick  # what counts is the number of updates
    settings = first_settings(parts)
    all_curves = {variant: curves_of(parts, variant) for variant in ("", "normalised", "exact-start")}
    main = all_curves[""]
    is_whole = settings["updates"] >= UPDATES
    rows = [
        *_paper_rows(main),
        *_way_rows(main),
        *_normalised_rows(all_curves["normalised"]),
        *_exact_start_rows(main, all_curves["exact-start"]),
    ]
    updates = f"{settings['updates']:,}"
    introduction = INTRODUCTION.format(
        updates=updates, every=settings["record_every"], short="" if is_whole else SHORT.format(updates=updates)
    )
    if not is_whole:
        rows = [row._replace(ours=row.ours.replace(" (differs)", "")) for row in rows]
    short = f"Only {updates} updates were made, the paper's curves have {UPDATES:,}: no verdicts."
    title = "Discounting Chain: the outer value function"
    write_report(folder, title, introduction, rows, _figures(all_curves), None if is_whole else [short])
