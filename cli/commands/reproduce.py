"""Compute a study of a paper and its report, or resume one: `metagrad reproduce STUDY`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from metagrad.cli.lookup import study_first
from metagrad.cli.options import parse
from metagrad.cluster.studies.reproduce import default_folder, reproduce
from metagrad.errors import require
from metagrad.learner.storage import lasting, location


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReproduceOptions:
    """Compute a study of a paper, its parts in parallel, and write its report. Rerun the command to resume."""

    seeds: int
    """Independent trials. Raising the number later reuses finished runs."""
    quick: bool = False
    """Compute a small version in minutes at most: it shows that things work, not the paper's numbers."""
    updates: int | None = None
    """Shorten the training runs of a deep study to this many updates each; None: the paper's number."""
    run_dir: str | None = None
    """The study's folder; None: studies/STUDY, with --quick studies/STUDY-quick."""
    topology: Literal["ray", "colocated"] = "ray"
    """ray: parts run as Ray tasks, on the cluster at RAY_ADDRESS if that is set; colocated: one after another in this
    process, without Ray."""
    wait_for_resources: float | None = None
    """With topology ray, how many seconds the study waits at its start for a CPU that others use; None: an hour."""


def run(words: Sequence[str]) -> None:
    """Compute one study and its report."""
    study, rest = study_first(words, "reproduce")
    options = parse(ReproduceOptions, rest, ReproduceOptions(seeds=study.seeds), f"metagrad reproduce {study.name}")
    folder = default_folder(study, options.quick)
    if options.run_dir is not None:
        named = location(lasting(options.run_dir))
        require(isinstance(named, Path), "run-dir", options.run_dir, "a study's folder is a path", "name one")
        assert isinstance(named, Path)
        folder = named
    console = Console(stderr=False)
    length, patience = options.updates, options.wait_for_resources
    reproduce(study, folder, options.seeds, options.quick, options.topology, console, length, patience)
