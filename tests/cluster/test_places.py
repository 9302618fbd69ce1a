"""Places that a command line may name, and commands that are printed with them."""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from metagrad.actors.rollout import Actor
from metagrad.cli.main import main
from metagrad.cli.shell import quoted
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.errors import ConfigurationError
from metagrad.types import Rollout, WeightSnapshot

Capture = pytest.CaptureFixture[str]
Tiny = Callable[..., Experiment]
PLACES = [
    ("", "names nothing; name a path or a URL"),
    ("file://", "names nothing there; add a path"),
    ("s3://", "names nothing there; add a path"),
    ("memory://x", "memory:// does not keep files"),
    ("data://x", "data:// does not keep files"),
    ("zip://x", "zip:// does not keep files"),
    ("a\0b", "contains a null byte"),
    ("x" * 300, "File name too long"),
    ("a/" * 3_000, "File name too long"),
    ("s3://KEY:secret@bucket/run", "holds credentials"),
    ("loop", "loop"),
    ("file/run", "Not a directory"),
]
COMMANDS = {
    "train": ("train", "snake-6x6", "--topology", "colocated", "--run-dir"),
    "resume": ("train", "snake-6x6", "--resume", "--run-dir"),
    "reproduce": ("reproduce", "tabular-maml", "--quick", "--topology", "colocated", "--run-dir"),
    "eval": ("eval",),
    "plot": ("plot",),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("place", "rule"), PLACES, ids=[place[:12] or "nothing" for place, _ in PLACES])
def test_a_place_that_holds_no_run_is_refused_in_one_line(
    command: str, place: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert main((*COMMANDS[command], place)) == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("metagrad: run-dir = ")
    assert rule in line or "does not hold a run" in line
    assert line.isprintable()
    assert "secret" not in line
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


@pytest.fixture
def trained(tiny: Tiny, tmp_path: Path) -> Path:
    run(tiny(), tmp_path / "run", False, Console(quiet=True))
    return tmp_path / "run"


def test_a_run_that_cannot_be_written_is_played_into_another_place(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before = sorted(os.listdir(trained))
    whole = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(trained) and whole(path, mode))
    monkeypatch.setattr("metagrad.cluster.run.evaluation.evaluate", None)  # nothing is played
    with pytest.raises(
        ConfigurationError, match=r"^run-dir = .*: is not a folder that can be written; add --output FOL"
    ):
        evaluate_run(trained, None, 2, 0, False, True)
    monkeypatch.undo()
    (tmp_path / "results").mkdir()
    (tmp_path / "mine").symlink_to("results")
    for output in ("new/folder", "mine", "results/x.json", "y.json"):
        evaluate_run(trained, None, 2, 0, False, True, str(tmp_path / output))
    name = "000000006-sampled-seed0"
    made = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix in (".json", ".gif")]
    assert sorted(path for path in made if not path.startswith(("run/", "mine"))) == [
        f"new/folder/episode-{name}.gif",
        f"new/folder/evaluation-{name}.json",
        f"results/episode-{name}.gif",
        f"results/evaluation-{name}.json",
        "results/x.gif",
        "results/x.json",
        "y.gif",
        "y.json",
    ]
    assert sorted(os.listdir(trained)) == before
    assert f"written: {tmp_path}/y.gif (return" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "rule"),
    [
        ("", "names nothing"),
        ("folder.json", "is a folder; name a file in it"),
        ("file", "is not a folder that can be written; name another"),
        ("file/x.json", "is not a folder"),
        ("x" * 300, "File name too long"),
        ("a\0", "contains a null byte"),
        ("memory://x", "does not keep files"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_anything_is_played(
    trained: Path, output: str, rule: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(trained.parent)
    Path("folder.json").mkdir()
    Path("file").touch()
    monkeypatch.setattr("metagrad.cluster.run.evaluation.evaluate", None)
    assert main(("eval", "run", "--output", output)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("metagrad: output = ")
    assert rule in line


def test_printed_commands_can_be_given_to_a_shell(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    name = "-a run; touch $(whoami) 'x' \"y\""
    run(tiny(updates=2), tmp_path / name, False, Console(quiet=True))
    words = ("train", "snake-6x6", "--resume", "--updates", "4", "--run-dir")
    assert main((*words, str(tmp_path / name))) == 0
    look, play = capsys.readouterr().out.splitlines()[-2:]
    assert shlex.split(look)[-2:] == ["--logdir", str(tmp_path / name)]
    assert shlex.split(play)[-3:] == ["eval", str(tmp_path / name), "--record"]
    assert main(("train", "demo", "--resume", "--run-dir", str(tmp_path / name))) == 2
    advice = capsys.readouterr().err.partition("; run metagrad")[2]
    assert shlex.split(advice)[-1] == str(tmp_path / name)
    assert shlex.split(quoted("-x y")) == ["./-x y"]


@pytest.mark.parametrize("at_update", [0, 3])
def test_a_run_ends_in_one_line_when_another_one_takes_its_place(
    tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, at_update: int
) -> None:
    """Its folder is removed and another run begun at the same path while it goes on."""
    folder, other = tmp_path / "run", tmp_path / "other"
    run(tiny(updates=2), other, False, Console(quiet=True))
    before = {str(path): path.read_bytes() for path in sorted(other.rglob("*.*"))}
    rollout = Actor.rollout

    def replace_it(actor: Actor, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        if snapshot.version >= at_update and other.exists():
            shutil.rmtree(folder)
            other.rename(folder)
        return rollout(actor, snapshot, lookahead_step)

    monkeypatch.setattr(Actor, "rollout", replace_it)
    words = ("--env.rows", "3", "--env.columns", "3", "--environments", "4", "--rollout-length", "3", "--updates", "6")
    own = (*words, "--log-every", "1", "--checkpoint.every", "1", "--topology", "colocated", "--learner-threads", "1")
    assert main(("train", "snake-6x6", *own, "--run-dir", str(folder))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metagrad: {folder}")
    assert line.endswith("was removed, moved or replaced); this process ends without writing there")
    assert {str(path).replace(str(folder), str(other)): path.read_bytes() for path in folder.rglob("*.*")} == before
