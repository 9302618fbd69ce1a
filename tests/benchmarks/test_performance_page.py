import pytest

from benchmarks import performance_page as subject
from benchmarks.__main__ import BENCHMARKS
from benchmarks.report import PAGE, RESULTS, fill, read_history, read_results


def test_every_benchmark_has_its_tables():
    assert set(subject.TABLES) == set(BENCHMARKS)
    assert set(subject.PANELS) <= set(BENCHMARKS)


def test_the_page_says_what_the_results_say():
    """After a change of results or tables: python -m benchmarks.performance_page."""
    page = PAGE.read_text()
    assert fill(page, subject.blocks(read_results(), read_history())) == page


@pytest.mark.parametrize("name", subject.TABLES)
def test_a_benchmark_that_was_never_run_is_said_to_be_one(name):
    assert subject.blocks({}, [])[name] == "Not measured yet."


@pytest.mark.parametrize("name", subject.PANELS)
def test_figures_are_those_of_results_that_are_there(name):
    has_result = (RESULTS / f"{name}.json").exists()
    assert (PAGE.parent / "images" / f"performance-{name}.png").exists() == has_result
