"""The file of a SqliteStore: its format, how it is opened, and one local transaction in it.

Rules:
- What is not ours is refused before anything is written to it, and so is a second process
  (by a lock on the file beside it that ends in `-lock`).
- Nothing is said to be kept in a file that is no longer where it was opened.
- Only `carry_out` ends a local transaction. The resource's functions get a StoreConnection, which
  refuses to.
- Rows are read as they are, whatever `row_factory` the resource gives its connection. It may not
  give it a `text_factory`.
- Each piece of work has its own savepoint in the shared local transaction, so one that fails does
  not undo another; what makes SQLite give up the whole is reported to all of them.

Everything here runs in the store's own threads, never in the event loop's.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from participants.branch import ENDED, Branch, State
from participants.contract import BranchKey
from participants.store import (
    BranchRecord,
    Ended,
    LocalTransaction,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    as_exception,
)
from participants.store_connection import StoreConnection

FORMAT_VERSION = 1

GROUP_S = 0.1
"""A local transaction begins no other piece of work after this time: all in it are answered
together, and where each takes long nobody would be in time. The sync does not count."""

LOG_BYTES = 64 << 20
"""Of the write-ahead log, which grows while somebody reads, and would stay as large for ever."""

_WORK = "assent_work"
"""A piece of work's savepoint. No name that a resource gives to one of its own: SQLite goes back to
the last one of a name."""

_ENDED_ITSELF = (
    "the resource's function ended the local transaction of {} itself; take COMMIT or ROLLBACK out"
    " of it"
)

# What the machine, and not the resource's own SQL, is to blame for.
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}

_SCHEMA = (
    "CREATE TABLE assent_format (version INTEGER NOT NULL, owner TEXT NOT NULL)",
    """CREATE TABLE assent_branches (
        transaction_id TEXT NOT NULL,
        branch_id TEXT NOT NULL,
        state TEXT NOT NULL,
        fingerprint TEXT,
        incarnation INTEGER,
        payload TEXT NOT NULL,
        coordinators TEXT NOT NULL,
        changed_at_ms INTEGER NOT NULL,
        ended_number INTEGER,
        PRIMARY KEY (transaction_id, branch_id)
    ) WITHOUT ROWID""",
    """CREATE INDEX assent_in_doubt ON assent_branches (changed_at_ms)
        WHERE state = 'prepared'""",
    """CREATE UNIQUE INDEX assent_tombstones ON assent_branches (ended_number)
        WHERE ended_number IS NOT NULL""",
)
_ADDED = """CREATE INDEX IF NOT EXISTS assent_active ON assent_branches (changed_at_ms)
    WHERE state = 'active'"""
"""To files that were made without it, too."""
_COLUMNS = (
    "transaction_id, branch_id, state, fingerprint, incarnation, payload, coordinators,"
    " changed_at_ms"
)
_FIND = f"SELECT {_COLUMNS} FROM assent_branches WHERE transaction_id = ? AND branch_id = ?"
_KEEP = f"""INSERT INTO assent_branches ({_COLUMNS}, ended_number)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (transaction_id, branch_id) DO UPDATE SET state = excluded.state,
    fingerprint = excluded.fingerprint, incarnation = excluded.incarnation,
    payload = excluded.payload, coordinators = excluded.coordinators,
    changed_at_ms = excluded.changed_at_ms, ended_number = excluded.ended_number"""
_PREPARED, _ACTIVE = (
    f"""SELECT transaction_id, branch_id, state, fingerprint, incarnation, 'null',
    coordinators, changed_at_ms
    FROM assent_branches WHERE state = '{state}' ORDER BY changed_at_ms LIMIT ?"""
    for state in (State.PREPARED.value, State.ACTIVE.value)
)
_ENDED = """SELECT ended_number, transaction_id, branch_id, state, changed_at_ms
    FROM assent_branches WHERE ended_number > ? ORDER BY ended_number LIMIT ?"""
_NTH = """SELECT transaction_id, branch_id FROM assent_branches
    WHERE (transaction_id, branch_id) > (?, ?) ORDER BY 1, 2 LIMIT 1 OFFSET ?"""
_COUNT = """SELECT state, count(*) FROM assent_branches WHERE (transaction_id, branch_id) > (?, ?)
    AND (transaction_id, branch_id) <= (?, ?) GROUP BY state"""
# Without the condition SQLite looks at every row: the index holds only those that have a number.
_LAST = "SELECT max(ended_number) FROM assent_branches WHERE ended_number IS NOT NULL"
_NEWEST = f"SELECT changed_at_ms FROM assent_branches WHERE ended_number = ({_LAST})"
# The newest tombstone stays, so that no number is given twice.
_DROP = f"""DELETE FROM assent_branches
    WHERE changed_at_ms < ? AND ended_number > ? AND ended_number <= ?
    AND ended_number < ({_LAST})"""


def open_writing(
    path: Path,
    owner: str,
    adopt: bool,
    timeout_s: float,
    create: Callable[[sqlite3.Connection], None],
) -> Local:
    """Open or make the file, and let the resource create its tables.

    Raises StoreRefused if the file is not ours, StoreUnavailable if it cannot be opened now.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            file = sqlite3.connect(
                path,
                timeout=timeout_s,
                isolation_level=None,
                factory=StoreConnection,
                cached_statements=256,
            )
            try:
                return Local(file, path, lock, _prepare_file(file, path, owner, adopt, create))
            except BaseException:
                _close(file)
                raise
        except BaseException:
            os.close(lock)
            raise
    except sqlite3.Error as error:
        code = _primary_code(error)
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            message = f"{path} is not a sound SQLite database ({error}); name another file"
            raise StoreRefused(message) from error
        raise _cannot_open(path, error) from error
    except OSError as error:
        raise _cannot_open(path, error) from error


