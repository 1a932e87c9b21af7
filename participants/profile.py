"""The user profiles: set fields of a user, and count up others.

    payload {"user": "u1", "set": {"city": "Rome"}, "add": {"orders": 1}}
    GET /users, GET /users/{id}

Prepare checks the change and holds the user; until that branch ends, any other branch on the same
user votes NO. Commit makes the change, rollback only lets go. A user begins to exist by a commit.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from aiohttp import web

from participants.contract import Vote
from participants.sample import (
    MAX_LIMIT,
    MAX_NUMBER,
    Sample,
    not_found,
    read_fields,
    read_number,
    read_text,
    read_whole,
)
from participants.sdk import ParticipantSettings, Refused, Resource, Work

_SHOWN = """SELECT name, fields, holder FROM
    (SELECT users.name, users.fields, holds.transaction_id AS holder
     FROM users LEFT JOIN holds ON holds.name = users.name)"""
MAX_FIELDS = 100


class Profile(Resource[sqlite3.Connection]):
    def create(self, transaction: sqlite3.Connection) -> None:
        transaction.execute(
            "CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, fields TEXT) WITHOUT ROWID"
        )
        transaction.execute(
            "CREATE TABLE IF NOT EXISTS holds (name TEXT PRIMARY KEY, transaction_id TEXT, "
            "branch_id TEXT) WITHOUT ROWID"
        )

    def prepare(self, work: Work[sqlite3.Connection], payload: Any) -> Vote:
        user, _, additions = _read(payload)
        fields = _fields_of(work.transaction, user)
        for name, number in additions.items():
            read_whole(fields.get(name, 0), f"add.{name}", -MAX_NUMBER, MAX_NUMBER)
            read_whole(number, f"add.{name}", -MAX_NUMBER, MAX_NUMBER)
            read_whole(fields.get(name, 0) + number, f"add.{name}", -MAX_NUMBER, MAX_NUMBER)
        hold = "INSERT OR IGNORE INTO holds VALUES (?, ?, ?)"
        holder = (user, work.transaction_id, work.branch_id)
        if work.transaction.execute(hold, holder).rowcount == 0:
            raise Refused(f"user {user} is held by another transaction")
        return Vote.YES

    def commit(self, work: Work[sqlite3.Connection]) -> None:
        user, values, additions = _read(work.payload)
        fields = _fields_of(work.transaction, user)
        fields.update(values)
        for name, number in additions.items():
            fields[name] = fields.get(name, 0) + number
        replacement = "INSERT OR REPLACE INTO users VALUES (?, ?)"
        work.transaction.execute(replacement, (user, json.dumps(fields)))
        self.rollback(work)

    def rollback(self, work: Work[sqlite3.Connection]) -> None:
        holder = (work.payload["user"], work.transaction_id, work.branch_id)
        work.transaction.execute(
            "DELETE FROM holds WHERE name = ? AND transaction_id = ? AND branch_id = ?", holder
        )


def application(directory: Path, settings: ParticipantSettings | None = None) -> web.Application:
    what = "keeps users' profiles, one change of a user at a time"
    sample = Sample("profile", what, Profile(), directory, settings)

    async def show_users(request: web.Request) -> web.Response:
        limit = read_number(request, "limit", 1000, 1, MAX_LIMIT)
        rows = await sample.rows(f"{_SHOWN} ORDER BY name LIMIT ?", limit)
        return web.json_response([_shown(row) for row in rows])

    async def show_user(request: web.Request) -> web.Response:
        user = request.match_info["user"]
        rows = await sample.rows(f"{_SHOWN} WHERE name = ?", user)
        return web.json_response(_shown(rows[0])) if rows else not_found(f"user {user!r}")

    return sample.application({"/users": show_users, "/users/{user}": show_user})


def _read(payload: Any) -> tuple[str, dict[str, Any], dict[str, int]]:
    """(user, fields to set, fields to add to); raises Refused."""
    given = read_fields(payload, ("user",), ("set", "add"))
    user = read_text(given["user"], "user")
    for part in ("set", "add"):
        changes = given.get(part, {})
        if not isinstance(changes, dict) or len(changes) > MAX_FIELDS:
            raise Refused(f"payload.{part}: must be an object of at most {MAX_FIELDS} fields")
        for name in changes:
            read_text(name, f"{part}, a name")
    values, additions = given.get("set", {}), given.get("add", {})
    for name in values:
        if name in additions:
            raise Refused(f"payload.add.{name}: is set by the same payload")
    return user, values, additions


def _fields_of(transaction: sqlite3.Connection, user: str) -> dict[str, Any]:
    row = transaction.execute("SELECT fields FROM users WHERE name = ?", (user,)).fetchone()
    fields: dict[str, Any] = {} if row is None else json.loads(row[0])
    return fields


def _shown(row: tuple[str, str, str | None]) -> dict[str, Any]:
    name, fields, holder = row
    return {"user": name, "fields": json.loads(fields), "held_by": holder}
