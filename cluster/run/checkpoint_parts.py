"""Check that a checkpoint holds what a run writes; its algorithm checks its own part."""

from collections.abc import Callable
from contextlib import closing
from typing import Any, get_args

import torch
from torch import Tensor

from metagrad.actors.envs import DeviceEnvironmentConfig
from metagrad.actors.envs.base import is_cudas_stream
from metagrad.actors.rollout import ActorSetup, ActorState
from metagrad.cluster.config.experiment import BaseExperiment
from metagrad.cluster.run.actor_group import joined_states, setups_of
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.learning import actor_setups
from metagrad.errors import ConfigurationError, require
from metagrad.learner.actors import Account
from metagrad.learner.algorithm import Algorithm
from metagrad.learner.checkpoint import NoCheckpoint, Restored, restore_newest, update_of
from metagrad.learner.plain_data import is_count, is_like, is_number, is_tensor, is_trajectory
from metagrad.learner.storage import Location
from metagrad.learner.tally import Counters, Evaluation, Interval
from metagrad.learner.training import CHECKPOINT_PARTS
from metagrad.precision import Precision

_INTERVAL = {"means", "variance", "lags", "throughput", "is_row_partial", "evaluation"}
_SMALL = 4_096  # entries of what people can count: reasons, say


def restore(
    folder: RunFolder, experiment: BaseExperiment, algorithm: Algorithm[Any], report: Callable[[str], None]
) -> Restored:
    """Load the newest readable checkpoint of a run.

    Raises:
        ConfigurationError: there is none, or it is not of this experiment.
    """
    try:
        restored = restore_newest(folder.checkpoints)
    except NoCheckpoint as error:
        remedy = "train until the first one (--resume begins such a run at update 0)"
        if folder.has_checkpoint():
            remedy = "restore one of them; moved out of the folder, --resume begins at update 0"
        raise ConfigurationError(f"run-dir = {str(folder.path)!r}: {error}; {remedy}") from error
    for line in restored.unreadable:
        report(f"checkpoint unreadable, using {restored.path.name} instead: {line}")
    check_fits(restored.path, restored.tree, experiment, algorithm)
    return restored


def check_fits(path: Location, tree: dict[str, Any], experiment: BaseExperiment, algorithm: Algorithm[Any]) -> None:
    """Refuse a checkpoint that this experiment cannot have written: one of another run, another version or no run.

    Raises:
        ConfigurationError: it is one.
    """
    wrong = misfit(tree, update_of(path), experiment, algorithm)
    rule = "is not as this run has it: the checkpoint is of another run or of another version of metagrad"
    require(wrong is None, "checkpoint", str(path), f"its {wrong} {rule}", "put the run's own there")


def misfit(tree: dict[str, Any], update: int, experiment: BaseExperiment, algorithm: Algorithm[Any]) -> str | None:
    """Name of the first part of a checkpoint that this experiment cannot have written after `update`; None: all fit."""
    missing = [part for part in CHECKPOINT_PARTS if part not in tree]
    if missing:
        return missing[0]
    wrong = algorithm.misfit(tree["learner"])
    if wrong is not None:
        return wrong
    if tree["learner"]["update"] != update:
        return "update"
    checks = {
        "device": tree["device"] in ("cpu", "cuda"),
        "precision": tree.get("precision", "float32") in get_args(Precision),  # older versions had float32 alone
        "counters": _are_counters(tree["counters"]),
        "account": _is_account(tree["account"]),
        "episodes": _are_episodes(tree["episodes"]),
        "window": _is_window(tree["window"], (experiment.rollout_length, experiment.environments)),
        "actors": _are_actors(tree, experiment),
        "learners": "learners" not in tree or is_count(tree["learners"]),  # one learner writes none
        "interval": "interval" not in tree or _is_interval(tree["interval"]),  # older versions have none
    }
    return next((part for part, fits in checks.items() if not fits), None)


def _are_counters(found: Any) -> bool:
    return is_like(found, Counters()._asdict()) and found["wall_seconds"] >= 0


def _is_account(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("dropped"), dict) or len(found["dropped"]) > _SMALL:
        return False
    reasons = found["dropped"].items()
    return is_like(found | {"dropped": {}}, Account().to_tree()) and all(
        isinstance(reason, str) and is_count(steps) for reason, steps in reasons
    )


