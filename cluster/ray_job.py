"""What a run tells Ray about its workers: where they import from, and what they know before they begin."""

import os
import sys
from typing import Any

from ray.job_config import JobConfig

from metagrad.cluster.extensions import worker_setup


class _OwnPath(JobConfig):
    """Workers import from where this process does, and from nowhere else.

    Ray puts the current folder first on their path, where a `torch.py` or `metagrad/` would take the place of ours. It
    does not where a job has a working folder, which is what it is told here, unless the folder is on the path of this
    process as well (`python -m`).
    """

    def _runtime_env_has_working_dir(self) -> bool:
        here = os.getcwd()
        is_own = any(os.path.abspath(entry) == here for entry in sys.path)
        return not is_own or bool(super()._runtime_env_has_working_dir())


def ray_job() -> dict[str, Any]:
    """Arguments of `ray.init`."""
    return {"job_config": _OwnPath(), "runtime_env": worker_setup() or None}
