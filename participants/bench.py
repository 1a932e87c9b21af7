"""A participant for measurements: several in one process, each doing no more than it must.

    GET /            how many branches were prepared, committed, rolled back, by participant
    GET /?before=T   and how many were prepared before T, of `time.monotonic`, and have not ended
    POST /1/prepare  and so on: the participants are mounted under their numbers

Rules:
- How a branch votes is said by its payload, `{"vote": "no"}` or `{"vote": "read_only"}`, so that
  whoever sends the load knows how each transaction must end. Anything else votes YES.
- One that hangs takes every prepare and never answers; its other calls are answered.
- A branch is the whole of the work: the store keeps its row, and nothing else is read or written.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import web

from participants.contract import BranchKey, Operation, Vote
from participants.endpoints import MAX_MESSAGE_BYTES
from participants.memory_store import MemoryStore
from participants.sdk import Participant, ParticipantSettings, Refused, Resource, Work
from participants.sqlite_store import SqliteStore

TOMBSTONES_KEPT_MS = 60_000
SWEEP_EVERY_S = 5.0
"""In a minute of full speed a million branches end at a participant: as many are held in memory,
not those of a week."""

_SAYS_NO = "asked to refuse"

_VOTED = {
    Vote.YES: b'{"vote":"yes"}',
    Vote.READ_ONLY: b'{"vote":"read_only"}',
    Vote.NO: json.dumps({"vote": "no", "reason": _SAYS_NO}).encode("ascii"),
}
"""What a plain participant answers to a prepare."""


@dataclass(slots=True)
class Ends:
    """How many branches came to what, since the process began, and those that are open."""

    prepared: int = 0
    committed: int = 0
    rolled_back: int = 0
    _open: dict[BranchKey, float] = field(default_factory=dict)

    def prepare(self, key: BranchKey) -> None:
        self.prepared += 1
        self._open[key] = time.monotonic()

    def end(self, key: BranchKey) -> bool:
        """Whether the branch was open, and no longer is."""
        return self._open.pop(key, None) is not None

    def open_before(self, when: float) -> int:
        """How many open ones were prepared before `when`: they lie in the order of their time."""
        return sum(1 for _ in itertools.takewhile(lambda at: at < when, self._open.values()))


class _Obedient(Resource[Any]):
    """Votes as the payload says."""

    def __init__(self) -> None:
        self.ends = Ends()

    def prepare(self, work: Work[Any], payload: Any) -> Vote:
        vote = _asked_vote(payload)
        if vote is Vote.NO:
            raise Refused(_SAYS_NO)
        if vote is Vote.YES:
            self.ends.prepare((work.transaction_id, work.branch_id))
        return vote

    def commit(self, work: Work[Any]) -> None:
        self.ends.committed += 1
        self.ends.end((work.transaction_id, work.branch_id))

    def rollback(self, work: Work[Any]) -> None:
        self.ends.rolled_back += 1
        self.ends.end((work.transaction_id, work.branch_id))


class _Plain:
    """Three calls and a table of what is prepared; without the SDK. Or it hangs."""

    def __init__(self, *, hangs: bool) -> None:
        self.ends = Ends()
        self._hangs = hangs

    def application(self) -> web.Application:
        application = web.Application(client_max_size=MAX_MESSAGE_BYTES)
        application.router.add_post(f"/{Operation.PREPARE}", self._prepare)
        application.router.add_post(f"/{Operation.COMMIT}", self._commit)
        application.router.add_post(f"/{Operation.ROLLBACK}", self._rollback)
        return application

    async def _prepare(self, request: web.Request) -> web.Response:
        message = json.loads(await request.read())
        if self._hangs:
            await asyncio.Event().wait()
        vote = _asked_vote(message.get("payload"))
        if vote is Vote.YES:
            self.ends.prepare(_key(message))
        return web.Response(body=_VOTED[vote], content_type="application/json")

    async def _commit(self, request: web.Request) -> web.Response:
        self.ends.committed += await self._end(request)
        return web.Response()

    async def _rollback(self, request: web.Request) -> web.Response:
        self.ends.rolled_back += await self._end(request)
        return web.Response()

    async def _end(self, request: web.Request) -> bool:
        """Whether the branch was prepared, and no longer is."""
        return self.ends.end(_key(json.loads(await request.read())))


def application(
    count: int,
    *,
    plain: bool = False,
    hangs: bool = False,
    directory: Path | None = None,
    settings: ParticipantSettings | None = None,
) -> web.Application:
    """`count` participants under `/1`, `/2`...; `directory`: SQLite there, None: in memory.

    `plain`: without the SDK, and always in memory; so are those that hang.
    """
    whole = web.Application()
    ends: dict[str, Ends] = {}
    settings = replace(
        settings or ParticipantSettings(),
        tombstones_kept_ms=TOMBSTONES_KEPT_MS,
        sweep_every_s=SWEEP_EVERY_S,
    )
    for number in range(1, count + 1):
        name = str(number)
        if plain or hangs:
            one = _Plain(hangs=hangs)
            ends[name], mounted = one.ends, one.application()
        else:
            resource = _Obedient()
            store = _store(name, directory)
            participant: Participant[Any] = Participant(resource, store, settings)
            ends[name], mounted = resource.ends, participant.application()
        whole.add_subapp(f"/{name}", mounted)

    async def show(request: web.Request) -> web.Response:
        shown = {
            name: {
                "prepared": one.prepared,
                "committed": one.committed,
                "rolled_back": one.rolled_back,
            }
            for name, one in ends.items()
        }
        if "before" in request.query:
            when = float(request.query["before"])
            for name, one in ends.items():
                shown[name]["open_before"] = one.open_before(when)
        return web.json_response({"service": "bench", "participants": shown})

    whole.router.add_get("/", show)
    return whole


def _store(name: str, directory: Path | None) -> MemoryStore | SqliteStore:
    if directory is None:
        return MemoryStore()
    return SqliteStore(directory / f"bench-{name}.sqlite", owner="bench")


def _asked_vote(payload: Any) -> Vote:
    asked = payload.get("vote") if isinstance(payload, dict) else None
    return Vote(asked) if asked in ("no", "read_only") else Vote.YES


def _key(message: Any) -> BranchKey:
    return message["transaction_id"], message["branch_id"]
