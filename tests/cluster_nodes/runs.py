"""A training run on the cluster: how far it is, what it said, how long it paused, whether its account balances."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from ray_nodes import Job, RayNodes, wait_until

PACED = Path(__file__).with_name("paced.py")


def metagrad(command: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """`metagrad COMMAND EXPERIMENT …`; where the words begin with an option, of `paced-snake`."""
    is_named = not words[0].startswith("-")
    return (
        ("metagrad", command, *words)
        if is_named
        else ("metagrad", "--import", str(PACED), command, "paced-snake", *words)
    )


def train(nodes: RayNodes, folder: Path, words: tuple[str, ...]) -> "Run":
    """`ray job submit -- metagrad train …`, with a run folder in `folder`."""
    run_dir = folder / "run"
    return Run(run_dir, nodes.submit(*metagrad("train", words), "--run-dir", str(run_dir), folder=folder))


def newest_update(run_dir: Path) -> int:
    """Updates of the newest checkpoint; 0: there is none."""
    found = [re.search(r"\d+", path.stem) for path in run_dir.glob("checkpoints/*.pt")]
    return max((int(match.group()) for match in found if match), default=0)


class Run:
    """A job that trains, its run folder on storage that all nodes share."""

    def __init__(self, folder: Path, job: Job):
        self.folder = folder
        self.job = job

    @property
    def updates(self) -> int:
        """Those of the newest checkpoint."""
        return newest_update(self.folder)

    def wait_for_updates(self, updates: int, seconds: float = 300.0) -> None:
        def is_there() -> bool:
            assert self.job.status not in ("FAILED", "STOPPED"), self.job.output
            return self.updates >= updates

        wait_until(is_there, seconds, lambda: f"{updates} updates\n{self.job.output}")

    def finish(self, seconds: float = 600.0) -> dict[str, Any]:
        """summary.json of a run that did all of its updates, its account checked."""
        status = self.job.wait(seconds)
        assert status == "SUCCEEDED", self.job.output
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        config = json.loads((self.folder / "config.json").read_text())
        assert summary["updates"] == config["updates"], summary
        assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"], summary
        assert min(summary["consumed"], summary["dropped"], summary["in_flight"]) >= 0, summary
        assert summary["dropped"] == sum(summary["dropped_reasons"].values()), summary
        return summary

    def pause_after(self, moment: float) -> float:
        """Longest time between two rows of scalars, of which the second was written after a moment (Unix time)."""
        times = sorted(self._times())
        assert times[-1] > moment, "nothing was written since"
        return max(after - before for before, after in itertools.pairwise(times) if after > moment)

    def _times(self) -> set[float]:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        return {
            event.wall_time
            for path in self.folder.glob("events.*")
            for event in EventFileLoader(str(path)).Load()
            if event.summary.value
        }

    def seconds_away(self) -> list[float]:
        """Of every actor that was lost and rolls out again, in the order in which they came back."""
        return [float(x) for x in re.findall(r"rolls out again after ([\d.]+) s", self.job.output)]
