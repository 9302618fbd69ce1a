"""`metagrad train EXPERIMENT --rule FILE`: what becomes of the experiment, what is refused, what a run promises."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from metagrad.cli.main import main
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.config.json_form import from_json, to_json
from metagrad.cluster.config.ruled import RuledExperiment, under_rule
from metagrad.cluster.launch.launch import run
from metagrad.disco import DiscoRule
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.checkpoint import restore_newest
from metagrad.learner.ruled import ReplayConfig
from metagrad.lpg import Lpg
from metagrad.rule_files import save_rule

RULE = DiscoRule(prediction=4, largest_value=2, hidden=5, meta_hidden=3)
SETTINGS = {
    "updates": 5,
    "environments": 2,
    "rollout_length": 4,
    "learner_threads": 1,
    "log_every": 2,
    "checkpoint": CheckpointConfig(every=1_000, keep=2),
    "replay": ReplayConfig(capacity=6, batch=4),
}
WORDS = ("--environments", "2", "--rollout-length", "4", "--updates", "4", "--learner-threads", "1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rule.npz"
    save_rule(path, RULE, RULE.init(torch.Generator().manual_seed(0)), {"from": "a test"})
    return path


def tiny_ruled(file: Path, **changes: Any) -> RuledExperiment:
    base = under_rule(EXPERIMENTS["catch-8x8"](), str(file))
    network = replace(base.network, torso=replace(base.network.torso, hidden=8), lstm=4, head_hidden=4)
    return replace(base, **{"network": network, **SETTINGS, **changes})


@pytest.mark.parametrize(
    "name", ["snake-6x6", "snake-12x12", "atari", "pong", "stacx", "discounting-chain", "catch-8x8"]
)
def test_an_experiment_keeps_all_but_its_own_algorithm(name: str, file: Path) -> None:
    base: Any = EXPERIMENTS[name]()
    ruled = under_rule(base, str(file))
    assert (ruled.env, ruled.environments, ruled.updates, ruled.name) == (
        base.env,
        base.environments,
        base.updates,
        base.name,
    )
    assert ruled.optimizer.annealing_updates == base.optimizer.annealing_updates
    assert ruled.network.rule == RULE
    assert type(ruled.network.torso) is type(base.network)
    assert from_json(json.loads(json.dumps(to_json(ruled)))) == ruled


@pytest.mark.parametrize("name", ["ipd", "lifetimes"])
def test_what_trains_no_actor_critic_is_refused(name: str, file: Path) -> None:
    if name not in EXPERIMENTS:
        pytest.skip(f"there is no experiment {name}")
    with pytest.raises(ConfigurationError, match=r"rule = .*trains an actor-critic's agent"):
        under_rule(EXPERIMENTS[name](), str(file))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--meta.n", "1"), "meta.n = '1': is not an option of this command"),
        (("--meta-parameters.gamma.initial", "0.9"), "is not an option of this command"),
        (("--schedule", "peek"), "schedule = 'peek': needs losses that correct for rollouts of older policies"),
        (("--lookahead", "fork"), "lookahead = 'fork': is of virtual updates"),
        (("--precision", "bf16-mixed"), "precision = 'bf16-mixed': agents under a rule compute in float32"),
        (("--topology", "ray", "--learners", "2", "--actors", "2"), "learners = 2: this algorithm has no sums"),
        (("--replay.capacity", "5", "--replay.batch", "2"), "replay.capacity = 5: keeps whole batches of 2"),
        (("--replay.batch", "2"), "replay.batch = 2: draws from what replay.capacity keeps"),
        (("--network.rule.hidden", "7"), "network.rule = 'DiscoRule': has .* weights in these sizes"),
        (("--network.lstm", "0"), "network.lstm = 0: must be at least 1"),
    ],
    ids=str,
)
def test_what_cannot_apply_is_refused_in_one_line(
    words: Sequence[str], expected: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "catch-8x8", "--rule", str(file), *WORDS, *words, "--run-dir", str(tmp_path / "run"))
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(expected, line), line


def test_a_file_that_is_no_rule_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.npz").write_bytes(b"nothing")
    for name, expected in (("none.npz", "cannot be read"), ("other.npz", "no .npz file of numbers")):
        assert main(("train", "catch-8x8", "--rule", str(tmp_path / name))) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line


def test_a_run_is_trained_continued_with_the_same_bits_and_played(
    file: Path, console: Console, tmp_path: Path, learner_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_ruled(file)
    run(experiment, tmp_path / "whole", False, console)
    run(replace(experiment, updates=2), tmp_path / "parts", False, console)
    file.unlink()  # its weights are in the checkpoint
    summary = run(experiment, tmp_path / "parts", True, console)
    assert learner_of(tmp_path / "parts") == learner_of(tmp_path / "whole")
    assert summary["updates"] == 5
    assert summary["frames_real"] == (2 + 4) * 2 * 4, "the first update waits for two batches"
    assert summary["sampled"] == summary["consumed"]
    assert summary["eta"] == {}
    eta = restore_newest(tmp_path / "whole" / "checkpoints").tree["learner"]["eta"]
    assert torch.equal(eta, RULE.init(torch.Generator().manual_seed(0)))
    assert main(("eval", str(tmp_path / "whole"), "--episodes", "4")) == 0
    assert "4 episodes" in capsys.readouterr().out


def test_a_file_that_was_changed_since_is_refused(file: Path, console: Console, tmp_path: Path) -> None:
    experiment = tiny_ruled(file)
    save_rule(file, RULE, RULE.init(torch.Generator().manual_seed(1)), {})
    with pytest.raises(ConfigurationError, match="is not the file that the run was configured with"):
        run(experiment, tmp_path / "run", False, console)


def test_the_command_line_trains_by_any_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = Lpg(predictions=3, units=4, embedding=2)
    save_rule(tmp_path / "lpg.npz", rule, rule.init(torch.Generator().manual_seed(0)), {})
    small = ("--network.torso.channels", "2", "--network.torso.policy-hidden", "8", "--topology", "colocated")
    words = ("train", "snake-6x6", f"--rule={tmp_path / 'lpg.npz'}", *WORDS, *small, "--run-dir", str(tmp_path / "run"))
    assert main(words) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["type"], config["network"]["rule"]["type"]) == ("RuledExperiment", "Lpg")
    capsys.readouterr()
    assert main(("train", "snake-6x6", "--run-dir", str(tmp_path / "run"), "--resume", "--updates", "5")) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 5


@pytest.mark.slow
def test_a_rule_of_discorls_kind_is_trained_exported_and_used(
    console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lifetimes: Any = EXPERIMENTS["lifetimes"]()
    changes = {"agents": 2, "environments": 4, "actors": 1, "rollout_length": 4, "inner_updates": 2, "updates": 1}
    tiny = replace(lifetimes, rule=RULE, topology="colocated", learner_threads=1, **changes)
    run(tiny, tmp_path / "rule", False, console)
    assert from_json(to_json(tiny)) == tiny
    assert main(("export", str(tmp_path / "rule"), "--output", str(tmp_path / "trained.npz"))) == 0
    capsys.readouterr()
    ruled = tiny_ruled(tmp_path / "trained.npz")
    assert ruled.network.rule == RULE
    assert run(ruled, tmp_path / "agent", False, console)["updates"] == 5
