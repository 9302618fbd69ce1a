"""Tables, figures and sentences of the study `discounting-chain`.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", Figures 2, 5a and 6; the
numbers are those of its authors' data.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.debiasing.discounting_chain_agents import Meta
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report

UPDATES = 50_000  # release
START_DISCOUNT = 0.95  # C.1


class Arm(NamedTuple):
    """One agent of Figure 2."""

    title: str
    meta: Meta
    uses_outer_value: bool


ARMS: dict[str, Arm] = {
    "a2c": Arm("A2C", "none", False),
    "mg": Arm("MG", "mg", False),
    "mg-outer": Arm("MG, outer value", "mg", True),
    "bmg": Arm("BMG", "bmg", False),
    "bmg-outer": Arm("BMG, outer value", "bmg", True),
}


class Quantity(NamedTuple):
    """A number of the authors' data, and how far ours may be from it."""

    name: str  # of the curve
    label: str
    tolerance: float
    published: dict[str, str]  # by arm, as the table shows it


QUANTITIES = (
    Quantity(
        "discount",
        "γ at the end",
        0.002,
        {"a2c": "0.95", "mg": "0.900", "bmg": "0.900", "mg-outer": "1.000", "bmg-outer": "1.000"},
    ),
    Quantity(
        "return",
        "return at the end",
        0.01,
        {"a2c": "1.000", "mg": "1.000", "bmg": "1.000", "mg-outer": "1.078", "bmg-outer": "1.078"},
    ),
    Quantity(
        "first_advantage",
        "outer advantage at step 0, second half",
        0.02,
        {"mg": "0.10", "bmg": "0.10", "mg-outer": "0", "bmg-outer": "0"},
    ),
)
PUBLISHED_SPREAD = {"mg-outer": " (std 0.003)", "bmg-outer": " (std 0.003)"}  # of the return
CENTRED = 0.02  # a mean advantage at step 0 up to this one is centred; the published ones are 0.10 and 0
LEARNT, MYOPIC = 1.05, 1.02  # returns: mostly the long chain, hardly ever


class Curves(NamedTuple):
    """What one agent's seeds recorded, [seeds, K]."""

    updates: Array  # [K]
    of: dict[str, Array]  # discount, return; of agents that learn γ also first_advantage, advantage

    def end(self, name: str) -> Array:
        """The last number of every seed; of an advantage, its mean over the second half."""
        values = self.of[name]
        return np.asarray(values[:, values.shape[1] // 2 :].mean(1) if "advantage" in name else values[:, -1])


def curves_of(parts: Mapping[str, tuple[Settings, Result]], variant: str) -> dict[str, Curves]:
    """By arm, in the order of `ARMS`; seeds of all its parts, in order. Variants: "", "normalised", "exact-start"."""
    found = {}
    for arm in ARMS:
        own = [each for each in parts.values() if each[0]["arm"] == arm and _variant(each[0]) == variant]
        own.sort(key=lambda each: each[0]["seeds"][0])
        if own:
            names = [name for name in own[0][1] if name != "updates"]
            updates = np.array(own[0][1]["updates"], dtype=np.float64)
            found[arm] = Curves(updates, {name: np.concatenate([result[name] for _, result in own]) for name in names})
    return found


def _variant(settings: Settings) -> str:
    if settings["is_normalised"]:
        return "normalised"
    return "exact-start" if settings["is_first_value_exact"] else ""


def _paper_rows(main: Mapping[str, Curves]) -> Iterator[tuple[Row, list[str]]]:
    """Each published number, and a sentence where ours is not within its tolerance."""
    for quantity in QUANTITIES:
        for arm, text in quantity.published.items():
            values, paper = main[arm].end(quantity.name), float(text)
            off = abs(values - paper) > quantity.tolerance
            mean, std = mean_and_std(values)
            ours = f"{mean:.3f}{'' if abs(mean - paper) <= quantity.tolerance else ' (differs)'}"
            label = f"{ARMS[arm].title}: {quantity.label}"
            spread = f"std {number(float(std), 2)}, {values.min():.3f} to {values.max():.3f}"
            shown = text + (PUBLISHED_SPREAD.get(arm, "") if quantity.name == "return" else "")
            sentences = []
            if abs(mean - paper) > quantity.tolerance:
                sentences.append(f"{label}: {mean:.3f}, published {text} (tolerance {quantity.tolerance:g}).")
            elif off.any():
                beyond = f"{off.sum()} of {len(values)} seeds beyond {quantity.tolerance:g} of it"
                sentences.append(f"{label}: {text} as published on average ({mean:.3f}), with {beyond}.")
            yield Row(label, shown, ours, str(len(values)), spread), sentences


def _way_rows(main: Mapping[str, Curves]) -> Iterator[tuple[Row, list[str]]]:
    """Where γ goes before it ends; the paper's text speaks of the biased agents as unable to increase it."""
    for arm, curves in main.items():
        if ARMS[arm].meta == "none":
            continue
        mean, std = mean_and_std(curves.of["discount"])
        is_biased = not ARMS[arm].uses_outer_value
        at = int(mean.argmax() if is_biased else mean.argmin())
        extreme, update = float(mean[at]), f"{curves.updates[at]:,.0f}"
        label = f"{ARMS[arm].title}: {'largest' if is_biased else 'smallest'} γ on the way"
        paper = "“unable to increase the discount factor”" if is_biased else "figure only"
        ours = f"{extreme:.3f} after {update} updates"
        sentences = []
        if is_biased and extreme > START_DISCOUNT + 0.002:
            sentences.append(
                f"{ARMS[arm].title}: γ rises from 0.95 to {extreme:.3f} (update {update}) before it ends at"
                f" {mean[-1]:.3f}; the text says that it cannot rise."
            )
        yield Row(label, paper, ours, str(len(curves.of["discount"])), f"std {number(float(std[at]), 2)}"), sentences


def _normalised_rows(normalised: Mapping[str, Curves]) -> Iterator[tuple[Row, list[str]]]:
    """Figure 6: with normalised advantages the biased agents stay myopic; the claim is about them."""
    for arm, curves in normalised.items():
        gamma, paid = (float(curves.end(name).mean()) for name in ("discount", "return"))
        every_step = float(abs(curves.of["advantage"]).max())
        is_biased = not ARMS[arm].uses_outer_value
        paper = "normalising does not fix it" if is_biased else "figure only"
        label = f"{ARMS[arm].title}, advantages normalised: γ, return at the end"
        spread = f"largest mean advantage of a batch {number(every_step, 1)}"
        sentences = []
        if is_biased and paid > MYOPIC:
            sentences.append(
                f"{label}: {gamma:.3f} and {paid:.3f}; the paper says that normalising does not fix the bias."
            )
        if not is_biased and paid < LEARNT:
            sentences.append(f"{label}: {gamma:.3f} and {paid:.3f}, so it does not learn to wait for the bonus.")
        seeds = str(len(curves.of["return"]))
        yield Row(label, paper, f"{gamma:.3f}, {paid:.3f}", seeds, spread), sentences


def _exact_start_rows(main: Mapping[str, Curves], exact: Mapping[str, Curves]) -> Iterator[tuple[Row, list[str]]]:
    """Our control: what is left of the published numbers where the start has its exact value."""
    for arm, curves in exact.items():
        ends = {name: float(curves.end(name).mean()) for name in ("discount", "return", "first_advantage")}
        label = f"{ARMS[arm].title}, exact value of the start: γ, return, advantage at step 0"
        ours = ", ".join(f"{value:.3f}" for value in ends.values())
        _, std = mean_and_std(curves.end("return"))
        released = float(main[arm].end("first_advantage").mean())
        sentences = []
        if abs(ends["first_advantage"]) <= CENTRED < abs(released):
            sentences.append(
                f"{ARMS[arm].title}: the mean outer advantage at step 0, {released:.3f} with the released value of the"
                f" start (γ^K for γ^(K-1)), is {ends['first_advantage']:.3f} with the exact one. At the end of"
                " training its offset there is the released value's, not the inner critic's."
            )
        for name, tolerance in (("discount", 0.002), ("return", 0.01)):
            other = float(main[arm].end(name).mean())
            if abs(ends[name] - other) > tolerance:
                text = f"{ends[name]:.3f} with the exact value of the start, {other:.3f} with the released one."
                sentences.append(f"{ARMS[arm].title}: {name} at the end {text}")
        row = Row(
            label, "not in the paper", ours, str(len(curves.of["return"])), f"return: std {number(float(std), 2)}"
        )
        yield row, sentences


def _panel(curves: Mapping[str, Curves], name: str, title: str, label: str) -> Panel:
    lines: list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]] = []
    for arm, each in curves.items():
        if name in each.of:
            mean, std = mean_and_std(each.of[name])
            lines.append((ARMS[arm].title, each.updates, mean, std))
    return Panel(title, "updates", label, lines)


