"""Makes tables and figures of the study `self-tuning`: every way at equal batches, CPU seconds and updates."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metagrad.cluster.studies.study import Result, Settings
from metagrad.experiments.gradient_bias.atari_scores import Interval, iqm, stratified_bootstrap
from metagrad.experiments.reporting.figures import Figure, Panel, median_curve
from metagrad.experiments.reporting.parts import Parts
from metagrad.experiments.reporting.report import Row, markdown_table, write_report
from metagrad.experiments.reporting.statistics import Array, number, probability_of_improvement
from metagrad.experiments.self_tuning.tuning_arms import ARMS, MEMBERS, META_GRADIENTS, STARTS, TASKS, batches_of

RETURN = "episode/return_mean"
REPLICATES, SEED = 10_000, 0
RIVALS = ("fixed", "search", "population")
SHOWN = ("fixed", "search", "population", "mg-n1", "mg-outer-n1", "mg-outer-n3", "bmg-outer-n1")
_INTRODUCTION = f"""\
`fixed`: hyper-parameters stay where they start. `search`: the best of {MEMBERS} random settings. `population`: Ray
Tune's PopulationBasedTraining with {MEMBERS} members. `mg`, `mg-outer`, `bmg-outer`: meta-gradients without and with
outer critic, and bootstrapped (one update to the target); n1 and n3: updates that are looked through, mix3: the mixture
over one to three. All of them tune γ, λ, the entropy coefficient and the learning rate. Good starts are the
task's own values; bad ones have γ = .8, a tenth of the learning rate and ten times the entropy coefficient.
Search and population draw within a decade of odds of the start, and their first run is the start itself.

