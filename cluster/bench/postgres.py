"""PostgreSQL's own two-phase commit over several databases, with nobody who remembers decisions.

Each transaction inserts a row in every database, says PREPARE TRANSACTION to all of them, then
COMMIT PREPARED. There is no coordinator: if the program dies in between, somebody has to find out
by hand what to do. So it is what the databases alone cost, and a coordinator is compared with that.

Needs asyncpg (`pip install asyncpg`) and, at each server, max_prepared_transactions of at least the
number of clients. The table `assent_bench` is made, and dropped at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4


class PostgresMissing(Exception):
    """It cannot be measured here; the text is one sentence that says what is missing."""


async def measure_postgres(dsns: Sequence[str], *, clients: int, seconds: float) -> dict[str, Any]:
    """Transactions per second and their latency. Raises PostgresMissing."""
    try:
        import asyncpg  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415
    except ImportError:
        raise PostgresMissing(
            "asyncpg is not installed, and --baseline postgres needs it: pip install asyncpg"
        ) from None
    failures = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
    sets: list[list[Any]] = []
    try:
        try:
            for _ in range(clients):
                sets.append([])
                for dsn in dsns:
                    sets[-1].append(await asyncpg.connect(dsn))
            for connection in sets[0]:
                await _prepare_database(connection, clients)
        except failures as error:
            raise PostgresMissing(f"a database of --postgres cannot be used: {error}") from None
        until = time.perf_counter() + seconds
        took = await asyncio.gather(*(_client(connections, until) for connections in sets))
        for connection in sets[0]:
            await connection.execute("DROP TABLE assent_bench")
    finally:
        for connections in sets:
            for connection in connections:
                await connection.close()
    all_took = sorted(one for each in took for one in each)
    count = len(all_took)
    if not count:
        raise PostgresMissing("no transaction ended in time; measure for longer")
    return {
        "per_second": count / seconds,
        "clients": clients,
        "databases": len(dsns),
        "latency_ms": {
            "p50": all_took[count // 2] * 1000,
            "p99": all_took[count * 99 // 100] * 1000,
        },
    }


async def _prepare_database(connection: Any, clients: int) -> None:
    room = int(await connection.fetchval("SHOW max_prepared_transactions"))
    if room < clients:
        raise PostgresMissing(
            f"max_prepared_transactions is {room} at a server, and {clients} clients need as many"
        )
    await connection.execute("DROP TABLE IF EXISTS assent_bench")
    await connection.execute("CREATE TABLE assent_bench (id text PRIMARY KEY, what text)")


async def _client(connections: Sequence[Any], until: float) -> list[float]:
    took = []
    while (began := time.perf_counter()) < until:
        name = uuid4().hex
        await asyncio.gather(
            *(_prepare(connection, f"{name}-{n}") for n, connection in enumerate(connections))
        )
        await asyncio.gather(
            *(
                connection.execute(f"COMMIT PREPARED '{name}-{n}'")
                for n, connection in enumerate(connections)
            )
        )
        took.append(time.perf_counter() - began)
    return took


async def _prepare(connection: Any, name: str) -> None:
    await connection.execute("BEGIN")
    await connection.execute("INSERT INTO assent_bench VALUES ($1, $2)", name, "x")
    await connection.execute(f"PREPARE TRANSACTION '{name}'")