def _draw(folder: Path, all_curves: Mapping[str, Mapping[str, Curves]]) -> list[tuple[str, str]]:
    """One picture for each figure of the paper, and one for the control."""
    shown = (
        ("discount", "discount", "γ"),
        ("return", "return", "mean of a batch"),
        ("first_advantage", "outer advantage, first step", "mean of a batch"),
    )
    panels = {variant: [_panel(curves, *each) for each in shown] for variant, curves in all_curves.items()}
    line_panels(folder / "figure_2.png", panels[""][:2], columns=2)
    line_panels(folder / "figure_5a.png", panels[""][2:])
    every_step = _panel(all_curves["normalised"], "advantage", "outer advantage, all steps", "mean of a batch")
    line_panels(folder / "figure_6.png", [*panels["normalised"], every_step], columns=2)
    line_panels(folder / "exact_start.png", panels["exact-start"])
    return [
        ("figure_2.png", "As the paper's Figure 2: γ and return. Mean ± standard deviation over seeds."),
        ("figure_5a.png", "As the paper's Figure 5a: mean advantage of the outer loss at the first step."),
        ("figure_6.png", "As the paper's Figure 6, first row: advantages normalised over the batch."),
        ("exact_start.png", "Beyond the paper: the exact value of the start instead of the released one."),
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


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Pictures and report.md; verdicts on the published numbers only after as many updates as the authors made."""
    del is_quick  # what counts is the number of updates
    settings = next(iter(parts.values()))[0]
    all_curves = {variant: curves_of(parts, variant) for variant in ("", "normalised", "exact-start")}
    main = all_curves[""]
    is_whole = settings["updates"] >= UPDATES
    found = [
        *_paper_rows(main),
        *_way_rows(main),
        *_normalised_rows(all_curves["normalised"]),
        *_exact_start_rows(main, all_curves["exact-start"]),
    ]
    updates = f"{settings['updates']:,}"
    introduction = INTRODUCTION.format(
        updates=updates, every=settings["record_every"], short="" if is_whole else SHORT.format(updates=updates)
    )
    short = f"Only {updates} updates were made, the paper's curves have {UPDATES:,}: no verdicts."
    write_report(
        folder,
        "Discounting Chain: the outer value function",
        introduction,
        [row if is_whole else row._replace(ours=row.ours.replace(" (differs)", "")) for row, _ in found],
        _draw(folder, all_curves),
        [text for _, sentences in found for text in sentences] if is_whole else [short],
    )
