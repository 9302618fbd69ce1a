"""Train a population with the scheduler PopulationBasedTraining of Ray Tune; then one table and one plot.

generation 0 ─► returns ─► scheduler: who goes on from whom, with which values ─► generation 1 ─► …

Members train a generation each, as runs in folders of their own, and wait for the others. What a member has done is
recorded in `folder`/records. A population that is started again asks the scheduler again: its choices depend on returns
and seed alone, and members answer from their records as far as these go.
"""

import logging
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import pbt
from rich.console import Console

from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.folder import RunFolder, read_json, write_json
from metagrad.cluster.run.plot import plot_runs
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.sweeps.population import DECADE, Population, exploited, learnt, odds
from metagrad.cluster.sweeps.tune_private import PausedCheckpoints, SeededScheduler
from metagrad.cluster.sweeps.tuning import tuned
from metagrad.errors import RunLost, require
from metagrad.learner.checkpoint import checkpoint_path, load, paths, update_of
from metagrad.learner.storage import exists, write_whole
from metagrad.meta_parameters import MetaParameter

Record = dict[str, Any]
"""Tells what a member did in a generation: "parent" (None: it went on from itself), "odds", "return_mean" and
"updates"."""


def evolve(population: Population, folder: Path, cpus: int, console: Console) -> list[dict[str, Any]]:
    """Train what is missing of the members in `folder`/trials, then write sweep.json, sweep.md and sweep.png.

    Args:
        population: who trains.
        folder: the sweep's.
        cpus: of each member; 0: one at a time, in the place of the process that calls.
        console: told how it goes.

    Returns:
        the rows of the table, the best member first, with "generations", its records.

    Raises:
        ConfigurationError: before anything starts; the folder holds a run, or another population.
        RunLost: a member failed; what is recorded stays.
    """
    run_folder, members = RunFolder(folder), Members(population, folder.absolute())
    require(not run_folder.has_run(), "run-dir", str(folder), "holds a training run", "choose another --run-dir")
    with run_folder.held(), Progress(console, population.generations) as progress:
        members.claim()
        progress.say(f"sweep folder: {folder}")
        progress.say(f"population of {population.size}, {population.generations} generations of {population.every}")
        if any(len(members.records(index)) < population.generations for index in range(population.size)):
            tuned(
                tune.with_parameters(MemberRun, members=members, cpus=max(1, cpus)),
                [members.name(index) for index in range(population.size)],
                folder,
                cpus,
                Told(population, progress.say),
                tune.TuneConfig(
                    metric="return_mean",
                    mode="max",
                    scheduler=scheduler(population),
                    reuse_actors=True,  # a generation takes no process of its own
                    max_concurrent_trials=None if cpus else 1,
                    trial_name_creator=_named,
                    trial_dirname_creator=_named,
                ),
            )
        rows = members.table()
        write_json(folder / "sweep.json", rows)
        write_whole(folder / "sweep.md", as_markdown(rows).encode())
        plot_runs([members.place(index) for index in range(population.size)], folder / "sweep.png", progress.say)
    console.print(as_markdown(rows), markup=False, soft_wrap=True)
    progress.say(f"table: {folder / 'sweep.md'}, plot: {folder / 'sweep.png'}, runs: {folder / 'trials'}")
    return rows


def _named(trial: Any) -> str:
    """Name a trial when it is made; its configuration may later be a copy of another's."""
    return str(trial.config["trial"])


def _index(trial: Any) -> int:
    """Return the member of a trial, or of its name."""
    return int(str(trial).partition("=")[2])


class MemberStopped(RunLost):
    """Says that a signal has stopped a member, whose checkpoint is written."""

    def __init__(self, name: str, signal_name: str):
        super().__init__(f"{name} was stopped by {signal_name}")
        self.signal_name = signal_name


