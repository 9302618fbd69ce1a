from dataclasses import replace
from typing import Any

import pytest
import torch

from metagrad.errors import ConfigurationError
from metagrad.learner.optimizer_config import AdamConfig, RmsPropConfig, SgdConfig
from metagrad.optimizers import Adam, ClipByGlobalNorm, RmsProp, Sgd

NAN = float("nan")


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
        (AdamConfig, {"learning_rate": 0.1, "is_clip_coefficient_constant": True}, "is_clip_coefficient_constant"),
        (AdamConfig, {"learning_rate": 0.1, "beta1": 1.0}, "beta1"),
        (AdamConfig, {"learning_rate": 0.1, "beta2": -0.1}, "beta2"),
    ],
)
def test_wrong_values_are_refused_with_field_and_value(kind: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^[^=]*{field}\S* = .*: .*; .*$"):
        kind(**fields)


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


@pytest.mark.parametrize(
    ("config", "kind", "fields"),
    [
        (SgdConfig(learning_rate=0.1, momentum=0.5), Sgd, {"momentum": 0.5}),
        (RmsPropConfig(learning_rate=0.1, decay=0.7, eps=0.2, eps_root=0.3), RmsProp, {"decay": 0.7, "eps": 0.2}),
        (RmsPropConfig(learning_rate=0.1, decay=0.7, eps=0.2, eps_root=0.3), RmsProp, {"eps_root": 0.3}),
        (AdamConfig(learning_rate=0.1, beta1=0.5, beta2=0.6), Adam, {"beta1": 0.5, "beta2": 0.6}),
        (AdamConfig(learning_rate=0.1, eps=0.2, eps_root=0.3), Adam, {"eps": 0.2, "eps_root": 0.3}),
    ],
)
def test_every_field_reaches_the_optimizer(config: Any, kind: Any, fields: dict[str, Any]) -> None:
    plain, clipped = config.build(), replace(config, max_gradient_norm=2.0).build()
    assert isinstance(clipped, ClipByGlobalNorm)
    assert clipped.max_norm == 2.0
    for optimizer in (plain, clipped.optimizer):
        assert isinstance(optimizer, kind)
        assert optimizer.learning_rate(1_000, torch.zeros(1)) == 0.1
        assert {name: getattr(optimizer, name) for name in fields} == fields
