"""A client of the cluster with nothing but the standard library's HTTP, for tests.

It knows what any HTTP client knows: to follow a 307 with the same method and body, and to ask again
with the same id, perhaps somewhere else, when it had no answer.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    headers: dict[str, str]
    body: Any
    hops: int


class Connection:
    """A connection to one node that is kept open. Every call waits for its answer."""

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)

    def ask(self, method: str, path: str, body: Any = None) -> HttpAnswer:
        """One request, one answer; follows nothing. Raises OSError."""
        self.send(method, path, body)
        return self.answer()

    def send(self, method: str, path: str, body: Any = None) -> None:
        """The request; whether or not anybody reads it."""
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, content, {"Content-Type": "application/json"})

    def answer(self) -> HttpAnswer:
        """The answer to what was sent. Header names in lower case."""
        try:
            response = self._connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            text = response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        return HttpAnswer(response.status, headers, json.loads(text) if text else None, 0)

    def close(self) -> None:
        self._connection.close()


def http_once(method: str, url: str, body: Any = None, timeout: float = 30.0) -> HttpAnswer:
    """`Connection.ask` over a connection of its own."""
    parts = urlsplit(url)
    with contextlib.closing(Connection(url, timeout)) as connection:
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return connection.ask(method, path, body)


def http_follow(method: str, url: str, body: Any = None, timeout: float = 30.0) -> HttpAnswer:
    """Like `http_once`, and follows 307 with the same method and body."""
    for hops in range(5):
        answer = http_once(method, url, body, timeout)
        if answer.status != 307:
            return HttpAnswer(answer.status, answer.headers, answer.body, hops)
        url = answer.headers["location"]
    raise AssertionError(f"redirected in a circle, at last to {url}")


def http_submit(urls: Sequence[str], body: dict[str, Any]) -> HttpAnswer:
    """POST a transaction to the first of `urls`; on no answer or a 5xx to the next, until told.

    What a careful client does that knows nothing but HTTP: the same id again, until it is told.
    """
    until = time.monotonic() + PATIENCE_S
    for url in itertools.cycle(urls):
        with contextlib.suppress(OSError):
            answer = http_follow("POST", f"{url}/v1/transactions", body)
            if answer.status < 500:
                return answer
        assert time.monotonic() < until, f"{body.get('id')} was never answered"
        time.sleep(0.03)
    raise AssertionError("no node was named")
