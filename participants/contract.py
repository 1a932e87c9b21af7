"""What the coordinator and a participant say to each other: the shapes of the messages. Pure.

A participant offers three calls, JSON in and out (`POST {url}/prepare`, `/commit`, `/rollback`).
One built on this package offers more, and declares it in the header `Assent-Participant` of every
answer: repeatable prepare, inquiry, and the path of a call that carries many messages at once.

Both sides import this file, so neither can drift from the other. Nothing here does IO.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from participants import canonical
from participants.retry_after import retry_after_s

DECLARATION_HEADER = "Assent-Participant"
TRANSACTION_HEADER = "Assent-Transaction-Id"
"""A client tells it to each service that it calls in an interactive transaction."""
CONTRACT_VERSION = 1
PROXY_STATUSES = (502, 503, 504)
"""What a proxy answers in place of the participant, perhaps while the call goes on behind it."""

MAX_RETRY_AFTER_S = 3_600
"""As long as any transaction may last."""

MAX_REASON_CHARS = 500
"""A participant's reason is kept in the replicated record; longer ones are cut."""


class Decision(enum.StrEnum):
    """What a participant in doubt is answered."""

    COMMIT = "commit"
    ABORT = "abort"
    PENDING = "pending"


class Vote(enum.StrEnum):
    """What is known of a branch's promise. A participant says the first three.

    UNSENT and UNKNOWN are the coordinator's words for a vote that it does not have: no prepare was
    ever sent, or one was sent (perhaps) and its answer never heard.
    """

    YES = "yes"
    NO = "no"
    READ_ONLY = "read_only"
    UNSENT = "unsent"
    UNKNOWN = "unknown"


class Operation(enum.StrEnum):
    """The three calls."""

    PREPARE = "prepare"
    COMMIT = "commit"
    ROLLBACK = "rollback"


BranchKey = tuple[str, str]
"""A transaction's id and a branch's id."""


class BadMessage(ValueError):
    """A message that does not have the shape it must have; the text says what is wrong."""


# --- the declaration ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a participant says of itself. The default is a plain one: none of this.

    `batch_path`: the whole path of its batch call, on the scheme, host and port that answered.
    """

    repeatable_prepare: bool = False
    inquiry: bool = False
    batch_path: str | None = None

    @property
    def is_plain(self) -> bool:
        return not (self.repeatable_prepare and self.inquiry)

    def header(self) -> str:
        """The value of `Assent-Participant`, for example `1; repeatable-prepare; inquiry`."""
        words = [str(CONTRACT_VERSION)]
        if self.repeatable_prepare:
            words.append("repeatable-prepare")
        if self.inquiry:
            words.append("inquiry")
        if self.batch_path is not None:
            words.append(f"batch={self.batch_path}")
        return "; ".join(words)


PLAIN = Declaration()


_BATCH = re.compile(r"batch=/[!-~]*")


def read_declaration(header: str | None) -> Declaration:
    """The declaration in a header's value; PLAIN if there is none, or none that is understood. A
    batch path that could not stand in a request line is ignored."""
    if not header:
        return PLAIN
    version, *words = (word.strip() for word in header.split(";"))
    if version != str(CONTRACT_VERSION):
        return PLAIN
    batch = [word.removeprefix("batch=") for word in words if _BATCH.fullmatch(word)]
    return Declaration(
        "repeatable-prepare" in words, "inquiry" in words, batch[0] if batch else None
    )


# --- the coordinator's messages -----------------------------------------------------------------


def encode_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, ASCII only: the one form that is stored and digested.

    Raises BadMessage on what JSON cannot say (NaN, infinities).
    """
    try:
        return canonical.encode(value).encode("ascii")
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not JSON: {error}") from None


def prepare_body(
    transaction_id: str,
    branch_id: str,
    payload: bytes,
    fingerprint: str,
    expires_at: str,
    coordinators: bytes,
    interactive: bool = False,
) -> bytes:
    """The body of a prepare. `payload` and `coordinators` (a list of URLs) are JSON already."""
    before = f'{{"transaction_id":"{transaction_id}","branch_id":"{branch_id}","payload":'
    after = f',"fingerprint":"{fingerprint}","expires_at":"{expires_at}","coordinators":'
    end = b',"interactive":true}' if interactive else b"}"
    return b"".join((before.encode("ascii"), payload, after.encode("ascii"), coordinators, end))


@functools.lru_cache(maxsize=1024)
def rfc3339(unix_ms: int) -> str:
    """A time as the contract writes it: RFC 3339, UTC, milliseconds.

    Remembered: a deadline is written for every branch, and many transactions share a millisecond.
    """
    return f"{_to_the_second(unix_ms // 1000)}.{unix_ms % 1000:03d}Z"


@functools.lru_cache(maxsize=64)
def _to_the_second(unix_s: int) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%S}"


def end_body(transaction_id: str, branch_id: str) -> bytes:
    """The body of a commit or a rollback. Both ids hold nothing that JSON would have to escape."""
    return f'{{"transaction_id":"{transaction_id}","branch_id":"{branch_id}"}}'.encode("ascii")


