import pytest

from benchmarks import environments as subject
from benchmarks.harness import render


def case_of(**ratios):
    return {"ratios": {label.replace("_", " "): {"median": value, "q1": 0, "q3": 9} for label, value in ratios.items()}}


SNAKE = {
    "Snake 12x12, 512": case_of(ours_over_Jumanji=1.6, ours_over_EnvPool=19.0),
    "Snake 12x12, 4096": case_of(ours_over_Jumanji=2.5),
}
ATARI = {"Pong on EnvPool, 32": case_of(loop_without_network_over_bare=0.96, loop_over_bare_and_forward=0.85)}


@pytest.fixture
def measured(monkeypatch):
    """What `run` asked for; the measurements themselves are tested beside their files."""
    asked = []
    monkeypatch.setattr(
        subject.environments_snake, "measure_snake", lambda *a: asked.append(a) or (SNAKE, {"jax": "1"})
    )
    monkeypatch.setattr(subject.environments_atari, "measure_atari", lambda *a: asked.append(a) or ATARI)
    return asked


def test_promises_are_held_against_the_medians(measured):
    result = subject.run(rounds=7, quick=False, alone=False)
    assert {target["name"]: (target["value"], target["at_least"], target["met"]) for target in result["targets"]} == {
        "Snake 12x12, 4096: ours over Jumanji": (2.5, 3.0, False),
        "Snake 12x12, 512: ours over Jumanji": (1.6, 1.5, True),
        "Snake 12x12, 512: ours over EnvPool": (19.0, 20.0, False),
        "Pong on EnvPool, 32: loop without network over bare": (0.96, 0.95, True),
        "Pong on EnvPool, 32: loop over bare and forward": (0.85, 0.9, False),
    }
    assert len(result["ratios"]) == 5
    assert result["ratios"]["Snake 12x12, 512: ours over Jumanji"] == 1.6
    assert result["versions"] == {"jax": "1"}
    assert render(result)
    assert measured == [(list(subject.environments_snake.CASES), 7, False), (7, False)]


def test_promises_name_what_is_measured(measured):
    labels = {case.label for case in subject.environments_snake.CASES}
    assert {label for label, _ in subject.SNAKE_PROMISES} <= labels
    assert set(subject.ATARI_PROMISES) <= set(subject.environments_atari.PAIRS)


def test_quick_measures_less(measured):
    subject.run(rounds=1, quick=True, alone=True)
    (cases, *snake), atari = measured
    assert max(case.batch_size * case.steps for case in cases) < 2000
    assert (snake, atari) == ([1, True], (1, True))
