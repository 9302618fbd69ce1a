import json
from pathlib import Path

import pytest

from metagrad.cli.commands import config
from metagrad.cli.commands import list as listing
from metagrad.cli.lookup import NoRun, experiment_first, experiments, stored_experiment, studies, study_first
from metagrad.cluster.config.json_form import from_json
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS, STUDIES

Capture = pytest.CaptureFixture[str]


def test_the_first_word_is_a_name_and_the_others_are_left() -> None:
    experiment, rest = experiment_first(("demo", "--seed", "1"), "train")
    assert (experiment, rest) == (EXPERIMENTS["demo"](), ["--seed", "1"])
    study, rest = study_first(("mrp", "--quick"), "reproduce")
    assert (study, rest) == (STUDIES["mrp"], ["--quick"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "experiment = '': metagrad plan needs an experiment's name first; choose one of demo, snake-6x6"),
        (("--seed", "1"), "experiment = '--seed': metagrad plan needs an experiment's name first; "),
        (("demoo",), "experiment = 'demoo': is not an experiment; did you mean demo?"),
        (("zzz",), "experiment = 'zzz': is not an experiment; choose one of "),
    ],
)
def test_a_name_that_is_none_is_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        experiment_first(words, "plan")
    assert str(refusal.value).startswith(line)


def test_a_folder_without_a_run_is_told_apart_from_one_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NoRun):
        stored_experiment(str(tmp_path), "demo")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError) as refusal:
        stored_experiment(str(tmp_path), "demo")
    assert not isinstance(refusal.value, NoRun)


def test_all_names_are_listed_with_their_descriptions(capsys: Capture) -> None:
    listing.run(())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(experiments()) + len(studies())
    for name, study in studies().items():
        assert any(line.split(maxsplit=1) == [name, study.description] for line in lines)


def test_a_configuration_is_printed_as_json_that_can_be_read_back(capsys: Capture) -> None:
    config.run(("demo", "--seed", "7"))
    tree = json.loads(capsys.readouterr().out)
    assert tree["seed"] == 7
    assert from_json(tree).name == "demo"
