"""Define what a tool that logs a run takes, and what it is told of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.json_form import to_json
from metagrad.cluster.run.folder import RunFolder

Setting = str | bool | int | float


class RunLog(Protocol):
    """Takes what a run logs, for one tool."""

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Write one row."""
        ...

    def histogram(self, name: str, values: Sequence[int], update: int) -> None:
        """Write how often each of a few whole numbers came up."""
        ...

    def picture(self, name: str, gif: bytes, update: int) -> None:
        """Write a GIF."""
        ...

    def close(self) -> None:
        """Make sure that all of it is kept; nothing is written afterwards."""
        ...


class RunFacts(NamedTuple):
    """Says which run it is that logs."""

    id: str  # of this run alone, the same when it continues
    name: str  # of its folder
    experiment: str
    settings: dict[str, Setting]
    folder: Path | None  # None: it is at a URL


def run_facts(experiment: BaseExperiment, folder: RunFolder) -> RunFacts:
    """Return what a tool is told of a run when its log begins."""
    place = folder.path if isinstance(folder.path, Path) else None
    return RunFacts(folder.run_id(), folder.path.name, experiment.name, settings(experiment), place)


def settings(experiment: BaseExperiment) -> dict[str, Setting]:
    """Return the options of a run by dotted name, as tables that compare runs take them."""
    found: dict[str, Setting] = {}

    def add(tree: Any, name: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                add(value, f"{name}.{key}" if name else key)
        else:
            found[name] = tree if isinstance(tree, str | bool | int | float) else str(tree)

    add({name: value for name, value in to_json(experiment).items() if name not in ("description", "log")}, "")
    return found
