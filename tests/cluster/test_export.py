"""Trained policies in scripts and in files, held against the policy that `metagrad eval` plays."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import metagrad
from metagrad.actors.evaluate import Player
from metagrad.cli.main import main
from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.export import exported, require_format, signature
from metagrad.cluster.run.trained import TrainedRun, trained_run
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.experiments.loading import load
from metagrad.networks import SnakeCnn

STEPS, GAMES = 125, 8  # 1,000 actions
TORCH = """
import sys
sys.modules["metagrad"] = None  # importing it fails
import torch
given = torch.load(sys.argv[2], weights_only=True)
files = {"signature.json": ""}
policy = torch.export.load(sys.argv[1], extra_files=files).module()
generator, sampled, greedy = torch.Generator().manual_seed(given["seed"]), [], []
for observation in given["observations"]:
    with torch.no_grad():
        log_probs = policy(observation)
    race = torch.empty_like(log_probs).exponential_(generator=generator)
    sampled.append((log_probs.exp() / race).argmax(-1))
    greedy.append(log_probs.argmax(-1))
alone = policy(given["observations"][0][:1]).shape
print(torch.equal(torch.stack(sampled), given["sampled"]), torch.equal(torch.stack(greedy), given["greedy"]), *alone)
print(files["signature.json"])
"""
ONNX = """
import sys
sys.modules["metagrad"] = sys.modules["torch"] = None
import numpy as np
import onnxruntime
given = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1])
greedy = [session.run(["log_probs"], {"observation": x})[0].argmax(-1) for x in given["observations"]]
(alone,) = session.run(None, {"observation": given["observations"][0][:1]})
print(np.array_equal(np.stack(greedy), given["greedy"]), *alone.shape, session.get_inputs()[0].shape[0])
print(session.get_modelmeta().custom_metadata_map["signature.json"])
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("export") / "run"
    run(tiny(updates=4, checkpoint=CheckpointConfig(every=2)), path, False, Console(quiet=True))
    return path


def played(trained: TrainedRun, seed: int, is_greedy: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return what `metagrad eval` sees and does, [STEPS] of [GAMES, …]."""
    player, cpu = Player(trained.network, trained.theta, seed, is_greedy), torch.device("cpu")
    observations, actions = [], []
    make = trained.experiment.env.make
    with closing(make(batch_size=GAMES, seed=seed, device=cpu, threads=1, is_training=False)) as environment:
        observation = environment.reset()
        for _ in range(STEPS):
            observations.append(observation)
            actions.append(player.act(observation))
            observation = environment.step(actions[-1]).observation
    return observations, torch.stack(actions)


def fresh(script: str, *words: Path) -> list[str]:
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_script_has_policy_critics_and_what_was_learnt(run_dir: Path) -> None:
    trained = metagrad.load(run_dir)
    assert trained.update == 4
    assert trained.experiment.name == "snake-6x6"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert trained.eta == summary["eta"]
    observations, actions = played(trained, 3, is_greedy=False)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(torch.stack([trained.act(x, generator) for x in observations]), actions)
    observations, actions = played(trained, 3, is_greedy=True)
    assert torch.equal(torch.stack([trained.act(x) for x in observations]), actions)
    assert torch.allclose(trained.policy(observations[0]).exp().sum(-1), torch.ones(GAMES))
    values = trained.critics(observations[0])
    assert {head: tuple(x.shape) for head, x in values.items()} == {"value": (GAMES,), "outer_value": (GAMES,)}
    earlier = load(run_dir, update=2)
    assert (earlier.update, torch.equal(earlier.theta, trained.theta)) == (2, False)
    with pytest.raises(ConfigurationError, match=r"^update = 3: has no checkpoint in this run; choose one of 2, 4$"):
        metagrad.load(run_dir, update=3)


def test_an_exported_policy_plays_the_same_actions_without_metagrad(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = metagrad.load(run_dir)
    observations, sampled = played(trained, 7, is_greedy=False)
    given = {
        "seed": 7,
        "observations": torch.stack(observations),
        "sampled": sampled,
        "greedy": torch.stack([trained.act(x) for x in observations]),
    }
    torch.save(given, tmp_path / "given.pt")
    policy = tmp_path / "policy.pt2"
    assert main(["export", str(run_dir), "--output", str(policy)]) == 0
    assert "observation float32 [batch, 3, 3, 5] to log_probs [batch, 4]" in capsys.readouterr().out
    equal, text = fresh(TORCH, policy, tmp_path / "given.pt")
    assert equal == "True True 1 4"
    assert json.loads(text) == signature(trained)
    assert json.loads(text)["inputs"] == {"observation": {"dtype": "float32", "shape": ["batch", 3, 3, 5]}}


RECURRENT = """
import sys
sys.modules["metagrad"] = None
import torch
given = torch.load(sys.argv[2], weights_only=True)
policy = torch.export.load(sys.argv[1]).module()
state, actions = torch.zeros_like(given["states"][0]), []
for observation, ended in zip(given["observations"], given["ended"]):
    with torch.no_grad():
        log_probs, state = policy(observation, state)
    state[ended] = 0.0
    actions.append(log_probs.argmax(-1))
print(torch.equal(torch.stack(actions), given["greedy"]), torch.equal(state, given["states"][-1]))
"""


RECURRENT_ONNX = """
import sys
sys.modules["metagrad"] = sys.modules["torch"] = None
import numpy as np
import onnxruntime
given = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1])
state, actions = np.zeros_like(given["states"][0]), []
for observation, ended in zip(given["observations"], given["ended"]):
    log_probs, state = session.run(["log_probs", "next_state"], {"observation": observation, "state": state})
    state[ended] = 0.0
    actions.append(log_probs.argmax(-1))
