"""The example of docs/environments.md: a Gymnasium environment of one's own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
PATH = ROOT / "examples" / "corridor.py"


def metagrad(folder: Path, *words: str) -> None:
    """Run the command line in a process of its own, with the example imported."""
    code = "import sys; from metagrad.cli.entry import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--import", str(PATH), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr


def test_the_right_end_is_reached_by_going_right(load_example: Callable[[str], ModuleType]) -> None:
    env = load_example("corridor").corridor().env
    environment = env.make(batch_size=4, seed=0, device=torch.device("cpu"), threads=1, is_training=True)
    place = environment.reset().argmax(-1)
    assert (place < 4).all()
    steps = [environment.step(torch.ones(4, dtype=torch.int64)) for _ in range(7)]
    ends = torch.stack([step.is_terminal for step in steps]).long().argmax(0)
    assert torch.equal(ends, 6 - place)
    assert steps[int(ends[0])].raw_reward[0].item() == pytest.approx(0.99)


@pytest.mark.slow  # the same way as in test_catch
def test_the_file_is_all_that_the_command_line_needs(tmp_path: Path) -> None:
    tiny = ("--updates", "2", "--environments", "4", "--topology", "colocated", "--learner-threads", "1")
    metagrad(tmp_path, "train", "corridor", *tiny, "--rollout-length", "8", "--run-dir", "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 2
    metagrad(tmp_path, "eval", "run", "--episodes", "4")
    assert list((tmp_path / "run").glob("evaluation-*.json"))


@pytest.mark.slow
def test_it_learns_to_reach_the_end_with_actors_on_ray(tmp_path: Path) -> None:
    metagrad(tmp_path, "train", "corridor", "--updates", "300", "--run-dir", "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["return_mean"] > 0.9
