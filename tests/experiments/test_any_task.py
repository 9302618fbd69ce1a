"""Self-tuned A2C on tasks of EnvPool and Gymnasium: trained, resumed and evaluated, on Ray and colocated.

`TASKS` is the table of docs/environments.md: what stands there was tried here.
"""

import inspect
import json
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest
import torch
from gymnasium import spaces
from rich.console import Console

from metagrad.actors.envs.base import EnvironmentConfig
from metagrad.actors.envs.envpool import EnvPoolConfig
from metagrad.actors.envs.gym import GymConfig
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.export import exported, signature
from metagrad.experiments.loading import load
from metagrad.experiments.tasks.any_task import envpool, gym

ENVPOOL = (
    *("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"),  # classic control
    *("FrozenLake-v1", "Blackjack-v1", "LunarLander-v3", "BipedalWalker-v3"),  # toy text, Box2D
    *("MiniGrid-Empty-5x5-v0", "MiniGrid-DoorKey-5x5-v0", "MiniGrid-FourRooms-v0", "MiniGrid-MemoryS13-v0"),
    *("HalfCheetah-v4", "Hopper-v4", "CheetahRun-v1", "FetchReach-v4"),  # MuJoCo, of Gymnasium, DeepMind, robotics
    *("CarRacing-v3", "D1Basic-v1"),  # pictures
    *("Game2048-v1", "Highway-v0"),  # Jumanji's, highway-env's
)
GYMNASIUM = ("CartPole-v1", "Taxi-v4", "CliffWalking-v1", "MountainCarContinuous-v0")
TASKS: list[EnvironmentConfig] = [
    *(EnvPoolConfig(task=task) for task in ENVPOOL),
    *(GymConfig(id=id) for id in GYMNASIUM),
    GymConfig(id="Blackjack-v1", autoreset="same-step"),
    GymConfig(id="gymnasium.envs.classic_control:AcrobotEnv", max_episode_steps=9, vectorisation="async"),
    GymConfig(id="many_parts:ManyParts"),
    GymConfig(id="many_parts:ManyPictures"),
]
IN_A_HURRY = {"episodes": 2, "seed": 0, "is_greedy": False, "wants_recording": False, "max_steps": 20}


class ManyParts(gymnasium.Env[Any, Any]):
    """Observes a Tuple of all kinds, and takes actions of several numbers."""

    observation_space = spaces.Tuple(
        [spaces.Dict({"a": spaces.Discrete(3), "b": spaces.MultiDiscrete([2, 3])}), spaces.MultiBinary(2)]
    )
    action_space = spaces.MultiDiscrete([2, 3], start=[0, -1])
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), float(action.sum()), self.steps == 5, False, {}


class ManyPictures(gymnasium.Env[Any, Any]):
    """Observes two pictures beside numbers, and draws one of them."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (36, 40, 3), "uint8"),
            "map": spaces.Box(0, 255, (16, 17), "uint8"),
            "speed": spaces.Box(-1.0, 1.0, (2,)),
        }
    )
    action_space = spaces.Discrete(3)
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    seen: Any = None
    steps = 0

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps, self.seen = 0, self.observation_space.sample()
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps, self.seen = self.steps + 1, self.observation_space.sample()
        return self.seen, float(action), self.steps == 5, False, {}

    def render(self) -> Any:
        return self.seen["camera"]


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, and the Ray processes that it starts, import `many_parts`."""
    text = "import gymnasium\nfrom gymnasium import spaces\nfrom typing import Any, ClassVar\n"
    (tmp_path / "many_parts.py").write_text(text + inspect.getsource(ManyParts) + inspect.getsource(ManyPictures))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def name_of(env: EnvironmentConfig) -> str:
    return f"envpool {env.task}" if isinstance(env, EnvPoolConfig) else f"gym {env.id}"  # type: ignore[attr-defined]


def tiny(env: EnvironmentConfig, **values: Any) -> Experiment:
    experiment = envpool() if isinstance(env, EnvPoolConfig) else gym()
    small = {"environments": 4, "rollout_length": 4, "actors": 2, "updates": 2, "learner_threads": 1}
    small_network = replace(experiment.network, picture_hidden=8)
    return replace(experiment, env=env, network=small_network, **small | values)


