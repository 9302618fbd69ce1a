"""Evaluate a checkpoint of a run in environments of its own."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from metagrad.actors.evaluate import MAX_EPISODE_STEPS, evaluate
from metagrad.actors.record import record
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.trained import trained_in
from metagrad.cores import default_threads
from metagrad.errors import counted, printable, refusing, require
from metagrad.learner.storage import Location, RemotePath, chosen, inside, lasting, location, write_whole


def evaluate_run(  # noqa: PLR0913 (a flat list of what is played; a structure for one call would only hide it)
    run_dir: str | Location,
    update: int | None,
    episodes: int,
    seed: int,
    is_greedy: bool,
    wants_recording: bool,
    output: str | None = None,
    max_steps: int = MAX_EPISODE_STEPS,
) -> None:
    """Print and store raw full-life returns of the newest, or one, checkpoint.

    Results go into the run folder as evaluation-….json, with the recording beside them as episode-….gif. `output` names
    another folder for both, or, where it ends in .json, the file itself: the recording then has its name with .gif.
    """
    require(episodes >= 1, "episodes", episodes, "must be at least 1", "raise it")
    require(max_steps >= 1, "max_steps", max_steps, "must be at least 1", "raise it")
    require(0 <= seed < 2**63, "seed", seed, "must lie in [0, 2^63)", "use a smaller non-negative integer")
    folder = RunFolder(run_dir)
    experiment = folder.experiment()
    if wants_recording:
        experiment.env.make_pictured(seed).close()  # refused before anything is played
    places = _places(folder, output)
    trained = trained_in(folder, experiment, update, print)
    threads = experiment.learner_threads or default_threads()
    torch.set_num_threads(threads)
    policy = (trained.network, trained.theta, experiment.env)
    result = evaluate(*policy, episodes, seed, is_greedy, torch.device("cpu"), threads, max_steps=max_steps)
    if result.cut:
        print(f"{result.cut} of {episodes} episodes had not ended after {max_steps} steps (--max-steps) and were cut")
    kind = "greedy" if is_greedy else "sampled"
    print(
        f"update {trained.update}, {kind} policy, seed {seed}: return {result.mean:.3f} "
        f"(std {result.std:.3f}, standard error {result.standard_error:.3f}) over "
        f"{counted(len(result.returns), 'episode')}"
    )
    report = {
        "update": trained.update,
        "policy": kind,
        "seed": seed,
        "return_mean": result.mean,
        # JSON has no NaN, which is what the spread of one episode is.
        "return_std": result.std if episodes > 1 else None,
        "return_standard_error": result.standard_error if episodes > 1 else None,
        "returns": list(result.returns),
        "lengths": list(result.lengths),
        "cut": result.cut,
        "max_steps": max_steps,
    }
    path, picture = places(f"{trained.update:09d}-{kind}-seed{seed}")
    write_whole(path, (json.dumps(report) + "\n").encode())
    print(f"written: {printable(path)}")
    if wants_recording:
        episode = record(*policy, seed, is_greedy)
        write_whole(picture, episode.gif)
        cut = "" if episode.is_complete else ", where it was cut: the game continues"
        print(
            f"written: {printable(picture)} (return {episode.episode_return:g}, {counted(episode.length, 'step')}{cut})"
        )


def _places(folder: RunFolder, output: str | None) -> Callable[[str], tuple[Location, Location]]:
    """Return a function from the name of an evaluation to the places of its result and its recording.

    Raises:
        ConfigurationError: nothing can be written there, before anything is played.
    """
    if output is not None and output.endswith(".json"):
        result = chosen(output, "output")
        picture = inside(_parent(result), f"{result.name.removesuffix('.json')}.gif")
        _require_writable(_parent(result), "output")
        return lambda name: (result, picture)
    if output is None:
        into, field = folder.path, "run-dir"
    else:
        into, field = _real(location(lasting(output, "output"), "output")), "output"
    _require_writable(into, field)
    return lambda name: (inside(into, f"evaluation-{name}.json"), inside(into, f"episode-{name}.gif"))


def _parent(place: Location) -> Location:
    return RemotePath(place.url.rpartition("/")[0]) if isinstance(place, RemotePath) else place.parent


def _real(place: Location) -> Location:
    """Follow the user's own links."""
    return place if isinstance(place, RemotePath) else Path(os.path.realpath(place))


def _require_writable(folder: Location, field: str) -> None:
    if isinstance(folder, RemotePath):  # only an upload would tell
        return
    with refusing(OSError, field=field, value=str(folder), rule="cannot be written", remedy="name another"):
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        is_writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    remedy = "name another one" if field == "output" else "add --output FOLDER"
    require(is_writable, field, str(folder), "is not a folder that can be written", remedy)
