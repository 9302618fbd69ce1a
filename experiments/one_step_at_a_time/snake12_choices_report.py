"""Tables and figures of the study `snake-12x12-choices`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.one_step_at_a_time.snake12_report import META_PARAMETERS, PUBLISHED, TITLES
from metagrad.experiments.reporting.paired import UNDECIDED, paired
from metagrad.experiments.reporting.report import Array, Panel, Row, line_panels, mean_and_std, number, write_report
from metagrad.experiments.training.meta_gradient_probe import normalised_std

BASELINE = 67.0  # return of 0 steps at the end of training (Table 1)
FULL = {"t20": 8_000, "t5": 8_000}  # updates of the long runs; shorter ones say nothing about the paper's
LENGTHS = {"t20": 20, "t5": 5}
CHANGES = {
    "n1-fork": "look-ahead in forks",
    "n1-halved-critic": "½ in the critic's loss",
    "n1-meta-eps-root-0": "meta-Adam without eps_root",
    "n1-eps-roots-0": "both Adams without eps_root",
}
_RETURN = "episode/return_mean"


def by_variant(parts: Mapping[str, tuple[Settings, Result]]) -> dict[str, list[Result]]:
    """Results of every variant, seeds in order."""
    found: dict[str, list[tuple[int, Result]]] = {}
    for settings, result in parts.values():
        found.setdefault(settings["variant"], []).append((settings["seed"], result))
    return {name: [r for _, r in sorted(own, key=lambda each: each[0])] for name, own in found.items()}


class Extrapolation(NamedTuple):
    """Updates at which a curve would reach a level, from its second half; inf where it does not rise."""

    linear: float
    power: float


def extrapolate(updates: ArrayLike, values: ArrayLike, level: float) -> Extrapolation:
    """Least squares over the second half of a curve: value = a + b · updates, and log value = a + b · log updates.

    What training does later is in neither: a step size that falls to 0, a snake that grows into its own way. They are
    two guesses whose distance says how little a beginning tells.

    >>> extrapolate([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0], 16.0)
    Extrapolation(linear=8.0, power=8.0)
    """
    x, y = np.asarray(updates, dtype=np.float64), np.asarray(values, dtype=np.float64)
    x, y = x[len(x) // 2 :], y[len(y) // 2 :]

    def reached(x: Array, y: Array, level: float) -> float:
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        return float(x.mean() + (level - y.mean()) / slope) if slope > 0 else np.inf

    return Extrapolation(
        round(reached(x, y, level), 6), round(float(np.exp(reached(np.log(x), np.log(y), np.log(level)))), 6)
    )


def _at(curve: Mapping[str, list[float]], update: float) -> float:
    """Value of the last bin that ends by an update."""
    index = np.searchsorted(curve["updates"], update, side="right") - 1
    return float(curve["values"][max(int(index), 0)])


def _baseline_rows(results: Mapping[str, list[Result]]) -> Iterator[Row]:
    """The long runs of 0 steps: at equal updates, at equal frames, and where they seem to go."""
    curves = {name: results[name][0]["curves"].get(_RETURN) for name in FULL}
    if not all(curves.values()):
        return
    last = {name: curve["updates"][-1] for name, curve in curves.items() if curve}
    updates = min(last.values())
    frames = 32 * min(last[name] * LENGTHS[name] for name in FULL)
    for name, curve in curves.items():
        assert curve is not None
        title = f"0-step, T = {LENGTHS[name]}"
        values = (_at(curve, updates), _at(curve, frames / (32 * LENGTHS[name])), curve["values"][-1])
        shown = ", ".join(number(value) for value in values)
        label = f"{title}: return at {updates:,} updates, at {frames:,} frames, at its end ({last[name]:,} updates)"
        played = results[name][0]["return"]
        spread = f"full episodes at the end: {number(played['mean'])} (std {number(played['std'])} over episodes)"
        yield Row(label, "not given", shown, "1", spread)
        if last[name] >= FULL[name]:
            guess = extrapolate(curve["updates"], curve["values"], BASELINE)
            ours = f"{number(guess.linear, 2)} (line), {number(guess.power, 2)} (power law)"
            label = f"{title}: updates to a return of {BASELINE:g}, extrapolated from the second half"
            yield Row(label, "not given", ours, "1", "no interval: two guesses")


def _spread_rows(results: Mapping[str, list[Result]]) -> Iterator[Row]:
    """Table 1's second row at checkpoints of the 0-step runs, and of the same with another choice."""
    for name, length in LENGTHS.items():
        probes = results[name][0]["probes"]
        reference = np.array(probes["1"]["std"])
        updates = " and ".join(f"{update:,}" for update in probes["1"]["updates"])
        for arm, published in PUBLISHED.items():
            if published.spread is None or arm == "1":
                continue
            each = [
                normalised_std([row], [one]).mean_of_ratios
                for row, one in zip(probes[arm]["std"], reference, strict=True)
            ]
            ours = ", ".join(number(value) for value in each)
            paper = "{:g} (std {:g})".format(*published.spread)
            label = f"T = {length}, {TITLES[arm]}: std of the meta-gradient / that of 1-step, updates {updates}"
            yield Row(label, paper, ours, "1", "std over seeds not measured")
        rms = np.sqrt(reference**2 + np.array(probes["1"]["mean"]) ** 2)
        shown = "; ".join(", ".join(number(x, 2) for x in row) for row in rms)
        label = (
            f"T = {length}, 1-step: root mean square of the meta-gradient (γ, λ, critic, entropy), updates {updates}"
        )
        yield Row(label, "not given", shown, "1", "eps_root 1e-8 floors Adam's root at 1e-4")
        for other, base, what in (
            ("3-fork", "3", "3-step in forks / continuing"),
            ("1-inner-eps-root-0", "1", "1-step, inner Adam without eps_root / with"),
            ("3-inner-eps-root-0", "3", "3-step, inner Adam without eps_root / with"),
        ):
            each = [
                normalised_std([x], [y]).mean_of_ratios
                for x, y in zip(probes[other]["std"], probes[base]["std"], strict=True)
            ]
            ours = ", ".join(number(value) for value in each)
            yield Row(
                f"T = {length}: std of the meta-gradient, {what}", "not given", ours, "1", "the same seeds of streams"
            )


