"""Pass what a run logs on to the tools that --log names, beside the event files of its folder.

The driver writes the event files first: they belong to the run, and a checkpoint covers what is on the disk. A tool
elsewhere cannot take rows back, as event files do, when a run continues from a checkpoint before them. So a row is kept
here until a checkpoint covers its update, and only then passed on: no continuation comes to it again.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from metagrad.cluster.config.experiment import LogName
from metagrad.cluster.run.run_log import RunFacts, RunLog
from metagrad.errors import require


class _Row(NamedTuple):
    """Holds a call of a log that waits for a checkpoint."""

    update: int
    method: Literal["scalars", "histogram", "picture"]
    arguments: tuple[Any, ...]


class RunLogs:
    """Passes rows on to the tools that --log names once a checkpoint covers them; a tool that fails is left out."""

    def __init__(self, logs: Mapping[str, Callable[[], RunLog]], say: Callable[[str], None], done: int, covered: int):
        """Take functions that begin logs, which the first row calls.

        Args:
            logs: by the names of the tools.
            say: told once of a tool that fails.
            done: the last update whose rows an earlier process has passed on.
            covered: the update of the newest checkpoint.
        """
        self._begin = dict(logs)
        self._open: dict[str, RunLog] = {}
        self._say = say
        self._done = done
        self._covered = covered
        self._waiting: list[_Row] = []

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Pass a row on, as soon as a checkpoint covers it."""
        self._put(_Row(update, "scalars", (dict(values), update)))

    def histogram(self, name: str, values: Sequence[int], update: int) -> None:
        """Pass whole numbers on, as soon as a checkpoint covers them."""
        self._put(_Row(update, "histogram", (name, list(values), update)))

    def picture(self, name: str, gif: bytes, update: int) -> None:
        """Pass a GIF on, as soon as a checkpoint covers it."""
        self._put(_Row(update, "picture", (name, gif, update)))

    def covered(self, update: int) -> None:
        """Pass on what waited for a checkpoint of this update, which has been written."""
        self._covered = max(self._covered, update)
        waiting, self._waiting = self._waiting, []
        for row in waiting:
            self._put(row)

    def take_back(self, after: int) -> None:
        """Forget rows beyond this update, which another life of the learner comes to again."""
        self._waiting = [row for row in self._waiting if row.update <= after]

    def close(self) -> None:
        """End all logs; rows that no checkpoint covers are left out."""
        for name in list(self._open):
            self._try(name, lambda log: log.close())
        self._open.clear()

    def _put(self, row: _Row) -> None:
        if not self._begin or row.update <= self._done:
            return
        if row.update > self._covered:
            self._waiting.append(row)
            return
        for name in list(self._begin):
            self._try(name, lambda log: getattr(log, row.method)(*row.arguments))

    def _try(self, name: str, call: Callable[[RunLog], None]) -> None:
        """Call a log; whatever it fails with is said, and the run goes on without it."""
        try:
            if name not in self._open:
                self._open[name] = self._begin[name]()
            call(self._open[name])
        except Exception as error:
            del self._begin[name]
            self._open.pop(name, None)
            lines = str(error).strip().splitlines() or [""]
            self._say(f"--log {name} failed ({type(error).__name__}: {lines[0]}); the run goes on without it")


def require_logs(names: Sequence[LogName]) -> None:
    """Refuse tools that are not installed here.

    Raises:
        ConfigurationError: names the extra that brings one.
    """
    for name in names:
        remedy = f"pip install 'metagrad[{name}]'"
        require(find_spec(name) is not None, "log", name, "is not installed where the run is driven", remedy)
    if "wandb" in names:
        from metagrad.cluster.run.wandb_log import require_key  # imports what is not always installed

        require_key()


def openers(names: Sequence[LogName], facts: Callable[[], RunFacts]) -> dict[str, Callable[[], RunLog]]:
    """Return functions that begin the logs of these tools; `facts` is called when the first one begins."""

    def wandb() -> RunLog:
        from metagrad.cluster.run.wandb_log import WandbLog  # imports what is not always installed

        return WandbLog(facts())

    def trackio() -> RunLog:
        from metagrad.cluster.run.trackio_log import TrackioLog  # imports what is not always installed

        return TrackioLog(facts())

    known: dict[LogName, Callable[[], RunLog]] = {"trackio": trackio, "wandb": wandb}
    return {name: known[name] for name in names}
