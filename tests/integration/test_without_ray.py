import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BLOCKED = "import sys\nsys.modules['ray'] = None"


@pytest.mark.parametrize("command", ["train", "config", "list"])
def test_colocated_runs_need_no_ray(
    metagrad: Callable[..., Any], tiny_words: tuple[str, ...], tmp_path: Path, command: str
) -> None:
    words = {
        "train": (*tiny_words, "--topology", "colocated", "--updates", "3"),
        "config": ("config", "atari"),
        "list": ("list",),
    }[command]
    process = metagrad(*words, prelude=BLOCKED)
    assert process.wait() == 0, process.output
    if command == "train":
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["updates"] == 3


def test_the_block_holds(metagrad: Callable[..., Any], tiny_words: tuple[str, ...]) -> None:
    process = metagrad(*tiny_words, "--topology", "ray", "--updates", "3", prelude=BLOCKED)
    assert process.wait() == 1
    assert "ModuleNotFoundError" in process.output
    assert "ray" in process.output.splitlines()[-1]