def trained_resumed_and_evaluated(experiment: Experiment, folder: Path) -> None:
    console = Console(file=StringIO())
    first = run(experiment, folder, False, console)
    assert first["updates"] == experiment.updates
    again = run(replace(experiment, updates=experiment.updates + 1), folder, True, console)
    assert again["updates"] == experiment.updates + 1
    evaluate_run(folder, None, **IN_A_HURRY)
    (result,) = folder.glob("evaluation-*.json")
    assert len(json.loads(result.read_text())["returns"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
@pytest.mark.parametrize("env", TASKS, ids=name_of)
def test_every_task_of_the_table(env: EnvironmentConfig, schedule: Any, tmp_path: Path) -> None:
    trained_resumed_and_evaluated(tiny(env, schedule=schedule, topology="colocated"), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
@pytest.mark.parametrize("env", TASKS, ids=name_of)
def test_every_task_of_the_table_on_ray(env: EnvironmentConfig, schedule: Any, tmp_path: Path) -> None:
    trained_resumed_and_evaluated(tiny(env, schedule=schedule, topology="ray"), tmp_path / "run")


@pytest.mark.parametrize("schedule", ["lockstep", "peek"])
def test_some_tasks_quickly(schedule: Any, tmp_path: Path) -> None:
    parts, pictures = (
        GymConfig(id=f"many_parts:{name}", autoreset="same-step") for name in ("ManyParts", "ManyPictures")
    )
    for number, env in enumerate((EnvPoolConfig(task="Hopper-v4"), parts, pictures)):
        trained_resumed_and_evaluated(tiny(env, schedule=schedule, topology="colocated"), tmp_path / str(number))


@pytest.mark.slow
@pytest.mark.parametrize("gru", [None, 4])
def test_pictures_beside_numbers_are_recorded_and_exported(gru: int | None, tmp_path: Path) -> None:
    """A file in torch's format, and one for ONNX Runtime where it is installed, compute what the run's policy does."""
    experiment = tiny(GymConfig(id="many_parts:ManyPictures"), topology="colocated", is_observation_normalised=True)
    experiment = replace(experiment, network=replace(experiment.network, gru=gru))
    folder = tmp_path / "run"
    trained_resumed_and_evaluated(experiment, folder)
    evaluate_run(folder, None, **IN_A_HURRY | {"wants_recording": True, "seed": 1})
    assert list(folder.glob("episode-*.gif"))
    trained = load(folder)
    said = signature(trained)["inputs"]["observation"]
    size = 3 * 36 * 40 + 16 * 17 + 2
    assert said == {"dtype": "float32", "shape": ["batch", size], "pictures": [[3, 36, 40], [1, 16, 17]]}
    given = {"observation": 255.0 * torch.rand(7, size, generator=torch.Generator().manual_seed(0))}
    if gru is not None:
        given["state"] = torch.randn(7, gru, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = trained.policy(*given.values())
    (tmp_path / "policy.pt2").write_bytes(exported(trained, "torch"))
    found = torch.export.load(tmp_path / "policy.pt2").module()(*given.values())
    torch.testing.assert_close(found, expected)
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        return
    import onnxruntime

    session = onnxruntime.InferenceSession(exported(trained, "onnx"))
    found = session.run(None, {name: x.numpy() for name, x in given.items()})
    for x, y in zip(found, expected if gru is not None else (expected,), strict=True):
        torch.testing.assert_close(torch.from_numpy(x), y)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_cart_pole_is_solved_with_what_is_tuned(seed: int, tmp_path: Path) -> None:
    experiment = replace(envpool(), seed=seed, topology="colocated", learner_threads=1)
    folder = tmp_path / "run"
    run(experiment, folder, False, Console(file=StringIO()))
    evaluate_run(folder, None, **IN_A_HURRY | {"episodes": 100, "max_steps": 500})
    (result,) = folder.glob("evaluation-*.json")
    assert json.loads(result.read_text())["return_mean"] >= 475.0
