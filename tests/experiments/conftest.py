"""Shares what the tests of the papers' experiments and studies need."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from metagrad.experiments.reporting import report
from metagrad.experiments.reporting.figures import Panel, line_panels


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pictures empty files: drawing takes seconds, and most tests read the page."""
    monkeypatch.setattr(report, "line_panels", lambda path, *_: path.touch())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Draw two panels of each picture alone, and record how many there are, in how many columns."""
    found = {}

    def draw_two(path: Path, panels: list[Panel], columns: int = 3) -> None:
        found[path.name] = len(panels), columns
        line_panels(path, panels[:: len(panels) - 1])

    monkeypatch.setattr(report, "line_panels", draw_two)
    return found


class PageOf(Protocol):
    """Writes a study's report; returns all above the differences, and the differences."""

    def __call__(
        self, report: Callable[..., None], parts: Mapping[str, Any], is_quick: bool = False
    ) -> tuple[str, str]: ...


@pytest.fixture
def page_of(tmp_path: Path) -> PageOf:
    def write(report: Callable[..., None], parts: Mapping[str, Any], is_quick: bool = False) -> tuple[str, str]:
        report(tmp_path, parts, is_quick)
        above, below = (tmp_path / "report.md").read_text(encoding="utf-8").split("## Where ours differs")
        return above, below

    return write
