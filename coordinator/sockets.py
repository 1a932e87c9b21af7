"""How a connection notices that the other machine is gone. A system that lacks an option does
without it."""

from __future__ import annotations

import socket


def drop_unacknowledged(sock: socket.socket, within_ms: int) -> None:
    """The connection is lost when what was sent has not been acknowledged for so long. By itself
    the kernel would repeat it, ever more seldom, for many minutes."""
    _set(sock, "TCP_USER_TIMEOUT", within_ms)


def keep_alive(sock: socket.socket, *, quiet_s: int, every_s: int, times: int) -> None:
    """The other machine is asked, after so long a silence, so often, whether it has the connection
    still: one that lost its power, and has it again, says no."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set(sock, "TCP_KEEPIDLE", quiet_s)
    _set(sock, "TCP_KEEPINTVL", every_s)
    _set(sock, "TCP_KEEPCNT", times)


def _set(sock: socket.socket, name: str, value: int) -> None:
    option = getattr(socket, name, None)
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
