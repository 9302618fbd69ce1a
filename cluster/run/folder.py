"""A run's folder, on a path or at a URL, holds config.json, TensorBoard events, checkpoints/ and summary.json.

A folder on a path is locked by the process that trains in it, which writes no more once another folder has taken its
place. At a URL there are no locks. A new run claims config.json, whose upload fails where one is there already. The
process that trains puts its name into holder.json; if it finds another name there, because somebody has continued the
run meanwhile, it writes no more.

The folder may be a stranger's. The user may name it by a link, but what is in it leads nowhere else: links, pipes and
devices under the names of a run's files are refused (`metagrad.learner.local_files`).
"""

import contextlib
import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metagrad.cluster.config.experiment import OPERATIONAL_FIELDS, BaseExperiment
from metagrad.cluster.config.json_form import differences, from_json, to_json
from metagrad.cluster.run.events import EVENT_FILE
from metagrad.errors import reason, refusal, refusing, require
from metagrad.learner import checkpoint, local_files
from metagrad.learner.storage import (
    CannotWrite,
    Location,
    RemotePath,
    exists,
    location,
    names,
    read_bytes,
    remove,
    write_whole,
)

_SECONDS_OF_A_WRITE = 3600.0  # evaluations write beside a run: what is older was left by a process that died


def as_bytes(tree: Any) -> bytes:
    """Encode a tree as the text of a JSON file."""
    return (json.dumps(tree, indent=2) + "\n").encode()


def write_json(path: Location, tree: Any) -> None:
    """Write a tree as a JSON file, whole or not at all, even if the machine stops.

    Raises:
        CannotWrite: the disk is full, say; what was there before stands.
    """
    write_whole(path, as_bytes(tree))


def read_json(path: Location) -> Any:
    """Read a JSON file.

    Raises:
        OSError: there is none, it is a link, a pipe or the like, or larger than any of ours.
        ValueError: it is no JSON.
        RecursionError: it is one without end.
    """
    return json.loads(read_bytes(path).decode("utf-8"))


