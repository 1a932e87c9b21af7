"""What a team writes, and what is asked of its functions.

They are plain functions that run in the store's local transaction; see `sdk.py`, from which teams
import them.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from participants.contract import MAX_REASON_CHARS, Vote
from participants.messages import decode_payload

T = TypeVar("T")

_YES = Vote.YES  # looked up once: Python 3.11 takes 90 ns to find a member of an enum


class Refused(Exception):
    """Raised by `prepare` or `check` to vote NO; the text is the reason that the client reads."""


class Work(NamedTuple, Generic[T]):
    """What a resource's function works on. `transaction`: the store's local transaction.

    `encoded`: the payload as it is kept. `traceparent`: as the client sent it to the coordinator
    (W3C Trace Context), to make a span of; None where it sent none, where a new leader asks (it is
    not kept), and where the branch has found out its outcome by itself.
    """

    transaction_id: str
    branch_id: str
    encoded: bytes
    transaction: T
    traceparent: str | None = None

    @property
    def payload(self) -> Any:
        """What the client sent for this branch (any JSON value), the same in all calls; null if it
        works interactively.

        Decoded anew whenever it is asked for: whoever changes it changes nobody else's.
        """
        return decode_payload(self.encoded)


class Resource(abc.ABC, Generic[T]):
    """What a team writes. `T` is what the store offers for changes (of SQLite: the connection)."""

    def create(self, transaction: T) -> None:
        """Create what the resource needs, if it is not there; called at each start."""

    @abc.abstractmethod
    def prepare(self, work: Work[T], payload: Any) -> Vote:
        """Promise that `commit` will succeed after any crash: YES, or NO (by Refused: and why).

        READ_ONLY says that the branch changes nothing: it hears no more of the transaction.
        """

    def check(self, work: Work[T]) -> Vote:  # noqa: ARG002
        """Promise the same of the work that was done interactively for this branch. NO (by Refused:
        and why) and READ_ONLY let go of it: `rollback` is called at once."""
        return _YES

    @abc.abstractmethod
    def commit(self, work: Work[T]) -> None:
        """Make real what was promised. It must not fail; if it does, it is called again."""

    @abc.abstractmethod
    def rollback(self, work: Work[T]) -> None:
        """Take back what was promised. It must not fail; if it does, it is called again."""


class ResourceFailed(Exception):
    """A resource's function raised, or returned what is no vote."""


# --- what the functions return --------------------------------------------------------------------


def voted(ask: Callable[..., Vote], *arguments: Any) -> tuple[Vote, str | None]:
    """The resource's vote, and the reason for a NO."""
    try:
        vote = ask(*arguments)
    except Refused as refused:
        return Vote.NO, str(refused)[:MAX_REASON_CHARS] or "refused, no reason given"
    if vote == _YES:
        return _YES, None
    if vote == Vote.NO:
        return Vote.NO, "refused, no reason given"
    if vote == Vote.READ_ONLY:
        return Vote.READ_ONLY, None
    raise ResourceFailed(f"it returned {vote!r}; return a Vote, or raise Refused")


def require_plain(function: Callable[..., object]) -> None:
    if inspect.iscoroutinefunction(function):
        name = getattr(function, "__qualname__", function)
        raise TypeError(
            f"{name} is async; write it as a plain function, it runs inside the store's local "
            "transaction"
        )


def require_done(returned: object) -> None:
    """Raises ResourceFailed if a function was a generator or asynchronous: nobody runs what it
    returned, so nothing has been done. (Decorated, it did not look so at the start.)
    """
    if inspect.iscoroutine(returned):
        returned.close()
    if inspect.isawaitable(returned) or inspect.isgenerator(returned):
        raise ResourceFailed(f"it returned {returned!r}, which nobody runs; write it as a function")
