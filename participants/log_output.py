"""Where log lines go: to standard error, and nobody waits for who reads it.

A pipe whose reader stands still, a pager for example, a collector that hangs, a terminal after
Ctrl-S, is full at 64 KiB. To wait until it is read stops the whole process: three nodes with one
collector were a cluster that decided nothing. So what finds no room is lost, and the first line
that finds some again is preceded by one which says how many were.

`O_NONBLOCK` is a flag of the open file, which others may share, a shell for example. So a pipe or a
terminal is opened once more, under its name in /proc; where there is no /proc, writing may wait. To
a socket (systemd's) the flag goes with each piece, and a file never makes anybody wait.
"""

from __future__ import annotations

import functools
import os
import socket
import stat
from collections.abc import Callable
from typing import TextIO


def non_blocking(stream: TextIO | None) -> TextIO | NonBlocking | None:
    """A stream to the same place whose writes never wait, `stream` itself if possible; None if it
    is closed."""
    if stream is None:
        return None
    try:
        write = _writer(stream.fileno())
    except OSError:  # it is no file at all, or cannot be opened again
        return stream
    return stream if write is None else NonBlocking(write, stream.encoding)


class NonBlocking:
    """A stream of text over `write`, which takes as much as there is room for, or raises
    BlockingIOError."""

    def __init__(self, write: Callable[[bytes], int], encoding: str) -> None:
        self._write = write
        self._encoding = encoding
        self._unsent = b""
        """The rest of what was sent in part."""
        self._lost = 0

    def write(self, text: str) -> None:
        """All of it or nothing. Raises OSError when nobody will ever read it."""
        self._send()
        if self._unsent:
            self._lost += text.count("\n")
            return
        lost, self._lost = self._lost, 0
        if lost:
            text = f"{lost} lines were lost here: there was no room for them\n{text}"
        self._unsent = text.encode(self._encoding, "backslashreplace")
        self._send()

    def flush(self) -> None:
        """Nothing is held that could be sent."""

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._write(self._unsent) :]
        except BlockingIOError:
            pass


def _writer(descriptor: int) -> Callable[[bytes], int] | None:
    """None where writing never waits."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        return functools.partial(_send, descriptor)
    if stat.S_ISFIFO(mode) or os.isatty(descriptor):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        again = os.open(f"/proc/self/fd/{descriptor}", flags)
        return lambda piece: os.write(again, piece)
    return None


def _send(descriptor: int, piece: bytes) -> int:
    connection = socket.socket(fileno=descriptor)
    try:
        return connection.send(piece, socket.MSG_DONTWAIT)
    finally:
        connection.detach()