def _are_episodes(found: Any) -> bool:
    if not isinstance(found, dict) or found.keys() != {"returns", "lengths", "count"} or not is_count(found["count"]):
        return False
    returns, lengths = found["returns"], found["lengths"]
    if not isinstance(returns, list) or not isinstance(lengths, list):
        return False
    return len(returns) == len(lengths) <= found["count"] and all(map(is_number, [*returns, *lengths]))


def _is_window(found: Any, shape: tuple[int, int]) -> bool:
    return isinstance(found, list) and all(
        isinstance(batch, dict)
        and batch.keys() == {"trajectory", "versions"}
        and is_trajectory(batch["trajectory"])
        and batch["trajectory"]["reward"].shape == shape
        and isinstance(batch["versions"], list)
        and all(map(is_count, batch["versions"]))
        for batch in found
    )


def _is_interval(found: Any) -> bool:
    if not isinstance(found, dict) or found.keys() != _INTERVAL:
        return False
    means, variance, lags = found["means"], found["variance"], found["lags"]
    are_means = isinstance(means, dict) and means.keys() == {"sums", "counts"}
    return (
        are_means
        and all(isinstance(of_all, dict) and len(of_all) <= _SMALL for of_all in means.values())
        and means["sums"].keys() == means["counts"].keys()
        and all(isinstance(name, str) for name in means["sums"])
        and all(type(total) is float for total in means["sums"].values())  # a user's algorithm may log NaN
        and all(is_count(count) and count > 0 for count in means["counts"].values())
        and _are_moments(variance)
        and isinstance(lags, list)
        and all(map(is_count, lags))
        and is_like(found["throughput"], Interval()._asdict())
        and isinstance(found["is_row_partial"], bool)
        and found["evaluation"] in get_args(Evaluation)
    )


def _are_moments(found: Any) -> bool:
    if found == {}:
        return True
    if not isinstance(found, dict) or found.keys() != {"count", "mean", "m2"} or not is_count(found["count"]):
        return False
    mean, m2 = found["mean"], found["m2"]
    are_vectors = all(is_tensor(x) and x.dtype is torch.float64 and x.dim() == 1 for x in (mean, m2))
    return found["count"] > 0 and are_vectors and mean.shape == m2.shape


def _are_actors(tree: dict[str, Any], experiment: BaseExperiment) -> bool:
    found = tree["actors"]
    if not isinstance(found, list) or len(found) != experiment.actors:
        return False
    are_plain = all(isinstance(state, dict) and all(map(is_tensor, state.values())) for state in found)
    if not are_plain or not experiment.env.has_snapshots:
        return are_plain
    # Populations may differ in the families of their agents, in turn.
    setups = actor_setups(experiment, torch.device("cpu"), 0)[: experiment.kinds_of_actors]
    fresh = [_fresh_state(experiment, setup) for setup in setups]
    is_on_device = isinstance(experiment.env, DeviceEnvironmentConfig)
    return all(
        not state or _is_state(state, fresh[i % len(fresh)], is_on_device)  # one that was away has none
        for i, state in enumerate(found)
    )


def _fresh_state(experiment: BaseExperiment, setup: ActorSetup) -> ActorState:
    setups = setups_of(setup)
    with closing(experiment.actor_type(setups[0])) as actor:
        own = actor.state()
    return own if len(setups) == 1 else joined_states([own] * len(setups))


def _is_state(found: ActorState, fresh: ActorState, is_on_device: bool) -> bool:
    # Environments on the host may keep random numbers of another kind, whose form is all that can be checked.
    suffix = "generator" if is_on_device else "policy_generator"
    # Tasks of a family count in their streams: plain numbers, whose form is that of a fresh one.
    streams = {name for name, x in fresh.items() if name.endswith(suffix) and x.dtype is torch.uint8}
    games = {name: x for name, x in fresh.items() if name not in streams}
    return (
        found.keys() == fresh.keys()
        and is_like({name: found[name] for name in games}, games)
        and all(_is_stream(found[name]) for name in streams)
    )


def _is_stream(found: Tensor) -> bool:
    """True if it is a generator's state; of CUDA's only the form can be checked here."""
    if found.dtype is not torch.uint8 or found.dim() != 1:
        return False
    if is_cudas_stream(found):
        return True
    try:
        torch.Generator().set_state(found)
    except RuntimeError:
        return False
    return True
