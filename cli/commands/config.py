"""Print the resolved configuration as JSON: `metagrad config EXPERIMENT`."""

import json
from collections.abc import Sequence

from metagrad.cli.lookup import experiment_first
from metagrad.cli.options import parse
from metagrad.cluster.config.json_form import to_json


def run(words: Sequence[str]) -> None:
    """Print one experiment's resolved tree."""
    experiment, rest = experiment_first(words, "config")
    resolved = parse(type(experiment), rest, experiment, f"metagrad config {experiment.name}")
    print(json.dumps(to_json(resolved), indent=2))