class Members:
    """Knows where the members of a population are, and what they have done."""

    def __init__(self, population: Population, folder: Path):
        self.population = population
        self._folder = folder
        self._learnt = learnt(population.experiment)

    def claim(self) -> None:
        """Mark the folder as this population's.

        Raises:
            ConfigurationError: it is another one's, which chooses otherwise.
        """
        path = self._folder / "population.json"
        for field, own in (("pbt", self.population.size), ("pbt-every", self.population.every)):
            found = read_json(path)[field] if exists(path) else own
            rule = f"the population in {self._folder} has {found}"
            require(own == found, field, own, rule, "leave it as it was, or choose another --run-dir")
        for index in range(self.population.size):
            if RunFolder(self.place(index)).has_run():
                RunFolder(self.place(index)).require_same(self.population.member(index))
        write_json(path, {"pbt": self.population.size, "pbt-every": self.population.every})

    def name(self, index: int) -> str:
        """Return the name of a member's folder."""
        return f"member={index}"

    def place(self, index: int) -> Path:
        """Return the folder of a member's run."""
        return self._folder / "trials" / self.name(index)

    def records(self, index: int) -> list[Record]:
        """Return what a member has done, generation by generation."""
        path = self._records(index)
        found: list[Record] = read_json(path) if exists(path) else []
        return found

    def train(self, index: int, generation: int, parent: int | None, values: dict[str, float], cpus: int) -> Record:
        """Train a member for a generation, or return what it did there.

        Raises:
            RunLost: the record is of other choices, or a checkpoint is gone; `MemberStopped`.
        """
        records = self.records(index)
        if generation < len(records):
            found = records[generation]
            if found["parent"] == parent and found["odds"] == values:
                return found
            raise RunLost(f"{self.name(index)} did generation {generation} with other values; use another --run-dir")
        self._take_over(index, generation, parent, values)
        folder, until = self.place(index), self.population.until(generation)
        experiment = replace(self.population.member(index), updates=until, learner_threads=cpus)
        summary = run(experiment, folder, RunFolder(folder).has_run(), Console(quiet=True))
        if summary["updates"] < until:
            raise MemberStopped(folder.name, summary["stopped_by"])
        own: Record = {"parent": parent, "odds": values, "updates": until, "return_mean": summary["return_mean"]}
        write_json(self._records(index), [*records, own])
        return own

    def _take_over(self, index: int, generation: int, parent: int | None, values: dict[str, float]) -> None:
        """Put the better member's learner into a member's checkpoint, unless the generation has begun already.

        Raises:
            RunLost: a checkpoint is gone.
        """
        if parent is None:
            return
        start, folder = self.population.until(generation - 1), self.place(index) / "checkpoints"
        if update_of(paths(folder)[-1]) > start:
            return
        try:
            own, better = (load(checkpoint_path(self.place(i) / "checkpoints", start)) for i in (index, parent))
        except FileNotFoundError as error:
            raise RunLost(f"{self.name(index)} cannot go on from {self.name(parent)}: {error}") from error
        run_folder, keep = RunFolder(self.place(index)), self.population.member(index).checkpoint.keep
        with run_folder.held():
            tree = exploited(own, better, [values[name] for name in self._learnt])
            run_folder.write_checkpoint(start, tree, keep)

    def table(self) -> list[Record]:
        """Return a row for each member, the best last return first; members without any return are last."""
        rows = []
        for index in range(self.population.size):
            records, summary = self.records(index), read_json(self.place(index) / "summary.json")
            rows.append(
                {
                    "member": index,
                    "seed": summary["seed"],
                    "return_mean": summary["return_mean"],
                    "took_over": sum(record["parent"] is not None for record in records),
                    "eta": {name: summary["eta"][name] for name in self._learnt},
                    "generations": records,
                }
            )
        return sorted(rows, key=lambda x: -math.inf if x["return_mean"] is None else x["return_mean"], reverse=True)

    def _records(self, index: int) -> Path:
        return self._folder / "records" / f"{self.name(index)}.json"


class MemberRun(tune.Trainable):
    """Trains one member, a generation at each step. To Tune its checkpoint is its name and how far it is."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """Take the odds that Tune says, and the place of the member after whom the trial is named."""
        logging.getLogger(tune.trainable.trainable.__name__).setLevel(logging.WARNING)  # no word of each checkpoint
        self._members: Members = given["members"]
        self._cpus: int = given["cpus"]
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the odds of another member, or other odds of the same one."""
        self._odds = {name: float(x) for name, x in new_config.items() if name != "trial"}
        self._generation, self._parent = 0, None
        return True

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on after the generation of a checkpoint, which may be another member's."""
        self._generation = checkpoint["generations"]
        self._parent = None if checkpoint["member"] == self._index else checkpoint["member"]

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Name the place to go on from: the run's own checkpoint stays where it is."""
        return {"member": self._index, "generations": self._generation}

    def step(self) -> dict[str, Any]:
        """Train for a generation."""
        record = self._members.train(self._index, self._generation, self._parent, self._odds, self._cpus)
        self._generation, self._parent = self._generation + 1, None
        return {"return_mean": _score(record), "done": self._generation == self._members.population.generations}

    @property
    def _index(self) -> int:
        return _index(self.trial_name)


