"""The event loop of a process.

It is uvloop's where it is installed, else asyncio's. uvloop comes with
`pip install 'assent[fast]'`. The environment variable ASSENT_EVENT_LOOP says otherwise: `asyncio`
does without it where it is installed, `uvloop` insists on it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

VARIABLE = "ASSENT_EVENT_LOOP"


class NoSuchLoop(Exception):
    """What the variable asks for cannot be had; one line that says what, and what next."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` does; raises NoSuchLoop."""
    try:
        factory = _factory(os.environ.get(VARIABLE, ""))
    except BaseException:
        main.close()
        raise
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def _factory(wanted: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if wanted not in ("", "asyncio", "uvloop"):
        raise NoSuchLoop(f"{VARIABLE}: {wanted!r} is neither asyncio nor uvloop")
    if wanted == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        if wanted:
            what = "uvloop is not installed; pip install 'assent[fast]', or leave it out"
            raise NoSuchLoop(f"{VARIABLE}: {what}") from None
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
