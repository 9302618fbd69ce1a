import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from metagrad.actor_critic import WHOLE, A2cLoss, InnerLoss, VtraceLoss
from metagrad.actors.envs.atari import AtariConfig
from metagrad.actors.envs.base import Environment, EnvironmentConfig, EnvironmentSpec, EnvironmentStep
from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.actors.rollout import probe
from metagrad.cli.main import main
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.intrinsic_reward import IntrinsicRewardLoss
from metagrad.learner.config import BootstrapConfig
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import (
    Head,
    ImpalaCnn,
    LinearPolicy,
    Mlp,
    NatureCnn,
    NetworkSpec,
    Observations,
    SnakeCnn,
    SnakeTorsoCnn,
)
from metagrad.optimizers import Adam, Sgd, constant

Tiny = Callable[..., Experiment]


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutGamma(InnerLoss):
    """Losses without a discount."""

    def inner_loss(self, *arguments: Any) -> Any:
        raise NotImplementedError


ATARI = {"env": AtariConfig(), "network": NatureCnn()}
PEEK = {"schedule": "peek"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"updates": 6, "optimizer": Sgd(learning_rate=0.1, annealing_updates=5)}, "updates"),
        ({"updates": 7, "meta": {"n": 3, "strategy": "sequential"}}, "updates"),
        ({"lookahead": "fork", "meta": {"n": 0}}, "lookahead"),
        ({"lookahead": "separate", "meta": {"strategy": "sequential"}}, "lookahead"),
        ({"lookahead": "fork"} | ATARI, "lookahead"),
        ({"network": LinearPolicy()}, "network"),
        ({"network": SnakeCnn(channels=0)}, "network.channels"),
        ({"network": SnakeCnn(channels=2**16 + 1)}, "network.channels"),
        ({"network": Mlp(gamma_embedding=0)}, "network.gamma_embedding"),
        ({"network": Mlp(gamma_embedding=4), "meta_parameters": WithoutGamma()}, "network.gamma_embedding"),
        (PEEK | {"meta": {"n": 3, "strategy": "sequential"}}, "meta.strategy"),
        (PEEK | {"lookahead": "fork"}, "lookahead"),
        (PEEK | {"lookahead": "separate"}, "lookahead"),
        (PEEK | {"meta": {"n": 3}, "max_lag": 3}, "max_lag"),
        (PEEK | {"meta": {"n": 2, "bootstrap": BootstrapConfig(updates=2)}, "max_lag": 4}, "max_lag"),
        (PEEK | {"environments_per_actor": 3}, "environments"),
        (PEEK | {"ratio_clip": 0.9}, "ratio_clip"),
        ({"ratio_clip": 1.0}, "ratio_clip"),
        ({"reuse": 0}, "reuse"),
        ({"reuse": 1_001}, "reuse"),
        ({"reuse": 2, "updates": 7}, "updates"),
        ({"reuse": 2, "meta": {"n": 3, "strategy": "sequential"}}, "reuse"),
    ],
)
def test_wrong_combinations_are_refused(tiny: Tiny, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        tiny(**changes)


PIXELS, BOARDS = "pixels (uint8) [channels, height{0}, width{0}]", "boards (not uint8) [rows{0}, columns{0}, planes]"


@pytest.mark.parametrize(
    ("network", "env", "needed", "given"),
    [
        (NatureCnn(), SnakeConfig(rows=3, columns=3, time_limit=9), PIXELS.format(" ≥ 36"), "float32 [3, 3, 5]"),
        (ImpalaCnn(), SnakeConfig(rows=3, columns=3, time_limit=9), PIXELS.format(""), "float32 [3, 3, 5]"),
        (SnakeCnn(), AtariConfig(), BOARDS.format(""), "uint8 [4, 84, 84]"),
        (SnakeTorsoCnn(), AtariConfig(), BOARDS.format(" ≥ 4"), "uint8 [4, 84, 84]"),
        (SnakeTorsoCnn(), SnakeConfig(rows=3, columns=3, time_limit=9), BOARDS.format(" ≥ 4"), "float32 [3, 3, 5]"),
        (SnakeTorsoCnn(), SnakeConfig(rows=9, columns=3, time_limit=9), BOARDS.format(" ≥ 4"), "float32 [9, 3, 5]"),
        (NatureCnn(), AtariConfig(frame_size=35), PIXELS.format(" ≥ 36"), "uint8 [4, 35, 35]"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, NetworkSpec) else None,
)
def test_a_network_that_cannot_have_the_observations_is_refused_before_anything_is_made(
    tiny: Tiny, network: NetworkSpec, env: EnvironmentConfig, needed: str, given: str
) -> None:
    rule = f"needs {needed}, and the environment gives {given}; use another network or environment"
    spec, name = probe(env), type(network).__name__
    for field, experiment in (
        ("network", tiny(network=network, env=env)),
        ("meta_parameters.reward_network", tiny(env=env, network=Mlp(), meta_parameters=with_reward_network(network))),
    ):
        for refused in (experiment.parameters, experiment.algorithm):
            with pytest.raises(ConfigurationError, match=f"^{re.escape(f'{field} = {name!r}: {rule}')}$"):
                refused(spec)


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraConfig(EnvironmentConfig):
    """An environment of a user's own with pictures for observations."""

    def make(self, **_: Any) -> Environment:
        return Camera()


class Camera:
    spec = EnvironmentSpec(1, (3, 40, 60), torch.uint8, ("left", "right"), torch.device("cpu"), "Camera")

    def reset(self) -> torch.Tensor:
        raise NotImplementedError

    def step(self, action: torch.Tensor) -> EnvironmentStep:
        raise NotImplementedError

    def close(self) -> None:
        pass


@pytest.mark.parametrize("network", [NatureCnn(hidden=4), ImpalaCnn(hidden=4)])
def test_any_environment_with_pictures_may_use_the_networks_for_them(tiny: Tiny, network: NetworkSpec) -> None:
    experiment = tiny(env=CameraConfig(), network=network)
    built = experiment.algorithm(probe(experiment.env)).network
    theta = built.init(torch.Generator().manual_seed(0))
    pictures = torch.zeros(2, 3, 40, 60, dtype=torch.uint8)
    assert built.apply(theta, pictures, ("logits",))["logits"].shape == (2, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows(NetworkSpec):
    """A kind of network of a user's own."""

    takes: ClassVar[Observations | None] = Observations("vectors", ("numbers",), (2,), False)

    hidden: int = 3

    def module(self, observation_shape: tuple[int, ...], num_actions: int, has_outer_critic: bool) -> nn.Module:
        return Mlp(hidden=self.hidden).module(observation_shape, num_actions, has_outer_critic)


def test_a_kind_of_network_of_a_users_own_is_a_subclass(tiny: Tiny) -> None:
    fitting = tiny(network=Rows(), env=DiscountingChainConfig())
    assert fitting.algorithm(probe(fitting.env)).network.layout.size == fitting.parameters(probe(fitting.env)) > 0
    with pytest.raises(ConfigurationError, match=r"^network\.hidden = 0: must be at least 1"):
        tiny(network=Rows(hidden=0))
    other = tiny(network=Rows())
    with pytest.raises(ConfigurationError, match=r"^network = 'Rows': needs vectors \[numbers ≥ 2\], and "):
        other.algorithm(probe(other.env))


def test_the_command_line_refuses_observations_that_the_network_cannot_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ["train", "snake-12x12", "--env.rows", "3", "--topology", "colocated", "--run-dir", str(folder)]
    assert main(words) == 2
    needed = BOARDS.format(" ≥ 4")
    line = f"network = 'SnakeTorsoCnn': needs {needed}, and the environment gives float32 [3, 12, 5]; use another"
    assert capsys.readouterr().err.startswith(f"metagrad: {line}")
    assert not folder.exists()


def with_reward_network(spec: NetworkSpec) -> IntrinsicRewardLoss:
    names = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")
    names += ("extrinsic_coefficient", "intrinsic_coefficient")
    return IntrinsicRewardLoss(**dict.fromkeys(names, MetaParameter(initial=0.5)), reward_network=spec)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (Mlp(hidden=0), "meta_parameters.reward_network.hidden"),
        (Mlp(gamma_embedding=4), "meta_parameters.reward_network.gamma_embedding"),
    ],
)
def test_networks_among_the_meta_parameters_are_checked_too(tiny: Tiny, spec: NetworkSpec, field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        tiny(meta_parameters=with_reward_network(spec))


def test_networks_that_fit_are_taken(tiny: Tiny) -> None:
    for experiment in (
        tiny(network=SnakeTorsoCnn(), env=SnakeConfig(rows=4, columns=4, time_limit=9)),
        tiny(**ATARI | {"network": ImpalaCnn(), "env": AtariConfig(frame_size=12)}),
        tiny(meta_parameters=with_reward_network(SnakeCnn())),
    ):
        assert experiment.parameters(probe(experiment.env))


def test_a_step_size_is_a_number_or_learnt_with_a_name_of_its_own(tiny: Tiny) -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class WithRate(WithoutGamma):
        learning_rate: MetaParameter = MetaParameter(initial=0.5)

    function, learnt = Sgd(learning_rate=constant(0.1)), Sgd(learning_rate=MetaParameter(initial=0.1))
    for changes, rule in (
        ({"optimizer": function}, "a run keeps its configuration as numbers, no function"),
        ({"optimizer": learnt, "meta_parameters": WithRate()}, "these losses have a hyper-parameter of that name"),
    ):
        with pytest.raises(ConfigurationError, match=rf"^optimizer\.learning_rate = .*{rule}; "):
            tiny(**changes)
    with pytest.raises(ConfigurationError, match=r"^meta\.optimizer\.learning_rate = .*is not learnt itself; "):
        tiny(meta={"optimizer": Adam(learning_rate=MetaParameter(initial=0.1))})
    assert tiny(optimizer=learnt).algorithm(probe(tiny().env)).declaration["learning_rate"] == learnt.learning_rate


def test_losses_with_critics_need_a_network_with_critics(tiny: Tiny) -> None:
    names = ("gamma", "lambda_", "value_coefficient", "entropy_coefficient", "policy_coefficient")
    vtrace = VtraceLoss(**dict.fromkeys((*names, "rho_clip", "c_clip"), MetaParameter(initial=0.5)))
    for losses in (with_reward_network(Mlp()), vtrace):
        with pytest.raises(ConfigurationError, match=r"^network = .*: has no critics"):
            tiny(meta_parameters=losses, network=LinearPolicy())


def test_the_learner_is_told_its_part(tiny: Tiny) -> None:
    experiment = tiny()
    for name in ("optimizer", "meta", "outer", "meta_parameters"):
        assert getattr(experiment.learner, name) is getattr(experiment, name)


def test_a_streamed_learner_has_losses_that_correct_for_it(tiny: Tiny) -> None:
    assert isinstance(tiny(**PEEK).learner.meta_parameters, VtraceLoss)
    assert isinstance(tiny(**PEEK).meta_parameters, A2cLoss), "what was asked for is what is stored"
    for clip, expected in ((None, WHOLE), (1.0, 1.0), (4.0, 4.0)):
        losses = tiny(**PEEK, ratio_clip=clip).learner.meta_parameters
        assert isinstance(losses, VtraceLoss)
        assert (losses.rho_clip.initial, losses.c_clip.initial) == (expected, expected)
    again = tiny(reuse=2, ratio_clip=1.0).learner
    assert (again.reuse, again.meta_parameters) == (2, tiny(**PEEK, ratio_clip=1.0).learner.meta_parameters)


@pytest.mark.parametrize(
    ("meta", "least"), [({"n": 0}, 1), ({"n": 3}, 4), ({"n": 2, "bootstrap": BootstrapConfig(updates=2)}, 5)], ids=str
)
def test_a_rollout_may_be_as_old_as_the_window_makes_it(tiny: Tiny, meta: dict[str, Any], least: int) -> None:
    assert tiny(**PEEK, meta=meta, max_lag=least).resolved_max_lag == least
    assert tiny(**PEEK, meta=meta).resolved_max_lag == least + 3
    assert tiny(**PEEK, meta=meta).look_ahead_batches == least - 1


def test_losses_that_correct_for_nothing_are_not_streamed_to(tiny: Tiny) -> None:
    losses, rule = (
        with_reward_network(SnakeCnn()),
        "meta_parameters = 'IntrinsicRewardLoss': has no losses that correct",
    )
    assert tiny(meta_parameters=losses)
    for changes in (PEEK, {"reuse": 2}):
        with pytest.raises(ConfigurationError, match=rf"^{rule}.*; use --reuse 1 and --schedule lockstep$"):
            tiny(**changes, meta_parameters=losses)


def test_each_experiment_is_streamed_to_or_refused_in_one_line() -> None:
    refused = {"lirpg-atari", "lirpg-snake", "discounting-chain", "ipd", "atari-released"}
    refused |= {"lifetimes", "lifetimes-families", "lifetimes-correction", "lifetimes-disco"}
    for name, make in EXPERIMENTS.items():
        if name not in refused:
            assert replace(make(), schedule="peek").learner.meta_parameters.corrects_off_policy
            continue
        with pytest.raises(
            ConfigurationError,
            match=r"^(schedule|meta_parameters|meta.strategy) = .*: .*; use (--reuse 1 and .* |discard or )?lockstep$",
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
