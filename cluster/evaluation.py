"""Evaluate a run: its newest checkpoint, in environments of their own."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from metagrad.actors.evaluate import evaluate
from metagrad.actors.record import pictured, record
from metagrad.actors.rollout import probe
from metagrad.cluster.launch import check_fits, resolve_device, restore
from metagrad.cluster.run_folder import RunFolder
from metagrad.cores import default_threads
from metagrad.errors import ConfigurationError, require
from metagrad.learner.checkpoint import Unreadable, checkpoint_path, load, paths, update_of
from metagrad.learner.storage import Location, write_whole


def evaluate_run(
    run_dir: str | Location, update: int | None, episodes: int, seed: int, is_greedy: bool, wants_recording: bool
) -> None:
    """Print and store (evaluation-….json in the run folder) raw full-life returns of the newest, or one, checkpoint."""
    require(episodes >= 1, "episodes", episodes, "must be at least 1", "raise it")
    require(0 <= seed < 2**63, "seed", seed, "must lie in [0, 2^63)", "use a smaller non-negative integer")
    folder = RunFolder(run_dir)
    experiment = folder.experiment()
    if wants_recording:
        pictured(experiment.env)  # refused before anything is played
    device = resolve_device("cpu")
    spec = probe(experiment.env)
    algorithm = experiment.algorithm(spec)
    if update is None:
        tree = restore(folder, experiment, algorithm, print).tree
    else:
        tree = _tree_of(folder, update)
        check_fits(checkpoint_path(folder.checkpoints, update), tree, experiment, algorithm)
    state = algorithm.from_tree(tree["learner"], device)
    threads = experiment.learner_threads or default_threads()
    torch.set_num_threads(threads)
    result = evaluate(algorithm.network, state.theta, experiment.env, episodes, seed, is_greedy, device, threads)
    kind = "greedy" if is_greedy else "sampled"
    print(
        f"update {state.update}, {kind} policy, seed {seed}: return {result.mean:.3f} "
        f"(std {result.std:.3f}, standard error {result.standard_error:.3f}) over {len(result.returns)} episodes"
    )
    report = {
        "update": state.update,
        "policy": kind,
        "seed": seed,
        "return_mean": result.mean,
        # JSON has no NaN, which is what the spread of one episode is.
        "return_std": result.std if episodes > 1 else None,
        "return_standard_error": result.standard_error if episodes > 1 else None,
        "returns": list(result.returns),
        "lengths": list(result.lengths),
    }
    name = f"{state.update:09d}-{kind}-seed{seed}"
    path = folder.path / f"evaluation-{name}.json"
    write_whole(path, (json.dumps(report) + "\n").encode())
    print(f"written: {path}")
    if wants_recording:
        with tempfile.TemporaryDirectory() as scratch:
            video = Path(scratch, "episode.gif")
            episode = record(algorithm.network, state.theta, experiment.env, video, seed, is_greedy)
            picture = folder.path / f"episode-{name}.gif"
            write_whole(picture, video.read_bytes())
        print(f"written: {picture} (return {episode.episode_return:g}, {episode.length} steps)")


def _tree_of(folder: RunFolder, update: int) -> dict[str, Any]:
    path = checkpoint_path(folder.checkpoints, update)
    held = ", ".join(str(update_of(path)) for path in paths(folder.checkpoints))
    require(path.exists(), "update", update, "has no checkpoint in this run", f"choose one of {held}")
    try:
        return load(path)
    except Unreadable as error:
        raise ConfigurationError(f"update = {update}: cannot be read ({error}); choose another of {held}") from error
