"""Tables and figures of the study `snake-6x6`, beside the data that the authors of the paper released.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", Figures 3, 5b and 6.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.debiasing.snake_published import (
    ADVANTAGE_FROM,
    BIASED_ADVANTAGE,
    CENTRED_ADVANTAGE,
    DISCOUNTS,
    GREEDY,
    RETURNS,
    Published,
)
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report

EPOCH = 146  # updates between two evaluations (release)
WITHIN = 3.0  # published standard deviations
TITLES = {
    "a2c": "A2C",
    "mg": "MG",
    "mg-outer": "MG, outer critic",
    "bmg": "BMG",
    "bmg-outer": "BMG, outer critic",
    "mg-normalised": "MG, normalised",
    "mg-outer-normalised": "MG, outer critic, normalised",
}
_ADVANTAGE, _DISCOUNT = "advantage/outer_mean", "eta/gamma"


class Curves(NamedTuple):
    """One quantity of one agent: updates [K] and values [seeds, K]."""

    updates: Array
    values: Array

    def at(self, update: int) -> Array | None:
        """Values [seeds] after so many updates; None where none were recorded."""
        found = np.flatnonzero(self.updates == update)
        return self.values[:, found[0]] if len(found) else None


def curves_of(parts: Mapping[str, tuple[Settings, Result]], quantity: str) -> dict[str, Curves]:
    """By arm, in the order of `TITLES`, seeds in order; without the arms that have no such quantity."""
    found = {}
    for arm in TITLES:
        own = sorted((s["seed"], r[quantity]) for s, r in parts.values() if s["arm"] == arm and quantity in r)
        if own:
            updates = np.array(own[0][1]["updates"], dtype=np.float64)
            found[arm] = Curves(updates, np.array([curve["values"] for _, curve in own], dtype=np.float64))
    return found


def returns_of(parts: Mapping[str, tuple[Settings, Result]]) -> dict[str, Curves]:
    """Evaluations as the paper's figure shows them: of A2C the greedy policy, of the others the sampled one."""
    sampled, greedy = curves_of(parts, "sampled"), curves_of(parts, "greedy")
    return {arm: greedy[arm] if arm in GREEDY else sampled[arm] for arm in sampled}


def _published_rows(
    quantity: str, ours: Mapping[str, Curves], published: Mapping[str, Mapping[int, Published]]
) -> Iterator[tuple[Row, str | None]]:
    """Each published number that was reached, and a sentence where the mean over seeds is not within `WITHIN`."""
    for arm, checkpoints in published.items():
        for update, paper in checkpoints.items():
            values = ours[arm].at(update) if arm in ours else None
            if values is None:
                continue
            mean, std = (float(x) for x in mean_and_std(values))
            label = f"{TITLES[arm]}: {quantity}, update {update:,}"
            shown = f"{paper.mean:g}" + ("" if paper.std is None else f" (std {paper.std:g})")
            spread = f"std {number(std, 2)}, {number(values.min())} to {number(values.max())}"
            verdict, sentence = "", None
            if paper.std is not None:
                off = abs(mean - paper.mean) / paper.std
                farthest = float(abs(values - paper.mean).max()) / paper.std
                verdict = f" ({off:.1f} of the paper's std away, farthest seed {farthest:.1f})"
                if off > WITHIN:
                    sentence = f"{label}: {number(mean)}, published {shown}; {off:.1f} of its standard deviations away."
                elif farthest > WITHIN:
                    sentence = f"{label}: within {WITHIN:g} published standard deviations on average, one seed is not."
            yield Row(label, shown, number(mean) + verdict, str(len(values)), spread), sentence


def _advantage_rows(ours: Mapping[str, Curves]) -> Iterator[tuple[Row, str | None]]:
    """Figure 5b: the mean outer advantage from update 584 on, of every seed the most extreme epoch and the mean."""
    for arm, curves in ours.items():
        late = curves.values[:, curves.updates > ADVANTAGE_FROM]
        if not late.size or "normalised" in arm:
            continue
        has_outer = arm.endswith("-outer")
        label = f"{TITLES[arm]}: mean outer advantage from update {ADVANTAGE_FROM} on"
        means, lowest, highest = late.mean(axis=1), float(late.min()), float(late.max())
        paper = f"within ±{CENTRED_ADVANTAGE}" if has_outer else f"{BIASED_ADVANTAGE} to 0.55"
        holds = max(-lowest, highest) <= CENTRED_ADVANTAGE if has_outer else lowest >= BIASED_ADVANTAGE
        ours_text = f"{means.mean():.4f}; epochs {lowest:.4f} to {highest:.4f}"
        _, std = mean_and_std(means)
        sentence = None if holds else f"{label}: epochs lie in {lowest:.4f} to {highest:.4f}, the paper's {paper}."
        yield Row(label, paper, ours_text, str(len(means)), f"std {number(float(std), 2)}"), sentence


