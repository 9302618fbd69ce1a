from dataclasses import replace

import pytest

from benchmarks import pipeline
from metagrad.experiments import EXPERIMENTS


def test_shares_of_a_run_add_up_to_one():
    experiment = replace(EXPERIMENTS["demo"](), topology="colocated", environments=8, updates=5)
    shares = pipeline.one_run(experiment)
    assert shares.pop("real_frames_per_second") > 0
    assert set(shares) == {"sample", "inner", "outer", "meta", "metrics"}
    assert sum(shares.values()) == pytest.approx(1.0)
