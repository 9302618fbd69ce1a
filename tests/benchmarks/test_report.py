import json

import pytest

from benchmarks import report

MACHINE = {
    "cpu": "Fast 1",
    "cores": 2,
    "gpus": [],
    "load_average_1min": 0.25,
    "python": "3.11.7",
    "versions": {"torch": "2.13.0", "envpool": "absent"},
    "commit": "0123456789",
    "utc": "2026-01-02T03:04:05Z",
}


def result(**fields):
    return {
        "benchmark": "race",
        "is_quick": False,
        "is_alone": False,
        "machine": MACHINE,
        "ratios": {"ours over theirs": 2.0},
        **fields,
    }


def row(value, hardware="2 cores of Fast 1", label="ours over theirs", benchmark="race"):
    return {
        "benchmark": benchmark,
        "utc": "2026-01-02T03:04:05Z",
        "commit": "0123456789",
        "hardware": hardware,
        "ratios": {label: value},
    }


def test_a_result_is_kept_and_its_ratios_join_the_history(tmp_path):
    for value in (2.0, 3.0):
        report.keep(result(ratios={"ours over theirs": value}), tmp_path)
    assert report.read_results(tmp_path)["race"]["ratios"] == {"ours over theirs": 3.0}
    assert [each["ratios"]["ours over theirs"] for each in report.read_history(tmp_path)] == [2.0, 3.0]
    assert report.read_history(tmp_path)[0] == row(2.0)


@pytest.mark.parametrize("flag", ["is_quick", "is_alone"])
def test_what_is_no_measurement_is_not_kept(tmp_path, flag):
    with pytest.raises(ValueError, match="not recorded"):
        report.keep(result(**{flag: True}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("now", "said"), [(3.0, "+50%"), (1.9, "-5%"), (1.79, "**-10%: worse**")])
def test_the_history_marks_what_got_more_than_a_tenth_worse(now, said):
    ((_, _, *values, change, _),) = report.history_table([row(2.0), row(now)]).rows
    assert values == [now, 2.0]
    assert change == said


def test_ratios_of_other_hardware_labels_and_benchmarks_are_not_compared():
    others = [row(9.0, hardware="a GPU"), row(9.0, label="x"), row(9.0, benchmark="other")]
    table = report.history_table([*others, row(2.0)])
    assert ("race", "ours over theirs", 2.0, "", "first here", "2026-01-02 0123456") in table.rows
    assert len(table.rows) == 2  # of the other benchmark and of the newest race, which knows no x any more


def test_promises_are_shown_with_their_limits():
    targets = [
        {"name": "a", "value": 2, "at_least": 3.0, "met": False},
        {"name": "b", "value": 0.5, "at_most": 1.0, "met": True},
    ]
    table = report.targets_table({"race": result(targets=targets)})
    assert table.rows == [
        ("race", "a", "at least 3", 2.0, "**missed**"),
        ("race", "b", "at most 1", 0.5, "kept"),
    ]
    assert str(table).splitlines()[-1] == "| race | b | at most 1 | .5 | kept |"


def test_who_made_a_result_is_said_in_one_line():
    line = report.made_by(result(versions={"jax": "0.10"}))
    assert "2 cores of Fast 1, load 0.2" in line
    assert line.endswith("Python 3.11.7, torch 2.13.0, jax 0.10.")


def test_marks_and_blocks_must_agree():
    page = "<!-- begin x -->\n<!-- end -->\nby hand\n<!-- begin y -->\nold\n<!-- end -->\n"
    filled = report.fill(page, {"x": "1", "y": "2"})
    assert filled == "<!-- begin x -->\n1\n<!-- end -->\nby hand\n<!-- begin y -->\n2\n<!-- end -->\n"
    assert report.fill(filled, {"x": "1", "y": "2"}) == filled
    for blocks in ({"x": "1"}, {"x": "1", "y": "2", "z": "3"}):
        with pytest.raises(ValueError, match="the page has the marks"):
            report.fill(page, blocks)


def test_the_history_that_is_kept_can_be_read():
    for each in report.read_history():
        assert json.dumps(each)
        assert set(each) == {"benchmark", "utc", "commit", "hardware", "ratios"}
