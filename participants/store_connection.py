"""The SQLite connection that a resource gets: it cannot end the store's local transaction."""

from __future__ import annotations

import sqlite3
from typing import Any, NoReturn


class StoreConnection(sqlite3.Connection):
    """Refuses, with `sqlite3.ProgrammingError`, whatever would end the local transaction."""

    def _refuse(self, what: str) -> NoReturn:
        raise sqlite3.ProgrammingError(
            f"{what} is not for the resource: the store ends the local transaction, "
            "together with the branch's own row; leave the call out"
        )

    def commit(self) -> None:
        self._refuse("commit()")

    def rollback(self) -> None:
        self._refuse("rollback()")

    def close(self) -> None:
        self._refuse("close(), which rolls back,")

    def executescript(self, sql_script: str, /) -> NoReturn:  # noqa: ARG002
        self._refuse("executescript(), which commits,")

    def __enter__(self) -> NoReturn:
        self._refuse("'with connection', which commits,")

    @property
    def text_factory(self) -> Any:
        return str

    @text_factory.setter
    def text_factory(self, _: Any) -> None:
        what = "text_factory is not for the resource: the store's own rows are read through it"
        raise sqlite3.ProgrammingError(f"{what}; CAST(... AS BLOB) gives bytes")
