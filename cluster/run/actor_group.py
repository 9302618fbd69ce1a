"""Rolls out in several processes of one computer, whose rollouts leave it as one.

Environments that are stepped in Python keep one core busy. A process for each core, each with its share of an actor's
environments and a policy of its own, keeps all busy; they write their rollouts into shared memory, and the process that
started them joins these. So a batch costs the learner as many messages as there are actors, not as there are processes.

They live and die together: where one is lost the others are ended, and all begin again as one actor would.
"""

import ctypes
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from metagrad.actors.rollout import ActorSetup, ActorState, AnyActor
from metagrad.cluster.config import extensions
from metagrad.cluster.run.memory import keep_freed_memory
from metagrad.cluster.run.shared_memory import Reader, Writer, Written
from metagrad.frame_stacks import side_by_side
from metagrad.types import Episodes, MetaGradients, Rollout, WeightSnapshot

_PR_SET_PDEATHSIG = 1  # Linux, prctl.h
_SECONDS_TO_END = 5.0
_SHARED_MODULES = ["__main__", "metagrad.cluster.run.actor_group"]


class MemberLost(RuntimeError):
    """Says that a process of a group has died."""


def setups_of(setup: ActorSetup) -> list[ActorSetup]:
    """Return the setups of the processes of an actor, with equal shares and random streams of their own."""
    share = setup.batch_size // setup.processes
    return [
        replace(setup, processes=1, batch_size=share, seed=(*setup.seed, i + 1)) if setup.processes > 1 else setup
        for i in range(setup.processes)
    ]


def joined_states(states: Sequence[ActorState]) -> ActorState:
    """Return what a checkpoint holds of an actor's processes."""
    return {f"process {i}/{name}": x for i, state in enumerate(states) for name, x in state.items()}


def on_host(state: ActorState) -> ActorState:
    """Return an actor's state for another process, which may see no GPU, or another one."""
    return {name: x.cpu() for name, x in state.items()}


class ActorGroup:
    """Has `setup.processes` processes step equal shares of an actor's environments, side by side in this order."""

    def __init__(self, setup: ActorSetup, make: Callable[[ActorSetup], AnyActor]):
        """Start the processes.

        They are copies of one that has imported what all need, so that it is imported once.

        Raises:
            MemberLost: one died.
            Exception: what `make` raised in one of them.
        """
        self.setup = setup
        self._weights = Writer()
        self._version: int | None = None  # of the weights that all have
        self._members: list[_Member] = []
        with self._ending_together():
            for i, own in enumerate(setups_of(setup)):
                self._members.append(_Member(f"process {i + 1} of actor {setup.index}", own, make))
            for member in self._members:
                member.answer()

    def rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        """Collect T steps of all environments under `snapshot`.

        Raises:
            MemberLost: a process has died.
            Exception: what was raised in one of them; all are ended.
        """
        with self._ending_together():
            return self._rollout(snapshot, lookahead_step)

    def _rollout(self, snapshot: WeightSnapshot, lookahead_step: int) -> Rollout:
        weights = None
        if snapshot.version != self._version:
            weights = self._weights.write([snapshot.theta, snapshot.eta])
            self._version = snapshot.version
        for member in self._members:
            member.ask("rollout", snapshot.version, weights, lookahead_step)
            if weights is not None and weights.size:
                member.send_memory(self._weights)
        rollouts = [member.rollout() for member in self._members]
        sent = [rollout.trajectory for rollout in rollouts]
        trajectory = side_by_side([x for x in sent if not isinstance(x, MetaGradients)])  # populations have one process
        episodes = [torch.cat(column) for column in zip(*(rollout.episodes for rollout in rollouts), strict=True)]
        return Rollout(trajectory, Episodes(*episodes), self.setup.index, lookahead_step > 0)

    def state(self) -> ActorState:
        """Return the states of all processes."""
        with self._ending_together():
            for member in self._members:
                member.ask("state")
            states = [member.answer() for member in self._members]
        return joined_states(states)

    def load_state(self, state: ActorState) -> None:
        """Continue from `state()`."""
        with self._ending_together():
            for i, member in enumerate(self._members):
                prefix = f"process {i}/"
                own = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
                member.ask("load_state", own)
            for member in self._members:
                member.answer()

    @contextmanager
    def _ending_together(self) -> Iterator[None]:
        """End all where one fails: the others have answers that nobody has taken."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes."""
        for member in self._members:
            member.close()
        self._weights.close()


