"""The HTTP of a participant built on this package: bodies in, messages through, answers out.

Rules:
- Every answer carries the declaration, and the ids of the branch where they could be read.
- What is wrong with a request is said in the one error shape, `{"error": {"code", "message",
  "details"}}`, before anything is carried out.
- This file knows HTTP and JSON; what a message does is the business of `sdk.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from aiohttp import web

from participants.contract import DECLARATION_HEADER, BadMessage, Declaration, Operation
from participants.messages import Received, read_batch, read_batch_message, read_message
from participants.streams import read_within

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""One message: the largest payload a coordinator takes (1 MiB), and ample room for the rest."""
MAX_BATCH_BYTES = 32 * 1024 * 1024
MAX_BATCH_MESSAGES = 10_000
MAX_PREFIXES = 16
"""Prefixes whose headers are kept made; there is one, unless somebody plays with the spelling."""
BODY_TIMEOUT_S = 30.0
"""How long the sender may take to send a body that it has begun."""


class Reply(NamedTuple):
    """An HTTP status and the JSON object of the body, but for the branch's ids.

    `word`: what says as much in a batch. A reply may be shared, and is never changed.
    """

    status: int
    body: dict[str, Any]
    word: str | None = None


Receive = Callable[[Sequence[Received]], Awaitable[list[Reply]]]


def error_body(code: str, message: str, **details: Any) -> dict[str, Any]:
    """The one shape of an error."""
    return {"error": {"code": code, "message": message, "details": details}}


def protocol_application(
    receive: Receive, declaration: Declaration, *, batches: bool
) -> web.Application:
    """The routes of a participant; `receive` carries messages out and replies in their order."""
    endpoints = _Endpoints(receive, declaration, batches)
    application = web.Application()
    router = application.router
    router.add_post("/prepare", endpoints.prepare)
    router.add_post("/commit", endpoints.commit)
    router.add_post("/rollback", endpoints.rollback)
    paths = ["/prepare", "/commit", "/rollback"]
    if batches:
        router.add_post("/batch", endpoints.batch)
        paths.append("/batch")
    for path in paths:
        router.add_route("*", path, endpoints.wrong_method)
    return application


class _Endpoints:
    def __init__(self, receive: Receive, declaration: Declaration, batches: bool) -> None:
        self._receive = receive
        self._batches = batches
        self._declaration = declaration
        self._headers: dict[str, dict[str, str]] = {}  # by the prefix that it is mounted under

    async def prepare(self, request: web.Request) -> web.Response:
        return await self._one(request, Operation.PREPARE)

    async def commit(self, request: web.Request) -> web.Response:
        return await self._one(request, Operation.COMMIT)

    async def rollback(self, request: web.Request) -> web.Response:
        return await self._one(request, Operation.ROLLBACK)

    async def wrong_method(self, request: web.Request) -> web.Response:
        message = f"{request.method} {request.path} is not offered; use POST"
        return self._response(request, Reply(405, error_body("method_not_allowed", message)))

    async def batch(self, request: web.Request) -> web.Response:
        """Independent messages with independent answers in their order; one sync for them all."""
        body = await _read_body(request, MAX_BATCH_BYTES)
        received = body if isinstance(body, Reply) else _read_batch(body)
        if isinstance(received, Reply):
            return self._response(request, received)
        good = [message for message in received if not isinstance(message, Reply)]
        replies = await self._receive(good)
        if len(good) < len(received):
            rest = iter(replies)
            replies = [one if isinstance(one, Reply) else next(rest) for one in received]
        answers = list(map(_shown, received, replies))
        return self._response(request, Reply(200, {"answers": answers}))

    async def _one(self, request: web.Request, operation: Operation) -> web.Response:
        body = await _read_body(request, MAX_MESSAGE_BYTES)
        traceparent = request.headers.get("traceparent")
        received = body if isinstance(body, Reply) else _read_message(operation, body, traceparent)
        if isinstance(received, Reply):
            return self._response(request, received)
        (reply,) = await self._receive((received,))
        return self._response(request, reply._replace(body=_with_ids(received, reply)))

    def _response(self, request: web.Request, reply: Reply) -> web.Response:
        prefix = request.rel_url.raw_path.rpartition("/")[0]
        response = web.Response(
            body=json.dumps(reply.body).encode("ascii"),
            status=reply.status,
            headers=self._headers.get(prefix) or self._make_headers(prefix),
        )
        if reply.status == 503:
            response.headers["Retry-After"] = "1"
        return response

    def _make_headers(self, prefix: str) -> dict[str, str]:
        declaration = self._declaration
        if self._batches and ";" not in prefix:  # which the declaration could not carry
            declaration = replace(declaration, batch_path=f"{prefix}/batch")
        headers = {
            DECLARATION_HEADER: declaration.header(),
            "Content-Type": "application/json",
        }
        if len(self._headers) < MAX_PREFIXES:
            self._headers[prefix] = headers
        return headers


async def _read_body(request: web.Request, limit: int) -> bytes | Reply:
    """The whole body, or the reply that refuses it."""
    too_large = Reply(
        413, error_body("too_large", f"the body is larger than {limit} bytes", limit_bytes=limit)
    )
    if (request.content_length or 0) > limit:
        return too_large
    content = request.content
    if content.at_eof():  # there is none, or somebody before us has read it
        return await request.read()
    # Not `request.read()`: its limit is that of the application which this one is mounted in.
    try:
        if content.is_eof():  # it came with the head, as small ones do: nothing to wait for
            body = content.read_nowait()
            return too_large if len(body) > limit else body
        async with asyncio.timeout(BODY_TIMEOUT_S):
            whole = await read_within(content, limit)
        return too_large if whole is None else whole
    except TimeoutError:
        message = f"the body did not come within {BODY_TIMEOUT_S:g} s; send it whole"
        return Reply(408, error_body("body_timeout", message))
    except (OSError, web.RequestPayloadError):  # its sender was killed, for example
        return _bad_message(BadMessage("the body broke off, or its encoding is damaged"))


def _read_message(operation: Operation, body: bytes, traceparent: str | None) -> Received | Reply:
    try:
        return read_message(operation, _decoded(body), traceparent)
    except BadMessage as error:
        return _bad_message(error)


def _read_batch(body: bytes) -> list[Received | Reply] | Reply:
    """Each message, or the reply that refuses it; or the reply that refuses the whole."""
    try:
        messages = read_batch(_decoded(body))
    except BadMessage as error:
        return _bad_message(error)
    if len(messages) > MAX_BATCH_MESSAGES:
        most = MAX_BATCH_MESSAGES
        return Reply(413, error_body("too_large", f"more than {most} messages", limit=most))
    return [_read_batch_message(message) for message in messages]


def _shown(received: Received | Reply, reply: Reply) -> Any:
    """The reply to one message of a batch, as `read_batch_answers` reads it."""
    if isinstance(received, Reply):
        return {"status": reply.status, "body": reply.body}
    if reply.word is None:
        return {"status": reply.status, "body": _with_ids(received, reply)}
    return f"{reply.word} {received.transaction_id}/{received.branch_id}"


def _with_ids(received: Received, reply: Reply) -> dict[str, Any]:
    ids = {"transaction_id": received.transaction_id, "branch_id": received.branch_id}
    return ids | reply.body


def _read_batch_message(message: Any) -> Received | Reply:
    try:
        return read_batch_message(message)
    except BadMessage as error:
        return _bad_message(error)


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"the body is not JSON: {error}") from None


def _bad_message(error: BadMessage) -> Reply:
    return Reply(400, error_body("bad_message", f"{error}; nothing was changed"))
