"""An event loop whose clock skips all waiting, for what needs no sockets.

While nobody has anything to do the clock jumps to the next timer, so ten seconds pass at once and
nothing depends on the machine's speed.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

CLOCK_STARTS_S = 1_000.0


class _Skipping(selectors.DefaultSelector):
    """Waits for nothing: what the loop wants to wait is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = CLOCK_STARTS_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everybody waits and no timer is set: nothing would ever happen")
        self.now_s += max(0.0, timeout)
        return super().select(0)


def _loop() -> asyncio.AbstractEventLoop:
    selector = _Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    return loop


def run_skipping(whole: Coroutine[Any, Any, None]) -> None:
    """Run it to its end."""
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(whole)
