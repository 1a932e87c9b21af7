"""What the tests of participants share: messages, real servers on free ports, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from participants.contract import DECLARATION_HEADER, Vote, read_declaration
from participants.inquiry import InquirySettings
from participants.sdk import Participant, ParticipantSettings, Refused, Resource, Work
from participants.sqlite_store import SqliteStore

FAR_AWAY = "2099-01-01T00:00:00.000Z"
LONG_AGO = "2001-01-01T00:00:00.000Z"
READY_WITHIN_S = 60.0


def prepare_message(
    transaction_id: str,
    payload: Any = None,
    *,
    branch_id: str = "1",
    fingerprint: str = "f",
    expires_at: str = FAR_AWAY,
    coordinators: Sequence[str] = (),
    interactive: bool = False,
) -> dict[str, Any]:
    more = {"interactive": True} if interactive else {}
    return more | {
        "transaction_id": transaction_id,
        "branch_id": branch_id,
        "payload": payload,
        "fingerprint": fingerprint,
        "expires_at": expires_at,
        "coordinators": list(coordinators),
    }


def end_message(transaction_id: str, branch_id: str = "1") -> dict[str, Any]:
    return {"transaction_id": transaction_id, "branch_id": branch_id}


@contextlib.asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[str]:
    """Serves the application on a free port; yields its base URL."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    body: Any
    text: bytes

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


class Caller:
    """A coordinator as a participant sees it: calls, checked for what every answer must have."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def post(self, path: str, message: Any, **headers: str) -> Answered:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        async with self.session.post(
            f"{self.url}/{path}", data=io.BytesIO(body), headers=headers
        ) as response:
            text = await response.read()
            answered = Answered(response.status, json.loads(text), text)
            declared = read_declaration(response.headers.get(DECLARATION_HEADER))
            assert not declared.is_plain, "every answer of an SDK participant declares it"
        if isinstance(message, dict) and "messages" not in message:
            assert answered.body["transaction_id"] == message["transaction_id"]
            assert answered.body["branch_id"] == message["branch_id"]
        return answered

    async def prepare(self, transaction_id: str, payload: Any = None, **more: Any) -> Answered:
        return await self.post("prepare", prepare_message(transaction_id, payload, **more))

    async def commit(self, transaction_id: str, branch_id: str = "1") -> Answered:
        return await self.post("commit", end_message(transaction_id, branch_id))

    async def rollback(self, transaction_id: str, branch_id: str = "1") -> Answered:
        return await self.post("rollback", end_message(transaction_id, branch_id))

    async def get(self, path: str) -> Any:
        async with self.session.get(f"{self.url}{path}") as response:
            return await response.json()


@contextlib.asynccontextmanager
async def calling(application: web.Application) -> AsyncIterator[Caller]:
    async with serving(application) as url, aiohttp.ClientSession() as session:
        yield Caller(session, url)


async def until(condition: Callable[[], Awaitable[object]], within_s: float = 30.0) -> None:
    """Look again and again, until `condition` gives something true."""
    async with asyncio.timeout(within_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


class Service:
    """`python -m participants ...` as a real process."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    @classmethod
    async def start(cls, *arguments: str) -> Service:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "participants",
            *arguments,
            "--log-level",
            "warning",
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(READY_WITHIN_S):
            line = (await process.stdout.readline()).decode()
        assert " ready at " in line, f"the service did not start: {line!r}"
        return cls(process, line.split(" ready at ")[1].split()[0])

    async def kill(self) -> None:
        """kill -9; returns once the process is gone."""
        os.kill(self.process.pid, signal.SIGKILL)
        assert await self.process.wait() == -signal.SIGKILL

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(READY_WITHIN_S):
            return await self.process.wait()


# --- a participant that writes everything down --------------------------------------------------

QUIET = ParticipantSettings(inquiry=InquirySettings(first_after_s=3600))
"""Does not inquire while a test lasts."""


class Ledger(Resource[sqlite3.Connection]):
    """Writes down every call, in the same local transaction; does what the payload says."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails = 0
        self.entered = threading.Event()
        self.release = threading.Event()

    def create(self, transaction: sqlite3.Connection) -> None:
        transaction.execute("CREATE TABLE IF NOT EXISTS ledger (what TEXT)")

    def prepare(self, work: Work[sqlite3.Connection], payload: Any) -> Vote:
        self._write(work, "prepare")
        match payload:
            case "refuse":
                raise Refused("sold out")
            case "forge":
                raise Refused("sold out\ncommit t9/1: committed")
            case "explain":
                raise Refused("sold out, " * 10_000)
            case "no":
                return Vote.NO
            case "read":
                return Vote.READ_ONLY
            case "raise":
                raise KeyError("broken")
            case "nothing":
                return None  # type: ignore[return-value]
            case "wait":
                self.entered.set()
                self.release.wait(30)
        return Vote.YES

    def commit(self, work: Work[sqlite3.Connection]) -> None:
        self._write(work, f"commit {work.payload!r}")
        self._fail()

    def rollback(self, work: Work[sqlite3.Connection]) -> None:
        self._write(work, f"rollback {work.payload!r}")
        self._fail()

    def _write(self, work: Work[sqlite3.Connection], what: str) -> None:
        self.calls.append(what)
        entry = f"{what} {work.transaction_id}/{work.branch_id}"
        work.transaction.execute("INSERT INTO ledger VALUES (?)", (entry,))

    def _fail(self) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("not now")


class Rig:
    def __init__(
        self, caller: Caller, resource: Ledger, participant: Participant[sqlite3.Connection]
    ) -> None:
        self.call = caller
        self.resource = resource
        self.participant = participant
        assert isinstance(participant.store, SqliteStore)
        self.store = participant.store

    async def ledger(self) -> list[str]:
        rows = await self.store.read(lambda f: f.execute("SELECT what FROM ledger").fetchall())
        return [what for (what,) in rows]

    async def states(self) -> dict[str, int]:
        return {state.value: n for state, n in (await self.store.count()).items() if n}


@contextlib.asynccontextmanager
async def rig(
    directory: Path,
    settings: ParticipantSettings = QUIET,
    resource: Ledger | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    resource = resource or Ledger()
    store = SqliteStore(directory / "ledger.sqlite", owner="ledger", busy_timeout_ms=50)
    participant = Participant(resource, store, settings, random=random.Random(1), **options)
    async with calling(participant.application()) as caller:
        yield Rig(caller, resource, participant)


def run(scenario: Callable[[Rig], Any], directory: Path, **options: Any) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), rig(directory, **options) as r:
            await scenario(r)

    asyncio.run(whole())
