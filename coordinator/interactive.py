"""Transactions that their client ends: participants are enlisted one by one, then it asks for the
end (PROTOCOL, section 8).

Rules:
- A branch is in the log before anybody is told its number: only then may its participant work.
- `Close` plays the part of `Begin`: prepares leave when it is applied, and nobody is enlisted any
  more. It, a rollback and the deadline race each other, and the first in the log wins.
- All of it may be repeated: the same participant is enlisted once, and what has ended is told as it
  ended, whoever asks for what.
- What is said without the log's word (unknown, too late) is said after a barrier.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from coordinator.capacity import Capacity
from coordinator.commands import Close, Enlist, encode
from coordinator.errors import NotAllowed, NotInteractive, expired, unknown
from coordinator.facts import Branch, Mode, Transaction, participant_of
from coordinator.gateway import Gateway
from coordinator.live import Live
from coordinator.log import NotLeader, ReplicatedLog, proposed
from coordinator.machine import Applied, Machine
from coordinator.moves import Refusal
from coordinator.plan import Planned, Wait
from coordinator.settings import Limits
from coordinator.steps import Steps
from coordinator.talks import Talks

ROLLED_BACK = "rolled back by its client"


class Interactive:
    """Of the driver, whose parts it uses. `live_of`: the transaction in the leader's hands."""

    def __init__(
        self,
        log: ReplicatedLog,
        machine: Machine,
        gateway: Gateway,
        talks: Talks,
        capacity: Capacity,
        steps: Steps,
        limits: Limits,
        *,
        now_ms: Callable[[], int],
        live_of: Callable[[Transaction], Live],
    ) -> None:
        self._log = log
        self._machine = machine
        self._gateway = gateway
        self._talks = talks
        self._capacity = capacity
        self._steps = steps
        self._limits = limits
        self._now_ms = now_ms
        self._live_of = live_of
        self._coming: dict[str, list[tuple[str, int]]] = {}
        """Name and payload's size of those whose `Enlist` is under way: they are in no record yet,
        and many may be asked for at once."""

    async def enlist(
        self, transaction_id: str, place: Planned, payload: bytes
    ) -> tuple[Transaction, int]:
        """The transaction and the branch's position in it; the same for the same participant, asked
        again.

        Raises UnknownTransaction, Expired, NotInteractive, NotAllowed (its end has begun, or its
        name is another's), AtCapacity or a LogError.
        """
        epoch = self._leading()
        standing = await self._standing(transaction_id)
        known = [branch for branch in standing.branches if branch.name == place.name]
        if not (standing.closed or known):
            self._require_room(standing, place, payload)
        repeatable = self._gateway.repeatable([participant_of(place.url, place.prepare_url)])
        branch = Branch("", *place, *repeatable)
        command = Enlist(epoch, self._now_ms(), transaction_id, branch, payload)
        coming = place.name, len(payload)
        self._coming.setdefault(transaction_id, []).append(coming)
        told = functools.partial(self._enlisted, transaction_id, coming)
        match await proposed(self._log, encode(command), epoch, told):
            case Applied(transaction=transaction):
                names = [each.name for each in transaction.branches]
                return transaction, names.index(place.name)
            case Refusal.CLOSED:
                raise NotAllowed(
                    f"the end of transaction {transaction_id} has begun: nobody can be enlisted",
                    id=transaction_id,
                )
            case Refusal.CONFLICT:
                raise NotAllowed(
                    f"{place.name!r} is enlisted in transaction {transaction_id} already, with"
                    " other URLs or another payload: give each participant a name",
                    id=transaction_id,
                )
            case Refusal.UNKNOWN:
                raise unknown(transaction_id)
            case _:
                raise NotLeader("leadership changed before it was enlisted")

    async def commit(self, transaction_id: str) -> Transaction:
        """Ask for the end: prepares leave. Gives it as it stands; its outcome comes later, and is
        that of whatever came first. Raises UnknownTransaction, Expired, NotInteractive or a
        LogError.
        """
        epoch = self._leading()
        standing = await self._standing(transaction_id)
        if standing.closed:
            return standing
        self._live_of(standing)
        command = Close(epoch, self._now_ms(), transaction_id)
        match await proposed(self._log, encode(command), epoch, self._closed):
            case Applied(transaction=transaction):
                return transaction
            case Refusal.UNKNOWN:
                raise unknown(transaction_id)
            case _:
                raise NotLeader("leadership changed before its end was asked for")

    async def rollback(self, transaction_id: str) -> Transaction:
        """Like `commit`, but it is to abort, if nothing is decided yet. Gives it with its outcome:
        what was only proposed may be lost, and the transaction commit.
        """
        self._leading()
        standing = await self._standing(transaction_id)
        if standing.outcome is not None:
            return standing
        live, decided = self._live_of(standing), asyncio.get_running_loop().create_future()
        live.wait(Wait.DECISION, decided)
        self._talks.roll_back(live, ROLLED_BACK)
        outcome: Transaction = await decided
        return outcome

    async def _standing(self, transaction_id: str) -> Transaction:
        """As it is: of one that is open the log will say whether it still is."""
        transaction = self._machine.get(transaction_id)
        if transaction is None or transaction.closed:
            await self._log.barrier()
            transaction = self._machine.get(transaction_id)
        if transaction is None:
            is_expired = self._machine.is_expired(transaction_id)
            raise (expired if is_expired else unknown)(transaction_id)
        if transaction.mode is not Mode.INTERACTIVE and not transaction.is_refusal:
            raise NotInteractive(
                f"transaction {transaction_id} is a one-shot transaction: the coordinator itself"
                " ends it; GET it for its outcome",
                id=transaction_id,
            )
        return transaction

    def _require_room(self, standing: Transaction, place: Planned, payload: bytes) -> None:
        limits = self._limits
        others = dict(self._coming.get(standing.id, ()))
        for name in (place.name, *[branch.name for branch in standing.branches]):
            others.pop(name, None)  # asked for twice, or on record
        count = len(standing.branches) + len(others)
        if count >= limits.branches:
            raise NotAllowed(
                f"transaction {standing.id} has {count} branches: at most"
                f" {limits.branches} are taken",
                id=standing.id,
            )
        size = len(standing.metadata) + sum(map(len, standing.payloads)) + len(payload)
        size += sum(others.values())
        if size > limits.body_bytes:
            raise NotAllowed(
                f"the payloads of transaction {standing.id} would have {size} bytes: at most"
                f" {limits.body_bytes} are taken",
                id=standing.id,
            )
        participants = [participant_of(place.url, place.prepare_url)]
        self._capacity.check(participants, 0, self._machine.backlog(), self._machine.payloads())

    def _leading(self) -> int:
        epoch = self._log.epoch
        if epoch is None:
            raise NotLeader("this node does not lead")
        return epoch

    # Told by the log, whether or not the one who asked is still there.

    def _enlisted(self, transaction_id: str, coming: tuple[str, int], result: object) -> None:
        self._coming[transaction_id].remove(coming)
        if not self._coming[transaction_id]:
            del self._coming[transaction_id]
        if isinstance(result, Applied) and result.changed:
            self._steps.enlisted(transaction_id, coming[0])
            self._talks.record_changed(result.transaction)

    def _closed(self, result: object) -> None:
        if isinstance(result, Applied) and result.changed:
            self._steps.ending(result.transaction.id)
            self._talks.record_changed(result.transaction)
