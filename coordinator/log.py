"""The port to a replicated log: what the coordinator needs of consensus, and no more.

`cluster/raft/replica.py` implements `ReplicatedLog` over Raft; tests implement it in memory. The
log carries commands as bytes to a `StateMachine` on every node, in one order. Each leadership
starts with an epoch; a command proposed under one epoch does nothing in another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol


class LogError(Exception):
    """A proposal, a barrier or a transfer of leadership did not succeed.

    LogError
    ├── NotLeader       definite: it was never proposed
    ├── Overloaded      definite: it was never proposed
    ├── NotApplied      definite: it never will be applied (a newer epoch came first)
    ├── NotHandedOver   this node leads on
    └── FateUnknown     unknown: look at the applied state after a barrier
    """


class NotLeader(LogError):
    """This node does not lead, or the epoch given is not the one it leads."""


class Overloaded(LogError):
    """Too many proposals wait already."""


class NotApplied(LogError):
    """The command was overwritten or fenced: it has no effect and never will have."""


class NotHandedOver(LogError):
    """No other node has taken over, for what reason the text says."""


class FateUnknown(LogError):
    """Leadership ended, or the node stops, while the command was under way."""


Done = Callable[[object], None]
"""Called once, on the event loop, never before `propose` returns: the machine's result, or a
LogError.
"""


class ReplicatedLog(Protocol):
    """One node's door to the log. Everything happens on the event loop's thread."""

    on_leadership: Callable[[int | None], None]
    """Called with the epoch once its `Epoch` is applied here, and with None when leadership is
    lost.

    Before the None, every proposal and barrier under way has been given its LogError.
    """

    @property
    def epoch(self) -> int | None:
        """The epoch that this node leads (its `Epoch` applied here), or None."""

    @property
    def leader(self) -> str | None:
        """The leader's node id, if it was heard of within an election timeout; this node's own if
        it leads.
        """

    def takes(self, size: int) -> bool:
        """Whether a command of so many bytes would not be refused as Overloaded just now."""

    def propose(self, command: bytes, epoch: int, done: Done, *, patience_s: float = 0.0) -> None:
        """Ask for a command to enter the log. Refusals go to `done` as well, never raised.

        It may be held back for `patience_s`, to share the log entry of another proposal.
        """

    def barrier(self) -> asyncio.Future[None]:
        """Resolves when a read of the applied state is current; fails with a LogError."""

    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 2.0) -> str:
        """Have another node lead: `to`, or whichever lacks least. Who leads now, or led already;
        it may be a third.

        What is under way is finished first; what is proposed meanwhile waits, until `timeout_s` at
        most, and is refused if the other leads. Raises NotHandedOver; NotLeader if nobody is known
        to lead.
        """


async def proposed(
    log: ReplicatedLog, command: bytes, epoch: int, told: Done = lambda _result: None
) -> object:
    """Propose, and wait for the machine's result; raises LogError. `told` gets whichever it is,
    also when nobody waits any more."""
    future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def done(result: object) -> None:
        if not future.done():
            if isinstance(result, LogError):
                future.set_exception(result)
            else:
                future.set_result(result)
        told(result)

    log.propose(command, epoch, done)
    return await future


class StateMachine(Protocol):
    """What the log drives; deterministic: the same log, the same bytes on every node."""

    founding: str
    """Node and time of the first `Epoch` command applied, which tell this log from any other; empty
    before it."""

    @property
    def epoch(self) -> int:
        """The epoch of the last `Epoch` command applied; 0 before the first."""

    def apply(self, command: bytes) -> object:
        """Apply one command. A refusal is a returned value; raising stops the node for good."""

    def epoch_command(self, epoch: int, node: str, now_ms: int) -> bytes:
        """The command with which the leadership `epoch` of `node` begins."""

    def view(self) -> object:
        """An immutable view of the state, cheap to take (well below a millisecond per 100,000)."""

    def chunks(self, view: object) -> Iterator[bytes]:
        """The view as pieces, some 50 KB of usual transactions each; called in a thread, once.

        Same state, same bytes.
        """

    def restoring(self) -> Restoring:
        """Begin to build the state that `chunks` gave, beside the one that is in use."""


class Restoring(Protocol):
    """A state that is being built from a snapshot; the machine's own stays until `finish`."""

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk; may be called in a thread. Raises ValueError if it is none."""

    def finish(self) -> None:
        """Put the state in the place of the machine's own, at once; on the machine's thread.

        Raises ValueError, the machine's state unchanged, if something is missing.
        """

    def release(self) -> Iterator[None]:
        """Let go of the state that is not the machine's (before `finish` what was built, after it
        what was replaced), little by little; in a thread, for together it can take long.
        """
