"""The transaction machine: what every node computes from the log, command by command. Pure.

Deterministic: `apply` reads the state and the command and nothing else, no clock, no setting, and
never raises on a command that it knows; a refusal is a returned value. The same log gives the same
bytes on every node (I9). What a command may do to a transaction is the table in `moves`; this file
does it.

Unfinished transactions are tuples, for they are touched several times; finished ones are bytes in
a table, unpacked when one is asked for.

Kept here: I2 an outcome never changes, I3 commit only on every vote, I6 what is forgotten and what
is never run twice.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgpack

from coordinator.commands import (
    Acknowledge,
    Begin,
    Close,
    Command,
    Decide,
    Enlist,
    Epoch,
    Forget,
    Refuse,
    Resolve,
    decode,
    encode,
    of_another_version,
)
from coordinator.facts import (
    State,
    Transaction,
    is_ended_by_hand,
    outstanding,
    place_of,
    state_of,
)
from coordinator.ids import time_of
from coordinator.indexes import Backlog, Payloads
from coordinator.moves import MOVES, Move, Refusal, phase_of
from coordinator.packed import (
    pack_finished,
    pack_unfinished,
    unpack_finished,
    unpack_unfinished,
)
from coordinator.records import (
    aborted_by_hand,
    acknowledged,
    branch_ended_by_hand,
    decided,
    enlisted,
    record_of,
    refused,
)
from coordinator.table import NEVER, Found, Sealed, Table

SNAPSHOT_VERSION = 3
CHUNK_TRANSACTIONS = 200
UNFINISHED_STATES = frozenset((State.ACTIVE, State.PREPARING, State.COMMITTING, State.ABORTING))
PAGE_SCAN = 4_000
"""Records, and branches of theirs, looked at for one page: about 7 ms, so that neither a filter
that matches little nor transactions with hundreds of branches stall the loop. A page of the largest
size of transactions with three branches each is not cut."""

MAX_SEQUENCE_DIGITS = 20

_new = tuple.__new__  # a third of the time, for the three results of every transaction


class Applied(NamedTuple):
    """The transaction as it stands after a command, and whether the command changed it."""

    transaction: Transaction
    changed: bool


class EpochInForce(NamedTuple):
    """The answer to Epoch."""

    epoch: int


class Forgot(NamedTuple):
    """The answer to Forget: the horizon in force, and how many transactions went."""

    horizon_ms: int
    forgotten: int


Result = Applied | EpochInForce | Forgot | Refusal


class Page(NamedTuple):
    """A page of a list; `next_after` is where the next one begins, None at the end."""

    transactions: tuple[Transaction, ...]
    next_after: str | None


class MachineView(NamedTuple):
    """What a snapshot is made of; `chunks` uses it up."""

    header: tuple[Any, ...]
    unfinished: list[Transaction]
    finished: dict[int, Sealed]


class Machine:
    """Implements `log.StateMachine`."""

    def __init__(self) -> None:
        self.epoch = 0
        self.leader = ""
        self.founding = ""
        self.horizon_ms = 0
        self._sequence = 0
        self._unfinished: dict[str, Transaction] = {}  # in the order of beginning
        self._finished = Table()
        self._backlog = Backlog()
        self._payloads = Payloads()

    # --- the log's side ---

    def epoch_command(self, epoch: int, node: str, now_ms: int) -> bytes:
        return encode(Epoch(epoch, now_ms, node))

    def apply(self, command: bytes) -> Result:
        """Apply one command from the log; raises UnknownCommand, upon which the node stops."""
        return self.step(decode(command))

    def step(self, command: Command) -> Result:
        """Apply one decoded command."""
        if isinstance(command, Epoch):
            self.founding = self.founding or f"{command.node}-{command.now_ms}"
            if command.epoch > self.epoch:
                self.epoch, self.leader = command.epoch, command.node
            return EpochInForce(self.epoch)
        if command.epoch != self.epoch:
            return Refusal.STALE_EPOCH
        if isinstance(command, Forget):
            return self._forget(command)
        standing = self.get(command.id)
        expired = standing is None and self._lies_before_horizon(command.id)
        move = MOVES[type(command)][phase_of(standing, expired=expired)]
        return move if isinstance(move, Refusal) else _MOVES[move](self, command, standing)

    def _lies_before_horizon(self, transaction_id: str) -> bool:
        time_ms = time_of(transaction_id)
        return time_ms is not None and time_ms < self.horizon_ms

    def _record(self, command: Begin, _standing: None) -> Result:
        return self._put(None, record_of(command, self._next_sequence()))

    def _record_refusal(self, command: Refuse, _standing: None) -> Result:
        return self._put(None, refused(command, self._next_sequence()))

    def _compare(self, command: Begin, standing: Transaction) -> Result:
        if command.fingerprint != standing.fingerprint:
            return Refusal.CONFLICT
        return Applied(standing, changed=False)

    def _unchanged(self, _command: Command, standing: Transaction) -> Result:
        return Applied(standing, changed=False)

    def _close(self, _command: Close, standing: Transaction) -> Result:
        return self._put(standing, standing._replace(closed=True))

    def _decide(self, command: Decide, standing: Transaction) -> Result:
        return self._put(standing, decided(command, standing))

    def _resolve_whole(self, command: Resolve, standing: Transaction) -> Result:
        if command.branch_id is not None:
            return Refusal.UNDECIDED
        return self._put(standing, aborted_by_hand(command, standing))

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _put(self, before: Transaction | None, after: Transaction) -> Applied:
        # I2, whoever wrote the move: an outcome once fixed never changes.
        assert before is None or before.outcome is None or after.outcome is before.outcome, after.id
        self._store(before, after)
        return _new(Applied, (after, True))

    def _store(self, before: Transaction | None, after: Transaction) -> None:
        self._backlog.changed(before, after)
        self._payloads.changed(before, after)
        if after.finished_ms is None:
            self._unfinished[after.id] = after
            return
        if before is not None:
            del self._unfinished[after.id]
        packed = after.branches.packed, pack_finished(after)
        self._finished.put(after.id, after.sequence, _forgettable_at(after), *packed)

    def _enlist(self, command: Enlist, standing: Transaction) -> Result:
        place = place_of(command.branch)
        for branch, payload in zip(standing.branches, standing.payloads, strict=True):
            if branch.name == command.branch.name:
                same = place_of(branch) == place and payload == command.payload
                return Applied(standing, changed=False) if same else Refusal.CONFLICT
        return self._put(standing, enlisted(command, standing))

    def _acknowledge(self, command: Acknowledge, standing: Transaction) -> Result:
        after = acknowledged(command, standing)
        return Applied(standing, False) if after is standing else self._put(standing, after)

    def _resolve_branch(self, command: Resolve, standing: Transaction) -> Result:
        if command.branch_id is None:
            return Applied(standing, changed=False)
        if is_ended_by_hand(standing, command.branch_id):
            return Applied(standing, changed=False)
        positions = [i for i, b in enumerate(standing.branches) if b.branch_id == command.branch_id]
        if not positions:
            return Refusal.NO_SUCH_BRANCH
        if not outstanding(standing) >> positions[0] & 1:
            return Refusal.BRANCH_FINISHED
        return self._put(standing, branch_ended_by_hand(command, standing))

    def _forget(self, command: Forget) -> Result:
        """I6. The horizon only grows; what was resolved by hand stays for ever."""
        self.horizon_ms = max(self.horizon_ms, command.horizon_ms)
        return Forgot(self.horizon_ms, self._finished.forget_before(self.horizon_ms))

    # --- reading ---

    def get(self, transaction_id: str) -> Transaction | None:
        transaction = self._unfinished.get(transaction_id)
        if transaction is None:
            found = self._finished.get(transaction_id)
            return None if found is None else _unpacked(found)
        return transaction

    def is_expired(self, transaction_id: str) -> bool:
        """Whether the id is not remembered and its time lies before the horizon."""
        return self._lies_before_horizon(transaction_id) and self.get(transaction_id) is None

    def unfinished(self) -> Iterator[Transaction]:
        """In the order in which they began."""
        yield from self._unfinished.values()

    @property
    def unfinished_count(self) -> int:
        return len(self._unfinished)

    @property
    def remembered_count(self) -> int:
        """Finished transactions and refusals that are still known."""
        return len(self._finished)

    def backlog(self) -> dict[str, int]:
        """Unfinished branches by participant."""
        return self._backlog.counts

    def payloads(self) -> Payloads:
        """What is held of them."""
        return self._payloads

    @property
    def remembered_bytes(self) -> int:
        """Of what is remembered of finished transactions, as it is packed."""
        return self._finished.bytes

    def horizon_that_forgets(self, count: int) -> int:
        """The horizon that would forget about the `count` oldest finished transactions; 0: none."""
        return self._finished.horizon_after(count)

    def page(
        self,
        *,
        states: frozenset[State] | None = None,
        participant: str | None = None,
        created_before_ms: int | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """Newest first. A page may be short of `limit` and still have a next one: the search is
        bounded.

        `after`: what `next_after` gave. `participant`: the name of a branch, or its URL.
        """
        before = self._sequence + 1
        if after is not None and after.isascii() and after.isdigit():
            before = min(before, int(after[:MAX_SEQUENCE_DIGITS]))
        found: list[Transaction] = []
        unfinished_only = states is not None and states <= UNFINISHED_STATES
        newest_first = self._newest_first(before, unfinished_only=unfinished_only)
        looked_at = 0
        for transaction in newest_first:
            looked_at += 1 + len(transaction.branches)
            if _matches(transaction, states, participant, created_before_ms):
                found.append(transaction)
            if len(found) == limit or looked_at >= PAGE_SCAN:
                return Page(tuple(found), str(transaction.sequence))
        return Page(tuple(found), None)

    def _newest_first(self, before: int, *, unfinished_only: bool) -> Iterator[Transaction]:
        """Those whose sequence number is below `before`."""
        newest = reversed(self._unfinished.values())
        unfinished = itertools.dropwhile(lambda t: t.sequence >= before, newest)
        if unfinished_only:
            return unfinished
        finished = map(_unpacked, self._finished.newest_first(before))
        return heapq.merge(unfinished, finished, key=lambda t: -t.sequence)

    # --- snapshots ---

    def view(self) -> MachineView:
        epoch = (self.founding, self.epoch, self.leader)
        header = (SNAPSHOT_VERSION, *epoch, self.horizon_ms, self._sequence)
        counts = (len(self._unfinished), len(self._finished))
        unfinished = list(self._unfinished.values())
        return MachineView((*header, *counts), unfinished, self._finished.view())

    def chunks(self, view: object) -> Iterator[bytes]:
        """The header; then the unfinished, `[nil, [transaction, ...]]`; then the finished, block by
        block: `[number, block]`.
        """
        assert isinstance(view, MachineView)
        yield msgpack.packb(view.header)
        for start in range(0, len(view.unfinished), CHUNK_TRANSACTIONS):
            part = view.unfinished[start : start + CHUNK_TRANSACTIONS]
            yield msgpack.packb((None, [pack_unfinished(each) for each in part]))
        for number in sorted(view.finished):
            # Let go of one by one: all at once, at the end, no thread would run for long.
            yield msgpack.packb((number, view.finished.pop(number)))

    def restoring(self) -> Restoring:
        return Restoring(self)


class Restoring:
    """Implements `log.Restoring`: a second machine, which takes the first one's place when it is
    complete.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._built = Machine()
        self._counts: tuple[int, int] | None = None

    def feed(self, chunk: bytes) -> None:
        try:
            fields = msgpack.unpackb(chunk, use_list=False)
            if self._counts is None:
                self._read_header(*fields)
            else:
                self._read_part(*fields)
        except ValueError:
            raise
        except Exception as error:  # whatever the bytes are, they are not a snapshot of ours
            raise ValueError(f"not a snapshot of this machine: {error!r}") from error

    def _read_header(self, version: object, *fields: Any) -> None:
        if version != SNAPSHOT_VERSION:
            raise ValueError(of_another_version("snapshot", version, SNAPSHOT_VERSION))
        built = self._built
        built.founding, built.epoch, built.leader, built.horizon_ms, *numbers = fields
        built._sequence, unfinished, finished = numbers
        self._counts = unfinished, finished

    def _read_part(self, number: int | None, part: tuple[Any, ...]) -> None:
        if number is not None:
            self._built._finished.load(number, part)
            return
        for fields in part:
            self._built._store(None, unpack_unfinished(fields))

    def finish(self) -> None:
        built = self._built
        counts = len(built._unfinished), len(built._finished)
        if self._counts != counts or not built._finished.is_whole():
            raise ValueError(f"a snapshot of {self._counts} transactions holds {counts}")
        replaced = dict(vars(self._machine))
        vars(self._machine).update(vars(built))
        vars(built).update(replaced)

    def release(self) -> Iterator[None]:
        built, self._built = self._built, Machine()
        yield from built._finished.release()
        while built._unfinished:
            built._unfinished.popitem()
            yield


