"""How the API uses aiohttp: errors become answers in one place, bodies are read within limits.

The one middleware is `answer_errors`; with `error_answer` every error has the shape of
`api_errors`, and an unforeseen one is logged with its traceback and told without it. What is no
HTTP never gets as far as the middleware: `Runner` has it answered in the same shape.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from coordinator import api_fields
from coordinator.api_errors import ApiError, bad_field, refusal, too_large
from coordinator.errors import CoordinatorError
from coordinator.ids import is_valid_id

BODY_TIMEOUT_S = 30.0
"""For a whole body to arrive; a client that sends a byte a minute is not waited for longer."""

JSON_HEADERS = {"Content-Type": "application/json"}
_JSON_TYPES = ("application/json", "application/octet-stream")
"""Octet-stream is what some client libraries call bytes of which they know nothing."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Routes = tuple[tuple[str, str, Answer], ...]
"""(method, path, what answers) of each call."""

encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
LOG = logging.getLogger("assent.api")


@web.middleware
async def answer_errors(request: web.Request, handler: Answer) -> web.StreamResponse:
    """The one place where a failure becomes an answer."""
    try:
        return await handler(request)
    except ApiError as error:
        return error_answer(error)
    except CoordinatorError as error:
        return error_answer(refusal(error))
    except web.HTTPException as error:
        return error_answer(_of_aiohttp(request, error))
    except Exception:
        LOG.exception("%s %s failed; this is a defect", request.method, request.path)
        return error_answer(
            ApiError(500, "internal_error", "The node failed on this request; its log says how.")
        )


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> ApiError:
    match error:
        case web.HTTPNotFound():
            path = request.path[:200]
            return ApiError(
                404, "not_found", f"There is nothing at {path}; /openapi.json lists what is there."
            )
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return ApiError(
                405,
                "method_not_allowed",
                f"{request.path} takes {allowed}, not {request.method}.",
                headers={"Allow": allowed},
            )
    return ApiError(error.status, "bad_request", f"The request was refused: {error.reason}.")


class _Connection(web.RequestHandler):
    """aiohttp's end of a connection, but for what it answers on its own account.

    That is plain text, and a line of the log with a traceback, for bytes that are no HTTP: anybody
    who reaches the port could fill the log, and a client would have a second shape to read.
    """

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer has left already")
        if status == 400:
            LOG.debug("%s sent what is no HTTP: %r", request.remote, exc)
            first_line = (message or "it cannot be read").strip().split("\n", 1)[0].rstrip(": ")
            what = f"This is no HTTP request: {first_line[:200]}; the connection is closed."
            response = error_answer(ApiError(400, "bad_request", what))
        else:
            LOG.error("a request ended with %d; this is a defect", status, exc_info=exc)
            what = "The node failed on this request; its log says how."
            response = error_answer(ApiError(status, "internal_error", what))
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """A runner whose every answer has the API's shapes."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Answers `Expect: 100-continue`, which curl sends before large bodies."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        return error_answer(
            ApiError(417, "expectation_failed", "Expect: only 100-continue is understood.")
        )
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # aiohttp: what was written so far is no part of the answer
    return None


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes of it; raises ApiError."""
    announced = request.content_length
    if announced is not None and announced > limit:
        raise too_large("The body", announced, limit)
    try:
        if request.content.is_eof():  # it came with the head, as small ones do: nothing to wait for
            body = request.content.read_nowait()
        else:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large("The body", limit + 1, limit) from None
    except TimeoutError:
        what = f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s; send it again."
        raise ApiError(408, "body_timeout", what, headers={"Connection": "close"}) from None
    except (
        Exception
    ) as error:  # whatever aiohttp raises here, it is the client's body or connection
        LOG.debug("%s %s: body: %r", request.method, request.path, error)
        what = "The body broke off, or its encoding is damaged; send it again."
        raise ApiError(400, "unreadable_body", what) from None
    if len(body) > limit:
        raise too_large("The body", len(body), limit)
    return body


def require_json(request: web.Request) -> None:
    """Refuses a body that says it is something else.

    `curl -d` calls every body a form, so that is let pass, but not from a browser (which says where
    from): no other site's page shall begin transactions through its visitor.
    """
    kind = request.headers.get("Content-Type", "application/json").split(";", 1)[0].strip().lower()
    if kind in _JSON_TYPES or kind.endswith("+json"):
        return
    if kind == "application/x-www-form-urlencoded" and "Origin" not in request.headers:
        return
    raise ApiError(
        415,
        "unsupported_media_type",
        f"The body is called {kind[:100]!r}; send JSON with Content-Type: application/json.",
    )


def read_query(request: web.Request, allowed: tuple[str, ...]) -> dict[str, str]:
    return api_fields.read_query(request.query, allowed) if "?" in request.raw_path else {}


def id_of(request: web.Request) -> str:
    transaction_id = request.match_info["id"]
    if not is_valid_id(transaction_id):
        raise bad_field("id", api_fields.ID_RULE)
    return transaction_id


def json_answer(status: int, value: Mapping[str, Any]) -> web.Response:
    return text_answer(status, encode(value))


def text_answer(status: int, text: str) -> web.Response:
    """`text` is JSON already, in ASCII."""
    return web.Response(status=status, body=text.encode("ascii"), headers=JSON_HEADERS)


def error_answer(error: ApiError) -> web.Response:
    response = json_answer(error.status, error.body())
    response.headers.update(error.headers)
    return response
