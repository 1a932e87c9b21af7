"""A plain participant: the three calls of the contract, and nothing that the SDK adds.

It answers a bare `true`, `false`, or an empty 200, declares nothing, and cannot inquire. What it
remembers is what the contract needs of it to be free of orphans: what is prepared, what has ended,
and rollbacks of branches that it did not know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from participants.branch import Branch, State
from participants.contract import BadMessage, Operation
from participants.endpoints import MAX_MESSAGE_BYTES
from participants.memory_store import MemoryStore
from participants.messages import read_end
from participants.sqlite_store import SqliteStore
from participants.store import BranchRecord, LocalTransaction


class PlainParticipant:
    """Always willing. `store`: where it remembers."""

    def __init__(self, store: MemoryStore | SqliteStore) -> None:
        self._store = store

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_MESSAGE_BYTES)
        for operation in Operation:
            application.router.add_post(f"/{operation}", self._receive)

        async def lifetime(_: web.Application) -> AsyncIterator[None]:
            await self._store.open(lambda _: None)
            yield
            await self._store.close()

        application.cleanup_ctx.append(lifetime)
        return application

    async def _receive(self, request: web.Request) -> web.Response:
        operation = Operation(request.path.rpartition("/")[2])
        try:
            transaction_id, branch_id = read_end(await request.json())
        except (BadMessage, ValueError) as error:
            return web.Response(status=400, text=str(error))

        def work(local: LocalTransaction[Any]) -> web.Response:
            record = local.find(transaction_id, branch_id)
            state = State.ABSENT if record is None else record.branch.state
            status, body, after = _answer(operation, state)
            if after is not state:
                local.keep(BranchRecord(transaction_id, branch_id, Branch(after)))
            return web.Response(status=status, body=body, content_type="application/json")

        (result,) = await self._store.perform([work])
        return web.Response(status=503) if isinstance(result, Exception) else result


def _answer(operation: Operation, state: State) -> tuple[int, bytes, State]:
    """(status, body, the state after)."""
    match operation, state:
        case Operation.PREPARE, State.ABSENT | State.PREPARED:
            return 200, b"true", State.PREPARED
        case Operation.PREPARE, _:
            return 200, b"false", state
        case Operation.COMMIT, State.PREPARED | State.COMMITTED:
            return 200, b"", State.COMMITTED
        case Operation.COMMIT, State.ABSENT:
            return 404, b"", state
        case Operation.ROLLBACK, State.ABSENT | State.PREPARED | State.ROLLED_BACK:
            return 200, b"", State.ROLLED_BACK
        case _:
            return 409, b"", state
