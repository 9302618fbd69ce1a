from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.rollout import probe
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.learner.config import BootstrapConfig
from metagrad.learner.intrinsic_reward import IntrinsicRewardParameters
from metagrad.learner.meta_parameters import A2cParameters, MetaParametersConfig
from metagrad.learner.optimizer_config import SgdConfig
from metagrad.learner.vtrace_parameters import VtraceParameters
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Head, ImpalaCnn, LinearPolicy, Mlp, NatureCnn, NetworkSpec, SnakeCnn, SnakeTorsoCnn

Tiny = Callable[..., Experiment]


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutGamma(MetaParametersConfig):
    """Losses without a discount."""

    def inner_loss(self, *arguments: Any) -> Any:
        raise NotImplementedError


ATARI = {"env": AtariConfig(), "network": NatureCnn()}
PEEK = {"schedule": "peek"}


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
        ({"network": SnakeCnn(channels=2**16 + 1)}, "network.channels"),
        (ATARI | {"network": SnakeCnn()}, "network"),
        (ATARI | {"network": SnakeTorsoCnn()}, "network"),
        ({"network": ImpalaCnn()}, "network"),
        ({"network": Mlp(gamma_embedding=0)}, "network.gamma_embedding"),
        ({"network": Mlp(gamma_embedding=4), "meta_parameters": WithoutGamma()}, "network.gamma_embedding"),
        ({"network": SnakeTorsoCnn()}, "env.rows, columns"),
        ({"network": SnakeTorsoCnn(), "env": SnakeConfig(rows=9, columns=3, time_limit=9)}, "env.rows, columns"),
        (ATARI | {"env": AtariConfig(frame_size=35)}, "env.frame_size"),
        (PEEK | {"meta": {"n": 3, "strategy": "sequential"}}, "meta.strategy"),
        (PEEK | {"lookahead": "fork"}, "lookahead"),
        (PEEK | {"lookahead": "separate"}, "lookahead"),
        (PEEK | {"meta": {"n": 3}, "max_lag": 3}, "max_lag"),
        (PEEK | {"meta": {"n": 2, "bootstrap": BootstrapConfig(updates=2)}, "max_lag": 4}, "max_lag"),
        (PEEK | {"environments_per_actor": 3}, "environments"),
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
        (Mlp(gamma_embedding=4), "meta_parameters.reward_network.gamma_embedding"),
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


def test_a_streamed_learner_has_losses_that_correct_for_it(tiny: Tiny) -> None:
    assert isinstance(tiny(**PEEK).learner.meta_parameters, VtraceParameters)
    assert isinstance(tiny(**PEEK).meta_parameters, A2cParameters), "what was asked for is what is stored"


@pytest.mark.parametrize(
    ("meta", "least"), [({"n": 0}, 1), ({"n": 3}, 4), ({"n": 2, "bootstrap": BootstrapConfig(updates=2)}, 5)], ids=str
)
def test_a_rollout_may_be_as_old_as_the_window_makes_it(tiny: Tiny, meta: dict[str, Any], least: int) -> None:
    assert tiny(**PEEK, meta=meta, max_lag=least).resolved_max_lag == least
    assert tiny(**PEEK, meta=meta).resolved_max_lag == least + 3
    assert tiny(**PEEK, meta=meta).look_ahead_batches == least - 1


def test_losses_that_correct_for_nothing_are_not_streamed_to(tiny: Tiny) -> None:
    normalised = replace(tiny().meta_parameters, is_advantage_normalised=True)
    for losses, field in (
        (normalised, "meta_parameters.is_advantage_normalised = True: is not made for --schedule peek"),
        (with_reward_network(SnakeCnn()), "meta_parameters = 'IntrinsicRewardParameters': has no losses that correct"),
    ):
        assert tiny(meta_parameters=losses)
        with pytest.raises(ConfigurationError, match=rf"^{field}.*; use --schedule lockstep$"):
            tiny(**PEEK, meta_parameters=losses)


def test_each_experiment_is_streamed_to_or_refused_in_one_line() -> None:
    refused = {"lirpg-atari", "lirpg-snake", "discounting-chain", "ipd", "atari-released"}
    for name, make in EXPERIMENTS.items():
        if name not in refused:
            assert replace(make(), schedule="peek").learner.meta_parameters.corrects_off_policy
            continue
        with pytest.raises(
            ConfigurationError,
            match=r"^(schedule|meta_parameters|meta.strategy) = .*: .*; use (--schedule |discard or )?lockstep$",
        ):
            replace(make(), schedule="peek")


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
