"""Whatever needs no Ray runs where there is none."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The run on Ray shows that the block holds.
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from metagrad.cli.main import main
words = sys.argv[1:]
assert main(["list"]) == 0
assert main(["config", "atari"]) == 0
try:
    main([*words, "--topology", "ray", "--run-dir", "on-ray"])
except ModuleNotFoundError as error:
    print("blocked:", error)
"""


def test_colocated_runs_need_no_ray(metagrad: Callable[..., Any], tiny_words: tuple[str, ...], tmp_path: Path) -> None:
    process = metagrad(*tiny_words, "--topology", "colocated", "--updates", "3", prelude=WITHOUT_RAY)
    assert process.wait() == 0, process.output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 3
    assert re.search(r"^blocked: .*\bray\b", process.output, re.MULTILINE), process.output
    assert "Snake" in process.output, "of list"
    assert '"game": ' in process.output, "of config"
