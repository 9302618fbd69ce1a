"""Print on the driver's console the first lines that each process of a run prints, and where the rest is."""

import sys
from collections import Counter
from typing import Any

LINES_OF_A_PROCESS = 200
# Ray's paragraphs about what a line of ours says; they come whatever `log_to_driver` says, and have no option.
_OBITUARIES = ("A worker died or was killed", "Raylet is terminated.")
_RAYS_OWN = ("raylet", "autoscaler", "gcs_server")  # in the place of a process's number


class WorkerPrints:
    """Prints Ray's batches of lines, each of one process."""

    def __init__(self, logs: str):
        """Nothing was printed yet.

        Args:
            logs: folder of Ray's logs, on whichever node.
        """
        self._logs = logs
        self._printed: Counter[str] = Counter()

    def __call__(self, data: dict[str, Any], *_: Any, **__: Any) -> None:
        lines, process = [str(line) for line in data["lines"]], str(data["pid"])
        if process in _RAYS_OWN:
            who = "Ray"
            is_log = "localhost" in data  # what Ray writes into its logs; it pushes what matters beside them
            lines = [] if is_log or any(line.startswith(_OBITUARIES) for line in lines) else lines
        else:
            where = "" if data["ip"] == data["localhost"] else f" on {data['ip']}"
            who = f"{data.get('actor_name') or data.get('task_name') or 'worker'}, process {process}{where}"
            lines = self._first(lines, process, who)
        for line in lines:
            print(f"({who}) {line}", file=sys.stderr if data["is_err"] else sys.stdout, flush=True)

    def _first(self, lines: list[str], process: str, who: str) -> list[str]:
        before = self._printed[who]
        self._printed[who] += len(lines)
        shown = lines[: max(0, LINES_OF_A_PROCESS - before)]
        if before <= LINES_OF_A_PROCESS < self._printed[who]:
            place = f"{self._logs}/worker-*-{process}.out and .err there"
            shown.append(f"prints more than {LINES_OF_A_PROCESS} lines; while the run lasts, the rest is in {place}")
        return shown