def open_reading(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A second connection, which sees what is synced and cannot write; raises StoreUnavailable."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        return sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)
    except sqlite3.Error as error:
        raise _cannot_open(path, error) from error


def _cannot_open(path: Path, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the store {path} cannot be opened: {error}")


def _prepare_file(
    file: sqlite3.Connection,
    path: Path,
    owner: str,
    adopt: bool,
    create: Callable[[sqlite3.Connection], None],
) -> int:
    """Bring the file into shape; returns the number of its last tombstone."""
    is_new = _is_new(file, path, owner, adopt)
    file.execute("PRAGMA journal_mode=WAL")
    file.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
    file.execute("PRAGMA synchronous=FULL")
    file.execute("PRAGMA foreign_keys=ON")  # the resource has no moment to say so: it is never
    # outside a local transaction, and inside one SQLite ignores it
    file.execute("BEGIN IMMEDIATE")
    if is_new:
        for statement in _SCHEMA:
            file.execute(statement)
        file.execute("INSERT INTO assent_format VALUES (?, ?)", (FORMAT_VERSION, owner))
    file.execute(_ADDED)
    create(file)
    last = f"SELECT coalesce(({_LAST}), 0)"
    (last_number,) = _plain(file).execute(last).fetchone()
    file.execute("COMMIT")
    _sync_directory(path.parent)
    return int(last_number)


def _lock(path: Path) -> int:
    """Two processes would number the same tombstones. The lock ends with the process; it is the
    file's, whatever links lead to it."""
    lock = os.open(f"{os.path.realpath(path)}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StoreRefused(
            f"another process has {path} open; stop it, or give this one its own file"
        ) from None
    return lock


def _is_new(file: sqlite3.Connection, path: Path, owner: str, adopt: bool) -> bool:
    """Whether the store's tables have yet to be made; raises StoreRefused. Only reads."""
    tables = [name for (name,) in file.execute("SELECT name FROM sqlite_master")]
    if "assent_format" not in tables:
        if tables and not adopt:
            raise StoreRefused(
                f"{path} is a database of something else (it has {tables[0]!r}, but no branches);"
                " name another file, or open it with adopt=True"
            )
        return True
    format_row = file.execute("SELECT version, owner FROM assent_format").fetchone()
    if format_row is None:
        raise StoreRefused(f"{path} is damaged: it does not say whose it is; put back a copy of it")
    version, file_owner = format_row
    if version > FORMAT_VERSION:
        raise StoreRefused(
            f"{path} has format {version}, and this program reads up to {FORMAT_VERSION};"
            " run the newer program again"
        )
    if file_owner != owner:
        raise StoreRefused(f"{path} belongs to {file_owner!r}, not to {owner!r}; name another file")
    return False


class Local:
    """The writing thread's side of the file; implements `LocalTransaction`."""

    def __init__(self, file: sqlite3.Connection, path: Path, lock: int, last_number: int) -> None:
        self.resource = file
        self._path = path
        self._opened = _file_at(path)
        self._lock = lock
        self._last_number = last_number
        self._execute = _plain(file).execute

    def find(self, transaction_id: str, branch_id: str) -> BranchRecord | None:
        row = self._execute(_FIND, (transaction_id, branch_id)).fetchone()
        return None if row is None else _record(row)

    def keep(self, record: BranchRecord) -> None:
        branch = record.branch
        number = None
        if branch.state in ENDED:
            self._last_number += 1
            number = self._last_number
        self._execute(
            _KEEP,
            (
                record.transaction_id,
                record.branch_id,
                branch.state.value,
                branch.fingerprint,
                branch.incarnation,
                record.payload.decode("ascii"),
                _encoded(record.coordinators),
                record.changed_at_ms,
                number,
            ),
        )

    def close(self) -> None:
        _close(self.resource)
        os.close(self._lock)

    def undo(self) -> None:
        self._execute(f"ROLLBACK TO {_WORK}")

    def gone(self) -> str | None:
        """Why nobody would find what is kept in the file, if it is no longer where it was."""
        if self._opened == _file_at(self._path):
            return None
        return (
            f"the store {self._path} was moved, replaced or deleted while it was open; put it back,"
            " or start the service again with the file that it is to have"
        )


def carry_out(
    path: Path, local: Local, works: list[Callable[[LocalTransaction[sqlite3.Connection]], Any]]
) -> list[Any | Exception]:
    """One local transaction, in the writing thread: each work's result or exception, synced.

    Of the first of them, at least; those that have none were not begun (`GROUP_S`).
    """
    file = local.resource
    results: list[Any | Exception] = []
    try:
        file.execute("BEGIN IMMEDIATE")
        until_s = time.monotonic() + GROUP_S
        for work in works:
            results.append(_carry_out_one(path, local, work))
            if time.monotonic() >= until_s:
                break
        file.execute("COMMIT")
    except Exception as error:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have done so itself
            file.execute("ROLLBACK")
        failure = error if isinstance(error, StoreError) else unavailable(path, error)
        if len(works) == 1 or _primary_code(error) in _UNAVAILABLE:
            return [failure] * len(works)
        # One of them is to blame (a deferred constraint, a COMMIT in its SQL). The others' work is
        # undone or answered by the branch table, so each can be carried out again, alone.
        return [carry_out(path, local, [work])[0] for work in works]
    return [StoreUnavailable(gone)] * len(results) if (gone := local.gone()) else results


def _carry_out_one(
    path: Path, local: Local, work: Callable[[LocalTransaction[sqlite3.Connection]], Any]
) -> Any | Exception:
    file = local.resource
    file.execute(f"SAVEPOINT {_WORK}")
    result: Any | Exception
    try:
        result = work(local)
    except BaseException as raised:
        result = error = as_exception(raised)  # signals do not come to this thread
        if _primary_code(error) in _UNAVAILABLE:
            result = unavailable(path, error)
        # Some failures (disk full) make SQLite undo the whole local transaction, others' work
        # included.
        if not file.in_transaction:
            raise unavailable(path, error) from error
        _at_savepoint(path, file, "ROLLBACK TO")
    _at_savepoint(path, file, "RELEASE")
    return result


def _at_savepoint(path: Path, file: sqlite3.Connection, statement: str) -> None:
    """Raises StoreUnavailable if it is not there: the local transaction was ended since."""
    try:
        file.execute(f"{statement} {_WORK}")
    except sqlite3.OperationalError as error:
        if _primary_code(error) in _UNAVAILABLE:
            raise
        raise StoreUnavailable(_ENDED_ITSELF.format(path)) from error


def read_in_doubt(file: sqlite3.Connection, limit: int) -> list[BranchRecord]:
    execute = _plain(file).execute
    rows = execute(_PREPARED, (limit,)).fetchall()
    if len(rows) < limit:
        rows += execute(_ACTIVE, (limit - len(rows),)).fetchall()
    return [_record(row) for row in rows]


def read_ended(file: sqlite3.Connection, after: int, limit: int) -> list[Ended]:
    rows = _plain(file).execute(_ENDED, (after, limit))
    return [Ended(row[0], row[1], row[2], State(row[3]), row[4]) for row in rows]


def read_newest_end_ms(file: sqlite3.Connection) -> int:
    """When the last branch ended, of those that have."""
    row = _plain(file).execute(_NEWEST).fetchone()
    return 0 if row is None else int(row[0])


def read_count(
    file: sqlite3.Connection, after: BranchKey, most: int
) -> tuple[dict[State, int], BranchKey | None]:
    """Of the branches behind that one, `most` at most; and the last of these, None if all were."""
    last = _plain(file).execute(_NTH, (*after, most - 1)).fetchone()
    rows = _plain(file).execute(_COUNT, (*after, *(last or ("\U0010ffff", ""))))
    return {State(state): number for state, number in rows}, last


def drop_tombstones(file: sqlite3.Connection, ended_before_ms: int, after: int, last: int) -> int:
    """Of the tombstones after the number `after`, to `last`, drop the old ones."""
    return file.execute(_DROP, (ended_before_ms, after, last)).rowcount


def _file_at(path: Path) -> tuple[int, int] | None:
    """Which file stands there; None: none does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close(file: sqlite3.Connection) -> None:
    """Close the connection, which a StoreConnection refuses to do for a resource."""
    sqlite3.Connection.close(file)


def _plain(file: sqlite3.Connection) -> sqlite3.Cursor:
    """A cursor whose rows are tuples."""
    cursor = file.cursor()
    cursor.row_factory = None
    return cursor


def _record(row: tuple[Any, ...]) -> BranchRecord:
    transaction_id, branch_id, state, fingerprint, incarnation, payload, coordinators, at_ms = row
    return BranchRecord(
        transaction_id,
        branch_id,
        Branch(State(state), fingerprint, incarnation),
        payload.encode("ascii"),
        _decoded(coordinators),
        at_ms,
    )


def unavailable(path: Path, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the store {path} failed, nothing was kept: {error}; ask again")


@functools.lru_cache(maxsize=64)  # the same few lists, in every prepare
def _encoded(coordinators: tuple[str, ...]) -> str:
    return json.dumps(coordinators)


@functools.lru_cache(maxsize=64)
def _decoded(coordinators: str) -> tuple[str, ...]:
    return tuple(json.loads(coordinators))


def _primary_code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _sync_directory(directory: Path) -> None:
    """A new file's name is durable only once its directory is."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
