import dataclasses
import sys
from importlib import import_module
from pathlib import Path

import pytest

from metagrad.cli.commands.submit import SubmitOptions
from metagrad.cli.main import COMMANDS
from metagrad.cli.shell import sibling
from metagrad.experiments import EXPERIMENTS

MODULES = [import_module(f"metagrad.cli.commands.{name}") for name in COMMANDS]
OPTIONS = {kind for module in MODULES for name, kind in vars(module).items() if name.endswith("Options")}


@pytest.mark.parametrize("kind", sorted(OPTIONS, key=str))
def test_options_are_values(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert kind.__doc__


def test_no_option_of_submit_is_called_as_a_field_of_an_experiment() -> None:
    own = {field.name for field in dataclasses.fields(SubmitOptions)} - {"experiment"}
    for make in EXPERIMENTS.values():
        assert not own & {field.name for field in dataclasses.fields(make())}


def test_a_sibling_is_a_program_beside_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "metagrad"), "train"])
    assert sibling("tensorboard") == "tensorboard"
    (tmp_path / "tensorboard").touch()
    assert sibling("tensorboard") == str(tmp_path / "tensorboard")
    (tmp_path / "metagrad").mkdir()
    assert sibling("metagrad") == "metagrad", "a package of that name is no program"
