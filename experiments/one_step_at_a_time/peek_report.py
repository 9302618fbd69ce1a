"""Tables and figures of the study `peek`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.reporting.paired import paired
from metagrad.experiments.reporting.report import (
    Array,
    Panel,
    Row,
    critical,
    line_panels,
    mean_and_std,
    number,
    write_report,
)

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
    """What a page is about."""

    title: str
    what: str  # begins the introduction: environment and agent


SNAKE = About(
    "Peek: look-ahead without frames",
    "Snake 6x6 (experiment `snake-6x6`: outer critic, γ learnt, surrogate AD, as in the debiasing paper, or LVC)",
)
PONG = About("Peek on Pong", "Pong (experiment `atari`: surrogate LVC, critic of the inner loss, four learnt)")


class Arm(NamedTuple):
    """What runs of one schedule differ in, beside the seed."""

    n: int
    surrogate: str  # empty: the experiment's own
    rho_clip: float  # of peek; the schedule itself sets 1

    def __str__(self) -> str:
        extra = f", {self.surrogate.upper()}" if self.surrogate else ""
        return f"n = {self.n}{extra}" + (f", ρ̄ = {number(self.rho_clip)}" if self.rho_clip != 1 else "")

    @property
    def base(self) -> "Arm":
        """What it is compared with under lockstep, where no ratio is clipped."""
        return self._replace(rho_clip=1.0)


def arm_of(settings: Settings) -> Arm:
    """The arm that a part belongs to."""
    return Arm(settings["n"], settings.get("surrogate", ""), settings.get("rho_clip", 1.0))


def runs_of(parts: Mapping[str, tuple[Settings, Result]], arm: Arm, schedule: str) -> list[Result]:
    """Results of one arm, seeds in order."""
    own = [(s["seed"], r) for s, r in parts.values() if s.get("schedule") == schedule and arm_of(s) == arm]
    return [result for _, result in sorted(own, key=lambda each: each[0])]


def speed(runs: list[Result]) -> Array:
    """Real frames per second of each run."""
    return np.array([run["frames_real"] / run["wall_seconds"] for run in runs])


def _rows(parts: Mapping[str, tuple[Settings, Result]], arms: list[Arm]) -> Iterator[tuple[Row, str | None]]:
    for arm in arms:
        lockstep, peek = runs_of(parts, arm.base, "lockstep"), runs_of(parts, arm, "peek")
        seeds = min(len(lockstep), len(peek))
        if not seeds:
            continue
        lockstep, peek = lockstep[:seeds], peek[:seeds]
        for quantity, name in (("return at the end", "sampled"), ("γ at the end", "eta/gamma")):
            ends = [np.array([run[name]["values"][-1] for run in runs]) for runs in (lockstep, peek)]
            yield _compared(f"{arm}: {quantity}, equal real frames", ends, seeds, name == "sampled")
        speeds = speed(lockstep), speed(peek)
        ratio = np.median(speeds[1]) / np.median(speeds[0])
        ours = f"{number(np.median(speeds[0]), 4)} → {number(np.median(speeds[1]), 4)}: {number(ratio)} times"
        bound = f"{arm.n + 1} without a learner"
        spread = "; ".join(f"{number(x.min(), 4)} to {number(x.max(), 4)}" for x in speeds)
        yield Row(f"{arm}: real frames per second, one thread", bound, ours, str(seeds), spread), None
        frames = [sum(run["frames_lookahead"] for run in runs) // seeds for runs in (lockstep, peek)]
        shown = f"{frames[0]:,} → {frames[1]:,}"
        yield Row(f"{arm}: look-ahead frames of a run", "0 under peek", shown, str(seeds), "exact"), None


def _compared(quantity: str, ends: list[Array], seeds: int, is_larger_better: bool) -> tuple[Row, str | None]:
    """Seed by seed, since both runs of a seed start from one network; beside it the interval of two samples."""
    difference = paired(*ends)
    (first, first_std), (second, second_std) = (mean_and_std(x) for x in ends)
    margin = critical(seeds) * difference.standard_error
    is_apart = abs(difference.difference) > margin
    verdict = ("larger" if difference.difference > 0 else "smaller") if is_apart else "not distinguishable"
    apart = float(np.hypot(first_std, second_std)) / seeds**0.5 * critical(2 * seeds - 1)
    spread = (
        f"std {number(float(first_std), 2)} and {number(float(second_std), 2)}; difference "
        f"{number(difference.difference)}, 95 %: ± {number(margin, 2)} paired, ± {number(apart, 2)} as two samples"
    )
    row = Row(
        quantity, "no difference", f"{number(float(first))} → {number(float(second))}: {verdict}", str(seeds), spread
    )
    worse = ", worse" if is_larger_better and difference.difference < 0 else ""
    return row, f"{quantity}: {verdict} under peek{worse}, by {difference}." if is_apart else None


def _meta_gradient_rows(settings: Settings, result: Result) -> Iterator[tuple[Row, str | None]]:
    learnt = ", four learnt" if "learnt" in settings else ""
    for k, update in enumerate(result["updates"]):
        lockstep, peek = (np.array(result[name][k], dtype=np.float64) for name in ("lockstep", "peek"))
        means = lockstep.mean(axis=0), peek.mean(axis=0)
        stds = [x.std(axis=0, ddof=1) for x in (lockstep, peek)]
        apart = (means[1] - means[0]) / (np.hypot(*stds) / len(lockstep) ** 0.5)
        ours = f"{_listed(means[0])} → {_listed(means[1])}; apart by {_listed(apart)} standard errors"
        spread = f"std of single samples {_listed(stds[0])} and {_listed(stds[1])}, ratio {_listed(stds[1] / stds[0])}"
        if len(means[0]) > 1:
            cosine = float(means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1]))
            spread += f"; cosine of the means {number(cosine, 4)}"
        quantity = f"{arm_of(settings)}{learnt}: meta-gradient at update {update:,}"
        is_apart = bool((abs(apart) > critical(2 * len(lockstep) - 1)).any())
        verdict = f"{quantity}: {ours}, of {len(lockstep)} samples each." if is_apart else None
        yield Row(quantity, "no difference", ours, f"{len(lockstep)} samples", spread), verdict


def _listed(values: Array) -> str:
    return ", ".join(number(float(x), 2) for x in values)


def report(folder: Path, parts: Mapping[str, tuple[Settings, Result]], is_quick: bool, about: About) -> None:
    """Write report.md and its pictures into the study's folder."""
    trained = {name: part for name, part in parts.items() if "schedule" in part[0]}
    arms = sorted({arm_of(settings) for settings, _ in trained.values()})
    found = list(_rows(trained, arms))
    probed = [part for part in parts.values() if "points" in part[0]]
    for settings, result in probed:
        found += _meta_gradient_rows(settings, result)
    rows, differences = [row for row, _ in found], [sentence for _, sentence in found if sentence]
    line_panels(
        folder / "returns.png",
        [panel for arm in arms if arm == arm.base for panel in _panels(trained, arm, arms)],
        columns=2,
    )
    if is_quick:
        differences.append("A quick version: it shows that things work, and nothing else.")
    any_run, _ = next(iter(trained.values()))
    introduction = _INTRODUCTION.format(what=about.what, **any_run)
    if probed:
        introduction += _PROBES.format(**probed[0][0])
    caption = "Return of full episodes against real frames and against seconds; mean ± standard deviation over seeds."
    write_report(folder, about.title, introduction, rows, [("returns.png", caption)], differences)


def _panels(parts: Mapping[str, tuple[Settings, Result]], base: Arm, arms: list[Arm]) -> Iterator[Panel]:
    by_frames, by_seconds = [], []
    shown = {"lockstep": ("lockstep", base)}
    shown |= {str(arm).replace(str(base), "peek"): ("peek", arm) for arm in arms if arm.base == base}
    for label, (schedule, arm) in shown.items():
        runs = runs_of(parts, arm, schedule)
        if not runs:
            continue
        share = np.array(runs[0]["sampled"]["updates"]) / runs[0]["sampled"]["updates"][-1]
        mean, std = mean_and_std([run["sampled"]["values"] for run in runs])
        by_frames.append((label, share * np.mean([run["frames_real"] for run in runs]), mean, std))
        by_seconds.append((label, share * np.mean([run["wall_seconds"] for run in runs]), mean, std))
    yield Panel(str(base), "real frames", "return", by_frames)
    yield Panel(str(base), "seconds", "return", by_seconds)
