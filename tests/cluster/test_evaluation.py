import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from metagrad.cli.main import main
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.plot import logged_scalars
from metagrad.errors import ConfigurationError
from metagrad.learner.checkpoint import paths
from metagrad.learner.storage import Location, location

Tiny = Callable[..., Experiment]


def test_a_run_at_a_url_is_continued_played_and_recorded(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Callable[[Location], object]
) -> None:
    url = f"memory://{tmp_path}/at-a-url"
    every = CheckpointConfig(every=2, keep=3)
    run(tiny(updates=8, checkpoint=every), tmp_path / "whole", False, console)
    run(tiny(updates=4, checkpoint=every), url, False, console)
    summary = run(tiny(updates=8, checkpoint=every), url, True, console)
    assert summary["updates"] == 8
    assert learner_of(location(url)) == learner_of(tmp_path / "whole")
    here, there = (logged_scalars(place)["episode/return_mean"] for place in (tmp_path / "whole", url))
    np.testing.assert_array_equal(here, there)
    evaluate_run(url, 6, 3, 0, False, True)
    folder = location(url)
    report = json.loads((folder / "evaluation-000000006-sampled-seed0.json").read_text())
    assert (report["update"], len(report["returns"])) == (6, 3)
    assert (folder / "episode-000000006-sampled-seed0.gif").read_bytes()[:4] == b"GIF8"
    assert f"run folder: {url}" in console.file.getvalue()  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match=r"^run-dir = 'memory://.*': already holds a run"):
        run(tiny(updates=4), url, False, console)


@pytest.fixture
def run_dir(tiny: Tiny, console: Console, tmp_path: Path) -> Path:
    run(tiny(updates=4, checkpoint=CheckpointConfig(every=2, keep=3)), tmp_path / "run", False, console)
    return tmp_path / "run"


def test_the_same_seed_plays_the_same_episodes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def play(seed: int, is_greedy: bool) -> dict[str, object]:
        evaluate_run(run_dir, None, 5, seed, is_greedy, False)
        kind = "greedy" if is_greedy else "sampled"
        report: dict[str, object] = json.loads((run_dir / f"evaluation-000000004-{kind}-seed{seed}.json").read_text())
        return report

    first = play(0, False)
    assert play(0, False) == first
    assert play(1, False)["returns"] != first["returns"] or play(1, False)["lengths"] != first["lengths"]
    assert len(first["returns"]) == len(first["lengths"]) == 5  # type: ignore[arg-type]
    assert (first["update"], first["policy"], first["seed"]) == (4, "sampled", 0)
    assert play(0, True)["policy"] == "greedy"
    assert "over 5 episodes" in capsys.readouterr().out


def test_any_kept_checkpoint_can_be_played_and_recorded(run_dir: Path) -> None:
    evaluate_run(run_dir, 2, 3, 0, False, True)
    assert (run_dir / "evaluation-000000002-sampled-seed0.json").exists()
    assert (run_dir / "episode-000000002-sampled-seed0.gif").read_bytes()[:4] == b"GIF8"


def test_a_broken_newest_checkpoint_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths(run_dir / "checkpoints")[-1].write_bytes(b"")
    evaluate_run(run_dir, None, 2, 0, False, False)
    assert "checkpoint unreadable, using update-000000002.pt instead" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("update", "episodes", "seed", "field"), [(3, 5, 0, "update"), (None, 0, 0, "episodes"), (None, 5, -1, "seed")]
)
def test_wrong_values_are_refused(run_dir: Path, update: int | None, episodes: int, seed: int, field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = "):
        evaluate_run(run_dir, update, episodes, seed, False, False)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not hold a run"):
        evaluate_run(tmp_path, None, 5, 0, False, False)


def test_one_broken_checkpoint_that_was_asked_for_is_refused(run_dir: Path) -> None:
    paths(run_dir / "checkpoints")[0].write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"^update = 2: .*cannot be read"):
        evaluate_run(run_dir, 2, 5, 0, False, False)


@pytest.mark.parametrize("played", ["evaluate", "record"])
def test_a_signal_ends_an_evaluation_in_one_line(
    run_dir: Path, played: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def endless(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(f"metagrad.cluster.run.evaluation.{played}", endless)
    assert main(["eval", str(run_dir), "--episodes", "2", "--record"]) == 143
    assert capsys.readouterr().err == "metagrad: stopped by SIGTERM; nothing is left half written\n"
    assert not list(run_dir.glob("*.gif"))
