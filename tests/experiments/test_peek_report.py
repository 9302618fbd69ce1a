from pathlib import Path
from typing import Any

import pytest

from metagrad.experiments.one_step_at_a_time.peek_report import SNAKE, report


def run(schedule: str, n: int, seed: int, end: float, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = {"schedule": schedule, "n": n, "seed": seed, "environments": 512, "updates": 20}
    curve = {"updates": [0, 10, 20], "values": [0.0, end / 2, end]}
    gamma = {"updates": [10, 20], "values": [0.8, 0.8 + seed / 100]}
    lookahead = 0 if schedule == "peek" else 1_000 * n
    result = {"sampled": curve, "eta/gamma": gamma, "wall_seconds": seconds, "frames_real": 1_000}
    share = {"updates": [10, 20], "values": [0.75 + seed / 100, 0.9]}
    result |= {"policy/effective_sample_size": share} if schedule == "peek" else {}
    return settings, result | {"frames_lookahead": lookahead}


def parts(ends: list[float]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    found = {f"lockstep{seed}": run("lockstep", 3, seed, 4.0 + 0.1 * seed, 4.0) for seed in range(3)}
    found |= {f"peek{seed}": run("peek", 3, seed, end, 2.0) for seed, end in enumerate(ends)}
    samples = {"updates": [5], "lockstep": [[[1.0], [3.0]]], "peek": [[[2.0], [6.0]]], "impala": [[[90.0], [92.0]]]}
    return found | {"meta-gradients": ({"points": [5], "n": 3, "seed": 1, "samples": 2}, samples)}


@pytest.mark.parametrize(
    ("ends", "verdict", "is_worse"),
    [
        ([4.0, 4.1, 4.3], "4.1 → 4.13: not distinguishable", False),
        ([3.0, 3.1, 3.2], "4.1 → 3.1: smaller", True),
        ([5.0, 5.1, 5.21], "4.1 → 5.1: larger", False),
    ],
)
def test_returns_are_compared_seed_by_seed(tmp_path: Path, ends: list[float], verdict: str, is_worse: bool) -> None:
    report(tmp_path, parts(ends), is_quick=False, about=SNAKE)
    page = (tmp_path / "report.md").read_text()
    assert f"| n = 3: return at the end, equal real frames | no difference | {verdict}" in page
    differences = page.partition("## Where ours differs")[2]
    assert ("under peek, worse, by" in differences) == is_worse
    assert ("return at the end" in differences) == ("not" not in verdict)
    assert "| n = 3: real frames per second, one thread | 4 without a learner | 250 → 500: 2 times | 3 |" in page
    assert "| n = 3: look-ahead frames of a run | 0 under peek | 3,000 → 0 | 3 | exact |" in page
    assert "| n = 3: effective sample size, share of the steps | 1 in lockstep | 0.9 at the end | 3 | least" in page
    assert "least mean of an epoch 0.75 |" in page
    # means 2 and 4, standard errors 1 and 2
    assert "2 → 4; apart by 0.89 standard errors | 2 samples | std of single samples 1.4 and 2.8, ratio 2 |" in page
    # means 2 and 91, both with a standard error of 1
    counted = "further than 2 standard errors from lockstep's | 0.045 by chance |"
    assert f"meta-gradients of peek {counted} 0 of 1, the largest 0.89 | 2 samples | ratios of std: median 2" in page
    assert f"peek with clips of 1 {counted} 1 of 1, the largest 63 |" in page
    assert "n = 3, clips of 1, seed 1: meta-gradient at update 5: 2 → 91; apart by 63 standard errors" in differences


def test_returns_have_the_interval_of_two_samples_too(tmp_path: Path) -> None:
    report(tmp_path, parts([3.9, 4.1, 4.6]), is_quick=False, about=SNAKE)
    # paired differences -.1, 0, .4: SE .1528 x 4.303; two samples: std .1 and .3606, SE .2160 x 2.776 (4 degrees)
    shown = "difference 0.1, 95 %: ± 0.66 paired, ± 0.6 as two samples"
    assert shown in (tmp_path / "report.md").read_text()


def test_meta_gradients_that_differ_are_named(tmp_path: Path) -> None:
    found = parts([4.0, 4.1, 4.3])
    lockstep, peek = [[1.0, 0.0], [1.2, 0.1], [0.8, -0.1]], [[0.0, 1.0], [0.1, 1.2], [-0.1, 0.8]]
    settings, _ = found["meta-gradients"]
    result = {"updates": [5], "lockstep": [lockstep], "peek": [peek], "impala": [lockstep]}
    found["four"] = settings | {"learnt": ["gamma", "lambda_"]}, result
    report(tmp_path, found, is_quick=False, about=SNAKE)
    table, _, differences = (tmp_path / "report.md").read_text().partition("## Where ours differs")
    assert "cosine of the means 0 |" in table
    # first component: -1 over sqrt((.2^2 + .1^2) / 3)
    assert "n = 3, four learnt, seed 1: meta-gradient at update 5: 1, 0 → 0, 1; apart by -7.7, 7.7 st" in differences
    assert "n = 3, seed 1: meta-gradient" not in differences, "a difference of .89 standard errors is none"
    # one component of one run and two of the other
    assert "0.14 by chance | 2 of 3, the largest 7.7 |" in table


def test_arms_are_compared_with_lockstep_of_their_own_surrogate(tmp_path: Path) -> None:
    found = parts([4.0, 4.1, 4.3])
    for seed in range(3):
        for schedule, end, more in (("lockstep", 6.0, {}), ("peek", 5.0, {}), ("peek", 7.0, {"ratio_clip": 1.0})):
            settings, result = run(schedule, 3, seed, end + 0.1 * seed, 4.0)
            found[f"{schedule}{more}{seed}"] = settings | {"surrogate": "lvc"} | more, result
    report(tmp_path, found, is_quick=False, about=SNAKE)
    page = (tmp_path / "report.md").read_text()
    for arm, ends in (("n = 3", "4.1 → 4.13"), ("n = 3, LVC", "6.1 → 5.1"), ("n = 3, LVC, clips of 1", "6.1 → 7.1")):
        assert f"| {arm}: return at the end, equal real frames | no difference | {ends}" in page


def test_a_study_in_progress_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    found = parts([4.0, 4.1, 4.3])
    del found["peek2"], found["meta-gradients"]
    report(tmp_path, found, is_quick=True, about=SNAKE)
    page = (tmp_path / "report.md").read_text()
    assert "| 2 |" in page
    assert "A quick version" in page
