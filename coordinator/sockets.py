"""How a connection notices that the other machine is gone. A system that lacks an option does
without it."""

from __future__ import annotations

import socket


def drop_unacknowledged(sock: socket.socket, within_ms: int) -> None:
    """The connection is lost when what was sent has not been acknowledged for so long. By itself
    the kernel would repeat it, ever more seldom, for many minutes."""
    _set(sock, "TCP_USER_TIMEOUT", within_ms)


def keep_alive(sock: socket.socket, *, quiet_s: int, every_s: int, times: int) -> None:
    """Probe the other machine: first when it has been silent for `quiet_s`, then every `every_s`;
    after `times` probes without an answer the connection is lost. A machine that lost its power and
    has it again answers that it knows no such connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set(sock, "TCP_KEEPIDLE", quiet_s)
    _set(sock, "TCP_KEEPINTVL", every_s)
    _set(sock, "TCP_KEEPCNT", times)


def _set(sock: socket.socket, name: str, value: int) -> None:
    option = getattr(socket, name, None)
    if option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
