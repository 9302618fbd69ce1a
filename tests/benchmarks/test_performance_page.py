import pytest

from benchmarks import performance_page as subject
from benchmarks.__main__ import BENCHMARKS
from benchmarks.report import PAGE, RESULTS, fill, read_history, read_results


def test_every_benchmark_has_its_tables():
    assert set(subject.TABLES) == set(BENCHMARKS)


def test_the_page_says_what_the_results_say():
    """After a change of results or tables: python -m benchmarks.performance_page."""
    page = PAGE.read_text()
    assert fill(page, subject.blocks(read_results())) == page
    assert (RESULTS / "README.md").read_text() == subject.results_page(read_results(), read_history())


@pytest.mark.parametrize("name", subject.TABLES)
def test_a_benchmark_that_was_never_run_is_said_to_be_one(name):
    assert subject.blocks({})[name] == "Not measured yet."


def test_the_figure_is_that_of_a_result_that_is_there():
    has_result = (RESULTS / "meta_gradient.json").exists()
    assert (PAGE.parent / "images" / subject.FIGURE).exists() == has_result