Budgets: a batch is one rollout of all environments; look-ahead counts, and so do all runs of a search or population.
CPU seconds are an update's cost, measured in one process in which all ways take turns, times updates; the budget is
what `fixed` takes for all its batches. At equal updates each run has as many as one of the search, whatever it costs.
Returns are means over the last 100 episodes of training. Of a search or population the run that was best one row of its
log before is taken. Cells: interquartile mean over seeds and its 95 % interval (percentile bootstrap of seeds,
{REPLICATES:,} resamples). With few seeds such intervals are too narrow.
"""


class Trial(NamedTuple):
    """Holds what one seed of a way has to show along training."""

    updates: Array  # [K] of each run
    returns: Array  # [K]

    def at(self, updates: float) -> float | None:
        """Return the newest return after at most so many updates; None where no episode had ended."""
        found = np.flatnonzero(self.updates <= updates + 1e-9)
        return float(self.returns[found[-1]]) if len(found) else None


Trials = Mapping[tuple[str, str, str], dict[int, Trial]]
"""By task, start and way, and then by seed."""


def trials_of(parts: Parts) -> Trials:
    """Return all trials whose parts are there; a search counts once all its runs are."""
    found: dict[tuple[str, str, str], dict[int, Trial]] = {}
    searched: dict[tuple[str, str, int], dict[int, Result]] = {}
    for settings, result in parts.values():
        if "arm" not in settings:
            continue
        task, start, arm, seed = (settings[name] for name in ("task", "start", "arm", "seed"))
        if arm == "search":
            runs = searched.setdefault((task, start, seed), {})
            runs[settings["member"]] = result
            members = [runs[index] for index in sorted(runs)] if len(runs) == MEMBERS else []
        else:
            members = result["members"] if arm == "population" else [result]
        if members:
            found.setdefault((task, start, arm), {})[seed] = best_of(members)
    return found


def best_of(members: Sequence[Result]) -> Trial:
    """Return the trial of the member that was best one row before; of a single one, its own."""
    logged = [dict(zip(x[RETURN]["updates"], x[RETURN]["values"], strict=True)) for x in members if RETURN in x]
    if not logged:
        return Trial(np.zeros(0), np.zeros(0))
    updates = sorted(set(logged[0]).intersection(*logged))
    returns = np.array([[each[update] for update in updates] for each in logged])
    if len(members) == 1:
        return Trial(np.array(updates, dtype=np.float64), returns[0])
    chosen = returns[:, :-1].argmax(axis=0)
    return Trial(np.array(updates[1:], dtype=np.float64), returns[chosen, np.arange(1, len(updates))])


class Budget(NamedTuple):
    """Represents one way to compare: a title, and how many updates each way has for it."""

    title: str
    updates: Mapping[str, float]


def budgets(batches: int, seconds: Mapping[str, float]) -> list[Budget]:
    """Return the budgets of a task: a quarter and all of the batches, the same of CPU seconds, and equal updates."""
    cost = {arm: seconds[arm if arm in META_GRADIENTS else "fixed"] for arm in ARMS}
    runs = {arm: MEMBERS if arm in ("search", "population") else 1 for arm in ARMS}
    whole = seconds["fixed"] * batches
    found = []
    for share, name in ((0.25, "1/4 "), (1.0, "")):
        found.append(Budget(f"{name}batches", {arm: share * batches / batches_of(arm) for arm in ARMS}))
    for share, name in ((0.25, "1/4 "), (1.0, "")):
        found.append(Budget(f"{name}CPU", {arm: share * whole / cost[arm] / runs[arm] for arm in ARMS}))
    return [*found, Budget("updates", dict.fromkeys(ARMS, batches / MEMBERS))]


def _scores(trials: Mapping[int, Trial], updates: float) -> Array:
    values = [trial.at(updates) for _, trial in sorted(trials.items())]
    return np.array([value for value in values if value is not None])


def interval(scores: Array) -> Interval:
    """Return the IQM over seeds and its interval."""
    return stratified_bootstrap(scores[:, None], iqm, REPLICATES, np.random.default_rng(SEED))


def improvement(first: Array, second: Array) -> Interval:
    """Return the probability that a seed of `first` is above one of `second`; nan bounds of a single seed."""
    point = probability_of_improvement(first, second)
    if min(len(first), len(second)) == 1:
        return Interval(np.nan, point, np.nan)
    generator = np.random.default_rng(SEED)
    drawn = [
        probability_of_improvement(generator.choice(first, len(first)), generator.choice(second, len(second)))
        for _ in range(REPLICATES // 5)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(low), point, float(high))


def _shown(found: Interval) -> str:
    bounds = "" if np.isnan(found.low) else f" [{number(found.low)}, {number(found.high)}]"
    return f"{number(found.point)}{bounds}"


def _table(trials: Trials, task: str, start: str, compared: Sequence[Budget]) -> str:
    lines = []
    for arm in ARMS:
        own = trials.get((task, start, arm))
        if own:
            scores = [_scores(own, budget.updates[arm]) for budget in compared]
            lines.append([arm, str(len(own)), *(_shown(interval(x)) if len(x) else "–" for x in scores)])
    return markdown_table(["", "seeds", *(budget.title for budget in compared)], lines)


class _Compared(NamedTuple):
    """Holds a line of the table, and what it decides."""

    row: Row
    where: str
    arm: str
    rival: str
    verdict: str  # "better", "worse"; "" where the interval has .5 in it


def _rows(trials: Trials, task: str, start: str, budget: Budget) -> Iterator[_Compared]:
    """Compare each meta-gradient with what does without one."""
    where = f"{task}, {start} start, equal {budget.title}"
    for arm in META_GRADIENTS:
        own = trials.get((task, start, arm))
        for rival in RIVALS:
            other = trials.get((task, start, rival))
            if not own or not other:
                continue
            first, second = _scores(own, budget.updates[arm]), _scores(other, budget.updates[rival])
            if len(first) and len(second):
                found = improvement(first, second)
                bounds = "–" if np.isnan(found.low) else f"[{number(found.low)}, {number(found.high)}]"
                seeds = f"{len(first)}, {len(second)}"
                row = Row(f"{where}: P({arm} > {rival})", "–", number(found.point), seeds, bounds)
                verdict = "better" if found.low > 0.5 else "worse" if found.high < 0.5 else ""
                yield _Compared(row, where, arm, rival, verdict)


def _decided(compared: Sequence[_Compared]) -> list[str]:
    """Return a sentence for each rival, budget and verdict; an interval that leaves .5 out decides."""
    arms: dict[tuple[str, str, str], list[str]] = {}
    for each in compared:
        if each.verdict:
            arms.setdefault((each.where, each.verdict, each.rival), []).append(each.arm)
    found = [f"{where}: {verdict} than {rival}: {', '.join(own)}." for (where, verdict, rival), own in arms.items()]
    return found or ["No probability of improvement has a 95 % interval that leaves .5 out."]


def _panel(trials: Trials, task: str, start: str, seconds: Mapping[str, float]) -> Panel | None:
    curves = []
    for arm in SHOWN:
        own = list(trials.get((task, start, arm), {}).values())
        shared = sorted(set(own[0].updates).intersection(*(x.updates for x in own))) if own else []
        if shared:
            runs = MEMBERS if arm in ("search", "population") else 1
            cost = runs * seconds[arm if arm in META_GRADIENTS else "fixed"]
            returns = np.array([[x.at(update) for update in shared] for x in own], dtype=np.float64)
            curves.append(median_curve(arm, cost * np.array(shared), returns))
    return Panel(f"{task}, {start} start", "CPU seconds", "return", curves) if curves else None


def _missing(trials: Trials, tasks: Sequence[str]) -> str:
    cases = [(task, start, arm) for task in tasks for start in STARTS for arm in ARMS]
    missing = [", ".join(case) for case in cases if not trials.get(case)]
    missing += [f"{task} as a whole" for task in TASKS if task not in tasks]
    return f"Not run yet: {'; '.join(missing)}." if missing else "Every way was run on every task."


def report(folder: Path, parts: Parts, is_quick: bool) -> None:
    """Write the study's page, of whatever parts there are."""
    trials = trials_of(parts)
    timed: dict[str, tuple[Settings, Any]] = {s["task"]: (s, r["seconds"]) for s, r in parts.values() if "rounds" in s}
    blocks, panels = [_INTRODUCTION], []
    rows: list[_Compared] = []
    for task, (settings, seconds) in timed.items():
        compared = budgets(settings["batches"], seconds)
        head = ["", *seconds]
        cells = ["ms", *(number(1e3 * x) for x in seconds.values())]
        blocks += [
            f"## {task}, {settings['batches']:,} batches",
            "CPU time of an update:",
            markdown_table(head, [cells]),
        ]
        for start in STARTS:
            if any(trials.get((task, start, arm)) for arm in ARMS):
                blocks += [f"### {task}, {start} start", _table(trials, task, start, compared)]
                rows += [row for budget in compared[1:4:2] for row in _rows(trials, task, start, budget)]
                panel = _panel(trials, task, start, seconds)
                panels += [panel] if panel else []
    blocks.append(_missing(trials, list(timed)))
    caption = "Median return over seeds along CPU seconds, of all runs of a search or population together."
    figures = [Figure("curves.png", caption, panels, columns=2)] if panels else []
    title = "Does self-tuning pay?" + (" (quick)" if is_quick else "")
    write_report(folder, title, "\n\n".join(blocks), [each.row for each in rows], figures, _decided(rows))
