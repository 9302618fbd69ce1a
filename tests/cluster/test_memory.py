import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from metagrad.cluster.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # the heap grows to what is needed
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_that_is_allocated_again_is_not_faulted_in_again():
    def faults(mode: str) -> int:
        result = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(result.stdout)

    # 10 tensors of 64 MiB: 16,384 small pages or 32 huge ones each time, or none.
    assert faults("keep") < 50 < faults("default")
