"""Makes tables and figures of the study `snake-12x12-choices`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metagrad.cluster.studies.study import Result
from metagrad.experiments.one_step_at_a_time.snake_12x12_report import META_PARAMETERS, PUBLISHED, TITLES
from metagrad.experiments.reporting.claims import UNDECIDED, paired
from metagrad.experiments.reporting.figures import Curve, Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Parts, by_setting, first_settings
from metagrad.experiments.reporting.report import Row, write_report
from metagrad.experiments.reporting.statistics import Array, mean_of, number, numbers, std_of
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
FLOOR = "eps_root 1e-8 floors Adam's root at 1e-4"
_RETURN = "episode/return_mean"


ByVariant = Mapping[str, list[Result]]


class Extrapolation(NamedTuple):
    """Holds the updates at which a curve would reach a level, from its second half; inf where it does not rise."""

    linear: float
    power: float


def extrapolate(updates: ArrayLike, values: ArrayLike, level: float) -> Extrapolation:
    """Fit the second half of a curve by least squares: value = a + b · updates, and log value = a + b · log updates.

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
    """Return the value of the last bin that ends by an update."""
    index = np.searchsorted(curve["updates"], update, side="right") - 1
    return float(curve["values"][max(int(index), 0)])


def _baseline_rows(results: ByVariant) -> Iterator[Row]:
    """Follow the long runs of 0 steps: at equal updates, at equal frames, and to where they seem to go."""
    curves = {name: results[name][0]["curves"].get(_RETURN) for name in FULL}
    if not all(curves.values()):
        return
    last = {name: curve["updates"][-1] for name, curve in curves.items()}
    updates = min(last.values())
    frames = 32 * min(last[name] * LENGTHS[name] for name in FULL)
    for name, curve in curves.items():
        title = f"0-step, T = {LENGTHS[name]}"
        values = (_at(curve, updates), _at(curve, frames / (32 * LENGTHS[name])), curve["values"][-1])
        label = f"{title}: return at {updates:,} updates, at {frames:,} frames, at its end ({last[name]:,} updates)"
        played = results[name][0]["return"]
        spread = f"full episodes at the end: {number(played['mean'])} (std {number(played['std'])} over episodes)"
        yield Row(label, "not given", numbers(values), 1, spread)
        if last[name] >= FULL[name]:
            guess = extrapolate(curve["updates"], curve["values"], BASELINE)
            ours = f"{number(guess.linear, 2)} (line), {number(guess.power, 2)} (power law)"
            label = f"{title}: updates to a return of {BASELINE:g}, extrapolated from the second half"
            yield Row(label, "not given", ours, 1, "no interval: two guesses")


def _ratios(probes: Mapping[str, Result], arm: str, base: str) -> str:
    """Write an arm's spread in units of another one's at every checkpoint."""
    pairs = zip(probes[arm]["std"], probes[base]["std"], strict=True)
    return numbers(normalised_std([row], [one]).mean_of_ratios for row, one in pairs)


def _spread_rows(results: ByVariant) -> Iterator[Row]:
    """Yield Table 1's second row at checkpoints of the 0-step runs, and the same with another choice."""
    for name, length in LENGTHS.items():
        probes = results[name][0]["probes"]
        updates = " and ".join(f"{update:,}" for update in probes["1"]["updates"])
        for arm, published in PUBLISHED.items():
            if published.spread is None or arm == "1":
                continue
            label = f"T = {length}, {TITLES[arm]}: std of the meta-gradient / that of 1-step, updates {updates}"
            yield Row(label, published.shown_spread, _ratios(probes, arm, "1"), 1, "std over seeds not measured")
        rms = np.sqrt(np.array(probes["1"]["std"]) ** 2 + np.array(probes["1"]["mean"]) ** 2)
        shown = "; ".join(numbers(row, 2) for row in rms)
        what = "root mean square of the meta-gradient (γ, λ, critic, entropy)"
        yield Row(f"T = {length}, 1-step: {what}, updates {updates}", "not given", shown, 1, FLOOR)
        for other, base, what in (
            ("3-fork", "3", "3-step in forks / continuing"),
            ("1-inner-eps-root-0", "1", "1-step, inner Adam without eps_root / with"),
            ("3-inner-eps-root-0", "3", "3-step, inner Adam without eps_root / with"),
        ):
            label = f"T = {length}: std of the meta-gradient, {what}"
            yield Row(label, "not given", _ratios(probes, other, base), 1, "the same seeds of streams")


