import json

import pytest

from benchmarks import end_to_end as subject
from benchmarks.alternative import NotInstalled, interpreter
from benchmarks.end_to_end_ours import chosen
from benchmarks.harness import render


def run_of(decisions: float, cores: float = 2.0, **more: object) -> dict[str, object]:
    return {"decisions": decisions, "window_s": 10.0, "cores_busy": cores, "processes": [], **more}


ANSWERS = {
    "pong n=0 lockstep": [run_of(700), run_of(800), run_of(900)],
    "pong n=0 peek": [run_of(1200), run_of(1500), run_of(1800)],
    "pong n=0 peek, bf16-mixed": [run_of(1200), run_of(950), run_of(810)],
    "RLlib IMPALA": [run_of(600), run_of(500), run_of(450, versions={"ray": "1"})],
    "snake-6x6": [run_of(99_000), run_of(100_000), run_of(101_000)],
}
TERMS = {name: [{"environment": 0.001, "inference": 0.003, "gradient": 0.006}] * 3 for name in subject.AT_N_0}


def test_ratios_are_taken_round_by_round_for_the_better_schedule():
    result = subject.result_of(ANSWERS, TERMS, cores=2)
    assert result["headline"] == "pong n=0 peek"
    assert result["headline_over"]["RLlib IMPALA"] == {"median": 3.0, "q1": 2.5, "q3": 3.5, "count": 3}
    over_mixed = "pong n=0 peek, bf16-mixed over RLlib IMPALA"
    assert result["ratios"] == {"pong n=0 over RLlib IMPALA": 3.0, over_mixed: pytest.approx(1.9)}
    of_floor = result["floors"]["pong n=0 peek"]
    assert of_floor["floor_decisions_per_s"]["median"] == pytest.approx(200)
    assert of_floor["share_of_floor"]["median"] == pytest.approx(0.75)
    assert of_floor["gradient_ms"]["median"] == pytest.approx(6.0)
    assert [(target["value"], target["met"]) for target in result["targets"]] == [
        (3.0, True),
        (pytest.approx(1.9), False),
        (pytest.approx(0.75), False),
        (10_000.0, True),
    ]
    assert json.dumps(result)
    assert render(result)


def test_a_row_tells_frames_of_atari_alone_and_the_cpu_time_of_a_decision():
    systems = subject.result_of(ANSWERS, TERMS, cores=2)["systems"]
    assert systems["RLlib IMPALA"]["decisions_per_s"]["median"] == 50
    assert systems["RLlib IMPALA"]["frames_per_s"]["median"] == 200
    assert systems["RLlib IMPALA"]["cpu_ms_per_decision"]["median"] == pytest.approx(40)
    assert systems["RLlib IMPALA"]["versions"] == {"ray": "1"}
    assert "frames_per_s" not in systems["snake-6x6"]


def test_systems_take_turns():
    order = []
    systems = {name: lambda name=name: order.append(name) or run_of(1) for name in "AB"}
    answers, terms = subject.measured(systems, {"A": lambda: order.append("floor") or {}}, rounds=2)
    assert order == ["A", "B", "floor", "A", "B", "floor"]
    assert len(answers["B"]) == len(terms["A"]) == 2


def test_terms_of_the_floor_are_seconds_of_one_decision():
    terms = subject.seconds_per_decision(chosen("pong n=0 lockstep", is_quick=True), repeats=1)
    assert set(terms) == {"environment", "inference", "gradient"}
    assert all(1e-6 < seconds < 1 for seconds in terms.values())


@pytest.mark.slow  # tests/benchmarks/test_end_to_end_ours.py measures one such run
def test_quick_run_of_ours_alone():
    result = subject.run(rounds=1, quick=True, alone=True)
    assert set(result["systems"]) == set(subject.QUICK)
    assert all(row["decisions_per_s"]["median"] > 0 for row in result["systems"].values())
    assert result["ratios"] == {}
    assert json.dumps(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", subject.PROGRAMS)
def test_an_alternative_trains(name):
    environment, program = subject.PROGRAMS[name]
    try:
        interpreter(environment)
    except NotInstalled as error:
        pytest.skip(str(error))
    with subject.alternative(environment, program, "serve", "1", "3", variables={"OMP_NUM_THREADS": "1"}) as other:
        answer = other.run("pong").answer
    assert answer["decisions"] > 100
    assert answer["window_s"] >= 3
    assert answer["settings"]
    assert "torch" in other.versions
