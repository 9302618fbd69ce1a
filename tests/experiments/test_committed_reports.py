"""The reports under docs/results are what today's code writes from the results that lie beside them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metagrad.experiments import STUDIES

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/report.md"))


def parts_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a study's folder in the order in which the study has them."""
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (folder / "parts").glob("*.json")}
    study = next(iter(records.values()))["study"]
    order = list(STUDIES[study].parts(10, False))
    for name in sorted(records, key=order.index):
        yield name, records[name]


def results_of(folder: Path) -> dict[str, Any]:
    """Return results.json; where only parts are kept, it is made of them and of the command that the report names."""
    path = folder / "results.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    parts = dict(parts_of(folder))
    command = re.search(r"^metagrad reproduce .*$", (folder / "report.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert command is not None
    study = next(iter(parts.values()))["study"]
    return {"study": study, "command": command[0], "is_quick": False, "parts": parts}


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_committed_report_is_what_its_results_say(folder: Path, tmp_path: Path) -> None:
    results = results_of(folder)
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    parts = {name: (part["settings"], part["result"]) for name, part in results["parts"].items()}
    STUDIES[results["study"]].report(tmp_path, parts, results["is_quick"])
    committed = {path.name for path in folder.iterdir()} - {"parts", "results.json"}
    assert {path.name for path in tmp_path.iterdir()} - {"results.json"} == committed
    for name in committed:
        if not name.endswith(".png"):
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
