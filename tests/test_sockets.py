"""coordinator/sockets.py: what a kernel is told; what it does of it is the kernel's."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest

from coordinator.sockets import drop_unacknowledged, keep_alive

OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")


def told(sock: socket.socket) -> None:
    keep_alive(sock, quiet_s=11, every_s=6, times=3)
    drop_unacknowledged(sock, 9_000)


@pytest.mark.skipif(not all(hasattr(socket, name) for name in OPTIONS), reason="Linux has them")
def test_the_kernel_is_told_when_the_other_machine_counts_as_gone() -> None:
    with socket.socket() as sock:
        told(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = [getattr(socket, name) for name in OPTIONS]
        given = [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options]
    assert given == [11, 6, 3, 9_000]


def test_a_system_that_lacks_the_options_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPTIONS:
        monkeypatch.delattr(socket, name, raising=False)
    with socket.socket() as sock:
        told(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_connection_that_is_accepted_while_its_server_closes_is_nobodys_failure() -> None:
    """Of the tests' own (tests/conftest.py): this one fails without it, in 3.11."""

    async def closing() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            loop.call_soon(loop.call_soon, server.close)  # accepted, and not yet served
            for _ in range(3):
                await asyncio.sleep(0)

    asyncio.run(closing())
    gc.collect()