def _common_end(results: ByVariant, name: str) -> int:
    """Return the updates that a variant and the standard one both made."""
    return min(int(results[each][0]["curves"]["eta/gamma"]["updates"][-1]) for each in ("n1", name))


def _change_rows(results: ByVariant) -> Iterator[Row]:
    """Compare each 1-step variant with the standard one of the same seed: return, and where meta-parameters went."""
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
            difference, spread = paired(first, second), "one seed"
            ours = f"{mean_of(first, 5)} → {mean_of(second, 5)}"
            if len(own) > 1:
                ours += f": {UNDECIDED}" if difference.verdict("above") == "undecided" else ""
                spread = f"paired {difference}; std of the standard one {std_of(first)}"
            yield Row(f"{title}: {what} after {update:,} updates", "not given", ours, len(own), spread)


def _norm_rows(results: ByVariant) -> Iterator[Row]:
    """Tell whether the clips of Table 2 are ever active."""
    for name, own in results.items():
        for norm, clip in (("norm/gradient", 10), ("norm/meta_gradient", 0.1)):
            found = [each["norms"][norm] for each in own if norm in each["norms"]]
            if found:
                highest = max(each["max"] for each in found)
                ours = f"largest {number(highest)}, mean {mean_of([each['mean'] for each in found])}"
                clipped = f"clipped in {np.mean([each['clipped'] for each in found]):.2%} of updates"
                yield Row(f"{name}: {norm}, clip {clip:g}", "not given", ours, len(found), clipped)


def _rms_rows(results: ByVariant) -> Iterator[Row]:
    """Yield sizes of meta-gradients beside the floor that eps_root is, while both made the same number of updates."""
    update = min(_common_end(results, each) for each in CHANGES)
    for name in ("n1", *CHANGES):
        squares = [
            [
                (np.array(curve["values"])[np.array(curve["updates"]) <= update] ** 2).mean()
                for curve in each["meta_gradient_rms"]
            ]
            for each in results[name]
        ]
        shown = numbers(np.sqrt(np.mean(squares, axis=0)), 2)
        label = f"{name}: rms of the meta-gradient in {update:,} updates (γ, λ, critic, entropy)"
        yield Row(label, "not given", shown, len(squares), FLOOR)


def _figures(results: ByVariant) -> Iterator[Figure]:
    by_updates, by_frames = list[Curve](), list[Curve]()
    for name, length in LENGTHS.items():
        curve = results[name][0]["curves"].get(_RETURN)
        if curve:
            updates = np.array(curve["updates"], dtype=np.float64)
            by_updates.append((f"T = {length}", updates, curve["values"], None))
            by_frames.append((f"T = {length}", updates * 32 * length, curve["values"], None))
    if by_updates:
        lines = {"updates": by_updates, "frames": by_frames}
        panels = [Panel("0-step", x, "return, last 512 episodes", each) for x, each in lines.items()]
        yield Figure("length.png", "0-step runs against updates and against frames.", panels, columns=2)
    learnt = []
    for eta, title in META_PARAMETERS.items():
        curves = []
        for name in ("n1", *CHANGES):
            if name == "n1-halved-critic" and eta == "eta/value_coefficient":
                continue
            own = [each["curves"][eta] for each in results[name]]
            label = CHANGES.get(name, "standard")
            curves.append(mean_curve(label, own[0]["updates"], [curve["values"] for curve in own]))
        learnt.append(Panel(title, "updates", "value", curves))
    text = "Meta-parameters of the 1-step variants; mean ± std over seeds."
    yield Figure("meta_parameters.png", text, learnt, columns=2)


_INTRODUCTION = """\
One value of experiment `snake-12x12` changed at a time. Returns in curves: mean of the last 512 episodes of training;
at the end: {episodes} full episodes under the sampled policy. Meta-gradients: {samples} samples at each checkpoint,
logits, before clipping; ratios of their standard deviations are means over the four meta-parameters. Step sizes fall to
0 over 50,000 updates, as in the whole run whose beginning this is. Verdicts by the 95 % interval of differences paired
over seeds (Student's t; with two seeds it is wide, with one there is none). docs/snake-12x12.md draws the conclusions.
{short}"""


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the page of `snake-12x12-choices`."""
    results = by_setting(parts, "variant")
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
        _INTRODUCTION.format(short=short, **first_settings(parts)),
        rows,
        list(_figures(results)),
        ["Nothing here has the paper's length; the paper's own numbers are asked for by study `snake-12x12`."],
    )
