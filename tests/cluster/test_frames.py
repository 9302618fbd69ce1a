"""Counts our own frames between `metagrad train` and `inner_update`: the path of a run stays short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Imported with --import by the driver, and by the learner's process with the experiment.
WATCHING = """
import json, traceback
from dataclasses import dataclass, fields
from pathlib import Path
import ray
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.learner import actor_critic

OUT, ROOT = Path({out!r}), Path({root!r})

def record(name, innermost=()):
    places = [(Path(frame.filename).resolve(), frame.name) for frame in traceback.extract_stack()]
    parts = "actors", "cli", "cluster", "experiments", "learner", "metagrad"
    ours = [(str(path.relative_to(ROOT)), function) for path, function in places
            if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in parts]
    if name != "wait" or ours[-1:][0][0] == "cluster/launch/supervise.py":
        (OUT / name).write_text(json.dumps([*ours, *innermost]))

update, wait = actor_critic.inner_update, ray.wait

def inner_update(*args, **named):
    record("update", [("metagrad/unroll.py", "inner_update")])
    return update(*args, **named)

def watched_wait(*args, **named):
    record("wait")
    return wait(*args, **named)

actor_critic.inner_update, ray.wait = inner_update, watched_wait

@dataclass(frozen=True, kw_only=True, slots=True)
class WatchedExperiment(Experiment):
    pass

def watched():
    base = snake_6x6()
    values = {{field.name: getattr(base, field.name) for field in fields(base)}}
    return WatchedExperiment(**values | dict(name="watched", env=SnakeConfig(rows=4, columns=4)))

EXPERIMENTS = {{"watched": watched}}
"""


def frames(folder: Path, topology: str) -> dict[str, list[str]]:
    """Our frames at the last `inner_update`, and at the driver's last wait for its learner, outermost first."""
    (folder / "watching.py").write_text(WATCHING.format(out=str(folder), root=str(ROOT)))
    program = "import sys; from metagrad.cli.entry import main; sys.exit(main())"
    words = ["--import", "watching.py", "train", "watched", "--topology", topology, "--updates", "2"]
    small = ["--environments", "4", "--rollout-length", "3", "--actors", "1", "--run-dir", "run"]
    command = [sys.executable, "-c", program, *words, *small]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    found = {name: folder / name for name in ("wait", "update")}
    return {
        name: [": ".join(frame) for frame in json.loads(path.read_text())]
        for name, path in found.items()
        if path.exists()
    }


def test_six_frames_lead_to_an_inner_update_colocated(tmp_path: Path) -> None:
    found = frames(tmp_path, "colocated")
    assert found.keys() == {"update"}
    path = found["update"]
    assert path[0] == "cli/entry.py: main"
    assert path[-1] == "metagrad/unroll.py: inner_update"
    assert len(path) <= 6, path


@pytest.mark.timeout(240)
def test_eight_frames_lead_to_an_inner_update_on_ray(tmp_path: Path) -> None:
    """The driver's, down to where it waits for the learner, and those of the learner's process."""
    found = frames(tmp_path, "ray")
    driver, learner = found["wait"], found["update"]
    assert driver[0] == "cli/entry.py: main"
    assert learner[0] == "cluster/on_ray/learner_process.py: run"
    assert learner[-1] == "metagrad/unroll.py: inner_update"
    assert len(driver) + len(learner) <= 8, (driver, learner)
