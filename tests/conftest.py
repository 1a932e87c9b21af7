"""What holds for all tests: a flaw of asyncio's (3.11) is nobody's failure.

A connection that is accepted while its server closes is dropped as it is, when the collector comes
by, perhaps in a later test; it is closed here. Warnings are errors (pyproject.toml).
"""

from __future__ import annotations

from asyncio import selector_events
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def _what_nobody_serves_is_closed() -> Iterator[None]:
    transport: Any = selector_events._SelectorTransport  # type: ignore[attr-defined]
    made = transport.__init__

    def make(self: Any, loop: Any, sock: Any, *others: Any, **named: Any) -> None:
        try:
            made(self, loop, sock, *others, **named)
        except AssertionError:  # its server has closed meanwhile
            self._sock = None
            sock.close()
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "__init__", make)
        yield
