"""Write what a run has learnt to a file: `metagrad export RUN_DIR --output policy.pt2`, of a rule `rule.npz`."""

import dataclasses
from collections.abc import Sequence

import tyro

from metagrad.cli.lookup import require_run_dir_first
from metagrad.cli.options import parse
from metagrad.cluster.config.lifetimes import LifetimesExperiment
from metagrad.cluster.run.export import Format, exported, exported_rule, format_of, require_format
from metagrad.cluster.run.folder import RunFolder
from metagrad.cluster.run.trained import trained_in, trained_rule
from metagrad.distributions import DiscreteActions
from metagrad.errors import printable, require
from metagrad.learner.storage import chosen, lasting, write_whole


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """Write the policy of a run, observations in and log-probabilities of the actions out, to a file.

    Of a run that trains an update rule it is the rule, for --rule.
    """

    run_dir: tyro.conf.Positional[str]
    """The run's folder, a path or a URL."""
    output: str = ""
    """The file to write, a path or a URL: .pt2 (torch), .onnx, or .npz (a rule)."""
    format: Format | None = None
    """torch: for torch.export.load; onnx: for ONNX Runtime and others, with the packages of the extra of that name;
    rule: an update rule. None: torch, or rule where the run trains one."""
    update: int | None = None
    """Use the checkpoint of this update; None: the newest."""


def run(words: Sequence[str]) -> None:
    """Export what a run has learnt."""
    require_run_dir_first(words, "export")
    options = parse(ExportOptions, words, None, "metagrad export")
    folder = RunFolder(lasting(options.run_dir))
    experiment = folder.experiment()
    format = format_of(experiment, options.format)
    require_format(format, options.output)
    place = chosen(options.output, "output")
    if isinstance(experiment, LifetimesExperiment):
        rule = trained_rule(folder, experiment, options.update, print)
        write_whole(place, exported_rule(experiment, rule))
        print(f"update {rule.update}: {type(rule.rule).__name__} after {rule.lifetimes} lifetimes")
    else:
        trained = trained_in(folder, experiment, options.update, print)
        space = trained.spec.actions
        rule_of, remedy = (
            "a file has log-probabilities of discrete actions, and this run has others",
            "use metagrad.load",
        )
        require(isinstance(space, DiscreteActions), "run-dir", options.run_dir, rule_of, remedy)
        write_whole(place, exported(trained, format))
        shape = ", ".join(map(str, trained.spec.observation_shape))
        kind = str(trained.spec.observation_dtype).removeprefix("torch.")
        sizes = f"{kind} [batch, {shape}] to log_probs [batch, {trained.spec.num_actions}]"
        print(f"update {trained.update}: observation {sizes}")
    print(f"written: {printable(place)}")
