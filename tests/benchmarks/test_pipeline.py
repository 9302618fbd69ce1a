from dataclasses import replace

import pytest

from benchmarks import pipeline
from metagrad.experiments import EXPERIMENTS
from metagrad.networks import SnakeCnn


def test_shares_of_a_run_add_up_to_one():
    small = {"network": SnakeCnn(channels=4), "environments": 4, "updates": 4, "learner_threads": 1}
    experiment = replace(EXPERIMENTS["demo"](), topology="colocated", **small)
    shares = pipeline.one_run(experiment)
    assert shares.pop("real_frames_per_second") > 0
    assert set(shares) == {"sample", "inner", "outer", "meta", "metrics"}
    assert sum(shares.values()) == pytest.approx(1.0)
