"""Compare runs: plot return and every learnt meta-parameter along training, mean and spread over seeds."""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metagrad.cluster.config.experiment import OPERATIONAL_FIELDS, BaseExperiment
from metagrad.cluster.config.json_form import differences, to_json
from metagrad.cluster.run.event_reading import read_log
from metagrad.cluster.run.folder import RunFolder
from metagrad.errors import counted, printable, require
from metagrad.learner.storage import Location, chosen, location, write_whole

_RETURN = "episode/return_mean"
_NOT_COMPARED = OPERATIONAL_FIELDS | {"seed", "actors", "description"}
_SUFFIXES = (".png", ".pdf", ".svg")
_MOST_PANELS = 60  # pictures of more cannot be drawn, let alone be looked at
Scalars = dict[str, tuple[np.ndarray, np.ndarray]]  # updates and values by name


class Curve(NamedTuple):
    """Holds one scalar of one group of runs."""

    updates: np.ndarray  # [N], those that all runs of the group logged
    mean: np.ndarray  # [N]
    std: np.ndarray  # [N], over runs, N - 1 in the denominator; 0 for a single run
    runs: int


def _tell(line: str) -> None:
    print(f"metagrad: {printable(line)}", file=sys.stderr)


def plot_runs(run_dirs: Sequence[str | Location], output: str | Path, say: Callable[[str], None] = _tell) -> None:
    """Draw one panel per scalar, one line per group of runs that differ in their seed alone.

    Args:
        run_dirs: the runs; one that is named twice, or lies in two places, counts once.
        output: the picture, a path or a URL.
        say: gets a line for whatever is left out.

    Raises:
        ConfigurationError: a folder without a run or without scalars; an output that is no picture.
    """
    place = picture_at(output)
    groups = group_runs(run_dirs)
    scalars = {folder: read_scalars(folder, say) for folders in groups.values() for folder in folders}
    groups = {label: _without_copies(folders, scalars, say) for label, folders in groups.items()}
    write_whole(place, _picture(groups, scalars, place.name.rpartition(".")[2]))


def picture_at(output: str | Path) -> Location:
    """Return the place at which a picture is to be written.

    Raises:
        ConfigurationError: it has another ending, or is a folder.
    """
    rule, remedy = f"must end in one of {', '.join(_SUFFIXES)}", "rename it"
    require(str(output).endswith(_SUFFIXES), "output", str(output), rule, remedy)
    return chosen(str(output), "output")


def _without_copies(
    folders: Sequence[Location], scalars: dict[Location, Scalars], say: Callable[[str], None]
) -> list[Location]:
    """Leave copies of runs out: a run and its copy are one seed, not two."""
    seeds = {folder: RunFolder(folder).experiment().seed for folder in folders}
    found: list[Location] = []
    for folder in folders:
        alike = (x for x in found if seeds[x] == seeds[folder] and _are_same(scalars[x], scalars[folder]))
        twin = next(alike, None)
        if twin is None:
            found.append(folder)
        else:
            say(f"{folder}: has the seed and the rows of {twin}, and both are counted as one run")
    return found


def _are_same(left: Scalars, right: Scalars) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(mine, other, equal_nan=True)
        for name in left
        for mine, other in zip(left[name], right[name], strict=True)
    )


def _picture(groups: dict[str, list[Location]], scalars: dict[Location, Scalars], kind: str) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = sorted({name for of_run in scalars.values() for name in of_run}, key=lambda name: (name != _RETURN, name))
    rule = f"log more than {_MOST_PANELS} quantities that move"
    require(len(shown) <= _MOST_PANELS, "run-dirs", len(shown), rule, "look at them in TensorBoard")
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.8), squeeze=False, layout="constrained")
    try:
        for axis, name in zip(axes[0], shown, strict=True):
            for label, folders in groups.items():
                curve = join([scalars[folder][name] for folder in folders if name in scalars[folder]])
                if curve is None:
                    continue
                label = f"{_as_label(label)} ({counted(curve.runs, 'run')})"
                (line,) = axis.plot(curve.updates, curve.mean, label=label)
                axis.fill_between(
                    curve.updates, curve.mean - curve.std, curve.mean + curve.std, color=line.get_color(), alpha=0.2
                )
            axis.set(xlabel="update", ylabel=_as_label(name))
            axis.grid(alpha=0.3)
        axes[0][0].legend()
        content = BytesIO()
        figure.savefig(content, dpi=120, format=kind)
    finally:
        pyplot.close(figure)
    return content.getvalue()


def _as_label(text: str) -> str:
    """Make matplotlib show a text as it is, without formulas, and not hidden for a leading underscore."""
    shown = printable(text)[:200].replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def group_runs(run_dirs: Sequence[str | Location]) -> dict[str, list[Location]]:
    """Group runs by what distinguishes them beside seed, length and machine; label to folders."""
    by_kind: dict[str, list[Location]] = defaultdict(list)
    kinds: dict[str, BaseExperiment] = {}
    seen: set[str] = set()
    for folder in map(RunFolder, run_dirs):
        place = os.path.realpath(folder.path) if isinstance(folder.path, Path) else str(folder.path)
        if place in seen:
            continue
        seen.add(place)
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


def read_scalars(folder: Location, say: Callable[[str], None] = _tell) -> Scalars:
    """Read updates and values of the return and of every hyper-parameter that moved; `say` gets what was lost.

    Raises:
        ConfigurationError: the folder holds no scalars, or event files that are none.
    """
    logged = read_log(folder)
    lost = (*logged.damaged, *logged.cut_off)
    scalars = {
        name: (updates, values)
        for name, (updates, values) in logged.scalars.items()
        if len(updates) and (name == _RETURN or (name.startswith("eta/") and np.ptp(values) > 0))
    }
    rule, remedy = "; ".join(["does not hold any scalars yet", *lost]), "let the run log once"
    require(bool(scalars), "run-dir", str(folder), rule, remedy)
    for line in lost:
        say(f"{folder}: {line}")
    return scalars


def logged_scalars(folder: str | Location) -> Scalars:
    """Read updates and values of everything that a run wrote for TensorBoard, by name; of updates done twice the last.

    Raises:
        ConfigurationError: some of it is damaged.
    """
    place = location(folder)
    logged = read_log(place)
    rule, remedy = "; ".join(logged.damaged), "restore that file, or run it again in another folder"
    require(not logged.damaged, "run-dir", str(place), rule, remedy)
    return logged.scalars


def join(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Curve | None:
    """Average several runs at updates where all of them have a value; None where there is no such update."""
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
