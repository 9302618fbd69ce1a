"""A file of somebody else's with an environment, a loss, an experiment and a study: imported, trained, read back.

Classes are found by walking subclasses, so every test unloads what it has imported.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray

from metagrad.actors.envs.base import EnvironmentConfig
from metagrad.actors.rollout import probe
from metagrad.cluster import ray_session
from metagrad.cluster.cli import main
from metagrad.cluster.config import Experiment
from metagrad.cluster.config_json import config_types, from_json
from metagrad.cluster.extensions import extensions, load_extension, with_extensions
from metagrad.cluster.run_config import BaseExperiment
from metagrad.cluster.run_folder import RunFolder
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.meta_parameters import MetaParametersConfig
from metagrad.meta_parameters import MetaParameter

Capture = pytest.CaptureFixture[str]

CORRIDOR = '''
"""Walk right: a reward at the end of a corridor."""

from dataclasses import dataclass, replace

import torch

from metagrad.actors.envs.base import DeviceEnvironmentConfig, EnvironmentSpec, EnvironmentStep
from metagrad.cluster.studies import Study
from metagrad.experiments.snake import snake_6x6
from metagrad.learner.meta_parameters import MetaParametersConfig
from metagrad.losses import inner_loss
from metagrad.meta_parameters import MetaParameter, MetaVector
from metagrad.networks import Mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyCorridorConfig(DeviceEnvironmentConfig):
    """Its rewards, place by place."""

    rewards: tuple[float, ...] = (0.0, 0.0, 1.0)

    def make(self, batch_size, seed, device, threads, is_training):
        return Corridor(self, batch_size, device)


class Corridor:
    def __init__(self, config, batch_size, device):
        shape = (len(config.rewards),)
        self.spec = EnvironmentSpec(batch_size, shape, torch.float32, ("stay", "right"), device, "Corridor")
        self._rewards = torch.tensor(config.rewards, device=device)

    def observe(self):
        return torch.nn.functional.one_hot(self._place, len(self._rewards)).float()

    def reset(self):
        self._place = torch.zeros(self.spec.batch_size, dtype=torch.int64, device=self.spec.device)
        return self.observe()

    def step(self, action):
        place = self._place + action
        is_end = place >= len(self._rewards) - 1
        reward = self._rewards[place]
        self._place = torch.where(is_end, 0, place)
        never = torch.zeros_like(is_end)
        return EnvironmentStep(self.observe(), reward, is_end, never, ~never, reward, is_end)

    def close(self):
        pass

    def snapshot(self):
        return {"place": self._place.clone()}

    def restore(self, snapshot):
        self._place = snapshot["place"].to(self.spec.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyBonusParameters(MetaParametersConfig):
    """A2C with a learnt bonus for every action, and nothing else learnt."""

    discount: MetaParameter

    def declaration(self, observation_shape, num_actions):
        bonus = MetaVector(num_actions, lambda generator: torch.randn(num_actions, generator=generator))
        return {"discount": self.discount, "bonus": bonus}

    def inner_loss(self, network, theta, hyper, trajectory, surrogate, outer):
        trajectory = trajectory._replace(reward=trajectory.reward + hyper["bonus"][trajectory.action])
        fixed = {name: theta.new_full((1,), 0.5) for name in ("lambda", "value_coefficient", "entropy_coefficient")}
        hyper = {"gamma": hyper["discount"]} | fixed
        return inner_loss(network, theta, hyper, trajectory, surrogate, outer)


def corridor():
    return replace(
        snake_6x6(),
        name="toy-corridor",
        description="Walk right",
        env=ToyCorridorConfig(),
        network=Mlp(hidden=4),
        meta_parameters=ToyBonusParameters(discount=MetaParameter(initial=0.9)),
        environments=4,
        rollout_length=3,
        updates=2,
        learner_threads=1,
    )


def run_part(settings):
    return {"places": len(ToyCorridorConfig(**settings).rewards)}


def report(folder, parts, is_quick):
    (folder / "report.md").write_text(str([result["places"] for _, result in parts.values()]))


EXPERIMENTS = {"toy-corridor": corridor}
STUDIES = {
    "toy-corridors": Study(
        name="toy-corridors",
        description="Corridors are walked",
        seeds=2,
        parts=lambda seeds, is_quick: {f"length-{k}": {"rewards": [0.0] * (k + 1)} for k in range(seeds)},
        run_part=run_part,
        report=report,
    )
}
'''


class Orphan:
    """Base of classes that no file defines any more."""

    __slots__ = ()


def subclasses(kind: type) -> list[type]:
    return [x for each in kind.__subclasses__() for x in (each, *subclasses(each))]


def unload() -> None:
    """As in a fresh process: no extension is imported, and its classes, which caches may hold, have another base."""
    for name in [module.__name__ for module in extensions()]:
        module = sys.modules.pop(name)
        if name in ray.cloudpickle.list_registry_pickle_by_value():
            ray.cloudpickle.unregister_pickle_by_value(module)
    for base in (BaseExperiment, EnvironmentConfig, MetaParametersConfig):
        for kind in subclasses(base):
            if kind.__module__.startswith("metagrad_extension_"):
                kind.__bases__ = (Orphan,)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what was imported in it is gone afterwards, for every test that follows."""
    before = config_types()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    unload()
    assert config_types() == before