is_close = np.allclose(state, given["states"][-1], rtol=0.0, atol=1e-5)
print(np.array_equal(np.stack(actions), given["greedy"]), is_close)
print(*session.get_inputs()[1].shape, *session.get_outputs()[1].shape)
"""


@pytest.mark.slow
def test_a_recurrent_policy_leaves_with_its_state(tmp_path: Path, tiny: Callable[..., Any]) -> None:
    run(
        tiny(updates=2, network=SnakeCnn(channels=2, policy_hidden=6, value_hidden=6, gru=4)),
        tmp_path / "run",
        False,
        Console(quiet=True),
    )
    trained = metagrad.load(tmp_path / "run")
    player, cpu = Player(trained.network, trained.theta, 0, True), torch.device("cpu")
    given: dict[str, list[torch.Tensor]] = {name: [] for name in ("observations", "ended", "states", "greedy")}
    state = trained.network.fresh_state(GAMES)
    assert state is not None
    with closing(
        trained.experiment.env.make(batch_size=GAMES, seed=1, device=cpu, threads=1, is_training=False)
    ) as environment:
        observation = environment.reset()
        for _ in range(STEPS):
            decision = trained.decide(observation, state=state)
            action = player.act(observation)
            assert torch.equal(decision.action, action)
            assert trained.critics(observation, state)["value"].shape == (GAMES,)
            step = environment.step(action)
            player.see(step)
            assert decision.state is not None
            state = torch.where(step.is_terminal[:, None], 0.0, decision.state)
            for name, x in zip(given, (observation, step.is_terminal, state, action), strict=True):
                given[name].append(x)
            observation = step.observation
    torch.save({name: torch.stack(rows) for name, rows in given.items()}, tmp_path / "given.pt")
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "policy.pt2")]) == 0
    assert fresh(RECURRENT, tmp_path / "policy.pt2", tmp_path / "given.pt") == ["True True"]
    assert signature(trained)["inputs"]["state"] == {"dtype": "float32", "shape": ["batch", 12]}
    assert list(signature(trained)["outputs"]) == ["log_probs", "next_state"]
    if find_spec("onnxscript") is None or find_spec("onnxruntime") is None:
        return
    assert main(["export", str(tmp_path / "run"), "--format", "onnx", "--output", str(tmp_path / "policy.onnx")]) == 0
    arrays = {name: torch.stack(rows).numpy() for name, rows in given.items()}
    np.savez(tmp_path / "given.npz", **arrays)
    assert fresh(RECURRENT_ONNX, tmp_path / "policy.onnx", tmp_path / "given.npz") == ["True True", "batch 12 batch 12"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxscript") is None or find_spec("onnxruntime") is None, reason="needs the extra onnx")
def test_onnx_runtime_plays_the_same_actions(run_dir: Path, tmp_path: Path) -> None:
    trained = metagrad.load(run_dir)
    observations, greedy = played(trained, 7, is_greedy=True)
    np.savez(tmp_path / "given.npz", observations=torch.stack(observations).numpy(), greedy=greedy.numpy())
    assert main(["export", str(run_dir), "--format", "onnx", "--output", str(tmp_path / "policy.onnx")]) == 0
    equal, text = fresh(ONNX, tmp_path / "policy.onnx", tmp_path / "given.npz")
    assert equal == "True 1 4 batch"
    assert json.loads(text) == signature(trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atari", "stacx-impala", "discounting-chain", "ipd", "atari-released"])
def test_policies_of_all_kinds_of_networks_leave(name: str, tmp_path: Path) -> None:
    words = ["train", name, "--topology", "colocated", "--updates", "3", "--environments", "2", "--actors", "1"]
    if "atari" in name or "stacx" in name:
        words += ["--env.game", "Pong", "--rollout-length", "4", "--learner-threads", "1"]
    assert main([*words, "--run-dir", str(tmp_path / "run")]) == 0
    trained = trained_run(tmp_path / "run", None, print)
    assert exported(trained, "torch")
    (tmp_path / "policy.pt2").write_bytes(exported(trained, "torch"))
    shape, dtype = trained.spec.observation_shape, trained.spec.observation_dtype
    observation = torch.randint(0, 2, (5, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    loaded = torch.export.load(tmp_path / "policy.pt2").module()
    torch.testing.assert_close(loaded(observation), trained.policy(observation), rtol=1e-5, atol=1e-6)
    heads = trained.critics(observation)
    assert all(values.shape == (5,) for values in heads.values())
    assert EXPERIMENTS[name]().network.has_critics == ("value" in heads)


@pytest.mark.parametrize(
    ("format", "output", "line"),
    [
        ("torch", "policy.pt", r"^output = 'policy.pt': must end in .pt2 \(--format torch\)"),
        ("onnx", "policy.pt2", r"^output = 'policy.pt2': must end in .onnx \(--format onnx\)"),
    ],
)
def test_a_file_of_another_ending_is_refused(format: Any, output: str, line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        require_format(format, output)


def test_onnx_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metagrad.cluster.run.export.find_spec", lambda name: None)
    line = r"^format = 'onnx': needs the package onnx, which is not installed; pip install 'metagrad\[onnx\]'$"
    with pytest.raises(ConfigurationError, match=line):
        require_format("onnx", "policy.onnx")
