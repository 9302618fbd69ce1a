"""Begin the `metagrad` command: settle what must be settled before torch is loaded."""

import os
import sys
from collections.abc import Sequence

from metagrad.cli.console import ConsoleGone, lasting_console
from metagrad.cluster.run.stop import StopRequest, ignore_signals, without_sigterm
from metagrad.cores import default_threads

_PRINTS_ONLY = ("", "list", "config", "plan", "status", "logs")
_EXIT_CODE_OF_SIGPIPE = 141


def main() -> int:
    """Settle how many OpenMP threads there are and how they wait, then hand over to the command line.

    As many as the cores that this process may use, whatever number its container sees of its machine.

    Threads that wait for work sleep instead of spinning. On an idle machine that costs little (two learner threads on
    two cores: 43k instead of 46k frames/s of Snake, 34k with one thread); beside other busy processes spinning threads
    take the cores from those that have work (17k instead of 25k). A value that is set already stands.

    A run or a study listens for signals from its first moment, before torch is loaded, to its last: one that comes
    before it has begun stops it at its beginning, and one that comes when it has ended changes nothing.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:]
    command = _command(words)
    prints_only = command in _PRINTS_ONLY or bool({"--help", "-h", "--version", "--follow"} & set(words))
    if command in ("train", "reproduce") and not prints_only:
        StopRequest().__enter__()  # for the rest of the process
    try:
        with lasting_console(prints_only):
            with without_sigterm():  # threads of theirs must not be given it (cluster/on_ray/session.py)
                import torch

                from metagrad.cli.main import command_of, exit_code  # loads torch, and with it OpenMP

            torch.set_num_threads(default_threads())
            with exit_code() as code:
                run, own_words = command_of(words)
                code.value = run(own_words) or 0
            return code.value
    except ConsoleGone as gone:
        if gone.has_no_reader:  # `… | head`; of a job that was followed nobody knows how it ends
            return _EXIT_CODE_OF_SIGPIPE if "--follow" in words else 0
        print(f"metagrad: {gone}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while torch was being loaded
        print("metagrad: interrupted", file=sys.stderr)
        return 130
    finally:
        ignore_signals()


def _command(words: Sequence[str]) -> str:
    while list(words[:1]) == ["--import"]:
        words = words[2:]
    return words[0] if words else ""