def _common_end(results: Mapping[str, list[Result]], name: str) -> int:
    """Updates that a variant and the standard one both made."""
    return min(int(results[each][0]["curves"]["eta/gamma"]["updates"][-1]) for each in ("n1", name))


def _change_rows(results: Mapping[str, list[Result]]) -> Iterator[Row]:
    """Each 1-step variant less the standard one with the same seed: return, and where the meta-parameters went."""
    for name, title in CHANGES.items():
        own, base = results[name], results["n1"][: len(results[name])]
        update = _common_end(results, name)
        quantities = {}
        if update == base[0]["curves"]["eta/gamma"]["updates"][-1]:
            quantities["return of full episodes"] = [[each["return"]["mean"] for each in runs] for runs in (base, own)]
        for eta, symbol in META_PARAMETERS.items():
            quantities[symbol] = [[_at(each["curves"][eta], update) for each in runs] for runs in (base, own)]
        if name == "n1-halved-critic":  # its own coefficient is another quantity
            del quantities["critic coefficient"]
        for what, (first, second) in quantities.items():
            difference = paired(first, second)
            ours = f"{number(float(np.mean(first)), 5)} → {number(float(np.mean(second)), 5)}"
            if len(own) > 1 and difference.verdict(True) == UNDECIDED:
                ours += f": {UNDECIDED}"
            _, std = mean_and_std(first)
            spread = (
                f"paired {difference}; std of the standard one {number(float(std), 2)}" if len(own) > 1 else "one seed"
            )
            yield Row(f"{title}: {what} after {update:,} updates", "not given", ours, str(len(own)), spread)


def _norm_rows(results: Mapping[str, list[Result]]) -> Iterator[Row]:
    """Are the clips of Table 2 ever active?"""
    for name, own in results.items():
        for norm, clip in (("norm/gradient", 10), ("norm/meta_gradient", 0.1)):
            found: Sequence[Mapping[str, float]] = [each["norms"][norm] for each in own if norm in each["norms"]]
            if found:
                highest = max(each["max"] for each in found)
                clipped = np.mean([each["clipped"] for each in found])
                ours = f"largest {number(highest)}, mean {number(float(np.mean([each['mean'] for each in found])))}"
                yield Row(
                    f"{name}: {norm}, clip {clip:g}",
                    "not given",
                    ours,
                    str(len(found)),
                    f"clipped in {clipped:.2%} of updates",
                )


