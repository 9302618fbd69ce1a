"""Training as a job of a Ray cluster: metagrad submit, status, logs, stop."""

import contextlib
import json
import os
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from metagrad.actors.rollout import probe
from metagrad.cluster.config.commands import LogsOptions, StatusOptions, StopOptions, SubmitOptions
from metagrad.cluster.config.extensions import extensions, files_of
from metagrad.cluster.jobs.client import JobClient, JobView, Submission, resolve_address
from metagrad.cluster.jobs.log import follow
from metagrad.cluster.jobs.package import FOLDER, VARIABLES, package, pinned_requirements
from metagrad.cluster.on_ray.job_environment import JOB_FOLDER, JOB_VARIABLES
from metagrad.errors import ConfigurationError, printable, require
from metagrad.learner.storage import lasting

# In a job's metadata, where whoever may ask the cluster can read them.
_EXPERIMENT, _RUN_DIR, _STOP_SECONDS = "metagrad_experiment", "metagrad_run_dir", "metagrad_stop_seconds"
_CONTINUE = "metagrad_continue"
_RAYS_STOP_SECONDS = 3  # between SIGTERM and SIGKILL, of a job that does not say how long
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_NOTICE = 30.0  # for the cluster, beyond what the job is given
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_WITHOUT_INSTALLATION = "python -P -c 'import sys; from metagrad.cli.entry import main; sys.exit(main())'"
_TRAIN = re.compile(r"\bmetagrad\b.*\btrain\s+([\w.-]+)")  # of a job that `ray job submit` began
_SUMMARY = re.compile(r"^\d+ updates, \d+ real frames in .*", re.MULTILINE)  # `metagrad train`, after its checkpoint
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SHOWN = 6  # names of what was left out
_EXIT_CODE_OF_STOPPED = 143  # as of a command that SIGTERM ended
_EXIT_CODE_OF_CTRL_C = 130


def submit(options: SubmitOptions, words: Sequence[str]) -> int:
    """Start a job that trains; the exit code says how it ended if it was followed.

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
    address = resolve_address(options.address, os.environ)
    imported = [files_of(module) for module in extensions()]
    files = package(options.working_dir, imported, options.install, variables)
    client = JobClient(address)
    client.require_version()
    is_free = options.submission_id is None or client.find(job_id) is None
    require(is_free, "submission-id", job_id, "is the id of another job of this cluster", "choose another one")
    metadata = {
        _EXPERIMENT: name,
        _RUN_DIR: run_dir,
        _STOP_SECONDS: str(options.stop_seconds),
        _CONTINUE: json.dumps(_continuing(options, run_dir, list(variables))),
    }
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "job.zip"
        files.write(archive)
        client.submit(
            Submission(
                job_id=job_id,
                entrypoint=entrypoint(options, words, files.extensions, run_dir),
                archive=archive,
                runtime_env=runtime_env(options, list(variables)),
                metadata=metadata,
                num_cpus=options.entrypoint_num_cpus,
                num_gpus=options.entrypoint_num_gpus,
            )
        )
    is_anywhere = options.entrypoint_num_cpus > 0 or options.entrypoint_num_gpus > 0
    where = "on whichever node has room for the job's command" if is_anywhere else "on the head node"
    shown = [f"submitted: {job_id}", f"run folder: {run_dir}{'' if '://' in run_dir else f' ({where})'}"]
    if files.left_out:
        first = ", ".join(files.left_out[:_SHOWN]) + (", …" if len(files.left_out) > _SHOWN else "")
        what = "secrets, virtual environments, links out of the folder"
        shown.append(f"left out:   {len(files.left_out)} of {options.working_dir} ({what}): {first}")
    shown += [
        f"look at it: {_command('logs', job_id, '--follow', address=options.address)}",
        f"stop it:    {_command('stop', job_id, address=options.address)}",
    ]
    _print(shown)
    return _follow(client, job_id, options.address) if options.follow else 0


def _command(*words: str, address: str | None) -> str:
    """A command of ours as a shell takes it."""
    return shlex.join(["metagrad", *words, *(["--address", address] if address else [])])


def _print(lines: Iterable[str], file: TextIO | None = None) -> None:
    """Lines that hold words of others."""
    print("\n".join(map(printable, lines)), file=file or sys.stdout, flush=True)


def job_variables(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a job by name, whose values no message shows.

    Args:
        given: NAME=VALUE, or NAME for the value that it has in the environment.
        environment: of this process.

    Raises:
        ConfigurationError: no name, one that is given twice, one without a value, or a value with a null byte.
    """
    found: dict[str, str] = {}
    for word in given:
        name, is_given, value = word.partition("=")
        shown = name if not is_given else f"{name}=…"
        rule, remedy = "is no NAME=VALUE, whose name is letters, digits and underscores", "name it as a shell does"
        require(bool(_VARIABLE.fullmatch(name)), "job-env", shown, rule, remedy)
        require(name not in found, "job-env", shown, "is given twice", "give it once")
        rule, remedy = "has no value here", f"use --job-env {name}=VALUE, or set {name} before"
        require(bool(is_given) or name in environment, "job-env", shown, rule, remedy)
        found[name] = value if is_given else environment[name]
        require("\0" not in found[name], "job-env", shown, "holds a null byte", "leave that out")
    return found


