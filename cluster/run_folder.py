"""A run's folder: config.json, TensorBoard events, checkpoints/, summary.json."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from cluster.config import OPERATIONAL_FIELDS, Experiment, differences, from_json, to_json
from metagrad.errors import ConfigurationError, require


class RunFolder:
    """Paths of a run, and the two JSON files in it."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._config = path / "config.json"
        self._summary = path / "summary.json"

    def has_run(self) -> bool:
        """True where a run was started in this folder."""
        return self._config.exists()

    def open_new(self, experiment: Experiment) -> None:
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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write(self._config, to_json(experiment))
        except OSError as error:
            raise ConfigurationError(
                f"run-dir = {str(self.path)!r}: cannot be written ({error.strerror}); choose another folder"
            ) from error

    def withdraw(self) -> None:
        """Undo `open_new`: the folder may be claimed again, and goes where nothing else is in it."""
        self._config.unlink()
        with contextlib.suppress(OSError):  # not empty: it was there before
            self.path.rmdir()

    def experiment(self) -> Experiment:
        """The experiment of the run in this folder.

        Raises:
            ConfigurationError: there is none, or it cannot be read.
        """
        require(self.has_run(), "run-dir", str(self.path), "holds no run (no config.json)", "name a run's folder")
        try:
            experiment = from_json(json.loads(self._config.read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigurationError(
                f"run-dir = {str(self.path)!r}: its config.json cannot be read ({error}); restore that file"
            ) from error
        require(
            isinstance(experiment, Experiment),
            "run-dir",
            str(self.path),
            "its config.json holds no experiment",
            "restore that file",
        )
        assert isinstance(experiment, Experiment)
        return experiment

    def open_resumed(self, experiment: Experiment) -> None:
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
        self._write(self._config, to_json(experiment))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json, whole or not at all."""
        self._write(self._summary, summary)

    @staticmethod
    def _write(path: Path, tree: Any) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(tree, indent=2) + "\n")
        os.replace(partial, path)
