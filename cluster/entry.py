"""Where the `metagrad` command begins: what must be settled before torch is loaded."""

import os

from metagrad.cores import default_threads


def main() -> int:
    """Settle how many OpenMP threads there are and how they wait, then hand over to the command line.

    As many as the cores that this process may use, whatever number its container sees of its machine.

    Threads that wait for work sleep instead of spinning. On an idle machine that costs little (two learner threads on
    two cores: 43k instead of 46k frames/s of Snake, 34k with one thread); beside other busy processes spinning threads
    take the cores from those that have work (17k instead of 25k). A value that is set already stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from metagrad.cluster.cli import main as command_line  # loads torch, and with it OpenMP

    torch.set_num_threads(default_threads())
    return command_line()
