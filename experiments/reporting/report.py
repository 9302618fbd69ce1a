"""Writes a study's page: a table "paper | ours", figures, where ours differs, and what made it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metagrad.cluster.run.folder import read_json
from metagrad.experiments.reporting.figures import Figure, line_panels
from metagrad.learner.storage import write_whole

HEAD = ("quantity", "paper", "ours", "seeds", "spread")


class Row(NamedTuple):
    """Represents one line of a report's table, and what it adds to the differences from the paper."""

    quantity: str
    paper: str
    ours: str
    seeds: str | int
    spread: str  # over what: standard deviation, interval
    differences: Sequence[str] = ()  # plain sentences


def differences_of(rows: Iterable[Row]) -> list[str]:
    """Return the sentences of all rows."""
    return [sentence for row in rows for sentence in row.differences]


def write_report(
    folder: Path,
    title: str,
    introduction: str,
    rows: Sequence[Row],
    figures: Sequence[Figure],
    differences: Sequence[str] | None = None,
) -> None:
    """Draw the figures and write report.md: table, figures, where ours differs, what made it.

    Args:
        folder: The study's; without a results.json in it the page says nothing of command and provenance.
        title: The heading.
        introduction: Paragraphs in Markdown.
        rows: The table.
        figures: What is drawn into the folder.
        differences: One plain sentence each, instead of those that the rows have; none: the page says so.

    Raises:
        ValueError: a figure has nothing to draw.
    """
    for figure in figures:
        if not figure.panels:
            raise ValueError(f"{folder / figure.name}: a figure of the report without panels")
    for figure in figures:
        line_panels(folder / figure.name, figure.panels, figure.columns)
    blocks = [f"# {title}", introduction.strip()]
    results = folder / "results.json"
    if results.exists():
        blocks += _made_by(read_json(results))
    blocks += ["## Paper and ours", markdown_table(HEAD, [[str(cell) for cell in row[: len(HEAD)]] for row in rows])]
    if figures:
        blocks += ["## Figures", *(f"![{each.caption}]({each.name})\n\n*{each.caption}*" for each in figures)]
    listed = "\n".join(f"- {sentence}" for sentence in (differences_of(rows) if differences is None else differences))
    blocks += ["## Where ours differs", listed or "Nowhere in the table."]
    write_whole(folder / "report.md", ("\n\n".join(blocks) + "\n").encode())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of Markdown; bars inside the cells are escaped."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _made_by(results: dict[str, Any]) -> list[str]:
    """Tell command and provenance; parts may be of different times, so each line names all that there were."""
    origins = [part["provenance"] for part in results["parts"].values()]
    seconds = sum(origin["wall_seconds"] for origin in origins)

    def all_of(key: str) -> str:
        return " and ".join(sorted({str(origin[key] or "unknown") for origin in origins}))

    lines = [
        f"- metagrad {all_of('metagrad')}, commit {all_of('commit')}",
        f"- torch {all_of('torch')}, Python {all_of('python')}",
        f"- {all_of('hardware')}",
        f"- {len(origins)} parts, {seconds / 3600:.2f} CPU hours, on one thread each",
    ]
    return ["## Made by", f"```\n{results['command']}\n```", "\n".join(lines)]
