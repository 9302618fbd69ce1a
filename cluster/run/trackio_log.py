"""Log a run with Trackio (`--log trackio`): into a database on this machine, which `trackio show` shows."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import trackio
from trackio.utils import TRACKIO_DIR

from metagrad.cluster.run.events import bins_of
from metagrad.cluster.run.run_log import RunFacts

PROJECT = "metagrad"


class TrackioLog:
    """Writes rows of a run of Trackio, whose name ends with the run's own id: a continued run continues there."""

    def __init__(self, facts: RunFacts):
        """Begin or continue the run; Trackio's own variables (TRACKIO_DIR, TRACKIO_SPACE_ID, …) apply.

        Raises:
            OSError: its folder cannot be made, of which Trackio itself would only warn, row by row.
        """
        TRACKIO_DIR.mkdir(parents=True, exist_ok=True)
        self._files = TemporaryDirectory(prefix="metagrad-trackio-")
        self._run: Any = _silently(
            lambda: trackio.init(
                project=PROJECT,
                name=f"{facts.name}-{facts.id}",
                group=facts.experiment,
                resume="allow",
                config=dict(facts.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        )

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Write one row."""
        self._run.log(dict(values), step=update)

    def histogram(self, name: str, values: Sequence[int], update: int) -> None:
        """Write how often each of a few whole numbers came up, one bin for each."""
        counts, edges = np.histogram(values, bins_of(values))
        self._run.log({name: trackio.Histogram(np_histogram=(counts.tolist(), edges.tolist()))}, step=update)

    def picture(self, name: str, gif: bytes, update: int) -> None:
        """Write a GIF, which Trackio copies in a thread of its own."""
        path = Path(self._files.name, f"{update}.gif")
        path.write_bytes(gif)
        self._run.log({name: trackio.Video(str(path), format="gif")}, step=update)

    def close(self) -> None:
        """Wait until Trackio has all of it."""
        _silently(trackio.finish)
        self._files.cleanup()


def _silently(call: Callable[[], Any]) -> Any:
    """Call what prints advice in the middle of a run's output; return what it returns."""
    with redirect_stdout(StringIO()):
        return call()
