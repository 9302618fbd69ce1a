from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from actors.envs.atari import AtariConfig
from actors.envs.snake import SnakeConfig
from actors.rollout import probe
from cluster.config import Experiment
from learner.config import BootstrapConfig
from learner.intrinsic_reward import IntrinsicRewardParameters
from learner.optimizer_config import SgdConfig
from learner.vtrace_parameters import VtraceParameters
from metagrad.errors import ConfigurationError
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Head, ImpalaCnn, LinearPolicy, Mlp, NatureCnn, NetworkSpec, SnakeCnn, SnakeTorsoCnn

Tiny = Callable[..., Experiment]


ATARI = {"env": AtariConfig(), "network": NatureCnn()}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"updates": 6, "optimizer": SgdConfig(learning_rate=0.1, annealing_updates=5)}, "updates"),
        (
            {
                "updates": 6,
                "optimizer": SgdConfig(learning_rate=0.1, annealing_updates=11),
                "meta": {"bootstrap": BootstrapConfig(updates=2)},
            },
            "meta.bootstrap.updates",
        ),
        ({"updates": 7, "meta": {"n": 3, "strategy": "sequential"}}, "updates"),
        ({"lookahead": "fork", "meta": {"n": 0}}, "lookahead"),
        ({"lookahead": "separate", "meta": {"strategy": "sequential"}}, "lookahead"),
        ({"lookahead": "fork"} | ATARI, "lookahead"),
        ({"network": NatureCnn()}, "network"),
        ({"network": LinearPolicy()}, "network"),
        ({"network": SnakeCnn(channels=0)}, "network.channels"),
        ({"network": SnakeCnn(channels=2**20 + 1)}, "network.channels"),
        (ATARI | {"network": SnakeCnn()}, "network"),
        (ATARI | {"network": SnakeTorsoCnn()}, "network"),
        ({"network": ImpalaCnn()}, "network"),
        ({"network": SnakeTorsoCnn()}, "env.rows, columns"),
        ({"network": SnakeTorsoCnn(), "env": SnakeConfig(rows=9, columns=3, time_limit=9)}, "env.rows, columns"),
        (ATARI | {"env": AtariConfig(frame_size=35)}, "env.frame_size"),
    ],
)
def test_wrong_combinations_are_refused(tiny: Tiny, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        tiny(**changes)


def with_reward_network(spec: NetworkSpec) -> IntrinsicRewardParameters:
    names = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")
    names += ("extrinsic_coefficient", "intrinsic_coefficient")
    return IntrinsicRewardParameters(**dict.fromkeys(names, MetaParameter(initial=0.5)), reward_network=spec)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (Mlp(hidden=0), "meta_parameters.reward_network.hidden"),
        (NatureCnn(), "meta_parameters.reward_network"),
        (SnakeTorsoCnn(), "env.rows, columns"),
    ],
)
def test_networks_among_the_meta_parameters_are_checked_too(tiny: Tiny, spec: NetworkSpec, field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        tiny(meta_parameters=with_reward_network(spec))


def test_networks_that_fit_are_taken(tiny: Tiny) -> None:
    assert tiny(network=SnakeTorsoCnn(), env=SnakeConfig(rows=4, columns=4, time_limit=9))
    assert tiny(**ATARI | {"network": ImpalaCnn(), "env": AtariConfig(frame_size=12)})
    assert tiny(meta_parameters=with_reward_network(SnakeCnn()))


def test_losses_with_critics_need_a_network_with_critics(tiny: Tiny) -> None:
    names = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient", "policy_coefficient")
    vtrace = VtraceParameters(**dict.fromkeys((*names, "rho_clip", "c_clip"), MetaParameter(initial=0.5)))
    for losses in (with_reward_network(Mlp()), vtrace):
        with pytest.raises(ConfigurationError, match=r"^network = .*: has no critics"):
            tiny(meta_parameters=losses, network=LinearPolicy())


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