def read_traceparent(value: object) -> str | None:
    """A W3C `traceparent` to carry along; one that is malformed is ignored, as the W3C asks."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


# --- a participant's answers --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Voted:
    """The participant has voted; `vote` is YES, NO or READ_ONLY."""

    vote: Vote
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Working:
    """It is still working: ask again, after `retry_after_ms` if it said so."""

    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The branch has finished its outcome."""


@dataclass(frozen=True, slots=True)
class Failed:
    """No usable answer.

    `arrived`: whether the message may have reached the participant. False only where it surely
    never left (the connection was refused). `broken`: the connection ended without an answer.
    `answered`: the participant itself gave an answer, if a useless one, so the message is no longer
    under way.
    """

    what: str
    arrived: bool = True
    broken: bool = False
    answered: bool = False


PrepareAnswer = Voted | Working | Failed
EndAnswer = Acknowledged | Failed

_ACKNOWLEDGED = Acknowledged()
_WORKING = Working()
_SAID = {
    "yes": Voted(Vote.YES),
    "no": Voted(Vote.NO, "no reason given"),
    "read_only": Voted(Vote.READ_ONLY),
}
"""What a vote without a reason means: the same for all."""


def read_prepare_answer(
    status: int, body: bytes, branch: BranchKey, headers: Mapping[str, str] | None = None
) -> PrepareAnswer:
    """What an HTTP answer to a prepare means. `headers`: as `retry_after_s` wants them."""
    answer = _prepare_answer(status, _decoded(body), body, branch)
    if answer is not _WORKING or not headers:
        return answer
    seconds = retry_after_s(headers)
    return answer if seconds is None else Working(int(min(seconds, MAX_RETRY_AFTER_S) * 1000))


def _prepare_answer(status: int, answer: Any, body: bytes, branch: BranchKey) -> PrepareAnswer:
    stranger = _for_another(answer, branch)
    if stranger is not None:
        return stranger
    if status in (202, 425):
        return _WORKING
    if status == 409:
        return Voted(Vote.NO, _reason(answer) or "the participant answered 409")
    if status != 200:
        own = status not in PROXY_STATUSES
        return Failed(f"answered {status}: {_excerpt(answer, body)}", answered=own)
    if answer is True:
        return _SAID["yes"]
    if answer is False:
        return Voted(Vote.NO, "the participant answered false")
    said = answer.get("vote") if isinstance(answer, dict) else None
    if isinstance(said, str) and said in _SAID:
        reason = _reason(answer)
        return _SAID[said] if reason is None else Voted(_SAID[said].vote, reason)
    return Failed(f"answered 200 without a vote: {_excerpt(answer, body)}", answered=True)


def read_end_answer(
    operation: Operation, status: int, body: bytes, branch: BranchKey, *, declared: bool = False
) -> EndAnswer:
    """What an HTTP answer to a commit or a rollback means: any 2xx acknowledges.

    `declared`: it came with a declaration. Such a participant may be sent batches, and what answers
    a batch (late, a second time) is no answer to this.
    """
    answer = _decoded(body)
    if declared and isinstance(answer, dict) and "answers" in answer:
        return Failed(f"answered {operation} as if it were a batch: {_beginning(body)}")
    return _end_answer(operation, status, answer, body, branch)


def _end_answer(
    operation: Operation, status: int, answer: Any, body: bytes, branch: BranchKey
) -> EndAnswer:
    stranger = _for_another(answer, branch)
    if stranger is not None:
        return stranger
    if 200 <= status < 300:
        return _ACKNOWLEDGED
    if status == 404 and operation is Operation.ROLLBACK:
        return _ACKNOWLEDGED  # nothing was prepared here
    return Failed(f"answered {status}: {_excerpt(answer, body)}")


def _decoded(body: bytes) -> Any:
    """None for what is no JSON. The value may be shared, and is never changed."""
    return _decoded_once(body) if len(body) <= _SHORT_BYTES else _json(body)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


_decoded_once = functools.lru_cache(maxsize=256)(_json)
_SHORT_BYTES = 64  # plain participants answer all with the same few words


def _for_another(answer: Any, branch: BranchKey) -> Failed | None:
    """Why the answer is another branch's, if it says so; None: it is this one's, or says nothing.

    An answer that names no transaction may mean anything by "branch_id".
    """
    if not isinstance(answer, dict) or "transaction_id" not in answer:
        return None
    transaction_id, branch_id = branch
    if answer["transaction_id"] != transaction_id:
        return Failed(f"answered for another transaction: {str(answer['transaction_id'])[:80]!r}")
    if answer.get("branch_id", branch_id) != branch_id:
        return Failed(f"answered for another branch: {str(answer['branch_id'])[:80]!r}")
    return None


def _reason(answer: Any) -> str | None:
    """The participant's reason, fit to be kept: text that UTF-8 can carry, cut to its limit."""
    reason = answer.get("reason") if isinstance(answer, dict) else None
    if not isinstance(reason, str) or not reason:
        return None
    return reason[:MAX_REASON_CHARS].encode("utf-8", "replace").decode("utf-8")


