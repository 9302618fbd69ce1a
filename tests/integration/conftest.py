"""The command line in processes of its own, and the processes that such a run leaves behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metagrad.cli.main import main

ROOT = Path(__file__).parent.parent.parent
_MARK = "METAGRAD_TEST_RUN"


class Command:
    """`metagrad WORDS` in a process group of its own; `prelude` is Python that runs before it."""

    def __init__(self, words: tuple[str, ...], folder: Path, prelude: str):
        self.mark = uuid.uuid4().hex
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {_MARK: self.mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        program = f"{prelude}\nimport sys\nfrom metagrad.cli.entry import main\nsys.exit(main())"
        self._output = folder / f"output-{self.mark}.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *words],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """Return what it has printed so far."""
        return self._output.read_text()

    def wait(self, seconds: float = 100.0) -> int:
        """Exit code."""
        return self.process.wait(timeout=seconds)

    def wait_until(self, is_so: Callable[[], object]) -> None:
        """Until it is so; fails where the run ends without it."""
        while not is_so():
            assert self.process.poll() is None, self.output
            time.sleep(0.01)

    def wait_for(self, path: Path) -> None:
        """Until a file is there; fails where the run ends without it."""
        self.wait_until(path.exists)

    def press_ctrl_c(self) -> None:
        """As a terminal does: to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def survivors(self, seconds: float = 90.0) -> list[str]:
        """Command lines of processes that inherited this run's environment and are not gone after a while."""
        end = time.monotonic() + seconds
        while True:
            found = list(self.relatives().values())
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.1)

    def relatives(self) -> dict[int, str]:
        """Process id to command line of all that inherited this run's environment."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{_MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # gone meanwhile, or another user's
                continue
        return found

    def clean_up(self) -> None:
        """Kill what is left of it, whatever the test found."""
        for pid in self.relatives():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


Metagrad = Callable[..., Command]


@pytest.fixture
def metagrad(tmp_path: Path) -> Iterator[Metagrad]:
    """(*words, prelude="") -> a started command; nothing of it outlives the test."""
    started: list[Command] = []

    def start(*words: str, prelude: str = "") -> Command:
        started.append(Command(words, tmp_path, prelude))
        return started[-1]

    yield start
    for command in started:
        command.clean_up()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """(*words) -> what the same command prints in this process, which need not load torch again; it must succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: str) -> str:
        capfd.readouterr()
        code = main(words)
        output = capfd.readouterr()
        assert code == 0, output.out + output.err
        return output.out

    return run


@pytest.fixture
def tiny_words() -> tuple[str, ...]:
    """A tiny Snake run of two actors that would take hours; `--updates` given later wins."""
    return (
        *("train", "snake-6x6", "--env.rows", "3", "--env.columns", "3", "--environments", "4"),
        *("--rollout-length", "3", "--updates", "999999", "--learner-threads", "1", "--log-every", "5"),
        *("--checkpoint.every", "5", "--run-dir", "run"),
    )


@pytest.fixture
def pong_words() -> tuple[str, ...]:
    """A small run of Pong whose games can be copied, with two actors; options given later win."""
    return (
        *("train", "atari", "--env.game", "Pong", "--env.backend", "ale-snapshots", "--lookahead", "fork"),
        *("--env.sticky-action-probability", "0.25", "--network.hidden", "32", "--meta.n", "1"),
        *("--environments", "4", "--actors", "2", "--learner-threads", "1", "--run-dir", "run"),
    )
