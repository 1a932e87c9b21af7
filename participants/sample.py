"""What the three sample services share: a resource in SQLite, the protocol, and pages to look at.

    GET /            what it is, and how many branches are prepared, committed and rolled back
    GET /branches    the branches in doubt, the longest prepared first
    GET /effects     how branches ended, in the order in which they did: `?after=&limit=`
    GET /healthz     alive

Rules:
- What a page shows is synced; what is prepared shows as reserved or held, never as done.
- A payload that is not as it must be is the business refusing: NO, with a reason naming the field.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from participants.branch import State
from participants.clock import wall_clock_ms
from participants.endpoints import error_body
from participants.sdk import Participant, ParticipantSettings, Refused, Resource
from participants.sqlite_store import SqliteStore
from participants.store import Store, StoreError

MAX_LIMIT = 10_000
MAX_NUMBER = 10**12
"""Payload numbers stay far from what SQLite's integers, and JSON's, can hold."""

Page = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Sample:
    """A sample service: `resource` under the name `name`, its file in `directory`."""

    def __init__(
        self,
        name: str,
        what: str,
        resource: Resource[sqlite3.Connection],
        directory: Path,
        settings: ParticipantSettings | None = None,
    ) -> None:
        self.name = name
        self.what = what
        self.store = SqliteStore(directory / f"{name}.sqlite", owner=name)
        self.participant = Participant(resource, self.store, settings)

    def application(self, pages: dict[str, Page]) -> web.Application:
        """The protocol, the shared pages, and the service's own (`pages`: path to page)."""
        application = self.participant.application()
        shared: dict[str, Page] = {
            "/": self._about,
            "/branches": self._branches,
            "/effects": self._effects,
            "/healthz": self._health,
        }
        for path, page in {**shared, **pages}.items():
            application.router.add_get(path, with_errors(page))
        application.router.add_route("*", "/{path:.*}", _not_found)  # the last: it takes the rest
        return application

    async def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the service's file, beside the writing."""
        return await self.store.read(lambda file: file.execute(sql, parameters).fetchall())

    async def _about(self, _: web.Request) -> web.Response:
        counts = await self.store.count()
        ended = {state.value: counts[state] for state in (State.COMMITTED, State.ROLLED_BACK)}
        branches = {"prepared": counts[State.PREPARED], **ended}
        return web.json_response({"service": self.name, "what": self.what, "branches": branches})

    async def _branches(self, request: web.Request) -> web.Response:
        now_ms = wall_clock_ms()
        records = await self.store.in_doubt(read_number(request, "limit", 100, 1, MAX_LIMIT))
        shown = [
            {
                "transaction_id": record.transaction_id,
                "branch_id": record.branch_id,
                "state": record.branch.state.value,
                "age_ms": max(0, now_ms - record.changed_at_ms),
                "coordinators": list(record.coordinators),
            }
            for record in records
        ]
        return web.json_response(shown)

    async def _effects(self, request: web.Request) -> web.Response:
        return await show_effects(self.store, request, MAX_LIMIT)

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


class BadQuery(ValueError):
    """A page was asked for with a query that it cannot answer."""


def read_number(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    """A number of the query; raises BadQuery."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and least <= int(text) <= most):
        raise BadQuery(f"{name}: must be a number from {least} to {most}")
    return int(text)


def not_found(what: str) -> web.Response:
    return web.json_response(error_body("not_found", f"{what} is not here"), status=404)


async def show_effects(store: Store[Any], request: web.Request, most: int) -> web.Response:
    """How branches ended, `?after=&limit=`, at most so many; raises BadQuery."""
    after = read_number(request, "after", 0, 0, MAX_NUMBER)
    limit = read_number(request, "limit", 1000, 1, most)
    shown = [
        {
            "number": ended.number,
            "transaction_id": ended.transaction_id,
            "branch_id": ended.branch_id,
            "effect": ended.state.value,
        }
        for ended in await store.ended(after, limit)
    ]
    return web.json_response(shown)


async def _not_found(request: web.Request) -> web.Response:
    return not_found(f"{request.method} {request.path}")


def with_errors(page: Page) -> Page:
    """The page, with what it raises said in the one error shape."""

    async def shown(request: web.Request) -> web.StreamResponse:
        try:
            return await page(request)
        except BadQuery as error:
            return web.json_response(error_body("bad_query", str(error)), status=400)
        except StoreError as error:
            return web.json_response(error_body("store_unavailable", str(error)), status=503)

    return shown


# --- payloads -----------------------------------------------------------------------------------


def read_fields(payload: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Any:
    """The payload, an object with these fields; raises Refused naming what is wrong."""
    if not isinstance(payload, dict):
        raise Refused("payload: must be an object")
    for name in required:
        if name not in payload:
            raise Refused(f"payload.{name}: is missing")
    for name in payload:
        if name not in required and name not in optional:
            raise Refused(f"payload: {name[:40]!r} is not a field here")
    return payload


def read_text(value: Any, field: str, longest: int = 100) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= longest or not value.isprintable():
        raise Refused(f"payload.{field}: must be text of 1 to {longest} printable characters")
    return value


def read_whole(value: Any, field: str, least: int, most: int) -> int:
    # A JSON `true` is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refused(f"payload.{field}: must be a whole number from {least} to {most}")
    return value
