"""Makes updates as one of several learners, each on its device: `python on_several.py RANK SIZE FOLDER BACKEND`.

With nccl learner i is on GPU i; with gloo all are on the CPU, which shows that the script itself is right.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

COLUMNS, UPDATES = 5, 3


def updated(rank: int, size: int, device: torch.device) -> Tensor:
    """Return θ and η after a few updates of the Nature network on this learner's columns; alone on all of them."""
    from metagrad.experiments import EXPERIMENTS
    from metagrad.learner.actor_critic import build_actor_critic
    from metagrad.learner.team import share_of
    from metagrad.networks import build_network
    from metagrad.shares import group_shares
    from metagrad.types import Trajectory, WeightSnapshot

    experiment: Any = EXPERIMENTS["atari"]()
    shape, actions = (4, 84, 84), 6
    network = build_network(experiment.network, shape, actions, experiment.has_outer_critic)
    algorithm = build_actor_critic(experiment.learner, network, shape, actions)
    if size > 1:
        algorithm = algorithm.sharing(group_shares())
    own = share_of(COLUMNS, rank, size)

    def sample(snapshot: WeightSnapshot, step: int) -> Trajectory:
        generator = torch.Generator().manual_seed(100 * snapshot.version + step)
        uniform = [torch.rand(4, COLUMNS, generator=generator) for _ in range(4)]
        whole = Trajectory(
            observation=torch.randint(256, (5, COLUMNS, *shape), generator=generator).to(torch.uint8),
            action=torch.randint(actions, (4, COLUMNS), generator=generator),
            reward=uniform[0],
            is_terminal=uniform[1] < 0.05,
            is_truncated=torch.zeros(4, COLUMNS, dtype=torch.bool),
            valid=uniform[2] < 0.8,
            behaviour_log_prob=-1.8 - 0.1 * uniform[3],
            policy_version=snapshot.version,
        )
        cut = [x[:, own.start : own.stop].to(device) if isinstance(x, Tensor) else x for x in whole]
        return Trajectory(*cut)

    state = algorithm.init(0, device)
    for _ in range(UPDATES):
        state, _ = algorithm.update(state, sample)
    return torch.cat([state.theta, state.eta]).cpu()


def main(rank: int, size: int, folder: Path, backend: str) -> None:
    """Leave θ and η in the folder."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    if size > 1:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    torch.save(updated(rank, size, device), folder / f"{rank}-of-{size}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
