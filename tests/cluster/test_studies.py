"""Toy studies, colocated: tests/cluster/test_ray_parts.py has those on Ray."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console

from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.stop import StopRequest
from metagrad.cluster.studies import reproduce as reproducing
from metagrad.cluster.studies.folder import write_part
from metagrad.cluster.studies.reproduce import StudyStopped, colocated_parts, default_folder, reproduce
from metagrad.cluster.studies.study import PartFailed, Study
from metagrad.errors import ConfigurationError

ROOT = Path(__file__).parent.parent.parent


def squares(seeds: int, is_quick: bool) -> dict[str, dict[str, Any]]:
    return {f"square-{seed}": {"seed": seed, "power": (2, 3), "is_quick": is_quick} for seed in range(seeds)}


def power(settings: dict[str, Any]) -> dict[str, Any]:
    return {"value": settings["seed"] ** settings["power"][0], "nan": float("nan"), "tuple": (1, 2)}


def write(folder: Path, parts: dict[str, Any], is_quick: bool) -> None:
    values = [result["value"] for _, result in parts.values()]
    (folder / "report.md").write_text(f"{values} {is_quick}")


TOY = Study(name="toy", description="Squares.", seeds=3, parts=squares, run_part=power, report=write)


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


Reproduce = Callable[..., None]


@pytest.fixture
def colocated(tmp_path: Path, console: Console) -> Reproduce:
    """Run a study in `tmp_path`/toy."""

    def run(study: Study = TOY, seeds: int = 3, is_quick: bool = False) -> None:
        reproduce(study, tmp_path / "toy", seeds, is_quick, "colocated", console)

    return run


def counted(calls: list[int], study: Study = TOY) -> Study:
    """Make the same study, which notes the seeds that it computes."""

    def run_part(settings: dict[str, Any]) -> dict[str, Any]:
        calls.append(settings["seed"])
        return study.run_part(settings)

    return replace(study, run_part=run_part)


def test_a_study_leaves_parts_results_and_a_report(colocated: Reproduce, tmp_path: Path, console: Console) -> None:
    colocated()
    folder = tmp_path / "toy"
    assert (folder / "report.md").read_text() == "[0, 1, 4] False"
    assert sorted(path.name for path in folder.rglob("*")) == sorted(
        ["parts", "square-0.json", "square-1.json", "square-2.json", "results.json", "report.md"]
    )
    part = json.loads((folder / "parts" / "square-2.json").read_text())
    assert part["settings"] == {"seed": 2, "power": [2, 3], "is_quick": False}
    assert part["result"]["value"] == 4
    assert set(part["provenance"]) == {"metagrad", "commit", "torch", "python", "hardware", "wall_seconds"}
    results = json.loads((folder / "results.json").read_text())
    assert list(results["parts"]) == ["square-0", "square-1", "square-2"]
    assert json.dumps(results["parts"]["square-2"]) == json.dumps(part)
    assert results["command"] == "metagrad reproduce toy --seeds 3"
    assert f"report: {folder / 'report.md'}" in text(console).splitlines()
    assert "parts 3/3" in text(console)


def test_the_default_folder_is_the_same_every_time() -> None:
    assert default_folder(TOY, False) == Path("studies/toy")
    assert default_folder(TOY, True) == Path("studies/toy-quick")


def test_more_seeds_reuse_the_parts_and_fewer_leave_them_out(
    colocated: Reproduce, tmp_path: Path, console: Console
) -> None:
    calls: list[int] = []
    for seeds, computed, report in ((2, [0, 1], "[0, 1] False"), (4, [2, 3], "[0, 1, 4, 9] False"), (1, [], "[0] ")):
        calls.clear()
        colocated(counted(calls), seeds)
        assert calls == computed
        assert (tmp_path / "toy" / "report.md").read_text().startswith(report)
    assert "2 of 4 parts are there already" in text(console)


def test_a_report_of_stored_parts_is_that_of_fresh_ones(tmp_path: Path, console: Console) -> None:
    seen = []
    study = replace(TOY, report=lambda _folder, parts, _is_quick: seen.append(json.dumps(parts)))
    for _ in range(2):
        reproduce(study, tmp_path, 11, False, "colocated", console)  # by file name, 10 comes before 2
    assert seen[0] == seen[1]
    assert '"tuple": [1, 2]' in seen[0]


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seeds_are_refused(colocated: Reproduce, tmp_path: Path, seeds: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"^seeds = {seeds}: must be at least 1; use --seeds 3 "):
        colocated(seeds=seeds)
    assert list(tmp_path.iterdir()) == []


def test_other_settings_are_refused_and_named(colocated: Reproduce, tmp_path: Path) -> None:
    colocated()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    message = r"^run-dir = '.*toy': its part square-0 was made with is_quick = false, now asked true; .* --run-dir$"
    with pytest.raises(ConfigurationError, match=message):
        colocated(is_quick=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_folder_serves_one_process_at_a_time(colocated: Reproduce, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "toy").held(), pytest.raises(ConfigurationError, match="another process"):
        colocated()
    colocated()


def test_a_part_that_raises_ends_the_study_and_keeps_the_finished_ones(colocated: Reproduce, tmp_path: Path) -> None:
    def fail(settings: dict[str, Any]) -> dict[str, Any]:
        if settings["seed"] == 1:
            raise ConfigurationError("a part's own mistake, which is no wrong input")
        return power(settings)

    with pytest.raises(PartFailed, match="part square-1 of study toy failed") as failure:
        colocated(replace(TOY, run_part=fail))
    assert isinstance(failure.value.__cause__, ConfigurationError)
    assert [path.name for path in (tmp_path / "toy").rglob("*.json")] == ["square-0.json"]
    calls: list[int] = []
    colocated(counted(calls))
    assert calls == [1, 2]


def test_a_result_that_is_no_json_is_a_failure_of_its_part(colocated: Reproduce) -> None:
    with pytest.raises(PartFailed, match="part square-0") as failure:
        colocated(replace(TOY, run_part=lambda _: {"x": torch.zeros(1)}))
    assert isinstance(failure.value.__cause__, TypeError)


@pytest.mark.parametrize("parts", [{}, {"../x": {}}, {"a b": {}}, {".hidden": {}}, {"": {}}], ids=str)
def test_part_names_are_file_names(colocated: Reproduce, parts: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"parts|part names"):
        colocated(replace(TOY, parts=lambda *_: parts))


def test_parts_do_not_disturb_each_other(colocated: Reproduce, tmp_path: Path) -> None:
    """A part that changes torch's defaults and draws random numbers leaves no trace."""

    def draw(_: dict[str, Any]) -> dict[str, Any]:
        before = (str(torch.get_default_dtype()), torch.get_num_threads())
        torch.set_default_dtype(torch.float64)
        return {"value": [torch.rand(2).tolist(), *before]}

    torch.rand(1)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        colocated(replace(TOY, run_part=draw))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    stored = [json.loads(path.read_text())["result"]["value"] for path in (tmp_path / "toy" / "parts").iterdir()]
    assert all(value == stored[0] for value in stored)
    assert stored[0][1:] == ["torch.float32", 1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert stored[0][0] == torch.rand(2, dtype=torch.float64).tolist(), "whatever was drawn before in this process"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_colocated_study_at_once(
    colocated: Reproduce, tmp_path: Path, console: Console, number: signal.Signals
) -> None:
    def slow(settings: dict[str, Any]) -> dict[str, Any]:
        if settings["seed"] == 1:
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            time.sleep(60)
        return power(settings)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(StudyStopped) as stopped:
        colocated(replace(TOY, run_part=slow))
    assert stopped.value.exit_code == 128 + number
    assert f"stopped by {number.name} with 1 of 3 parts done; rerun the command to resume" in text(console)
    assert [path.name for path in (tmp_path / "toy").rglob("*.json")] == ["square-0.json"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    colocated()
    assert (tmp_path / "toy" / "report.md").read_text() == "[0, 1, 4] False"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("last", ["square-0", "square-2"])
def test_a_part_that_is_stored_is_counted_whenever_the_signal_comes(
    colocated: Reproduce,
    tmp_path: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    last: str,
) -> None:
    def store(folder: Path, name: str, record: dict[str, Any]) -> None:
        write_part(folder, name, record)
        if name == last:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(reproducing, "write_part", store)
    if last == "square-2":
        colocated()
        assert (tmp_path / "toy" / "report.md").read_text() == "[0, 1, 4] False"
        return
    with pytest.raises(StudyStopped):
        colocated()
    assert [path.name for path in (tmp_path / "toy").rglob("*.json")] == ["square-0.json"]
    assert f"stopped by {number.name} with 1 of 3 parts done; rerun the command to resume" in text(console)
    assert text(console).splitlines()[-2].startswith("parts 1/3 ")


def test_a_part_that_is_stored_is_counted_though_ctrl_c_is_pressed_twice(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ray, where the second one does not wait for the others."""

    def store(folder: Path, name: str, record: dict[str, Any]) -> None:
        write_part(folder, name, record)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(reproducing, "write_part", store)
    monkeypatch.setattr(
        reproducing,
        "_parts_on",
        lambda _topology, study, folder, missing, _say: colocated_parts(study, folder, missing),
    )
    with pytest.raises(StudyStopped):
        reproduce(TOY, tmp_path / "toy", 3, False, "ray", console)
    assert [path.name for path in (tmp_path / "toy").rglob("*.json")] == ["square-0.json"]
    assert "stopped by SIGINT with 1 of 3 parts done; rerun the command to resume" in text(console)


def test_on_a_terminal_one_line_keeps_moving_while_a_part_runs(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=200, force_terminal=True)

    def lines() -> set[tuple[str, str]]:
        """All that were shown while the second part ran: time taken, time left."""
        return set(re.findall(r"parts 1/2  elapsed (\d:\d\d:\d\d)  remaining about (\d:\d\d:\d\d)", text(console)))

    def slow(settings: dict[str, Any]) -> dict[str, Any]:
        while settings["seed"] == 1 and len(lines()) < 2:
            time.sleep(0.05)
        return power(settings)

    reproduce(replace(TOY, run_part=slow), tmp_path, 2, False, "colocated", console)
    assert all(elapsed == remaining for elapsed, remaining in lines()), "one part is done, one is left"
    assert "parts 2/2" in text(console)


def test_a_part_goes_on_with_the_work_that_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a training run does with its checkpoints; where its folder is stays out of what is stored."""
    seen: list[tuple[int, int]] = []

    def count(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        assert folder == tmp_path / "toy" / "work" / f"square-{settings['seed']}"
        folder.mkdir(parents=True, exist_ok=True)
        done = len(list(folder.iterdir()))
        seen.append((settings["seed"], done))
        for step in range(done, 4):
            if settings["seed"] == 1 and step == 2 != done:
                raise OSError("the machine is switched off")
            (folder / str(step)).touch()
        return power(settings)

    monkeypatch.chdir(tmp_path)
    study = replace(TOY, run_part=count, keeps_work=True)
    with pytest.raises(PartFailed, match="part square-1 of study toy failed"):
        reproduce(study, Path("toy"), 3, False, "colocated", Console(file=StringIO()))
    reproduce(study, Path("toy"), 3, False, "colocated", Console(file=StringIO()))
    assert seen == [(0, 0), (1, 0), (1, 2), (2, 0)]
    stored = json.loads((tmp_path / "toy" / "parts" / "square-1.json").read_text())
    assert stored["settings"] == {"seed": 1, "power": [2, 3], "is_quick": False}
    assert (tmp_path / "toy" / "report.md").read_text() == "[0, 1, 4] False"


def trained(seeds: int, is_quick: bool, updates: int = 100) -> dict[str, dict[str, Any]]:
    return {f"run-{seed}": {"seed": seed, "updates": 3 if is_quick else updates} for seed in range(seeds)}


DEEP = replace(TOY, parts=trained, updates=100, run_part=lambda settings: {"value": settings["updates"]})


def test_training_runs_can_be_shortened(tmp_path: Path, console: Console) -> None:
    for name, is_quick, updates, value in (("a", False, None, 100), ("b", False, 7, 7), ("c", True, None, 3)):
        reproduce(DEEP, tmp_path / name, 1, is_quick, "colocated", console, updates)
        assert (tmp_path / name / "report.md").read_text() == f"[{value}] {is_quick}"
        command = json.loads((tmp_path / name / "results.json").read_text())["command"]
        assert command == "metagrad reproduce toy --seeds 1" + {"a": "", "b": " --updates 7", "c": " --quick"}[name]
    message = r"^run-dir = .*: its part run-0 was made with updates = 7, now asked 100; choose another --run-dir$"
    with pytest.raises(ConfigurationError, match=message):
        reproduce(DEEP, tmp_path / "b", 1, False, "colocated", console)
    reproduce(DEEP, tmp_path / "longest", 1, False, "colocated", console, 100)
    reproduce(DEEP, tmp_path / "shortest", 1, False, "colocated", console, 1)


@pytest.mark.parametrize(
    ("study", "is_quick", "updates", "line"),
    [
        (TOY, False, 5, "updates = 5: this study has no training runs that could be shorter; leave it out"),
        (DEEP, False, 0, r"updates = 0: must lie in \[1, 100\]; the default is the paper's number"),
        (DEEP, False, -1, r"updates = -1: must lie in \[1, 100\]; "),
        (DEEP, False, 101, r"updates = 101: must lie in \[1, 100\]; "),
        (DEEP, True, 50, "updates = 50: --quick has a length of its own; leave one of them out"),
    ],
)
def test_other_lengths_are_refused(
    tmp_path: Path, console: Console, study: Study, is_quick: bool, updates: int, line: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{line}"):
        reproduce(study, tmp_path / "toy", 1, is_quick, "colocated", console, updates)
    assert list(tmp_path.iterdir()) == []


COLOCATED_WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from pathlib import Path
from rich.console import Console
from metagrad.cluster.studies.study import Study
from metagrad.cluster.studies.reproduce import reproduce
study = Study(
    name="toy", description="", seeds=1, parts=lambda seeds, _: {str(seed): {} for seed in range(seeds)},
    run_part=lambda _: {}, report=lambda folder, *_: (folder / "report.md").touch(),
)
for folder in ("colocated", "ray"):
    reproduce(study, Path(folder), 2, False, folder, Console())
"""


def test_colocated_studies_need_no_ray(tmp_path: Path) -> None:
    """That on Ray shows that the block holds."""
    done = subprocess.run(
        [sys.executable, "-c", COLOCATED_WITHOUT_RAY],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "import of ray halted" in done.stderr
    assert (tmp_path / "colocated" / "report.md").exists()
    assert not (tmp_path / "ray" / "report.md").exists()


@pytest.mark.parametrize(
    ("seconds", "topology", "line"),
    [
        (5.0, "colocated", "wait_for_resources = 5.0: has no effect with --topology colocated; "),
        (0.0, "ray", r"wait_for_resources = 0.0: must lie in \[1, 2592000\]; "),
        (float("nan"), "ray", "wait_for_resources = nan: must lie in"),
    ],
)
def test_how_long_to_wait_for_a_cluster_is_checked_before_anything_starts(
    tmp_path: Path, console: Console, seconds: float, topology: Literal["ray", "colocated"], line: str
) -> None:
    with pytest.raises(ConfigurationError, match=line):
        reproduce(TOY, tmp_path / "toy", 1, False, topology, console, None, seconds)
    assert not (tmp_path / "toy").exists()


def test_a_signal_that_came_while_torch_was_loaded_stops_a_study_before_its_first_part(colocated: Reproduce) -> None:
    calls: list[int] = []
    with StopRequest():
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(StudyStopped) as stopped:
            colocated(counted(calls))
    assert (calls, stopped.value.exit_code) == ([], 128 + signal.SIGHUP)
