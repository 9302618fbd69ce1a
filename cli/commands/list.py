"""List the experiments and the studies, one line each: `metagrad list`."""

from collections.abc import Sequence

from metagrad.cli.lookup import experiments, studies
from metagrad.cluster.config.extensions import made
from metagrad.errors import require


def run(words: Sequence[str]) -> None:
    """Print the names and descriptions of all experiments and studies."""
    require(not words, "list", " ".join(words), "takes no options", "run metagrad list alone")
    runs = {name: made(name, make).description for name, make in experiments().items()}
    reports = {name: study.description for name, study in studies().items()}
    width = max(map(len, [*runs, *reports]))
    for command, table in (("train EXPERIMENT", runs), ("reproduce STUDY", reports)):
        print(f"metagrad {command}")
        for name, description in table.items():
            print(f"  {name:<{width}}  {description}")
