"""metagrad submit, status, logs and stop from a computer that is no node."""

import json
import re
from pathlib import Path

import pytest
from ray_nodes import RayNodes
from runs import Run, metagrad

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

SNAKE = ("snake-6x6", "--env.rows", "4", "--env.columns", "4", "--environments", "8", "--updates", "200")
PONG = ("atari", "--env.game", "Pong", "--environments", "4", "--rollout-length", "5", "--updates", "12")


def submit(nodes: RayNodes, folder: Path, *words: str) -> Run:
    """`metagrad submit` of files from an empty folder."""
    travels = folder / "working-dir"
    travels.mkdir()
    where = ("--address", nodes.dashboard, "--run-dir", str(folder / "run"), "--working-dir", str(travels))
    code, output = nodes.command(*metagrad("submit", words), *where, folder=folder)
    assert code == 0, output
    found = re.search(r"^submitted: (\S+)$", output, re.MULTILINE)
    assert found, output
    return Run(folder / "run", nodes.job(found[1]))


@pytest.mark.parametrize("words", [SNAKE, PONG], ids=["snake", "pong"])
def test_a_submitted_run_uses_all_nodes(nodes: RayNodes, tmp_path: Path, words: tuple[str, ...]) -> None:
    run = submit(nodes, tmp_path, *words, "--actors", "4", "--checkpoint.every", "4", "--learner-threads", "1")
    run.wait_for_updates(4)
    where = set(nodes.workers("RolloutActor").values())
    assert run.finish()["actors_restarted"] == 0
    assert {"worker-1", "worker-2"} <= where
    code, log = nodes.command("metagrad", "logs", run.job.name, "--address", nodes.dashboard, folder=tmp_path)
    assert code == 0
    assert f"run folder: {run.folder}" in log


def test_a_stopped_run_has_its_checkpoint_and_goes_on(nodes: RayNodes, tmp_path: Path) -> None:
    """The file that it imports travels with it."""
    run = submit(nodes, tmp_path, "--updates", "100000")
    run.wait_for_updates(20)
    _, listed = nodes.command("metagrad", "status", "--address", nodes.dashboard, folder=tmp_path)
    assert re.search(rf"^{re.escape(run.job.name)} +paced-snake +RUNNING", listed, re.MULTILINE), listed
    code, said = nodes.command("metagrad", "stop", run.job.name, "--address", nodes.dashboard, folder=tmp_path)
    assert code == 0, said
    stopped = json.loads((run.folder / "summary.json").read_text())
    assert stopped["stopped_by"] == "SIGTERM"
    assert run.updates == stopped["updates"]

    (tmp_path / "again").mkdir()
    words = ("--resume", "--updates", str(stopped["updates"] + 20), "--run-dir", str(run.folder), "--follow")
    travels = ("--working-dir", str(tmp_path / "again"), "--address", nodes.dashboard)
    code, said = nodes.command(*metagrad("submit", words), *travels, folder=tmp_path)
    assert code == 0, said
    assert f"at update {stopped['updates']}" in said
    assert json.loads((run.folder / "summary.json").read_text())["updates"] == stopped["updates"] + 20


@pytest.mark.parametrize(
    ("port", "token", "complaint"),
    [("8265", "another" * 6, "refuses the token"), ("1", "", "nothing answers there")],
    ids=["wrong token", "nothing there"],
)
def test_what_cannot_be_submitted_is_one_line(
    nodes: RayNodes, tmp_path: Path, port: str, token: str, complaint: str
) -> None:
    address = ("--address", nodes.dashboard.replace("8265", port))
    environment = {"RAY_AUTH_TOKEN": token or nodes.token}
    words = ("metagrad", "submit", *SNAKE, *address, "--working-dir", ".")
    code, output = nodes.command(*words, folder=tmp_path, **environment)
    assert code == 2, output
    assert complaint in output
    assert len(output.splitlines()) == 1, output
