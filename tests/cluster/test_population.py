"""Populations: what they tune, where their values are drawn, how a member takes over from a better one."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from metagrad.cluster.config.experiment import CheckpointConfig
from metagrad.cluster.sweeps.population import (
    DECADE,
    Population,
    default_every,
    drawn,
    exploited,
    learnt,
    odds,
    starting_at,
    value,
    without_meta_gradient,
)
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.meta_parameters import MetaParameter, init_eta
from metagrad.optimizers import RmsProp


def fixed(tiny: Callable[..., Any], **changes: Any) -> Any:
    return without_meta_gradient(tiny(**changes))


def test_odds_are_the_exponential_of_eta() -> None:
    parameter = MetaParameter(initial=0.3, low=0.1, high=1.7)
    assert value(parameter, odds(parameter)) == pytest.approx(0.3, rel=1e-14)
    assert math.log(odds(parameter)) == pytest.approx(init_eta({"x": parameter}, torch.float64).item(), rel=1e-14)
    assert 0.1 < value(parameter, 1e-12) < value(parameter, 1e12) < 1.7


def test_a_population_tunes_what_a_meta_gradient_would_learn(tiny: Callable[..., Any]) -> None:
    base = fixed(tiny, meta={"n": 3}, lookahead="fork")
    assert base.meta.n == 0
    assert base.outer.critic == "inner"
    assert list(learnt(base)) == ["gamma"]
    rate = MetaParameter(initial=1e-3, high=0.1)
    base = fixed(tiny, optimizer=RmsProp(learning_rate=rate))
    assert list(learnt(base)) == ["gamma", "learning_rate"]
    moved = starting_at(base, {"gamma": 0.5, "learning_rate": 2e-3})
    assert moved.meta_parameters.gamma.initial == 0.5
    assert moved.optimizer.learning_rate == replace(rate, initial=2e-3)


def test_values_are_drawn_within_a_decade_of_odds(tiny: Callable[..., Any]) -> None:
    parameters = learnt(fixed(tiny))
    centre = odds(parameters["gamma"])
    found = [drawn(parameters, 3, index)["gamma"] / centre for index in range(200)]
    assert min(found) >= 1 / DECADE
    assert max(found) <= DECADE
    assert 70 < sum(x < 1 for x in found) < 130, "half of them below, on a logarithmic scale"
    assert drawn(parameters, 3, 5)["gamma"] / centre == found[5]
    assert drawn(parameters, 4, 5) != drawn(parameters, 3, 5)


def test_members_have_seeds_and_values_of_their_own(tiny: Callable[..., Any]) -> None:
    base = fixed(tiny, updates=10, checkpoint=CheckpointConfig(every=2))
    first, second = (Population(experiment=replace(base, seed=s), size=4, every=4) for s in (0, 1))
    seeds = [each.member(index).seed for each in (first, second) for index in range(4)]
    assert len(set(seeds)) == 8
    assert first.member(0).meta_parameters.gamma.initial == pytest.approx(base.meta_parameters.gamma.initial)
    assert first.member(1).meta_parameters != first.member(2).meta_parameters
    assert [first.until(generation) for generation in range(first.generations)] == [4, 8, 10]
    assert first.member(0).checkpoint.keep >= 4, "of the generation before, while the next one writes"
    assert default_every(base) == 1


def test_a_member_takes_over_learner_and_episodes_and_keeps_its_games() -> None:
    own = {"learner": {"theta": 1, "eta": torch.zeros(2)}, "episodes": "own", "actors": "own", "counters": "own"}
    better = {"learner": {"theta": 2, "eta": torch.ones(2)}, "episodes": "better", "actors": "better"}
    tree = exploited(own, better, [1.0, math.e])
    assert tree["learner"]["theta"] == 2
    assert tree["learner"]["eta"].tolist() == pytest.approx([0.0, 1.0])
    assert (tree["episodes"], tree["actors"], tree["counters"]) == ("better", "own", "own")
    assert better["learner"]["eta"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({"size": 1, "every": 1}, r"^pbt = 1: a population has 2 to 1000 members"),
        ({"size": 4, "every": 7}, r"^pbt-every = 7: must lie in \[1, updates = 6\]"),
        ({"size": 4, "every": 0}, r"^pbt-every = 0: must lie in"),
    ],
)
def test_what_is_no_population_is_refused(sizes: dict[str, int], line: str, tiny: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match=line):
        Population(experiment=fixed(tiny), **sizes)


def test_generations_are_whole_batches(tiny: Callable[..., Any]) -> None:
    base = fixed(tiny, updates=60, reuse=3)
    assert default_every(base) == 3
    with pytest.raises(ConfigurationError, match=r"^pbt-every = 4: must be whole batches, of 3 updates each; use 6"):
        Population(experiment=base, size=4, every=4)


def test_an_experiment_that_tunes_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^experiment = 'ipd': is no actor-critic with learnt"):
        without_meta_gradient(EXPERIMENTS["ipd"]())
    with pytest.raises(ConfigurationError, match=r"^meta_parameters = 'reward_weights': is learnt and no number"):
        learnt(without_meta_gradient(EXPERIMENTS["lirpg-snake"]()))
    base = without_meta_gradient(EXPERIMENTS["demo"]())
    gamma = replace(base.meta_parameters.gamma, is_learnt=False)
    with pytest.raises(ConfigurationError, match=r"^experiment = 'demo': learns no hyper-parameter"):
        learnt(replace(base, meta_parameters=replace(base.meta_parameters, gamma=gamma)))
