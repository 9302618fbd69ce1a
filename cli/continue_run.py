"""`metagrad-continue` begins a training run or resumes it, with the same command for every attempt of a scheduler.

    metagrad-continue [--import FILE.py …] RUN_DIR EXPERIMENT [--field value …]

is `metagrad train EXPERIMENT --run-dir RUN_DIR …`, with `--resume` where the folder holds a run, which one that was
ended before its first checkpoint begins at update 0. RUN_DIR is a path or, as for metagrad itself, a URL.

Exit codes are metagrad's, and 75 ("try again", EX_TEMPFAIL) for a run that was stopped in good order before its last
update: a scheduler that looks at exit codes would take metagrad's 0 for the end of the work.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from metagrad.cli.entry import main as metagrad
from metagrad.cluster.run.stop import StopRequest
from metagrad.errors import ConfigurationError

if TYPE_CHECKING:
    from metagrad.cluster.run.folder import RunFolder

UNFINISHED = 75


def split(words: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Split the words into options before the folder, the folder, and the experiment with its options.

    Raises:
        ConfigurationError: a word is missing.
    """
    before = 0
    while words[before : before + 1] == ["--import"]:
        before += 2
    if len(words) < before + 2 or words[before].startswith("-"):
        raise ConfigurationError("usage: metagrad-continue [--import FILE.py …] RUN_DIR EXPERIMENT [--field value …]")
    return list(words[:before]), words[before], list(words[before + 1 :])


def command(words: Sequence[str], folder: "RunFolder") -> list[str]:
    """Return the arguments of metagrad for the next attempt."""
    before, run_dir, experiment = split(words)
    resume = ["--resume"] if folder.has_run() else []
    return [*before, "train", *experiment, "--run-dir", run_dir, *resume]


def is_finished(folder: "RunFolder") -> bool:
    """True where the summary says that the last update was made."""
    from metagrad.cluster.run.folder import read_json

    summary = read_json(folder.path / "summary.json")
    return bool(summary["updates"] >= folder.experiment().updates)


def run(words: Sequence[str], train: Callable[[], int] = metagrad) -> int:
    """Make one attempt and return its exit code."""
    from metagrad.cluster.run.folder import RunFolder  # loads torch

    try:
        folder = RunFolder(split(words)[1])
        sys.argv = ["metagrad", *command(words, folder)]
    except ConfigurationError as error:
        print(f"metagrad: {error}", file=sys.stderr)
        return 2
    code = train()
    return UNFINISHED if code == 0 and not is_finished(folder) else code


def main() -> int:
    """Run the command; it listens for signals before torch is loaded, since a scheduler may warn that early."""
    StopRequest().__enter__()  # for the rest of the process
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run(sys.argv[1:])
