"""Train an experiment under many settings and seeds on Ray Tune: `metagrad sweep EXPERIMENT --grid …`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metagrad.cli.lookup import experiment_first
from metagrad.cli.options import AllFields, parse
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.run.stop import stopped_at_once
from metagrad.cluster.sweeps.population import Population, default_every, learnt, without_meta_gradient
from metagrad.cluster.sweeps.space import require_tune, settings
from metagrad.errors import require
from metagrad.learner.storage import lasting, location


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """Train an experiment under many settings and seeds. Rerun the command to finish what is missing."""

    experiment: AllFields
    seeds: int = 1
    """Runs of each setting, with seeds from --seed on."""
    grid: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE… of an option of the experiment, for each that is varied; all combinations are tried."""
    search: str | None = None
    """random:N tries N random settings instead of all combinations."""
    uniform: tuple[str, ...] = ()
    """FIELD=LOW,HIGH of an option that a random search draws from this range."""
    log_uniform: tuple[str, ...] = ()
    """The same, on a logarithmic scale."""
    pbt: int | None = None
    """Members of a population, which takes the place of the meta-gradient and tunes what that would learn."""
    pbt_every: int | None = None
    """Updates after which the worst members go on from the best; None: a twentieth of the run."""
    trial_cpus: int = 1
    """CPUs of each trial, which is a colocated run: as many run at the same time as there are CPUs."""
    run_dir: str | None = None
    """The sweep's folder, which all nodes see; None: sweeps/EXPERIMENT."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Fields:
    """Holds an experiment alone, which settings change."""

    experiment: AllFields


def run(words: Sequence[str]) -> None:
    """Run a sweep, or what is missing of one."""
    experiment, rest = experiment_first(words, "sweep")
    program = f"metagrad sweep {experiment.name}"
    colocated = dataclasses.replace(experiment, topology="colocated")
    is_population = any(word.partition("=")[0] == "--pbt" for word in rest)
    start = without_meta_gradient(colocated) if is_population else colocated
    options = parse(SweepOptions, rest, SweepOptions(experiment=start), program)
    base, cpus = options.experiment, options.trial_cpus
    require(base.topology == "colocated", "topology", base.topology, "each trial is one colocated run", "leave it out")
    require(1 <= options.seeds <= 1_000, "seeds", options.seeds, "must lie in [1, 1000]", "change it")
    require(1 <= cpus <= 1_024, "trial-cpus", cpus, "must lie in [1, 1024]", "change it")
    folder = _folder(options.run_dir, experiment.name)

    require_tune()
    if options.pbt is not None:
        population = _population(options, options.pbt, start)
        from metagrad.cluster.sweeps.evolution import evolve  # imports Ray Tune

        with stopped_at_once():
            evolve(population, folder, cpus, Console(stderr=False))
        return
    rule, remedy = "is the length of a population's generations", "add --pbt 8, say"
    require(options.pbt_every is None, "pbt-every", options.pbt_every, rule, remedy)
    from metagrad.cluster.sweeps.sweep import sweep, trial_of  # imports Ray Tune, of an extra

    tried = settings(options.grid, options.uniform, options.log_uniform, options.search, base.seed)
    trials = [
        trial_of(setting, _with(base, setting, program), seed, cpus)
        for setting in tried
        for seed in range(base.seed, base.seed + options.seeds)
    ]
    with stopped_at_once():
        sweep(trials, folder, cpus, Console(stderr=False))


def _population(options: SweepOptions, size: int, start: BaseExperiment) -> Population:
    """Return the population that the options describe.

    Raises:
        ConfigurationError: it has options of other sweeps, or of the meta-gradient whose place it takes.
    """
    for field, own, default in (
        ("grid", options.grid, ()),
        ("search", options.search, None),
        ("uniform", options.uniform, ()),
        ("log-uniform", options.log_uniform, ()),
        ("seeds", options.seeds, 1),
    ):
        rule = "does not go with --pbt, whose members start from random values and seeds of their own"
        require(own == default, field, own, rule, "leave it out")
    base = options.experiment
    assert isinstance(base, Experiment)
    assert isinstance(start, Experiment)
    rule = "is an option of the meta-gradient, whose place the population takes"
    for name in (field.name for field in dataclasses.fields(base.meta)):
        own, default = getattr(base.meta, name), getattr(start.meta, name)
        require(own == default, f"meta.{name}", own, rule, "leave it out")
    learnt(base)
    every = default_every(base) if options.pbt_every is None else options.pbt_every
    return Population(experiment=base, size=size, every=every)


def _folder(run_dir: str | None, name: str) -> Path:
    if run_dir is None:
        return Path("sweeps") / name
    named = location(lasting(run_dir))
    require(isinstance(named, Path), "run-dir", run_dir, "a sweep's folder is a path", "name one")
    assert isinstance(named, Path)
    return named


def _with(experiment: BaseExperiment, setting: dict[str, str], program: str) -> BaseExperiment:
    """Return the experiment under a setting.

    Raises:
        ConfigurationError: an option is none of the experiment's, or a value is one that it refuses.
    """
    for field in ("seed", "topology", "learner-threads"):
        require(field not in setting, "grid", field, "is what a sweep sets itself", "use --seeds or --trial-cpus")
    words = [f"--{field}={value}" for field, value in setting.items()]
    return parse(_Fields, words, _Fields(experiment), program).experiment
