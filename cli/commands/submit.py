"""Train as a job of a Ray cluster: `metagrad submit EXPERIMENT`."""

import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from metagrad.actors.rollout import probe
from metagrad.cli.commands.logs import follow_job
from metagrad.cli.lookup import NoRun, experiment_first, stored_experiment
from metagrad.cli.options import AllFields, ClusterOptions, parse, resumed, without_auto
from metagrad.cli.shell import job_command, print_lines
from metagrad.cluster.config.extensions import extensions, files_of
from metagrad.cluster.jobs import client as job_client
from metagrad.cluster.jobs.description import metadata
from metagrad.cluster.jobs.entrypoint import entrypoint, job_variables, runtime_env
from metagrad.cluster.jobs.package import package
from metagrad.errors import require
from metagrad.learner.storage import lasting

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_SHOWN = 6  # names of what was left out


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitOptions(ClusterOptions):
    """Train one experiment as a job of a Ray cluster. Every field of the experiment is an option."""

    experiment: AllFields
    submission_id: str | None = None
    """The job's name on the cluster; None: EXPERIMENT-TIME and a few random letters."""
    follow: bool = False
    """Show the job's log until it ends, and exit with the job's exit code. Ctrl-C leaves the job running."""
    run_dir: str | None = None
    """The run's folder as the cluster sees it: an absolute path, one below ~, or a URL; None: ~/metagrad-runs/ID on
    the node where the job's command runs, which is the head unless --entrypoint-num-cpus or -gpus is given."""
    resume: bool = False
    """Continue the run in --run-dir from its newest checkpoint."""
    working_dir: Path = Path(".")
    """Folder whose files travel with the job, including changes to a checkout of metagrad. What .gitignore and
    .rayignore name stays behind, and so do .git, caches, runs/, studies/, virtual environments, files whose names look
    like secrets, and links that lead out of the folder; the last three are listed."""
    install: bool = False
    """Send metagrad along and have pip install its packages in the versions used here; without it the nodes must have
    them."""
    packages: tuple[str, ...] = ()
    """With --install, further packages for pip: those that a file of yours imports, or s3fs for a run folder on S3."""
    job_env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, once for each variable of the job and all its processes. NAME alone takes the value from here, which
    keeps it out of the shell's history. Values travel in the job's files and appear in no log, listing or dashboard."""
    stop_seconds: int = 300
    """How many seconds `metagrad stop` gives the run for its last update and checkpoint before it is killed."""
    entrypoint_num_cpus: float = 0.0
    """CPUs reserved for the job's command itself, which only writes files; its actors ask for their own."""
    entrypoint_num_gpus: float = 0.0
    """GPUs reserved likewise."""


def run(words: Sequence[str]) -> int:
    """Train one experiment as a job of a Ray cluster."""
    experiment, rest = experiment_first(words, "submit")
    continued, (parsed, _) = resumed(rest), without_auto(rest)  # which the job chooses, on the cluster
    if continued.resume and continued.run_dir is not None:
        try:
            experiment = stored_experiment(continued.run_dir, experiment.name)
        except NoRun:  # on the cluster's own disk: there the job compares the fields with the run's
            parsed = [word for word, is_own in _owned(parsed) if is_own]
    return submit(
        parse(SubmitOptions, parsed, SubmitOptions(experiment=experiment), f"metagrad submit {experiment.name}"), rest
    )


def submit(options: SubmitOptions, words: Sequence[str]) -> int:
    """Start a job that trains; a job that is followed gives the exit code.

    Args:
        options: what to submit.
        words: what the command line said behind the experiment's name, from which they were made.

    Raises:
        ConfigurationError: a wrong value, or a cluster that does not answer or refuses; nothing was started.
    """
    name = options.experiment.name
    job_id = options.submission_id or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    run_dir = options.run_dir or f"~/metagrad-runs/{job_id}"
    _check(options, job_id, run_dir)
    variables = job_variables(options.job_env, os.environ)
    address = job_client.resolve_address(options.address, os.environ)
    imported = [files_of(module) for module in extensions()]
    files = package(options.working_dir, imported, options.install, variables)
    client = job_client.JobClient(address)
    client.require_version()
    is_free = options.submission_id is None or client.find(job_id) is None
    require(is_free, "submission-id", job_id, "is the id of another job of this cluster", "choose another one")
    resume = ["--resume"] if options.resume else []
    train = ["train", name, *experiment_words(words), "--run-dir", run_dir, *resume]
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "job.zip"
        files.write(archive)
        client.submit(
            job_client.Submission(
                job_id=job_id,
                entrypoint=entrypoint(train, files.extensions, options.install, bool(variables)),
                archive=archive,
                runtime_env=runtime_env(
                    options.stop_seconds, list(variables), options.packages if options.install else None
                ),
                metadata=metadata(name, run_dir, options.stop_seconds, _continuing(options, run_dir, list(variables))),
                num_cpus=options.entrypoint_num_cpus,
                num_gpus=options.entrypoint_num_gpus,
            )
        )
    print_lines(_submitted(options, job_id, run_dir, files.left_out))
    return follow_job(client, job_id, options.address) if options.follow else 0


