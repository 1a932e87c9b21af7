"""The port to a participant's memory: branches, kept together with the resource's own changes.

Rules:
- A branch's row and what the resource changed for it are changed in one local transaction: both are
  there after a crash, or neither is.
- When `perform` returns a result, the local transaction that made it is synced. Only then may an
  answer leave (PROTOCOL, section 1).
- Pieces of work may share a local transaction, but one that fails does not undo another.
- Prepared and active branches are never dropped; ended ones (tombstones) only by
  `drop_tombstones`.

`sqlite_store.py` is a store for use, `memory_store.py` one for tests and benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from participants.branch import Branch, State

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)


class StoreError(Exception):
    """The store did not do what was asked.

    StoreError
    ├── StoreUnavailable   for now (disk full, locked, too much waits): nothing was kept; ask again
    └── StoreRefused       the file is not ours to open: foreign, newer, or another service's
    """


class StoreUnavailable(StoreError):
    """Nothing was kept, or that cannot be known; asking again is safe."""


class StoreRefused(StoreError):
    """The store cannot be opened as it is; an operator has to look at it."""


def as_exception(raised: BaseException) -> Exception:
    """What a resource's function raised, as its failure: sys.exit() in it is one like any other. It
    may not leave a local transaction open, nor end the service."""
    if isinstance(raised, Exception):
        return raised
    return RuntimeError(f"the resource's function raised {raised!r}")


class BranchRecord(NamedTuple):
    """A branch as it is kept.

    `payload`: JSON, as `contract.encode_json` gives it; `null` once the branch has ended.
    `coordinators`: base URLs of the nodes to inquire at. `changed_at_ms`: wall clock, when it came
    into its present state.
    """

    transaction_id: str
    branch_id: str
    branch: Branch
    payload: bytes = b"null"
    coordinators: tuple[str, ...] = ()
    changed_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A tombstone. `number` grows with every branch that ends here; there may be gaps."""

    number: int
    transaction_id: str
    branch_id: str
    state: State
    ended_at_ms: int


class LocalTransaction(Protocol[R_co]):
    """One local transaction, as one piece of work sees it."""

    @property
    def resource(self) -> R_co:
        """What the resource makes its own changes through (of SQLite: the connection)."""
        ...

    def find(self, transaction_id: str, branch_id: str) -> BranchRecord | None: ...

    def keep(self, record: BranchRecord) -> None: ...

    def undo(self) -> None:
        """Undo whatever this piece of work has changed so far, the resource's changes included."""
        ...


class Store(Protocol[T_co]):
    """A participant's memory. `T_co` is what the resource makes its changes through.

    `incarnation`: of interactive work, written with a branch's first piece. Work that was begun
    under another number is lost: no more may follow it, and it may not commit (PROTOCOL, section
    8). So it is a constant where what `perform` has returned survives the process, and another with
    each process where changes could be lost while the branch that they belong to is still known.
    """

    @property
    def incarnation(self) -> int: ...

    async def open(self, create: Callable[[T_co], None]) -> None:
        """Open, and let the resource create what it needs, in a local transaction.

        Raises StoreRefused.
        """
        ...

    async def close(self) -> None: ...

    async def perform(
        self, works: Sequence[Callable[[LocalTransaction[T_co]], R]]
    ) -> list[R | Exception]:
        """Carry out each piece of work, sync it, and return its result or what it raised, in order.

        The pieces are independent of each other. A StoreUnavailable stands for what the store
        itself could not do. Work on one branch is never carried out at the same time as other work
        on it.
        """
        ...

    async def in_doubt(self, limit: int) -> list[BranchRecord]:
        """Branches that wait for their outcome: prepared ones, then active ones, who have promised
        nothing yet; of each the oldest first. Perhaps without their payloads, which may be large:
        who wants one finds the branch."""
        ...

    async def ended(self, after: int, limit: int) -> list[Ended]:
        """Tombstones with a number above `after`, in the order in which they ended."""
        ...

    async def drop_tombstones(self, ended_before_ms: int) -> int:
        """Forget branches that ended before this time, and before all that have not; returns how
        many. See `in_front_of_the_young`."""
        ...

    async def count(self) -> dict[State, int]:
        """How many branches are kept, by state; a state without any is 0, ABSENT is left out."""
        ...


def in_front_of_the_young(ends_ms: Iterable[int], ended_before_ms: int, newest_ms: int) -> int:
    """Of tombstones in their order, how many stand in front of the first that is too young to be
    dropped: what ended after that is younger still, though the clock was behind then.

    `newest_ms`: when the last of all ended. One that says it ended after that was written when the
    clock was ahead, and tells nothing of those behind it; unless the last is old itself, for then
    perhaps it is that which was written by a wrong clock.
    """
    count = 0
    for end_ms in ends_ms:
        if end_ms >= ended_before_ms and (end_ms <= newest_ms or newest_ms < ended_before_ms):
            break
        count += 1
    return count
