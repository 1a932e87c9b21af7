"""A load in a process of its own, as a measurement holds it; `cluster.bench.load` is the load."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from cluster.bench.requests import Load
from cluster.bench.settings import BenchError

_SPARE_S = 60.0
_OWN_ENVIRONMENT = dict(os.environ)
"""The load runs from this tree, whatever `code` says: both sides of a comparison have the same."""


class LoadProcess:
    """`begun`, `over`, `tally`, `leave`, in this order."""

    def __init__(self, load: Load, process: asyncio.subprocess.Process) -> None:
        self.load = load
        self.pid = process.pid
        self._process = process

    @classmethod
    @asynccontextmanager
    async def running(cls, load: Load) -> AsyncIterator[LoadProcess]:
        """A process for this load, which ends with the block at the latest."""
        process = await cls._start(load)
        try:
            yield process
        finally:
            await process._kill()

    @classmethod
    async def _start(cls, load: Load) -> LoadProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cluster.bench.load",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=_OWN_ENVIRONMENT,
            limit=1 << 24,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(load)).encode() + b"\n")
        await process.stdin.drain()
        return cls(load, process)

    async def begun(self) -> None:
        """Returns when it is warm, and begins to measure."""
        await self._line(self.load.warm_up_s + _SPARE_S)

    async def over(self) -> None:
        """Returns when it measures no more: what is under way is still to be answered."""
        await self._line(self.load.seconds + self.load.most / 100 + _SPARE_S)

    async def stop(self) -> None:
        """`over`, of a load that has no end of its own."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"stop\n")
        await self.over()

    async def tally(self) -> dict[str, Any]:
        """What came of it (`load.Tally`). Raises BenchError."""
        tally = await self._line(_SPARE_S)
        assert isinstance(tally, dict)
        return tally

    async def leave(self) -> None:
        """It lives until now, so that what it used could be read."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def _kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _line(self, timeout: float) -> Any:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchError(f"the load said nothing for {timeout:.0f} s") from None
        if not line:
            raise BenchError("the load ended before its time; what it wrote is above")
        return json.loads(line)
