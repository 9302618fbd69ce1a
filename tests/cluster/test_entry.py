import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
sys.argv[1:] = ["--version"]
from metagrad.cluster import entry
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
