"""Training as a job of a Ray cluster: metagrad submit, status, logs, stop."""

import asyncio
import os
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cluster.commands import LogsOptions, StatusOptions, StopOptions, SubmitOptions
from cluster.extensions import extensions
from cluster.job_client import JobClient, JobView, LogInterrupted, Submission, resolve_address
from cluster.job_package import package, pinned_requirements
from metagrad.errors import require

_EXPERIMENT, _RUN_DIR = "metagrad_experiment", "metagrad_run_dir"  # in a job's metadata
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_AFTER_THE_END = 30.0  # for the supervisor to notice
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_WITHOUT_INSTALLATION = 'python -c "import sys; from cluster.entry import main; sys.exit(main())"'


def submit(options: SubmitOptions, words: Sequence[str]) -> int:
    """Start a job that trains; the exit code says how it ended if it was followed.

    Args:
        options: checked ones.
        words: what the command line said behind the experiment's name, from which they were made.
    """
    name = options.experiment.name
    job_id = options.submission_id or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    rule = "is no job's name: letters, digits, dots, dashes and underscores, 100 at the most"
    require(bool(_ID.fullmatch(job_id)), "submission-id", job_id, rule, "choose another one")
    seconds = options.stop_seconds
    require(1 <= seconds <= 86_400, "stop-seconds", seconds, "must lie in [1, 86400]", "a day is the most")
    require(options.install or not options.packages, "packages", options.packages, "belong to --install", "add it")
    require(
        not options.resume or options.run_dir is not None,
        "run-dir",
        options.run_dir,
        "--resume needs the folder to continue",
        "add --run-dir DIR",
    )
    run_dir = options.run_dir or f"~/metagrad-runs/{job_id}"
    is_placed = run_dir.startswith(("/", "~/")) or "://" in run_dir
    remedy = "use an absolute path, one below ~, or a URL"
    rule = "would lie in the job's working folder, which the cluster deletes"
    require(is_placed, "run-dir", run_dir, rule, remedy)
    files = package(options.working_dir, [_file_of(module) for module in extensions()], options.install)
    client = JobClient(resolve_address(options.address, os.environ))
    client.require_version()
    runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(seconds)}}
    if options.install:
        runtime_env["pip"] = {"packages": pinned_requirements(options.packages)}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "job.zip"
        files.write(archive)
        client.submit(
            Submission(
                job_id=job_id,
                entrypoint=entrypoint(options, words, files.extensions, run_dir),
                archive=archive,
                runtime_env=runtime_env,
                metadata={_EXPERIMENT: name, _RUN_DIR: run_dir},
                num_cpus=options.entrypoint_num_cpus,
                num_gpus=options.entrypoint_num_gpus,
            )
        )
    print(f"submitted: {job_id}")
    print(f"run folder: {run_dir} (on the cluster)")
    address = f" --address {client.address.url}" if options.address else ""
    print(f"metagrad logs {job_id}{address} --follow\nmetagrad stop {job_id}{address}")
    return _follow(client, job_id) if options.follow else 0


def entrypoint(options: SubmitOptions, words: Sequence[str], imported: Sequence[str], run_dir: str) -> str:
    """The job's shell command: `metagrad train` with the experiment's own words."""
    command = _WITHOUT_INSTALLATION if options.install else "metagrad"
    imports = [word for place in imported for word in ("--import", place)]
    resume = ["--resume"] if options.resume else []
    own = ["train", options.experiment.name, *_experiment_words(words), "--run-dir", run_dir, *resume]
    return f"{command} {shlex.join([*imports, *own])}"


def _experiment_words(words: Sequence[str]) -> list[str]:
    """Without the options of `submit` itself and their values."""
    own = {f.name.replace("_", "-"): f for f in fields(SubmitOptions) if f.name != "experiment"}
    kept: list[str] = []
    skips = False
    for word in words:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("_", "-")
            skips = name in own
            if skips:
                skips_values = own[name].type is not bool and "=" not in word
                continue
        elif skips and skips_values:
            continue
        kept.append(word)
    return kept


