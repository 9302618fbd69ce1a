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
later updates use, with V-trace corrections, whose clips are 1 unless ρ̄ is given: no look-ahead frames at all. Runs are
compared after the same number of real updates, which have used equally many real frames; under peek n further batches
wait by then.

Every run on one CPU thread, colocated: actors and learner take turns, so frames per second compare arithmetic, not
overlap. They are of wall time, with whatever else the machine did; `python -m benchmarks schedules` measures in turn.
"""

_PROBES = """
Meta-gradients: {samples} independent samples of both estimators from the same θ, η and optimizer states of one run
under peek (n = {n}, seed {seed}), in unconstrained space and before clipping. A window of peek is sampled by the
policies of the last n + 1 updates, its games going on from batch to batch. In one run γ alone is learnt, as in the
arms; in others γ, λ, value and entropy coefficient are, since one component has no cosine.
"""


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
    rho_clip: float  # of peek; the schedule itself sets 1

    def __str__(self) -> str:
        extra = f", {self.surrogate.upper()}" if self.surrogate else ""
        return f"n = {self.n}{extra}" + (f", ρ̄ = {number(self.rho_clip)}" if self.rho_clip != 1 else "")

    @property
    def base(self) -> "PeekSetting":
        """Return its counterpart under lockstep, where no ratio is clipped."""
        return self._replace(rho_clip=1.0)


def setting_of(settings: Settings) -> PeekSetting:
    """Return what a part has in common with the other seeds' parts."""
    return PeekSetting(settings["n"], settings.get("surrogate", ""), settings.get("rho_clip", 1.0))


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


def _meta_gradient_rows(settings: Settings, result: Result) -> Iterator[Row]:
    learnt = ", four learnt" if "learnt" in settings else ""
    for k, update in enumerate(result["updates"]):
        lockstep, peek = (np.array(result[name][k], dtype=np.float64) for name in ("lockstep", "peek"))
        means = lockstep.mean(axis=0), peek.mean(axis=0)
        stds = [x.std(axis=0, ddof=1) for x in (lockstep, peek)]
        apart = (means[1] - means[0]) / (np.hypot(*stds) / len(lockstep) ** 0.5)
        ours = f"{numbers(means[0], 2)} → {numbers(means[1], 2)}; apart by {numbers(apart, 2)} standard errors"
        ratio = numbers(stds[1] / stds[0], 2)
        spread = f"std of single samples {numbers(stds[0], 2)} and {numbers(stds[1], 2)}, ratio {ratio}"
        if len(means[0]) > 1:
            cosine = float(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
            spread += f"; cosine of the means {number(cosine, 4)}"
        quantity = f"{setting_of(settings)}{learnt}: meta-gradient at update {update:,}"
        is_apart = bool((abs(apart) > critical(2 * len(lockstep) - 1)).any())
        sentences = [f"{quantity}: {ours}, of {len(lockstep)} samples each."] if is_apart else []
        yield Row(quantity, "no difference", ours, f"{len(lockstep)} samples", spread, sentences)


def report(folder: Path, parts: Parts, is_quick: bool, about: About) -> None:
    """Write the page of `peek` or `peek-pong`."""
    trained = {name: part for name, part in parts.items() if "schedule" in part[0]}
    settings_found = sorted({setting_of(settings) for settings, _ in trained.values()})
    rows = [row for setting in settings_found for row in _rows(trained, setting)]
    probed = [part for part in parts.values() if "points" in part[0]]
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
