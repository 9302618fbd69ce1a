"""Logging with Trackio without a network, read back by its own command line; needs the extra `trackio`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trackio")

from metagrad.cluster.run.plot import logged_scalars
from metagrad.cluster.run.trackio_log import PROJECT

TINY = (
    *("train", "snake-6x6", "--env.rows", "3", "--env.columns", "3", "--environments", "4", "--rollout-length", "3"),
    *("--topology", "colocated", "--learner-threads", "1", "--log-every", "2", "--checkpoint.every", "2"),
    *("--evaluation.every", "3", "--evaluation.episodes", "2", "--evaluation.is-shown", "--run-dir", "run"),
)
NO_NETWORK = """
import socket

def refuse(*arguments):
    raise AssertionError(f"connects to {arguments[1:]}")

socket.socket.connect = refuse
"""


def run(folder: Path, *words: str, prelude: str = NO_NETWORK, place: str = "kept") -> str:
    """Run Python of its own that may not connect anywhere."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("TRACKIO_")}
    done = subprocess.run(
        [sys.executable, "-c", prelude, *words],
        cwd=folder,
        env=variables | {"TRACKIO_DIR": str(folder / place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metagrad(folder: Path, *words: str, **place: str) -> str:
    return run(
        folder,
        *words,
        prelude=f"{NO_NETWORK}\nimport sys\nfrom metagrad.cli.entry import main\nsys.exit(main())",
        **place,
    )


def asked(folder: Path, *words: str) -> Any:
    """Return what `trackio WORDS --json` prints."""
    return json.loads(run(folder, *words, "--json", prelude="from trackio.cli import main; main()"))


@pytest.mark.slow
def test_it_holds_what_the_event_files_hold(tmp_path: Path) -> None:
    printed = metagrad(tmp_path, *TINY, "--updates", "4", "--log", "trackio")
    printed += metagrad(tmp_path, "train", "snake-6x6", "--run-dir", "run", "--resume", "--updates", "6")
    assert "trackio" not in printed.lower(), "neither advice nor warnings"
    (name,) = asked(tmp_path, "list", "runs", "--project", PROJECT)["runs"]
    assert re.fullmatch(r"run-[0-9a-f]{16}", name)
    config = asked(tmp_path, "get", "run", "--project", PROJECT, "--run", name)["config"]
    assert config["environments"] == 4
    logged = logged_scalars(tmp_path / "run")
    assert len(logged) > 20
    for scalar in ("eta/gamma", "loss/inner", "evaluation/return_mean"):
        steps, values = logged[scalar]
        words = ("get", "metric", "--project", PROJECT, "--run", name, "--metric", scalar)
        found = {row["step"]: row["value"] for row in asked(tmp_path, *words)["values"]}
        assert found == pytest.approx(dict(zip(steps.tolist(), values.tolist(), strict=True)), rel=1e-6)
    metrics = asked(tmp_path, "list", "metrics", "--project", PROJECT, "--run", name)["metrics"]
    assert set(logged) <= set(metrics)
    assert [path.read_bytes()[:4] for path in (tmp_path / "kept").rglob("*.gif")] == [b"GIF8"] * 2


@pytest.mark.slow
def test_a_run_that_trackio_fails_in_says_so_once_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("no folder")
    printed = metagrad(tmp_path, *TINY, "--updates", "4", "--log", "trackio")
    assert len(re.findall(r"--log trackio failed \(\w+: .*\); the run goes on without it", printed)) == 1
    assert logged_scalars(tmp_path / "run")["eta/gamma"][0].tolist() == [2, 4]
