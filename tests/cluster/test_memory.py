import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from metagrad.cluster.run.memory import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def faults_of_ten():
    for _ in range(10):  # the heap grows to what is needed
        torch.ones(2**24)
    before = faults()
    for _ in range(10):
        torch.ones(2**24)
    return faults() - before
default = faults_of_ten()
assert keep_freed_memory()
print(default, faults_of_ten())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_that_is_allocated_again_is_not_faulted_in_again():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    default, kept = map(int, result.stdout.split())
    # 10 tensors of 64 MiB: 16,384 small pages or 32 huge ones each time, or none.
    assert kept < 50 < default
