"""The second device is made in the first test that asks for it, so that the tests of other folders run without one."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "gpu")]  # standin, device_runs, on_cuda: helpers of these tests
collect_ignore = ["standin.py"]  # the search for examples in docstrings would import it everywhere


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    return importlib.import_module("standin")


@pytest.fixture
def recorder(standin: ModuleType) -> Iterator[Any]:
    """Make its generators, and record the waits of the host."""
    with standin.second_device() as recorder:
        yield recorder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run first what forks: after a derivative on the second device, whose threads a fork lacks, autograd refuses."""
    own = [i for i, item in enumerate(items) if item.path.is_relative_to(HERE)]
    forking_first = sorted(
        (items[i] for i in own), key=lambda item: "in_group" not in getattr(item, "fixturenames", ())
    )
    for i, item in zip(own, forking_first, strict=True):
        items[i] = item