def scheduler(population: Population) -> "SeededPopulation":
    """Return Tune's scheduler: after each generation the worst quarter takes over from the best quarter.

    Values are drawn anew one time in four, else their odds are multiplied by 1.2 or .8, Tune's defaults.
    """

    def resampled(parameter: MetaParameter) -> Any:
        middle = odds(parameter)
        return tune.loguniform(middle / DECADE, middle * DECADE)

    return SeededPopulation(
        population,
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations={name: resampled(x) for name, x in learnt(population.experiment).items()},
        log_config=False,
        synch=True,
    )


class SeededPopulation(SeededScheduler):
    """Begins with the population's odds, and seeds each choice by its seed, the member and its generation."""

    def __init__(self, population: Population, **options: Any):
        super().__init__(lambda trial, at: (population.experiment.seed, _index(trial), at), **options)
        self._population = population

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Add a member with the odds that the population has for it."""
        trial.config.update(self._population.odds(_index(trial)))
        super().on_trial_add(tune_controller, trial)


class Told(tune.Callback):
    """Says which generations are done; Tune keeps a copy of it on the disk, which says nothing."""

    def __init__(self, population: Population, say: Callable[[str], None]):
        self._size, self._generations, self._say = population.size, population.generations, say
        self._returns: dict[int, list[float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Say it when the last member has trained, with the best return."""
        generation = result["training_iteration"]
        returns = self._returns.setdefault(generation, [])
        returns.append(result["return_mean"])
        if len(returns) == self._size:
            known = [x for x in returns if not math.isnan(x)]
            best = f"best return {max(known):.2f}" if known else "no episode has ended"
            self._say(f"generation {generation} of {self._generations}: {best}")


def in_turn(members: Members) -> None:
    """Train what is missing of a population in this process, member after member, under the same scheduler.

    Without processes of Ray, and with the same choices as in `evolve`: for parts of studies, which are small.

    A signal that stops a member is raised again, as `metagrad.experiments.training.runs.train` does.

    Raises:
        RunLost: a member failed; what is recorded stays.
    """
    logging.getLogger(pbt.__name__).setLevel(logging.WARNING)  # no word of each choice
    population, own = members.population, scheduler(members.population)
    own.set_search_properties("return_mean", "max")
    turns: list[Any] = [_Turn(members.name(index)) for index in range(population.size)]
    controller: Any = SimpleNamespace(search_alg=None, get_trials=lambda: turns, get_live_trials=lambda: turns)
    for turn in turns:
        own.on_trial_add(controller, turn)
    for generation in range(population.generations):
        for index, turn in enumerate(turns):
            values = {name: float(x) for name, x in turn.config.items()}
            try:
                record = members.train(index, generation, turn.taken_parent(), values, 1)
            except MemberStopped as stopped:
                signal.raise_signal(signal.Signals[stopped.signal_name])
                raise
            score = _score(record)
            own.on_trial_result(controller, turn, {"training_iteration": generation + 1, "return_mean": score})


class _Turn:
    """Stands for a paused trial, as far as the scheduler looks at one; its checkpoint is its name."""

    def __init__(self, name: str):
        self.trial_id = self.experiment_tag = name
        self.config: dict[str, Any] = {}
        self.evaluated_params: dict[str, Any] = {}
        self.status = Trial.PAUSED
        self.temporary_state = SimpleNamespace(saving_to=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=PausedCheckpoints(tune.CheckpointConfig()))
        self.checkpoint = name

    def __str__(self) -> str:
        return self.trial_id

    def is_finished(self) -> bool:
        """Return False: members end together."""
        return False

    def set_config(self, config: dict[str, Any]) -> None:
        """Take the values that the scheduler has chosen."""
        self.config = config

    def set_experiment_tag(self, tag: str) -> None:
        """Take the tag that the scheduler has made of them."""
        self.experiment_tag = tag

    def taken_parent(self) -> int | None:
        """Return the member whose checkpoint the scheduler has put in the place of this one's, and forget it."""
        found = self.run_metadata.checkpoint_manager.take()
        return None if found is None else _index(found.checkpoint)


def _score(record: Record) -> float:
    """Return what the scheduler compares; it leaves a NaN out."""
    return math.nan if record["return_mean"] is None else float(record["return_mean"])


def as_markdown(rows: Sequence[Record]) -> str:
    """Return the rows as a table: the member, its last return, how often it took over, and its values at the end."""
    names = list(rows[0]["eta"])
    lines = [["member", "seed", "return", "took over", *names]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        score = "" if row["return_mean"] is None else f"{row['return_mean']:.4g}"
        values = [f"{row['eta'][name]:.4g}" for name in names]
        lines.append([str(row["member"]), str(row["seed"]), score, str(row["took_over"]), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
