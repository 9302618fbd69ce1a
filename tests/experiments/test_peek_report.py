from pathlib import Path
from typing import Any

import pytest

from experiments.peek_report import report


def run(schedule: str, n: int, seed: int, end: float, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = {"schedule": schedule, "n": n, "seed": seed, "environments": 512, "updates": 20}
    curve = {"updates": [0, 10, 20], "values": [0.0, end / 2, end]}
    gamma = {"updates": [10, 20], "values": [0.8, 0.8 + seed / 100]}
    lookahead = 0 if schedule == "peek" else 1_000 * n
    result = {"sampled": curve, "eta/gamma": gamma, "wall_seconds": seconds, "frames_real": 1_000}
    return settings, result | {"frames_lookahead": lookahead}


def parts(ends: list[float]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    found = {f"lockstep{seed}": run("lockstep", 3, seed, 4.0 + 0.1 * seed, 4.0) for seed in range(3)}
    found |= {f"peek{seed}": run("peek", 3, seed, end, 2.0) for seed, end in enumerate(ends)}
    samples = {"updates": [5], "lockstep": [[[1.0], [3.0]]], "peek": [[[2.0], [6.0]]]}
    return found | {"meta-gradients": ({"points": [5], "n": 3, "seed": 1}, samples)}


@pytest.mark.parametrize(
    ("ends", "verdict", "is_worse"),
    [
        ([4.0, 4.1, 4.3], "4.1 → 4.13: not distinguishable", False),
        ([3.0, 3.1, 3.2], "4.1 → 3.1: smaller", True),
        ([5.0, 5.1, 5.21], "4.1 → 5.1: larger", False),
    ],
)
def test_returns_are_compared_seed_by_seed(tmp_path: Path, ends: list[float], verdict: str, is_worse: bool) -> None:
    report(tmp_path, parts(ends), is_quick=False)
    page = (tmp_path / "report.md").read_text()
    assert f"| n = 3: return at the end, equal real frames | no difference | {verdict}" in page
    assert ("worse under peek by" in page.partition("## Where ours differs")[2]) == is_worse
    assert "| n = 3: real frames per second, one thread | 4 without a learner | 250 → 500: 2 times | 3 |" in page
    assert "| n = 3: look-ahead frames of a run | 0 under peek | 3,000 → 0 | 3 | exact |" in page
    # means 2 and 4, standard errors 1 and 2
    assert "2 → 4; apart by 0.89 standard errors | 2 samples | std of peek's samples / lockstep's: 2 |" in page


def test_a_study_in_progress_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    found = parts([4.0, 4.1, 4.3])
    del found["peek2"], found["meta-gradients"]
    report(tmp_path, found, is_quick=True)
    page = (tmp_path / "report.md").read_text()
    assert "| 2 |" in page
    assert "A quick version" in page
