"""The documents say what is so: their code runs, their links lead somewhere, their options exist."""

import contextlib
import functools
import importlib
import re
from pathlib import Path

import pytest
import torch

from metagrad.cli.main import main
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.config.json_form import to_json
from metagrad.cluster.config.ruled import under_rule
from metagrad.experiments import EXPERIMENTS
from metagrad.lpg import Lpg
from metagrad.rule_files import save_rule

ROOT = Path(__file__).parent.parent
AT_TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
DOCUMENTS = [*(ROOT / name for name in AT_TOP), *sorted((ROOT / "docs").glob("*.md"))]
MAX_COLUMNS = 100
FOLDERS = "actors|benchmarks|cli|cluster|deploy|docker|docs|examples|experiments|learner|metagrad|tests"


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_lines_fit_a_terminal(document):
    wide = [number for number, line in enumerate(document.read_text().splitlines(), 1) if len(line) > MAX_COLUMNS]
    assert not wide, f"over {MAX_COLUMNS} columns: {wide}"


def resolves(dotted: str) -> bool:
    """True for a module, or a chain of attributes of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            functools.reduce(getattr, parts[length:], importlib.import_module(name))
            return True
    return False


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if each.name != "CHANGELOG.md"], ids=lambda path: path.name
)
def test_files_and_names_in_documents_exist(document):
    text = document.read_text()
    files = set(re.findall(r"(?<![\w/.-])(?:[a-z][\w-]*/)+[\w-]+\.(?:py|sh|yaml|json)\b", text))
    files |= set(re.findall(rf"`((?:{FOLDERS})/[\w/-]*)`", text))
    gone = {name for name in files if not (ROOT / name).exists() and not (document.parent / name).exists()}
    gone |= {name for name in set(re.findall(r"(?<![\w/])metagrad(?:\.[a-zA-Z_]\w*)+", text)) if not resolves(name)}
    assert not gone, f"named, and not there: {sorted(gone)}"


def fields(config, prefix=""):
    for name, value in to_json(config).items():
        if isinstance(value, dict):
            yield from fields(getattr(config, name), f"{prefix}{name}.")
        yield f"{prefix}{name}"


def known_options(capsys, tmp_path) -> set[str]:
    rule = Lpg(units=2)
    save_rule(tmp_path / "rule.npz", rule, rule.init(torch.Generator()), {})
    ruled = under_rule(EXPERIMENTS["catch-8x8"](), str(tmp_path / "rule.npz"))
    names = {name for each in (ruled, *(make() for make in EXPERIMENTS.values())) for name in fields(each)}
    for command in (
        ("train", "demo"),
        ("submit", "demo"),
        ("plan", "demo"),
        ("eval",),
        ("export",),
        ("sweep", "demo"),
        ("plot",),
        ("reproduce", "mrp"),
        ("logs",),
    ):
        with contextlib.suppress(SystemExit):
            main([*command, "--help"])
        names |= set(re.findall(r"--([a-z][\w-]*)", capsys.readouterr().out))
    names |= {"help", "version", "import", "file"}  # the last one is docker compose's
    return {name.replace("_", "-").replace("lambda-", "lambda") for name in names}


def test_options_named_in_documents_exist(capsys, tmp_path):
    known = known_options(capsys, tmp_path)
    for document in DOCUMENTS:
        text = document.read_text()
        named = re.findall(r"`(--[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        named += [line for line in text.splitlines() if "metagrad train" in line]
        for option in re.findall(r"--([a-z][\w.-]*)", " ".join(named)):
            assert option.replace("_", "-") in known, f"{document.name}: --{option}"


def test_the_documented_refusal_is_what_is_printed(capsys):
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("metagrad: "))
    assert main(["train", "demo", "--environments", "513"]) == 2
    assert capsys.readouterr().err.strip() == line


def test_every_experiment_is_listed_in_the_readme_or_the_results():
    text = "".join(document.read_text() for document in DOCUMENTS)
    for name, make in EXPERIMENTS.items():
        assert isinstance(make(), BaseExperiment)
        assert f"`{name}`" in text, name