def _rms_rows(results: Mapping[str, list[Result]]) -> Iterator[Row]:
    """Sizes of meta-gradients beside the floor that eps_root is, while both made the same number of updates."""
    for name in ("n1", *CHANGES):
        update = min(_common_end(results, each) for each in CHANGES)
        squares = []
        for each in results[name]:
            curves = [
                np.array(curve["values"])[np.array(curve["updates"]) <= update] for curve in each["meta_gradient_rms"]
            ]
            squares.append([(curve**2).mean() for curve in curves])
        shown = ", ".join(number(float(x), 2) for x in np.sqrt(np.mean(squares, axis=0)))
        label = f"{name}: rms of the meta-gradient in {update:,} updates (γ, λ, critic, entropy)"
        yield Row(label, "not given", shown, str(len(squares)), "eps_root 1e-8 floors Adam's root at 1e-4")


def _panels(results: Mapping[str, list[Result]]) -> tuple[list[Panel], list[Panel]]:
    long: dict[str, list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]]] = {"updates": [], "frames": []}
    for name, length in LENGTHS.items():
        curve = results[name][0]["curves"].get(_RETURN)
        if curve:
            updates = np.array(curve["updates"], dtype=np.float64)
            long["updates"].append((f"T = {length}", updates, curve["values"], None))
            long["frames"].append((f"T = {length}", updates * 32 * length, curve["values"], None))
    first = [Panel("0-step", x, "return, last 512 episodes", lines) for x, lines in long.items()]
    second = []
    for eta, title in META_PARAMETERS.items():
        lines: list[tuple[str, ArrayLike, ArrayLike, ArrayLike | None]] = []
        for name in ("n1", *CHANGES):
            if name == "n1-halved-critic" and eta == "eta/value_coefficient":
                continue
            curves = [each["curves"][eta] for each in results[name]]
            mean, std = mean_and_std([curve["values"] for curve in curves])
            lines.append((CHANGES.get(name, "standard"), curves[0]["updates"], mean, std))
        second.append(Panel(title, "updates", "value", lines))
    return first, second


_INTRODUCTION = """\
One value of experiment `snake-12x12` changed at a time. Returns in curves: mean of the last 512 episodes of training;
at the end: {episodes} full episodes under the sampled policy. Meta-gradients: {samples} samples at each checkpoint,
logits, before clipping; ratios of their standard deviations are means over the four meta-parameters. Step sizes fall to
0 over 50,000 updates, as in the whole run whose beginning this is. Verdicts by the 95 % interval of differences paired
over seeds (Student's t; with two seeds it is wide, with one there is none). docs/snake-12x12.md draws the conclusions.
{short}"""


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Pictures and report.md."""
    results = by_variant(parts)
    settings = next(iter(parts.values()))[0]
    first, second = _panels(results)
    if any(panel.curves for panel in first):
        line_panels(folder / "length.png", first, columns=2)
    line_panels(folder / "meta_parameters.png", second, columns=2)
    figures = (
        [("length.png", "0-step runs against updates and against frames.")] if any(p.curves for p in first) else []
    )
    figures.append(("meta_parameters.png", "Meta-parameters of the 1-step variants; mean ± std over seeds."))
    short = "\nA quick run shows that the path works; its numbers stand for nothing.\n" if is_quick else ""
    rows = [
        *_baseline_rows(results),
        *_spread_rows(results),
        *_rms_rows(results),
        *_change_rows(results),
        *_norm_rows(results),
    ]
    write_report(
        folder,
        "Snake 12x12: what the paper leaves open",
        _INTRODUCTION.format(episodes=settings["episodes"], samples=settings["samples"], short=short),
        rows,
        figures,
        ["Nothing here has the paper's length; the paper's own numbers are asked for by study `snake-12x12`."],
    )