def _excerpt(answer: Any, body: bytes) -> str:
    """What was said, for people: the SDK's words for an error, else how the body begins (of an
    element of a batch there is none)."""
    error = answer.get("error") if isinstance(answer, dict) else None
    words = error.get("message") if isinstance(error, dict) else None
    if isinstance(words, str) and words:
        return repr(words[:240].encode("utf-8", "replace").decode("utf-8"))
    return _beginning(body)


def _beginning(body: bytes) -> str:
    text = body[:120].decode("utf-8", "replace")
    return repr(text) if text else "an empty body"


# --- a batch call: independent messages, independent answers ------------------------------------


def batch_body(messages: Iterable[tuple[Operation, bytes, str | None]]) -> bytes:
    """The body of a batch call.

    Each message is a body as `prepare_body` or `end_body` gives it, with its operation, and with
    what would be its header `traceparent` (W3C) if it came alone; None: nothing.
    """
    parts = [
        _OPENINGS[operation] + (_traced(traceparent) if traceparent else b"") + body[1:]
        for operation, body, traceparent in messages
    ]
    return b'{"messages":[%s]}' % b",".join(parts)


def _traced(traceparent: str) -> bytes:
    return b'"traceparent":"%s",' % traceparent.encode("ascii")


_OPENINGS = {each: b'{"operation":"%s",' % each.value.encode("ascii") for each in Operation}


def read_batch_answers(
    status: int, body: bytes, messages: Sequence[tuple[Operation, str, str]]
) -> list[PrepareAnswer | EndAnswer] | Failed:
    """What the answer to a batch call means to each message (operation, transaction id, branch id).

    Each message has its answer in `{"answers": [...]}`, in the order of the messages. It is an
    object `{"status", "body"}`, as if the message had come alone; or, for what is usual, a text:
    `yes`, `read_only`, `committed` or `rolled_back`, a space, and `TRANSACTION_ID/BRANCH_ID`, so
    that an answer meant for another message is known. Failed: the whole was refused, or answered
    with something else than an answer for each.
    """
    decoded = _decoded(body) if status == 200 else None
    answers = decoded.get("answers") if isinstance(decoded, dict) else None
    if not isinstance(answers, list) or len(answers) != len(messages):
        return Failed(f"answered a batch with {status}: {_beginning(body)}")
    return [
        _batch_answer(answer, *message) for answer, message in zip(answers, messages, strict=True)
    ]


_WORDS: dict[Operation, dict[str, PrepareAnswer | EndAnswer]] = {
    Operation.PREPARE: {"yes": _SAID["yes"], "read_only": _SAID["read_only"]},
    Operation.COMMIT: {"committed": _ACKNOWLEDGED},
    Operation.ROLLBACK: {"rolled_back": _ACKNOWLEDGED},
}
"""What a word means in answer to each operation."""


def _batch_answer(
    answer: Any, operation: Operation, transaction_id: str, branch_id: str
) -> PrepareAnswer | EndAnswer:
    if isinstance(answer, str):
        word, _, branch = answer.partition(" ")
        meant = _WORDS[operation].get(word)
        if meant is None or branch != f"{transaction_id}/{branch_id}":
            return Failed(f"answered {operation} in a batch with {answer[:160]!r}")
        return meant
    status = answer.get("status") if isinstance(answer, dict) else None
    body = answer.get("body") if isinstance(answer, dict) else None
    if type(status) is not int:
        return Failed("answered a message of a batch without a status")
    if isinstance(body, dict) and body.get("branch_id", branch_id) != branch_id:
        return Failed(f"answered for another branch: {str(body['branch_id'])[:80]!r}")
    if operation is not Operation.PREPARE:
        return _end_answer(operation, status, body, b"", (transaction_id, branch_id))
    return _prepare_answer(status, body, b"", (transaction_id, branch_id))


# --- the fingerprint ----------------------------------------------------------------------------


def fingerprint(
    mode: str, participants: Iterable[tuple[str, str, str, str, bytes]], transaction_id: str = ""
) -> str:
    """A digest of what was asked: SHA-256, hexadecimal, of mode and participants in their order.

    A participant is (name, prepare URL, commit URL, rollback URL, payload as `encode_json` gives
    it). Times, metadata and what the client waits for are not part of it: asking again with another
    timeout is the same transaction (PROTOCOL, section 2). Of an interactive one, whose participants
    come later, it is of mode and id.
    """
    parts = [encode_json((mode, transaction_id)) if transaction_id else _encoded_once(mode)]
    for name, prepare_url, commit_url, rollback_url, payload in participants:
        parts.append(_encoded_once(name, prepare_url, commit_url, rollback_url, len(payload)))
        parts.append(payload)
    return hashlib.sha256(b"".join(parts)).hexdigest()


@functools.lru_cache(maxsize=1024)
def _encoded_once(*values: str | int) -> bytes:
    """Remembered: transactions differ in their payloads, seldom in their participants."""
    return encode_json(values)
