"""The activity log: appends entries, each to be seen only once it is committed.

    payload {"user": "u1", "text": "ordered 2 of A-1"}
    GET /entries?user=&limit=   the newest first
    GET /entries/count?user=

There is nothing to reserve: prepare checks the payload, which the store keeps with the branch, and
commit writes the entry. So nothing has to be taken back either.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from aiohttp import web

from participants.contract import Vote
from participants.sample import MAX_LIMIT, Sample, read_fields, read_number, read_text
from participants.sdk import ParticipantSettings, Resource, Work

MAX_TEXT_CHARS = 2_000


class Activity(Resource[sqlite3.Connection]):
    def create(self, transaction: sqlite3.Connection) -> None:
        transaction.execute(
            "CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, transaction_id TEXT, "
            "branch_id TEXT, user TEXT, text TEXT)"
        )
        transaction.execute("CREATE INDEX IF NOT EXISTS entries_of_user ON entries (user)")

    def prepare(self, work: Work[sqlite3.Connection], payload: Any) -> Vote:  # noqa: ARG002
        fields = read_fields(payload, ("user", "text"))
        read_text(fields["user"], "user")
        read_text(fields["text"], "text", MAX_TEXT_CHARS)
        return Vote.YES

    def commit(self, work: Work[sqlite3.Connection]) -> None:
        entry = (work.transaction_id, work.branch_id, work.payload["user"], work.payload["text"])
        work.transaction.execute(
            "INSERT INTO entries (transaction_id, branch_id, user, text) VALUES (?, ?, ?, ?)", entry
        )

    def rollback(self, work: Work[sqlite3.Connection]) -> None:
        pass


def application(directory: Path, settings: ParticipantSettings | None = None) -> web.Application:
    what = "logs what users did, once it is committed"
    sample = Sample("activity", what, Activity(), directory, settings)
    names = ("number", "transaction_id", "branch_id", "user", "text")

    async def show_entries(request: web.Request) -> web.Response:
        limit = read_number(request, "limit", 100, 1, MAX_LIMIT)
        where, parameters = _where(request)
        sql = f"SELECT {', '.join(names)} FROM entries {where} ORDER BY number DESC LIMIT ?"
        rows = await sample.rows(sql, *parameters, limit)
        return web.json_response([dict(zip(names, row, strict=True)) for row in rows])

    async def show_count(request: web.Request) -> web.Response:
        where, parameters = _where(request)
        ((count,),) = await sample.rows(f"SELECT count(*) FROM entries {where}", *parameters)
        return web.json_response({"count": count})

    return sample.application({"/entries": show_entries, "/entries/count": show_count})


def _where(request: web.Request) -> tuple[str, tuple[str, ...]]:
    user = request.query.get("user")
    return ("", ()) if user is None else ("WHERE user = ?", (user,))
