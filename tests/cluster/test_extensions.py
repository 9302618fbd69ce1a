"""A file of somebody else's with an environment, a loss, an experiment and a study: imported, trained, read back.

Classes are found by walking subclasses, so every test unloads what it has imported.
"""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from metagrad.actor_critic import InnerLoss
from metagrad.actors.envs.base import EnvironmentConfig
from metagrad.actors.rollout import probe
from metagrad.cli.main import main
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.extensions import _FINDER, extensions, load_extension, with_extensions
from metagrad.cluster.config.json_form import config_types, from_json
from metagrad.cluster.on_ray import session as ray_session
from metagrad.cluster.run.folder import RunFolder
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.meta_parameters import MetaParameter

Capture = pytest.CaptureFixture[str]

CORRIDOR = '''
"""Walk right: a reward at the end of a corridor."""

from dataclasses import dataclass, replace

import torch

from metagrad.actors.envs.base import DeviceEnvironmentConfig, EnvironmentSpec, EnvironmentStep
from metagrad.cluster.studies.study import Study
from metagrad.experiments.debiasing.snake import snake_6x6
from metagrad.actor_critic import A2cLoss, InnerLoss
from metagrad.meta_parameters import MetaParameter, MetaVector
from metagrad.networks import Mlp


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyCorridorConfig(DeviceEnvironmentConfig):
    """Its rewards, place by place."""

    rewards: tuple[float, ...] = (0.0, 0.0, 1.0)

    def make(self, *, batch_size, seed, device, threads, is_training):
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
class ToyBonusParameters(InnerLoss):
    """A2C with a learnt bonus for every action, and nothing else learnt."""

    discount: MetaParameter

    def declaration(self, observation_shape, num_actions):
        bonus = MetaVector(num_actions, lambda generator: torch.randn(num_actions, generator=generator))
        return {"discount": self.discount, "bonus": bonus}

    def inner_loss(self, network, theta, hyper, trajectory, surrogate, outer):
        trajectory = trajectory._replace(reward=trajectory.reward + hyper["bonus"][trajectory.action])
        fixed = {name: theta.new_full((1,), 0.5) for name in ("lambda", "value_coefficient", "entropy_coefficient")}
        hyper = {"gamma": hyper["discount"]} | fixed
        a2c = A2cLoss(**dict.fromkeys(("gamma", "lambda_", *list(fixed)[1:]), self.discount))
        return a2c.inner_loss(network, theta, hyper, trajectory, surrogate, outer)


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
    loaded = {*(module.__name__ for module in extensions()), *_FINDER.sources}
    for name in [module.__name__ for module in extensions()]:
        del sys.modules[name]
    for name in (*_FINDER.sources, *_FINDER.aliases):
        sys.modules.pop(name, None)
    _FINDER.sources.clear()
    _FINDER.aliases.clear()
    for base in (BaseExperiment, EnvironmentConfig, InnerLoss):
        for kind in subclasses(base):
            if kind.__module__ in loaded:
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
    line = rf"metagrad: config.json type = 'ToyCorridorConfig': is not a configuration type known here; {remedy}"
    assert refused(("eval", "run"), capsys) == line
    assert refused(("plot", "run"), capsys) == line
    assert refused(TRAIN, capsys).startswith("metagrad: experiment = 'toy-corridor': is not an experiment; ")
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
        "from dataclasses import replace\nimport metagrad_extension_corridor as first\n"
        "EXPERIMENTS = {'again': lambda: replace(first.corridor(), name='again')}"
    )
    assert main(("--import", "corridor.py", "--import", "more.py", "list")) == 0
    printed = capsys.readouterr().out
    assert "  again " in printed
    assert "  toy-corridor " in printed
    assert [module.__name__ for module in extensions()] == ["metagrad_extension_corridor", "metagrad_extension_more"]


def test_actors_and_parts_on_ray_find_a_file_and_what_it_imports(
    corridor: Path, workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helpers are imported at once, late in a function, and from a package."""
    text = CORRIDOR.replace("[place]", "[toy_place.same(place)]").replace("from data", "import toy_place\nfrom data", 1)
    text = text.replace(
        "        return Corridor(",
        "        from toy_tools.late import batch\n        batch(self)\n        return Corridor(",
    )
    assert text.count("toy_place.same") == 1
    corridor.write_text(text)
    helpers = {"toy_place.py": "def same(x):\n    return x\n", "toy_tools/late.py": "from .deep import batch\n"}
    helpers |= {"toy_tools/deep.py": "def batch(config):\n    assert config.rewards\n", "torch.py": "1 / 0"}
    helpers |= {name: "1 / 0" for name in ("metagrad.py", "learner.py", "actors/__init__.py", "cluster/__init__.py")}
    for name, content in helpers.items():
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_text(content)
    load_extension(corridor)
    options = ("--lookahead", "fork", "--actors", "1")
    for path in (corridor, *workplace.glob("toy_*.py"), *workplace.glob("toy_tools/*.py")):
        path.unlink()  # nobody can import it again
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
    return f"from metagrad.experiments import {kind}\n{kind} = {{name: {kind}[name] for name in list({kind})[:1]}}\n"


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
    expected = "metagrad: import = '': does not name a file; metagrad --import FILE.py COMMAND …"
    assert refused(("--import",), capsys) == expected


def test_a_folder_is_no_file(workplace: Path) -> None:
    (workplace / "folder.py").mkdir()
    with pytest.raises(ConfigurationError, match=r"^import = .*folder.py': no such file"):
        load_extension(workplace / "folder.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nraise ZeroDivisionError", "line 2 of broken.py: ZeroDivisionError"),
        ("\n\n1 / 0", "line 3 of broken.py: ZeroDivisionError: division by zero"),
        ("\nx = (", "line 2 of broken.py: SyntaxError: .* was never closed"),
        ("x = 'a\0b'", r"\w+: source code string cannot contain null bytes"),
        ("import sys\nsys.exit(3)", "line 2 of broken.py: SystemExit: 3"),
        ("import no_such_module", "line 1 of broken.py: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from . import toy_other", "line 1 of broken.py: ImportError: attempted relative import .*"),
        ("def f():\n    f()\nf()", "line 2 of broken.py: RecursionError: .*"),
        ("raise OSError('two\\nlines \\x1b[31m')", r"line 1 of broken.py: OSError: two lines \S*"),
        ("import toy_bad", "line 2 of toy_bad.py: NameError: name 'no' is not defined"),
        ("import toy_torn", "line 1 of toy_torn.py: SyntaxError: .*"),
        ("import toy_cycle\nx = 1", "line 1 of toy_cycle.py: ImportError: cannot import name 'x' from partially .*"),
        (
            "from dataclasses import replace\nfrom metagrad.experiments import EXPERIMENTS as x\n\n"
            "bad = replace(x['demo'](), updates=0)",
            "line 4 of broken.py: updates = 0: must be at least 1; raise it",
        ),
    ],
)  # fmt: skip
def test_an_error_in_a_file_is_one_line_with_its_own_line_and_leaves_nothing_behind(
    workplace: Path, capsys: Capture, text: str, expected: str
) -> None:
    path = workplace / "broken.py"
    path.write_text(text)
    (workplace / "toy_bad.py").write_text("\nno")
    (workplace / "toy_torn.py").write_text("def")
    (workplace / "toy_cycle.py").write_text("from broken import x")
    line = refused(("--import", "broken.py", "list"), capsys)
    remedy = "" if "updates" in text else "; correct the file"
    assert re.fullmatch(f"metagrad: import = 'broken.py': {expected}{remedy}", line), line
    assert line.isprintable()
    assert extensions() == []
    assert not {"broken", "toy_bad", "toy_torn", "toy_cycle"} & set(sys.modules)
    path.write_text("EXPERIMENTS = {}")
    assert main(("--import", "broken.py", "--version")) == 0


def test_a_name_in_two_files_is_refused(workplace: Path) -> None:
    for name in ("first", "second"):
        (workplace / f"{name}.py").write_text("STUDIES = {'mine': 1}")
        load_extension(workplace / f"{name}.py")
    with pytest.raises(
        ConfigurationError, match=r"^.*second.py = 'mine': is a name in STUDIES already; choose another"
    ):
        with_extensions({}, "STUDIES", lambda _: True)
    assert with_extensions({"ours": print}, "EXPERIMENTS", callable) == {"ours": print}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EXPERIMENTS = [1]", r"\S*/odd.py EXPERIMENTS = \[1\]: must be a dictionary of names; .*"),
        ("EXPERIMENTS = {1: print}", r"\S*/odd.py EXPERIMENTS = 1: must be a name of .*"),
        ("EXPERIMENTS = {'../x': print}", r"\S*/odd.py EXPERIMENTS = '../x': must be a name of .*"),
        ("EXPERIMENTS = {'toy': 1}", r"\S*/odd.py EXPERIMENTS\['toy'\] = 1: must be a function that returns .*"),
        ("STUDIES = {'toy': 1}", r"\S*/odd.py STUDIES\['toy'\] = 1: must be a Study; .*"),
        ("EXPERIMENTS = {'toy': lambda: 1}", r"EXPERIMENTS\['toy'\] = 1: must return an experiment; .*"),
        ("EXPERIMENTS = {'toy': lambda a: 1}", r"EXPERIMENTS\['toy'\]: must be callable without arguments; .*"),
        ("def f():\n    return 1 / 0\nEXPERIMENTS = {'toy': f}",
         r"EXPERIMENTS\['toy'\]: line 2 of odd.py: ZeroDivisionError: division by zero; correct the file"),
        ("from metagrad.experiments import EXPERIMENTS as x\nEXPERIMENTS = {'toy': x['demo']}",
         r"EXPERIMENTS\['toy'\]\(\).name = 'demo': is called 'toy' in the table; give it the same name"),
    ],
)  # fmt: skip
def test_an_entry_of_another_type_is_refused_in_one_line(
    workplace: Path, capsys: Capture, text: str, expected: str
) -> None:
    (workplace / "odd.py").write_text(text)
    line = refused(("--import", "odd.py", "list"), capsys)
    assert re.fullmatch(f"metagrad: {expected}", line), line


def test_a_file_is_one_module_by_whatever_name_it_is_imported(workplace: Path) -> None:
    """Two classes of one name would be refused, and `isinstance` would say no."""
    (workplace / "toy_base.py").write_text(CORRIDOR)
    (workplace / "toy_more.py").write_text("import toy_base\nimport toy_round\nEXPERIMENTS = {}")
    (workplace / "toy_round.py").write_text("import toy_more")
    (workplace / "toy_last.py").write_text("import metagrad_extension_toy_more as more, toy_base\nbase = more.toy_base")
    more = load_extension(workplace / "toy_more.py")
    base = load_extension(workplace / "toy_base.py")
    last = load_extension(workplace / "toy_last.py")
    assert more.toy_base is base is last.base is last.toy_base
    assert more.toy_round.toy_more is more


def test_helpers_of_one_name_in_two_folders_are_refused(workplace: Path, capsys: Capture) -> None:
    for folder in ("a", "b"):
        (workplace / folder).mkdir()
        (workplace / folder / "toy_helper.py").write_text(f"name = '{folder}'")
        (workplace / folder / f"env_{folder}.py").write_text("import toy_helper")
    line = refused(("--import", "a/env_a.py", "--import", "b/env_b.py", "list"), capsys)
    expected = "imports toy_helper, and another file of that name has been imported; rename one of them"
    assert line == f"metagrad: import = 'b/env_b.py': {expected}"


def test_nothing_else_of_the_folder_can_be_imported(workplace: Path, capsys: Capture) -> None:
    for name in ("random", "torch", "types", "ray", "rich"):
        (workplace / f"{name}.py").write_text("1 / 0")
    (workplace / "toy_unasked.py").touch()
    (workplace / "env.py").write_text("import random, torch, types, ray, rich\nx = random.random(), torch.zeros(1)")
    path = list(sys.path)
    load_extension(workplace / "env.py")
    assert sys.path == path
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("toy_unasked")


def test_a_file_called_as_a_package_stands_in_for_nothing(workplace: Path) -> None:
    from metagrad import experiments

    (workplace / "experiments.py").write_text("EXPERIMENTS = {}")
    module = load_extension(workplace / "experiments.py")
    assert sys.modules["metagrad.experiments"] is experiments
    assert extensions() == [module]
