"""How answers look in a terminal: text for people, or JSON lines for machines.

Whatever a command prints goes through an `Output`, so that there is one exception for all that can
become of it, and none for text that the terminal cannot encode: that is escaped.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

from cluster.client import Branch, ClusterStatus, Transaction
from participants.logs import one_line


class UserMistake(Exception):
    """What was typed cannot be done; the text is one line: what, which, what next."""


class OutputFailed(Exception):
    """What was to be printed could not be. `reader_gone`: nobody wants it (`... | head`)."""

    def __init__(self, why: str, *, reader_gone: bool = False) -> None:
        super().__init__(f"cannot write to standard output: {why}")
        self.reader_gone = reader_gone


class Output(io.TextIOBase):
    """Standard output, None where it is closed. `write` and `flush` raise OutputFailed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        if self._stream is None:
            raise OutputFailed("it is closed")
        try:
            return self._stream.write(text)
        except OSError as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        if self._stream is None:
            return
        try:
            self._stream.flush()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> OutputFailed:
        assert self._stream is not None
        _give_up(self._stream)
        gone = isinstance(error, BrokenPipeError)
        return OutputFailed(error.strerror or str(error), reader_gone=gone)


def complain(what: object) -> None:
    """One line on standard error; nothing becomes of it if that cannot be written either."""
    if sys.stderr is None:
        return
    line = one_line(" ".join(str(what).split()))
    try:
        print(f"assent: {line}", file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)


def _give_up(stream: TextIO) -> None:
    """What could not be written goes nowhere: at its end Python would try again, complain, and
    choose an exit code of its own."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_json(value: Any) -> None:
    """One line, at once, for whoever reads along."""
    print(json.dumps(value, separators=(",", ":")), flush=True)


def transaction_line(transaction: Transaction) -> str:
    """`committed 0199...`, with the reason of an abort."""
    state = transaction.outcome or transaction.state
    why = f": {one_line(transaction.reason)}" if transaction.reason else ""
    return f"{state:<10} {transaction.id}{why}"


def transaction_text(transaction: Transaction) -> str:
    """The transaction and its branches."""
    lines = [transaction_line(transaction)]
    times = (
        ("state", transaction.state),
        ("created", transaction.created_at),
        ("decided", transaction.decided_at),
        ("finished", transaction.finished_at),
    )
    lines += [f"  {name:<10}{value}" for name, value in times if value is not None]
    if transaction.metadata:
        lines.append(f"  {'metadata':<10}{json.dumps(transaction.metadata)}")
    lines += [f"  {'by hand':<10}{_by_hand(entry)}" for entry in transaction.history]
    counted = transaction.finished_at is None  # the leader counts no longer
    rows = [_branch_row(branch, counted=counted) for branch in transaction.branches]
    if rows:
        lines += ["", *table(("branch", "name", "vote", "state", "attempts", "remarks"), rows)]
    return "\n".join(lines)


def transactions_text(transactions: Sequence[Transaction]) -> str:
    """A line for each."""
    if not transactions:
        return "no transactions"
    rows = [
        (
            transaction.id,
            transaction.state,
            transaction.created_at or "",
            ", ".join(branch.name for branch in transaction.branches),
            transaction.reason or "",
        )
        for transaction in transactions
    ]
    return "\n".join(table(("id", "state", "created", "participants", "reason"), rows))


def cluster_text(status: ClusterStatus) -> str:
    """The nodes, as the one sees them that was asked."""
    leader = status.leader or "nobody"
    head = (
        f"cluster {status.cluster}, led by {leader} in term {status.term} ({status.self_id} says)"
    )
    rows = [
        (
            node.id,
            node.role or "",
            {True: "alive", False: "silent", None: ""}[node.alive],
            node.api,
            _number(node.match_index),
            _number(node.lag),
        )
        for node in status.nodes
    ]
    return "\n".join([head, "", *table(("node", "role", "", "api", "match", "lag"), rows)])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as their widest cell."""
    lines = [tuple(heads), *(tuple(one_line(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _by_hand(entry: Mapping[str, Any]) -> str:
    """What an operator did to the transaction, who, when and why."""
    branch = entry.get("branch_id")
    did = "aborted" if branch is None else f"branch {branch} ended ({entry.get('effect')})"
    return one_line(f"{did} by {entry.get('actor')} at {entry.get('at')}: {entry.get('reason')}")


def _branch_row(branch: Branch, *, counted: bool) -> tuple[str, ...]:
    remarks = branch.last_error or branch.reason or ""
    attempts = str(branch.attempts) if counted else ""
    return (branch.branch_id, branch.name, branch.vote or "", branch.state, attempts, remarks)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
