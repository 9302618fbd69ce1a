"""The documents say what is so: their code runs, their links lead somewhere, their options exist."""

import re
from pathlib import Path

import pytest

from metagrad.cli.main import main
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.json_form import to_json
from metagrad.experiments import EXPERIMENTS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(text):
    """Code blocks, each with the output that a `text` block right after it claims."""
    return re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", text, re.DOTALL)


def with_code():
    return [document for document in DOCUMENTS if python_blocks(document.read_text())]


@pytest.mark.parametrize("document", with_code(), ids=lambda path: path.name)
def test_examples_run_and_print_what_is_said(document, capsys):
    """Blocks of one document follow one another, as for a reader who types them in."""
    namespace = {}
    for number, (code, said) in enumerate(python_blocks(document.read_text())):
        exec(compile(code, f"{document.name} block {number}", "exec"), namespace)
        printed = capsys.readouterr().out
        assert printed, f"block {number} shows nothing"
        assert not said or printed == said, number


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def fields(config, prefix=""):
    for name, value in to_json(config).items():
        if isinstance(value, dict):
            yield from fields(getattr(config, name), f"{prefix}{name}.")
        yield f"{prefix}{name}"


def known_options() -> set[str]:
    names = {name for make in EXPERIMENTS.values() for name in fields(make())}
    names |= {
        "resume",
        "run_dir",
        "episodes",
        "record",
        "output",
        "update",
        "greedy",
        "help",
        "version",
        "import",
        "job_env",
    }
    return {name.replace("_", "-").replace("lambda-", "lambda") for name in names}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_named_in_documents_exist(document):
    commands = [
        line for line in re.findall(r"`([^`]+)`", document.read_text()) if line.startswith("--") and "pip" not in line
    ]
    commands += [line for line in document.read_text().splitlines() if "metagrad train" in line]
    for command in commands:
        for option in re.findall(r"--([a-z][\w.-]*)", command):
            if option not in ("address", "working-dir"):  # Ray's own
                assert option.replace("_", "-") in known_options(), option


def test_the_documented_refusal_is_what_is_printed(capsys):
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("metagrad: "))
    assert main(["train", "demo", "--environments", "513"]) == 2
    assert capsys.readouterr().err.strip() == line


def test_every_experiment_is_listed_in_the_readme_or_the_results():
    text = "".join(document.read_text() for document in DOCUMENTS)
    for name, make in EXPERIMENTS.items():
        assert isinstance(make(), BaseExperiment)
        assert f"`{name}`" in text, name
