"""Log a run with Weights & Biases (`--log wandb`), offline too: WANDB_MODE=offline, later `wandb sync`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import wandb

from metagrad.cluster.run.events import bins_of
from metagrad.cluster.run.run_log import RunFacts
from metagrad.errors import require

PROJECT = "metagrad"  # unless WANDB_PROJECT names another one


def require_key() -> None:
    """Refuse a run that W&B would ask for a key, in the middle of its output.

    Raises:
        ConfigurationError: W&B is to be online, and nobody has logged in here or it does not take the key.
    """
    is_online = wandb.setup().settings.mode in ("online", "shared")
    remedy = "run wandb login, or set WANDB_MODE=offline and upload with wandb sync"
    rule = "W&B has no API key here"
    try:
        has_key = not is_online or wandb.login(prompt=False)
    except wandb.errors.Error as error:
        has_key, rule = False, f"W&B does not take the API key ({' '.join(str(error).split())[:200]})"
    require(has_key, "log", "wandb", rule, remedy)


class WandbLog:
    """Writes rows of a run of W&B, whose id is the run's own, so that a continued run continues there."""

    def __init__(self, facts: RunFacts):
        """Begin or continue the run; W&B's own variables (WANDB_MODE, WANDB_PROJECT, WANDB_DIR, …) apply."""
        self._files = TemporaryDirectory(prefix="metagrad-wandb-")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR") or facts.folder,
            id=facts.id,
            name=facts.name,
            group=facts.experiment,
            resume="allow",
            config=dict(facts.settings),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        # Evaluations on Ray end after later rows have been written, and W&B's own step may only grow.
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Write one row."""
        self._run.log({**values, "update": update})

    def histogram(self, name: str, values: Sequence[int], update: int) -> None:
        """Write how often each of a few whole numbers came up, one bin for each."""
        counted = np.histogram(values, bins_of(values))
        self._run.log({name: wandb.Histogram(np_histogram=counted), "update": update})

    def picture(self, name: str, gif: bytes, update: int) -> None:
        """Write a GIF, which W&B copies."""
        path = Path(self._files.name, f"{update}.gif")
        path.write_bytes(gif)
        self._run.log({name: wandb.Video(str(path), format="gif"), "update": update})
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Wait until W&B has all of it."""
        self._run.finish()
        self._files.cleanup()
