"""The client without `await`: an asyncio client on an event loop in a thread of its own.

Its methods are made from the asyncio client's, so neither can do what the other does not. Any
number of threads may use one; each waits for its own calls. A process that was forked has the
client but not its thread, so there it says so instead of waiting for ever.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from cluster.client.async_client import TIMEOUT, Client

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def _blocking(
    method: Callable[Concatenate[Client, _Given], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[SyncClient, _Given], _Result]:
    """The same method of SyncClient, which waits for the result."""

    @functools.wraps(method)
    def call(self: SyncClient, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return self._wait_for(method(self._client, *args, **kwargs))

    return call


class SyncClient:
    """`Client` without `await`; see there. Close it, or use it as a context manager."""

    def __init__(self, nodes: str | Sequence[str], *, timeout: float = TIMEOUT) -> None:
        self._client = Client(nodes, timeout=timeout)
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closing = False  # what is handed to the loop once this is set might never be run
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="assent-client", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the calls of all threads, as `Client.close` does, and the thread. May be called
        twice, and does nothing in a process that was forked."""
        if os.getpid() != self._process:
            return
        with self._lock:
            first, self._closing = not self._closing, True
        if first:
            try:
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """Close the client; the calls under way have been told their end when this returns."""
        await self._client.close()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*calls, return_exceptions=True)

    submit = _blocking(Client.submit)
    submit_body = _blocking(Client.submit_body)
    submit_many = _blocking(Client.submit_many)
    get = _blocking(Client.get)
    list = _blocking(Client.list)
    decision = _blocking(Client.decision)
    resolve = _blocking(Client.resolve)
    retry = _blocking(Client.retry)
    cluster = _blocking(Client.cluster)
    transfer_leadership = _blocking(Client.transfer_leadership)

    @property
    def leader(self) -> str | None:
        return self._client.leader

    def _wait_for(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        if os.getpid() != self._process:  # before the lock: a thread may have held it at the fork
            work.close()
            raise RuntimeError("this client was made before the fork: make one in each process")
        with self._lock:
            if self._closing:
                work.close()
                raise RuntimeError("this client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the calling thread: the request is given up
            raise
