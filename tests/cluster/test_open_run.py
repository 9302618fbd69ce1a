"""Checks what `metagrad train` does around a run; test_launch.py and test_lifecycle.py have the run itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.launch.open_run import opened_run
from metagrad.errors import ConfigurationError, RunLost
from metagrad.learner.checkpoint import paths

Tiny = Callable[..., Experiment]


def test_another_life_goes_on_from_the_newest_checkpoint(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    run(tiny(updates=2), tmp_path, False, console)
    with opened_run(tiny(updates=4), tmp_path, True, console) as this_run:
        assert this_run.checkpoint is not None
        newest = this_run.newest_checkpoint()
        assert newest is not None
        assert newest["learner"]["update"] == this_run.checkpoint["learner"]["update"] == 2
        this_run.summary = {"updates": 2}


def test_a_life_before_the_first_checkpoint_is_followed_by_a_fresh_one(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    with opened_run(tiny(), tmp_path, False, console) as this_run:
        assert this_run.newest_checkpoint() is None
        this_run.summary = {"updates": 0}


def test_a_learner_whose_checkpoints_cannot_be_read_is_lost_and_not_refused(
    tiny: Tiny, console: Console, tmp_path: Path
) -> None:
    """Exit code 1, a fault at run time; at the beginning of a command the same is a refusal, exit code 2."""
    run(tiny(updates=2), tmp_path, False, console)
    lost = pytest.raises(RunLost, match=r"^the learner's process was lost and cannot go on: .*no readable checkpoint")
    with lost, opened_run(tiny(updates=4), tmp_path, True, console) as this_run:
        for path in paths(tmp_path / "checkpoints"):
            path.write_bytes(b"")
        this_run.newest_checkpoint()
    with pytest.raises(ConfigurationError), opened_run(tiny(updates=4), tmp_path, True, console):
        pass


def test_the_summary_of_a_failed_run_is_written(tiny: Tiny, console: Console, tmp_path: Path) -> None:
    def failing() -> None:
        with opened_run(tiny(), tmp_path, False, console) as this_run:
            this_run.summary = {"updates": 1}
            raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        failing()
    assert (tmp_path / "summary.json").read_text().split() == ["{", '"updates":', "1", "}"]
