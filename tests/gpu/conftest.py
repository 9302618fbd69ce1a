"""Shares the small runs of tests/second_device, where these tests are tried without a GPU."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "second_device")]  # on_cuda, device_runs
