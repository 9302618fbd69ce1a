"""Nodes lost and added where there are no namespaces: all at one address, so without partitions and byte counts."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import BIN, ROOT, wait_until
from runs import metagrad, newest_update

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

TOKEN = "of-this-test-alone-" + "0" * 32


class Bed:
    """The program of light_bed.py."""

    def __init__(self, environment: dict[str, str], complaints: Path):
        with complaints.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("light_bed.py"))],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.address = self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)
        assert self._answer() == "done"

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=120)
        self.process.stdout.close()


@pytest.fixture
def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    return kept | token | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def bed(environment: dict[str, str], tmp_path: Path) -> Iterator[Bed]:
    there = Bed(environment, tmp_path / "bed.txt")
    yield there
    there.close()


def test_a_run_survives_a_lost_node_and_uses_a_new_one(bed: Bed, environment: dict[str, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    options = ("--updates", "300", "--schedule", "peek", "--learner-restarts", "2", "--run-dir", str(run_dir))
    words = metagrad("train", options)
    with (tmp_path / "output.txt").open("wb") as file:
        run = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            cwd=tmp_path,
            env=environment | {"RAY_ADDRESS": bed.address},
            stdout=file,
            stderr=subprocess.STDOUT,
        )

    def output() -> str:
        return (tmp_path / "output.txt").read_text()

    try:
        wait_until(lambda: newest_update(run_dir) >= 20 or run.poll() is not None, 300, output)
        bed.tell("remove")
        bed.tell("add")
        assert run.wait(timeout=400) == 0, output()
    finally:
        run.kill()
        run.wait(timeout=60)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["updates"] == 300
    assert summary["sampled"] == summary["consumed"] + summary["dropped"] + summary["in_flight"]
    assert summary["actors_restarted"] >= 1
    assert "rolls out again after" in output()