def _continuing(options: SubmitOptions, run_dir: str, variables: Sequence[str]) -> list[str]:
    """The words that submit this run again, without values of variables: those are taken from the environment then."""
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
    rule = "must be letters, digits, dots, dashes and underscores, 100 at the most"
    require(bool(_ID.fullmatch(job_id)), "submission-id", job_id, rule, "choose another one")
    seconds = options.stop_seconds
    require(1 <= seconds <= 86_400, "stop-seconds", seconds, "must lie in [1, 86400]", "a day is the most")
    for kind in ("cpus", "gpus"):
        number = getattr(options, f"entrypoint_num_{kind}")
        require(0 <= number < float("inf"), f"entrypoint-num-{kind}", number, "must be 0 or more", "raise it")
    packages = list(options.packages)
    require(options.install or not packages, "packages", packages, "are pip's, which --install asks for", "add it")
    is_named = options.run_dir is not None or not options.resume
    require(is_named, "run-dir", None, "--resume needs the folder to continue", "add --run-dir DIR")
    is_placed = run_dir.startswith(("/", "~/")) or "://" in run_dir
    rule, remedy = "would lie in the job's working folder, which the cluster deletes", "use an absolute path or a URL"
    require(is_placed, "run-dir", run_dir, rule, remedy)
    lasting(run_dir)
    options.experiment.algorithm(probe(options.experiment.env))


def runtime_env(options: SubmitOptions, variables: Sequence[str] = ()) -> dict[str, Any]:
    """Return the job's runtime environment: time to stop, names of variables, and with --install pip's packages.

    Ray sends SIGTERM and, RAY_JOB_STOP_WAIT_TIME_S later, SIGKILL; its own 3 s are too few for a checkpoint.
    """
    own = {"RAY_JOB_STOP_WAIT_TIME_S": str(options.stop_seconds), JOB_FOLDER: FOLDER}
    own |= {JOB_VARIABLES: " ".join(variables)} if variables else {}
    environment: dict[str, Any] = {"env_vars": own}
    if options.install:
        environment["pip"] = {"packages": pinned_requirements(options.packages)}
    return environment


def entrypoint(options: SubmitOptions, words: Sequence[str], imported: Sequence[str], run_dir: str) -> str:
    """The job's shell command: `metagrad train` with the experiment's own words. `exec`: SIGTERM meets no shell.

    It begins at the top of the archive, from which `-P` keeps the current folder off Python's path.
    """
    command = _WITHOUT_INSTALLATION if options.install else "metagrad"
    imports = [word for place in imported for word in ("--import", place)]
    resume = ["--resume"] if options.resume else []
    own = ["train", options.experiment.name, *experiment_words(words), "--run-dir", run_dir, *resume]
    variables = f". ./{VARIABLES} && " if options.job_env else ""
    return f"{variables}cd {FOLDER} && exec {command} {shlex.join([*imports, *own])}"


def experiment_words(words: Sequence[str]) -> list[str]:
    """Without the options of `submit` itself and their values; `words` have been parsed, so none stands alone."""
    return [word for word, is_own in _owned(words) if not is_own]


def submit_words(words: Sequence[str]) -> list[str]:
    """The options of `submit` itself and their values alone."""
    return [word for word, is_own in _owned(words) if is_own]


def _owned(words: Sequence[str]) -> Iterator[tuple[str, bool]]:
    own = {field.name.replace("_", "-") for field in fields(SubmitOptions)} - {"experiment"}
    is_own = False
    for word in words:
        if word.startswith("--"):
            is_own = word[2:].partition("=")[0].replace("_", "-") in own
        yield word, is_own


def status(options: StatusOptions) -> None:
    """Print the training jobs of a cluster, or one."""
    client = JobClient(resolve_address(options.address, os.environ))
    if options.job:
        job = client.job(options.job)
        message = job.message.splitlines()[0] if job.is_over and job.message else ""
        rows = {"job": job.job_id, "experiment": _experiment(job), "state": job.state, "started": _started(job)}
        rows |= {"run folder": _run_dir(job), "command": job.entrypoint, "message": message}
        rows |= {"last line": _last_line(client, job)}
        _print(f"{name:<11} {value}" for name, value in rows.items() if value)
        return
    jobs = [job for job in client.jobs() if _experiment(job)]
    header = ("job", "experiment", "state", "started", "run folder", "last line")
    table = [header, *(tuple(map(printable, _row(client, job))) for job in jobs)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table if jobs else ():
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    if not jobs:
        print("no training jobs on this cluster")


def _row(client: JobClient, job: JobView) -> tuple[str, ...]:
    last = _last_line(client, job) if job.state == "RUNNING" else ""
    return job.job_id, _experiment(job), job.state, _started(job), _run_dir(job), last


def _started(job: JobView) -> str:
    return "" if job.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))


