"""Keep results, and tabulate promises and ratios for docs/performance.md and the README of the results.

`python -m benchmarks NAME --record` keeps a result as `benchmarks/results/NAME.json`, adds its ratios to
`history.jsonl` there and renders both pages again. The text around the marks is written by hand and stays.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.alternative import ROOT
from benchmarks.harness import write_json
from metagrad.experiments.reporting.report import markdown_table

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
WORSE = 0.10  # of a ratio: what the history marks

_MARKED = re.compile(r"(<!-- begin (?P<name>[a-z_0-9 ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Table(NamedTuple):
    """A table that prints itself in Markdown."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        rows = ([number(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in self.rows)
        return markdown_table(self.head, rows)


def number(value: float) -> str:
    """Format three digits, thousands with commas.

    >>> number(0.04567), number(9.876), number(15559.3)
    ('.0457', '9.88', '15,600')
    """
    if abs(value) >= 1000:
        digits = len(str(int(abs(value))))
        return f"{round(value, 3 - digits):,.0f}"
    text = f"{value:.3g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def keep(result: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write a benchmark's newest result and add its ratios to the history.

    Raises:
        ValueError: a quick result, or one of ours alone, which is no measurement.
    """
    if result["is_quick"] or result["is_alone"]:
        raise ValueError("a quick result, or one without the alternatives, is not recorded")
    write_json(folder / f"{result['benchmark']}.json", result)
    machine = result["machine"]
    row = {
        "benchmark": result["benchmark"],
        "utc": machine["utc"],
        "commit": machine["commit"],
        "hardware": hardware(machine),
        "ratios": result.get("ratios", {}),
    }
    with (folder / "history.jsonl").open("a") as history:
        history.write(json.dumps(row, ensure_ascii=False) + "\n")


def hardware(machine: Mapping[str, Any]) -> str:
    """Name cores, processor and GPUs."""
    return ", ".join([f"{machine['cores']} cores of {machine['cpu']}", *machine["gpus"]])


def history_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Tabulate each ratio now and before on the same hardware; more than a tenth worse is marked."""
    lines = []
    for benchmark, newest in {row["benchmark"]: row for row in rows}.items():
        for label, value in newest["ratios"].items():
            before = [
                row["ratios"][label]
                for row in rows
                if row is not newest
                and (row["benchmark"], row["hardware"]) == (benchmark, newest["hardware"])
                and label in row["ratios"]
            ]
            cells: tuple[object, str] = ("", "first here")
            if before:
                change = value / before[-1] - 1.0
                cells = before[-1], f"{change:+.0%}" if change >= -WORSE else f"**{change:+.0%}: worse**"
            lines.append((benchmark, label, value, *cells, f"{newest['utc'][:10]} {newest['commit'][:7]}"))
    return Table(("benchmark", "ratio, more is better", "now", "before", "change", "measured"), lines)


def targets_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate what was promised of each benchmark, and what was measured."""
    rows = []
    for name, result in results.items():
        for target in result.get("targets", ()):
            rule, limit = ("at most", target["at_most"]) if "at_most" in target else ("at least", target["at_least"])
            verdict = "kept" if target["met"] else "**missed**"
            rows.append((name, target["name"], f"{rule} {number(limit)}", float(target["value"]), verdict))
    return Table(("benchmark", "promise", "limit", "measured", ""), rows)


def made_by(result: Mapping[str, Any]) -> str:
    """Return command, machine and versions in one line."""
    machine = result["machine"]
    packages = machine["versions"] | result.get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version != "absent")
    return (
        f"`python -m benchmarks {result['benchmark']}`, {machine['utc'][:10]}, commit {machine['commit'][:7]}, "
        f"{hardware(machine)}, load {machine['load_average_1min']:.1f} before; Python {machine['python']}, {versions}."
    )


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Read the newest result of every benchmark that has one."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def read_history(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Read all rows, oldest first."""
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fill(page: str, blocks: Mapping[str, str]) -> str:
    r"""Return the page with every marked part replaced.

    Raises:
        ValueError: a mark that no block is for, or a block without a mark.

    >>> fill("a <!-- begin x -->\nold\n<!-- end --> b", {"x": "new"})
    'a <!-- begin x -->\nnew\n<!-- end --> b'
    """
    marks = {match["name"] for match in _MARKED.finditer(page)}
    if marks != set(blocks):
        raise ValueError(f"the page has the marks {sorted(marks)}, and there are blocks for {sorted(blocks)}")
    return _MARKED.sub(lambda match: f"{match[1]}{blocks[match['name']]}\n{match[3]}", page)
