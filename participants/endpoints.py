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
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from participants.branch import End
from participants.contract import (
    DECLARATION_HEADER,
    BadMessage,
    Declaration,
    Operation,
    Prepare,
    read_end,
    read_prepare,
)

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
"""One message: the largest payload a coordinator takes (1 MiB), and ample room for the rest."""
MAX_BATCH_BYTES = 32 * 1024 * 1024
MAX_BATCH_MESSAGES = 10_000
BODY_TIMEOUT_S = 30.0
"""How long the sender may take to send a body that it has begun."""


@dataclass(frozen=True, slots=True)
class EndBranch:
    """A commit, a rollback, or the answer to an inquiry, for one branch."""

    transaction_id: str
    branch_id: str
    end: End


Received = Prepare | EndBranch


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP status and the JSON object of the body."""

    status: int
    body: dict[str, Any]


Receive = Callable[[Sequence[Received]], Awaitable[list[Reply]]]


def error_body(code: str, message: str, **details: Any) -> dict[str, Any]:
    """The one shape of an error."""
    return {"error": {"code": code, "message": message, "details": details}}


def protocol_application(receive: Receive, declaration: Declaration) -> web.Application:
    """The routes of a participant; `receive` carries messages out and replies in their order."""
    endpoints = _Endpoints(receive, declaration)
    application = web.Application(client_max_size=MAX_BATCH_BYTES)
    router = application.router
    router.add_post("/prepare", endpoints.prepare)
    router.add_post("/commit", endpoints.commit)
    router.add_post("/rollback", endpoints.rollback)
    for path in ("/prepare", "/commit", "/rollback"):
        router.add_route("*", path, endpoints.wrong_method)
    return application


class _Endpoints:
    def __init__(self, receive: Receive, declaration: Declaration) -> None:
        self._receive = receive
        self._headers = {
            DECLARATION_HEADER: declaration.header(),
            "Content-Type": "application/json",
        }

    async def prepare(self, request: web.Request) -> web.Response:
        return await self._one(request, Operation.PREPARE)

    async def commit(self, request: web.Request) -> web.Response:
        return await self._one(request, Operation.COMMIT)

    async def rollback(self, request: web.Request) -> web.Response:
        return await self._one(request, Operation.ROLLBACK)

    async def wrong_method(self, request: web.Request) -> web.Response:
        message = f"{request.method} {request.path} is not offered; use POST"
        return self._response(Reply(405, error_body("method_not_allowed", message)))

    async def _one(self, request: web.Request, operation: Operation) -> web.Response:
        body = await _read_body(request, MAX_MESSAGE_BYTES)
        received = body if isinstance(body, Reply) else _read_message(operation, body)
        if isinstance(received, Reply):
            return self._response(received)
        (reply,) = await self._receive((received,))
        return self._response(reply)

    def _response(self, reply: Reply) -> web.Response:
        response = web.Response(
            body=json.dumps(reply.body).encode("ascii"), status=reply.status, headers=self._headers
        )
        if reply.status == 503:
            response.headers["Retry-After"] = "1"
        return response


async def _read_body(request: web.Request, limit: int) -> bytes | Reply:
    """The whole body, or the reply that refuses it."""
    too_large = Reply(
        413, error_body("too_large", f"the body is larger than {limit} bytes", limit_bytes=limit)
    )
    if (request.content_length or 0) > limit:
        return too_large
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        return too_large
    except TimeoutError:
        message = f"the body did not come within {BODY_TIMEOUT_S:g} s; send it whole"
        return Reply(408, error_body("body_timeout", message))
    return too_large if len(body) > limit else body


def _read_message(operation: Operation, body: bytes) -> Received | Reply:
    try:
        return _message(operation, _decoded(body))
    except BadMessage as error:
        return _bad_message(error)


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"the body is not JSON: {error}") from None


def _message(operation: Operation, decoded: Any) -> Received:
    if operation is Operation.PREPARE:
        return read_prepare(decoded)
    transaction_id, branch_id = read_end(decoded)
    end = End.COMMIT if operation is Operation.COMMIT else End.ROLLBACK
    return EndBranch(transaction_id, branch_id, end)


def _bad_message(error: BadMessage) -> Reply:
    return Reply(400, error_body("bad_message", f"{error}; nothing was changed"))
