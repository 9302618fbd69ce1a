"""Run trials on Ray Tune, whose own state is not needed afterwards: what trials have done lies in their run folders."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune

from metagrad.cluster.on_ray.session import Demand, ray_session
from metagrad.cluster.run.variables import environment_variables
from metagrad.errors import RunLost, counted

_RESTARTS = 3  # of a trial whose process is lost
_OF_TUNE = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are the command's
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials log as runs do
    "RAY_AIR_NEW_OUTPUT": "0",
}


def tuned(
    trainable: Any,
    trials: Sequence[str],
    folder: Path,
    cpus: int,
    callback: tune.Callback,
    tune_config: tune.TuneConfig | None = None,
) -> None:
    """Train trials, as many at a time as there are CPUs; a trainable finds its trial's name in its configuration.

    Args:
        trainable: Tune's, with what it needs.
        trials: their names.
        folder: Tune's own state goes to `folder`/tune.
        cpus: of each trial; 0: one trial at a time beside what runs here, in the place of a process that waits for it.
        callback: told of Tune's events.
        tune_config: scheduler and the like; None: one trial after another to the end.

    Raises:
        ConfigurationError: no cluster, or none with so many CPUs.
        RunLost: a trial failed.
    """
    with environment_variables(_OF_TUNE), _session(len(trials), cpus):
        results = tune.Tuner(
            tune.with_resources(trainable, {"cpu": cpus}),
            param_space={"trial": tune.grid_search(list(trials))},
            tune_config=tune_config,
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder.absolute()),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # runs write their own
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                callbacks=[callback],
                verbose=0,
            ),
        ).fit()
    for error in results.errors:
        raise RunLost(f"a trial failed, those that are done stay: {str(error).strip().splitlines()[-1]}") from error


def _session(trials: int, cpus: int) -> AbstractContextManager[None]:
    """Connect to Ray, unless this is one of its processes, such as that of a study's part."""
    if ray.is_initialized():
        return nullcontext()
    needs = f"each of which has {counted(max(1, cpus), 'CPU')}"
    return ray_session(Demand(least=max(1, cpus), wanted=max(1, cpus), gpus=0, actors=trials, needs=needs))
