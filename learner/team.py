"""Keeps the learners of a run together: each trains on its share, and all of them keep the same books.

One learner is a team of its own, to which nothing is sent. Of several, each takes some of the rollouts of every batch
from actors of its own; sums over the batch are `metagrad.shares`. Here is what the training loop needs beside them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metagrad.errors import RunLost
from metagrad.frame_stacks import unpacked
from metagrad.learner.actors import Account
from metagrad.learner.batch import joined, trajectory_of, tree_of
from metagrad.learner.schedule import Received
from metagrad.shares import WHOLE, Shares, group_shares, losing_others
from metagrad.trees import map_tensors, tensors
from metagrad.types import OF_COLUMNS, PackedTrajectory, Trajectory

T = TypeVar("T")


class Stop(Protocol):
    """Says whether the run should end."""

    signal_name: str | None


class Exchanged(NamedTuple):
    """Holds the facts of an update, of all learners together."""

    received: list[Received]
    lag: tuple[int, ...]


class Team(Protocol):
    """Stands for the learners of a run, seen from one of them."""

    rank: int
    size: int
    shares: Shares

    def agreeing(self, stop: Stop) -> Stop:
        """Return a stop that all learners see after the same update."""
        ...

    def exchange(self, received: list[Received], lag: tuple[int, ...]) -> Exchanged:
        """Return the facts of this update of all learners, in their order, and agree on the stop."""
        ...

    def account(self, own: Account) -> Account:
        """Return the account of all."""
        ...

    def checkpoint(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the checkpoint of all, the same as one learner's; of another than the first it may be its own part.

        Raises:
            LearnersDiffer: parameters, moments or meta-parameters are not the same bits on all.
        """
        ...


class LearnersDiffer(RunLost):
    """Says that learners which should compute the same do not."""


