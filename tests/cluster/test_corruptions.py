"""A run folder corrupted in some 150 ways: each command works with the right content, or refuses in one line.

Nothing hangs, nothing outside of the folder is read or changed, nothing of a pickle is executed, and a checkpoint that
is passed over is named. Commands run in this process, on copies of one colocated run that was made once.
"""

import io
import json
import os
import pickle
import random
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from metagrad.cli.main import main
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run import plot
from metagrad.learner.checkpoint import load

Capture = pytest.CaptureFixture[str]
Mutation = Callable[[Path], object]
NEWEST, OLDER = "checkpoints/update-000000006.pt", "checkpoints/update-000000004.pt"
SECRET = b"a private file of the user's"
SECONDS = 20  # of one command; the slowest takes .5 on an idle core


@dataclass(frozen=True)
class Original:
    """The run that all others are copies of, and what is right."""

    folder: Path
    returns: dict[int, list[float]]  # of an evaluation, by update
    theta: torch.Tensor  # of update 7, whichever checkpoint it was continued from: that is bitwise the same


@contextmanager
def in_time() -> Iterator[None]:
    """Whatever takes longer hangs."""

    def hangs(*_: object) -> None:
        raise AssertionError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def evaluate(folder: Path, *words: str) -> int:
    with in_time():
        return main(("eval", str(folder), "--episodes", "1", *words))


def resume(folder: Path) -> int:
    with in_time():
        return main(("train", "snake-6x6", "--resume", "--run-dir", str(folder), "--updates", "7"))


def draw(folder: Path) -> int:
    with in_time():
        return main(("plot", str(folder), "--output", f"{folder}.png"))


