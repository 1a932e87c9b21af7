"""The inventory: reserves a quantity of an article; votes NO when it is out of stock.

    payload {"sku": "A-1", "quantity": 2}
    GET /items, GET /items/{sku}

Prepare takes the quantity out of what is available and puts it aside; commit sells it, rollback
puts it back. So `available + reserved + sold` is what there was at the start, at every moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
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

_SHOWN = "SELECT sku, at_start, available, reserved, sold FROM items"
_TAKE = """UPDATE items SET available = available - :quantity, reserved = reserved + :quantity
    WHERE sku = :sku AND available >= :quantity"""
_SELL = "UPDATE items SET reserved = reserved - :quantity, sold = sold + :quantity WHERE sku = :sku"
_PUT_BACK = """UPDATE items SET reserved = reserved - :quantity, available = available + :quantity
    WHERE sku = :sku"""
_ADD_ITEM = "INSERT OR IGNORE INTO items VALUES (?, ?, ?, 0, 0)"


class Inventory(Resource[sqlite3.Connection]):
    """`stock`: how much there is at the start of an article that `items` does not name."""

    def __init__(self, stock: int, items: Mapping[str, int]) -> None:
        self._stock = stock
        self._items = items

    def create(self, transaction: sqlite3.Connection) -> None:
        transaction.execute(
            "CREATE TABLE IF NOT EXISTS items (sku TEXT PRIMARY KEY, at_start INTEGER, "
            "available INTEGER CHECK (available >= 0), reserved INTEGER CHECK (reserved >= 0), "
            "sold INTEGER) WITHOUT ROWID"
        )
        for sku, quantity in self._items.items():
            transaction.execute(_ADD_ITEM, (sku, quantity, quantity))

    def prepare(self, work: Work[sqlite3.Connection], payload: Any) -> Vote:
        fields = read_fields(payload, ("sku", "quantity"))
        sku = read_text(fields["sku"], "sku")
        read_whole(fields["quantity"], "quantity", 1, MAX_NUMBER)
        execute = work.transaction.execute
        if execute(_TAKE, fields).rowcount == 0:
            execute(_ADD_ITEM, (sku, self._stock, self._stock))  # asked for the first time, perhaps
            if execute(_TAKE, fields).rowcount == 0:
                raise Refused(f"out of stock: {sku}")
        return Vote.YES

    def commit(self, work: Work[sqlite3.Connection]) -> None:
        work.transaction.execute(_SELL, work.payload)

    def rollback(self, work: Work[sqlite3.Connection]) -> None:
        work.transaction.execute(_PUT_BACK, work.payload)


def application(
    directory: Path,
    stock: int = 1_000_000,
    items: Mapping[str, int] | None = None,
    settings: ParticipantSettings | None = None,
) -> web.Application:
    what = "reserves quantities of articles, until they are out of stock"
    sample = Sample("inventory", what, Inventory(stock, items or {}), directory, settings)
    names = ("sku", "at_start", "available", "reserved", "sold")

    async def show_items(request: web.Request) -> web.Response:
        limit = read_number(request, "limit", 1000, 1, MAX_LIMIT)
        rows = await sample.rows(f"{_SHOWN} ORDER BY sku LIMIT ?", limit)
        return web.json_response([dict(zip(names, row, strict=True)) for row in rows])

    async def show_item(request: web.Request) -> web.Response:
        sku = request.match_info["sku"]
        rows = await sample.rows(f"{_SHOWN} WHERE sku = ?", sku)
        if not rows:
            return not_found(f"article {sku!r}")
        return web.json_response(dict(zip(names, rows[0], strict=True)))

    return sample.application({"/items": show_items, "/items/{sku}": show_item})
