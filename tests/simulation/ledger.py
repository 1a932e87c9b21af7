"""What the participants of the simulation do: accounts, with money held for prepared branches.

A branch's payload: `{"account": name, "amount": n, "vote": "yes" | "no" | "read_only", "work":
tag}`. Preparing holds the account (another transaction is refused meanwhile) and, if the amount is
negative, makes sure that the money is there. A tag tells two bodies of one id apart.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from participants.contract import Vote
from participants.memory_store import MemoryTable
from participants.sdk import Refused, Resource, Work

Table = MutableMapping[str, Any]

OPENING_BALANCE = 1_000


def open_accounts(table: Table, names: tuple[str, ...]) -> None:
    for name in names:
        table.setdefault(f"balance {name}", OPENING_BALANCE)


def hold(table: Table, branch: str, payload: dict[str, Any]) -> Vote:
    """YES, READ_ONLY, or Refused."""
    name, amount, vote = payload["account"], payload["amount"], payload["vote"]
    if vote == "no":
        raise Refused("told to refuse")
    if vote == "read_only":
        return Vote.READ_ONLY
    holder = table.get(f"held {name}")
    if holder is not None and holder != branch:
        raise Refused(f"held by {holder}")
    if table[f"balance {name}"] + amount < 0:
        raise Refused("not enough money")
    table[f"held {name}"] = branch
    return Vote.YES


def settle(table: Table, branch: str, payload: dict[str, Any], *, commit: bool) -> None:
    """End what was held."""
    name = payload["account"]
    assert table.get(f"held {name}") == branch, (branch, table.get(f"held {name}"))
    del table[f"held {name}"]
    if commit:
        table[f"balance {name}"] += payload["amount"]


class Ledger(Resource[MemoryTable]):
    """The accounts as a resource of the SDK."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def create(self, transaction: MemoryTable) -> None:
        open_accounts(transaction, self._names)

    def prepare(self, work: Work[MemoryTable], payload: Any) -> Vote:
        """What it changes before it refuses is to be undone."""
        branch = f"{work.transaction_id}/{work.branch_id}"
        work.transaction.setdefault(f"held {payload['account']}", branch)
        return hold(work.transaction, branch, payload)

    def work(self, work: Work[MemoryTable], payload: dict[str, Any]) -> None:
        """What a client asks for in an interactive transaction; `check` votes on it."""
        branch = f"{work.transaction_id}/{work.branch_id}"
        hold(work.transaction, branch, {**payload, "vote": Vote.YES})
        work.transaction[f"begun {branch}"] = payload

    def check(self, work: Work[MemoryTable]) -> Vote:
        branch = f"{work.transaction_id}/{work.branch_id}"
        return hold(work.transaction, branch, work.transaction[f"begun {branch}"])

    def commit(self, work: Work[MemoryTable]) -> None:
        self._end(work, commit=True)

    def rollback(self, work: Work[MemoryTable]) -> None:
        self._end(work, commit=False)

    def _end(self, work: Work[MemoryTable], *, commit: bool) -> None:
        branch = f"{work.transaction_id}/{work.branch_id}"
        payload = work.payload
        if payload is None:
            payload = work.transaction[f"begun {branch}"]
            del work.transaction[f"begun {branch}"]
        settle(work.transaction, branch, payload, commit=commit)
