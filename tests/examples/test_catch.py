"""The example of docs/extending.md: a right environment, a meta-parameter with the right derivative, one file."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from metagrad.meta_gradient import meta_gradient, outer_gradient
from metagrad.unroll import inner_update

ROOT = Path(__file__).parent.parent.parent
PATH = ROOT / "examples" / "catch.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def example(load_example: Callable[[str], ModuleType]) -> ModuleType:
    return load_example("catch")


def metagrad(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the example imported."""
    code = "import sys; from metagrad.cli.entry import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--import", str(PATH), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)


def test_a_ball_falls_and_is_caught_by_who_is_below_it(example: ModuleType) -> None:
    environment = example.CatchConfig(rows=4, columns=5).make(
        batch_size=256, seed=0, device=CPU, threads=1, is_training=True
    )
    board = environment.reset()
    assert board.shape == (256, 4, 5)
    ball = board[:, 0].argmax(-1)
    assert set(ball.tolist()) == set(range(5))
    for step in range(1, 4):
        paddle = board[:, -1].argmax(-1)
        outcome = environment.step((ball - paddle).sign() + 1)  # always towards the ball
        board = outcome.observation
        assert bool(outcome.is_terminal.all()) == (step == 3)
        if step < 3:
            assert torch.equal(board[:, step].argmax(-1), ball), "straight down, one row a step"
            assert (outcome.reward == 0.0).all()
    assert (outcome.reward == 1.0).all()
    assert (board.sum((1, 2)) == 2.0).all(), "the next game has begun"
    away = environment.step(torch.zeros(256, dtype=torch.int64))
    assert (away.observation[:, -1].argmax(-1) == 1).all(), "from the middle to the left"


def test_a_game_can_be_put_back(example: ModuleType) -> None:
    environment = example.CatchConfig().make(batch_size=8, seed=1, device=CPU, threads=1, is_training=True)
    environment.reset()
    kept = environment.snapshot()
    actions = torch.randint(3, (30, 8), generator=torch.Generator().manual_seed(2))
    first = [environment.step(action).observation for action in actions]
    environment.restore(kept)
    assert all(torch.equal(environment.step(action).observation, x) for action, x in zip(actions, first, strict=True))


def test_the_meta_parameter_is_one_at_the_start_and_has_the_right_derivative(example: ModuleType) -> None:
    """Finite differences in β through one inner update, in float64."""
    experiment = example.catch()
    environment = experiment.env.make(batch_size=16, seed=0, device=CPU, threads=1, is_training=True)
    algorithm = experiment.algorithm(environment.spec)
    agent, state = algorithm, algorithm.init(0, CPU)
    theta, eta = state.theta.double(), state.eta.double()
    batches = [_rollout(environment, seed) for seed in (1, 2)]
    name = list(agent.declaration).index("bad_news") - 3  # of the learnt ones: gamma, bad_news
    optimizer = agent.problem.optimizer.init(theta)

    update = inner_update(agent.problem, theta, optimizer, eta, batches[0], keep_graph=True)
    outer = outer_gradient(lambda x, batch: agent.outer_loss(x, eta, batch), update.theta, batches[1])

    def objective(eta: torch.Tensor) -> torch.Tensor:
        # Values inside the outer loss are constants: what is left of it is its gradient times the updated parameters.
        moved = inner_update(agent.problem, theta, optimizer, eta, batches[0], keep_graph=False)
        return outer.gradient @ moved.theta

    found = meta_gradient(agent.problem, [update.step], [outer.gradient], "retain").eta
    step = torch.zeros_like(eta)
    step[name] = 1e-5
    expected = (objective(eta + step) - objective(eta - step)) / 2e-5
    assert expected.abs() > 1e-7
    torch.testing.assert_close(found[name], expected.squeeze(), rtol=1e-4, atol=0.0)


def _rollout(environment: object, seed: int) -> object:
    from metagrad.types import Trajectory

    generator = torch.Generator().manual_seed(seed)
    observations, outcomes = [environment.reset()], []  # type: ignore[attr-defined]
    actions = torch.randint(3, (12, 16), generator=generator)
    for action in actions:
        outcomes.append(environment.step(action))  # type: ignore[attr-defined]
        observations.append(outcomes[-1].observation)
    columns = [torch.stack([getattr(x, name) for x in outcomes]) for name in ("reward", "is_terminal", "is_truncated")]
    reward = columns[0].double()
    return Trajectory(
        torch.stack(observations).double(), actions, reward, *columns[1:], columns[1] | True, reward * 0.0, 0
    )


def test_the_file_is_all_that_the_command_line_needs(tmp_path: Path) -> None:
    tiny = ("--updates", "4", "--environments", "8", "--topology", "colocated", "--learner-threads", "1")
    trained = metagrad(tmp_path, "train", "catch", *tiny, "--run-dir", "run")
    assert trained.returncode == 0, trained.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["env"]["type"], config["meta_parameters"]["type"]) == ("CatchConfig", "BadNewsLoss")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["updates"] == 4
    assert summary["eta"]["bad_news"] != pytest.approx(1.0, abs=1e-6), "it is learnt"
    played = metagrad(tmp_path, "eval", "run", "--episodes", "8")
    assert played.returncode == 0, played.stderr


@pytest.mark.slow
def test_it_learns_to_catch(tmp_path: Path) -> None:
    run = metagrad(tmp_path, "train", "catch", "--topology", "colocated", "--learner-threads", "1", "--run-dir", "run")
    assert run.returncode == 0, run.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["return_mean"] > 0.8
