"""Logging with W&B without a network, read back from its files by its own messages; needs the extra `wandb`."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("wandb")

import wandb
from wandb.proto.wandb_internal_pb2 import Record

from metagrad.cluster.config.experiment import CheckpointConfig, EvaluationConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.plot import logged_scalars
from metagrad.cluster.run.wandb_log import require_key
from metagrad.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
_BLOCK, _HEADER = 2**15, 7  # of LevelDB's log format, in which W&B keeps records; its file begins with a header as long


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # it reads the variables once


def records(path: Path) -> Iterator[Record]:
    data, at, parts = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def written(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The configuration and all rows of a run, in the order of its processes."""
    config: dict[str, Any] = {}
    rows = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records(file):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            items = [
                (item.key or ".".join(item.nested_key), json.loads(item.value_json)) for item in record.history.item
            ]
            rows += [dict(items)] if items else []
    return config, rows


@pytest.mark.slow
@pytest.mark.usefixtures("_offline")
def test_it_holds_what_the_event_files_hold(tiny: Callable[..., Any], console: Console, tmp_path: Path) -> None:
    evaluation = EvaluationConfig(every=3, episodes=2, is_shown=True)
    for updates, is_resumed in ((4, False), (6, True)):
        experiment = tiny(updates=updates, log=("wandb",), evaluation=evaluation, checkpoint=CheckpointConfig(every=2))
        run(experiment, tmp_path, is_resumed, console)
    config, rows = written(tmp_path)
    assert config["meta_parameters.gamma.initial"] == experiment.meta_parameters.gamma.initial
    found = [
        (name, row["update"], value)
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and re.fullmatch(r"[a-z_]+/\w+", name)  # W&B's own
    ]
    logged = [
        (name, int(step), float(value))
        for name, (steps, values) in logged_scalars(tmp_path).items()
        for step, value in zip(steps, values, strict=True)
    ]
    assert sorted((name, update) for name, update, _ in found) == sorted((name, step) for name, step, _ in logged)
    values = {(name, update): value for name, update, value in found}
    assert [values[name, step] for name, step, _ in logged] == pytest.approx([x for *_, x in logged], rel=1e-6)
    kinds = [row["evaluation/episode._type"] for row in rows if "evaluation/episode._type" in row]
    assert kinds == ["video-file"] * 2
    gifs = list(tmp_path.glob("wandb/offline-run-*/files/media/videos/evaluation/*.gif"))
    assert [gif.read_bytes()[:4] for gif in gifs] == [b"GIF8"] * 2


@pytest.mark.usefixtures("_offline")
def test_a_key_that_is_not_taken_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def login(**arguments: Any) -> bool:
        raise wandb.errors.AuthenticationError("Failed to authenticate:\nno route to host")

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    line = (
        r"^log = 'wandb': W&B does not take the API key \(Failed to authenticate: no route to host\); run wandb login"
    )
    with pytest.raises(ConfigurationError, match=line):
        require_key()


@pytest.mark.usefixtures("_offline")
def test_a_run_that_nobody_has_logged_in_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_key()
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    with pytest.raises(ConfigurationError, match=r"^log = 'wandb': W&B has no API key here; run wandb login"):
        require_key()
