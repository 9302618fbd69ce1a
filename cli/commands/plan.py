"""Preview where a run's processes would go: `metagrad plan EXPERIMENT`."""

import dataclasses
from collections.abc import Sequence

from metagrad.cli.lookup import experiment_first
from metagrad.cli.options import AllFields, parse, without_auto_actors
from metagrad.cli.shell import print_lines
from metagrad.cluster.plan.preview import plan, with_chosen_actors


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """Preview a run's layout on the cluster at RAY_ADDRESS, or here. Every field of the experiment is an option."""

    experiment: AllFields
    json: bool = False
    """Print the plan as JSON."""


def run(words: Sequence[str]) -> None:
    """Print how a run would be laid out."""
    experiment, rest = experiment_first(words, "plan")
    rest, is_auto = without_auto_actors(rest)
    options = parse(PlanOptions, rest, PlanOptions(experiment=experiment), f"metagrad plan {experiment.name}")
    if not is_auto:
        plan(options.experiment, options.json)
        return
    chosen = with_chosen_actors(options.experiment)
    if not options.json:  # where the numbers alone stand
        print_lines([f"chosen: {chosen.reason}"])
    plan(chosen.experiment, options.json)
