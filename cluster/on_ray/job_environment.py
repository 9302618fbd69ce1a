"""Tell Ray where a run's workers import from, and what they know before they begin."""

import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

from metagrad.cluster.config import extensions
from metagrad.cluster.on_ray.private import OwnPathJobConfig

JOB_FOLDER = "METAGRAD_JOB_FOLDER"
"""Variable of a submitted job: the folder below Ray's working folder that has the user's files."""
JOB_VARIABLES = "METAGRAD_JOB_VARIABLES"
"""Variable of a submitted job: the names of those that were given for it."""


def ray_job(is_embedded: bool) -> dict[str, Any]:
    """Return arguments of `ray.init`.

    Ray begins workers that have a hook in a shell, and does not quote their Python for it: where its path holds a space
    none would ever begin. Of a Ray on this computer alone that path is known.
    """
    begin, environment = _beginning(), dict[str, Any]()
    if begin is not None:
        environment["worker_process_setup_hook"] = begin
        if is_embedded:
            environment["py_executable"] = shlex.quote(sys.executable)
    return {"job_config": OwnPathJobConfig(), "runtime_env": environment or None}


def _beginning() -> Callable[[], None] | None:
    """Return what each worker does first: enter the job's folder, take its variables, find the files of --import."""
    known = extensions.known()
    folder = os.environ.get(JOB_FOLDER)
    # Not in Ray's `env_vars`, which its dashboard shows and its agents log.
    variables = {name: os.environ[name] for name in os.environ.get(JOB_VARIABLES, "").split()}
    if folder is None and not known.sources:
        return None

    def begin() -> None:
        if folder is not None:
            os.chdir(folder)
        os.environ.update(variables)
        extensions.learn(known)

    return begin
