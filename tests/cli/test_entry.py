import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
sys.argv[1:] = ["--version"]
from metagrad.cli import entry
assert "torch" not in sys.modules
entry.default_threads = lambda: 3
code = entry.main()
import torch
print(os.environ["OMP_WAIT_POLICY"], torch.get_num_threads(), code)
"""


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_are_settled_before_torch_and_their_wait_policy_never_overruled(
    given: dict[str, str], policy: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"{policy} 3 0"


FIRST_AND_LAST = """
import atexit, os, signal, sys

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

class AtTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            terminate()

sys.meta_path.insert(0, AtTorch())
atexit.register(terminate)
from metagrad.cli.entry import main
sys.exit(main())
"""


def test_a_run_listens_from_its_first_moment_to_its_last(tmp_path: Path) -> None:
    """A signal while torch is loaded, and another one while the process ends."""
    words = ("train", "snake-6x6", "--topology", "colocated", "--run-dir", "run")
    command = [sys.executable, "-c", FIRST_AND_LAST, *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "stopped by SIGTERM at update 0; continue with --resume\n0 updates, 0 real frames" in result.stdout
    assert (tmp_path / "run" / "config.json").exists()


def test_help_has_no_traceback_for_a_reader_who_leaves() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = PROGRAM.replace("--version", "--help").replace("print(", "0 and print(")
    with os.fdopen(writer, "w") as unread:
        result = subprocess.run([sys.executable, "-c", program], stdout=unread, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")
