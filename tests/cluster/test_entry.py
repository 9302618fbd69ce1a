import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
sys.argv[1:] = ["--version"]
from metagrad.cluster.entry import main
assert "torch" not in sys.modules
code = main()
print(os.environ["OMP_WAIT_POLICY"], code)
"""


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_the_wait_policy_is_settled_before_torch_and_never_overruled(given: dict[str, str], policy: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"{policy} 0"
