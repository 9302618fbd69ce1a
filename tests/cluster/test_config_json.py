import dataclasses
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from metagrad.actor_critic import A2cLoss, InnerLoss
from metagrad.actors.envs.base import Environment, EnvironmentConfig
from metagrad.actors.envs.snake import SnakeConfig
from metagrad.cli.options import parse
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.experiment import BaseExperiment, EvaluationConfig
from metagrad.cluster.config.json_form import config_types, differences, from_json, to_json
from metagrad.errors import ConfigurationError
from metagrad.experiments import EXPERIMENTS
from metagrad.meta_parameters import MetaParameter
from metagrad.networks import Mlp
from metagrad.optimizers import Adam, RmsProp, Sgd

Tiny = Callable[..., Experiment]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_round_trips_through_json(name: str) -> None:
    experiment = EXPERIMENTS[name]()
    assert experiment.name == name
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("snake-6x6", "A2cParameters", "A2cLoss"),
        ("stacx", "VtraceParameters", "VtraceLoss"),
        ("lirpg-snake", "IntrinsicRewardParameters", "IntrinsicRewardLoss"),
        ("discounting-chain", "ChainParameters", "TrueValueLoss"),
        ("snake-6x6", "OuterConfig", "OuterObjective"),
    ],
)
def test_run_folders_with_the_names_that_types_had_are_read(name: str, old: str, new: str) -> None:
    experiment = EXPERIMENTS[name]()
    text = json.dumps(to_json(experiment))
    assert f'"{new}"' in text
    assert from_json(json.loads(text.replace(f'"{new}"', f'"{old}"'))) == experiment


@pytest.mark.parametrize(("allows_tf32", "precision"), [(False, "float32"), (True, "tf32")])
def test_run_folders_from_before_there_were_precisions_are_read(tiny: Tiny, allows_tf32: bool, precision: str) -> None:
    tree = to_json(tiny())
    del tree["precision"]
    assert from_json(tree | {"allows_tf32": allows_tf32}) == tiny(precision=precision)


@pytest.mark.parametrize("optimizer", [Sgd(learning_rate=0.1, momentum=0.5), Adam(learning_rate=0.1)])
def test_every_variant_round_trips(tiny: Tiny, optimizer: Any) -> None:
    experiment = tiny(optimizer=optimizer, network=Mlp(hidden=3), lookahead="fork")
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_a_learnt_step_size_round_trips_and_a_number_from_the_command_line_fixes_it(tiny: Tiny) -> None:
    learnt = tiny(optimizer=Adam(learning_rate=MetaParameter(initial=0.01, high=0.1)))
    assert from_json(json.loads(json.dumps(to_json(learnt)))) == learnt
    assert parse(Experiment, ["--seed", "3"], learnt, "metagrad train") == replace(learnt, seed=3)
    fixed = parse(Experiment, ["--optimizer.learning-rate", "0.02"], learnt, "metagrad train")
    assert fixed == replace(learnt, optimizer=Adam(learning_rate=0.02))


@pytest.mark.parametrize("kind", [Sgd, RmsProp, Adam])
def test_optimizers_are_read_under_the_names_that_they_had_before(tiny: Tiny, kind: Any) -> None:
    experiment = tiny(optimizer=kind(learning_rate=0.1, annealing_updates=50, max_gradient_norm=0.5))
    tree = json.loads(json.dumps(to_json(experiment)))
    assert (tree["optimizer"]["type"], tree["meta"]["optimizer"]["type"]) == (kind.__name__, "Adam")
    tree["optimizer"]["type"], tree["meta"]["optimizer"]["type"] = f"{kind.__name__}Config", "AdamConfig"
    assert from_json(tree) == experiment


@pytest.mark.parametrize("rate", ["0.1", True, {"type": "Mlp"}, [0.1]])
def test_a_step_size_that_is_none_is_refused(tiny: Tiny, rate: Any) -> None:
    tree = to_json(tiny(optimizer=Sgd(learning_rate=0.1)))
    tree["optimizer"]["learning_rate"] = rate
    with pytest.raises(ConfigurationError, match=r"^Sgd\.learning_rate = .*: must be .*; correct it in config\.json$"):
        from_json(tree)


