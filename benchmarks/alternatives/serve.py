"""Serves the other end of `benchmarks.alternative`: runs one of this process's cases for each line that asks for it.

Programs of this folder run in environments of their own, with other packages than metagrad's; this file needs none.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(cases: Mapping[str, Callable[[], Mapping[str, Any] | None]], versions: Mapping[str, str]) -> None:
    """Say what runs here, then answer each line NAME with the seconds of one run of that case and what it returned.

    One JSON object per line. `cpu_s` counts all threads of this process; a case that works in other processes counts
    them itself, in what it returns. Whatever libraries print goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"cases": list(cases), "versions": dict(versions)}), file=answers)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        returned = cases[line.strip()]()
        seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        print(json.dumps(seconds | dict(returned or {})), file=answers)
