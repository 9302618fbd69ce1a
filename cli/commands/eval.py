"""Play full episodes with a checkpoint of a run: `metagrad eval RUN_DIR`."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from metagrad.actors.evaluate import MAX_EPISODE_STEPS
from metagrad.cli.lookup import require_run_dir_first
from metagrad.cli.options import parse
from metagrad.cluster.run.evaluation import evaluate_run
from metagrad.cluster.run.stop import stopped_at_once
from metagrad.learner.storage import lasting


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """Play full-life, raw-reward episodes with a checkpoint of a run."""

    run_dir: tyro.conf.Positional[str]
    """The run's folder, a path or a URL."""
    episodes: int = 128
    """How many episodes to play."""
    update: int | None = None
    """Use the checkpoint of this update; None: the newest."""
    seed: int = 0
    """Seed of the evaluation's own environments and policy; the same seed plays the same episodes."""
    greedy: bool = False
    """Take the most likely action instead of sampling."""
    max_steps: int = MAX_EPISODE_STEPS
    """Cut an episode that has not ended after this many steps; the result reports how many were cut."""
    record: Annotated[bool, tyro.conf.arg(help="Also write one episode as a GIF beside the result.")] = False
    output: str | None = None
    """Write the result to this folder or .json file; None: to the run folder, which has to be writable."""


def run(words: Sequence[str]) -> None:
    """Evaluate a run's newest checkpoint."""
    require_run_dir_first(words, "eval")
    options = parse(EvalOptions, words, None, "metagrad eval")
    run_dir = lasting(options.run_dir)
    how = (options.update, options.episodes, options.seed, options.greedy, options.record)
    with stopped_at_once():
        evaluate_run(run_dir, *how, options.output, options.max_steps)
