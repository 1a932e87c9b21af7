"""The coordinator's messages as a participant reads them, out of decoded JSON. Pure.

Everything that is not as it must be is a BadMessage that names the field. Fields that are not known
are let be: a newer coordinator may send more.
"""

from __future__ import annotations

import functools
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from participants.branch import End
from participants.contract import BadMessage, Operation, read_traceparent


class Prepare(NamedTuple):
    """A prepare as a participant reads it. `expires_at`: RFC 3339; `payload`: any JSON value.

    `interactive`: the branch has done its work already, and is to vote on that.
    """

    transaction_id: str
    branch_id: str
    payload: Any
    fingerprint: str
    expires_at: str
    coordinators: tuple[str, ...]
    traceparent: str | None = None
    interactive: bool = False


class EndBranch(NamedTuple):
    """A commit, a rollback, or the answer to an inquiry, for one branch."""

    transaction_id: str
    branch_id: str
    end: End
    traceparent: str | None = None


Received = Prepare | EndBranch


def read_message(operation: str, message: Any, traceparent: object = None) -> Received:
    """A message of `/prepare`, `/commit` or `/rollback` out of decoded JSON; raises BadMessage.

    `traceparent`: as it came beside the message; one that is none is ignored.
    """
    traced = None if traceparent is None else read_traceparent(traceparent)
    end = _ENDS[operation]
    if end is None:
        prepare = read_prepare(message)
        return prepare if traced is None else prepare._replace(traceparent=traced)
    transaction_id, branch_id = read_end(message)
    return EndBranch(transaction_id, branch_id, end, traced)


_ENDS = {
    Operation.PREPARE.value: None,
    Operation.COMMIT.value: End.COMMIT,
    Operation.ROLLBACK.value: End.ROLLBACK,
}


def read_batch(message: Any) -> list[Any]:
    """The messages of a batch call in decoded JSON, each yet to be read; raises BadMessage."""
    messages = _fields(message).get("messages")
    if not isinstance(messages, list):
        raise BadMessage("messages: must be a list")
    return messages


def read_batch_message(message: Any) -> Received:
    """One message of a batch, which says itself which operation it is; raises BadMessage."""
    fields = _fields(message)
    operation = fields.get("operation")
    if not isinstance(operation, str) or operation not in _ENDS:
        raise BadMessage("operation: must be prepare, commit or rollback")
    return read_message(operation, message, fields.get("traceparent"))


def read_prepare(message: Any) -> Prepare:
    """A prepare out of decoded JSON; raises BadMessage naming the field."""
    fields = _fields(message)
    transaction_id, branch_id, fingerprint, expires_at = _texts(fields, *_PREPARE_TEXTS)
    try:
        read_time_ms(expires_at)
    except BadMessage as error:
        raise BadMessage(f"expires_at: {error}") from None
    coordinators = fields.get("coordinators", [])
    if not isinstance(coordinators, list) or not _STR.issuperset(map(type, coordinators)):
        raise BadMessage("coordinators: must be a list of URLs")
    payload = fields.get("payload")
    interactive = fields.get("interactive", False)
    if interactive is not True and interactive is not False:
        raise BadMessage("interactive: must be true or false")
    named = tuple(coordinators)
    return Prepare(
        transaction_id, branch_id, payload, fingerprint, expires_at, named, None, interactive
    )


_PREPARE_TEXTS = ("transaction_id", "branch_id", "fingerprint", "expires_at")
_STR = frozenset((str,))


def read_end(message: Any) -> tuple[str, str]:
    """(transaction id, branch id) of a commit or rollback in decoded JSON; raises BadMessage."""
    transaction_id, branch_id = _texts(_fields(message), "transaction_id", "branch_id")
    return transaction_id, branch_id


def read_transaction_id(value: object) -> str:
    """The id of a transaction, as the coordinator takes it; raises BadMessage."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise BadMessage("must be 1 to 64 characters of A-Z a-z 0-9 . _ : -, and not . or ..")
    return value


_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._:-]{1,64}")


def decode_payload(encoded: bytes) -> Any:
    """The payload that `encode_json` made into `encoded`, made anew at each call."""
    value, _ = _DECODER.raw_decode(encoded.decode("ascii"))
    return value


_DECODER = json.JSONDecoder()


def _fields(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadMessage("the body must be a JSON object")
    return message


def _texts(fields: dict[str, Any], *names: str) -> list[str]:
    values = []
    for name in names:
        value = fields.get(name)
        if not isinstance(value, str) or not 1 <= len(value) <= 256:
            raise BadMessage(f"{name}: must be a string of 1 to 256 characters")
        if not value.isprintable():  # that cannot always be stored (lone surrogates)
            raise BadMessage(f"{name}: must hold printable characters only")
        values.append(value)
    return values


@functools.lru_cache(maxsize=256)
def read_time_ms(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time; raises BadMessage.

    Remembered: a message's time is read when it is checked and again when it is used.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise BadMessage(f"{text[:40]!r} is not a time as RFC 3339 has it")
    return (time - _EPOCH) // _MILLISECOND


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
