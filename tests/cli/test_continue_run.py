import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metagrad.cli import continue_run

TINY = (
    *("snake-6x6", "--env.rows", "3", "--env.columns", "3", "--environments", "4", "--rollout-length", "3"),
    *("--topology", "colocated", "--learner-threads", "1", "--log-every", "1"),
)


# The command answers signals as long as its process lasts, which here is the tests' own.
pytestmark = pytest.mark.usefixtures("signal_handlers_put_back")


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., int]:
    """(words) -> exit code of one attempt at the run in tmp_path/run."""
    return lambda *words: continue_run.run([str(tmp_path / "run"), *TINY, *words])


def test_it_begins_a_run_and_then_goes_on_with_it(attempt: Callable[..., int], tmp_path: Path) -> None:
    assert attempt("--updates", "2") == 0
    assert attempt("--updates", "4") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 4


def test_a_run_that_was_stopped_asks_for_another_attempt(tmp_path: Path, attempt: Callable[..., int]) -> None:
    assert attempt("--updates", "2") == 0
    summary = tmp_path / "run" / "summary.json"

    def stopped() -> int:
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"updates": 1}))
        return 0

    assert continue_run.run([str(tmp_path / "run"), *TINY], stopped) == continue_run.UNFINISHED == 75
    assert "--resume" in sys.argv
    assert continue_run.run([str(tmp_path / "run"), *TINY], lambda: 3) == 3


@pytest.mark.parametrize("left", [None, "update-000000001.partial"])
def test_a_run_without_a_checkpoint_begins_at_update_0(
    attempt: Callable[..., int], tmp_path: Path, left: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed before its first one, or while it wrote that."""
    folder = tmp_path / "run"
    assert attempt("--updates", "2") == 0
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    (folder / "summary.json").unlink()
    if left is None:
        (folder / "checkpoints").rmdir()
    else:
        (folder / "checkpoints" / left).write_bytes(b"PK")
    assert attempt("--updates", "3") == 0
    assert "this run has no checkpoint yet: it begins at update 0" in capsys.readouterr().out
    assert json.loads((folder / "summary.json").read_text())["updates"] == 3


def test_a_missing_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["run"], ["--import", "a.py", "run"], ["--seed", "1", "x"]):
        assert continue_run.run(words) == 2
        assert capsys.readouterr().err.startswith("metagrad: usage: metagrad-continue")


HEARD = """
import os, signal, sys
from metagrad.cli import continue_run
from metagrad.cluster.run import stop
assert "torch" not in sys.modules
continue_run.run = lambda words: os.kill(os.getpid(), signal.SIGUSR1) or int(os.environ["OMP_WAIT_POLICY"] == "PASSIVE")
sys.exit(continue_run.main())
"""


def test_it_listens_before_torch_is_loaded() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", HEARD], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
