"""List the training jobs of a Ray cluster, or show one: `metagrad status [JOB]`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from metagrad.cli.options import JobOptions, parse
from metagrad.cli.shell import print_lines
from metagrad.cluster.jobs.client import JobClient, JobView, connect
from metagrad.cluster.jobs.description import experiment_of, last_line, run_dir_of
from metagrad.errors import printable


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusOptions(JobOptions):
    """List the training jobs of a Ray cluster, or show one."""


def run(words: Sequence[str]) -> None:
    """Print the training jobs of a cluster, or one."""
    options = parse(StatusOptions, words, None, "metagrad status")
    client = connect(options.address)
    if options.job:
        job = client.job(options.job)
        message = job.message.splitlines()[0] if job.is_over and job.message else ""
        rows = {"job": job.job_id, "experiment": experiment_of(job), "state": job.state, "started": _started(job)}
        rows |= {"run folder": run_dir_of(job), "command": job.entrypoint, "message": message}
        rows |= {"last line": last_line(client, job)}
        print_lines(f"{name:<11} {value}" for name, value in rows.items() if value)
        return
    jobs = [job for job in client.jobs() if experiment_of(job)]
    if not jobs:
        print("no training jobs on this cluster")
        return
    header = ("job", "experiment", "state", "started", "run folder", "last line")
    table = [header, *(tuple(map(printable, _row(client, job))) for job in jobs)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(client: JobClient, job: JobView) -> tuple[str, ...]:
    last = last_line(client, job) if job.state == "RUNNING" else ""
    return job.job_id, experiment_of(job), job.state, _started(job), run_dir_of(job), last


def _started(job: JobView) -> str:
    return "" if job.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
