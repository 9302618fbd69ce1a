"""Every environment that a policy can act in on flat observations trains, resumes and is evaluated end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from metagrad.actors.envs.discounting_chain import DiscountingChainConfig
from metagrad.actors.envs.grid_worlds import GridWorldFamily
from metagrad.actors.envs.iterated_prisoners_dilemma import IteratedPrisonersDilemmaConfig
from metagrad.actors.envs.markov_reward_process import MarkovRewardProcessConfig
from metagrad.actors.envs.tabular_mdp import TabularMdpConfig
from metagrad.actors.rollout import probe
from metagrad.cli.options import parse
from metagrad.cluster.config.actor_critic import Experiment
from metagrad.cluster.config.json_form import from_json, to_json
from metagrad.cluster.launch.launch import run
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.learning import actor_setups
from metagrad.errors import ConfigurationError
from metagrad.networks import AutoNetwork, Mlp, SnakeCnn

Tiny = Callable[..., Experiment]

ENVIRONMENTS = {
    "mdp": TabularMdpConfig(states=6, actions=3, concentration=0.5, horizon=4),
    "mrp": MarkovRewardProcessConfig(states=5),
    "chain": DiscountingChainConfig(horizon=6),
    "ipd": IteratedPrisonersDilemmaConfig(steps=4),
}
FAMILIES = {"grid": GridWorldFamily(distribution="rand_sparse")}  # their tasks and streams are part of a checkpoint
EPISODE_LENGTH = {
    TabularMdpConfig: 4,
    MarkovRewardProcessConfig: 5,
    DiscountingChainConfig: 6,
    IteratedPrisonersDilemmaConfig: 4,
}
OPTION = {
    TabularMdpConfig: "states",
    MarkovRewardProcessConfig: "states",
    DiscountingChainConfig: "horizon",
    IteratedPrisonersDilemmaConfig: "steps",
}
every_environment = pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    ("name", "lookahead"),
    # What a checkpoint holds of an environment is the same in every scheme, so one environment goes through all.
    [*((name, "fork") for name in ENVIRONMENTS | FAMILIES), ("ipd", "continue"), ("ipd", "separate")],
)
def test_training_resumes_bitwise(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, name: str, lookahead: str
) -> None:
    changes = {
        "env": (ENVIRONMENTS | FAMILIES)[name],
        "network": Mlp(hidden=8),
        "lookahead": lookahead,
        "meta": {"n": 2},
    }
    run(tiny(updates=5, **changes), tmp_path / "whole", False, console)
    run(tiny(updates=3, **changes), tmp_path / "parts", False, console)
    run(tiny(updates=5, **changes), tmp_path / "parts", True, console)
    whole, parts = learner_of(tmp_path / "whole"), learner_of(tmp_path / "parts")
    assert whole["learner.theta"] == parts["learner.theta"]
    assert whole["learner.eta"] == parts["learner.eta"]


@every_environment
def test_evaluation_plays_whole_episodes_and_refuses_a_recording(
    tiny: Tiny, console: Console, tmp_path: Path, env: Any
) -> None:
    run(tiny(env=env, network=Mlp(hidden=8), updates=2), tmp_path, False, console)
    evaluate_run(tmp_path, None, 3, 0, False, False)
    (path,) = tmp_path.glob("evaluation-*.json")
    lengths = json.loads(path.read_text())["lengths"]
    assert lengths == [EPISODE_LENGTH[type(env)]] * 3
    path.unlink()
    name = type(env).__name__
    with pytest.raises(ConfigurationError, match=f"^env = '{name}': has no pictures .*; evaluate it without pictures$"):
        evaluate_run(tmp_path, None, 3, 0, False, True)
    assert not list(tmp_path.glob("evaluation-*.json"))  # refused before anything was played


@every_environment
def test_configuration_round_trips_and_is_options(tiny: Tiny, env: Any) -> None:
    experiment = tiny(env=env, network=Mlp(hidden=8))
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment
    option = OPTION[type(env)]
    changed = parse(Experiment, [f"--env.{option}", "9"], experiment, "metagrad train")
    assert (getattr(changed.env, option), type(changed.env)) == (9, type(env))
    with pytest.raises(ConfigurationError, match=f"env.{option}"):
        parse(Experiment, [f"--env.{option}", "0"], experiment, "metagrad train")


@every_environment
def test_only_fitting_networks_are_taken(tiny: Tiny, env: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^network = 'SnakeCnn': needs boards .* gives float32 \[\d+\]"):
        tiny(env=env, network=SnakeCnn()).algorithm(probe(env))


@every_environment
def test_colocated_it_lives_on_the_learners_device(tiny: Tiny, env: Any) -> None:
    experiment = tiny(env=env, network=Mlp(hidden=8))
    assert actor_setups(experiment, torch.device("cuda"), 0)[0].device == "cuda"


@pytest.mark.parametrize(
    ("env", "network", "lookahead", "schedule"),
    [
        ("mdp", Mlp(hidden=8, gru=4), "fork", "lockstep"),
        ("chain", AutoNetwork(hidden=8, gru=4), "separate", "lockstep"),
        ("mdp", Mlp(hidden=8, gru=4), "continue", "peek"),
    ],
)
@pytest.mark.thinned(3)
def test_a_recurrent_network_trains_resumes_bitwise_and_is_evaluated(
    tiny: Tiny, console: Console, tmp_path: Path, learner_of: Any, env: str, network: Any, lookahead: str, schedule: str
) -> None:
    changes = {"env": ENVIRONMENTS[env], "network": network, "lookahead": lookahead, "schedule": schedule}
    changes |= {"meta": {"n": 2}} if lookahead == "fork" else {}
    run(tiny(updates=5, **changes), tmp_path / "whole", False, console)
    run(tiny(updates=3, **changes), tmp_path / "parts", False, console)
    run(tiny(updates=5, **changes), tmp_path / "parts", True, console)
    whole, parts = learner_of(tmp_path / "whole"), learner_of(tmp_path / "parts")
    assert whole == parts
    states = [x for name, x in whole.items() if name.endswith("real/recurrent_state")]
    assert any(any(map(any, rows)) for _, rows in states)
    evaluate_run(tmp_path / "whole", None, 3, 0, False, False)
