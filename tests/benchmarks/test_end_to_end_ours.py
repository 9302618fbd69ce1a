import pytest

from benchmarks import end_to_end_ours as subject


def test_experiments_are_what_their_names_say():
    for name, make in subject.EXPERIMENTS.items():
        experiment = make()
        if name.startswith("pong"):
            mixed = "" if experiment.precision == "float32" else f", {experiment.precision}"
            assert f"n={experiment.meta.n} {experiment.schedule}{mixed}" == name.removeprefix("pong ")
            assert experiment.env.game == "Pong"
            assert experiment.environments == 64
        assert experiment.topology == "ray"


@pytest.mark.slow
def test_a_quick_run_is_measured_in_a_process_of_its_own():
    answer = subject.ours("snake-6x6", 0.1, 0.3, is_quick=True)
    assert answer["updates"] > 0
    assert answer["decisions"] == answer["updates"] * answer["settings"]["environments"] * 5
    assert answer["window_s"] >= 0.3
    shares = answer["share_of_learner_time"]
    assert set(shares) == {"sample", "inner", "outer", "meta", "metrics"}
    assert all(share > 0 for share in shares.values())
    assert answer["dropped_steps"] == 0
