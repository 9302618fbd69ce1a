"""Tables and figures of the study `snake-6x6`, beside the data that the authors of the paper released."""

from pathlib import Path

from cluster.studies import Result, Settings

EPOCH = 146  # updates between two evaluations (release)


def report(folder: Path, parts: dict[str, tuple[Settings, Result]], is_quick: bool) -> None:
    """Pictures and report.md."""
