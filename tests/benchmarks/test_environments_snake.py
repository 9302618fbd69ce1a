import json

import pytest
import torch

from benchmarks import environments_snake as subject
from benchmarks.alternative import NotInstalled, interpreter
from benchmarks.environments_snake import Counts
from metagrad.actors.envs.snake import SnakeConfig

SMALL = subject.SnakeCase(12, 64, steps=100, envpool_steps=50, loop_steps=5)


def test_cases_can_be_compared():
    assert len({case.label for case in subject.CASES}) == len(subject.CASES)
    for case in (*subject.CASES, *map(subject.quick, subject.CASES)):
        assert case.loop_steps % subject.ROLLOUT_LENGTH == 0
        assert not case.envpool_steps or case.side == 12  # EnvPool has this board alone
        assert case.batch_size % 8 == 0  # shared out among XLA devices


@pytest.mark.slow
def test_quick_run_of_ours_alone():
    cases = [subject.quick(case) for case in subject.CASES]
    results, versions = subject.measure_snake(cases, rounds=1, alone=True)
    assert list(results) == ["Snake 6x6, 8", "Snake 12x12, 8", "Snake 12x12, 64"]
    assert versions == {}
    for result in results.values():
        assert {name.partition(",")[0] for name in result["programs"]} == {"ours", "in the loop"}
        assert all(row["steps_per_s"]["median"] > 0 for row in result["programs"].values())
        assert set(result["ratios"]) == {"in the loop over alone"}
    assert json.dumps(results)


def test_what_happens_is_counted():
    environment = SnakeConfig(rows=2, columns=2).make(
        batch_size=50, seed=0, device=torch.device("cpu"), threads=1, is_training=True
    )
    environment.reset()
    counts = subject.counted(environment, torch.full((3, 50), 1))
    # To the right, a snake on two columns is dead after one step or two and at most three fruits are there.
    assert counts.steps == 150
    assert 50 <= counts.ends <= 150
    assert 0 < counts.fruits <= 100


def test_envpool_plays_the_same_game():
    actions = torch.randint(4, (100, 64), generator=torch.Generator().manual_seed(0))
    pool = subject.EnvPoolSnake(actions, steps=60, threads=1)
    for _ in range(5):
        pool.run()
    counts = pool.counts()
    assert counts.steps == 64 * 300 - counts.ends
    environment = SMALL.config.make(batch_size=64, seed=0, device=torch.device("cpu"), threads=1, is_training=True)
    environment.reset()
    subject.check_same_game({"ours": subject.counted(environment, actions.repeat(3, 1)), "EnvPool": counts})


@pytest.mark.parametrize("other", [Counts(100_000, 5000, 500), Counts(100_000, 4000, 800)])
def test_another_game_is_refused(other):
    ours = Counts(100_000, 4000, 500)
    subject.check_same_game({"ours": ours, "same": Counts(50_000, 2050, 260)})
    with pytest.raises(RuntimeError, match=r"_per_step: 0.0\d+ of ours, 0.0\d+ of other"):
        subject.check_same_game({"ours": ours, "same": ours, "other": other})


@pytest.mark.slow
@pytest.mark.timeout(600)  # XLA compiles, twice
def test_alternatives_are_measured_beside_ours():
    try:
        interpreter("jax")
    except NotInstalled as error:
        pytest.skip(str(error))
    results, versions = subject.measure_snake([SMALL], rounds=2, alone=False)
    result = results[SMALL.label]
    jumanji = {name for name in result["programs"] if name.startswith("Jumanji, devices:")}
    over = {"Jumanji", "EnvPool", *jumanji}
    assert set(result["ratios"]) == {"in the loop over alone", *(f"ours over {name}" for name in over)}
    assert all(ratio["count"] == 2 for ratio in result["ratios"].values())
    assert {name.partition(",")[0] for name in result["same_game"]} == {"ours", "Jumanji", "EnvPool"}
    assert set(versions) == {"jax", "jumanji"}
