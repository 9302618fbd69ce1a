"""Take signals that ask a run to end as a wish, which the training loop honours between two updates."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any

ASKING = (
    signal.SIGINT,  # Ctrl-C
    signal.SIGTERM,  # a scheduler takes the machine back
    signal.SIGHUP,  # the terminal was closed
    signal.SIGQUIT,  # Ctrl-\
    signal.SIGUSR1,  # Slurm's and Grid Engine's warning
    signal.SIGUSR2,  # LSF's and Grid Engine's
    signal.SIGXCPU,  # the limit of CPU time
    signal.SIGPWR,  # power fails
)
"""What a run answers with a checkpoint; unanswered, each of them would end the process at once."""


class StopRequest:
    """Takes the first signal of `ASKING` within its context for a wish to stop; a second SIGINT interrupts at once.

    A signal that the process was started to ignore stays ignored, SIGINT and SIGTERM apart: under nohup, for example, a
    closed terminal is no reason to end. Inside another StopRequest, what that one has heard already counts.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in ASKING:
            before = signal.getsignal(number)
            if before is signal.SIG_IGN and number not in (signal.SIGINT, signal.SIGTERM):
                continue
            self._previous[number] = signal.signal(number, self._handle)
            outer = getattr(before, "__self__", None)
            if isinstance(outer, StopRequest):
                self.signal_name = self.signal_name or outer.signal_name
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


class StoppedBySignal(Exception):
    """A command has ended early because a signal asked for it."""

    def __init__(self, signal_name: str):
        super().__init__(signal_name)
        self.exit_code = 128 + signal.Signals[signal_name]


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Raise `StoppedBySignal` at once when a signal of `ASKING` comes, in work that holds nothing to keep."""

    def raise_stop(number: int, _frame: FrameType | None) -> None:
        raise StoppedBySignal(signal.Signals(number).name)

    before = {number: signal.getsignal(number) for number in ASKING}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, raise_stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number] or signal.SIG_DFL)


def ignore_signals() -> None:
    """Ignore whatever asks for an end from here on: the work is done, its exit code is known."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


def children_left_alone() -> AbstractContextManager[None]:
    """Begin processes that never see what asks this one to end, SIGTERM apart, with which it ends them.

    A terminal sends its SIGQUIT and its own end (SIGHUP) to all processes of a run, and so may a scheduler.
    """
    return _blocked(set(ASKING) - {signal.SIGTERM})


def without_sigterm() -> AbstractContextManager[None]:
    """Begin threads that are never given SIGTERM; where it comes meanwhile it arrives later."""
    return _blocked({signal.SIGTERM})


@contextmanager
def _blocked(numbers: set[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # and what has come meanwhile arrives


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, whatever replaces it in here, even below Python; what comes meanwhile arrives later.

    No process may be begun in here: it would be deaf to SIGTERM. Threads that were begun outside of `without_sigterm`
    can still be given the signal.
    """
    handler = signal.getsignal(signal.SIGTERM)
    with without_sigterm():
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