def test_how_a_run_is_spread_round_trips(tiny: Tiny) -> None:
    streamed: dict[str, Any] = {"schedule": "peek", "max_lag": 7, "environments_per_actor": 2, "actors": 3}
    placed: dict[str, Any] = {"topology": "ray", "learner_cpus": 2, "learner_restarts": 3}
    evaluation = EvaluationConfig(every=5, episodes=2, is_greedy=True)
    experiment = tiny(**streamed, **placed, evaluation=evaluation)
    tree = json.loads(json.dumps(to_json(experiment)))
    assert from_json(tree) == experiment
    assert {name: tree[name] for name in (*streamed, *placed)} == streamed | placed


def test_older_runs_of_peek_keep_the_clips_that_they_had(tiny: Tiny) -> None:
    for schedule, clip in (("peek", 1.0), ("lockstep", None)):
        tree = to_json(tiny(schedule=schedule))
        assert from_json(tree).ratio_clip is None
        del tree["ratio_clip"]
        assert from_json(tree).ratio_clip == clip


def configuration_types(kind: Any, seen: set[type]) -> set[type]:
    """Dataclasses that an annotation mentions, and those that these and their subclasses mention."""
    for part in typing.get_args(kind):
        configuration_types(part, seen)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind not in seen:
        seen.add(kind)
        for hint in (*kind.__subclasses__(), *typing.get_type_hints(kind).values()):
            configuration_types(hint, seen)
    return seen


def test_every_type_that_an_experiment_can_hold_is_listed() -> None:
    found = config_types()
    mentioned = configuration_types(BaseExperiment, set())
    assert set(found) == {kind.__name__ for kind in mentioned if not inspect.isabstract(kind)}
    assert {SnakeConfig, A2cLoss, Mlp, Sgd, Experiment} <= set(found.values())
    assert not {EnvironmentConfig, InnerLoss, BaseExperiment} & set(found.values()), "nobody can make these"
    for name, kind in found.items():
        assert (kind.__name__, "__slots__" in vars(kind)) == (name, True), "not the class that slots=True was added to"


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyMaze(EnvironmentConfig):
    """An environment with fields of several values."""

    walls: tuple[float, ...] = ()
    start: tuple[int, str] = (0, "left")

    def make(self, **_: Any) -> Environment:
        raise NotImplementedError


@pytest.mark.parametrize("walls", [(), (1.0,), (1.5, 2.0, 2.5)])
def test_several_values_round_trip(tiny: Tiny, walls: tuple[float, ...]) -> None:
    experiment = replace(tiny(), env=ToyMaze(walls=walls, start=(3, "right")), network=Mlp(hidden=3))
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment
    assert differences(experiment, replace(experiment, env=ToyMaze(walls=walls))) == [
        ("env.start", (3, "right"), (0, "left"))
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("walls", ["1"]),
        ("walls", [1.0, True]),
        ("walls", 1.0),
        ("walls", {"type": "Mlp"}),
        ("start", [1]),
        ("start", [1, "right", 2]),
        ("start", ["right", 1]),
    ],
)
def test_several_values_of_another_type_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^ToyMaze.{field} = .*: must be tuple\[.*\]; correct it in config"):
        from_json(to_json(ToyMaze()) | {field: value})


@pytest.mark.parametrize("name", ["EnvironmentConfig", "BaseExperiment", "InnerLoss", "Path", None])
def test_what_is_no_configuration_type_is_refused_in_one_line(name: Any) -> None:
    remedy = "give the file that defines it: metagrad --import FILE.py …"
    with pytest.raises(ConfigurationError) as refusal:
        from_json({"type": name})
    line = f"config.json type = {name!r}: is not a configuration type known here; {remedy}"
    assert str(refusal.value) == line


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


def test_differences_name_dotted_fields(tiny: Tiny) -> None:
    assert differences(tiny(), tiny()) == []
    other = tiny(seed=3, env=SnakeConfig(rows=4, columns=3, time_limit=20), meta={"n": 2})
    assert sorted(differences(tiny(), other)) == [("env.rows", 3, 4), ("meta.n", 1, 2), ("seed", 0, 3)]
    (difference,) = differences(tiny(), tiny(network=Mlp(hidden=3)))
    assert difference[0] == "network"
