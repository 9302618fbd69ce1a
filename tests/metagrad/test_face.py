"""`import metagrad`: the names that a training loop of one's own needs, and nothing that it does not."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from setuptools import find_packages

import metagrad

ROOT = Path(__file__).parent.parent.parent
SCRIPT = """
import torch
from metagrad import Adam, InnerProblem, inner_update, meta_gradient, outer_gradient

def loss(theta: torch.Tensor, eta: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, None]:
    return (theta - eta * batch).square().mean(), None

problem = InnerProblem(loss, Adam(learning_rate=0.1))
theta, eta = torch.zeros(3), torch.ones(1)
update = inner_update(problem, theta, problem.optimizer.init(theta), eta, torch.ones(3), keep_graph=True)
outer = outer_gradient(lambda theta, batch: (theta.sum(), None), update.theta, None)
gradient = meta_gradient(problem, [update.step], [outer.gradient], "retain")
"""


def in_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_the_library_page_lists_the_names_and_where_they_are() -> None:
    page = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \| .* \| `metagrad\.(\w+)` \|$", page, re.MULTILINE)
    listed = {name: module for names, module in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed == metagrad._MODULES
    assert sorted(listed) == metagrad.__all__


def test_type_checkers_see_the_same_names() -> None:
    imports = [node for node in ast.walk(ast.parse(Path(metagrad.__file__).read_text(encoding="utf-8")))]
    seen = {
        alias.name: str(node.module).removeprefix("metagrad.")
        for node in imports
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("metagrad.")
        for alias in node.names
        if alias.name == alias.asname  # a re-export
    }
    assert seen == metagrad._MODULES | metagrad._BEYOND


@pytest.mark.parametrize("name", [*metagrad.__all__, *metagrad._BEYOND])
def test_each_name_is_the_one_of_its_module(name: str) -> None:
    module = (metagrad._MODULES | metagrad._BEYOND)[name]
    assert getattr(metagrad, name) is getattr(import_module(f"metagrad.{module}"), name)
    assert name in dir(metagrad)


def test_other_names_are_told_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match=r"^module 'metagrad' has no attribute 'meta_gradients'$"):
        _ = metagrad.meta_gradients
    with pytest.raises(ImportError, match="cannot import name 'meta_gradients'"):
        exec("from metagrad import meta_gradients")


def test_importing_it_loads_nothing_and_using_it_torch_and_jaxtyping_alone() -> None:
    loaded = "sorted({name.partition('.')[0] for name in sys.modules})"
    before, after = in_fresh_process(
        f"import sys, metagrad; print({loaded}); from metagrad import *; InnerProblem; print({loaded})"
    ).splitlines()
    assert "'torch'" not in before
    assert {"'torch'", "'jaxtyping'"} <= set(re.findall(r"'\w+'", after))
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (
        each
        for each in config["tool"]["importlinter"]["contracts"]
        if each["name"] == "The library is torch and jaxtyping"
    )
    assert {"ray", "envpool", "tyro"} <= set(contract["forbidden_modules"])
    assert not {name for name in contract["forbidden_modules"] if f"'{name}'" in after}


@pytest.mark.parametrize("first", ["import metagrad.meta_gradient", "from metagrad.meta_gradient import outer_weights"])
def test_the_meta_gradient_is_the_function_whatever_is_imported_first(first: str) -> None:
    names = "metagrad.meta_gradient.__name__, meta_gradient is metagrad.meta_gradient, outer_gradient.__module__"
    code = f"{first}\nimport metagrad\nfrom metagrad import meta_gradient\n"
    code += f"from metagrad.meta_gradient import outer_gradient\nprint({names})"
    assert in_fresh_process(code) == "meta_gradient True metagrad.meta_gradient"


def test_a_script_of_ten_lines_runs() -> None:
    assert in_fresh_process(f"{SCRIPT}\nprint(tuple(gradient.eta.shape))") == "(1,)"


@pytest.mark.slow
def test_a_strict_type_checker_sees_the_types(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT}\nreveal_type(update.theta)\nreveal_type(meta_gradient)\ninner_update(1)\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"MYPYPATH": str(ROOT)}
    )
    assert 'Revealed type is "torch._tensor.Tensor"' in done.stdout, done.stdout
    assert "fallback=metagrad.unroll.InnerProblem" in done.stdout
    assert "fallback=metagrad.meta_gradient.MetaGradient]" in done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("script.py") and ": error: " in line]
    assert errors
    assert all("inner_update" in line for line in errors), errors


def test_the_wheel_is_one_package_without_benchmarks_and_tests() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = find_packages(str(ROOT), **tool["packages"]["find"])
    assert {name.partition(".")[0] for name in found} == {"metagrad"}
    assert not {part for name in found for part in name.split(".")} & {"benchmarks", "tests", "examples"}
    assert {"metagrad.learner", "metagrad.cluster.run", "metagrad.actors.envs", "metagrad.cli"} <= set(found)
    assert tool["package-data"] == {"metagrad": ["py.typed"]}
    assert (ROOT / "metagrad/py.typed").is_file()