@pytest.fixture
def corridor(workplace: Path) -> Path:
    """The file."""
    path = workplace / "corridor.py"
    path.write_text(CORRIDOR)
    return path


def refused(words: tuple[str, ...], capsys: Capture) -> str:
    """The one line that a command ends with, with exit code 2."""
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


TRAIN = ("train", "toy-corridor", "--run-dir", "run")


@pytest.mark.usefixtures("corridor")
def test_an_experiment_of_a_file_is_trained_and_read_back_and_refused_without_the_file(capsys: Capture) -> None:
    assert main(("--import", "corridor.py", *TRAIN, "--topology", "colocated", "--env.rewards", "0", "0.5", "1")) == 0
    capsys.readouterr()
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["experiment"], summary["updates"], summary["frames_real"]) == ("toy-corridor", 2, 2 * 12)
    assert set(summary["eta"]) == {"discount", "bonus_norm"}
    stored = RunFolder(Path("run")).experiment()
    assert isinstance(stored, Experiment)
    (module,) = extensions()
    assert type(stored.env) is module.ToyCorridorConfig
    assert stored.env.rewards == (0.0, 0.5, 1.0)
    assert stored.meta_parameters == module.ToyBonusParameters(discount=MetaParameter(initial=0.9))
    assert probe(stored.env).action_names == ("stay", "right")
    assert main((*TRAIN, "--resume", "--updates", "4")) == 0
    assert main(("eval", "run", "--episodes", "2")) == 0
    assert "update 4, sampled policy, seed 0: return " in capsys.readouterr().out

    unload()
    remedy = "give the file that defines it: metagrad --import FILE.py …"
    line = rf"metagrad: config.json type = 'ToyCorridorConfig': is no configuration type that is known here; {remedy}"
    assert refused(("eval", "run"), capsys) == line
    assert refused(("plot", "run"), capsys) == line
    assert refused(TRAIN, capsys).startswith("metagrad: experiment = 'toy-corridor': is no experiment; ")
    before = Path("run/config.json").read_bytes()
    assert refused(("train", "demo", *TRAIN[2:], "--resume"), capsys) == line
    assert Path("run/config.json").read_bytes() == before

    assert main(("--import", "corridor.py", "eval", "run", "--episodes", "2")) == 0


@pytest.mark.usefixtures("corridor")
def test_what_a_file_adds_is_listed_with_what_is_there(capsys: Capture) -> None:
    assert main(("--import", "corridor.py", "list")) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("toy-corridor ") and line.endswith("Walk right") for line in lines)
    assert any(line.startswith("toy-corridors ") and line.endswith("Corridors are walked") for line in lines)
    assert any(line.startswith("snake-6x6 ") for line in lines)
    assert main(("config", "toy-corridor", "--env.rewards", "1", "2")) == 0
    resolved = from_json(json.loads(capsys.readouterr().out))
    assert resolved.env.rewards == (1.0, 2.0)
    assert main(("reproduce", "toy-corridors", "--topology", "colocated", "--run-dir", "study")) == 0
    assert Path("study/report.md").read_text() == "[1, 2]"


@pytest.mark.usefixtures("corridor")
def test_two_files_are_imported_one_after_the_other(workplace: Path, capsys: Capture) -> None:
    (workplace / "more.py").write_text(
        "import metagrad_extension_corridor as first\nEXPERIMENTS = {'again': first.corridor}"
    )
    assert main(("--import", "corridor.py", "--import", "more.py", "list")) == 0
    printed = capsys.readouterr().out
    assert "  again " in printed
    assert "  toy-corridor " in printed
    assert [module.__name__ for module in extensions()] == ["metagrad_extension_corridor", "metagrad_extension_more"]


