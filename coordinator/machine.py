"""The transaction machine: what every node computes from the log, command by command. Pure.

Deterministic: `apply` reads the state and the command and nothing else, no clock, no setting, and
never raises on a command that it knows; a refusal is a returned value. The same log gives the same
bytes on every node (I9). What a command may do to a transaction is the table in `moves`; this file
does it.

Kept here: I2 an outcome never changes, I3 commit only on every vote, I6 what is forgotten and what
is never run twice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
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
)
from coordinator.facts import (
    Branch,
    Mode,
    Outcome,
    Resolution,
    State,
    Transaction,
    everyone_can_commit,
    outstanding,
    state_of,
)
from coordinator.ids import time_of
from coordinator.indexes import Indexes, Shared
from coordinator.moves import MOVES, Move, Refusal, phase_of
from coordinator.snapshot_facts import TransactionReader
from coordinator.table import Table, View
from participants.contract import Vote

SNAPSHOT_VERSION = 1
CHUNK_TRANSACTIONS = 200
UNFINISHED_STATES = frozenset((State.ACTIVE, State.PREPARING, State.COMMITTING, State.ABORTING))
PAGE_SCAN = 5_000
"""Records looked at for one page: about 5 ms, so that a filter that matches little cannot stall the
loop.
"""

MAX_SEQUENCE_DIGITS = 20


class Applied(NamedTuple):
    """The transaction as it stands after a command, and whether the command changed it."""

    transaction: Transaction
    changed: bool


class Epochs(NamedTuple):
    """The answer to Epoch: the epoch in force."""

    epoch: int


class Forgot(NamedTuple):
    """The answer to Forget: the horizon in force, and how many transactions went."""

    horizon_ms: int
    forgotten: int


Result = Applied | Epochs | Forgot | Refusal


class Page(NamedTuple):
    """A page of a list; `next_after` is where the next one begins, None at the end."""

    transactions: tuple[Transaction, ...]
    next_after: str | None


class MachineView(NamedTuple):
    """What a snapshot is made of; `chunks` uses it up."""

    header: tuple[Any, ...]
    shards: View[Transaction]


class Machine:
    """Implements `log.StateMachine`."""

    def __init__(self) -> None:
        self.epoch = 0
        self.leader = ""
        self.horizon_ms = 0
        self._sequence = 0
        self._table: Table[Transaction] = Table()
        self._indexes = Indexes()
        self._shared_branches: Shared[tuple[Branch, ...]] = Shared()
        self._shared_votes: Shared[tuple[Vote, ...]] = Shared()
        self._shared_reasons: Shared[tuple[str | None, ...]] = Shared()
        self._shared_metadata: Shared[bytes] = Shared()

    # --- the log's side ---

    def epoch_command(self, epoch: int, node: str, now_ms: int) -> bytes:
        return encode(Epoch(epoch, now_ms, node))

    def apply(self, command: bytes) -> Result:
        """Apply one command from the log; raises UnknownCommand, upon which the node stops."""
        return self.step(decode(command))

    def step(self, command: Command) -> Result:
        """Apply one decoded command."""
        if isinstance(command, Epoch):
            if command.epoch > self.epoch:
                self.epoch, self.leader = command.epoch, command.node
            return Epochs(self.epoch)
        if command.epoch != self.epoch:
            return Refusal.STALE_EPOCH
        if isinstance(command, Forget):
            return self._forget(command)
        transaction = self._table.get(command.id)
        expired = transaction is None and self._is_expired(command.id)
        move = MOVES[type(command)][phase_of(transaction, expired=expired)]
        return self._move(move, command, transaction)

    def _is_expired(self, transaction_id: str) -> bool:
        time_ms = time_of(transaction_id)
        return time_ms is not None and time_ms < self.horizon_ms

    def _move(
        self,
        move: Move,
        command: Begin | Enlist | Close | Decide | Refuse | Acknowledge | Resolve,
        standing: Transaction | None,
    ) -> Result:
        match move:
            case Move.REFUSE_UNKNOWN:
                return Refusal.UNKNOWN
            case Move.REFUSE_EXPIRED:
                return Refusal.EXPIRED
            case Move.REFUSE_CLOSED:
                return Refusal.CLOSED
            case Move.REFUSE_UNDECIDED:
                return Refusal.UNDECIDED
            case Move.RECORD:
                assert isinstance(command, Begin)
                return self._put(None, record_of(command, self._next_sequence()))
            case Move.RECORD_REFUSAL:
                assert isinstance(command, Refuse)
                return self._put(None, _refused(command, self._next_sequence()))
        assert standing is not None
        match move:
            case Move.UNCHANGED:
                return Applied(standing, changed=False)
            case Move.COMPARE:
                assert isinstance(command, Begin)
                if command.fingerprint != standing.fingerprint:
                    return Refusal.CONFLICT
                return Applied(standing, changed=False)
            case Move.ADD_BRANCH:
                assert isinstance(command, Enlist)
                return self._enlist(command, standing)
            case Move.CLOSE:
                return self._put(standing, standing._replace(closed=True))
            case Move.DECIDE:
                assert isinstance(command, Decide)
                return self._put(standing, _decided(command, standing))
            case Move.ACKNOWLEDGE:
                assert isinstance(command, Acknowledge)
                return self._acknowledge(command, standing)
            case Move.RESOLVE_WHOLE:
                assert isinstance(command, Resolve)
                if command.branch_id is not None:
                    return Refusal.UNDECIDED
                return self._put(standing, _aborted_by_hand(command, standing))
            case Move.RESOLVE_BRANCH:
                assert isinstance(command, Resolve)
                return self._resolve_branch(command, standing)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _put(self, before: Transaction | None, after: Transaction) -> Applied:
        # I2, whoever wrote the move: an outcome once fixed never changes.
        assert before is None or before.outcome is None or after.outcome is before.outcome, after.id
        if after.outcome is not None and (before is None or before.outcome is None):
            after = self._compact(after)
        self._table.put(after.id, after)
        self._indexes.changed(before, after)
        return Applied(after, changed=True)

    def _compact(self, decided: Transaction) -> Transaction:
        """The same, holding less: phase two names only ids, so a payload is not kept beyond the
        decision.
        """
        bare = tuple([_bare(*branch[:6], branch.repeatable) for branch in decided.branches])
        return decided._replace(
            branches=self._shared_branches(bare),
            votes=self._shared_votes(decided.votes),
            vote_reasons=self._shared_reasons(decided.vote_reasons),
            metadata=self._shared_metadata(decided.metadata),
        )

    def _enlist(self, command: Enlist, standing: Transaction) -> Result:
        for branch in standing.branches:
            if branch.name == command.branch.name:
                same = branch.url == command.branch.url
                return Applied(standing, changed=False) if same else Refusal.CONFLICT
        branches = (*standing.branches, command.branch)
        return self._put(standing, standing._replace(branches=branches))

    def _acknowledge(self, command: Acknowledge, standing: Transaction) -> Result:
        added = command.branches & outstanding(standing)
        if not added:
            return Applied(standing, changed=False)
        after = standing._replace(acknowledged=standing.acknowledged | added)
        return self._put(standing, _finished_if_done(after, command.now_ms))

    def _resolve_branch(self, command: Resolve, standing: Transaction) -> Result:
        if command.branch_id is None:
            return Applied(standing, changed=False)
        for resolution in standing.resolutions:
            if resolution.branch_id == command.branch_id:
                return Applied(standing, changed=False)
        positions = [i for i, b in enumerate(standing.branches) if b.branch_id == command.branch_id]
        if not positions:
            return Refusal.NO_SUCH_BRANCH
        if not outstanding(standing) >> positions[0] & 1:
            return Refusal.BRANCH_FINISHED
        after = standing._replace(resolutions=(*standing.resolutions, _resolution(command)))
        return self._put(standing, _finished_if_done(after, command.now_ms))

    def _forget(self, command: Forget) -> Result:
        """I6. The horizon only grows; what was resolved by hand stays for ever."""
        self.horizon_ms = max(self.horizon_ms, command.horizon_ms)
        gone = self._indexes.take_before(self.horizon_ms)
        for transaction_id in gone:
            transaction = self._table.get(transaction_id)
            assert transaction is not None
            assert transaction.finished_ms is not None
            self._table.remove(transaction_id)
            self._indexes.removed(transaction)
        return Forgot(self.horizon_ms, len(gone))

    # --- reading ---

    def get(self, transaction_id: str) -> Transaction | None:
        return self._table.get(transaction_id)

    def is_expired(self, transaction_id: str) -> bool:
        """Whether the id is not remembered and its time lies before the horizon."""
        return self._table.get(transaction_id) is None and self._is_expired(transaction_id)

    def unfinished(self) -> Iterator[Transaction]:
        """In the order in which they began."""
        for transaction_id in self._indexes.unfinished:
            transaction = self._table.get(transaction_id)
            assert transaction is not None
            yield transaction

    @property
    def unfinished_count(self) -> int:
        return len(self._indexes.unfinished)

    @property
    def remembered_count(self) -> int:
        """Finished transactions and refusals that are still known."""
        return len(self._table) - len(self._indexes.unfinished)

    def backlog(self) -> dict[str, int]:
        """Unfinished branches by participant."""
        return self._indexes.backlog

    def horizon_that_forgets(self, count: int) -> int:
        """The horizon that would forget about the `count` oldest finished transactions; 0: none."""
        return self._indexes.horizon_after(count)

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
        ids = self._indexes.newest_first(before, unfinished_only=unfinished_only)
        for looked_at, transaction_id in enumerate(ids, 1):
            transaction = self._table.get(transaction_id)
            assert transaction is not None
            if _matches(transaction, states, participant, created_before_ms):
                found.append(transaction)
            if len(found) == limit or looked_at == PAGE_SCAN:
                return Page(tuple(found), str(transaction.sequence))
        return Page(tuple(found), None)

    # --- snapshots ---

    def view(self) -> MachineView:
        header = (SNAPSHOT_VERSION, self.epoch, self.leader, self.horizon_ms, self._sequence)
        return MachineView((*header, len(self._table)), self._table.view())

    def chunks(self, view: object) -> Iterator[bytes]:
        assert isinstance(view, MachineView)
        yield msgpack.packb(view.header)
        part: list[Transaction] = []
        shards = view.shards
        shards.reverse()
        while shards:
            # Let go of one by one: all at once, at the end, is 50 ms in which no thread runs.
            for transaction in shards.pop().values():
                part.append(transaction)
                if len(part) == CHUNK_TRANSACTIONS:
                    yield msgpack.packb(part)
                    part = []
        if part:
            yield msgpack.packb(part)

    def restore(self, chunks: Iterable[bytes]) -> None:
        pieces = iter(chunks)
        try:
            header = msgpack.unpackb(next(pieces), use_list=False)
            version, epoch, leader, horizon_ms, sequence, count = header
            if version != SNAPSHOT_VERSION:
                raise ValueError(
                    f"snapshot version {version!r}: this program knows {SNAPSHOT_VERSION}"
                )
            table: Table[Transaction] = Table()
            read = 0
            transaction_of = TransactionReader()
            for piece in pieces:
                for fields in msgpack.unpackb(piece, use_list=False):
                    transaction = transaction_of(fields)
                    table.put(transaction.id, transaction)
                    read += 1
            indexes = Indexes.of(table)
            if not read == len(table) == len(indexes.by_sequence) == count:
                raise ValueError(f"snapshot of {count} transactions holds {read}")
        except StopIteration:
            raise ValueError("a snapshot without a header") from None
        except ValueError:
            raise
        except Exception as error:  # whatever the bytes are, they are not a snapshot of ours
            raise ValueError(f"not a snapshot of this machine: {error!r}") from error
        self.epoch, self.leader, self.horizon_ms = epoch, leader, horizon_ms
        self._sequence, self._table, self._indexes = sequence, table, indexes


# --- what the moves make: pure functions of record and command ------------------------------------


def record_of(command: Begin, sequence: int) -> Transaction:
    """The record that `Begin` makes."""
    return Transaction(
        id=command.id,
        sequence=sequence,
        fingerprint=command.fingerprint,
        mode=command.mode,
        branches=command.branches,
        metadata=command.metadata,
        created_ms=command.now_ms,
        deadline_ms=command.deadline_ms,
        closed=command.mode is Mode.ONE_SHOT,
    )


def _refused(command: Refuse, sequence: int) -> Transaction:
    return Transaction(
        id=command.id,
        sequence=sequence,
        fingerprint="",
        mode=Mode.ONE_SHOT,
        branches=(),
        metadata=b"{}",
        created_ms=command.now_ms,
        deadline_ms=command.now_ms,
        closed=True,
        outcome=Outcome.ABORT,
        reason="a participant asked for the outcome before the transaction was begun",
        decided_ms=command.now_ms,
        finished_ms=command.now_ms,
    )


def _decided(command: Decide, standing: Transaction) -> Transaction:
    count = len(standing.branches)
    votes = (command.votes + (Vote.UNKNOWN,) * count)[:count]
    reasons = (command.vote_reasons + (None,) * count)[:count]
    commits = standing.closed and everyone_can_commit(votes, count)
    after = standing._replace(
        closed=True,
        votes=votes,
        vote_reasons=reasons,
        outcome=Outcome.COMMIT if commits else Outcome.ABORT,
        reason=None if commits else command.reason,
        decided_ms=command.now_ms,
    )
    return _finished_if_done(after, command.now_ms)


def _aborted_by_hand(command: Resolve, standing: Transaction) -> Transaction:
    count = len(standing.branches)
    after = standing._replace(
        closed=True,
        votes=(Vote.UNKNOWN,) * count,
        vote_reasons=(None,) * count,
        outcome=Outcome.ABORT,
        reason=f"aborted by {command.actor}: {command.reason}",
        decided_ms=command.now_ms,
        resolutions=(*standing.resolutions, _resolution(command)),
    )
    return _finished_if_done(after, command.now_ms)


@functools.lru_cache(maxsize=10_000)
def _bare(
    branch_id: str,
    name: str,
    url: str | None,
    prepare_url: str,
    commit_url: str,
    rollback_url: str,
    repeatable: bool,
) -> Branch:
    """A branch without its payload. Remembered: most transactions are at the same services."""
    return Branch(branch_id, name, url, prepare_url, commit_url, rollback_url, b"", repeatable)


def _resolution(command: Resolve) -> Resolution:
    return Resolution(
        command.branch_id, command.effect, command.actor, command.reason, command.now_ms
    )


def _finished_if_done(transaction: Transaction, now_ms: int) -> Transaction:
    if outstanding(transaction):
        return transaction
    return transaction._replace(finished_ms=now_ms)


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
    return participant is None or any(
        participant in (b.name, b.url, b.prepare_url) for b in transaction.branches
    )
