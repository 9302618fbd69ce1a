"""Define one trial of a sweep: a run in a folder of its own, which a process of Ray Tune trains."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.folder import RunFolder, read_json
from metagrad.errors import RunLost
from metagrad.learner.storage import exists


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Holds one setting and one seed of a sweep."""

    settings: dict[str, str]
    """Values by option, as words of the command line."""
    experiment: BaseExperiment

    @property
    def name(self) -> str:
        """Return the name of its folder, which says what it is: more seeds or values only add trials."""
        words = [f"{field}={value}" for field, value in self.settings.items()]
        return re.sub(r"[^\w.=,+-]", "_", ",".join([*words, f"seed={self.experiment.seed}"]))


def summary_of(folder: Path, experiment: BaseExperiment) -> dict[str, Any] | None:
    """Return the summary of a trial that is done; None: it is not.

    Raises:
        ConfigurationError: the folder holds another run, or its summary cannot be read.
    """
    run_folder = RunFolder(folder)
    if not run_folder.has_run():
        return None
    run_folder.require_same(experiment)
    path = folder / "summary.json"
    summary: dict[str, Any] = read_json(path) if exists(path) else {}
    return summary if summary.get("updates", 0) >= experiment.updates else None


class TrialRun(tune.Trainable):
    """Trains one trial, from its newest checkpoint where an earlier process has begun it."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """Take the trial that Tune names of all `trials`, in its place below `folder`."""
        self._trial: Trial = given["trials"][config["trial"]]
        self._folder: Path = given["folder"] / config["trial"]

    def step(self) -> dict[str, Any]:
        """Train to the end."""
        is_begun = RunFolder(self._folder).has_run()
        summary = run(self._trial.experiment, self._folder, is_begun, Console(quiet=True))
        if summary["updates"] < self._trial.experiment.updates:
            raise RunLost(f"{self._folder.name} was stopped by {summary['stopped_by']}")
        return {"done": True, "return_mean": summary["return_mean"]}


class Told(tune.Callback):
    """Says which trials are done; Tune keeps a copy of it on the disk, which says nothing."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say it, with the trial's return."""
        result = trial.last_result.get("return_mean")
        shown = "no episode has ended" if result is None else f"return {result:.2f}"
        self._say(f"done: {trial.config['trial']} ({shown})")
