"""The API over HTTP: where it listens, and how it stops. A connection is `http_connection`."""

from __future__ import annotations

import asyncio
import functools
import resource
from typing import Any

from coordinator import courier
from coordinator.api import Api
from coordinator.api_connection import Common
from coordinator.http_connection import HttpConnection

BACKLOG = 1_024
"""Connections that wait to be taken: when the leader changes, all clients come to the next at once,
and one that finds no room here tries again only after a second."""

KEPT_FILES = 128
"""Files that clients leave to the log, to the other nodes, and to strangers at the Raft port."""

_MANY_CONNECTIONS = 65_536
"""Where the system sets no limit of open files."""


def most_clients() -> int:
    """How many clients may be connected: of the files that this process may have open all but those
    for participants (`courier.most_connections`) and `KEPT_FILES`, where there are few the half."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return _MANY_CONNECTIONS
    left = files - courier.most_connections()
    return max(1, left // 2, left - KEPT_FILES)


class Server:
    """Serves `api` wherever it is told to listen.

    `shutdown_timeout_s`: how long the requests that are under way when it stops may still take.
    """

    def __init__(self, api: Api, *, shutdown_timeout_s: float) -> None:
        self._common = Common(api, most=most_clients())
        self._shutdown_timeout_s = shutdown_timeout_s
        self._listening: list[asyncio.AbstractServer] = []

    async def listen(self, host: str, port: int) -> int:
        """Take connections there, at any free port if `port` is 0; the port. Raises OSError."""
        connection = functools.partial(HttpConnection, self._common)
        loop = asyncio.get_running_loop()
        listening: Any = await loop.create_server(connection, host, port, backlog=BACKLOG)
        self._listening.append(listening)
        _, bound = listening.sockets[0].getsockname()[:2]
        return int(bound)

    async def stop(self) -> None:
        """No new connections; idle ones are closed at once, the others after their answer."""
        self._common.is_stopping = True
        for listening in self._listening:
            listening.close()
        for _ in range(2):  # a turn in which the loop finds what has arrived, and one that reads it
            await asyncio.sleep(0)
        connections = self._common.connections
        ends = [connection.end() for connection in list(connections)]
        if ends:
            await asyncio.wait(ends, timeout=self._shutdown_timeout_s)
        for connection in list(connections):
            connection.abort()
        if ends:
            await asyncio.wait(ends, timeout=self._shutdown_timeout_s)
        self._common.bell.silence()