class Alone:
    """Stands for the one learner of a run."""

    rank, size = 0, 1
    shares: Shares = WHOLE

    def agreeing(self, stop: Stop) -> Stop:
        """Return the stop."""
        return stop

    def exchange(self, received: list[Received], lag: tuple[int, ...]) -> Exchanged:
        """Return the facts."""
        return Exchanged(received, lag)

    def account(self, own: Account) -> Account:
        """Return the account."""
        return own

    def checkpoint(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the checkpoint."""
        return own


ALONE = Alone()


class _Agreed:
    signal_name: str | None = None


class Learners:
    """Stands for the learners of a run, one of which this process is, in the default group of torch.distributed."""

    def __init__(self) -> None:
        shares = group_shares()
        self.shares: Shares = shares
        self.rank = shares.rank
        self.size = shares.size
        self._own: Stop = _Agreed()
        self._agreed = _Agreed()

    def agreeing(self, stop: Stop) -> Stop:
        """Return a stop that follows this learner's, or another one's, at the end of an update."""
        self._own = stop
        return self._agreed

    def exchange(self, received: list[Received], lag: tuple[int, ...]) -> Exchanged:
        """Return the facts of all learners, batch by batch as one learner has them."""
        own = [each._replace(frames=each.frames.cpu()) for each in received]
        everybody = self._gathered((own, lag, self._own.signal_name))
        self._agreed.signal_name = next((name for *_, name in everybody if name is not None), None)
        batches = zip(*(batches for batches, *_ in everybody), strict=True)
        lags = tuple(each for _, lag, _ in everybody for each in lag)
        return Exchanged([_together(shares) for shares in batches], lags)

    def account(self, own: Account) -> Account:
        """Return the account of all."""
        total, trees = Account(), self._gathered(own.to_tree())
        for name in ("sampled", "consumed", "in_flight", "actors_restarted"):
            setattr(total, name, sum(tree[name] for tree in trees))
        for tree in trees:
            total.dropped.update(tree["dropped"])
        return total

    def checkpoint(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return, on the first learner, the checkpoint that one learner would write; elsewhere this learner's part."""
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        part = {name: own[name] for name in ("actors", "window")} | {"carry": own["learner"]["carry"]}
        content = (map_tensors(lambda x: x.detach().cpu(), part), digest(own["learner"]))
        with losing_others():
            dist.gather_object(content, found)
        if found is None:
            return own
        for rank, (_, other) in enumerate(found):
            if other != found[0][1]:
                update = own["learner"]["update"]
                raise LearnersDiffer(
                    f"learners 0 and {rank} do not hold the same parameters after update {update}: one of them has "
                    "computed something else; continue from the last checkpoint with --resume, without that node"
                )
        parts = [part for part, _ in found]
        windows = zip(*(part["window"] for part in parts), strict=True)
        return own | {
            "actors": [state for part in parts for state in part["actors"]],
            "window": [_joined_entry(entries) for entries in windows],
            "learner": own["learner"] | {"carry": joined_fields([part["carry"] for part in parts])},
            "learners": self.size,
        }

    def _gathered(self, own: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with losing_others():
            dist.all_gather_object(found, own)
        return found


def _together(shares: Sequence[Received]) -> Received:
    episodes = tuple(each for share in shares for each in share.episodes)
    return shares[0]._replace(episodes=episodes, frames=torch.stack([share.frames for share in shares]).sum())


def digest(learner: dict[str, Any]) -> str:
    """Return a digest of all that learners must hold to the same bit, of a state's tree: all of it but the carry."""
    total = hashlib.sha256()
    for x in tensors({name: entry for name, entry in learner.items() if name != "carry"}):
        total.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def share_of(count: int, rank: int, size: int) -> range:
    """Return which of so many things belong to a learner, in their order; the first learners have one more.

    >>> [list(share_of(5, rank, 2)) for rank in range(2)]
    [[0, 1, 2], [3, 4]]
    """
    least, more = divmod(count, size)
    first = rank * least + min(rank, more)
    return range(first, first + least + (rank < more))


class LearnersShare(NamedTuple):
    """Says what one of several learners has of a run."""

    actors: range
    rollouts: range  # of each batch
    columns: range  # the environments of these


def own_part(checkpoint: dict[str, Any], share: LearnersShare) -> dict[str, Any]:
    """Return what a learner continues from: its actors and its columns; only the first one has the account."""
    learner = checkpoint["learner"]
    account = checkpoint["account"] if share.actors.start == 0 else Account().to_tree()
    window = [
        {
            "trajectory": _columns(entry["trajectory"], share.columns),
            "versions": [entry["versions"][i] for i in share.rollouts],
        }
        for entry in checkpoint["window"]
    ]
    carry = learner.get("carry")
    return checkpoint | {
        "actors": [checkpoint["actors"][i] for i in share.actors],
        "account": account,
        "window": window,
        "learner": learner | ({} if carry is None else {"carry": _columns(carry, share.columns)}),
    }


def _columns(fields: dict[str, Any], columns: range) -> dict[str, Any]:
    """Cut columns out of a trajectory's fields, with the frames that they show."""
    own = slice(columns.start, columns.stop)
    cut = {name: x[:, own] if isinstance(x, Tensor) and x.dim() > 1 else x for name, x in fields.items()}
    cut |= {name: fields[name][own] for name in OF_COLUMNS if name in fields}
    if "frames" in fields:
        used, index = torch.unique(cut["frame_index"], return_inverse=True)
        cut |= {"frames": fields["frames"][used], "frame_index": index.to(fields["frame_index"].dtype)}
    return cut


def _joined_entry(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    versions = [version for entry in entries for version in entry["versions"]]
    return {"trajectory": joined_fields([entry["trajectory"] for entry in entries]), "versions": versions}


def joined_fields(shares: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the fields of a trajectory whose columns learners share; None where none holds one."""
    if shares[0] is None:
        return None
    found = [trajectory_of(share) for share in shares if share is not None]
    return tree_of(joined(list(_alike(found)), torch.device("cpu")))


def _alike(
    trajectories: Sequence[Trajectory | PackedTrajectory],
) -> Iterator[Trajectory | PackedTrajectory]:
    """Yield trajectories that are all packed or all whole."""
    if len({type(each) for each in trajectories}) == 1:
        yield from trajectories
        return
    for each in trajectories:
        yield unpacked(each)