def _experiment(job: JobView) -> str:
    """Empty where a job is none of metagrad's."""
    train = _TRAIN.search(job.entrypoint)
    return job.metadata.get(_EXPERIMENT) or (train[1] if train else "")


def _run_dir(job: JobView) -> str:
    try:
        words = shlex.split(job.entrypoint)
    except ValueError:  # a quote without its other one: no shell took this line
        words = job.entrypoint.split()
    given = ""
    for word, following in pairwise([*words, ""]):
        option, is_given, value = word.partition("=")
        if option in ("--run-dir", "--run_dir"):
            given = value if is_given else following
    return job.metadata.get(_RUN_DIR) or given


def _last_line(client: JobClient, job: JobView) -> str:
    """What a job printed last: its progress while it trains."""
    with contextlib.suppress(ConfigurationError):  # its node may be gone, and the log with it
        lines = [line.strip() for line in client.log(job.job_id).splitlines() if line.strip()]
        return lines[-1] if lines else ""
    return ""


def logs(options: LogsOptions) -> int:
    """Print what a job has printed; followed, the exit code says how it ended."""
    _require_job(options.job, "logs")
    client = JobClient(resolve_address(options.address, os.environ))
    if options.follow:
        client.job(options.job)
        return _follow(client, options.job, options.address)
    _write(client.log(options.job))
    return 0


def _require_job(job_id: str, command: str) -> None:
    require(bool(job_id), "job", job_id, f"metagrad {command} needs a job's id first", "metagrad status lists them")


def _follow(client: JobClient, job_id: str, address: str | None) -> int:
    """Print a job's log until it ends.

    Returns:
        0 ended well, 143 stopped, 130 somebody stopped looking at it, else its own exit code.
    """
    try:
        job = follow(client, job_id, _write, lambda line: _print([f"metagrad: {line}"], sys.stderr))
    except KeyboardInterrupt:
        again, end = _command("logs", job_id, "--follow", address=address), _command("stop", job_id, address=address)
        _print(["", f"{job_id} goes on; look again with {again}, end it with {end}"])
        return _EXIT_CODE_OF_CTRL_C
    match job.state:
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            _print([f"metagrad: job {job_id} was stopped"], sys.stderr)
            return _EXIT_CODE_OF_STOPPED
    reason = job.message.splitlines()[0] if job.message else "no reason given"
    _print([f"metagrad: job {job_id} failed: {reason}"], sys.stderr)
    code = job.exit_code or 1
    return code if code > 0 else 128 - code  # a signal's number, as shells say it


def _write(text: str) -> None:
    """Return what a job printed without control sequences: others may submit jobs too."""
    sys.stdout.write("".join(c if c.isprintable() or c in "\n\t\r" else printable(c) for c in text))
    sys.stdout.flush()


def stop(options: StopOptions) -> int:
    """Ask a job to stop, and wait until it has: 0 where it is over and has written its checkpoint, else 1."""
    _require_job(options.job, "stop")
    client = JobClient(resolve_address(options.address, os.environ))
    job = client.job(options.job)
    if job.is_over:
        _print([f"{job.job_id} is over already ({job.state})"])
        return 0
    said = job.metadata.get(_STOP_SECONDS, "")
    seconds = int(said) if re.fullmatch("[0-9]{1,5}", said) else _RAYS_STOP_SECONDS
    client.stop(job.job_id)
    _print([f"{job.job_id}: asked to stop; it has {seconds} s for its last update and its checkpoint"])
    job = _waited_for(client, job.job_id, seconds + _SECONDS_TO_NOTICE)
    if not job.is_over:
        _print([f"metagrad: job {job.job_id} is {job.state} still; it ends as soon as it can"], sys.stderr)
        return 1
    with contextlib.suppress(ConfigurationError):
        if last := _SUMMARY.findall(client.log(job.job_id)):
            _print([last[-1].strip(), f"run folder: {_run_dir(job)}"])
            if words := _continue_words(job):
                _print([f"continue it: {_command(*words, address=options.address)}"])
            return 0
    rule = "without a last checkpoint of its own; its log ends:"
    _print([f"metagrad: job {job.job_id} is {job.state}, {rule}", _last_line(client, job)], sys.stderr)
    return 1


def _continue_words(job: JobView) -> list[str]:
    """What its submission left, which anybody of the cluster can write: words of a command of ours, or nothing."""
    with contextlib.suppress(ValueError, RecursionError):
        words = json.loads(job.metadata.get(_CONTINUE, ""))
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    return []


def _waited_for(client: JobClient, job_id: str, seconds: float) -> JobView:
    deadline = time.monotonic() + seconds
    while not (job := client.job(job_id)).is_over and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return job
