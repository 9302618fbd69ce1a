from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import CheckpointConfig, EvaluationConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run import run_logs
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.plot import logged_scalars
from metagrad.cluster.run.run_log import RunLog, run_facts
from metagrad.cluster.run.run_logs import RunLogs, require_logs
from metagrad.errors import ConfigurationError

Tiny = Callable[..., Experiment]


class Kept:
    """A tool that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Any]] = []
        self.is_closed = False

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        self.rows.append((update, dict(values)))

    def histogram(self, name: str, values: Sequence[int], update: int) -> None:
        self.rows.append((update, (name, list(values))))

    def picture(self, name: str, gif: bytes, update: int) -> None:
        self.rows.append((update, (name, gif)))

    def close(self) -> None:
        self.is_closed = True


class Broken(Kept):
    """A tool that fails at its second row."""

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        super().scalars(values, update)
        if len(self.rows) == 2:
            raise OSError("no route to host\nand more")


def updates(tool: Kept) -> list[int]:
    return [update for update, _ in tool.rows]


def test_rows_wait_for_the_checkpoint_that_covers_them() -> None:
    tool = Kept()
    logs = RunLogs({"kept": lambda: tool}, pytest.fail, done=-1, covered=0)
    logs.scalars({"x": 1.0}, 10)
    logs.histogram("lag", [1, 2], 10)
    logs.scalars({"x": 2.0}, 20)
    assert updates(tool) == []
    logs.covered(10)
    assert tool.rows == [(10, {"x": 1.0}), (10, ("lag", [1, 2]))]
    logs.picture("episode", b"GIF", 5)  # an evaluation that ended late
    assert tool.rows[-1] == (5, ("episode", b"GIF"))
    logs.take_back(after=10)  # a learner died at 20 and goes on from 10
    logs.scalars({"x": 3.0}, 20)
    logs.covered(20)
    assert tool.rows[3:] == [(20, {"x": 3.0})]
    logs.scalars({"x": 4.0}, 30)
    logs.close()
    assert tool.is_closed
    assert updates(tool) == [10, 10, 5, 20], "no checkpoint covers update 30"


def test_a_tool_that_fails_says_so_once_and_the_others_go_on() -> None:
    said: list[str] = []
    broken, tool = Broken(), Kept()

    def absent() -> RunLog:
        raise RuntimeError("not logged in")

    logs = RunLogs({"absent": absent, "broken": lambda: broken, "kept": lambda: tool}, said.append, -1, covered=99)
    for update in (1, 2, 3):
        logs.scalars({"x": 0.0}, update)
    logs.close()
    assert said == [
        "--log absent failed (RuntimeError: not logged in); the run goes on without it",
        "--log broken failed (OSError: no route to host); the run goes on without it",
    ]
    assert (updates(broken), updates(tool), tool.is_closed) == ([1, 2], [1, 2, 3], True)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    """Tools that keep what they are given, and one that fails, for --log wandb."""
    kept: dict[str, Kept] = {"wandb": Kept(), "broken": Broken()}
    monkeypatch.setattr("metagrad.cluster.launch.open_run.require_logs", lambda names: None)
    monkeypatch.setattr(
        "metagrad.cluster.launch.open_run.openers", lambda names, facts: {x: lambda x=x: kept[x] for x in kept}
    )
    return kept


def test_a_run_that_is_continued_shows_each_row_once(
    tiny: Tiny, tools: dict[str, Kept], console: Console, tmp_path: Path
) -> None:
    every = {
        "log_every": 2,
        "checkpoint": CheckpointConfig(every=3),
        "evaluation": EvaluationConfig(every=5, episodes=1),
    }
    run(tiny(updates=5, log=("wandb",), **every), tmp_path, False, console)
    assert updates(tools["wandb"]) == [2, 4, 5, 5], "5 has an evaluation, too"
    assert updates(tools["broken"]) == [2, 4], "it fails at its second row"
    run(tiny(updates=8, log=("wandb",), **every), tmp_path, True, console)
    assert updates(tools["wandb"]) == [2, 4, 5, 5, 6, 8], "the evaluation at 5 was played again, and not shown again"
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("--log broken failed") == 1
    logged = logged_scalars(tmp_path)
    assert logged["eta/gamma"][0].tolist() == [2, 4, 6, 8], "event files take the half interval back"
    own: dict[int, dict[str, float]] = {}
    for update, values in tools["wandb"].rows:
        own[update] = own.get(update, {}) | values
    for name, (steps, logged_values) in logged.items():
        assert logged_values.tolist() == pytest.approx([own[step][name] for step in steps], rel=1e-6), name


def test_a_tool_is_told_which_run_it_is(tiny: Tiny, tmp_path: Path) -> None:
    facts = run_facts(tiny(), RunFolder(tmp_path / "a"))
    assert facts.id == run_facts(tiny(), RunFolder(tmp_path / "a")).id
    assert facts.id != run_facts(tiny(), RunFolder(tmp_path / "b")).id
    assert (facts.name, facts.experiment, facts.folder) == ("a", tiny().name, tmp_path / "a")
    assert facts.settings["meta_parameters.gamma.initial"] == tiny().meta_parameters.gamma.initial  # type: ignore[attr-defined]
    assert facts.settings["max_lag"] == "None"
    (tmp_path / "a" / "id.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no id"):
        run_facts(tiny(), RunFolder(tmp_path / "a"))


def test_a_tool_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_logs, "find_spec", lambda name: None)
    line = "log = 'wandb': is not installed where the run is driven; pip install 'metagrad\\[wandb\\]'"
    with pytest.raises(ConfigurationError, match=line):
        require_logs(["wandb"])


def test_tools_have_names_and_pictures_need_some(tiny: Tiny) -> None:
    with pytest.raises(ConfigurationError, match=r"^log = 'mlflow': must be one of trackio, wandb;"):
        tiny(log=("mlflow",))
    with pytest.raises(ConfigurationError, match=r"^log = .*: names a tool twice"):
        tiny(log=("wandb", "wandb"))
