from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from actors.envs.atari import AtariConfig
from actors.rollout import probe
from cluster.config import Experiment
from learner.optimizer_config import SgdConfig
from metagrad.errors import ConfigurationError
from metagrad.networks import Head, LinearPolicy, NatureCnn, SnakeCnn

Tiny = Callable[..., Experiment]


ATARI = {"env": AtariConfig(), "network": NatureCnn()}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"updates": 6, "optimizer": SgdConfig(learning_rate=0.1, annealing_updates=5)}, "updates"),
        ({"updates": 7, "meta": {"n": 3, "strategy": "sequential"}}, "updates"),
        ({"lookahead": "fork", "meta": {"n": 0}}, "lookahead"),
        ({"lookahead": "separate", "meta": {"strategy": "sequential"}}, "lookahead"),
        ({"lookahead": "fork"} | ATARI, "lookahead"),
        ({"network": NatureCnn()}, "network"),
        ({"network": LinearPolicy()}, "network"),
        ({"network": SnakeCnn(channels=0)}, "network.channels"),
        ({"network": SnakeCnn(channels=2**20 + 1)}, "network.channels"),
        (ATARI | {"network": SnakeCnn()}, "network"),
        (ATARI | {"env": AtariConfig(frame_size=35)}, "env.frame_size"),
    ],
)
def test_wrong_combinations_are_refused(tiny: Tiny, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        tiny(**changes)


def test_the_learner_is_told_its_part(tiny: Tiny) -> None:
    experiment = tiny()
    for name in ("optimizer", "meta", "outer", "meta_parameters"):
        assert getattr(experiment.learner, name) is getattr(experiment, name)


@pytest.mark.parametrize("critic", ["outer", "inner"])
def test_the_algorithm_fits_its_environments(tiny: Tiny, critic: str) -> None:
    experiment = tiny(outer=replace(tiny().outer, critic=critic))
    assert experiment.has_outer_critic == (critic == "outer")
    network = experiment.algorithm(probe(experiment.env)).network
    theta = network.init(torch.Generator().manual_seed(0))
    heads: tuple[Head, ...] = ("logits", "value", "outer_value") if critic == "outer" else ("logits", "value")
    outputs = network.apply(theta, torch.zeros(2, 3, 3, 5), heads)
    assert outputs["logits"].shape == (2, 4)
    names = set(network.layout.unflatten(theta))
    assert any(name.startswith("outer_value") for name in names) == (critic == "outer")
