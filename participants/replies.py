"""What a message is replied, and how that is told in a line for people."""

from __future__ import annotations

import logging

from participants.branch import Answer, Branch, State
from participants.contract import BadMessage
from participants.endpoints import Reply, error_body
from participants.messages import Prepare, Received
from participants.store import StoreError

log = logging.getLogger("assent.participant")

_DONE = Answer.DONE  # looked up once: Python 3.11 takes 90 ns to find a member of an enum

_ERRORS = {
    Answer.REFUSED: 409,
    Answer.UNKNOWN_BRANCH: 404,
    Answer.NOT_PREPARED: 409,
    Answer.ALREADY_COMMITTED: 409,
    Answer.ALREADY_ROLLED_BACK: 409,
}
_VOTED = {vote: Reply(200, {"vote": vote}, vote) for vote in (Answer.YES, Answer.READ_ONLY)}
_ENDED = {state: Reply(200, {"state": state}, state) for state in State}
"""Replies that say no more than a word: the same for all."""


def reply_to(
    message: Received,
    answer: Answer | None,
    before: Branch | None,
    after: Branch | None,
    reason: str | None,
) -> Reply:
    if answer is None or answer is _DONE:  # None: nobody waits for it
        return _ENDED[State.ABSENT if after is None else after.state]
    if answer in _VOTED:
        return _VOTED[answer]
    if answer is Answer.NO:
        return Reply(200, {"vote": answer, "reason": reason})
    state = State.ABSENT if before is None else before.state
    what = f"branch {message.branch_id} of {message.transaction_id} is {state}"
    text = f"{what}: {reason}" if reason else what
    return Reply(_ERRORS[answer], error_body(answer, text, state=state))


def failure_of(message: Received, error: Exception) -> Reply:
    what = _named(message)
    if isinstance(error, BadMessage):
        status, body = 400, error_body("bad_message", f"payload: {error}; nothing was changed")
    elif isinstance(error, StoreError):
        log.error("%s %s/%s: %s", what, message.transaction_id, message.branch_id, error)
        status, body = 503, error_body("store_unavailable", str(error))
    else:
        log.error(
            "%s %s/%s failed in the resource",
            what,
            message.transaction_id,
            message.branch_id,
            exc_info=error,
        )
        kept = "nothing was kept" if what == "prepare" else "the branch stays as it was"
        text = f"{what} failed in the resource, {kept}: {type(error).__name__}: {error}"
        status, body = 500, error_body("resource_failed", text[:500])
    return Reply(status, body)


def line_of(message: Received, reply: Reply) -> str:
    """A line for people. What a failure comes from has been logged before."""
    said = reply.word or reply.body.get("vote") or reply.body["error"]["code"]
    reason = reply.body.get("reason")
    line = f"{_named(message)} {message.transaction_id}/{message.branch_id}: {said}"
    return f"{line} ({reason})" if reason else line


def _named(message: Received) -> str:
    return "prepare" if isinstance(message, Prepare) else message.end
