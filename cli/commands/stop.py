"""End a job after its current update, with a checkpoint: `metagrad stop JOB`."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from metagrad.cli.options import JobOptions, parse
from metagrad.cli.shell import job_command, print_lines
from metagrad.cluster.jobs.client import JobClient, JobView, connect
from metagrad.cluster.jobs.description import (
    continue_words_of,
    last_line,
    run_dir_of,
    stop_seconds_of,
    summary_line,
)

_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_NOTICE = 30.0  # for the cluster, beyond what the job is given


@dataclass(frozen=True, kw_only=True, slots=True)
class StopOptions(JobOptions):
    """Stop a job: it finishes the current update and writes a checkpoint."""


def run(words: Sequence[str]) -> int:
    """Ask a job to stop and wait until it has; 0 if it is over and has written its checkpoint, else 1."""
    options = parse(StopOptions, words, None, "metagrad stop")
    options.require_job("stop")
    client = connect(options.address)
    job = client.job(options.job)
    if job.is_over:
        print_lines([f"{job.job_id} has already ended ({job.state})"])
        return 0
    seconds = stop_seconds_of(job)
    client.stop(job.job_id)
    print_lines([f"{job.job_id}: asked to stop; it has {seconds} s for its last update and its checkpoint"])
    job = _waited_for(client, job.job_id, seconds + _SECONDS_TO_NOTICE)
    if not job.is_over:
        print_lines([f"metagrad: job {job.job_id} is still {job.state}; it ends as soon as it can"], sys.stderr)
        return 1
    if summary := summary_line(client, job):
        print_lines([summary, f"run folder: {run_dir_of(job)}"])
        if again := continue_words_of(job):
            print_lines([f"continue it: {job_command(*again, address=options.address)}"])
        return 0
    rule = "without a last checkpoint of its own; its log ends:"
    print_lines([f"metagrad: job {job.job_id} is {job.state}, {rule}", last_line(client, job)], sys.stderr)
    return 1


def _waited_for(client: JobClient, job_id: str, seconds: float) -> JobView:
    deadline = time.monotonic() + seconds
    while not (job := client.job(job_id)).is_over and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return job
