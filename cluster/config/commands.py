"""The options of every command, as frozen dataclasses: what `metagrad COMMAND --help` shows."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metagrad.actors.evaluate import MAX_EPISODE_STEPS
from metagrad.cluster.config.experiment import BaseExperiment


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """Train one experiment. Every field of the experiment is an option."""

    experiment: Annotated[BaseExperiment, tyro.conf.arg(name="")]
    run_dir: str | None = None
    """The run's folder, a path or a URL such as s3://…; None: runs/EXPERIMENT-seedS-TIME-RANDOM."""
    resume: bool = False
    """Continue the run in --run-dir from its newest checkpoint, with more --updates or on another device, say."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReproduceOptions:
    """Compute a study of a paper, its parts in parallel, and write its report. The same command continues it."""

    seeds: int
    """Independent trials; more of them later reuse those that are there."""
    quick: bool = False
    """A small version that takes minutes at most: it shows that things work, not the paper's numbers."""
    updates: int | None = None
    """Shorten the training runs of a deep study to this many updates each; None: the paper's number."""
    run_dir: str | None = None
    """The study's folder; None: studies/STUDY, with --quick studies/STUDY-quick."""
    topology: Literal["ray", "colocated"] = "ray"
    """Parts as Ray tasks, on a cluster where RAY_ADDRESS names one, or one after another here, without Ray."""
    wait_for_resources: float | None = None
    """Seconds that the study waits, before it begins, for a CPU that others use (topology ray); None: an hour."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """Play full-life, raw-reward episodes with a checkpoint of a run."""

    run_dir: tyro.conf.Positional[str]
    episodes: int = 128
    update: int | None = None
    """Use the checkpoint of this update; None: the newest."""
    seed: int = 0
    """Of the evaluation's own environments and policy; the same seed plays the same episodes."""
    greedy: bool = False
    """Take the likeliest action instead of sampling."""
    max_steps: int = MAX_EPISODE_STEPS
    """An episode that has not ended after so many steps is cut, and that is said."""
    record: Annotated[bool, tyro.conf.arg(help="Also write one episode as a GIF beside the result.")] = False
    output: str | None = None
    """Write the result to a folder, or a .json file; None: the run folder, which has to be writable."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlotOptions:
    """Draw returns and learnt meta-parameters of runs; runs that differ in their seed alone share a line."""

    run_dirs: tyro.conf.Positional[tuple[str, ...]]
    output: str = "runs.png"
    """The picture to write, a path or a URL: .png, .pdf or .svg."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """Say how a run would be laid out on the cluster at RAY_ADDRESS, or here. Every field is an option."""

    experiment: Annotated[BaseExperiment, tyro.conf.arg(name="")]
    json: bool = False
    """For machines."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SubmitOptions:
    """Train one experiment as a job of a Ray cluster. Every field of the experiment is an option."""

    experiment: Annotated[BaseExperiment, tyro.conf.arg(name="")]
    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; None: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS."""
    submission_id: str | None = None
    """The job's name on the cluster; None: EXPERIMENT-TIME and a few random letters."""
    follow: bool = False
    """Show the job's log until it ends, and end as it did. Ctrl-C leaves the job running."""
    run_dir: str | None = None
    """The run's folder as the cluster sees it: an absolute path, one below ~, or a URL; None: ~/metagrad-runs/ID on
    the node where the job's command runs: the head, unless --entrypoint-num-cpus or -gpus let it go elsewhere."""
    resume: bool = False
    """Continue the run in --run-dir from its newest checkpoint."""
    working_dir: Path = Path(".")
    """Folder whose files travel with the job, and with them changes to a checkout of metagrad: without what .gitignore
    and .rayignore name, .git, caches, runs/ and studies/, and without virtual environments, files named like secrets
    and links that lead out of it, which are listed."""
    install: bool = False
    """Bring metagrad and, through pip, its packages in the versions used here; otherwise the nodes have them."""
    packages: tuple[str, ...] = ()
    """Further packages for pip, with --install: those that a file of yours imports, or s3fs for a run folder on S3."""
    job_env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, once for each variable of the job and all its processes; NAME alone takes the value from here, so
    that no shell remembers it. Values travel in the job's files and are in no log, listing or dashboard."""
    stop_seconds: int = 300
    """How long `metagrad stop` lets the run take over its last update and checkpoint before it is killed."""
    entrypoint_num_cpus: float = 0.0
    """CPUs kept for the job's command itself, which only writes files; its actors ask for their own."""
    entrypoint_num_gpus: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StatusOptions:
    """List the training jobs of a Ray cluster, or show one."""

    job: tyro.conf.Positional[str] = ""
    """Its id; without one all are listed."""
    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; None: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LogsOptions:
    """Show what a job has printed."""

    job: tyro.conf.Positional[str] = ""
    """Its id."""
    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; None: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS."""
    follow: bool = False
    """Go on until the job ends, and end as it did. Ctrl-C leaves the job running."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StopOptions:
    """Stop a job: it finishes the update at hand and writes a checkpoint."""

    job: tyro.conf.Positional[str] = ""
    """Its id."""
    address: str | None = None
    """The cluster's dashboard, http://HEAD:8265; None: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS."""


def sibling(program: str) -> str:
    """A program of the environment that this one was started from."""
    path = Path(sys.argv[0]).with_name(program)
    return str(path) if path.is_file() else program


def quoted(place: str) -> str:
    """A path or URL as a shell takes it, and as no option of the command it is given to."""
    return shlex.quote(f"./{place}" if place.startswith("-") else place)