def test_actors_and_parts_on_ray_get_what_a_file_defines_by_value(
    corridor: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_extension(corridor)
    options = ("--lookahead", "fork", "--actors", "1")
    corridor.unlink()  # nobody can import it again
    with ray_session.ray_session(ray_session.ANY_ROOM):
        monkeypatch.setattr(ray_session, "ray_session", lambda _demand: nullcontext())
        assert main((*TRAIN, "--topology", "ray", *options)) == 0
        assert main(("reproduce", "toy-corridors", "--topology", "ray", "--run-dir", "study")) == 0
    assert main(("train", "toy-corridor", "--run-dir", "here", "--topology", "colocated", *options)) == 0
    on_ray, here = (json.loads(Path(name, "summary.json").read_text()) for name in ("run", "here"))
    assert on_ray["eta"] == here["eta"]
    assert Path("study/report.md").read_text() == "[1, 2]"
    capsys.readouterr()


def name_taken(kind: str) -> str:
    return f"from experiments import {kind}\n{kind} = {{name: {kind}[name] for name in list({kind})[:1]}}\n"


@pytest.mark.parametrize(
    ("name", "text", "words", "line"),
    [
        ("missing.py", None, (), "import = 'missing.py': no such file; check the path"),
        ("corridor.txt", "", (), "import = 'corridor.txt': must be a Python file; name one that ends in .py"),
        (
            "corridor.py",
            CORRIDOR,
            ("--import", "corridor.py"),
            "import = 'corridor.py': a file of that name has been imported; "
            "give each file once, under names that differ",
        ),
        (
            "twice.py",
            name_taken("EXPERIMENTS"),
            (),
            rf"\S*/twice.py = {next(iter(EXPERIMENTS))!r}: is a name in EXPERIMENTS already; choose another name",
        ),
        (
            "snake.py",
            CORRIDOR.replace("ToyCorridorConfig", "SnakeConfig"),
            (),
            "configuration = 'SnakeConfig': is the name of two configuration types; rename one of them",
        ),
    ],
)
def test_a_file_that_cannot_be_added_is_refused_in_one_line(
    workplace: Path, capsys: Capture, name: str, text: str | None, words: tuple[str, ...], line: str
) -> None:
    if text is not None:
        (workplace / name).write_text(text)
    assert re.fullmatch(f"metagrad: {line}", refused(("--import", name, *words, "list"), capsys))


def test_import_needs_a_file(capsys: Capture) -> None:
    expected = "metagrad: import = '': names no file; metagrad --import FILE.py COMMAND …"
    assert refused(("--import",), capsys) == expected


def test_a_folder_is_no_file(workplace: Path) -> None:
    (workplace / "folder.py").mkdir()
    with pytest.raises(ConfigurationError, match=r"^import = .*folder.py': no such file"):
        load_extension(workplace / "folder.py")


@pytest.mark.parametrize("make_error", [lambda: "raise ZeroDivisionError", lambda: "x = ("])
def test_an_error_in_a_file_is_its_own_and_leaves_nothing_behind(
    workplace: Path, make_error: Callable[[], str]
) -> None:
    path = workplace / "broken.py"
    path.write_text(CORRIDOR + make_error())
    with pytest.raises((ZeroDivisionError, SyntaxError)):
        main(("--import", "broken.py", "list"))
    assert extensions() == []
    path.write_text("EXPERIMENTS = {}")
    assert main(("--import", "broken.py", "--version")) == 0


def test_a_name_in_two_files_is_refused(workplace: Path) -> None:
    for name in ("first", "second"):
        (workplace / f"{name}.py").write_text("STUDIES = {'mine': 1}")
        load_extension(workplace / f"{name}.py")
    with pytest.raises(
        ConfigurationError, match=r"^.*second.py = 'mine': is a name in STUDIES already; choose another"
    ):
        with_extensions({}, "STUDIES")
    assert with_extensions({"ours": 0}, "EXPERIMENTS") == {"ours": 0}


def test_a_file_called_as_a_package_stands_in_for_nothing(workplace: Path) -> None:
    from metagrad import experiments

    (workplace / "experiments.py").write_text("EXPERIMENTS = {}")
    module = load_extension(workplace / "experiments.py")
    assert sys.modules["metagrad.experiments"] is experiments
    assert extensions() == [module]
