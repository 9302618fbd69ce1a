"""Sums over a batch of which each of several processes holds a share: some of its columns.

A mean over the batch is a sum divided by a count. `Shares.count` is that of the whole batch, so a loss that divides its
own sum by it is this process's part of the mean: parts add up to the loss of the whole batch, and their gradients to
its gradient, whatever the sizes of the shares. What a loss needs of the whole batch before it is done, such as the mean
of all advantages, it gets from `Shares.sum`, whose derivative is summed over the processes as its value is.

    L = Σᵣ Lᵣ(θ, η, M),  M = Σₛ Mₛ(θ, η):   ∂Lᵣ/∂(θ, η) on each process adds up to ∂L/∂(θ, η)

where the derivative that reaches Mₛ is Σᵣ ∂Lᵣ/∂M: the sum is its own transpose, so second derivatives and forward mode
hold too. `Shares.total` adds the parts up where nothing of the batch follows any more: the inner gradient before clip
and optimizer, the product with the Hessian before the next step of the adjoint, and what goes with it to ∂η. From there
on every process computes the same numbers, to the bit.

`inner_update`, `meta_gradient`, `outer_gradient` and `bootstrap_target` do this by themselves, with the `shares` of
their problem; the losses of this library ask `present()`, which is that of the update that evaluates them. A loss of
your own divides by `present().count(…)`, or uses `metagrad.losses.masked_mean`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from metagrad.errors import reason, require


@runtime_checkable
class Shares(Protocol):
    """Adds up what the processes hold of a batch."""

    def sum(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return Σᵣ xᵣ; so is its derivative, of every order."""
        ...

    def total(self, *parts: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
        """Return the sum of each part over all processes; each differentiates its own part alone."""
        ...

    def count(self, valid: Bool[Tensor, "T B"], dtype: torch.dtype) -> Float[Tensor, ""]:
        """Return the number of valid steps of the whole batch."""
        ...

    def mean(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return this process's part of the mean over all elements of the batch."""
        ...

    def logsumexp(self, x: Float[Tensor, "N"], dim: int) -> Float[Tensor, ""]:
        """Return log Σ exp(x) over all elements of the batch."""
        ...


class Whole:
    """Stands for a batch that one process holds: every sum over it is there, and nothing is sent."""

    def sum(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return x."""
        return x

    def total(self, *parts: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
        """Return the parts, which are everything."""
        return parts

    def count(self, valid: Bool[Tensor, "T B"], dtype: torch.dtype) -> Float[Tensor, ""]:
        """Return the number of valid steps."""
        return valid.to(dtype).sum()

    def mean(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return the mean over all elements."""
        return x.mean()

    def logsumexp(self, x: Float[Tensor, "N"], dim: int) -> Float[Tensor, ""]:
        """Return log Σ exp(x)."""
        return torch.logsumexp(x, dim)


WHOLE = Whole()


class RankLost(RuntimeError):
    """Says that another process of the group is gone, or did not come to a collective in time."""


@contextmanager
def losing_others() -> Iterator[None]:
    """Turn the failure of a collective of `torch.distributed` into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(f"another learner is gone, or did not answer in time ({reason(error)})") from error


AllReduce = Callable[[Tensor], None]
"""Replaces a tensor by its sum over all processes, in place, to the same bits on each."""


class Sent(NamedTuple):
    """Says what collectives have cost since the last look."""

    seconds: float  # of this process's host: in them, and waiting for the others
    bytes: float  # that this process sent, by the count of a ring: 2 (N - 1)/N of each vector
    collectives: int


class Ranks:
    """Adds up shares over a group of processes, one a share.

    All processes of the group make the same calls in the same order; each of their sums is the same bits on all.
    """

    def __init__(self, rank: int, size: int, all_reduce: AllReduce):
        """Add up with `all_reduce`; `group_shares` has that of a process group."""
        self.rank = rank
        self.size = size
        self._all_reduce = all_reduce
        self._sent = Sent(0.0, 0.0, 0)
        self.is_asked = False  # True: a loss has divided by a count of the whole batch, or asked for a sum
        self._counted: tuple[Tensor, torch.dtype, Tensor] | None = None

    def sum(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return Σᵣ xᵣ; so is its derivative, of every order and in both modes.

        Raises:
            RankLost: another process is gone.
        """
        self.is_asked = True
        y: Tensor = _Sum.apply(x, self)
        return y

    def total(self, *parts: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
        """Return the sum of each part over all processes, by one collective; each differentiates its own part alone.

        Raises:
            RankLost: another process is gone.
        """
        flat = torch.cat([part.reshape(-1) for part in parts]) if len(parts) > 1 else parts[0]
        summed: Tensor = _Total.apply(flat, self)
        if len(parts) == 1:
            return (summed,)
        pieces = summed.split([part.numel() for part in parts])
        return tuple(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True))

    def count(self, valid: Bool[Tensor, "T B"], dtype: torch.dtype) -> Float[Tensor, ""]:
        """Return the number of valid steps of the whole batch; that of the mask asked for last is remembered.

        Raises:
            RankLost: another process is gone.
        """
        self.is_asked = True
        if self._counted is None or self._counted[0] is not valid or self._counted[1] is not dtype:
            self._counted = valid, dtype, self.added(valid.to(dtype).sum())
        return self._counted[2]

    def mean(self, x: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return this process's part of the mean over all elements of the batch.

        Raises:
            RankLost: another process is gone.
        """
        self.is_asked = True
        elements = torch.full((), float(x.numel()), dtype=x.dtype, device=x.device)
        return x.sum() / self.added(elements)

    def logsumexp(self, x: Float[Tensor, "N"], dim: int) -> Float[Tensor, ""]:
        """Return log Σ exp(x) over all elements of the batch.

        Raises:
            RankLost: another process is gone.
        """
        own = torch.logsumexp(x, dim)
        is_own = torch.arange(self.size, device=x.device) == self.rank
        return torch.logsumexp(self.sum(torch.where(is_own, own, 0.0)), 0)

    def added(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return Σᵣ xᵣ without any derivative.

        Raises:
            RankLost: another process is gone.
        """
        since = time.perf_counter()
        y = x.detach().clone(memory_format=torch.contiguous_format)
        with losing_others():
            self._all_reduce(y)
        share = 2.0 * (self.size - 1) / self.size
        sent = self._sent
        seconds = sent.seconds + time.perf_counter() - since
        self._sent = Sent(seconds, sent.bytes + share * y.numel() * y.element_size(), sent.collectives + 1)
        return y

    def take_sent(self) -> Sent:
        """Return what collectives have cost since the last call."""
        sent, self._sent = self._sent, Sent(0.0, 0.0, 0)
        return sent


def group_shares(group: dist.ProcessGroup | None = None) -> Ranks:
    """Return the shares of the processes of a group of `torch.distributed`; None: of the default group."""
    rule, remedy = "is not initialised in this process", "call torch.distributed.init_process_group first"
    require(dist.is_available() and dist.is_initialized(), "torch.distributed", None, rule, remedy)
    return Ranks(dist.get_rank(group), dist.get_world_size(group), lambda x: _all_reduce(x, group))


def _all_reduce(x: Tensor, group: dist.ProcessGroup | None) -> None:
    dist.all_reduce(x, group=group)


class _Sum(torch.autograd.Function):
    """Σᵣ xᵣ as a linear map of all processes' x, whose transpose is the same sum."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        return ranks.added(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.ranks = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.ranks), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _ranks: None) -> Tensor:
        y: Tensor = _Sum.apply(tangent, ctx.ranks)
        return y


class _Total(torch.autograd.Function):
    """Σᵣ xᵣ of which each process differentiates its own xᵣ: what comes back is the same on all, and stays theirs."""

    @staticmethod
    def forward(x: Tensor, ranks: Ranks) -> Tensor:
        return ranks.added(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


_present: ContextVar[Shares] = ContextVar("shares", default=WHOLE)


def present() -> Shares:
    """Return the shares of the update that evaluates a loss; outside of any, the whole batch is here."""
    return _present.get()


@contextmanager
def evaluating(shares: Shares) -> Iterator[None]:
    """Have losses within see these shares."""
    token = _present.set(shares)
    try:
        yield
    finally:
        _present.reset(token)
