"""Bodies of HTTP that others send, read within bounds."""

from __future__ import annotations

from aiohttp import StreamReader


async def read_within(content: StreamReader, most: int) -> bytes | None:
    """All of it; None if it is longer than `most` bytes, and no more of it is read then."""
    body = bytearray()
    async for piece in content.iter_any():
        body += piece
        if len(body) > most:
            return None
    return bytes(body)
