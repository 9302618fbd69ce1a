"""A study consists of many independent computations (parts), kept as they finish, and makes a report of them all.

Study ─► parts(seeds) ─► run_part(settings), one CPU each ─► FOLDER/parts/NAME.json ─► results.json ─► report.md, PNGs

A study that was interrupted continues from the parts that are there: they are deterministic in their settings.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from metagrad.cluster.run.provenance import provenance
from metagrad.cluster.studies.folder import Record, Result, Settings, as_json

__all__ = ["PartFailed", "Parts", "Record", "Result", "Settings", "Study", "execute"]

Parts = Generator[tuple[str, Record] | None, None, None]  # what just finished; None: nothing new, look around


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Describes one study of a paper: its parts, what computes one of them, and what makes a report of all."""

    name: str
    description: str
    """One line, for `metagrad list`."""
    seeds: int
    """The paper's number of independent trials; what `--seeds` is unless given."""
    parts: Callable[..., dict[str, Settings]]
    """(seeds, is_quick) -> file-name-safe part name -> settings (a JSON tree); more seeds add parts, change none."""
    updates: int | None = None
    """Length of the training runs in it, where `--updates` may shorten them; `parts` then takes it third."""
    run_part: Callable[..., Result]
    """(settings) -> JSON tree: a top-level function, deterministic in its settings, run alone on one CPU and thread."""
    keeps_work: bool = False
    """True: run_part takes (settings, folder), and continues with the unfinished work that it left in this folder."""
    report: Callable[[Path, dict[str, tuple[Settings, Result]], bool], None]
    """(folder, part name -> (settings, result), is_quick): writes pictures and report.md into the folder."""

    def runner(self, folder: Path, part: str) -> Callable[[Settings], Result]:
        """Return the function that computes one part of the study in `folder`, from its settings alone."""
        if not self.keeps_work:
            return self.run_part
        return partial(self.run_part, folder=folder.absolute() / "work" / part)


class PartFailed(RuntimeError):
    """A part raised (its own error is the cause) or its worker kept dying."""


def execute(study: str, run_part: Callable[[Settings], Result], settings: Settings) -> Record:
    """Run one part on one thread; neither the number of threads, nor random numbers, nor torch's default type leak."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    origin, started = provenance(), time.monotonic()  # of the code as it was when the part began
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            result = as_json(run_part(settings))
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    origin |= {"wall_seconds": round(time.monotonic() - started, 3)}
    return {"study": study, "settings": settings, "result": result, "provenance": origin}
