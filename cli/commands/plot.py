"""Compare runs in one picture: `metagrad plot RUN_DIR …`."""

import dataclasses
from collections.abc import Sequence

import tyro

from metagrad.cli.options import parse
from metagrad.cluster.run.plot import plot_runs
from metagrad.errors import printable, require
from metagrad.learner.storage import lasting


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlotOptions:
    """Draw returns and learnt meta-parameters of runs. Runs that differ only in their seed share a line."""

    run_dirs: tyro.conf.Positional[tuple[str, ...]]
    """The runs' folders, paths or URLs."""
    output: str = "runs.png"
    """The picture to write, a path or a URL: .png, .pdf or .svg."""


def run(words: Sequence[str]) -> None:
    """Compare runs in one picture."""
    options = parse(PlotOptions, words, None, "metagrad plot")
    require(bool(options.run_dirs), "run-dirs", "", "metagrad plot needs at least one run's folder", "name some")
    plot_runs([lasting(run_dir) for run_dir in options.run_dirs], options.output)
    print(f"written: {printable(options.output)}")
