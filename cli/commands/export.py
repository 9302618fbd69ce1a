"""Write the policy of a run to a file that needs metagrad no more: `metagrad export RUN_DIR --output policy.pt2`."""

import dataclasses
from collections.abc import Sequence

import tyro

from metagrad.cli.lookup import require_run_dir_first
from metagrad.cli.options import parse
from metagrad.cluster.run.export import Format, exported, require_format
from metagrad.cluster.run.trained import trained_run
from metagrad.distributions import DiscreteActions
from metagrad.errors import printable, require
from metagrad.learner.storage import chosen, lasting, write_whole


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Write the policy of a run, observations in and log-probabilities of the actions out, to a file."""

    run_dir: tyro.conf.Positional[str]
    """The run's folder, a path or a URL."""
    output: str = ""
    """The file to write, a path or a URL: .pt2 (torch), or .onnx."""
    format: Format = "torch"
    """torch: for torch.export.load; onnx: for ONNX Runtime and others, with the packages of the extra of that name."""
    update: int | None = None
    """Use the checkpoint of this update; None: the newest."""


def run(words: Sequence[str]) -> None:
    """Export the policy of a run."""
    require_run_dir_first(words, "export")
    options = parse(ExportOptions, words, None, "metagrad export")
    run_dir = lasting(options.run_dir)
    require_format(options.format, options.output)
    place = chosen(options.output, "output")
    trained = trained_run(run_dir, options.update, print)
    space = trained.spec.actions
    rule, remedy = "a file has log-probabilities of discrete actions, and this run has others", "use metagrad.load"
    require(isinstance(space, DiscreteActions), "run-dir", run_dir, rule, remedy)
    write_whole(place, exported(trained, options.format))
    shape = ", ".join(map(str, trained.spec.observation_shape))
    kind = str(trained.spec.observation_dtype).removeprefix("torch.")
    print(
        f"update {trained.update}: observation {kind} [batch, {shape}] to log_probs [batch, {trained.spec.num_actions}]"
    )
    print(f"written: {printable(place)}")
