import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from actors.envs.atari import AtariConfig
from actors.envs.snake import SnakeConfig
from cluster.config import Experiment
from cluster.config_json import differences, from_json, to_json
from cluster.run_config import CheckpointConfig, FaultConfig
from experiments import EXPERIMENTS
from learner.optimizer_config import AdamConfig, SgdConfig
from metagrad.errors import ConfigurationError
from metagrad.networks import Mlp, NatureCnn, SnakeCnn

Tiny = Callable[..., Experiment]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_round_trips_through_json(name: str) -> None:
    experiment = EXPERIMENTS[name]()
    assert experiment.name == name
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@pytest.mark.parametrize("optimizer", [SgdConfig(learning_rate=0.1, momentum=0.5), AdamConfig(learning_rate=0.1)])
def test_every_variant_round_trips(tiny: Tiny, optimizer: Any) -> None:
    experiment = tiny(optimizer=optimizer, network=Mlp(hidden=3), lookahead="fork")
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def configuration_types(kind: Any, seen: set[type]) -> set[type]:
    import typing

    for part in typing.get_args(kind):
        configuration_types(part, seen)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind not in seen:
        seen.add(kind)
        for hint in typing.get_type_hints(kind).values():
            configuration_types(hint, seen)
    return seen


def test_every_type_that_an_experiment_can_hold_is_listed() -> None:
    assert set(CONFIG_TYPES.values()) == configuration_types(Experiment, set())


def test_a_value_that_its_type_refuses_does_not_come_out_of_json(tiny: Tiny) -> None:
    tree = to_json(tiny()) | {"actors": 0}
    with pytest.raises(ConfigurationError, match=r"^actors = 0: "):
        from_json(tree)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("topology",), "cluster"),
        (("lookahead",), None),
        (("updates",), 2.5),
        (("updates",), True),
        (("learner_threads",), 1.5),
        (("device",), 3),
        (("meta",), None),
        (("meta",), {"type": "SnakeConfig"}),
        (("meta", "estimator"), "x"),
        (("meta", "n"), "1"),
        (("optimizer",), {"type": "Mlp", "hidden": 3}),
        (("outer", "critic"), ["outer"]),
        (("meta_parameters", "gamma", "is_learnt"), 1),
        (("network", "channels"), 1.5),
        (("checkpoint",), 500),
    ],
)
def test_a_value_of_another_type_does_not_come_out_of_json(tiny: Tiny, path: tuple[str, ...], value: Any) -> None:
    tree = to_json(tiny())
    owner = tree
    for name in path[:-1]:
        owner = owner[name]
    assert path[-1] in owner
    owner[path[-1]] = value
    with pytest.raises(ConfigurationError, match=rf"^\w+\.{path[-1]} = .*: must be .*; correct it in config.json$"):
        from_json(tree)


def test_json_may_write_whole_numbers_for_real_ones(tiny: Tiny) -> None:
    tree = to_json(tiny())
    tree["outer"]["gamma"] = 1
    assert from_json(tree).outer.gamma == 1.0


ATARI = {"env": AtariConfig(), "network": NatureCnn()}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"actors": 0}, "actors"),
        ({"environments": 7}, "environments"),
        ({"environments": 0}, "environments"),
        ({"rollout_length": 0}, "rollout_length"),
        ({"updates": 0}, "updates"),
        ({"updates": 6, "optimizer": SgdConfig(learning_rate=0.1, annealing_updates=5)}, "updates"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"log_every": 0}, "log_every"),
        ({"actor_threads": 0}, "actor_threads"),
        ({"learner_threads": 0}, "learner_threads"),
        ({"lookahead": "fork", "meta": {"n": 0}}, "lookahead"),
        ({"lookahead": "separate", "meta": {"strategy": "sequential"}}, "lookahead"),
        ({"lookahead": "fork"} | ATARI, "lookahead"),
        ({"network": NatureCnn()}, "network"),
        ({"network": SnakeCnn(channels=0)}, "network.channels"),
        ({"network": SnakeCnn(channels=2**20 + 1)}, "network.channels"),
        ({"learner_threads": 1_025}, "learner_threads"),
        ({"rollout_length": 2**29}, "environments x rollout_length"),
        (ATARI | {"network": SnakeCnn()}, "network"),
        (ATARI | {"env": AtariConfig(frame_size=35)}, "env.frame_size"),
    ],
)
def test_wrong_values_and_combinations_are_refused(tiny: Tiny, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{field} = .*: .*; .*$"):
        tiny(**changes)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CheckpointConfig, {"every": 0}),
        (CheckpointConfig, {"keep": 0}),
        (FaultConfig, {"rollout_seconds": 0.0}),
        (FaultConfig, {"rollout_seconds": float("nan")}),
        (FaultConfig, {"rollout_seconds": float("inf")}),
        (FaultConfig, {"restarts_without_progress": -1}),
    ],
)
def test_wrong_supervision_is_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        kind(**fields)


def test_differences_name_dotted_fields(tiny: Tiny) -> None:
    assert differences(tiny(), tiny()) == []
    other = tiny(seed=3, env=SnakeConfig(rows=4, columns=3, time_limit=20), meta={"n": 2})
    assert sorted(differences(tiny(), other)) == [("env.rows", 3, 4), ("meta.n", 1, 2), ("seed", 0, 3)]
    (difference,) = differences(tiny(), tiny(network=Mlp(hidden=3)))
    assert difference[0] == "network"


def test_derived_values(tiny: Tiny) -> None:
    experiment = tiny()
    assert experiment.steps_per_rollout == 12
    assert experiment.has_outer_critic
    assert experiment.learner.meta is experiment.meta
