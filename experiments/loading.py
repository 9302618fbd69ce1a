"""Load a trained run in a script: `metagrad.load("runs/…")`.

This is a module of the experiments because importing it makes their configuration types known, which config.json names.
"""

import sys

from metagrad.cluster.run.trained import TrainedRun, trained_run
from metagrad.learner.storage import Location


def load(run_dir: str | Location, update: int | None = None) -> TrainedRun:
    """Return policy, critics, η and configuration of a run, from its newest checkpoint or that of an update.

    A run whose experiment is defined in a file of yours needs that file to be imported first.

    Raises:
        ConfigurationError: the folder holds no run or no such checkpoint.
    """
    return trained_run(run_dir, update, lambda line: print(f"metagrad: {line}", file=sys.stderr))
