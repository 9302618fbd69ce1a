"""Makes tables and figures of the study `peek`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.reporting.claims import paired
from metagrad.experiments.reporting.figures import Figure, Panel, mean_curve
from metagrad.experiments.reporting.parts import Parts
from metagrad.experiments.reporting.report import Row, differences_of, write_report
from metagrad.experiments.reporting.statistics import Array, critical, mean_and_std, mean_of, number, numbers, std_of

_INTRODUCTION = """\
{what}, {environments} environments × 5 steps an update, {updates:,} updates. `lockstep` rolls out every looked-ahead
policy: n + 1 batches for each real update, n of them look-ahead frames. `peek` looks ahead in the real batches that
later updates use, corrected by whole importance ratios with centred advantages, or by ratios clipped at 1 as in IMPALA
where that is said: no look-ahead frames at all. Runs are compared after the same number of real updates, which have
used equally many real frames; under peek n further batches wait by then.

Every run on one CPU thread, colocated: actors and learner take turns, so frames per second compare arithmetic, not
overlap. They are of wall time, with whatever else the machine did; `python -m benchmarks schedules` measures in turn.
"""

_PROBES = """
Meta-gradients: {samples} independent samples of each estimator from the same θ, η and optimizer states of a lockstep
run with n = 1, in unconstrained space and before clipping. A window of peek is sampled by the policies of the last
n + 1 updates, its games going on from batch to batch; both of its estimators see the same windows. γ alone is learnt,
as in the arms, unless four are: γ, λ, value and entropy coefficient, since one component has no cosine.
"""

SHARE = "policy/effective_sample_size"
ESTIMATORS = {"peek": "peek", "impala": "peek with clips of 1"}


class About(NamedTuple):
    """Says what a page is about."""

    title: str
    what: str  # begins the introduction: environment and agent


SNAKE = About(
    "Peek: look-ahead without frames",
    "Snake 6x6 (experiment `snake-6x6`: outer critic, γ learnt, surrogate AD, as in the debiasing paper, or LVC)",
)
PONG = About("Peek on Pong", "Pong (experiment `atari`: surrogate LVC, critic of the inner loss, four learnt)")


class PeekSetting(NamedTuple):
    """Says in what runs of one schedule differ, apart from the seed."""

    n: int
    surrogate: str  # empty: the experiment's own
    is_clipped: bool  # as in IMPALA

    def __str__(self) -> str:
        extra = f", {self.surrogate.upper()}" if self.surrogate else ""
        return f"n = {self.n}{extra}{', clips of 1' if self.is_clipped else ''}"

    @property
    def base(self) -> "PeekSetting":
        """Return its counterpart under lockstep, where no ratio is clipped."""
        return self._replace(is_clipped=False)


def setting_of(settings: Settings) -> PeekSetting:
    """Return what a part has in common with the other seeds' parts."""
    return PeekSetting(settings["n"], settings.get("surrogate", ""), settings.get("ratio_clip") == 1.0)


def runs_of(parts: Parts, setting: PeekSetting, schedule: str) -> list[Result]:
    """Return results under one schedule, seeds in order."""
    own = [(s["seed"], r) for s, r in parts.values() if s.get("schedule") == schedule and setting_of(s) == setting]
    return [result for _, result in sorted(own, key=lambda each: int(each[0]))]


def speed(runs: list[Result]) -> Array:
    """Return the real frames per second of each run."""
    return np.array([run["frames_real"] / run["wall_seconds"] for run in runs])


