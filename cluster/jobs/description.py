"""Read what a job says about its run: metadata that its submission wrote, else its shell command, else its log.

Anybody who may ask the cluster can read the metadata, and anybody who may submit jobs can write it.
"""

import contextlib
import json
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise

from metagrad.cluster.jobs.client import JobClient, JobView
from metagrad.errors import ConfigurationError

_EXPERIMENT, _RUN_DIR, _STOP_SECONDS = "metagrad_experiment", "metagrad_run_dir", "metagrad_stop_seconds"
_CONTINUE = "metagrad_continue"
_RAYS_STOP_SECONDS = 3  # between SIGTERM and SIGKILL, of a job that does not say how long
_TRAIN = re.compile(r"\bmetagrad\b.*\btrain\s+([\w.-]+)")  # of a job that `ray job submit` began
_SUMMARY = re.compile(r"^\d+ updates, \d+ real frames in .*", re.MULTILINE)  # `metagrad train`, after its checkpoint


def metadata(experiment: str, run_dir: str, stop_seconds: int, continuing: Sequence[str]) -> dict[str, str]:
    """Return what a submission leaves with its job; `continuing` are the words that submit the run again."""
    return {
        _EXPERIMENT: experiment,
        _RUN_DIR: run_dir,
        _STOP_SECONDS: str(stop_seconds),
        _CONTINUE: json.dumps(list(continuing)),
    }


def experiment_of(job: JobView) -> str:
    """Return the experiment that a job trains; empty where it is none of metagrad's."""
    train = _TRAIN.search(job.entrypoint)
    return job.metadata.get(_EXPERIMENT) or (train[1] if train else "")


def run_dir_of(job: JobView) -> str:
    """Return the run folder of a job; empty where nothing says it."""
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


def stop_seconds_of(job: JobView) -> int:
    """Return how long a job may take from SIGTERM to its end."""
    said = job.metadata.get(_STOP_SECONDS, "")
    return int(said) if re.fullmatch("[0-9]{1,5}", said) else _RAYS_STOP_SECONDS


def continue_words_of(job: JobView) -> list[str]:
    """Return the words of the command that submits a job's run again; none where its submission left no such list."""
    with contextlib.suppress(ValueError, RecursionError):
        words = json.loads(job.metadata.get(_CONTINUE, ""))
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    return []


def last_line(client: JobClient, job: JobView) -> str:
    """Return what a job printed last: its progress while it trains."""
    with contextlib.suppress(ConfigurationError):  # its node may be gone, and the log with it
        lines = [line.strip() for line in client.log(job.job_id).splitlines() if line.strip()]
        return lines[-1] if lines else ""
    return ""


def summary_line(client: JobClient, job: JobView) -> str:
    """Return the line that `metagrad train` prints once its last checkpoint is written; empty where there is none."""
    with contextlib.suppress(ConfigurationError):
        if found := _SUMMARY.findall(client.log(job.job_id)):
            return str(found[-1]).strip()
    return ""