def _submitted(options: SubmitOptions, job_id: str, run_dir: str, left_out: Sequence[str]) -> Iterator[str]:
    is_anywhere = options.entrypoint_num_cpus > 0 or options.entrypoint_num_gpus > 0
    where = "on whichever node has room for the job's command" if is_anywhere else "on the head node"
    yield f"submitted: {job_id}"
    yield f"run folder: {run_dir}{'' if '://' in run_dir else f' ({where})'}"
    if left_out:
        first = ", ".join(left_out[:_SHOWN]) + (", …" if len(left_out) > _SHOWN else "")
        what = "secrets, virtual environments, links out of the folder"
        yield f"left out:   {len(left_out)} of {options.working_dir} ({what}): {first}"
    yield f"look at it: {job_command('logs', job_id, '--follow', address=options.address)}"
    yield f"stop it:    {job_command('stop', job_id, address=options.address)}"


def _continuing(options: SubmitOptions, run_dir: str, variables: Sequence[str]) -> list[str]:
    """Return the words that submit this run again; values of variables are taken from the environment then."""
    imports = [word for module in extensions() for word in ("--import", str(module.__file__))]
    words = [*imports, "submit", options.experiment.name, "--resume", "--run-dir", run_dir]
    default = SubmitOptions(experiment=options.experiment)
    for name in ("working_dir", "stop_seconds", "entrypoint_num_cpus", "entrypoint_num_gpus"):
        if getattr(options, name) != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    words += ["--install"] if options.install else []
    words += ["--packages", *options.packages] if options.packages else []
    return [*words, *(word for name in variables for word in ("--job-env", name))]


def _check(options: SubmitOptions, job_id: str, run_dir: str) -> None:
    """Refuse here what would otherwise fail there, minutes later and in a log."""
    rule = "must be letters, digits, dots, dashes and underscores, at most 100"
    require(bool(_ID.fullmatch(job_id)), "submission-id", job_id, rule, "choose another one")
    seconds = options.stop_seconds
    require(1 <= seconds <= 86_400, "stop-seconds", seconds, "must lie in [1, 86400]", "use at most a day")
    for kind in ("cpus", "gpus"):
        number = getattr(options, f"entrypoint_num_{kind}")
        require(0 <= number < float("inf"), f"entrypoint-num-{kind}", number, "must be 0 or more", "raise it")
    packages = list(options.packages)
    require(options.install or not packages, "packages", packages, "are for pip, which needs --install", "add it")
    is_named = options.run_dir is not None or not options.resume
    require(is_named, "run-dir", None, "--resume needs the folder to continue", "add --run-dir DIR")
    is_placed = run_dir.startswith(("/", "~/")) or "://" in run_dir
    rule, remedy = "would lie in the job's working folder, which the cluster deletes", "use an absolute path or a URL"
    require(is_placed, "run-dir", run_dir, rule, remedy)
    lasting(run_dir)
    options.experiment.algorithm(probe(options.experiment.env))


def experiment_words(words: Sequence[str]) -> list[str]:
    """Drop the options of `submit` itself and their values; `words` have been parsed, so none stands alone."""
    return [word for word, is_own in _owned(words) if not is_own]


def _owned(words: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield each word, and True for an option of `submit` itself and its values."""
    own = {field.name.replace("_", "-") for field in fields(SubmitOptions)} - {"experiment"}
    is_own = False
    for word in words:
        if word.startswith("--"):
            is_own = word[2:].partition("=")[0].replace("_", "-") in own
        yield word, is_own