@pytest.fixture(scope="module")
def original(tiny: Callable[..., Experiment], tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("original") / "run"
    experiment = tiny(meta={"n": 1}, log_every=1, checkpoint=CheckpointConfig(every=2, keep=3))
    run(experiment, folder, False, Console(file=io.StringIO()))
    returns, thetas = {}, []
    for update in (4, 6):
        copy = folder.with_name(f"from-{update}")
        shutil.copytree(folder, copy)
        assert evaluate(copy, "--update", str(update)) == 0
        (stored,) = copy.glob("evaluation-*.json")
        returns[update] = json.loads(stored.read_text())["returns"]
        if update == 4:
            (copy / NEWEST).unlink()
        assert resume(copy) == 0
        thetas.append(load(copy / "checkpoints/update-000000007.pt")["learner"]["theta"])
    assert torch.equal(*thetas)
    return Original(folder, returns, thetas[0])


@pytest.fixture
def folder(original: Original, tmp_path: Path) -> Iterator[Path]:
    """A copy to corrupt, beside a private file that has to be what it was."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_bytes(SECRET)
    copy = tmp_path / "run"
    shutil.copytree(original.folder, copy)
    yield copy
    assert [(path.name, path.read_bytes()) for path in home.iterdir()] == [("secret", SECRET)]
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "run", "run.png", "moved"}


def assert_one_line(code: int, output: Any) -> None:
    lines = output.err.splitlines()
    assert code == 2, output.err
    assert len(lines) == 1, output.err
    assert lines[0].startswith("metagrad: ")
    assert lines[0].isprintable()
    assert "Traceback" not in output.out + output.err


def assert_right(original: Original, folder: Path, capsys: Capture, may_be: set[str]) -> None:
    """Return what `eval` and `--resume` did: "newest", "older" (and said so), or "refused"."""
    code = evaluate(folder)
    output = capsys.readouterr()
    if code == 0:
        (stored,) = folder.glob("evaluation-*.json")
        result = json.loads(stored.read_text())
        assert result["returns"] == original.returns[result["update"]]
        assert output.err == ""
        found = "newest" if result["update"] == 6 else "older"
        assert (f"using {Path(OLDER).name} instead: " in output.out) == (found == "older")
        stored.unlink()
    else:
        assert_one_line(code, output)
        found = "refused"
    assert found in may_be
    code = resume(folder)
    output = capsys.readouterr()
    assert output.out.isprintable() or "\x1b" not in output.out
    if found == "refused":
        assert_one_line(code, output)
        return
    assert code == 0, output.err
    theta = load(folder / "checkpoints/update-000000007.pt")["learner"]["theta"]
    assert torch.equal(theta, original.theta)
    assert not (folder / "checkpoints").is_symlink()


# --- what can be done to a file -------------------------------------------------------------------------------------


def flipped(name: str, share: float, bit: int) -> Mutation:
    def mutate(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[int(share * len(content))] ^= 1 << bit
        (folder / name).write_bytes(content)

    return mutate


def cut(name: str, share: float) -> Mutation:
    def mutate(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return mutate


def holding(name: str, content: bytes) -> Mutation:
    return lambda folder: (folder / name).write_bytes(content)


def replaced(name: str, kind: str) -> Mutation:
    """Something that is no file, or no file of this run, under the name."""

    def mutate(folder: Path) -> None:
        place, secret = folder / name, folder.parent / "home" / "secret"
        place.unlink(missing_ok=True)
        match kind:
            case "link":
                place.symlink_to(secret)
            case "dangling link":
                place.symlink_to(secret.with_name("new"))
            case "looped link":
                place.symlink_to(place.name)
            case "endless link":
                place.symlink_to("/dev/zero")
            case "link inside":
                place.with_name("whole").write_bytes(b"{}")
                place.symlink_to("whole")
            case "pipe":
                os.mkfifo(place)
            case "folder":
                place.mkdir()
            case "folder with files":
                place.mkdir()
                (place / "x").touch()
            case _:
                with place.open("wb") as file:
                    file.truncate(2**42)

    return mutate


KINDS = (
    "link",
    "dangling link",
    "looped link",
    "endless link",
    "link inside",
    "pipe",
    "folder",
    "folder with files",
    "endless file",
)
OWN = random.Random(15)


# --- checkpoints ----------------------------------------------------------------------------------------------------


class Touch:
    """Executes when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ~/touched; touch executed",)


def saved(tree: Any) -> bytes:
    content = io.BytesIO()
    torch.save(tree, content)
    return content.getvalue()


def compressed(folder: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(folder / NEWEST) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
        new.writestr("update-000000006/bomb", b"\0" * 2**24)
    (folder / NEWEST).write_bytes(content.getvalue())


DAMAGED: dict[str, Mutation] = {
    **{f"bit {i}": flipped(NEWEST, OWN.random(), OWN.randrange(8)) for i in range(8)},
    **{f"cut at {share:.3f}": cut(NEWEST, share) for share in (0, 0.001, 0.3, 0.9, 0.9999)},
    **{kind: replaced(NEWEST, kind) for kind in KINDS if "folder" not in kind},
    "text": holding(NEWEST, b"update 6\n" * 200),
    "zeros": holding(NEWEST, b"\0" * 50_000),
    "another archive": lambda folder: zipfile.ZipFile(folder / NEWEST, "w").writestr("notes", "mine"),
    "a pickle": holding(NEWEST, pickle.dumps({"learner": Touch()})),
    "a pickle inside": lambda folder: (folder / NEWEST).write_bytes(saved({"learner": Touch()})),
    "a list": lambda folder: (folder / NEWEST).write_bytes(saved([1, 2])),
    "a tensor": lambda folder: (folder / NEWEST).write_bytes(saved(torch.zeros(3))),
    "compressed": compressed,
    "a later one that is none": holding("checkpoints/update-000000099.pt", b"later"),
    "one of a number without end": holding(f"checkpoints/update-{'9' * 200}.pt", b"later"),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("mutation", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_checkpoint_is_found_and_the_one_before_it_used(
    original: Original, folder: Path, capsys: Capture, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent / "home"))
    mutation(folder)
    assert_right(original, folder, capsys, {"newest", "older"})
    assert not Path("executed").exists()


@pytest.mark.parametrize("kind", ["folder", "folder with files"])
def test_a_folder_in_the_place_of_a_checkpoint_is_passed_over_and_never_written_to(
    original: Original, folder: Path, capsys: Capture, kind: str
) -> None:
    replaced(NEWEST, kind)(folder)
    assert evaluate(folder) == 0
    assert "using update-000000004.pt instead: update-000000006.pt: it is a folder" in capsys.readouterr().out
    code = resume(folder)
    assert_one_line(code, capsys.readouterr())


def entries(changes: dict[str, Any]) -> Mutation:
    """A whole checkpoint, saved as any other, whose entries at dotted places are others."""

    def mutate(folder: Path) -> None:
        tree = load(folder / NEWEST)
        for place, change in changes.items():
            *path, last = place.split(".")
            node: Any = tree
            for name in path:
                node = node[int(name) if isinstance(node, list) else name]
            if change is None:
                del node[last]
            else:
                node[last] = change(node[last]) if callable(change) else change
        (folder / NEWEST).write_bytes(saved(tree))

    return mutate


WRONG: dict[str, Mutation] = {
    **{f"no {part}": entries({part: None}) for part in ("learner", "actors", "counters", "account", "episodes")},
    **{
        f"no learner.{part}": entries({f"learner.{part}": None})
        for part in ("update", "version", "theta", "optimizer", "eta", "meta_optimizer", "carry")
    },
    "update is a string": entries({"learner.update": "6"}),
    "update is another": entries({"learner.update": 5}),
    "update is true": entries({"learner.update": True}),
    "version is negative": entries({"learner.version": -3}),
    "theta of integers": entries({"learner.theta": lambda old: old.long()}),
    "theta of doubles": entries({"learner.theta": lambda old: old.double()}),
    "theta on meta": entries({"learner.theta": lambda old: old.to("meta")}),
    "theta is sparse": entries({"learner.theta": lambda old: old.to_sparse()}),
    "theta is short": entries({"learner.theta": lambda old: old[:-1].clone()}),
    "theta is a list": entries({"learner.theta": lambda old: old.tolist()}),
    "theta is NaN": entries({"learner.theta": lambda old: old * float("nan")}),
    "eta is infinite": entries({"learner.eta": lambda old: old + float("inf")}),
    "moments are none": entries({"learner.optimizer": {"count": 6, "moments": []}}),
    "count is a float": entries({"learner.optimizer.count": 6.0}),
    "carry is a number": entries({"learner.carry": 3}),
    "learner is a list": entries({"learner": [1]}),
    "actors are none": entries({"actors": []}),
    "actors are numbers": entries({"actors": [3]}),
    "games of another size": entries({"actors.0.real/episode_return": torch.zeros(99)}),
    "games of another type": entries({"actors.0.real/episode_length": lambda old: old.float()}),
    "a stream that is none": entries({"actors.0.real/policy_generator": torch.zeros(16, dtype=torch.uint8)}),
    "counters are strings": entries({"counters.frames_real": "12"}),
    "counters are NaN": entries({"counters.wall_seconds": float("nan")}),
    "account is a list": entries({"account": [1]}),
    "account with more": entries({"account": lambda old: old | {"order": 3}}),
    "episodes of words": entries({"episodes": {"returns": ["x"], "lengths": [1], "count": 1}}),
    "window is a number": entries({"window": 3}),
    "device is another": entries({"device": "meta"}),
    "of another update": lambda folder: shutil.copy(folder / OLDER, folder / NEWEST),
    "no checkpoint is whole": lambda folder: [path.write_bytes(b"x") for path in (folder / "checkpoints").iterdir()],
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("mutation", WRONG.values(), ids=WRONG.keys())
def test_a_checkpoint_that_no_run_wrote_is_refused(
    original: Original, folder: Path, capsys: Capture, mutation: Mutation
) -> None:
    mutation(folder)
    assert_right(original, folder, capsys, {"refused"})


def linked_checkpoints(folder: Path) -> None:
    (folder / "checkpoints").rename(folder.parent / "moved")
    (folder / "checkpoints").symlink_to("../moved")


@pytest.mark.parametrize("kind", ["link", "link to the user's", "pipe", "file"])
def test_checkpoints_that_are_no_folder_of_the_run_are_refused(
    original: Original, folder: Path, capsys: Capture, kind: str
) -> None:
    linked_checkpoints(folder)
    moved = {path.name: path.read_bytes() for path in (folder.parent / "moved").iterdir()}
    if kind != "link":
        (folder / "checkpoints").unlink()
        {
            "link to the user's": lambda: (folder / "checkpoints").symlink_to("../home"),
            "pipe": lambda: os.mkfifo(folder / "checkpoints"),
            "file": (folder / "checkpoints").touch,
        }[kind]()
    assert_right(original, folder, capsys, {"refused"})
    assert {path.name: path.read_bytes() for path in (folder.parent / "moved").iterdir()} == moved


# --- config.json ----------------------------------------------------------------------------------------------------


def config(change: Callable[[dict[str, Any]], Any]) -> Mutation:
    def mutate(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        changed = change(tree)
        (folder / "config.json").write_text(json.dumps(tree if changed is None else changed))

    return mutate


def setting(place: str, value: Any) -> Mutation:
    def change(tree: dict[str, Any]) -> None:
        *path, last = place.split(".")
        for name in path:
            tree = tree[name]
        tree[last] = value

    return config(change)


CONFIGS: dict[str, Mutation] = {
    **{kind: replaced("config.json", kind) for kind in KINDS},
    **{f"cut at {share}": cut("config.json", share) for share in (0, 0.2, 0.5, 0.9)},
    "no text": holding("config.json", b"\xff\xfe{}"),
    "a null byte": holding("config.json", b'{"type": "Experi\0ment"}'),
    "no end of lists": holding("config.json", b"[" * 200_000),
    "no end of objects": holding("config.json", b'{"type":' * 100_000),
    "null": holding("config.json", b"null"),
    "a list": config(lambda tree: [tree]),
    "nothing in it": config(lambda _: {}),
    "a field more": setting("fields", 3),
    "a field less": config(lambda tree: {key: x for key, x in tree.items() if key != "network"}),
    "a type that is none": setting("type", "os.system"),
    "a type of another place": setting("network.type", "SnakeConfig"),
    "a type that is a list": setting("type", ["Experiment"]),
    **{
        f"{place} = {value!r:.20}": setting(place, value)
        for place, value in (
            ("updates", "6"),
            ("updates", None),
            ("updates", 6.5),
            ("updates", -1),
            ("seed", [1]),
            ("seed", -1),
            ("env", None),
            ("env.rows", "3"),
            ("env.rows", 0),
            ("network.channels", {"type": "SnakeCnn"}),
            ("environments", 0),
            ("meta", 3),
            ("meta.n", -1),
            ("meta.n", True),
            ("topology", "elsewhere"),
            ("optimizer", {"type": "Adam"}),
            ("optimizer.learning_rate", float("nan")),
            ("optimizer.learning_rate", "0.1"),
            ("checkpoint.keep", 0),
            ("description", {"a": 1}),
            ("name", 3),
        )
    },
}


@pytest.mark.parametrize("mutation", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_config_that_no_run_wrote_is_refused(
    original: Original, folder: Path, capsys: Capture, mutation: Mutation
) -> None:
    mutation(folder)
    assert_right(original, folder, capsys, {"refused"})
    code = draw(folder)
    assert_one_line(code, capsys.readouterr())


def test_an_environment_that_does_not_fit_the_network_is_refused_where_one_is_made(
    original: Original, folder: Path, capsys: Capture
) -> None:
    """Drawing curves makes no environment, and so cannot know what it would show the network."""
    setting("env", {"type": "MarkovRewardProcessConfig", "states": 10})(folder)
    assert_right(original, folder, capsys, {"refused"})
    assert draw(folder) == 0


def test_a_name_full_of_controls_is_shown_as_text(folder: Path, capsys: Capture) -> None:
    name = "\x1b]0;owned\x07\x1b[2J\u202e$(touch executed)\n_$x$"
    setting("name", name)(folder)
    code = resume(folder)
    output = capsys.readouterr()
    assert_one_line(code, output)
    assert "run metagrad train '\\x1b]0;owned" in output.err
    assert evaluate(folder) == draw(folder) == 0
    output = capsys.readouterr()
    assert all(line.isprintable() for line in (output.out + output.err).splitlines())


# --- the other files ------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[Mutation, set[str]]] = {
    **{f"summary: {kind}": (replaced("summary.json", kind), {"newest"}) for kind in KINDS if "folder" not in kind},
    "summary: cut": (cut("summary.json", 0.5), {"newest"}),
    "partial files": (holding("config.partial", b"{"), {"newest"}),
    "a linked partial file": (replaced("config.partial", "link"), {"newest"}),
    "a linked result": (replaced("evaluation-000000006-sampled-seed0.json", "link"), {"newest"}),
    "a private config": (lambda folder: (folder / "config.json").chmod(0o600), {"newest"}),
    "names without end": (holding("x" * 255, b""), {"newest"}),
    "a name that is no text": (lambda folder: os.mkdir(os.fsencode(folder) + b"/\xff\xfe"), {"newest"}),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("mutation", "may_be"), OTHERS.values(), ids=OTHERS.keys())
def test_other_files_are_replaced_or_left_alone(
    original: Original, folder: Path, capsys: Capture, mutation: Mutation, may_be: set[str]
) -> None:
    mutation(folder)
    private = (folder / "config.json").stat().st_mode
    assert_right(original, folder, capsys, may_be)
    assert (folder / "config.json").stat().st_mode == private
    assert json.loads((folder / "summary.json").read_text())["updates"] == 7
    assert not (folder / "summary.json").is_symlink()


@pytest.mark.parametrize("kind", ["folder", "folder with files"])
def test_a_folder_in_the_place_of_the_summary_is_refused_before_training(
    folder: Path, capsys: Capture, kind: str
) -> None:
    replaced("summary.json", kind)(folder)
    code = resume(folder)
    assert_one_line(code, capsys.readouterr())
    assert evaluate(folder) == 0


# --- event files ----------------------------------------------------------------------------------------------------


def of_events(make: Callable[[str], Mutation]) -> Mutation:
    return lambda folder: make(next(folder.glob("events*")).name)(folder)


EVENTS: dict[str, Mutation] = {
    **{kind: of_events(lambda name, kind=kind: replaced(name, kind)) for kind in KINDS},
    **{
        f"bit at {share:.3f}": of_events(lambda name, share=share: flipped(name, share, 3))
        for share in (0.001, 0.02, 0.1, 0.25, 0.4, 0.5, 0.63, 0.77, 0.9, 0.999)
    },
    **{
        f"cut at {share}": of_events(lambda name, share=share: cut(name, share))
        for share in (0, 0.1, 0.33, 0.5, 0.8, 0.99)
    },
    "zeros": of_events(lambda name: holding(name, b"\0" * 10_000)),
}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("mutation", EVENTS.values(), ids=EVENTS.keys())
def test_damaged_events_are_told_or_refused(
    original: Original, folder: Path, capsys: Capture, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[Any, plot.Scalars]] = []

    def picture(groups: object, scalars: dict[Any, plot.Scalars], kind: str) -> bytes:
        drawn.append(scalars)
        return b"picture"

    monkeypatch.setattr(plot, "_picture", picture)  # drawing is the slow part, and not what is tested
    right = plot.read_scalars(original.folder)
    mutation(folder)
    code = draw(folder)
    output = capsys.readouterr()
    assert not output.err.count("Traceback")
    if code:
        assert_one_line(code, output)
        assert not drawn
    else:
        (scalars,) = drawn[0].values()
        for name, (updates, values) in scalars.items():
            assert set(zip(updates, values, strict=True)) <= set(zip(*right[name], strict=True))
        assert all(line.startswith("metagrad: ") and "events" in line for line in output.err.splitlines())
        assert output.err, "rows are missing, and nothing is said"
    if any(path.is_symlink() or not path.is_file() for path in folder.glob("events*")):
        assert_right(original, folder, capsys, {"newest"})  # a run that goes on begins another file
