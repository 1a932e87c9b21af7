"""The client without `await`: an asyncio client on an event loop in a thread of its own.

Its methods are made from the asyncio client's, so neither can do what the other does not; likewise
those of an interactive transaction. Any number of threads may use one; each waits for its own
calls. A process that was forked has the client but not its thread, so there it says so instead of
waiting for ever.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from cluster.client.answers import Transaction
from cluster.client.async_client import TIMEOUT, Client
from cluster.client.interactive import InteractiveTransaction, not_rolled_back

_Twin = TypeVar("_Twin")
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class _Blocking(Generic[_Twin]):
    """What does without `await` what its twin does with it."""

    _twin: _Twin

    def _wait_for(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        raise NotImplementedError


def _blocking(
    method: Callable[Concatenate[_Twin, _Given], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Blocking[_Twin], _Given], _Result]:
    """The same method, which waits for the result."""

    @functools.wraps(method)
    def call(self: _Blocking[_Twin], /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        return self._wait_for(method(self._twin, *args, **kwargs))

    return call


def _beginning(
    method: Callable[Concatenate[Client, _Given], Coroutine[Any, Any, InteractiveTransaction]],
) -> Callable[Concatenate[SyncClient, _Given], SyncInteractiveTransaction]:
    """The same method, which waits for the twin of what it begins."""

    @functools.wraps(method)
    def call(
        self: SyncClient, /, *args: _Given.args, **kwargs: _Given.kwargs
    ) -> SyncInteractiveTransaction:
        return SyncInteractiveTransaction(self, self._wait_for(method(self._twin, *args, **kwargs)))

    return call


class SyncClient(_Blocking[Client]):
    """`Client` without `await`; see there. Close it, or use it as a context manager."""

    def __init__(self, nodes: str | Sequence[str], *, timeout: float = TIMEOUT) -> None:
        self._twin = Client(nodes, timeout=timeout)
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
        await self._twin.close()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*calls, return_exceptions=True)

    submit = _blocking(Client.submit)
    submit_body = _blocking(Client.submit_body)
    submit_many = _blocking(Client.submit_many)
    begin = _beginning(Client.begin)
    transaction = begin
    """For `with client.transaction() as order`: it begins at once."""
    get = _blocking(Client.get)
    list = _blocking(Client.list)
    decision = _blocking(Client.decision)
    resolve = _blocking(Client.resolve)
    retry = _blocking(Client.retry)
    cluster = _blocking(Client.cluster)
    transfer_leadership = _blocking(Client.transfer_leadership)

    @property
    def leader(self) -> str | None:
        return self._twin.leader

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


class SyncInteractiveTransaction(_Blocking[InteractiveTransaction]):
    """`InteractiveTransaction` without `await`; see there."""

    def __init__(self, client: SyncClient, twin: InteractiveTransaction) -> None:
        self._client = client
        self._twin = twin

    @property
    def id(self) -> str:
        return self._twin.id

    @property
    def headers(self) -> dict[str, str]:
        return self._twin.headers

    @property
    def result(self) -> Transaction:
        return self._twin.result

    enlist = _blocking(InteractiveTransaction.enlist)
    commit = _blocking(InteractiveTransaction.commit)
    rollback = _blocking(InteractiveTransaction.rollback)

    def __enter__(self) -> SyncInteractiveTransaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._twin.end_is_asked:
            return
        try:
            self._wait_for(self._twin.__aexit__(kind, error, traceback))
        except RuntimeError as failure:  # there is nobody to wait for: closed, or forked
            if kind is None:
                raise
            not_rolled_back(self.id, failure)

    def _wait_for(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return self._client._wait_for(work)
