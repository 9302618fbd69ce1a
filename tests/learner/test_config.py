import math
from dataclasses import fields, replace
from typing import Any

import jaxtyping
import pytest

from metagrad.bootstrap import Matching
from metagrad.errors import ConfigurationError
from metagrad.learner.config import BootstrapConfig, MetaGradientConfig
from metagrad.losses import OuterObjective
from metagrad.optimizers import Adam

ADAM = Adam(learning_rate=0.1)
NAN = float("nan")
TARGET = BootstrapConfig(updates=1)


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (MetaGradientConfig, {"n": -1, "optimizer": ADAM}, "meta.n"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "kappa": 0.5}, "meta.kappa"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "kappa": 0.0, "estimator": "mix"}, "meta.kappa"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "kappa": 1.5, "estimator": "mix"}, "meta.kappa"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "mu": 0.5}, "meta.mu"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "estimator": "trace"}, "meta.mu"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "estimator": "trace", "mu": 1.1}, "meta.mu"),
        (MetaGradientConfig, {"n": 3, "optimizer": ADAM, "estimator": "trace", "mu": NAN}, "meta.mu"),
        (MetaGradientConfig, {"n": 0, "optimizer": ADAM, "strategy": "sequential"}, "meta.strategy"),
        (OuterObjective, {"gamma": 1.1, "lambda_": 0.5, "critic": "outer"}, "outer.gamma"),
        (OuterObjective, {"gamma": 1.0, "lambda_": NAN, "critic": "outer"}, "outer.lambda"),
        (OuterObjective, {"gamma": 1.0, "lambda_": 1.0, "critic": "outer", "critic_coefficient": -1.0}, "critic_coeff"),
        (OuterObjective, {"gamma": 1.0, "lambda_": 1.0, "critic": "outer", "value_coefficient": NAN}, "value_coeff"),
        (OuterObjective, {"gamma": 1.0, "lambda_": 1.0, "critic": "outer", "kl_coefficient": math.inf}, "kl_coeff"),
        (BootstrapConfig, {"updates": -1}, "bootstrap.updates"),
        (BootstrapConfig, {"updates": 1, "value_coefficient": -0.5}, "bootstrap.value_coefficient"),
        (BootstrapConfig, {"updates": 1, "value_coefficient": NAN}, "bootstrap.value_coefficient"),
        (BootstrapConfig, {"updates": 1, "value_coefficient": math.inf}, "bootstrap.value_coefficient"),
        (BootstrapConfig, {"value_coefficient": 0.5}, "bootstrap.value_coefficient"),
        (BootstrapConfig, {"direction": "online||target"}, "bootstrap.direction"),
        (BootstrapConfig, {"states": "first"}, "bootstrap.states"),
        (MetaGradientConfig, {"n": 0, "optimizer": ADAM, "bootstrap": TARGET}, "meta.bootstrap.updates"),
        (MetaGradientConfig, {"n": 1, "optimizer": ADAM, "is_kept_state_constant": True}, "is_kept_state_constant"),
        (
            MetaGradientConfig,
            {"n": 3, "optimizer": ADAM, "is_kept_state_constant": True, "strategy": "sequential"},
            "is_kept_state_constant",
        ),
        (
            MetaGradientConfig,
            {"n": 3, "optimizer": replace(ADAM, max_gradient_norm=1.0, is_clip_coefficient_constant=True)},
            "meta.optimizer.is_clip_coefficient_constant",
        ),
        (
            MetaGradientConfig,
            {"n": 2, "optimizer": ADAM, "bootstrap": TARGET, "estimator": "mix"},
            "meta.bootstrap.updates",
        ),
    ],
)
def test_wrong_values_are_refused_with_field_and_value(kind: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^[^=]*{field}\S* = .*: .*; .*$"):
        kind(**fields)


def test_mix_weights_take_every_kappa_that_is_allowed() -> None:
    for kappa in (None, 1e-3, 0.5, 1.0):
        MetaGradientConfig(n=3, estimator="mix", kappa=kappa, optimizer=ADAM)


@pytest.mark.parametrize("estimator", [{"estimator": "n-step"}, {"estimator": "trace", "mu": 0.5}])
@pytest.mark.parametrize("strategy", ["discard", "sequential"])
def test_a_target_goes_with_every_other_scheme(estimator: dict[str, Any], strategy: Any) -> None:
    MetaGradientConfig(n=2, optimizer=ADAM, bootstrap=TARGET, strategy=strategy, **estimator)


def test_the_library_is_told_the_same() -> None:
    bootstrap = BootstrapConfig(updates=2, direction="online||target", value_coefficient=0.25, states="first")
    assert isinstance(bootstrap, Matching)
    assert (bootstrap.direction, bootstrap.value_coefficient, bootstrap.states) == ("online||target", 0.25, "first")
    plain = BootstrapConfig(updates=1)
    assert Matching(**{field.name: getattr(plain, field.name) for field in fields(Matching)}) == Matching()
    outer = OuterObjective(gamma=0.9, lambda_=0.8, critic="inner", critic_coefficient=0.7, is_advantage_normalised=True)
    assert not outer.uses_outer_critic
    assert OuterObjective(gamma=1.0, lambda_=1.0, critic="outer").uses_outer_critic


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: MetaGradientConfig(n=1, optimizer=ADAM, product="retian"), "meta.product"),
        (lambda: MetaGradientConfig(n=1, optimizer=ADAM, estimator="n_step"), "meta.estimator"),
        (lambda: MetaGradientConfig(n=1, optimizer=ADAM, strategy="discrad"), "meta.strategy"),
        (lambda: MetaGradientConfig(n=1, optimizer=ADAM, surrogate="lcv"), "meta.surrogate"),
        (lambda: OuterObjective(gamma=0.9, lambda_=0.9, critic="iner"), "outer.critic"),
        (lambda: BootstrapConfig(updates=1, direction="online||online"), "bootstrap.direction"),
        (lambda: BootstrapConfig(updates=1, states="last"), "bootstrap.states"),
    ],
)
def test_misspelt_names_are_refused_where_they_arrive(make, field, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigurationError, match=f"^{field} = "):
        make()
