"""A run's folder: config.json, TensorBoard events, checkpoints/, summary.json."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.config_json import differences, from_json, to_json
from cluster.run_config import OPERATIONAL_FIELDS, BaseExperiment
from metagrad.errors import ConfigurationError, require


def write_json(path: Path, tree: Any) -> None:
    """A tree as a file, whole or not at all, also when the machine stops."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(tree, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class RunFolder:
    """Paths of a run, and the two JSON files in it."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._config = path / "config.json"
        self._summary = path / "summary.json"

    def has_run(self) -> bool:
        """True where a run was started in this folder.

        Raises:
            ConfigurationError: nobody can tell, since its name is too long, say.
        """
        with self._refusing("cannot be read"):
            return self._config.exists()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other run out of this folder, which is made if need be; the end of the process lets go of it too.

        Raises:
            ConfigurationError: another run is in it at this moment, or it cannot be made.
        """
        with self._refusing("cannot be written"):
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError(
                    f"run-dir = {str(self.path)!r}: another process is working in it; "
                    "wait until it ends, or choose another folder"
                ) from error
            except OSError:  # a file system without locks: there nobody can tell
                pass
            yield
        finally:
            os.close(descriptor)

    def open_new(self, experiment: BaseExperiment) -> None:
        """Claim the folder for a new run.

        Raises:
            ConfigurationError: it already holds a run, or cannot be written.
        """
        require(
            not self.has_run(),
            "run-dir",
            str(self.path),
            "already holds a run",
            "continue it with --resume, or choose another folder",
        )
        with self._refusing("cannot be written"):
            require(
                not self.checkpoints.exists(),
                "run-dir",
                str(self.path),
                "holds checkpoints of another run",
                "choose another folder",
            )
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self._config, to_json(experiment))

    def withdraw(self) -> None:
        """Undo `open_new`: the folder may be claimed again, and goes where nothing else is in it."""
        self._config.unlink()
        with contextlib.suppress(OSError):  # not empty: it was there before
            self.path.rmdir()

    def experiment(self) -> BaseExperiment:
        """The experiment of the run in this folder.

        Raises:
            ConfigurationError: there is none, or it cannot be read.
        """
        require(self.has_run(), "run-dir", str(self.path), "holds no run (no config.json)", "name a run's folder")
        try:
            tree = json.loads(self._config.read_text(encoding="utf-8"))
            experiment = from_json(tree)
        except ConfigurationError:
            raise
        except (OSError, ValueError, TypeError, RecursionError) as error:  # not JSON, not text, or fields missing
            raise ConfigurationError(
                f"run-dir = {str(self.path)!r}: its config.json cannot be read ({error}); restore that file"
            ) from error
        require(
            isinstance(experiment, BaseExperiment),
            "run-dir",
            str(self.path),
            "its config.json holds no experiment",
            "restore that file",
        )
        assert isinstance(experiment, BaseExperiment)
        return experiment

    def open_resumed(self, experiment: BaseExperiment) -> None:
        """Take up the run in this folder; only how it is run may differ from what it was started with.

        Raises:
            ConfigurationError: another field differs.
        """
        for field, old, new in differences(self.experiment(), experiment):
            require(
                field.partition(".")[0] in OPERATIONAL_FIELDS,
                field,
                new,
                f"the run in {self.path} was started with {old!r}, which --resume cannot change",
                "leave it out, or start another run",
            )
        with self._refusing("cannot be written"):
            write_json(self._config, to_json(experiment))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json, whole or not at all."""
        write_json(self._summary, summary)

    @contextlib.contextmanager
    def _refusing(self, rule: str) -> Iterator[None]:
        """What the operating system refuses here is refused in one line."""
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"run-dir = {str(self.path)!r}: {rule} ({error.strerror}); choose another folder"
            ) from error
