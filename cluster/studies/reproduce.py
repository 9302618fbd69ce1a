"""Compute the parts that a study's folder does not hold yet, then write its report."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from signal import SIGINT, Signals
from types import FrameType
from typing import Literal, NamedTuple

from rich.console import Console

from metagrad.cluster.config.experiment import SECONDS_TO_WAIT_FOR_RESOURCES, check_wait_for_resources
from metagrad.cluster.run.progress import Progress
from metagrad.cluster.run.stop import StoppedBySignal, StopRequest
from metagrad.cluster.studies.folder import Record, Settings, as_json, held, read_parts, write_part, write_results
from metagrad.cluster.studies.study import PartFailed, Parts, Study, execute
from metagrad.errors import require

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Where(NamedTuple):
    topology: Literal["ray", "colocated"]
    wait_for_resources: float


class StudyStopped(StoppedBySignal):
    """A study was ended early by a signal; what had finished is kept."""


def default_folder(study: Study, is_quick: bool) -> Path:
    """Return studies/NAME or studies/NAME-quick: a command that is rerun resumes in the same folder."""
    return Path("studies") / (f"{study.name}-quick" if is_quick else study.name)


def reproduce(  # noqa: PLR0913 - an option each
    study: Study,
    folder: Path,
    seeds: int,
    is_quick: bool,
    topology: Literal["ray", "colocated"],
    console: Console,
    updates: int | None = None,
    wait_for_resources: float | None = None,
) -> None:
    """Compute the parts of a study that the folder does not hold yet, then write results.json and the report.

    Raises:
        ConfigurationError: before anything starts; the folder holds something else or is in use.
        PartFailed: a part raised; those that had finished are kept.
        StudyStopped: a signal asked for its end; likewise.
    """
    remedy = f"use --seeds {study.seeds} as the paper does"
    require(seeds >= 1, "seeds", seeds, "must be at least 1", remedy)
    check_wait_for_resources(wait_for_resources, topology)
    patience = SECONDS_TO_WAIT_FOR_RESOURCES if wait_for_resources is None else wait_for_resources
    require(seeds <= 10_000, "seeds", seeds, "must be at most 10,000", remedy)
    length = () if updates is None else (updates,)
    for each in length:
        rule, remedy = "this study has no training runs that could be shorter", "leave it out"
        require(study.updates is not None, "updates", each, rule, remedy)
        assert study.updates is not None
        rule, remedy = f"must lie in [1, {study.updates}]", "the default is the paper's number"
        require(1 <= each <= study.updates, "updates", each, rule, remedy)
        require(not is_quick, "updates", each, "--quick has a length of its own", "leave one of them out")
    asked = {name: as_json(settings) for name, settings in study.parts(seeds, is_quick, *length).items()}
    assert asked, f"study {study.name} has no parts"
    assert all(_FILE_NAME.fullmatch(name) for name in asked), f"part names of {study.name}: {list(asked)}"
    command = f"metagrad reproduce {study.name} --seeds {seeds}{' --quick' if is_quick else ''}"
    command += "".join(f" --updates {each}" for each in length)
    if os.path.islink(folder):  # the user's own; none in it is followed
        folder = Path(os.path.realpath(folder))
    with held(folder), Progress(console, len(asked)) as progress:
        progress.say(f"study folder: {folder}")
        done = read_parts(folder, study.name, asked)
        if done:
            progress.say(f"{len(done)} of {len(asked)} parts are there already")
        if len(done) < len(asked):
            _run_missing(study, folder, asked, done, _Where(topology, patience), progress)
        records = {name: done[name] for name in asked}
        head = {"study": study.name, "description": study.description, "command": command}
        results = write_results(folder, head | {"seeds": seeds, "is_quick": is_quick, "parts": records})
        progress.begin("writing the report")
        study.report(folder, {name: (each["settings"], each["result"]) for name, each in records.items()}, is_quick)
        progress.begin("")
    # After the progress line, so that these are the last lines on a terminal too.
    progress.say(f"results: {results}")
    progress.say(f"report: {folder / 'report.md'}")


def _run_missing(
    study: Study,
    folder: Path,
    asked: dict[str, Settings],
    done: dict[str, Record],
    where: _Where,
    progress: Progress,
) -> None:
    """Run what is asked and not done; every part that finishes goes into `done` and into the folder."""
    missing = {name: settings for name, settings in asked.items() if name not in done}
    topology = where.topology
    line = _ProgressLine(progress, len(done), len(asked))
    # Colocated parts may take minutes, and nothing of an unfinished one is worth waiting for.
    stop = _StudyStop(is_at_once=topology == "colocated")
    try:
        with stop, line, contextlib.closing(_parts_on(where, study, folder, missing, progress.say)) as finished:
            for item in finished if stop.signal_name is None else ():  # else it was heard while torch was loaded
                if item is not None:
                    name, record = item
                    with stop.deferred():
                        write_part(folder, name, record)
                        done[name] = record
                        line.count(len(done))
                elif stop.signal_name is not None:
                    break
    except KeyboardInterrupt:
        if stop.signal_name is None or topology == "ray":  # a second Ctrl-C
            raise
    if stop.signal_name is not None and len(done) < len(asked):
        progress.say(
            f"stopped by {stop.signal_name} with {len(done)} of {len(asked)} parts done; rerun the command to resume"
        )
        raise StudyStopped(stop.signal_name)


def _parts_on(
    where: _Where,
    study: Study,
    folder: Path,
    missing: dict[str, Settings],
    say: Callable[[str], None],
) -> Parts:
    if where.topology == "colocated":
        return colocated_parts(study, folder, missing)
    from metagrad.cluster.studies.ray_parts import ray_parts  # Ray is imported only where the topology asks for it

    return ray_parts(study, folder, missing, say, where.wait_for_resources)


def colocated_parts(study: Study, folder: Path, missing: dict[str, Settings]) -> Parts:
    """Yield the parts one after another, computed in this process, without Ray."""
    for name, settings in missing.items():
        try:
            record = execute(study.name, study.runner(folder, name), settings)
        except Exception as error:
            raise PartFailed(f"part {name} of study {study.name} failed; the finished ones are kept") from error
        yield name, record
        yield None


class _StudyStop(StopRequest):
    """Stops by interrupting what is computed, at once or at a second Ctrl-C, but never while a part is stored.

    A part that is on disk is counted: what the last lines say is what the folder holds.
    """

    def __init__(self, is_at_once: bool):
        super().__init__()
        self._is_at_once = is_at_once
        self._is_deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Note a signal within the block, and interrupt nothing."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_second = self.signal_name is not None and number == SIGINT
        self.signal_name = Signals(number).name
        if not self._is_deferred and (self._is_at_once or is_second):
            raise KeyboardInterrupt


class _ProgressLine:
    """Shows parts done, time taken and time left, at the beginning, while parts are computed, and at the end."""

    def __init__(self, progress: Progress, done: int, total: int):
        self._progress = progress
        self._done = self._done_before = done
        self._total = total
        self._started = time.monotonic()

    def __enter__(self) -> "_ProgressLine":
        self._progress.follow(self.text)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.say(self.text())

    def count(self, done: int) -> None:
        """Take note that so many parts are done now."""
        self._done = done
        if done < self._total:
            self._progress.plain(self.text())

    def text(self) -> str:
        """Return the line as of now; what is left takes as long per part as what was done since the start."""
        elapsed = time.monotonic() - self._started
        done_now = self._done - self._done_before
        left = f"about {_clock(elapsed / done_now * (self._total - self._done))}" if done_now else "-"
        return f"parts {self._done}/{self._total}  elapsed {_clock(elapsed)}  remaining {left}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
