import pytest

from benchmarks import environments as subject
from benchmarks.harness import render


def case_of(ratios):
    return {"ratios": {label: {"median": value, "q1": 0, "q3": 9} for label, value in ratios.items()}}


ONE, TWO = "ours over Jumanji, devices: 1", "ours over Jumanji, devices: 2"
SNAKE = {
    "Snake 12x12, 512": case_of({ONE: 1.6, TWO: 1.4, "ours over EnvPool": 19.0}),
    "Snake 12x12, 4096": case_of({ONE: 3.1, TWO: 2.5}),
}
ATARI = {"Pong on EnvPool, 32": case_of({"loop without policy over bare": 0.96, "loop over bare and forward": 0.85})}


@pytest.fixture
def measured(monkeypatch):
    """Record what `run` asked for; the measurements themselves are tested beside their files."""
    asked = []
    monkeypatch.setattr(
        subject.environments_snake, "measure_snake", lambda *a: asked.append(a) or (SNAKE, {"jax": "1"})
    )
    monkeypatch.setattr(subject.environments_atari, "measure_atari", lambda *a: asked.append(a) or ATARI)
    return asked


def test_promises_are_held_against_the_medians(measured):
    result = subject.run(rounds=7, quick=False, alone=False)
    assert {target["name"]: (target["value"], target["at_least"], target["met"]) for target in result["targets"]} == {
        f"Snake 12x12, 4096: {ONE}": (3.1, 3.0, True),
        f"Snake 12x12, 512: {ONE}": (1.6, 1.5, True),
        f"Snake 12x12, 4096: {TWO}": (2.5, 3.0, False),
        f"Snake 12x12, 512: {TWO}": (1.4, 1.5, False),
        "Snake 12x12, 512: ours over EnvPool": (19.0, 20.0, False),
        "Pong on EnvPool, 32: loop without policy over bare": (0.96, 0.95, True),
        "Pong on EnvPool, 32: loop over bare and forward": (0.85, 0.9, False),
    }
    assert len(result["ratios"]) == 7
    assert result["ratios"][f"Snake 12x12, 512: {ONE}"] == 1.6
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