class RunFolder:
    """Knows the places of a run, `pathlib.Path` or `RemotePath`, and reads and writes the files in it."""

    def __init__(self, path: str | Location):
        """Take `path` as a person named it.

        Raises:
            ConfigurationError: a URL with credentials in it, or one that nothing here can open.
        """
        named = location(path)
        # The user's own link, runs/latest say, is followed here and now, and no other.
        self.path = Path(os.path.realpath(named)) if isinstance(named, Path) and os.path.islink(named) else named
        self.checkpoints = self.path / "checkpoints"
        self._config = self.path / "config.json"
        self._summary = self.path / "summary.json"
        self._holder = self.path / "holder.json"
        self._id = self.path / "id.json"
        self._own_id: str | None = None

    def has_run(self) -> bool:
        """True where a run was started in this folder.

        Raises:
            ConfigurationError: nobody can tell, since its name is too long, say.
        """
        with self._refusing("cannot be read"):
            return exists(self._config)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other run out of this folder, which is made if need be, until the block or the process ends.

        Raises:
            ConfigurationError: another run is in it at this moment, or it cannot be made.
        """
        if isinstance(self.path, RemotePath):
            try:
                yield
            finally:
                self._let_go()
            return
        with contextlib.ExitStack() as files:
            with self._refusing("cannot be written"):
                made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
                try:
                    files.enter_context(local_files.held(self.path))
                    files.callback(_remove_empty, made)
                    local_files.remove_partial(self.path, _SECONDS_OF_A_WRITE)
                    self._require_kinds()
                except BlockingIOError as error:
                    remedy = "wait until it ends, or choose another folder"
                    raise refusal("run-dir", str(self.path), "another process is working in it", remedy) from error
            yield

    def _require_kinds(self) -> None:
        """Refuse now what lies in the place of a file of the run, not when that file is written."""
        if isinstance(self.path, Path):
            local_files.require_kind(self.path / self.checkpoints.name, is_folder=True)
            for place in (self._config, self._summary, self._id, *checkpoint.paths(self.checkpoints)):
                local_files.require_kind(Path(str(place)), is_folder=False)

    def has_checkpoint(self) -> bool:
        """True where a checkpoint lies in the folder, readable or not.

        Raises:
            ConfigurationError: nobody can tell.
        """
        with self._refusing("checkpoints cannot be listed"):
            return bool(checkpoint.paths(self.checkpoints))

    def open_new(self, experiment: BaseExperiment) -> None:
        """Mark the folder as that of a new run.

        Raises:
            ConfigurationError: it already holds a run, or cannot be written.
        """
        here = ("run-dir", str(self.path))
        remedy = "continue it with --resume, or choose another folder"
        require(not self.has_run(), *here, "already holds a run", remedy)
        with self._refusing("cannot be written"):
            has_others = bool(checkpoint.paths(self.checkpoints))
            require(not has_others, *here, "holds checkpoints of another run", "choose another folder")
            content = as_bytes(to_json(experiment))
            if isinstance(self._config, RemotePath):
                try:
                    self._config.write_bytes(content, is_new=True)
                except FileExistsError as error:
                    rule = "another process has begun a run in it at this moment"
                    raise refusal(*here, rule, "choose another folder") from error
            else:
                write_whole(self._config, content)
            self._take()

    def withdraw(self) -> None:
        """Undo `open_new`: the folder may be claimed again, and goes if `held` has made it."""
        remove(self._config)
        if isinstance(self.checkpoints, Path):
            with contextlib.suppress(OSError):  # not there, or not empty
                self.checkpoints.rmdir()

    def withdraw_unbegun(self) -> None:
        """Call `withdraw` if nothing came of the run: no checkpoint, no row, no summary."""
        with contextlib.suppress(OSError):  # gone, replaced or unreachable: what ended the run is what has to be told
            has_rows = any(EVENT_FILE.fullmatch(name) for name in names(self.path))
            if not has_rows and not exists(self._summary) and not checkpoint.paths(self.checkpoints):
                self.withdraw()

    def experiment(self) -> BaseExperiment:
        """Read the experiment of the run in this folder.

        Raises:
            ConfigurationError: there is none, or it cannot be read.
        """
        require(
            self.has_run(), "run-dir", str(self.path), "does not hold a run (no config.json)", "name a run's folder"
        )
        kinds = (OSError, ValueError, TypeError, ArithmeticError, RecursionError)  # no text, fields missing, …
        rule, remedy = "its config.json cannot be read", "restore that file"
        with refusing(*kinds, field="run-dir", value=str(self.path), rule=rule, remedy=remedy):
            experiment = from_json(read_json(self._config))
        is_one = isinstance(experiment, BaseExperiment)
        require(is_one, "run-dir", str(self.path), "its config.json does not hold an experiment", remedy)
        assert isinstance(experiment, BaseExperiment)
        return experiment

    def require_same(self, experiment: BaseExperiment) -> None:
        """Refuse an experiment that differs from the run in this folder in more than how it is run.

        Raises:
            ConfigurationError: another field differs.
        """
        for field, old, new in differences(self.experiment(), experiment):
            is_operational = field.partition(".")[0] in OPERATIONAL_FIELDS
            rule = f"the run in {self.path} was started with {old!r}, which --resume cannot change"
            require(is_operational, field, new, rule, "leave it out, or start another run")

    def open_resumed(self, experiment: BaseExperiment) -> None:
        """Continue the run in this folder.

        Raises:
            ConfigurationError: `require_same`, or it cannot be written.
        """
        self.require_same(experiment)
        with self._refusing("cannot be written"):
            write_json(self._config, to_json(experiment))
            self._take()

    def run_id(self) -> str:
        """Return a name that no other run has, for tools that keep many; the first call makes it.

        Raises:
            CannotWrite: the disk is full, say.
            OSError: it cannot be read.
            ValueError: the file holds none.
        """
        if not exists(self._id):
            write_json(self._id, {"id": uuid.uuid4().hex[:16]})
        found = read_json(self._id)
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise ValueError(f"{self._id} holds no id")
        return str(found["id"])

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, whole or not at all.

        Raises:
            CannotWrite: the disk is full, say, or another process has taken the run over.
        """
        self._require_own()
        write_json(self._summary, summary)

    def write_checkpoint(self, update: int, tree: dict[str, Any], keep: int) -> None:
        """Write the checkpoint of an update, whole or not at all, and keep the newest `keep`.

        Raises:
            CannotWrite: the disk is full, say, or another process has taken the run over; the others stand.
        """
        self._require_own()
        checkpoint.save(self.checkpoints, update, tree, keep)

    def _take(self) -> None:
        """Put this process's name into the folder at a URL."""
        if isinstance(self._holder, RemotePath):
            self._own_id = uuid.uuid4().hex
            since = time.strftime("%Y-%m-%d %H:%M:%S%z")
            holder = {"id": self._own_id, "host": socket.gethostname(), "process": os.getpid(), "since": since}
            write_json(self._holder, holder)

    def _let_go(self) -> None:
        if self._own_id is not None and self._other_holder() is None:
            with contextlib.suppress(OSError):  # the run is over: a name that is left says nothing wrong
                remove(self._holder)

    def _other_holder(self) -> str | None:
        """Name the process that has this run at a URL, unless it is this one."""
        try:
            holder = read_json(self._holder)
            if holder["id"] == self._own_id:
                return None
            return f"process {holder['process']} on {holder['host']} continues this run since {holder['since']}"
        except FileNotFoundError:
            return "another process has continued this run and ended"
        except (OSError, ValueError, TypeError, KeyError) as error:
            return f"holder.json cannot be read: {reason(error)}"

    def _require_own(self) -> None:
        if self._own_id is None:  # on a path, where the lock says it
            return
        other = self._other_holder()
        if other is not None:
            raise CannotWrite(errno.EBUSY, other, str(self.path))

    def _refusing(self, rule: str) -> contextlib.AbstractContextManager[None]:
        return refusing(OSError, field="run-dir", value=str(self.path), rule=rule, remedy="choose another folder")


def _remove_empty(folders: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):  # something is in it, as it should be
        for folder in folders:
            folder.rmdir()
