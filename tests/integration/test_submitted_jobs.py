"""A real head with token authentication, and the commands as people run them, each in a process of its own."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

PROGRAMS = Path(sys.executable).parent
TINY = (
    *("--env.rows", "3", "--env.columns", "3", "--environments", "4", "--rollout-length", "3"),
    *("--learner-threads", "1", "--log-every", "1"),
)
CORRIDOR = """\
from dataclasses import replace
from metagrad.experiments import EXPERIMENTS as OURS
EXPERIMENTS = {"mine": lambda: replace(OURS["demo"](), name="mine", description="Mine", updates=3)}
"""


class Head(NamedTuple):
    """A cluster of one node."""

    url: str
    token: str
    home: Path
    """Of the node's user; where run folders lie by default."""
    environment: dict[str, str]
    """Of somebody who has the token."""

    def __call__(self, *words: str, program: str = "metagrad", **environment: str) -> tuple[int, str, str]:
        """Exit code, output, complaints."""
        done = subprocess.run(
            [str(PROGRAMS / program), *words],
            cwd=self.home / "work",
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert self.token not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Ends with its own process group, and touches no other Ray of this machine."""
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("ray-client-server-port", "runtime-env-agent-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with tempfile.TemporaryDirectory(prefix="mg", ignore_cleanup_errors=True) as short:  # names of sockets are limited
        home = Path(short)
        (home / "work").mkdir()
        (home / "token").write_text(secrets.token_hex(16))
        inherited = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_")}
        environment = inherited | {
            "HOME": str(home),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(home / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        words = [f"--{name}={port}" for name, port in ports.items()]
        words += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=4", f"--temp-dir={home / 'ray'}"]
        words += ["--object-store-memory=200000000", "--include-dashboard=true", "--block"]
        process = subprocess.Popen(
            [str(PROGRAMS / "ray"), "start", "--head", *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{ports['dashboard-port']}"
        try:
            head = Head(url, (home / "token").read_text(), home, environment | {"RAY_API_SERVER_ADDRESS": url})
            wait_for(lambda: head("status")[0] == 0, "the head does not answer")
            yield head
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(is_so, complaint: str, seconds: float = 120.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, complaint
        time.sleep(1)


def test_without_the_right_token_nothing_is_done_and_one_line_says_so(head: Head) -> None:
    (head.home / "wrong").write_text(secrets.token_hex(16))
    wrong = {"RAY_AUTH_TOKEN_PATH": str(head.home / "wrong")}
    for words, variables, expected in (
        (("status",), {"RAY_AUTH_MODE": "disabled"}, "the cluster asks for a token, and none is sent; "),
        (("logs", "x"), {"RAY_AUTH_TOKEN_PATH": str(head.home / "none")}, "there is no token here; "),
        (("stop", "x"), wrong, "the cluster refuses the token that is used here; "),
        (("submit", "demo"), wrong, "the cluster refuses the token that is used here; "),
        (("submit", "demo", "--address", "http://127.0.0.1:9"), {}, "nothing answers there; "),
    ):
        code, out, complaint = head(*words, **variables)
        assert (code, out) == (2, "")
        assert complaint.startswith("metagrad: ")
        assert expected in complaint
        assert len(complaint.splitlines()) == 1
    assert head("status") == (0, "no training jobs on this cluster\n", "")


def test_a_job_is_followed_to_its_end_with_a_file_of_ones_own(head: Head) -> None:
    (head.home / "mine.py").write_text(CORRIDOR)
    words = ("--import", "../mine.py", "submit", "mine", *TINY, "--submission-id", "followed", "--follow")
    code, out, complaint = head(*words)
    assert (code, complaint) == (0, "")
    assert "\nupdate 3/3 " in out
    assert "\n3 updates, 36 real frames in " in out
    summary = json.loads((head.home / "metagrad-runs" / "followed" / "summary.json").read_text())
    assert (summary["experiment"], summary["updates"]) == ("mine", 3)
    assert head("logs", "followed")[1] in out
    code, out, complaint = head("submit", "demo", *TINY, "--submission-id", "followed")
    assert (code, out) == (2, "")
    assert "submission-id = 'followed': is the id of another job" in complaint


def test_a_job_that_fails_gives_its_exit_code(head: Head) -> None:
    place = str(head.home / "token")  # a file, where no folder can be
    code, out, complaint = head("submit", "demo", *TINY, "--updates", "1", "--run-dir", place, "--follow")
    assert code == 2
    assert "metagrad: run-dir = " in out
    assert complaint.startswith("metagrad: job demo-")


def test_a_job_is_stopped_with_a_checkpoint_and_continued(head: Head) -> None:
    endless = ("--updates", "1000000", "--checkpoint.every", "1000000")
    assert head("submit", "demo", *TINY, *endless, "--submission-id", "stopped")[0] == 0
    wait_for(lambda: "update 1/" in head("logs", "stopped")[1], "no update was made")
    code, out, _ = head("status")
    assert code == 0
    assert any(line.startswith("stopped ") and " RUNNING " in line and " update " in line for line in out.splitlines())
    code, out, complaint = head("stop", "stopped")
    assert (code, complaint) == (0, ""), head("logs", "stopped")
    run_dir = head.home / "metagrad-runs" / "stopped"
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    update = int(checkpoint.stem.rpartition("-")[2])
    assert update >= 1
    assert f"\n{update} updates, {12 * update} real frames in " in out
    assert "continue it: metagrad submit demo --resume --run-dir '~/metagrad-runs/stopped'" in out
    assert head("logs", "stopped", "--follow")[0] == 143
    more = ("--updates", str(update + 2))
    code, out, _ = head("submit", "demo", "--resume", "--run-dir", "~/metagrad-runs/stopped", *more, "--follow")
    assert code == 0
    assert f"at update {update}\n" in out
    assert f"\n{update + 2} updates, " in out
    written = [path.read_bytes() for path in run_dir.rglob("*") if path.is_file()]
    assert not any(head.token.encode() in content for content in written)


PARTS = tuple(path.name for path in Path(__file__).parents[2].joinpath("metagrad").iterdir() if path.is_symlink())
HOSTILE = ("metagrad", *PARTS, "torch", "types", "random", "json", "numpy", "ray")
OWN = """\
import os
from dataclasses import dataclass, replace
from pathlib import Path

from metagrad.actors.envs.snake import SnakeConfig
from metagrad.experiments import EXPERIMENTS as OURS
import own_helper


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnSnakeConfig(SnakeConfig):
    def make(self, *words, **named):
        import own_late
        own_late.check()
        return SnakeConfig.make(self, *words, **named)


def own():
    demo = OURS["demo"]()
    env = OwnSnakeConfig(rows=3, columns=3, time_limit=demo.env.time_limit)
    return replace(demo, name="own", description=own_helper.TEXT, env=env)


EXPERIMENTS = {"own": own}
"""
LATE = """\
import os
from pathlib import Path


def check():
    if "METAGRAD_JOB_FOLDER" not in os.environ:  # where it is submitted
        return
    assert os.environ["OWN_TOKEN"] == "it's hidden"
    assert Path("data/table.csv").read_text() == "1,2"
    assert os.access("tool.sh", os.X_OK)
    assert Path("empty").is_dir()
"""


def test_a_job_meets_nothing_of_its_folder_but_what_was_asked_for(head: Head) -> None:
    """Its file, what that imports, data, variables; not the many names that would stand in for packages."""
    work = head.home / "hostile"
    for name in HOSTILE:
        (work / name).mkdir(parents=True)
        for path in (work / f"{name}.py", work / name / "__init__.py"):
            path.write_text("raise RuntimeError('of the user')")
    texts = {"own.py": OWN, "own_helper.py": "TEXT = 'Own'", "own_late.py": LATE, "tool.sh": "", ".env": "SECRET=1"}
    for name, text in texts.items():
        (work / name).write_text(text)
    (work / "tool.sh").chmod(0o755)
    (work / "data").mkdir()
    (work / "data" / "table.csv").write_text("1,2")
    (work / "empty").mkdir()
    words = ("--import", "../hostile/own.py", "submit", "own", "--working-dir", "../hostile", *TINY, "--updates", "2")
    words += ("--submission-id", "hostile", "--job-env", "OWN_TOKEN", "--follow")
    code, out, complaint = head(*words, OWN_TOKEN="it's hidden")
    assert (code, complaint) == (0, ""), out
    assert "left out:   1 of ../hostile (secrets, " in out
    assert "\n2 updates, 24 real frames in " in out
    listed = head("job", "list", "--log-style", "record", program="ray")[1] + head("status", "hostile")[1]
    assert "hostile" in listed
    assert "hidden" not in out + listed
    logged = [path for path in (head.home / "ray").rglob("*.log") if b"s hidden" in path.read_bytes()]
    assert logged == []


def test_rays_own_command_submits_too(head: Head) -> None:
    train = ("metagrad", "train", "demo", *TINY, "--updates", "2", "--run-dir", str(head.home / "plain"))
    words = ("job", "submit", "--submission-id", "plain", "--working-dir", ".", "--", *train)
    code, out, complaint = head(*words, program="ray")
    assert code == 0, out + complaint
    code, out, _ = head("status", "plain")
    assert code == 0
    assert "experiment  demo\n" in out
    assert f"run folder  {head.home / 'plain'}\n" in out
