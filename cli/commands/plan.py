"""Preview where a run's processes would go: `metagrad plan EXPERIMENT`."""

import dataclasses
from collections.abc import Sequence

from metagrad.cli.lookup import experiment_first
from metagrad.cli.options import AllFields, parse, without_auto
from metagrad.cli.shell import print_lines
from metagrad.cluster.plan.preview import plan, with_chosen


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """Preview a run's layout on the cluster at RAY_ADDRESS, or here. Every field of the experiment is an option."""

    experiment: AllFields
    json: bool = False
    """Print the plan as JSON."""


def run(words: Sequence[str]) -> None:
    """Print how a run would be laid out."""
    experiment, rest = experiment_first(words, "plan")
    rest, chosen_fields = without_auto(rest)
    options = parse(PlanOptions, rest, PlanOptions(experiment=experiment), f"metagrad plan {experiment.name}")
    chosen = with_chosen(options.experiment, chosen_fields)
    if not options.json:  # where the numbers alone stand
        print_lines([f"chosen: {reason}" for reason in chosen.reasons])
    plan(chosen.experiment, options.json)