class _Member:
    """Stands for one process of a group."""

    def __init__(self, name: str, setup: ActorSetup, make: Callable[[ActorSetup], AnyActor]):
        context = get_context("forkserver")
        context.set_forkserver_preload(_SHARED_MODULES)
        self._name = name
        self._reader = Reader()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name=name, daemon=True)
        self._process.start()
        theirs.close()  # so that this end notices when the process is gone
        self._send((extensions.known(), os.getpid()))
        self._send((setup, make))

    def ask(self, method: str, *arguments: Any) -> None:
        """Have a method of its actor called; `answer` returns what it returns."""
        self._send((method, arguments))

    def send_memory(self, writer: Writer) -> None:
        """Send the memory that the last message speaks of."""
        writer.send_memory(self._connection, self._pid())

    def answer(self) -> Any:
        """Wait for the answer to the oldest question.

        Raises:
            MemberLost: the process has died.
            Exception: what it raised.
        """
        try:
            is_well, answer = _receive(self._connection)
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if not is_well:
            raise answer
        return answer

    def rollout(self) -> Rollout:
        """Wait for a rollout, whose tensors the next one overwrites."""
        kind, names, version, written, facts = self.answer()
        try:
            fields = dict(zip(names, self._reader.read(written, self._connection), strict=True))
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return Rollout(kind(**fields, policy_version=version), *facts)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(_SECONDS_TO_END)

    def _send(self, message: Any) -> None:
        try:
            _send(self._connection, message)
        except OSError as error:
            raise self._lost() from error

    def _lost(self) -> MemberLost:
        self._process.join(_SECONDS_TO_END)
        return MemberLost(f"{self._name} ({self._pid()}) has died, exit code {self._process.exitcode}")

    def _pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid


class _Served:
    """Holds the actor of a process of a group, and answers for it."""

    def __init__(self, actor: AnyActor, connection: Connection, asker: int):
        self._actor = actor
        self._connection = connection
        self._asker = asker
        self._reader, self._writer = Reader(), Writer()
        self._snapshot: WeightSnapshot | None = None

    def answer(self, method: str, arguments: Sequence[Any]) -> None:
        """Call a method, and send what it returns or raises."""
        if method == "state":
            _send(self._connection, _result_of(lambda: on_host(self._actor.state()), arguments))
            return
        if method != "rollout":
            _send(self._connection, _result_of(getattr(self._actor, method), arguments))
            return
        is_well, result = _result_of(self._rollout, arguments)
        if not is_well:
            _send(self._connection, (is_well, result))
            return
        trajectory, *facts = result
        fields = {name: x.cpu() for name, x in trajectory._asdict().items() if isinstance(x, Tensor)}
        written = self._writer.write(list(fields.values()))
        answer = type(trajectory), tuple(fields), trajectory.policy_version, written, facts
        _send(self._connection, (True, answer))
        if written.size:
            self._writer.send_memory(self._connection, self._asker)

    def _rollout(self, version: int, weights: Written | None, lookahead_step: int) -> Rollout:
        if weights is not None:
            theta, eta = self._reader.read(weights, self._connection)
            self._snapshot = WeightSnapshot(version, theta.to(self._actor.setup.device), eta)
        assert self._snapshot is not None
        with torch.no_grad():
            return self._actor.rollout(self._snapshot, lookahead_step)


def _result_of(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[bool, Any]:
    """Return True and what it returns, or False and what it raises, with the traceback from here as a note."""
    try:
        return True, function(*arguments)
    except Exception as error:
        told = f"In process {os.getpid()}:\n{traceback.format_exc()}"
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # pickling an exception of somebody else's may raise anything
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(told)
        return False, error


def _send(connection: Connection, message: Any) -> None:
    """Send a message by plain pickle: in torch's own way each tensor would open a file."""
    connection.send_bytes(pickle.dumps(message))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def _serve(connection: Connection) -> None:
    """Answer the process that has started this one until it is gone."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    try:
        known, asker = _receive(connection)
        extensions.learn(known)
        setup, make = _receive(connection)
        keep_freed_memory()
        torch.set_num_threads(setup.threads)
        is_well, actor = _result_of(make, (setup,))
        _send(connection, (is_well, None if is_well else actor))
        served = _Served(actor, connection, asker)
        while is_well:
            served.answer(*_receive(connection))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, also while an environment hangs in it; Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
