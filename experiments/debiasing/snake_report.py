"""Makes tables and figures of the study `snake-6x6`, beside the data that the paper's authors released.

Source: "Debiasing Meta-Gradient Reinforcement Learning by Learning the Outer Value Function", Figures 3, 5b and 6.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metagrad.experiments.debiasing import snake_published as paper
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Curves, Parts, first_settings, results_of
from metagrad.experiments.reporting.parts import curves_of as curves_of_seeds
from metagrad.experiments.reporting.report import Row, differences_of, write_report
from metagrad.experiments.reporting.statistics import number, std_of

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


ByArm = Mapping[str, Curves]


def curves_of(parts: Parts, quantity: str) -> dict[str, Curves]:
    """Return curves by arm, in the order of `TITLES`, without the arms that have no such quantity."""
    found = {arm: curves_of_seeds(results_of(parts, arm=arm), quantity) for arm in TITLES}
    return {arm: curves for arm, curves in found.items() if curves is not None}


def returns_of(parts: Parts) -> dict[str, Curves]:
    """Return evaluations as the paper's figure shows them: of A2C the greedy policy, of the others the sampled one."""
    sampled, greedy = curves_of(parts, "sampled"), curves_of(parts, "greedy")
    return {arm: greedy[arm] if arm in paper.GREEDY else sampled[arm] for arm in sampled}


def _published_rows(
    quantity: str, ours: ByArm, published: Mapping[str, Mapping[int, paper.Published]]
) -> Iterator[Row]:
    """Yield published numbers that were reached, with a sentence where the mean over seeds is not within `WITHIN`."""
    for arm, checkpoints in published.items():
        for update, (paper_mean, paper_std) in checkpoints.items():
            values = ours[arm].at(update) if arm in ours else None
            if values is None:
                continue
            mean = values.mean()
            label = f"{TITLES[arm]}: {quantity}, update {update:,}"
            shown = f"{paper_mean:g}" + ("" if paper_std is None else f" (std {paper_std:g})")
            spread = f"std {std_of(values)}, {number(values.min())} to {number(values.max())}"
            verdict, sentences = "", []
            if paper_std is not None:
                off = abs(mean - paper_mean) / paper_std
                farthest = abs(values - paper_mean).max() / paper_std
                verdict = f" ({off:.1f} of the paper's std away, farthest seed {farthest:.1f})"
                if off > WITHIN:
                    away = f"{off:.1f} of its standard deviations away"
                    sentences.append(f"{label}: {number(mean)}, published {shown}; {away}.")
                elif farthest > WITHIN:
                    near = f"within {WITHIN:g} published standard deviations on average"
                    sentences.append(f"{label}: {near}, one seed is not.")
            yield Row(label, shown, number(mean) + verdict, len(values), spread, sentences)


def _advantage_rows(ours: ByArm) -> Iterator[Row]:
    """Yield Figure 5b: the mean outer advantage from update 584 on, and the most extreme epoch of all seeds."""
    for arm, curves in ours.items():
        late = curves.values[:, curves.updates > paper.ADVANTAGE_FROM]
        if not late.size or "normalised" in arm:
            continue
        centred, biased = paper.CENTRED_ADVANTAGE, paper.BIASED_ADVANTAGE
        has_outer = arm.endswith("-outer")
        label = f"{TITLES[arm]}: mean outer advantage from update {paper.ADVANTAGE_FROM} on"
        means, lowest, highest = late.mean(axis=1), float(late.min()), float(late.max())
        shown = f"within ±{centred}" if has_outer else f"{biased} to 0.55"
        holds = max(-lowest, highest) <= centred if has_outer else lowest >= biased
        epochs = f"{lowest:.4f} to {highest:.4f}"
        sentences = [] if holds else [f"{label}: epochs lie in {epochs}, the paper's {shown}."]
        yield Row(label, shown, f"{means.mean():.4f}; epochs {epochs}", len(means), f"std {std_of(means)}", sentences)


def _normalised_rows(returns: ByArm, discounts: ByArm, advantages: ByArm) -> Iterator[Row]:
    """Yield Figure 6, second row: normalising centres the logged advantage, not the meta-gradient; with one seed."""
    for arm in (arm for arm in discounts if arm.endswith("-normalised")):
        ends = [
            f"γ {discounts[x].values[0, -1]:.3f}, return {returns[x].values[0, -1]:.2f}, "
            f"advantage before normalising {advantages[x].values[0, -1]:.3f}"
            for x in (arm, arm.removesuffix("-normalised"))
        ]
        claim = "normalising does not fix the meta-gradient" if arm == "mg-normalised" else "figure only"
        yield Row(f"{TITLES[arm]}: at the end", claim, ends[0], 1, f"without: {ends[1]}")


def _figures(quantities: Mapping[str, ByArm]) -> list[Figure]:
    main, normalised = list(TITLES)[:5], [arm for arm in quantities["discount"] if arm.endswith("-normalised")]
    labels = {"discount": "γ", "return": "mean of full episodes", "advantage": "mean of an epoch"}

    def panel(name: str, arms: Sequence[str]) -> Panel:
        curves = [mean_curve(TITLES[arm], *quantities[name][arm]) for arm in arms if arm in quantities[name]]
        return Panel(name, "updates", labels[name], curves)

    text = "As the paper's Figure 3: γ and return. Mean ± standard deviation over seeds."
    first = [panel("discount", main), panel("return", main)]
    advantage = "As the paper's Figure 5b: mean advantage of the outer loss."
    figures = [
        Figure("figure_3.png", text, first, columns=2),
        Figure("figure_5b.png", advantage, [panel("advantage", main)]),
    ]
    if normalised:
        caption = "As the paper's Figure 6, second row; seed 1 alone where advantages are normalised."
        panels = [panel(name, ("mg", "mg-outer", *normalised)) for name in labels]
        figures.append(Figure("figure_6.png", caption, panels))
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


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the page; published numbers are shown where they were reached."""
    settings = first_settings(parts)
    returns, discounts, advantages = returns_of(parts), curves_of(parts, _DISCOUNT), curves_of(parts, _ADVANTAGE)
    rows = [
        *_published_rows("return", returns, paper.RETURNS),
        *_published_rows("γ", discounts, paper.DISCOUNTS),
        *_advantage_rows(advantages),
        *_normalised_rows(returns, discounts, advantages),
    ]
    is_whole = settings["updates"] >= WHOLE_UPDATES
    introduction = INTRODUCTION.format(
        quick=QUICK if is_quick else "", whole="the paper's" if is_whole else "the paper has 29,346", **settings
    )
    rest = f"Only {settings['updates']:,} updates were made: nothing is said of the rest of the curves."
    sentences = [*differences_of(rows), *([] if is_whole else [rest])]
    differences = ["A quick run decides nothing."] if is_quick else sentences
    figures = _figures({"return": returns, "discount": discounts, "advantage": advantages})
    write_report(folder, "Snake 6x6: the outer critic", introduction, rows, figures, differences)
