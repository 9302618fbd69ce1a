from dataclasses import replace
from typing import Any

import pytest
import torch

from learner.config import MetaGradientConfig, OuterConfig
from learner.meta_parameters import A2cParameters
from learner.optimizer_config import AdamConfig, RmsPropConfig, SgdConfig
from metagrad.errors import ConfigurationError
from metagrad.meta_parameters import MetaParameter

ADAM = AdamConfig(learning_rate=0.1)
NAN = float("nan")
RATES = {name: MetaParameter(initial=0.5) for name in ("gamma", "lambda_", "value_coefficient", "entropy_coefficient")}


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (SgdConfig, {"learning_rate": 0.0}, "learning_rate"),
        (SgdConfig, {"learning_rate": NAN}, "learning_rate"),
        (SgdConfig, {"learning_rate": float("inf")}, "learning_rate"),
        (SgdConfig, {"learning_rate": 0.1, "momentum": 1.0}, "momentum"),
        (RmsPropConfig, {"learning_rate": -1.0}, "learning_rate"),
        (RmsPropConfig, {"learning_rate": 0.1, "decay": 1.0}, "decay"),
        (RmsPropConfig, {"learning_rate": 0.1, "eps": -1.0}, "eps"),
        (RmsPropConfig, {"learning_rate": 0.1, "eps_root": NAN}, "eps_root"),
        (RmsPropConfig, {"learning_rate": 0.1, "eps_root": 0.0}, "eps_root"),
        (AdamConfig, {"learning_rate": 0.1, "eps": 0.0}, "eps_root"),
        (AdamConfig, {"learning_rate": 0.1, "annealing_updates": 0}, "annealing_updates"),
        (AdamConfig, {"learning_rate": 0.1, "max_gradient_norm": 0.0}, "max_gradient_norm"),
        (AdamConfig, {"learning_rate": 0.1, "max_gradient_norm": NAN}, "max_gradient_norm"),
        (AdamConfig, {"learning_rate": 0.1, "beta1": 1.0}, "beta1"),
        (AdamConfig, {"learning_rate": 0.1, "beta2": -0.1}, "beta2"),
        (MetaGradientConfig, {"n": -1, "optimizer": ADAM}, "meta.n"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "kappa": 0.5}, "meta.kappa"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "kappa": 0.0, "estimator": "mix"}, "meta.kappa"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "kappa": 1.5, "estimator": "mix"}, "meta.kappa"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "mu": 0.5}, "meta.mu"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "estimator": "trace"}, "meta.mu"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "estimator": "trace", "mu": 1.1}, "meta.mu"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "estimator": "trace", "mu": NAN}, "meta.mu"),
        (MetaGradientConfig, {"n": 0, "optimizer": ADAM, "strategy": "sequential"}, "meta.strategy"),
        (OuterConfig, {"gamma": 1.1, "lambda_": 0.5, "critic": "outer"}, "outer.gamma"),
        (OuterConfig, {"gamma": 1.0, "lambda_": NAN, "critic": "outer"}, "outer.lambda"),
        (OuterConfig, {"gamma": 1.0, "lambda_": 1.0, "critic": "outer", "critic_coefficient": -1.0}, "critic_coeff"),
        (A2cParameters, RATES | {"gamma": MetaParameter(initial=0.9, high=1.5)}, "gamma"),
        (A2cParameters, RATES | {"lambda_": MetaParameter(initial=0.9, low=-0.5)}, "lambda"),
    ],
)
def test_wrong_values_are_refused_with_field_and_value(kind: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^[^=]*{field}\S* = .*: .*; .*$"):
        kind(**fields)


def test_mix_weights_take_every_kappa_that_is_allowed() -> None:
    for kappa in (None, 1e-3, 0.5, 1.0):
        MetaGradientConfig(n=3, estimator="mix", kappa=kappa, optimizer=ADAM)


@pytest.mark.parametrize("kind", [SgdConfig, RmsPropConfig, AdamConfig])
def test_annealing_and_clip_reach_the_optimizer(kind: Any) -> None:
    one = torch.ones(1)
    plain = kind(learning_rate=0.5)
    optimizer = replace(plain, annealing_updates=2, max_gradient_norm=1e-3).build()
    state = optimizer.init(one)
    steps = []
    theta = one
    for _ in range(3):
        moved, state = optimizer.update(100 * one, state, theta, one)
        steps.append((theta - moved).item())
        theta = moved
    assert steps[0] > 0
    assert steps[2] == 0, "the step size is 0 after annealing_updates updates"
    if kind is SgdConfig:  # the only one whose step shows the gradient's size
        assert steps[0] == pytest.approx(0.5 * 1e-3, rel=1e-4)
        assert steps[1] == pytest.approx(0.25 * 1e-3, rel=1e-4)


def test_meta_parameters_are_declared_in_the_order_of_eta(config: Any) -> None:
    declaration = config(n=1).meta_parameters.declaration((5,), 3)
    assert list(declaration) == ["gamma", "lambda", "value_coefficient", "entropy_coefficient"]
    assert [p.initial for p in declaration.values()] == [0.8, 0.9, 0.5, 0.01]
