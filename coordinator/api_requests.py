"""What the API is asked and what it answers, whoever carries it.

Nothing here knows how a request came. `http_connection` carries them over HTTP; a test or a
simulation may hand them over as they are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from coordinator import api_fields
from coordinator.api_errors import ApiError, bad_field
from coordinator.ids import ID_RULE, is_valid_id

JSON = "application/json"
_JSON_TYPES = (JSON, "application/octet-stream")
"""Octet-stream is what some client libraries call bytes of which they know nothing."""

REQUEST_HEADER = "Assent-Request"
"""Names a request, in up to `MAX_REQUEST_NAME` characters that the client draws; its answer repeats
them. So the client notices an answer that something on the way gave to the wrong request."""

MAX_REQUEST_NAME = 64

encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class Request(NamedTuple):
    """A call. `path` and `query` are as they came, percent-encoded; `headers` finds a name in
    whatever case it is asked for. `address`: where it came from, as far as that is known.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""
    address: str = ""


class Answer(NamedTuple):
    """`headers` are those besides type and length of the body. `rests`: who asked is to be kept
    from asking again at once, for the node has more to do than it can.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = {}
    rests: bool = False


class Later(NamedTuple):
    """An answer to come: `made(future)`, once `future` is done, or cancelled. So no request that
    waits costs a task. Whoever needs the answer no more cancels the future.
    """

    future: asyncio.Future[Any]
    made: Callable[[asyncio.Future[Any]], Answer]

    async def come(self) -> Answer:
        """The answer, for a task that has to be there anyway."""
        try:
            await asyncio.wait((self.future,))
        finally:
            self.future.cancel()
        return self.made(self.future)


Answers = Callable[[Request, str], Answer | Later | Coroutine[Any, Any, Answer]]
"""Answers a request, at once or later; the second argument is the `{id}` of the path. What it
raises, or what makes the answer of a `Later`, `Api` shows as an error."""


class Endpoint(NamedTuple):
    """One call: `path` may have one `{id}`.

    `admit` raises what can be said without the body, before and again after the body is read;
    `body_bytes`: how much of a body is read, 0 for a call that has none.
    """

    method: str
    path: str
    answer: Answers
    admit: Callable[[Request, str], None] | None = None
    body_bytes: int = 0


def json_answer(status: int, value: Mapping[str, Any]) -> Answer:
    return text_answer(status, encode(value))


def text_answer(status: int, text: str) -> Answer:
    """`text` is JSON already, in ASCII."""
    return Answer(status, text.encode("ascii"))


def error_answer(error: ApiError) -> Answer:
    return Answer(error.status, encode(error.body()).encode("ascii"), JSON, error.headers)


def named(answer: Answer, name: str) -> Answer:
    """The answer with the name of its request, if that can be said again."""
    if len(name) > MAX_REQUEST_NAME or not (name.isascii() and name.isprintable()):
        return answer
    return answer._replace(headers={**answer.headers, REQUEST_HEADER: name})


def require_json(request: Request) -> None:
    """Refuses a body that says it is something else.

    `curl -d` calls every body a form, and some programs say nothing. Both are let pass, but not
    from a browser's page: no other site's page shall begin transactions through its visitor, and
    JSON is what a browser sends to another site only if that allows it, which is not said here.
    """
    kind = request.headers.get("Content-Type")
    if kind == JSON:
        return
    plain = None if kind is None else kind.split(";", 1)[0].strip().lower()
    if plain is not None and (plain in _JSON_TYPES or plain.endswith("+json")):
        return
    if plain in (None, "application/x-www-form-urlencoded") and not _is_from_page(request):
        return
    called = "nothing" if plain is None else plain[:100]
    raise ApiError(
        415,
        "unsupported_media_type",
        f"The body is called {called!r}; send JSON with Content-Type: application/json.",
    )


def refuse_browsers(request: Request) -> None:
    """For a GET that may change something: an image in another site's page is enough to send it.

    Browsers say where a request comes from only towards hosts that they trust, such as 127.0.0.1,
    or by TLS, and not to a page whose host's name leads to this node. But all of them, and hardly
    a program, say that they are some Mozilla and which languages are read, and no page keeps them
    from it.
    """
    says_mozilla = request.headers.get("User-Agent", "").startswith("Mozilla/")
    if _is_from_page(request) or (says_mozilla and "Accept-Language" in request.headers):
        what = "A browser may not ask this, for any page can make it ask; ask from a program."
        raise ApiError(403, "cross_site", what)


def _is_from_page(request: Request) -> bool:
    """Whether a browser says that a page asks: one of another site, or any that sends a body."""
    site = request.headers.get("Sec-Fetch-Site", "none")
    return "Origin" in request.headers or site not in ("none", "same-origin")


def read_query(request: Request, allowed: tuple[str, ...]) -> dict[str, str]:
    if not request.query:
        return {}
    return api_fields.read_query(parse_qsl(request.query, keep_blank_values=True), allowed)


def require_id(transaction_id: str) -> None:
    if not is_valid_id(transaction_id):
        raise bad_field("id", ID_RULE)
