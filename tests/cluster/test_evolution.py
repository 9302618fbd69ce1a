"""Populations under Tune's scheduler, in this process and on Ray: who goes on from whom, and what a restart repeats.

`metagrad.cluster.sweeps.tuning` is tried by the slow test, on Ray.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from metagrad.cluster.run.folder import RunFolder, read_json
from metagrad.cluster.sweeps.population import Population, value, without_meta_gradient
from metagrad.errors import ConfigurationError, RunLost
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.checkpoint import checkpoint_path, load

pytestmark = pytest.mark.skipif(
    not all(find_spec(package) for package in ("pandas", "pyarrow", "tensorboardX")), reason="needs the extra tune"
)


def grown(experiment: Any, folder: Path, size: int = 4, every: int = 2) -> Any:
    """Train a population in this process."""
    from metagrad.cluster.sweeps.evolution import Members, in_turn

    members = Members(Population(experiment=without_meta_gradient(experiment), size=size, every=every), folder)
    members.claim()
    in_turn(members)
    return members


def test_members_go_on_from_better_ones_and_a_restart_repeats_nothing(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metagrad.cluster.sweeps import evolution

    base = tiny(updates=4, rollout_length=20, log_every=1)
    members = grown(base, tmp_path)
    records = [members.records(index) for index in range(4)]
    assert [[record["updates"] for record in each] for each in records] == [[2, 4]] * 4
    first, second = zip(*records, strict=True)
    worst = min(range(4), key=lambda index: first[index]["return_mean"])
    best = max(range(4), key=lambda index: first[index]["return_mean"])
    assert {index: record["parent"] for index, record in enumerate(second) if record["parent"] is not None} == {
        worst: best
    }
    own, better = (load(checkpoint_path(members.place(i) / "checkpoints", 2))["learner"] for i in (worst, best))
    assert torch.equal(own["theta"], better["theta"])
    assert own["eta"].tolist() == pytest.approx([torch.tensor(second[worst]["odds"]["gamma"]).log().item()])
    gamma = value(base.meta_parameters.gamma, second[worst]["odds"]["gamma"])
    rows = members.table()
    assert next(row["eta"]["gamma"] for row in rows if row["member"] == worst) == pytest.approx(gamma, rel=1e-6)
    assert [row["return_mean"] for row in rows] == sorted((row["return_mean"] for row in rows), reverse=True)
    lines = evolution.as_markdown(rows).splitlines()
    assert lines[0] == "| member | seed | return | took over | gamma |"
    assert len(lines) == 6

    trained: list[str] = []
    monkeypatch.setattr(evolution, "run", lambda experiment, folder, *rest: trained.append(folder.name))
    grown(base, tmp_path)
    assert not trained, "all of it is recorded"
    other = records[worst][1] | {"odds": {"gamma": 1.0}}
    evolution.write_json(tmp_path / "records" / f"member={worst}.json", [records[worst][0], other])
    with pytest.raises(RunLost, match=rf"^member={worst} did generation 1 with other values; use another --run-dir"):
        grown(base, tmp_path)


def test_a_member_that_was_killed_goes_on_where_it_was(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """After the last generation's records are lost, and with half of the worst one's checkpoint taken over already."""
    base = tiny(updates=4, rollout_length=20)
    whole, again = (grown(base, tmp_path / name, size=2) for name in ("whole", "again"))
    from metagrad.cluster.sweeps.evolution import write_json

    for index in range(2):
        write_json(tmp_path / "again" / "records" / f"member={index}.json", again.records(index)[:1])
        checkpoint_path(again.place(index) / "checkpoints", 4).unlink()
    again = grown(base, tmp_path / "again", size=2)
    for index in range(2):
        assert again.records(index) == whole.records(index)
        trees = [load(checkpoint_path(each.place(index) / "checkpoints", 4))["learner"] for each in (whole, again)]
        assert torch.equal(trees[0]["theta"], trees[1]["theta"])


def test_a_signal_that_stops_a_member_is_passed_on(
    tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metagrad.cluster.sweeps import evolution

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    monkeypatch.setattr(evolution, "run", lambda *_: {"updates": 1, "stopped_by": "SIGTERM"})
    try:
        with pytest.raises(RunLost, match=r"^member=0 was stopped by SIGTERM$"):
            grown(tiny(), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_folder_belongs_to_one_population(tiny: Callable[..., Any], tmp_path: Path) -> None:
    base = tiny(updates=2)
    grown(base, tmp_path)
    for change, line in (({"size": 3}, r"^pbt = 3: .* has 4"), ({"every": 1}, r"^pbt-every = 1: .* has 2")):
        with pytest.raises(ConfigurationError, match=line):
            grown(base, tmp_path, **change)
    with pytest.raises(ConfigurationError, match=r"^rollout_length = 5: the run in .* was started with 3"):
        grown(replace(base, rollout_length=5), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_population_on_ray_is_that_of_one_process_also_when_it_is_killed(tmp_path: Path) -> None:
    words = ["sweep", "demo", "--updates", "40", "--environments", "8", "--pbt", "4", "--pbt-every", "10"]
    command = [sys.executable, "-m", "metagrad.cli.main", *words, "--run-dir", str(tmp_path / "ray")]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    records = tmp_path / "ray" / "records"
    while len(list(records.glob("*.json"))) < 4 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "generation 4 of 4: best return" in finished.stdout
    base = replace(EXPERIMENTS["demo"](), topology="colocated", updates=40, environments=8)
    members = grown(base, tmp_path / "here", every=10)
    for index in range(4):
        assert read_json(records / f"member={index}.json") == members.records(index)
        assert RunFolder(tmp_path / "ray" / "trials" / f"member={index}").has_run()
    assert [row["member"] for row in read_json(tmp_path / "ray" / "sweep.json")] == [
        row["member"] for row in members.table()
    ]


def test_a_tune_that_makes_its_choices_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from metagrad.cluster.sweeps import tune_private

    class Other:
        """Has no `_checkpoint_or_exploit`."""

    monkeypatch.setattr(tune_private, "PopulationBasedTraining", Other)
    with pytest.raises(ConfigurationError, match=r"^ray = .*has no _checkpoint_or_exploit, .*; install a release"):
        tune_private.SeededScheduler(lambda trial, at: (0,))