def _rows(parts: Parts, setting: PeekSetting) -> Iterator[Row]:
    lockstep, peek = runs_of(parts, setting.base, "lockstep"), runs_of(parts, setting, "peek")
    seeds = min(len(lockstep), len(peek))
    if not seeds:
        return
    both = lockstep[:seeds], peek[:seeds]
    for quantity, name in (("return at the end", "sampled"), ("γ at the end", "eta/gamma")):
        ends = [np.array([run[name]["values"][-1] for run in runs]) for runs in both]
        yield _compared(f"{setting}: {quantity}, equal real frames", ends, seeds, name == "sampled")
    speeds = [speed(runs) for runs in both]
    middle = [np.median(x) for x in speeds]
    ours = f"{number(middle[0], 4)} → {number(middle[1], 4)}: {number(middle[1] / middle[0])} times"
    spread = "; ".join(f"{number(x.min(), 4)} to {number(x.max(), 4)}" for x in speeds)
    bound = f"{setting.n + 1} without a learner"
    yield Row(f"{setting}: real frames per second, one thread", bound, ours, seeds, spread)
    shares = [run[SHARE]["values"] for run in both[1] if SHARE in run]  # older parts have none
    if shares:
        last, least = float(np.mean([values[-1] for values in shares])), min(map(min, shares))
        shown, spread = f"{number(last)} at the end", f"least mean of an epoch {number(least)}"
        yield Row(f"{setting}: effective sample size, share of the steps", "1 in lockstep", shown, len(shares), spread)
    frames = [sum(run["frames_lookahead"] for run in runs) // seeds for runs in both]
    shown = f"{frames[0]:,} → {frames[1]:,}"
    yield Row(f"{setting}: look-ahead frames of a run", "0 under peek", shown, seeds, "exact")


def _compared(quantity: str, ends: Sequence[Array], seeds: int, is_larger_better: bool) -> Row:
    """Compare seed by seed, since both runs of a seed start from one network, and as two samples as well."""
    difference = paired(*ends)
    verdict = difference.direction("larger", "smaller")
    (_, first_std), (_, second_std) = (mean_and_std(x) for x in ends)
    apart = float(np.hypot(first_std, second_std)) / seeds**0.5 * critical(2 * seeds - 1)
    spread = (
        f"std {std_of(ends[0])} and {std_of(ends[1])}; difference {number(difference.difference)}, "
        f"95 %: ± {number(difference.margin, 2)} paired, ± {number(apart, 2)} as two samples"
    )
    worse = ", worse" if is_larger_better and difference.difference < 0 else ""
    is_apart = difference.verdict("above") != "undecided"
    sentences = [f"{quantity}: {verdict} under peek{worse}, by {difference}."] if is_apart else []
    ours = f"{mean_of(ends[0])} → {mean_of(ends[1])}: {verdict}"
    return Row(quantity, "no difference", ours, seeds, spread, sentences)


class Samples(NamedTuple):
    """Holds what samples of lockstep and of another estimator say at one point, by component."""

    means: tuple[Array, Array]
    stds: tuple[Array, Array]
    size: int  # samples of each

    @property
    def apart(self) -> Array:
        """Return how many standard errors the other mean is away from that of lockstep."""
        return (self.means[1] - self.means[0]) / (np.hypot(*self.stds) / self.size**0.5)

    @property
    def ratio(self) -> Array:
        """Return the other standard deviation over that of lockstep."""
        return self.stds[1] / self.stds[0]


def _samples(result: Result, estimator: str) -> list[Samples]:
    """Return what the samples say at each point of one run."""
    both = zip(result["lockstep"], result[estimator], strict=True)
    pairs = [[np.array(x, dtype=np.float64) for x in pair] for pair in both]
    return [
        Samples((x.mean(axis=0), y.mean(axis=0)), (x.std(axis=0, ddof=1), y.std(axis=0, ddof=1)), len(x))
        for x, y in pairs
    ]


def _meta_gradient_rows(settings: Settings, result: Result) -> Iterator[Row]:
    learnt = ", four learnt" if "learnt" in settings else ""
    found = [
        (estimator, update, samples)
        for estimator in ESTIMATORS
        for update, samples in zip(result["updates"], _samples(result, estimator), strict=True)
    ]
    for estimator, update, samples in found:
        (means, stds, size), apart = samples, samples.apart
        ours = f"{numbers(means[0], 2)} → {numbers(means[1], 2)}; apart by {numbers(apart, 2)} standard errors"
        ratio = numbers(samples.ratio, 2)
        spread = f"std of single samples {numbers(stds[0], 2)} and {numbers(stds[1], 2)}, ratio {ratio}"
        if len(means[0]) > 1:
            cosine = float(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
            spread += f"; cosine of the means {number(cosine, 4)}"
        setting = setting_of(settings)._replace(is_clipped=estimator == "impala")
        quantity = f"{setting}{learnt}, seed {settings['seed']}: meta-gradient at update {update:,}"
        is_apart = bool((abs(apart) > critical(2 * size - 1)).any())
        sentences = [f"{quantity}: {ours}, of {size} samples each."] if is_apart else []
        yield Row(quantity, "no difference", ours, f"{size} samples", spread, sentences)


def _counted(probed: Sequence[tuple[Settings, Result]]) -> Iterator[Row]:
    """Count over all points of all runs: a few means of the same estimator would be 2 standard errors apart, too."""
    for estimator, name in ESTIMATORS.items():
        every = [samples for _, result in probed for samples in _samples(result, estimator)]
        apart = np.concatenate([abs(samples.apart) for samples in every])
        ratio = np.concatenate([samples.ratio for samples in every])
        ours = f"{int((apart > 2).sum())} of {len(apart)}, the largest {number(apart.max(), 2)}"
        chance = f"{number(0.0455 * len(apart), 2)} by chance"
        spread = f"ratios of std: median {number(np.median(ratio))}, largest {number(ratio.max())}"
        quantity = f"meta-gradients of {name} further than 2 standard errors from lockstep's"
        yield Row(quantity, chance, ours, f"{every[0].size} samples", spread)


def report(folder: Path, parts: Parts, is_quick: bool, about: About) -> None:
    """Write the page of `peek` or `peek-pong`."""
    trained = {name: part for name, part in parts.items() if "schedule" in part[0]}
    settings_found = sorted({setting_of(settings) for settings, _ in trained.values()})
    rows = [row for setting in settings_found for row in _rows(trained, setting)]
    probed = [part for part in parts.values() if "points" in part[0]]
    rows += [*_counted(probed)] if probed else []
    rows += [row for part in probed for row in _meta_gradient_rows(*part)]
    any_run, _ = next(iter(trained.values()))
    introduction = _INTRODUCTION.format(what=about.what, **any_run)
    introduction += _PROBES.format(**probed[0][0]) if probed else ""
    bases = [each for each in settings_found if each == each.base]
    panels = [panel for base in bases for panel in _panels(trained, base, settings_found)]
    caption = "Return of full episodes against real frames and against seconds; mean ± standard deviation over seeds."
    quick = ["A quick version: it shows that things work, and nothing else."] if is_quick else []
    figures = [Figure("returns.png", caption, panels, columns=2)]
    write_report(folder, about.title, introduction, rows, figures, [*differences_of(rows), *quick])


def _panels(parts: Parts, base: PeekSetting, every: Sequence[PeekSetting]) -> Iterator[Panel]:
    shown = {"lockstep": ("lockstep", base)}
    shown |= {str(each).replace(str(base), "peek"): ("peek", each) for each in every if each.base == base}
    found = {label: runs_of(parts, setting, schedule) for label, (schedule, setting) in shown.items()}
    for x_label, name in (("real frames", "frames_real"), ("seconds", "wall_seconds")):
        curves = []
        for label, runs in found.items():
            if runs:
                share = np.array(runs[0]["sampled"]["updates"]) / runs[0]["sampled"]["updates"][-1]
                x = share * np.mean([run[name] for run in runs])
                curves.append(mean_curve(label, x, [run["sampled"]["values"] for run in runs]))
        yield Panel(str(base), x_label, "return", curves)
