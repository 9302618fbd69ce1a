"""Show what a job has printed, and with --follow what it continues to print: `metagrad logs JOB`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from metagrad.cli.options import JobOptions, parse
from metagrad.cli.shell import job_command, print_lines
from metagrad.cluster.jobs.client import JobClient, connect
from metagrad.cluster.jobs.log import follow
from metagrad.errors import printable

_EXIT_CODE_OF_STOPPED = 143  # as of a command that SIGTERM ended
_EXIT_CODE_OF_CTRL_C = 130


@dataclass(frozen=True, kw_only=True, slots=True)
class LogsOptions(JobOptions):
    """Show what a job has printed."""

    follow: bool = False
    """Go on until the job ends, and exit with the job's exit code. Ctrl-C leaves the job running."""


def run(words: Sequence[str]) -> int:
    """Print what a job has printed."""
    options = parse(LogsOptions, words, None, "metagrad logs")
    options.require_job("logs")
    client = connect(options.address)
    if options.follow:
        client.job(options.job)
        return follow_job(client, options.job, options.address)
    _write(client.log(options.job))
    return 0


def follow_job(client: JobClient, job_id: str, address: str | None) -> int:
    """Print a job's log until it ends.

    Returns:
        0 it succeeded, 143 it was stopped, 130 Ctrl-C ended the following, else the job's own exit code.
    """
    try:
        job = follow(client, job_id, _write, lambda line: print_lines([f"metagrad: {line}"], sys.stderr))
    except KeyboardInterrupt:
        again, end = (
            job_command("logs", job_id, "--follow", address=address),
            job_command("stop", job_id, address=address),
        )
        print_lines(["", f"{job_id} keeps running; follow it again with {again}, end it with {end}"])
        return _EXIT_CODE_OF_CTRL_C
    match job.state:
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            print_lines([f"metagrad: job {job_id} was stopped"], sys.stderr)
            return _EXIT_CODE_OF_STOPPED
    reason = job.message.splitlines()[0] if job.message else "no reason given"
    print_lines([f"metagrad: job {job_id} failed: {reason}"], sys.stderr)
    code = job.exit_code or 1
    return code if code > 0 else 128 - code  # a signal's number, as shells say it


def _write(text: str) -> None:
    """Print a log without control sequences: others may submit jobs too."""
    sys.stdout.write("".join(c if c.isprintable() or c in "\n\t\r" else printable(c) for c in text))
    sys.stdout.flush()
