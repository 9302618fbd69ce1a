"""The example for people with a training loop of their own: it is right, it learns, and it needs metagrad/ alone."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

import metagrad
from metagrad.meta_gradient import reference_meta_gradient
from metagrad.meta_parameters import hyperparameters, init_eta

ROOT = Path(__file__).parent.parent.parent
PATH = ROOT / "examples" / "own_training_loop.py"


@pytest.fixture(scope="module")
def example(load_example):
    module = load_example("own_training_loop")
    # Names of the library that a test can replace for the example alone.
    module.mg = SimpleNamespace(**{name: getattr(metagrad, name) for name in metagrad.__all__})
    return module


def test_is_short_and_imports_the_library_alone():
    source = PATH.read_text()
    assert len(source.splitlines()) <= 120
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"gymnasium", "metagrad", "numpy", "torch"}


def test_a_few_updates_move_what_is_learnt(example):
    start = hyperparameters(example.LEARNT, init_eta(example.LEARNT))
    mean_return, eta = example.train(updates=5, seed=3)
    learnt = hyperparameters(example.LEARNT, eta)
    assert np.isfinite(mean_return)
    for name, value in learnt.items():
        assert torch.isfinite(value).all()
        assert value.item() != start[name].item(), name


def test_a_run_repeats_with_its_seed(example):
    first, second, other = (example.train(updates=3, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_meta_gradient_is_that_of_the_whole_graph(example, monkeypatch):
    """One update of the loop itself, in float64, against one reverse pass through both inner updates."""
    seen = {}

    def outer_gradient(outer_loss, theta, batch):
        seen["outer_batch"] = batch
        return original_outer(outer_loss, theta, batch)

    def meta_gradient(problem, tape, outer_gradients, product):
        seen["start"] = [x.detach() for x in (tape[0].theta, tape[0].eta)]
        seen["state"], seen["batches"] = tape[0].state, [step.batch for step in tape]
        seen["result"] = original_meta(problem, tape, outer_gradients, product)
        return seen["result"]

    original_outer, original_meta = example.mg.outer_gradient, example.mg.meta_gradient
    monkeypatch.setattr(example.mg, "outer_gradient", outer_gradient)
    monkeypatch.setattr(example.mg, "meta_gradient", meta_gradient)
    example.network.module.double()
    monkeypatch.setattr(example.mg, "init_eta", lambda declaration: init_eta(declaration, torch.float64))
    try:
        example.train(updates=3, seed=0)
    finally:
        example.network.module.float()
    (theta, eta), batches = seen["start"], seen["batches"]
    assert theta.dtype == eta.dtype == torch.float64
    assert len(batches) == example.LOOK_AHEAD
    outers = [(0.0, None)] * (example.LOOK_AHEAD - 1) + [(1.0, seen["outer_batch"])]
    expected = reference_meta_gradient(
        example.PROBLEM, example.outer_loss, theta, seen["state"], eta, batches, outers
    ).eta
    assert (expected != 0.0).all()
    torch.testing.assert_close(seen["result"].eta, expected, rtol=1e-9, atol=0.0)


def test_the_first_update_is_kept_and_looks_ahead_on_other_environments(example, monkeypatch):
    starts, results, streams = [], [], []
    original_update, original_rollout = example.mg.inner_update, example.Stream.rollout

    def inner_update(problem, theta, state, eta, batch, keep_graph):
        starts.append((theta, state))
        results.append(original_update(problem, theta, state, eta, batch, keep_graph))
        return results[-1]

    def rollout(stream, theta):
        streams.append((stream, theta))
        return original_rollout(stream, theta)

    monkeypatch.setattr(example.mg, "inner_update", inner_update)
    monkeypatch.setattr(example.Stream, "rollout", rollout)
    example.train(updates=2, seed=0)
    n = example.LOOK_AHEAD
    assert starts[n][0] is results[0].theta
    assert starts[n][1] is results[0].state
    real = streams[0][0]
    assert [stream is real for stream, _ in streams] == 2 * [True, *[False] * n]
    # Each rollout is by the parameters that are updated, or scored, with it.
    sampled_by = [theta for _, theta in streams[: n + 1]]
    assert all(a is b for a, b in zip(sampled_by, [starts[0][0], *(x.theta for x in results[:n])], strict=True))


@pytest.mark.parametrize("limit", [500, 7])
def test_rows_are_what_single_environments_do(example, monkeypatch, limit):
    """Every valid row is a step of CartPole, true successor included; every other one a reset that pays nothing."""
    single = gymnasium.make("CartPole-v1").unwrapped
    single.reset()

    def make_vec(name, copies, vectorization_mode):
        assert vectorization_mode == "sync"
        return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(name, max_episode_steps=limit)] * copies)

    monkeypatch.setattr(example.gymnasium, "make_vec", make_vec)
    stream = example.Stream(seed=0)
    theta = torch.zeros(example.network.layout.size)
    rollouts = [stream.rollout(theta) for _ in range(4)]
    age = np.zeros(example.ENVIRONMENTS, dtype=int)
    has_ended = torch.zeros(example.ENVIRONMENTS, dtype=torch.bool)
    for batch in rollouts:
        for t in range(example.STEPS):
            assert torch.equal(batch.valid[t], ~has_ended)
            has_ended = batch.is_terminal[t] | batch.is_truncated[t]
            for b in range(example.ENVIRONMENTS):
                observation, successor = batch.observation[t, b].numpy(), batch.observation[t + 1, b].numpy()
                if not batch.valid[t, b]:
                    assert (np.abs(successor) <= 0.05).all()
                    assert batch.reward[t, b] == 0.0
                    assert not has_ended[b]
                    age[b] = 0
                    continue
                single.state, single.steps_beyond_terminated = observation.astype(np.float64), None
                expected, reward, is_terminal, _, _ = single.step(int(batch.action[t, b]))
                age[b] += 1
                np.testing.assert_allclose(successor, expected, rtol=1e-5, atol=1e-6)  # float32 state
                assert batch.reward[t, b] == np.float32(example.REWARD_SCALE * reward)
                assert batch.is_terminal[t, b] == is_terminal
                assert batch.is_truncated[t, b] == (age[b] == limit)
    assert torch.equal(rollouts[0].observation[-1], rollouts[1].observation[0])
    flags = torch.stack([batch.is_truncated.any() if limit == 7 else batch.is_terminal.any() for batch in rollouts])
    assert flags.any()


def test_a_truncated_step_bootstraps_and_a_terminal_one_does_not(example):
    value = torch.tensor([[0.0], [5.0], [7.0]])
    flag, off = torch.tensor([[True], [False]]), torch.zeros(2, 1, dtype=torch.bool)
    batch = example.Batch(None, None, torch.ones(2, 1), off, flag, ~off)
    assert example.targets(batch, value, 0.9)[0].item() == pytest.approx(1.0 + 0.9 * 5.0)
    batch = batch._replace(is_terminal=flag, is_truncated=off)
    assert example.targets(batch, value, 0.9)[0].item() == 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(example, seed):
    mean_return, _ = example.train(updates=1000, seed=seed)
    assert mean_return >= 150.0


def test_help_runs_without_training():
    done = subprocess.run([sys.executable, PATH, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--updates" in done.stdout