def _normalised_rows(
    returns: Mapping[str, Curves], discounts: Mapping[str, Curves], advantages: Mapping[str, Curves]
) -> Iterator[tuple[Row, str | None]]:
    """Figure 6, second row: normalising centres what is looked at, not the meta-gradient; one seed, its own control."""
    for arm in (arm for arm in discounts if arm.endswith("-normalised")):
        plain = arm.removesuffix("-normalised")
        ends = [
            f"γ {discounts[x].values[0, -1]:.3f}, return {returns[x].values[0, -1]:.2f}, "
            f"advantage before normalising {advantages[x].values[0, -1]:.3f}"
            for x in (arm, plain)
        ]
        paper = "normalising does not fix the meta-gradient" if arm == "mg-normalised" else "figure only"
        yield Row(f"{TITLES[arm]}: at the end", paper, ends[0], "1", f"without: {ends[1]}"), None


def _panel(curves: Mapping[str, Curves], title: str, label: str, arms: Sequence[str]) -> Panel:
    lines: list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]] = []
    for arm in arms:
        if arm in curves:
            mean, std = mean_and_std(curves[arm].values)
            lines.append((TITLES[arm], curves[arm].updates, mean, std))
    return Panel(title, "updates", label, lines)


def _draw(folder: Path, quantities: Mapping[str, Mapping[str, Curves]]) -> list[tuple[str, str]]:
    main, normalised = list(TITLES)[:5], [arm for arm in quantities["discount"] if arm.endswith("-normalised")]
    labels = {"discount": "γ", "return": "mean of full episodes", "advantage": "mean of an epoch"}

    def panels(names: Sequence[str], arms: Sequence[str]) -> list[Panel]:
        return [_panel(quantities[name], name, labels[name], arms) for name in names]

    line_panels(folder / "figure_3.png", panels(("discount", "return"), main), columns=2)
    line_panels(folder / "figure_5b.png", panels(("advantage",), main))
    figures = [
        ("figure_3.png", "As the paper's Figure 3: γ and return. Mean ± standard deviation over seeds."),
        ("figure_5b.png", "As the paper's Figure 5b: mean advantage of the outer loss."),
    ]
    if normalised:
        line_panels(folder / "figure_6.png", panels(tuple(labels), ("mg", "mg-outer", *normalised)))
        caption = "As the paper's Figure 6, second row; seed 1 alone where advantages are normalised."
        figures.append(("figure_6.png", caption))
    return figures


INTRODUCTION = """\
{quick}Five agents on Snake 6x6: A2C with γ = 0.8, and agents that start there and learn γ for the undiscounted
return, by meta-gradients (MG) or bootstrapped ones (BMG), scored by the inner critic or by an outer critic trained for
γ' = 1. {environments} environments × 5 steps an update, {updates:,} updates ({whole}); a look-ahead continues the same
environments, so MG steps twice and BMG three times as many frames as A2C per update. Every {epoch} updates {episodes}
full episodes are played: the published A2C curve is the greedy policy, all others sample. γ and outer advantage are
means over {epoch} updates. Seeds are the paper's 1 to 10, with our random numbers.

As in the authors' release: Adam's eps_root of 1e-8 in the meta-optimizer, RMSProp's inside its root; separate
networks; an outer critic trained on 5-step returns; a target optimizer of BMG that keeps its own second moment."""
QUICK = "**Quick: few updates and environments; nothing here is a result.** "
WHOLE_UPDATES = 29_200  # the last published checkpoint


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Pictures and report.md; published numbers are shown where they were reached."""
    settings = next(iter(parts.values()))[0]
    returns, discounts = returns_of(parts), curves_of(parts, _DISCOUNT)
    advantages = curves_of(parts, _ADVANTAGE)
    found = [
        *_published_rows("return", returns, RETURNS),
        *_published_rows("γ", discounts, DISCOUNTS),
        *_advantage_rows(advantages),
        *_normalised_rows(returns, discounts, advantages),
    ]
    is_whole = settings["updates"] >= WHOLE_UPDATES
    introduction = INTRODUCTION.format(
        quick=QUICK if is_quick else "", whole="the paper's" if is_whole else "the paper has 29,346", **settings
    )
    sentences = [sentence for _, sentence in found if sentence is not None]
    if not is_whole:
        sentences.append(f"Only {settings['updates']:,} updates were made: nothing is said of the rest of the curves.")
    figures = _draw(folder, {"return": returns, "discount": discounts, "advantage": advantages})
    rows = [row for row, _ in found]
    differences = ["A quick run decides nothing."] if is_quick else sentences
    write_report(folder, "Snake 6x6: the outer critic", introduction, rows, figures, differences)