# --- helpers ---


def _forgettable_at(finished: Transaction) -> int:
    """Its end or the time in its id, whichever is later."""
    assert finished.finished_ms is not None
    if finished.resolutions:
        return NEVER
    return max(finished.finished_ms, time_of(finished.id) or 0)


def _unpacked(found: Found) -> Transaction:
    return unpack_finished(*found)


def _matches(
    transaction: Transaction,
    states: frozenset[State] | None,
    participant: str | None,
    created_before_ms: int | None,
) -> bool:
    if states is not None and state_of(transaction) not in states:
        return False
    if created_before_ms is not None and transaction.created_ms >= created_before_ms:
        return False
    if participant is None:
        return True
    url = participant.rstrip("/")  # as it is recorded
    return any(participant in (b.name, b.prepare_url) or b.url == url for b in transaction.branches)


_MOVES: dict[Move, Callable[..., Result]] = {
    Move.RECORD: Machine._record,
    Move.COMPARE: Machine._compare,
    Move.ADD_BRANCH: Machine._enlist,
    Move.CLOSE: Machine._close,
    Move.DECIDE: Machine._decide,
    Move.RECORD_REFUSAL: Machine._record_refusal,
    Move.ACKNOWLEDGE: Machine._acknowledge,
    Move.RESOLVE_WHOLE: Machine._resolve_whole,
    Move.RESOLVE_BRANCH: Machine._resolve_branch,
    Move.UNCHANGED: Machine._unchanged,
}