def _file_of(module: Any) -> Path:
    return Path(module.__file__)


def status(options: StatusOptions) -> None:
    """Print the training jobs of a cluster, or one."""
    client = JobClient(resolve_address(options.address, os.environ))
    if options.job:
        job = client.job(options.job)
        print("\n".join(f"{name:<11} {value}" for name, value in _described(job).items() if value))
        last = [line for line in client.log(job.job_id).splitlines() if line.strip()]
        if last:
            print(f"{'last line':<11} {last[-1].strip()}")
        return
    jobs = [job for job in client.jobs() if _EXPERIMENT in job.metadata or "metagrad" in job.entrypoint]
    if not jobs:
        print("no training jobs on this cluster")
        return
    width = max(len(job.job_id) for job in jobs)
    for job in jobs:
        described = _described(job)
        print(f"{job.job_id:<{width}}  {job.state:<9}  {described['started']}  {described['run folder']}")


def _described(job: JobView) -> dict[str, str]:
    started = "" if job.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
    return {
        "job": job.job_id,
        "experiment": job.metadata.get(_EXPERIMENT, ""),
        "state": job.state,
        "started": started,
        "run folder": job.metadata.get(_RUN_DIR, ""),
        "command": job.entrypoint,
        "message": job.message.splitlines()[0] if job.is_over and job.message else "",
    }


def logs(options: LogsOptions) -> int:
    """Print what a job has printed; followed, the exit code says how it ended."""
    client = JobClient(resolve_address(options.address, os.environ))
    if options.follow:
        client.job(options.job)
        return _follow(client, options.job)
    sys.stdout.write(client.log(options.job))
    return 0


def stop(options: StopOptions) -> int:
    """Ask a job to stop, and wait until it has: 0 where it stopped or had ended well."""
    client = JobClient(resolve_address(options.address, os.environ))
    job = client.job(options.job)
    if job.is_over:
        print(f"{job.job_id}: is over already ({job.state})")
        return 0
    client.stop(job.job_id)
    print(f"{job.job_id}: asked to stop; it finishes its update and writes a checkpoint")
    while not job.is_over:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        job = client.job(job.job_id)
    print(f"{job.job_id}: {job.state}")
    if run_dir := job.metadata.get(_RUN_DIR):
        name = job.metadata[_EXPERIMENT]
        print(f"continue it with: metagrad submit {name} --resume --run-dir {shlex.quote(run_dir)}")
    return 0 if job.state in ("STOPPED", "SUCCEEDED") else 1


def _follow(client: JobClient, job_id: str) -> int:
    """Print a job's log until it ends: 0 if it ended well, 130 if somebody stopped looking, else the job's own code."""
    try:
        asyncio.run(_print_log(client, job_id))
        job = _ended(client, job_id)
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on; look again with metagrad logs {job_id} --follow, or metagrad stop {job_id}")
        return 130
    if job.state == "SUCCEEDED":
        return 0
    reason = job.message.splitlines()[0] if job.message else ""
    print(f"metagrad: job {job_id} ended as {job.state}{f' ({reason})' if reason else ''}", file=sys.stderr)
    return job.exit_code or 1


async def _print_log(client: JobClient, job_id: str) -> None:
    """A connection that is lost while the job runs is made again, behind what was printed already."""
    printed = 0
    while True:
        seen = 0
        try:
            async for text in client.stream(job_id):
                fresh = text[max(0, printed - seen) :]
                seen += len(text)
                printed = max(printed, seen)
                sys.stdout.write(fresh)
                sys.stdout.flush()
            return
        except LogInterrupted as error:
            if client.job(job_id).is_over:
                return
            print(f"metagrad: the log was interrupted ({error}); connecting again", file=sys.stderr)
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)


def _ended(client: JobClient, job_id: str) -> JobView:
    """The job, once its cluster has noticed that it ended."""
    deadline = time.monotonic() + _SECONDS_AFTER_THE_END
    job = client.job(job_id)
    while not job.is_over and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        job = client.job(job_id)
    return job
