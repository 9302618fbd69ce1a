"""Run a sweep on Ray Tune: trials that are done already stay, the others are trained; then one table and one plot."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.run.folder import RunFolder, write_json
from metagrad.cluster.run.plot import plot_runs
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.sweeps.trial import Told, Trial, TrialRun, summary_of
from metagrad.cluster.sweeps.tuning import tuned
from metagrad.errors import RunLost, counted, require
from metagrad.learner.storage import write_whole


def sweep(trials: Sequence[Trial], folder: Path, cpus: int, console: Console) -> None:
    """Train what is missing of the trials in `folder`/trials, then write sweep.json, sweep.md and sweep.png.

    Raises:
        ConfigurationError: before anything starts; the folder holds a run, or another sweep of these names.
        RunLost: a trial failed; those that are done stay.
    """
    named = {trial.name: trial for trial in trials}
    run_folder = RunFolder(folder)
    require(not run_folder.has_run(), "run-dir", str(folder), "holds a training run", "choose another --run-dir")
    with run_folder.held(), Progress(console, len(named)) as progress:
        places = {name: folder / "trials" / name for name in named}
        missing = {name: trial for name, trial in named.items() if summary_of(places[name], trial.experiment) is None}
        progress.say(f"sweep folder: {folder}")
        progress.say(f"{len(named) - len(missing)} of {len(named)} trials are done already")
        if missing:
            trainable = tune.with_parameters(TrialRun, trials=missing, folder=folder.absolute() / "trials")
            tuned(trainable, list(missing), folder, cpus, Told(progress.say))
        summaries = {name: summary_of(places[name], trial.experiment) for name, trial in named.items()}
        lost = [name for name, summary in summaries.items() if summary is None]
        if lost:
            raise RunLost(f"{counted(len(lost), 'trial')} not done ({lost[0]}, …); run the command again to go on")
        rows = table(named, {name: summary for name, summary in summaries.items() if summary is not None})
        write_json(folder / "sweep.json", rows)
        write_whole(folder / "sweep.md", as_markdown(rows).encode())
        plot_runs(list(places.values()), folder / "sweep.png")
    console.print(as_markdown(rows), markup=False, soft_wrap=True)
    progress.say(f"table: {folder / 'sweep.md'}, plot: {folder / 'sweep.png'}, runs: {folder / 'trials'}")


def trial_of(settings: dict[str, str], experiment: BaseExperiment, seed: int, cpus: int) -> Trial:
    """Return the trial of a setting and a seed."""
    return Trial(settings=settings, experiment=replace(experiment, seed=seed, learner_threads=cpus))


def table(trials: dict[str, Trial], summaries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each setting, the best mean return over seeds first; settings without any return are last."""
    by_setting: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, trial in trials.items():
        by_setting.setdefault(tuple(trial.settings.items()), []).append(name)
    rows = []
    for setting, names in by_setting.items():
        returns = [summaries[name]["return_mean"] for name in names]
        known = [value for value in returns if value is not None]
        etas = [summaries[name]["eta"] for name in names]
        rows.append(
            {
                "settings": dict(setting),
                "seeds": [trials[name].experiment.seed for name in names],
                "return_mean": statistics.fmean(known) if known else None,
                "return_std": statistics.stdev(known) if len(known) > 1 else None,
                "returns": returns,
                "eta": {field: statistics.fmean(eta[field] for eta in etas) for field in etas[0]},
            }
        )
    return sorted(rows, key=lambda row: -math.inf if row["return_mean"] is None else row["return_mean"], reverse=True)


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table: settings, seeds, final return with its spread over seeds, and η at the end."""
    fields, learnt = list(rows[0]["settings"]), list(rows[0]["eta"])
    head = [*fields, "seeds", "return", "std over seeds", *learnt]

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    lines = [head, ["---"] * len(head)]
    for row in rows:
        own = [row["settings"][field] for field in fields]
        scores = [str(len(row["seeds"])), number(row["return_mean"]), number(row["return_std"])]
        lines.append([*own, *scores, *(number(row["eta"].get(name)) for name in learnt)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
