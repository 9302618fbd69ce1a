"""Compare runs: return and every learnt meta-parameter along training, mean and spread over seeds."""

import contextlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.config_json import differences, to_json
from metagrad.cluster.events import EVENT_FILE
from metagrad.cluster.run_config import OPERATIONAL_FIELDS, BaseExperiment
from metagrad.cluster.run_folder import RunFolder
from metagrad.errors import ConfigurationError, require
from metagrad.learner.storage import Location, RemotePath, location, names

_RETURN = "episode/return_mean"
_NOT_COMPARED = OPERATIONAL_FIELDS | {"seed", "actors", "description"}


class Curve(NamedTuple):
    """One scalar of one group of runs."""

    updates: np.ndarray  # [N], those that all runs of the group logged
    mean: np.ndarray  # [N]
    std: np.ndarray  # [N], over runs, N - 1 in the denominator; 0 for a single run
    runs: int


def plot_runs(run_dirs: Sequence[str | Location], output: Path) -> None:
    """Draw one panel per scalar, one line per group of runs that differ in their seed alone.

    Raises:
        ConfigurationError: a folder without a run or without scalars; an output that is no picture.
    """
    suffixes = (".png", ".pdf", ".svg")
    require(output.suffix in suffixes, "output", str(output), f"must end in one of {', '.join(suffixes)}", "rename it")
    groups = group_runs(run_dirs)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scalars = {folder: read_scalars(folder) for folders in groups.values() for folder in folders}
    shown = sorted({name for of_run in scalars.values() for name in of_run}, key=lambda name: (name != _RETURN, name))
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.8), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], shown, strict=True):
        for label, folders in groups.items():
            curve = join([scalars[folder][name] for folder in folders if name in scalars[folder]])
            if curve is None:
                continue
            count = "1 run" if curve.runs == 1 else f"{curve.runs} runs"
            (line,) = axis.plot(curve.updates, curve.mean, label=f"{label} ({count})")
            axis.fill_between(
                curve.updates, curve.mean - curve.std, curve.mean + curve.std, color=line.get_color(), alpha=0.2
            )
        axis.set(xlabel="update", ylabel=name)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def group_runs(run_dirs: Sequence[str | Location]) -> dict[str, list[Location]]:
    """Runs by what distinguishes them beside seed, length and the machine they ran on; label to folders."""
    by_kind: dict[str, list[Location]] = defaultdict(list)
    kinds: dict[str, BaseExperiment] = {}
    for folder in map(RunFolder, run_dirs):
        experiment = folder.experiment()
        tree = {name: value for name, value in to_json(experiment).items() if name not in _NOT_COMPARED}
        key = json.dumps(tree)
        kinds.setdefault(key, experiment)
        by_kind[key].append(folder.path)
    first = next(iter(kinds.values()))
    varying = {field for kind in kinds.values() for field, *_ in differences(first, kind)}
    compared = sorted(field for field in varying if field.partition(".")[0] not in _NOT_COMPARED | {"name"})
    return {_label(kinds[key], compared): folders for key, folders in by_kind.items()}


def _label(kind: BaseExperiment, fields: Sequence[str]) -> str:
    def value(field: str) -> object:
        found: object = kind
        for name in field.split("."):
            found = getattr(found, name, "-")
        return found

    return ", ".join([kind.name, *(f"{field} = {value(field)}" for field in fields)])


def read_scalars(folder: Location) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Updates and values of the return and of every hyper-parameter that moved, by name.

    Raises:
        ConfigurationError: the folder holds no scalars.
    """
    scalars = {
        name: (updates, values)
        for name, (updates, values) in logged_scalars(folder).items()
        if name == _RETURN or (name.startswith("eta/") and np.ptp(values) > 0)
    }
    if not scalars:
        raise ConfigurationError(f"run-dir = {str(folder)!r}: holds no scalars yet; let the run log once")
    return scalars


def logged_scalars(folder: str | Location) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Updates and values of everything that a run wrote for TensorBoard, by name; of updates done twice the last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with _at_hand(location(folder)) as path:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
    points = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return {
        name: (np.array([point.step for point in own]), np.array([point.value for point in own]))
        for name, own in points.items()
    }


@contextlib.contextmanager
def _at_hand(folder: Location) -> Iterator[Path]:
    """The folder, or a copy of a URL's event files: TensorBoard reads those in a request for every few records."""
    if not isinstance(folder, RemotePath):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for name in names(folder):
            if EVENT_FILE.fullmatch(name):
                Path(copy, name).write_bytes((folder / name).read_bytes())
        yield Path(copy)


def join(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Curve | None:
    """Mean and spread of several runs where all of them have a value; None where there is no such update."""
    if not runs:
        return None
    updates = runs[0][0]
    for steps, _ in runs[1:]:
        updates = np.intersect1d(updates, steps)
    if not len(updates):
        return None
    values = np.stack([found[np.searchsorted(steps, updates)] for steps, found in runs])
    std = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(updates))
    return Curve(updates, values.mean(axis=0), std, len(runs))
